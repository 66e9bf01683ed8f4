"""The packages that requests stand on, each loaded at its first use: whoever has only named a client need not wait."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["httpx2", "stamina"]


class _Late(ModuleType):
    def __getattr__(self, name: str) -> object:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)  # from now on it is found without this
        return value


if TYPE_CHECKING:
    import httpx2
    import stamina
else:
    httpx2 = _Late("httpx2")
    stamina = _Late("stamina")
