"""A copy of a SQLite store's file as it was at one moment, while a server writes to it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InvalidInput
from .sqlite_errors import store_error
from .sqlite_file import apsw

__all__ = ["backup"]


def backup(source: Path, target: Path) -> int:
    """Copy the file ``source`` to ``target``, compactly. Readers and the writer go on meanwhile; what is written later
    is not in it. (SQLite's own ``.backup`` begins anew with each write of others, so that under load it does not end.)

    Returns:
        Its size in bytes.

    Raises:
        InvalidInput: there is no ``source``, or there is a ``target``.
        StoreError: it could not be copied; nothing is left of it.
    """
    if not source.is_file():
        raise InvalidInput(f"There is no file {source}.")
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise InvalidInput(f"{target} is there already; a backup replaces no file.") from None
    except OSError as exc:
        raise store_error(exc, str(target)) from exc
    try:
        # Not for reading alone, which a file without a server cannot be opened for.
        connection = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.execute("VACUUM INTO ?", (str(target),))
        finally:
            connection.close()
        with target.open("rb") as file:
            os.fsync(file.fileno())
        return target.stat().st_size
    except BaseException as exc:
        target.unlink(missing_ok=True)
        if isinstance(exc, apsw.Error | OSError):
            raise store_error(exc, str(target)) from exc
        raise
