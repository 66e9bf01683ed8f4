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
