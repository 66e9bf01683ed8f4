"""Packages whose public names are loaded when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from sys import modules
from typing import Any


def late(package: str, *homes: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package with an ``__all__``.

    Args:
        package: its name.
        homes: its modules with public names, each after those that it needs: they are loaded in this order, up to the
            one whose ``__all__`` has the name.
    """
    names = vars(modules[package])

    def load(name: str) -> Any:
        if name in homes:
            return import_module(f".{name}", package)
        if name in names["__all__"]:
            for home in homes:
                module = import_module(f".{home}", package)
                if name in module.__all__:
                    names[name] = value = getattr(module, name)  # from now on it is found without this
                    return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: sorted({*names, *names["__all__"], *homes})
