"""What streams are made of where tasks run; ``threads`` has the same where threads do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from .events import StreamEvent

__all__ = ["AsyncGate", "Coro", "Key", "Opening", "key_of", "opening"]

T = TypeVar("T")

Coro = Coroutine[Any, Any, T]
"""What an ``async def`` returns."""


Key = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""What signs in, or a function that gives it."""


async def key_of(key: Key | None) -> str | None:
    """What signs in now."""
    made = key() if callable(key) else key
    return await made if inspect.isawaitable(made) else made


class _Source(Protocol):
    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[StreamEvent]: ...


S = TypeVar("S", bound=_Source)


class Opening(Generic[S]):
    """A stream or an answer that is about to be opened: await it, or use it in ``async with`` or ``async for``."""

    def __init__(self, open_: Callable[[], Coro[S]]) -> None:
        self._open = open_
        self._opened: S | None = None

    def __await__(self) -> Generator[Any, None, S]:
        return self._open().__await__()

    async def __aenter__(self) -> S:
        self._opened = await self._open()
        await self._opened.__aenter__()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.__aexit__(kind, error, at)

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        async with self as opened:
            async for event in opened:
                yield event


def opening(open_: Callable[[], Coro[S]]) -> Opening[S]:
    """What opens when it is awaited, entered or iterated over; with threads, what has been opened."""
    return Opening(open_)


class AsyncGate:
    """Whether a stream was closed, and by whom it may be touched.

    Attributes:
        reading: held by whoever reads. Tasks need no such thing.
    """

    def __init__(self) -> None:
        self.reading = nullcontext()
        self._closed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    async def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the closing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def close(self, disconnect: Callable[[], Awaitable[object]]) -> None:
        """Close it, and the connection."""
        self._closed.set()
        await disconnect()
