"""Whether an open file is still the one that its name leads to: who removes or moves it takes along what is stored."""

from __future__ import annotations

import os
from typing import NamedTuple

HEAD_BYTES = 100
"""The head of a SQLite file: at 16 the size of a page (1: 65,536), at 28 the number of pages."""


class _File(NamedTuple):
    """A file as it was when it was looked at last."""

    file: tuple[int, int]
    size: int


class FileWatch:
    """Looks after the files of a database while it is open: the file itself, and what stands beside it.

    Args:
        path: of the database.
        beside: what is added to ``path`` for the others.
    """

    def __init__(self, path: str, beside: tuple[str, ...] = ("-wal", "-shm", ".lock")) -> None:
        self._path = path
        self._seen = {path + suffix: _look(path + suffix) for suffix in ("", *beside)}
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
            if name == self._path and now.size < before.size and _is_cut(name, now.size):
                self._cut = f"{name} has been cut to {now.size} bytes."
                return self._cut
            self._seen[name] = now
        return ""


def _look(name: str) -> _File:
    found = os.stat(name)
    return _File((found.st_dev, found.st_ino), found.st_size)


def _is_cut(name: str, size: int) -> bool:
    """Whether a file lacks pages that its head tells of. One that has been made smaller in order does not."""
    with open(name, "rb") as file:
        head = file.read(HEAD_BYTES)
    page = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[28:32], "big")
    return len(head) < HEAD_BYTES or size < pages * (65_536 if page == 1 else page)
