"""Why nothing can be stored in a SQLite file for now: others have it, it is not where it was, the disk is full."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import StoreBusy, StoreError, StoreLost
from ..log import tell_trouble
from .sqlite_errors import disk_trouble, is_of_disk, store_error
from .sqlite_file import TOUCH, apsw, logged_bytes
from .watch import HEAD_BYTES, FileWatch

BUSY_MS = 50
"""Milliseconds for which a commit waits in SQLite for another program's lock. Then the group waits here, where who only
asks need not wait with it,"""
BUSY_SECONDS = 2.0
"""and after so many seconds it fails, as does at once what comes as long as the lock is there."""
LOOK_SECONDS = 0.1
"""A commit is preceded by a look whether the file is still there, unless the last one is not older than so."""
IDLE_SECONDS = 1.0
"""Seconds between two looks while nothing is to be committed."""


class Troubles:
    """Looks for them, on the writer's thread.

    Args:
        path: for error messages.
        connection: the writer's.
        keep_lock: see ``FileWatch``.
    """

    def __init__(self, path: str, connection: apsw.Connection, keep_lock: Callable[[], None]) -> None:
        self._path = path
        self._connection = connection
        self._watch = FileWatch(
            path, keep_lock, lambda: connection.read("main", 0, 0, HEAD_BYTES)[1], lambda: logged_bytes(connection)
        )
        self._looked_at = 0.0  # when the files were
        self._trouble: StoreError | None = None
        self._told: StoreError | None = None  # of what, but the disk, there is a line in the log
        self._patient_until = 0.0  # with another program's lock
        self._was_locked = False  # when nothing was to be stored
        self._disk: StoreError | None = None  # why the disk takes nothing
        self._disk_at = 0.0  # when that was looked at

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now: the file is not where it was, another program does not let go of it, or
        the disk takes nothing."""
        return (None if self.patient else self._trouble) or self._disk

    @property
    def patient(self) -> bool:
        """Whether what waits for another program's lock is to go on waiting."""
        return time.monotonic() < self._patient_until

    def give_up(self) -> None:
        """Be patient no more."""
        self._patient_until = 0.0

    def caught(self, error: Exception) -> None:
        """Note what a commit has failed with."""
        if isinstance(error, apsw.BusyError):
            self._note(store_error(error, self._path))
        elif is_of_disk(error):
            self._note_disk(store_error(error, self._path))

    def look(self) -> None:
        """See whether something could be stored, while nothing is to be."""
        if self.blocked() is not None:
            return
        try:
            locked = self._locked()
        except apsw.Error as exc:
            if is_of_disk(exc):
                self._note_disk(store_error(exc, self._path))
            return
        if locked is not None and self._was_locked:  # a lock may be had for a moment
            self._note(store_error(locked, self._path))
        self._was_locked = locked is not None

    def look_at_disk(self) -> None:
        """See whether the disk takes anything, once in ``IDLE_SECONDS``."""
        now = time.monotonic()
        if now < self._disk_at + IDLE_SECONDS:
            return
        self._disk_at = now
        found = disk_trouble(self._path, sure=self._disk is not None)
        if found is None and self._disk is not None and self.blocked() is None:
            try:
                self._connection.execute(TOUCH)
            except apsw.Error as exc:
                found = self._disk if isinstance(exc, apsw.BusyError) else store_error(exc, self._path)
        self._note_disk(found)

    def _note_disk(self, trouble: StoreError | None) -> None:
        before, self._disk = self._disk, trouble
        if type(before) is not type(trouble):
            tell_trouble(trouble, self._path)

    def blocked(self) -> Exception | None:
        """Why nothing can be stored; looked for no more often than needed, unless there was a reason the last time."""
        now = time.monotonic()
        if self._trouble is None and now < self._looked_at + LOOK_SECONDS:
            return None
        wrong = self._watch.trouble()
        self._looked_at = now  # unless the look has failed: then nothing is known
        if wrong:
            found: Exception | None = StoreLost(
                f"{wrong} Nothing is stored until it is back as it was. Do not stop the server before: what has been "
                "stored may be in the open file alone.",
                path=self._path,
            )
        else:
            found = self._locked() if isinstance(self._trouble, StoreBusy) else None
        self._note(found if found is None else store_error(found, self._path))
        return found

    def _locked(self) -> Exception | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("ROLLBACK")
        except apsw.BusyError as exc:
            return exc
        return None

    def _note(self, trouble: StoreError | None) -> None:
        before, self._trouble = self._trouble, trouble
        if type(before) is not type(trouble):
            locked = isinstance(trouble, StoreBusy)
            self._patient_until = time.monotonic() + BUSY_SECONDS if locked else 0.0
            self._connection.set_busy_timeout(0 if locked else BUSY_MS)  # while it is known, nobody waits for it here
        if not self.patient and type(self._told) is not type(trouble):  # a lock that is soon gone is no trouble
            self._told = trouble
            tell_trouble(trouble, self._path)
