"""Thin logs: the pieces of an answer that was given long ago say together, in one of them, what each of them said.

Whole messages say all of it again, so what deltas say one by one is of use only to who reads along. Of a stretch of
them that go on from each other, the last says all, and the others say nothing; each keeps its offset, so that a log has
no gaps. A cursor at one that says nothing cannot be continued: what comes next would say again what its reader has. It
is answered with a reset.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    start = 0
    while start < len(events):
        end, said = start + 1, _said(events[start].fact)
        while end < len(events) and said is not None and _goes_on(events, start, end, len(said)):
            more = _said(events[end].fact) or ""
            if len(said) + len(more) > THIN_CHARACTERS:
                break
            said, end = said + more, end + 1
        if said is not None and end - start > 1:
            first = events[start].fact
            for place in range(start, end):
                now = said if place == end - 1 else ""
                if _said(events[place].fact) != now or _start(events[place].fact) != _start(first):
                    result[place] = _saying(events[place], first, now)
        start = end
    return result


def _said(fact: AnyFact) -> str | None:
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
