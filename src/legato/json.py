"""What JSON is called in annotations, and what has to be known of a type before threads read JSON as it."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

__all__ = ["JsonObject", "known"]

JsonObject = dict[str, Any]
"""A JSON object as it was decoded, or is to be encoded: whoever reads a field of it looks at what it is."""

T = TypeVar("T")
_learning = threading.Lock()
_known: set[object] = set()


def known(type: T) -> T:
    """``type``, once msgspec has learnt its fields: asked wherever another thread might use it for the first time, too.

    msgspec keeps what it learns with the class from the first field on. A second thread that finds a half of it there
    ends the process (seen with msgspec 0.22).
    """
    if type not in _known:
        with _learning:
            msgspec.json.Decoder(type)
            _known.add(type)
    return type
