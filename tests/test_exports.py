"""The public names are what the documents say, and light to import."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

import legato


def test_all_is_sorted_and_complete() -> None:
    """``__all__`` is sorted, and every name in it can be loaded."""
    assert sorted(legato.__all__) == legato.__all__
    assert [name for name in legato.__all__ if not hasattr(legato, name)] == []


def test_every_public_name_is_documented() -> None:
    """Every public name has a docstring of its own."""
    named = {name: getattr(legato, name) for name in legato.__all__}
    # A union of types (Result) cannot carry one on this Python; its members do.
    classes = {name: value for name, value in named.items() if typing.get_origin(value) is None}
    missing = [name for name, value in classes.items() if not (value.__doc__ or "").strip()]

    assert missing == []


def test_lazy_table_matches_all() -> None:
    """The table of lazy names and ``__all__`` are the same set."""
    lazy = sorted(name for names in legato._HOMES.values() for name in names)

    assert sorted(legato.__all__) == lazy


def test_import_is_light() -> None:
    """``import legato`` loads no third-party package, and the SDK none of the server's."""
    code = (
        "import sys, legato\n"
        "heavy = {'httpx2', 'starlette', 'uvicorn', 'apsw', 'click', 'rich', 'msgspec'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "legato.Client, legato.AsyncClient\n"
        "server = {'starlette', 'uvicorn', 'apsw', 'click', 'rich'}\n"
        "assert not server & set(sys.modules), server & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as on any module."""
    with pytest.raises(AttributeError, match="Lagato"):
        legato.Lagato  # noqa: B018


def test_version_is_that_of_the_project() -> None:
    """``__version__`` is what the package is installed as, so nothing has to look that up."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]

    assert legato.__version__ == project["version"]
