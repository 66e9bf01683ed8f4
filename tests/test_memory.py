"""The memory store against the contract of stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from legato.event import Draft
from legato.log import Store
from legato.store import open_store
from legato.store.memory import MemoryStore
from legato.testing import EMBEDDED_STORE_CHECKS, STORE_CHECKS, MakeStore, StoreCheck, check_store


def places() -> MakeStore:
    stores: dict[str, Store] = {}

    def make(name: str, clock: Callable[[], float]) -> Store:
        return stores.setdefault(name, MemoryStore(clock=clock))

    return make


@pytest.mark.parametrize("check", [*STORE_CHECKS, *EMBEDDED_STORE_CHECKS], ids=lambda check: check.name)
async def test_contract(check: StoreCheck) -> None:
    """The store keeps the rule that the check is named after."""
    await check(places())


async def test_check_store_runs_all() -> None:
    """``check_store`` is all checks at once."""
    await check_store(places())


async def test_check_store_names_the_broken_rule() -> None:
    """What ``check_store`` raises for a broken store says which rule is broken."""

    class Forgetful(MemoryStore):
        async def append(self, session: str, drafts: list[Draft], **options: object) -> object:  # type: ignore[override]
            options["once"] = None
            return await super().append(session, drafts, **options)  # type: ignore[arg-type]

    with pytest.raises(AssertionError) as caught:
        await check_store(lambda name, clock: Forgetful(clock=clock))

    assert caught.value.__notes__[0].startswith("once_keys: Under one key")


def test_url() -> None:
    """``memory:`` is the memory store's URL."""
    assert isinstance(open_store("memory:"), MemoryStore)
