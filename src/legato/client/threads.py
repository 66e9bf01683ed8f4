"""What streams are made of where threads run; ``tasks`` has the same where tasks do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Gate", "Key", "key_of", "opening"]

S = TypeVar("S")


Key = str | Callable[[], str]
"""What signs in, or a function that gives it."""


def key_of(key: Key | None) -> str | None:
    """What signs in now."""
    return key() if callable(key) else key


def opening(open_: Callable[[], S]) -> S:
    """What has been opened; with tasks, what opens when it is awaited, entered or iterated over."""
    return open_()


class Gate:
    """Whether a stream was closed, and by whom it may be touched.

    Attributes:
        reading: held by whoever reads.
    """

    def __init__(self) -> None:
        self.reading = threading.Lock()
        self._closed = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the closing."""
        self._closed.wait(seconds)

    def close(self, disconnect: Callable[[], object]) -> None:
        """Close it, and the connection."""
        self._closed.set()
        # Not while another thread reads: it comes here itself afterwards.
        if self.reading.acquire(blocking=False):
            try:
                disconnect()
            finally:
                self.reading.release()
