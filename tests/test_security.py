"""docs/security.md names tests that there are, and each promise has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text("utf-8")
PROMISES = re.findall(
    r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|^## )", PAGE.partition("## What is promised")[2], re.MULTILINE | re.DOTALL
)
SOURCES = "".join(path.read_text("utf-8") for path in sorted(TESTS.glob("test_*.py")))


@pytest.mark.parametrize(("promise", "text"), PROMISES, ids=[promise for promise, _ in PROMISES])
def test_each_promise_has_tests_that_there_are(promise: str, text: str) -> None:
    """A promise that nobody holds us to is none."""
    names = re.findall(r"`(test_\w+)`", text)
    assert names
    assert [name for name in names if not re.search(rf"def {name}\(", SOURCES)] == []


def test_all_of_them_are_found() -> None:
    assert len(PROMISES) >= 10
