"""Packages of npm that tests run with but this project must not depend on, kept in ``.cache/node``."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "node"

# What checks the types of the npm package, and what these speak of: one folder for all who do.
TYPES = (
    *("typescript@7.0.2", "@types/react@19.3.0", "react@19.3.1"),
    *("@types/node@20.19.43", "preact@11.2.0", "solid-js@1.9.19", "svelte@5.57.3", "vue@3.5.45"),
)


def package(name: str) -> Path:
    """A folder in which ``name``, for example ``openai@7.55.0``, is installed; skips the test if it cannot be made."""
    return packages(name, name)


def types() -> Path:
    """The folder in which all of ``TYPES`` are."""
    return packages("web-types", *TYPES)


def packages(folder: str, *names: str) -> Path:
    """The folder of this name in which all of ``names`` are installed; skips the test if it cannot be made."""
    path = CACHE / " ".join((folder, *(name for name in names if name != folder))).replace("/", "+")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as made:
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", made, *names]
            try:
                subprocess.run(command, check=True, capture_output=True, cwd=made, timeout=300)
            except (OSError, subprocess.SubprocessError) as exc:
                pytest.skip(f"{' '.join(names)} is not installed and could not be: {exc}")
            with contextlib.suppress(OSError):  # another process of the tests was faster
                Path(made).rename(path)
    return path
