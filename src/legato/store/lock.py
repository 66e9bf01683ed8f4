"""A lock on a file for one process, which the system lets go of when the process ends, however it ends."""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ..errors import StoreLocked
from ..fault import at_fork, let_go

_FAR = 1 << 30
_OURS: set[tuple[int, int]] = set()
"""Lock files that this process has locked: device and number of each."""


class FileLock:
    """Holds ``path`` for one opener, through a locked file ``path + ".lock"`` that names the process.

    It also keeps out a second opener in the same process. A child that is forked does not have it. Not acquired at
    first.

    The file's first line is the process's number; then come its parent's, the host (in a container: its id, since every
    container has a process 1), the boot of that host, and since when it is locked.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._key = (0, 0)
        self._forget: Callable[[], None] = lambda: None

    def acquire(self) -> None:
        """Take it.

        Raises:
            StoreLocked: somebody has it.
            OSError: the lock file cannot be written.
        """
        file = os.open(self._path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            found = os.fstat(file)
            key = (found.st_dev, found.st_ino)
            if not _lock(file):
                raise _locked(self._path, os.read(file, 1000).decode("utf-8", "replace"), ours=key in _OURS)
            os.ftruncate(file, os.write(file, _holder().encode()))  # in this order it is never empty
        except BaseException:
            os.close(file)
            raise
        self._file, self._key = file, key
        _OURS.add(key)
        self._forget = at_fork(functools.partial(_leave_to_parent, file, key))

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
            before, key, forget = self._file, self._key, self._forget
            self.acquire()
            _OURS.discard(key)
            forget()
            os.close(before)

    def release(self) -> None:
        """Let go. Idempotent. The file stays: removing it would race with the next one to open it."""
        if self._file is not None:
            self._forget()
            _OURS.discard(self._key)
            os.close(self._file)
            self._file = None


def _leave_to_parent(file: int, key: tuple[int, int]) -> None:
    _OURS.discard(key)
    let_go(file)


def _holder() -> str:
    """What a lock file says of this process."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{os.getpid()}\nparent={_parent()}\nhost={socket.gethostname()}\nboot={_boot()}\nsince={since}\n"


def _parent() -> int:
    return os.getppid() if hasattr(os, "getppid") else 0


def _is_worker() -> bool:
    """Whether this process is one of several of a server, as far as can be told: forked, or by ``multiprocessing``."""
    modules = sys.modules.get("multiprocessing.process")
    if modules is not None and modules.parent_process() is not None:
        return True
    try:
        return Path(f"/proc/{_parent()}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return False


def _boot() -> str:
    """The name of this boot of the machine; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _locked(path: str, holder: str, *, ours: bool) -> StoreLocked:
    """Who has the lock, as its file says, and what to do about that."""
    pid, *lines = holder.split("\n")
    told = dict(line.split("=", 1) for line in lines if "=" in line)
    pid, host, boot = pid.strip()[:20], told.get("host", "")[:200], told.get("boot", "")
    parent, since = told.get("parent", ""), told.get("since", "")[:40]
    who = f"process {pid or '(unknown)'}"
    if host and host != socket.gethostname():
        who += f" of host {host!r}" + ("" if not boot or boot == _boot() else ", another machine's")
    elif ours:
        who += ", which is this one"
    if since:
        who += f", since {since}"
    do = (
        "Give this one another, such as sqlite:///other.db; for several processes there are PostgreSQL and Redis, see "
        "docs/many-nodes.md."
    )
    if not ours and parent == str(_parent()) and host == socket.gethostname() and _is_worker():
        do += (
            f" Both are workers of process {parent}. Unless that is replacing one of them just now, let it have one "
            "alone (gunicorn: --workers 1; uvicorn: no --workers)."
        )
    return StoreLocked(
        f"{path} is open in {who}, and only one at a time can use a SQLite file. {do}", path=path, pid=pid, ours=ours
    )


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
