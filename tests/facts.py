"""Facts from a type and a JSON object, as tests write them: read like those of a log."""

from __future__ import annotations

from legato.event import Draft, Event, Offset, fact
from legato.json import JsonObject
from legato.part import encode


def draft(type: str, data: JsonObject, run: str | None = None) -> Draft:
    """A draft of the fact of ``type`` that says ``data``."""
    return Draft(fact(type, data), run)


def stored(type: str, data: JsonObject, offset: Offset, at: float = 0.0, run: str | None = None) -> Event:
    """The event that a log with just this JSON in it gives."""
    return Event(fact(type, data), offset, at, run, encode(data))
