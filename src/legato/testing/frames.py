"""The rules of frames: what an encoder of a dialect gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ..event import Event
from ..sse import Decoder


def check_dialect(make: Callable[[], Callable[[Event], bytes]], events: Sequence[Event]) -> None:
    """Check that an encoder is a pure fold of events into frames that every client survives.

    Args:
        make: gives an encoder that has seen nothing yet: the bytes of one event's frames, empty if it has none.
        events: of one session, in order, with as many kinds as there are.

    Raises:
        AssertionError: which event broke which rule.
    """
    first, second = make(), make()
    decoder = Decoder()
    ids: set[str] = set()
    for event in events:
        frames = first(event)
        _rule_of_frames(event, "the same bytes each time", frames == second(msgspec.structs.replace(event, wire={})))
        _rule_of_frames(event, "LF only", b"\r" not in frames)
        _rule_of_frames(event, "a blank line after each frame", not frames or frames.endswith(b"\n\n"))
        messages = decoder.feed(frames)
        blocks = frames.split(b"\n\n")[:-1]
        _rule_of_frames(event, "each frame is one event", len(messages) == len(blocks))
        for block in blocks:
            fields = [line.partition(b":")[0] for line in block.split(b"\n")]
            _rule_of_frames(event, "one line of data", fields.count(b"data") == 1)
            _rule_of_frames(event, "id is the last field", b"id" not in fields[:-1])
        new = [block.rpartition(b"\nid: ")[2].decode() for block in blocks if b"\nid: " in block]
        _rule_of_frames(event, "no id is used twice", len({*ids, *new}) == len(ids) + len(new))
        ids.update(new)


def _rule_of_frames(event: Event, rule: str, kept: bool) -> None:
    if not kept:
        raise AssertionError(f"Event {event.offset} ({event.type}) breaks a rule of frames: {rule}.")
