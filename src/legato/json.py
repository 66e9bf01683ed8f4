"""What JSON is called in annotations, and what has to be known of a type before threads read JSON as it."""

from __future__ import annotations

import re
import threading
from typing import Any, TypeVar

import msgspec

from .errors import InvalidInput, TooLarge

__all__ = ["LARGE", "JsonObject", "decode_in_pieces", "known", "unbroken"]

JsonObject = dict[str, Any]
"""A JSON object as it was decoded, or is to be encoded: whoever reads a field of it looks at what it is."""

LARGE = 16_384
"""Bytes of a text that is worked on in pieces, beside the event loop; one that is smaller takes a millisecond."""
MAX_VALUES = 150_000
"""That a large text may have: what makes objects of them, or text of these, does it in one go."""
PIECE = 16_384
"""Bytes that are decoded in one go."""
PIECES_WITHIN = 32
"""How deep a value may lie that is larger than that."""

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


_ENDS = re.compile("\x85|\u2028|\u2029".encode())


def unbroken(json: bytes) -> bytes:
    """JSON text that means the same, without what ends a line for Unicode (U+0085, U+2028, U+2029) but not in SSE: the
    line readers of httpx, requests and others cut there."""
    return json if json.isascii() else _ENDS.sub(lambda end: f"\\u{ord(end[0].decode()):04x}".encode(), json)


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SIGNS = (b",", b"[", b"{")


def decode_in_pieces(raw: bytes, type: type[T]) -> T:
    """A large JSON text as ``type``, like ``msgspec.json.decode``, but so that other threads can go on in between.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: as that.
        TooLarge: more than ``MAX_VALUES``.
        InvalidInput: a large value lies too deep in it.
    """
    whole = msgspec.json.decode(raw, type=msgspec.Raw)  # that it is JSON; takes some milliseconds
    if _signs(raw) > MAX_VALUES:
        within = sum(_signs(string[0]) for string in _STRING.finditer(raw))
        if _signs(raw) - within > MAX_VALUES:
            raise TooLarge(f"A body may have {MAX_VALUES} values.", limit=MAX_VALUES)
    return msgspec.convert(_pieces(whole, 0), known(type))


def _signs(raw: bytes) -> int:
    """How many values there are at most, if these signs are not in strings."""
    return sum(map(raw.count, _SIGNS))


def _pieces(raw: msgspec.Raw, depth: int) -> object:
    view = memoryview(raw)
    if len(view) <= PIECE:
        return msgspec.json.decode(raw)
    if depth == PIECES_WITHIN:
        raise InvalidInput(f"A value of more than {PIECE} bytes lies deeper than {PIECES_WITHIN}.")
    begin = bytes(view[:PIECE]).lstrip()[:1]
    if begin == b"{":
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        return {name: _pieces(value, depth + 1) for name, value in fields.items()}
    if begin == b"[":
        return [_pieces(value, depth + 1) for value in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    return msgspec.json.decode(raw)
