"""What a SQLite store's file has free, given back to the file system: by the server itself, and here by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidInput, StoreLocked
from .lock import FileLock
from .sqlite_errors import store_error
from .sqlite_file import INCREMENTAL, apsw, check_version, tidy

__all__ = ["Collected", "collect"]

PATIENCE_SECONDS = 10.0
"""For which others may keep us from what is left to do."""
PAUSE = 0.005
"""Seconds between two pieces, in which a server writes."""


class Collected(NamedTuple):
    """What came of it.

    Attributes:
        before, after: bytes of the file and its write-ahead log.
        rest: whether something is left, since somebody reads what is old; the server gives it back later.
    """

    before: int
    after: int
    rest: bool


def collect(path: Path) -> Collected:
    """Give back what is free in the file at ``path``, in pieces. A server may run, and writes in between.

    Raises:
        InvalidInput: there is no such file.
        StoreLocked: it was made by an early version, so all of it is to be written anew, and a server has it open.
        StoreError: it is not ours, or it cannot be done; nothing is lost.
    """
    if not path.is_file():
        raise InvalidInput(f"There is no file {path}.")
    before = _bytes(path)
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(round(PATIENCE_SECONDS * 1000))
            check_version(connection, str(path))
            connection.pragma("synchronous", "normal")  # nothing new is written, so nothing need be waited for
            connection.pragma("secure_delete", True)
            if connection.pragma("auto_vacuum") == INCREMENTAL:
                rest = not _in_pieces(connection)
            else:
                _anew(connection, path)
                rest = not _in_pieces(connection)
        finally:
            connection.close()
    except (OSError, apsw.Error) as exc:
        raise store_error(exc, str(path)) from exc
    return Collected(before, _bytes(path), rest)


def _in_pieces(connection: apsw.Connection) -> bool:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if tidy(connection):
                return True
            until = time.monotonic() + PATIENCE_SECONDS
        except apsw.BusyError:
            if time.monotonic() > until:
                return False
        time.sleep(PAUSE)


def _anew(connection: apsw.Connection, path: Path) -> None:
    lock = FileLock(str(path.resolve()))
    try:
        lock.acquire()
    except StoreLocked as exc:
        raise StoreLocked(
            f"{path} was made by an early version, and gives nothing back before all of it is written anew. Stop the "
            f"server first: {exc.message}",
            path=str(path),
        ) from exc
    try:
        connection.pragma("auto_vacuum", INCREMENTAL)
        connection.execute("VACUUM")
    finally:
        lock.release()


def _bytes(path: Path) -> int:
    """Of the file and what is not in it yet."""
    beside = path.with_name(f"{path.name}-wal")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
