"""What a rule of the contract of stores is, and how it says that it is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from ..errors import LegatoError
from ..event import Event, SessionCreated, TextDelta
from ..log import Log
from .place import MakeStore, Place

PATIENCE = 60.0
"""Seconds after which a check that hangs is given up. It measures nothing."""


class StoreCheck(NamedTuple):
    """One rule of the contract. Call it with a ``MakeStore``; it raises AssertionError when the rule is broken."""

    name: str
    rule: str
    body: Callable[[Place], Awaitable[None]]

    async def __call__(self, make: MakeStore) -> None:
        """Run it, on a place of its own."""
        place = Place(make, self.name)
        async with asyncio.timeout(PATIENCE):
            await place.store.open()
            try:
                await self.body(place)
            finally:
                await place.close()


def rule(checks: list[StoreCheck]) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    """Adds a function to ``checks``, by its name; its docstring is the rule."""

    def add(body: Callable[[Place], Awaitable[None]]) -> None:
        checks.append(StoreCheck(body.__name__, (body.__doc__ or "").strip(), body))

    return add


def same(expected: object, actual: object) -> None:
    """Raise AssertionError unless the two are equal."""
    if expected != actual:
        raise AssertionError(f"\nexpected {expected!r}\n     got {actual!r}")


async def refused(error: type[LegatoError] | tuple[type[LegatoError], ...], doing: Awaitable[object]) -> LegatoError:
    """The error with which ``doing`` is refused; AssertionError if it is not, or with another one."""
    try:
        done = await doing
    except error as exc:
        return exc
    raise AssertionError(f"expected {error}, got {done!r}")


def texts_of(events: Sequence[Event]) -> list[str]:
    """What the deltas of text among them say."""
    return [event.fact.text for event in events if isinstance(event.fact, TextDelta)]


def titles_of(events: Sequence[Event]) -> list[str | None]:
    """The titles of sessions that begin among them."""
    return [event.fact.title for event in events if isinstance(event.fact, SessionCreated)]


async def everything(log: Log, *, deltas: bool = True) -> list[Event]:
    """The whole log."""
    return [event async for event in log.all(deltas=deltas)]
