"""JSON as model servers write it, read as far as it makes sense. No I/O.

One field that says nothing useful must not cost an answer: a number may be written as a float or a text, a logarithm
may be NaN, a letter may come as two halves in two chunks. What an answer is made of (``SAID``) is never guessed at.
"""

from __future__ import annotations

import functools
import json
import math
import typing
from collections.abc import Callable
from types import NoneType
from typing import Any, Final, TypeVar

import msgspec

from ..json import known

__all__ = ["decoded", "exactly", "fitted", "loose"]

S = TypeVar("S", bound=msgspec.Struct)

SAID: Final = frozenset(
    {"choices", "delta", "message", "content", "text", "refusal", "tool_calls", "function", "arguments", "partial_json",
     "content_block", "item", "part", "response", "index"}
)  # fmt: skip
"""Fields without which it is not known what the model said: of another type, they are an error."""


def loose(data: str | bytes) -> Any:
    """The value of a JSON text, also with NaN, Infinity and halves of surrogate pairs.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError):
        pass
    except RecursionError as exc:
        raise ValueError("It is nested too deeply.") from exc
    try:
        return json.loads(data)
    except RecursionError as exc:
        raise ValueError("It is nested too deeply.") from exc


def decoded(data: str, type: type[S]) -> S:
    """The struct that a JSON text is, as far as it fits.

    Raises:
        ValueError: it is no JSON object, or what was said in it cannot be read.
    """
    found = exactly(data, type)
    return fitted(loose(data), type) if found is None else found


def exactly(data: str, type: type[S]) -> S | None:
    """The struct that a JSON text is, if all of it fits."""
    try:
        return (_decoders.get(type) or _learnt(type))(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


_decoders: dict[type[msgspec.Struct], Callable[[str], Any]] = {}


def _learnt(type: type[msgspec.Struct]) -> Callable[[str], Any]:
    decode = _decoders[type] = msgspec.json.Decoder(known(type)).decode
    return decode


def fitted(value: object, type: type[S]) -> S:
    """The struct that a JSON value is, field by field; a field that does not fit is mended, or left out.

    Raises:
        ValueError: it is no object, or one of ``SAID`` does not fit.
    """
    if not isinstance(value, dict):
        raise ValueError(f"Expected an object, got {value!r:.64}.")
    fields = {}
    for name, kinds in _kinds(type).items():
        if value.get(name) is None:  # null stands for nothing everywhere
            continue
        try:
            fields[name] = _fit(value[name], kinds, name in SAID)
        except ValueError:
            if name in SAID:
                raise
    try:
        return type(**fields)
    except TypeError as exc:
        raise ValueError(f"{exc}.") from exc


@functools.cache
def _kinds(struct: type[msgspec.Struct]) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(struct)
    return {name: typing.get_args(kind) or (kind,) for name, kind in _plain(struct, hints).items()}


def _plain(struct: type[msgspec.Struct], hints: dict[str, Any]) -> dict[str, Any]:
    # dict[str, Any] and list[X] alone have arguments of their own, which are no alternatives.
    kinds = {name: hints[name] for name in struct.__struct_fields__}
    return {name: kind | None if typing.get_origin(kind) in (dict, list) else kind for name, kind in kinds.items()}


def _fit(value: object, kinds: tuple[Any, ...], said: bool = False) -> object:
    """The value as one of the types; what was ``said`` is a text, and no number.

    Raises:
        ValueError: it is as none of them.
    """
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if origin is object or origin is Any:
            return value
        if origin is NoneType:
            continue
        if issubclass(origin, msgspec.Struct):
            if isinstance(value, dict):
                return fitted(value, origin)
        elif origin is list:
            items = value if isinstance(value, list) else [value] if isinstance(value, dict) else None
            if items is not None:
                inner = typing.get_args(kind)
                return [_fit(item, inner) for item in items if item is not None]
        elif origin is bool:
            if isinstance(value, bool):
                return value
        elif isinstance(value, origin) and not isinstance(value, bool):
            return value
    if int in kinds and (count := _count(value)) is not None:
        return count
    if str in kinds and not said and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"Expected {' or '.join(str(kind) for kind in kinds)}, got {value!r:.64}.")


def _count(value: object) -> int | None:
    """A whole number that is written as a float, or as a text."""
    try:
        number = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None
