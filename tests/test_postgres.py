"""The PostgreSQL store against the contract of stores, and what only it can do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from databases import Postgres, shared_postgres
from legato.log import Store
from legato.testing import STORE_CHECKS, StoreCheck

postgres_store = pytest.importorskip("legato.store.postgres", reason="needs legato[postgres]")


@pytest.fixture(scope="module")
def server() -> Postgres:
    return shared_postgres()


def url(server: Postgres, name: str, **options: str) -> str:
    """Of a place of its own in the server: a schema."""
    schema = re.sub("[^a-z0-9_]", "_", f"t_{name.lower()}")[:40]
    return server.url() + "?" + "&".join(f"{key}={value}" for key, value in {"schema": schema, **options}.items())


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.name)
async def test_contract(check: StoreCheck, server: Postgres) -> None:
    """The store keeps the rule that the check is named after."""

    def make(name: str, clock: Callable[[], float]) -> Store:
        store: Store = postgres_store.PostgresStore(url(server, name), clock=clock)
        return store

    await check(make)
