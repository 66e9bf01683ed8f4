"""Neighbouring deltas as one, for readers who are far behind: the same text in a tenth of the bytes, and of the work.

A delta names its place, so one that says what five hundred said does the same to whoever applies it. Its offset is that
of the last of them: a reader who has it has them all, and one who comes back from the middle of them is given the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ..event import Event, Offset, RefusalDelta, TextDelta, ThinkingDelta

JOINED_CHARACTERS = 16_384
"""Of one joined delta, about: what goes out in one write."""
PAGE_CHARACTERS = 4 * JOINED_CHARACTERS
"""Of what is joined of one page, about. Readers who stand at as many places have a copy each while they have it written
to them; of a page of which fewer than ``FEW`` events say that, all is given as it is, since that has no copies."""
FEW = 100
KEPT_BYTES = 16 * 1024 * 1024
"""Of the pages that are kept for the next reader who comes by, by estimate."""
EVENT_BYTES = 1_000
"""What an event costs in memory beside what it says, which it may hold three times: as a fact, as JSON, and encoded."""

_Piece = TextDelta | ThinkingDelta | RefusalDelta


def joined(events: Iterable[Event]) -> list[Event]:
    """``events``, a page in order, with what continues what stands before it joined."""
    result: list[Event] = []
    open_: list[Event] = []  # what the next event may continue
    kind: type[_Piece] | None = None
    run: str | None = None
    part = end = room = 0
    for event in events:
        fact = event.fact
        if type(fact) is kind and fact.start == end and fact.part == part and event.run == run and room > 0:
            open_.append(event)
        else:
            _close(open_, result)
            if not isinstance(fact, _Piece):
                result.append(event)
                open_, kind = [], None
                continue
            open_, kind, run, part, end, room = [event], type(fact), event.run, fact.part, fact.start, JOINED_CHARACTERS
        length = len(fact.text)
        end += length
        room -= length
    _close(open_, result)
    return result


def _close(open_: list[Event], result: list[Event]) -> None:
    if len(open_) < 2:
        result += open_
        return
    first, last = open_[0].fact, open_[-1]
    assert isinstance(first, _Piece)
    text = "".join([event.fact.text for event in open_ if isinstance(event.fact, _Piece)])
    result.append(Event(type(first)(first.part, first.step, first.start, text), last.offset, last.at, last.run))


class JoinedPages:
    """Joins pages of logs, and keeps what was joined of late, with the bytes that dialects made of it."""

    def __init__(self) -> None:
        self._pages: OrderedDict[tuple[str, Offset, Offset], list[Event]] = OrderedDict()
        self._sizes: dict[tuple[str, Offset, Offset], int] = {}
        self._held = 0

    def of(self, session: str, events: Sequence[Event]) -> Sequence[Event]:
        """The beginning of a page of a session's log, joined; or all of it, as it is, where joining is of no use. Those
        who ask for the same page are given the same events."""
        key = session, events[0].offset, events[-1].offset
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
            return page
        said = 0
        for count, event in enumerate(events):
            if said > PAGE_CHARACTERS:
                if count < FEW:
                    return events
                break
            said += len(event.fact.text) if isinstance(event.fact, _Piece) else 0
        else:
            count = len(events)
        page = joined(events[:count])
        if len(page) == count:
            return events
        self._pages[key] = page
        self._sizes[key] = size = sum(map(cost, page))
        self._held += size
        while self._held > KEPT_BYTES:
            oldest, _ = self._pages.popitem(last=False)
            self._held -= self._sizes.pop(oldest)
        return page

    def forget(self) -> None:
        """Keep nothing."""
        self._pages.clear()
        self._sizes.clear()
        self._held = 0

    def forget_session(self, session: str) -> None:
        """Let go of the pages of a session, whose log is not what it was."""
        for key in [key for key in self._pages if key[0] == session]:
            del self._pages[key]
            self._held -= self._sizes.pop(key)


def cost(event: Event) -> int:
    """Bytes of memory that an event takes, by estimate."""
    said = len(event.fact.text) if isinstance(event.fact, _Piece) else len(event.json)
    return EVENT_BYTES + 3 * said
