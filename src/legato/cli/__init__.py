"""The ``legato`` command: serve agents, chat with them, send, and read what was said.

This module imports nothing of it, so that a bare install can say what is missing.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib.util import find_spec

__all__ = ["main"]

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What a standard output fails with that is a file. Of a closed pipe, click knows."""


def main() -> None:
    """Run the command and leave with its exit status."""
    for name in ("click", "rich"):
        if find_spec(name) is None:
            sys.exit(f"legato: the command line needs {name}, which is not installed: pip install 'legato[server]'")
    _have_standard_streams()
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # where a character cannot be shown, "?" is better than a traceback
    from .group import group

    try:
        try:
            group(prog_name="legato")
        finally:
            sys.stdout.flush()  # while it can still be told
    except OSError as exc:
        if exc.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail again at the end
        sys.exit(f"legato: the output cannot be written: {exc.strerror}")


def _have_standard_streams() -> None:
    """Let what was closed before we came lead to nowhere. Else the next file or socket that is opened has its number,
    and gets what is written there; and Python has None in its place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
