"""A lock on a file for one process, which the system lets go of when the process ends, however it ends."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from ..errors import StoreLocked
from ..fault import at_fork, let_go

_FAR = 1 << 30


class FileLock:
    """Holds ``path`` for one opener, through a locked file ``path + ".lock"`` that names the process.

    It also keeps out a second opener in the same process. A child that is forked does not have it. Not acquired at
    first.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._forget: Callable[[], None] = lambda: None

    def acquire(self) -> None:
        """Take it.

        Raises:
            StoreLocked: somebody has it.
            OSError: the lock file cannot be written.
        """
        file = os.open(self._path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _lock(file):
                pid = os.read(file, 20).decode("ascii", "replace").strip()
                raise StoreLocked(
                    f"{self._path} is open in process {pid or '(unknown)'}, and only one at a time can use a SQLite "
                    "file. Give this one another, such as sqlite:///other.db; for several processes there will be the "
                    "Redis store (planned).",
                    path=self._path,
                    pid=pid,
                )
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n".encode())
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self._forget = at_fork(functools.partial(let_go, file))

    def keep(self) -> None:
        """See that the name still leads to the locked file, as it does not once somebody has removed it: then anybody
        could lock another one of that name. So that one is locked, too.

        Raises:
            StoreLocked: somebody has it already.
            OSError: it cannot be written.
        """
        if self._file is None:
            return
        held = os.fstat(self._file)
        try:
            found = os.stat(self._path + ".lock")
        except FileNotFoundError:
            found = None
        if found is None or not os.path.samestat(held, found):
            before, forget = self._file, self._forget
            self.acquire()
            forget()
            os.close(before)

    def release(self) -> None:
        """Let go. Idempotent. The file stays: removing it would race with the next one to open it."""
        if self._file is not None:
            self._forget()
            os.close(self._file)
            self._file = None


def _lock(file: int) -> bool:
    """Lock the open file; False if another opening of it has the lock."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return _lock_on_windows(file)
    try:
        # flock belongs to this opening of the file. fcntl.lockf would belong to the process, let a second store of
        # ours in, and be lost when anything in the process closes the file.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_on_windows(file: int) -> bool:
    import msvcrt

    os.lseek(file, _FAR, os.SEEK_SET)  # nobody can read a locked byte, and the pid shall be read
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]  # not on this system
    except OSError:
        return False
    finally:
        os.lseek(file, 0, os.SEEK_SET)
    return True
