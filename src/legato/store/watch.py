"""Whether an open file is still the one that its name leads to: who removes or moves it takes along what is stored."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from ..errors import StoreLocked

logger = logging.getLogger("legato")

SUFFIXES = ("", "-wal", "-shm", ".lock")
"""What the names of a database's files end with."""
HEAD_BYTES = 100
"""The head of a SQLite file: at 16 the size of a page (1: 65,536), at 28 the number of pages."""


def keep_private(path: str) -> None:
    """Make the file of a database, if there is none, for this user alone, and take from others what all could read.

    Who has given a file to a group, but not to all, has meant it, and keeps it so.

    Raises:
        OSError: the file cannot be made.
    """
    if not os.path.exists(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # those beside it get its mode
    for name in (path + suffix for suffix in SUFFIXES):
        try:
            mode = stat.S_IMODE(os.stat(name).st_mode)
            if mode & 0o007 and os.name == "posix":
                os.chmod(name, mode & 0o700)
        except FileNotFoundError:
            continue
        except OSError as exc:
            logger.warning("%s can be read by everybody on this machine, and that cannot be changed: %s", name, exc)


class _File(NamedTuple):
    """A file as it was when it was looked at last."""

    file: tuple[int, int]
    size: int


class FileWatch:
    """Looks after the files of a database while it is open: the file itself, and what stands beside it.

    Args:
        path: of the database.
        keep_lock: sees that nobody else can lock the database, and raises if somebody has.
        head: reads the first ``HEAD_BYTES`` of it, out of the file that is open. (To open it once more would do harm:
            on POSIX, who closes a file lets go of all locks that the process has on it.)
        logged: how many bytes the write-ahead log has at least.
    """

    def __init__(
        self, path: str, keep_lock: Callable[[], None], head: Callable[[], bytes], logged: Callable[[], int]
    ) -> None:
        self._path = path
        self._keep_lock = keep_lock
        self._head = head
        self._logged = logged
        self._seen = {path + suffix: _look(path + suffix) for suffix in SUFFIXES if suffix != ".lock"}
        self._cut = ""

    def trouble(self) -> str:
        """What is wrong, as a sentence; "" if all is well. What was moved away may come back, what was cut will not."""
        if self._cut:
            return self._cut
        for name, before in self._seen.items():
            try:
                now = _look(name)
            except OSError as exc:
                return f"{name} is gone ({exc.strerror})."
            if now.file != before.file:
                return f"{name} is another file than the one that is open."
            if now.size < before.size and self._is_cut(name, now.size):
                self._cut = f"{name} has been cut to {now.size} bytes."
                return self._cut
            self._seen[name] = now
        try:
            self._keep_lock()
        except (StoreLocked, OSError) as exc:
            return f"The lock of the file has been lost: {exc}"
        return ""

    def _is_cut(self, name: str, size: int) -> bool:
        """Whether a file that has grown smaller lacks something; in order both of them may grow smaller."""
        if name == self._path:
            return _lacks_pages(self._head(), size)
        return name.endswith("-wal") and size < self._logged()


def _look(name: str) -> _File:
    found = os.stat(name)
    return _File((found.st_dev, found.st_ino), found.st_size)


def _lacks_pages(head: bytes, size: int) -> bool:
    """Whether a file is shorter than its head says."""
    page = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[28:32], "big")
    return size < HEAD_BYTES or size < pages * (65_536 if page == 1 else page)
