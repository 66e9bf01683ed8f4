"""Packages of npm that the tests run against, kept in ``.cache/node`` for the next time."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

import pytest

from venvs import CACHE


def npm(package: str) -> Path:
    """A folder with ``package`` (``name@version``) in its ``node_modules``; skips the test when it cannot be made."""
    folder = CACHE.parent / "node" / package.lstrip("@").replace("/", "-")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", made, package]
            try:
                subprocess.run(command, check=True, capture_output=True, cwd=made, timeout=300)
            except (OSError, subprocess.SubprocessError) as exc:
                pytest.skip(f"{package} is not installed and could not be (npm comes with Node.js): {exc}")
            with contextlib.suppress(OSError):  # another process of the tests was faster
                Path(made).rename(folder)
    return folder
