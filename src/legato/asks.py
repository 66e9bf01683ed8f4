"""What agents ask users: by when it is to be answered, and what becomes of it where nobody does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from .event import (
    Draft,
    NotificationCreated,
    NotificationResolved,
    PermissionRequested,
    PermissionResolved,
)

Asked = PermissionRequested | NotificationCreated
Resolved = PermissionResolved | NotificationResolved
A = TypeVar("A", PermissionRequested, NotificationCreated)


class Deadlines:
    """By when what was asked in this life is to be answered. The clock may be set meanwhile, and changes nothing.

    Args:
        steady: seconds of a clock that nobody sets.
        most: asks that are known; the oldest are forgotten, and then the clock decides.
    """

    def __init__(self, steady: Callable[[], float] = time.monotonic, *, most: int = 100_000) -> None:
        self._steady = steady
        self._most = most
        self._due: dict[str, float] = {}

    def set(self, id: str, seconds: float) -> None:
        """It is to be answered in so many seconds."""
        self._due[id] = self._steady() + seconds
        if len(self._due) > self._most:
            del self._due[next(iter(self._due))]

    def left(self, id: str) -> float | None:
        """How many of them are left, none of them if it is negative; None if it is not known here."""
        due = self._due.get(id)
        return None if due is None else due - self._steady()

    def forget(self, id: str) -> None:
        """It has been answered. Idempotent."""
        self._due.pop(id, None)

    def is_late(self, id: str, expires_at: float | None, now: float) -> bool:
        """Whether an answer comes too late: as far as is known here, else by the clock (seconds since the epoch)."""
        left = self.left(id)
        return left <= 0 if left is not None else expires_at is not None and expires_at <= now


def question(asked: Asked) -> Asked:
    """What was asked, without what differs from attempt to attempt although the question is the same."""
    if isinstance(asked, PermissionRequested):
        return msgspec.structs.replace(asked, id="", expires_at=None)
    return msgspec.structs.replace(asked, id="", timeout=0.0, created_at=0.0)


def resolve_key(id: str) -> str:
    """The ``once`` key under which the one answer to permission or notification ``id`` is stored."""
    return f"resolve:{id}"


def is_permission(id: str) -> bool:
    """Whether the ask ``id`` is a permission, which its run's end refuses; a notification may be answered later."""
    return id.rpartition("~")[2].startswith("p")


def expired(id: str, run: str) -> Draft:
    """The refusal of permission ``id``, which nobody has answered before the end of its run."""
    return Draft(PermissionResolved(id, False, "run_ended"), run)
