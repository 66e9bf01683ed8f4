"""A SQLite store without threads, on a disk that loses what was not synced when the power is cut.

What a process has written is the kernel's, and survives a ``kill -9``. What was not synced need not survive a loss of
power: of each such write all is there afterwards, or nothing, or a part.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..store.sqlite import SQLiteStore
from ..store.sqlite_file import apsw
from ..store.sqlite_requests import WriteRequest
from ..store.sqlite_troubles import BUSY_MS
from ..store.sqlite_writer import Writer

SUFFIXES = ("", "-wal", "-journal")
SLOWEST = 0.004
"""Seconds that a commit takes at most."""


class _Unsynced:
    """A file: what of it is sure to be on the disk, and the writes since then, in order.

    A write is a place and its bytes; a length is one without bytes.
    """

    def __init__(self, path: str) -> None:
        self.sure = bytearray(Path(path).read_bytes() if os.path.exists(path) else b"")
        self.unsure: list[tuple[int, bytes | None]] = []

    def sync(self) -> None:
        for place, data in self.unsure:
            _apply(self.sure, place, data)
        self.unsure.clear()

    def after_a_cut(self, draws: random.Random) -> bytes:
        left = bytearray(self.sure)
        for place, data in self.unsure:
            fate = draws.choice(("kept", "lost", "torn"))
            if data is not None and fate == "torn":
                _apply(left, place, data[: draws.randrange(len(data))])
            elif fate == "kept":
                _apply(left, place, data)
        return bytes(left)


def _apply(content: bytearray, place: int, data: bytes | None) -> None:
    if data is None:
        del content[place:]
    else:
        if len(content) < place:
            content.extend(bytes(place - len(content)))
        content[place : place + len(data)] = data


class _PowerFile(apsw.VFSFile):
    def __init__(self, base: str, name: Any, flags: list[int], files: dict[str, _Unsynced]) -> None:
        super().__init__(base, name, flags)
        path: str | None = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._written: _Unsynced | None = None
        if path:
            if path not in files:
                files[path] = _Unsynced(path)
            self._written = files[path]

    def xWrite(self, data: bytes, offset: int) -> None:
        """See SQLite, as all here."""
        super().xWrite(data, offset)
        if self._written is not None:
            self._written.unsure.append((offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        """A length."""
        super().xTruncate(newsize)
        if self._written is not None:
            self._written.unsure.append((newsize, None))

    def xSync(self, flags: int) -> None:
        """What was written is on the disk; that of this machine is spared."""
        if self._written is not None:
            self._written.sync()


class PowerDisk(apsw.VFS):
    """While it is in use (a context manager), all files of SQLite are on this disk. A process has one at a time."""

    def __init__(self) -> None:
        self._files: dict[str, _Unsynced] = {}
        self._base = apsw.vfs_names()[0]
        super().__init__("legato-power", self._base, makedefault=True)

    def __enter__(self) -> PowerDisk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.unregister()

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        """See SQLite."""
        return _PowerFile(self._base, name, flags, self._files)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """What is deleted is so for good."""
        self._files.pop(filename, None)
        super().xDelete(filename, syncdir)

    def images(self, path: str, cut: random.Random | None) -> dict[str, bytes]:
        """What there is of the store at ``path`` when its process ends now: by a cut of the power, or by a kill."""
        found = {}
        for name in (path + suffix for suffix in SUFFIXES):
            if cut is not None and name in self._files:
                found[name] = self._files[name].after_a_cut(cut)
            elif os.path.exists(name):
                found[name] = Path(name).read_bytes()
        return found

    def put_back(self, path: str, images: dict[str, bytes]) -> None:
        """Let that be what there is. Nobody has the store open."""
        for suffix in (*SUFFIXES, "-shm"):
            self._files.pop(path + suffix, None)
            Path(path + suffix).unlink(missing_ok=True)
        for name, content in images.items():
            Path(name).write_bytes(content)


class SteppedWriter(Writer):
    """Commits in a turn of the event loop, whatever has come until then.

    Attributes:
        pause: gives the seconds until the next commit.
    """

    pause: Callable[[], float]

    def start(self, *, untidy: bool = False) -> None:
        """See ``Writer``."""
        self._flushed: list[WriteRequest] = []
        self._turn: Any = None
        self._tidy_at = 0.0 if untidy else None
        self._connection.set_busy_timeout(BUSY_MS)

    def flush(self) -> None:
        """See ``Writer``."""
        self._begun_at = 0.0  # no pace: that is of a clock
        if self._waiting:
            self._flushed += self._waiting
            self._waiting = []
            if self._turn is None:
                self._turn = self._loop.call_later(self.pause(), self._commit_all)

    def _commit_all(self) -> None:
        self._turn = None
        requests, self._flushed = self._flushed, []
        if requests:
            self._do(requests)
        if self._tidy_at is not None:
            self._tidy()

    def stop(self) -> None:
        """See ``Writer``."""
        if self._turn is not None:
            self._turn.cancel()
        self._commit_all()

    def die(self) -> None:
        """Do nothing more."""
        if self._turn is not None:
            self._turn.cancel()
        self._flushed, self._waiting = [], []


class SteppedStore(SQLiteStore):
    """A SQLite store whose writer is a ``SteppedWriter``, and which can die.

    Attributes:
        pause: the writer's.
    """

    writing = SteppedWriter
    pause: Callable[[], float]

    def _begin(self) -> None:
        super()._begin()
        assert isinstance(self._writer, SteppedWriter)
        self._writer.pause = self.pause

    def die(self) -> None:
        """End as with the process: what was not committed is not."""
        writer, self._writer = self._writer, None
        assert isinstance(writer, SteppedWriter)
        writer.die()
        self._forget()
        self._readers.shutdown(wait=False)
        for connection in (*self._reader_connections, self._connection):
            connection.close()
        self._lock.release()


def stepped_store(
    path: str, *, durability: str, clock: Callable[[], float], pause: Callable[[], float]
) -> SteppedStore:
    """A store whose commits come so many seconds after the first of what they hold."""
    store = SteppedStore(path, durability=durability, clock=clock)
    store.pause = pause
    return store
