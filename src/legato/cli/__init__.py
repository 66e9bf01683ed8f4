"""The ``legato`` command: serve agents, chat with them, send, and read what was said.

This module imports nothing of it, so that a bare install can say what is missing.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command and leave with its exit status."""
    for name in ("click", "rich"):
        if find_spec(name) is None:
            sys.exit(f"legato: the command line needs {name}, which is not installed: pip install 'legato[server]'")
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # where a character cannot be shown, "?" is better than a traceback
    from .group import group

    group(prog_name="legato")
