"""Limits by their names: what ``legato serve --limit`` and the configuration file say, as arguments of ``Legato``."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from ..bounds import BOUNDS, Kind, Limits
from ..errors import InvalidInput
from .app import Legato
from .traffic import Traffic

NO_LIMIT = ("max_streams_per_owner", "max_streams_per_address", "connections_per_address", "stream_seconds")
"""Beside those that begin with ``owner_``: limits of which 0 is none."""
NOTHING = (
    "waiting_messages",
    "queued_messages",
    "blob_bytes",
    "history_messages",
    "history_bytes",
    "attempts",
    "cancel_grace",
    "gather_seconds",
)
"""Limits of which 0 is none of it. With 0 for any other the server would serve nothing, which nobody means."""


class UnknownLimit(InvalidInput):
    """There is no limit of this name, or it cannot be set to that."""

    code = "unknown_limit"


def defaults() -> dict[str, tuple[Kind, float]]:
    """What each limit is where nobody sets it, by its name, and where it is set; not ``quota``, which is a function."""
    found: dict[str, tuple[Kind, float]] = {}
    for kind, made in (("Limits", Limits()), ("Traffic", Traffic())):
        for name in (field.name for field in msgspec.structs.fields(made)):
            found[name] = "Limits" if kind == "Limits" else "Traffic", getattr(made, name)
    of_legato = inspect.signature(Legato).parameters
    for bound in BOUNDS:
        if bound.kind == "Legato" and bound.name != "quota":
            found[bound.name] = "Legato", of_legato[bound.name].default
    return found


def values(app: Legato) -> dict[str, float]:
    """The limits of an application that are not what they are by default, by their names."""
    found: dict[str, float] = {}
    for name, (kind, default) in defaults().items():
        where: object = {"Limits": app.settings.limits, "Traffic": app.traffic, "Legato": app.settings}[kind]
        if (value := getattr(where, name)) != default:
            found[name] = value
    return found


def arguments(values: Mapping[str, str | float]) -> dict[str, Any]:
    """The arguments of ``Legato`` for limits by their names.

    Raises:
        UnknownLimit: there is no such limit, or its value is no number from 0 on, whole where the default is; or it is
            0, and would be the end of all service.
    """
    known = defaults()
    found: dict[str, dict[str, float]] = {"Limits": {}, "Traffic": {}, "Legato": {}}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; do you mean {near[0]}?" if near else "; docs/limits.md has all of them."
            raise UnknownLimit(f"there is no limit {name[:60]!r}{hint}")
        kind, default = known[name]
        found[kind][name] = _number(name, value, whole=isinstance(default, int))
    made: dict[str, Any] = dict(found["Legato"])
    if found["Limits"]:
        made["limits"] = Limits(**found["Limits"])  # type: ignore[arg-type]
    if found["Traffic"]:
        made["traffic"] = Traffic(**found["Traffic"])  # type: ignore[arg-type]
    return made


def _number(name: str, value: str | float, *, whole: bool) -> float:
    wanted = "a whole number" if whole else "a number"
    try:
        number: float = int(str(value).replace("_", "")) if whole else float(value)
    except ValueError:
        number = -1
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise UnknownLimit(f"{name} is {wanted} from 0 on, got {value!r:.60}.")
    if not (number or name.startswith("owner_") or name in (*NO_LIMIT, *NOTHING)):
        raise UnknownLimit(f"{name} is {wanted} above 0, got {value!r:.60}: with 0 nothing would be taken or answered.")
    return number
