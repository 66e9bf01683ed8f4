"""Style and types: what ``make check`` says, beside the other tests instead of before them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import conftest

HERE = Path(__file__).parent


def test_style_and_types() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("Needs make (on Debian: apt install make).")
    checked = subprocess.run([make, "-s", "check"], cwd=HERE.parent, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_files_that_come_first_are_there() -> None:
    assert [name for name in conftest.FIRST if not (HERE / f"{name}.py").is_file()] == []
