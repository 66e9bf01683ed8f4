"""The arguments of ``Legato``, looked at together before anything is made of them: all mistakes are told at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..bounds import Limits
from ..dialect import mix
from ..errors import InvalidInput
from ..retention import Retention
from .guard import host_names
from .traffic import Traffic

LEASE_TTL = (1.0, 3600.0)
"""Seconds that a lease may last."""
_ORIGIN = re.compile(r"\*|null|[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s]+/?")
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "heartbeat": (float, 0.001, math.inf),
    "grace": (float, 0, math.inf),
    "lock_wait": (float, 0, math.inf),
    "lease_ttl": (float, *LEASE_TTL),
    **dict.fromkeys(
        ("max_body", "max_streams", "max_streams_per_session", "max_streams_per_owner", "max_streams_per_address"),
        (int, 0, math.inf),
    ),
}


class Misconfigured(InvalidInput):
    """Arguments of an application that are not what they must be.

    Attributes:
        faults: a sentence for each.
    """

    code = "misconfigured"

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(" ".join(faults))
        self.faults = list(faults)


def check(given: Mapping[str, object]) -> None:
    """Look at the arguments of ``Legato``, by their names.

    Raises:
        Misconfigured: some are not what they must be.
    """
    if faults := list(_faults(given)):
        raise Misconfigured(faults)


def _faults(given: Mapping[str, Any]) -> Iterator[str]:
    for name, (kind, least, most) in _NUMBERS.items():
        yield from _of_number(name, given[name], kind, least, most)
    for name, struct in (("limits", Limits), ("traffic", Traffic)):
        if isinstance(given[name], struct):
            for field in msgspec.structs.fields(struct):
                yield from _of_number(
                    f"{name}: {field.name}",
                    getattr(given[name], field.name),
                    int if field.type is int else float,
                    field.name == "body_rate",  # by which is divided
                    math.inf,
                )
        elif given[name] is not None:
            yield f"{name} is a {struct.__name__}, got {_shown(given[name])}."
    if isinstance(given["retention"], Retention):
        yield from _of(given["retention"].check)
    elif given["retention"] is not None:
        yield f"retention is a Retention, got {_shown(given['retention'])}."
    if isinstance(given["client"], str):
        yield from _of(lambda: mix.profile(given["client"]))
    else:
        yield f"client is a text such as 'python-0.8.1', got {_shown(given['client'])}."
    for name in ("cors", "hosts"):
        names = given[name]
        if not (names is None or isinstance(names, str) or _are_texts(names)):
            yield f"{name} is a text or a list of such, got {_shown(names)}."
        elif name == "hosts":
            for each in (names,) if isinstance(names, str) else names or ():
                yield from _of(lambda each=each: host_names([each]))  # type: ignore[misc]
        else:
            for each in (names,) if isinstance(names, str) else names or ():
                if not _ORIGIN.fullmatch(each):
                    yield f"cors has origins such as https://app.example.com, as browsers send them, got {each[:99]!r}."
    for name in ("may", "quota", "shared", "identify"):
        if not (given[name] is None or callable(given[name])):
            yield f"{name} is a function, got {_shown(given[name])}."


def _of(work: Callable[[], object]) -> Iterator[str]:
    try:
        work()
    except InvalidInput as exc:
        yield exc.message


def _of_number(name: str, value: object, kind: type, least: float, most: float) -> Iterator[str]:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not fits or (kind is int and value != math.inf and not isinstance(value, int)):
        what = "a whole number" if kind is int else "a number"
        bound = f"from {least:g} on" if most == math.inf else f"from {least:g} to {most:g}"
        yield f"{name} is {what} {bound}, got {_shown(value)}."


def _are_texts(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(each, str) for each in value)


def _shown(value: object) -> str:
    return f"{value!r:.60}" if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"
