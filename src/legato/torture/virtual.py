"""An event loop whose time passes only when there is nothing to do, and names that a seed decides.

What runs on it runs the same way each time, and a minute of waiting takes no time. There are no threads: what would be
done in one is done in a turn of the loop.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import secrets
import selectors
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from ..errors import LegatoError

T = TypeVar("T")


MOMENT = 20_000
"""Rounds of the loop in which somebody has always something to do, and no time passes; beyond, nobody ever waits."""


class NothingHappens(LegatoError):
    """Everybody waits for somebody else, and no timer will ever wake one of them; or nobody ever waits."""

    code = "nothing_happens"


class _Skipping(selectors.SelectSelector):
    """Waits for nobody: what it would wait is how far the time is put on."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self._skip = skip
        self._rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            self._rounds += 1
            if self._rounds > MOMENT:
                raise NothingHappens(f"In {MOMENT} rounds of the event loop nobody has waited for a time.")
            return ready
        self._rounds = 0
        if timeout is None:
            raise NothingHappens("Everybody waits for somebody else, and nothing more can happen.")
        self._skip(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's head. ``time`` begins at 0."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Skipping(self._put_on))

    def _put_on(self, seconds: float) -> None:
        # The least that a clock can tell, so that a timer is due once its time has come.
        self._now += max(seconds, 1e-9)

    def time(self) -> float:
        """Seconds of waiting so far."""
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """In a turn of this loop, a little later."""
        future: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as exc:
                future.set_exception(exc)
            else:
                future.set_result(result)

        self.call_soon(work)
        return future


def run_virtually(main: Coroutine[Any, Any, T], *, real: bool = False) -> T:
    """What ``main`` gives, run on a loop of its own: a virtual one, or one in real time.

    Raises:
        NothingHappens: it waits for something that cannot come.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop if real else VirtualLoop) as runner:
        return runner.run(main)


@contextlib.contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """Within it, what ``secrets`` draws is decided by a seed, so that ids are the same each time. In all of this
    process: for simulations alone."""
    draws = random.Random(f"ids of {seed}")  # noqa: S311
    kept = secrets.token_bytes, secrets.token_hex, secrets.token_urlsafe
    setattr(secrets, "token_bytes", lambda count=32: draws.randbytes(count))  # noqa: B010
    setattr(secrets, "token_hex", lambda count=32: draws.randbytes(count).hex())  # noqa: B010
    setattr(  # noqa: B010
        secrets,
        "token_urlsafe",
        lambda count=32: base64.urlsafe_b64encode(draws.randbytes(count)).decode().rstrip("="),
    )
    try:
        yield
    finally:
        secrets.token_bytes, secrets.token_hex, secrets.token_urlsafe = kept
