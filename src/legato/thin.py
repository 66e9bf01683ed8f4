"""Thin logs: the pieces of an answer that was given long ago say together, in one of them, what each of them said.

Whole messages say all of it again, so what deltas say one by one is of use only to who reads along. Of a stretch of
them that go on from each other, the last says all, and the others say nothing; each keeps its offset, so that a log has
no gaps. A cursor at one that says nothing cannot be continued: what comes next would say again what its reader has. It
is answered with a reset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .event import PIECES, AnyFact, CallDelta, Event

THIN_CHARACTERS = 2_000
"""Of one delta that says what several said."""


def says_nothing(fact: AnyFact) -> bool:
    """Whether it is a delta whose words another one says now."""
    if type(fact) in PIECES:
        return not fact.text  # type: ignore[union-attr]
    return isinstance(fact, CallDelta) and not fact.arguments


def thinned(events: Sequence[Event]) -> list[Event]:
    """Events of a log, in order, as they are in a thin one; those that say the same are the same objects.

    Idempotent. The JSON of those that are changed is made when it is asked for.
    """
    result = list(events)
    for start, end in stretches(events, THIN_CHARACTERS):
        if end - start > 1:
            first = events[start].fact
            whole = "".join([words(event.fact) or "" for event in events[start:end]])
            for place in range(start, end):
                now = whole if place == end - 1 else ""
                if words(events[place].fact) != now or _start(events[place].fact) != _start(first):
                    result[place] = _saying(events[place], first, now)
    return result


def stretches(events: Sequence[Event], most: float = math.inf) -> Iterator[tuple[int, int]]:
    """Where deltas that go on from each other begin and end, with ``most`` characters in each, unless the first has
    more. One that says nothing begins anew after words, so that a thin log is not joined again. What is no delta is in
    none."""
    start = 0
    while start < len(events):
        end, said = start + 1, words(events[start].fact)
        if said is not None:
            length = len(said)
            while end < len(events) and _goes_on(events, start, end, length):
                more = len(words(events[end].fact) or "")
                if length + more > most or (length and not more):
                    break
                length, end = length + more, end + 1
            yield start, end
        start = end


def words(fact: AnyFact) -> str | None:
    """What a delta says; None if it is none."""
    if type(fact) in PIECES:
        return fact.text  # type: ignore[union-attr,no-any-return]
    return fact.arguments if isinstance(fact, CallDelta) else None


def _start(fact: AnyFact) -> int:
    return fact.start  # type: ignore[union-attr,no-any-return]


def _goes_on(events: Sequence[Event], start: int, end: int, length: int) -> bool:
    """Whether the event at ``end`` goes on where those from ``start`` on, of so many characters, end."""
    first, last, next = events[start], events[end - 1], events[end]
    one, two = first.fact, next.fact
    if type(one) is not type(two) or first.run != next.run or next.offset != last.offset + 1:
        return False
    same = one.part == two.part and one.step == two.step  # type: ignore[union-attr]
    return bool(same and two.start == one.start + length)  # type: ignore[union-attr]


def _saying(event: Event, first: AnyFact, text: str) -> Event:
    fact: AnyFact
    if isinstance(first, CallDelta):
        fact = CallDelta(first.part, first.step, first.id, first.start, text)
    else:
        fact = type(first)(first.part, first.step, first.start, text)  # type: ignore[call-arg,union-attr]
    return Event(fact, event.offset, event.at, event.run)
