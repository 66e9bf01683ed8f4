"""What the errors of SQLite and of the system mean, and what to do about them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import msgspec

from ..errors import StoreBusy, StoreCorrupt, StoreError, StoreFull, StoreReadOnly
from .sqlite_file import apsw

PROBE_BYTES = 256 * 1024
"""What a disk must have room for that is not full: what SQLite asks for first is less."""

_Meaning = tuple[type[StoreError], str]
_FULL: _Meaning = (StoreFull, "The disk is full; what was acknowledged is safe. Make room on it")
_READ_ONLY: _Meaning = (StoreReadOnly, "The file or its folder cannot be written. Let this user write both")
_NO_LOCKS: _Meaning = (
    StoreError,
    "The file system has no locks or no shared memory, as those of networks. Put the file on a local disk",
)
_ERRNOS: Mapping[int | None, _Meaning] = {
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.EROFS: (StoreReadOnly, "The file system cannot be written. Mount it for writing, or choose another place"),
    errno.ENOSPC: _FULL,
    errno.EDQUOT: (StoreFull, "The disk quota is used up; what was acknowledged is safe. Make room in it"),
    errno.EMFILE: (StoreError, "The process has no file descriptor left. Raise its limit (ulimit -n)"),
    errno.ENFILE: (StoreError, "The system has no file descriptor left"),
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOTSUP: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.ENOTDIR: (StoreError, "There is no such folder; create it first"),
    errno.ENOENT: (StoreError, "There is no such folder; create it first"),
    errno.EISDIR: (StoreError, "This is a folder; name a file in it"),
    errno.ENAMETOOLONG: (StoreError, "The name is too long"),
}
_MEANINGS: list[tuple[tuple[type[Exception], ...], _Meaning]] = [
    ((apsw.FullError,), _FULL),
    ((apsw.BusyError, apsw.LockedError), (StoreBusy, "Another program has locked the file. Let it finish, or end it")),
    ((apsw.ReadOnlyError, apsw.PermissionsError), _READ_ONLY),
    (
        (apsw.CorruptError, apsw.NotADBError, msgspec.MsgspecError),
        (StoreCorrupt, "The file is damaged, or no database. Restore a backup, or choose another file"),
    ),
    ((apsw.NoLFSError, apsw.ProtocolError), _NO_LOCKS),
]
_SHARED_MEMORY = frozenset(
    {
        apsw.SQLITE_IOERR_SHMMAP,
        apsw.SQLITE_IOERR_SHMLOCK,
        apsw.SQLITE_IOERR_SHMOPEN,
        apsw.SQLITE_IOERR_SHMSIZE,
        apsw.SQLITE_IOERR_LOCK,
        apsw.SQLITE_IOERR_RDLOCK,
    }
)


def store_error(exc: Exception, path: str) -> StoreError:
    """What to raise for an error of SQLite or of the system: what it is, and what to do."""
    if isinstance(exc, StoreError):
        return type(exc)(exc.message, **exc.detail)
    error, text = _meaning(exc, path)
    # What others say, as of a row that cannot be read, may quote it.
    said = f": {exc}" if isinstance(exc, apsw.Error | OSError) else ""
    return error(f"{text}: {path} ({type(exc).__name__}{said}).", path=path)


def _meaning(exc: Exception, path: str) -> _Meaning:
    if isinstance(exc, OSError):
        return _ERRNOS.get(exc.errno, (StoreError, "The file cannot be opened"))
    for kinds, meaning in _MEANINGS:
        if isinstance(exc, kinds):
            return meaning
    if isinstance(exc, apsw.IOError | apsw.CantOpenError):
        # SQLite does not say why the system refused; the system does.
        if (refused := _probe(path)) is not None:
            return _ERRNOS.get(refused, (StoreError, "The disk cannot be used"))
        if getattr(exc, "extendedresult", 0) in _SHARED_MEMORY:
            return _NO_LOCKS
        return StoreError, "The file cannot be opened, or the disk has failed; the system's log may say more"
    return StoreError, "SQLite could not do it"


def is_of_disk(exc: Exception) -> bool:
    """Whether an error of SQLite or of the system says that the disk takes nothing, whatever is to be written."""
    kinds = (apsw.FullError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.IOError, apsw.CantOpenError, OSError)
    return isinstance(exc, kinds)


def disk_trouble(path: str, *, sure: bool = False) -> StoreError | None:
    """Why the disk would take no file of ``PROBE_BYTES`` beside ``path``; None if it would.

    Args:
        path: of the database.
        sure: try it. Else that is only done where the system says that there is no room, or that nothing is written.
    """
    if not sure and not _is_short(path):
        return None
    refused = _probe(path)
    return None if refused is None else store_error(OSError(refused, os.strerror(refused)), path)


def _is_short(path: str) -> bool:
    try:
        found = os.statvfs(path)
    except (OSError, AttributeError):  # Windows has none
        return False
    room = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return bool(found.f_flag & os.ST_RDONLY) or (found.f_blocks > 0 and room * found.f_frsize < PROBE_BYTES)


def _probe(path: str) -> int | None:
    """The number of the error when something is written beside ``path``; None if there is none."""
    if os.path.isdir(path):
        return errno.EISDIR
    name = f"{path}.probe-{os.getpid()}"
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            room = PROBE_BYTES
            while room > 0:
                room -= os.write(file, bytes(room))
        finally:
            os.close(file)
            os.unlink(name)
    except OSError as refused:
        return refused.errno
    return None
