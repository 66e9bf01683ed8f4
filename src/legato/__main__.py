"""``python -m legato``: the same as the ``legato`` command."""

from __future__ import annotations

from .cli import main

main()
