"""What a dialect gives to its readers: an encoder for each, and for dialects that count or join what came before, a
fold of a run's events that all readers of the run share.

A fold is pure: the same events of the run give the same bytes, on every machine, for ever. So the bytes that one fold
made of an event are those that every reader of that run is to get, and a snapshot of a fold serves whoever comes later.
"""

from __future__ import annotations

from typing import Protocol, Self

from ..event import Event, Offset


class Encoder(Protocol):
    """One reader's view of a log.

    Attributes:
        over: nothing can follow.
    """

    over: bool

    def encode(self, event: Event) -> bytes:
        """What the reader is sent for an event: whole frames, or nothing. Given all events after the reader's place."""
        ...

    def heartbeat(self, cursor: Offset) -> bytes:
        """The bytes for a silence, given the offset of the last event."""
        ...


class Fold(Encoder, Protocol):
    """An encoder of one run from its first event on, which can be copied where it stands."""

    def copy(self) -> Self:
        """The same fold as far as it has come; from now on each goes its own way. Cheap however far that is."""
        ...


def after_frames(frames: bytes, count: int) -> bytes:
    """``frames`` without the first ``count``: a frame ends with its blank line, and has no other."""
    at = 0
    for _ in range(count):
        end = frames.find(b"\n\n", at)
        if end < 0:
            return b""
        at = end + 2
    return frames[at:]
