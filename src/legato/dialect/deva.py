"""The Deva dialect on the wire: the events of one run, folded into the frames of one answer.

A thread is a session, and a stream is the answer to one user's message: its newest run. ``content`` frames add to the
text, then ``completion`` and ``response_message``, or ``error`` in place of both; nothing follows. What the user sees
is the text of all steps, a blank line between them, so that fold has a state. It is pure nonetheless: the same events
of the run give the same frames. A resume folds again from the run's first event and leaves out what the client has.

One event can give two frames, so a cursor is the event's offset and the frame's number in it, ``"42.0"``. A cursor that
was cut off has not that form.

Messages, threads and the bodies of requests are in ``deva_api``. ``docs/dialects/deva.md`` says what a client sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from .. import sse
from ..errors import CursorInvalid
from ..event import (
    AnyFact,
    Event,
    MessageCreated,
    Offset,
    RefusalDelta,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunWaiting,
    SessionDeleted,
    TextDelta,
)
from ..json import unbroken
from . import deva_api

Cursor = tuple[Offset, int]
"""An event's offset, and the number of a frame among those it gives, from 0."""

START: Cursor = (0, 0)
"""Before every frame."""

CURSOR_PATTERN = r"^[0-9]{1,15}\.[01]$"
"""What every cursor looks like."""
_CURSOR = re.compile(r"([0-9]{1,15})\.([01])", re.ASCII)

FINAL = frozenset({"rewound", "unknown_agent"})
"""Codes of failures that stay as they are however often the message is answered anew."""


def parse_cursor(text: str | None, name: str = "Last-Event-ID") -> Cursor | None:
    """The cursor in a header, or in what else is called ``name``; None if there is none.

    Raises:
        CursorInvalid: not of the form that this dialect writes.
    """
    if not text:
        return None
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise CursorInvalid(f"{name} is an id such as '42.0', as it stood in the stream; got {text[:60]!r}.")
    return int(match[1]), int(match[2])


def opening(retry: int) -> bytes:
    """The first bytes of a stream: something at once, and how long to wait before coming back, in milliseconds.

    No block of their own, of which clients would make an event: they belong to the first frame that follows.
    """
    return sse.HEARTBEAT + b"retry: %d\n" % retry


WAITING = b": waiting for a place\n"
"""What is said while a run waits, to whoever looks at the bytes: as a heartbeat, it reaches no client's handlers."""


class AnswerEncoder:
    """The bytes of one reader's stream, event by event.

    Args:
        session, run: whose; the encoder must be given the run from its first event on.
        after: leave out the frames up to and with this one.
        iso: whether times are ISO 8601 text, and not seconds since the epoch.

    Attributes:
        over: nothing can follow.
    """

    def __init__(self, session: str, run: str, *, after: Cursor = START, iso: bool = False) -> None:
        self.over = False
        self._session = session
        self._run = run
        self._after = after
        self._iso = iso
        self._asked: deva_api.ThreadMessage | None = None
        self._agent = ""
        self._lengths: dict[int, int] = {}  # of each part
        self._step: int | None = None  # the last one that had text

    def copy(self) -> AnswerEncoder:
        """See ``Fold``."""
        copy = AnswerEncoder(self._session, self._run, after=self._after, iso=self._iso)
        copy.over, copy._asked, copy._agent = self.over, self._asked, self._agent
        copy._lengths, copy._step = dict(self._lengths), self._step
        return copy

    def encode(self, event: Event) -> bytes:
        """What the reader is sent for ``event``: whole frames, or nothing."""
        deleted = isinstance(event.fact, SessionDeleted)
        if self.over or not (event.run == self._run or deleted):
            return b""
        if isinstance(event.fact, RunWaiting):
            return WAITING
        handler = _HANDLERS.get(type(event.fact))
        named = handler(self, event.fact, event.at) if handler else []
        self.over = event.fact.terminal or deleted
        return b"".join(
            _frame(name, data, f"{event.offset}.{number}")
            for number, (name, data) in enumerate(named)
            if (event.offset, number) > self._after
        )

    def heartbeat(self, cursor: Offset) -> bytes:
        """The bytes for a silence: a line without a blank one, which reaches no client's handlers."""
        return sse.HEARTBEAT

    def _message(self, fact: MessageCreated, at: float) -> list[Named]:
        self._agent = fact.agent or ""
        self._asked = deva_api.question(self._session, fact, at, iso=self._iso)
        return []

    def _started(self, fact: RunStarted, at: float) -> list[Named]:
        self._agent = fact.agent
        return []

    def _text(self, fact: TextDelta | RefusalDelta, at: float) -> list[Named]:
        have = self._lengths.get(fact.part, 0)
        text = fact.text[max(have - fact.start, 0) :]
        if not text:
            return []
        self._lengths[fact.part] = have + len(text)
        between = deva_api.PARAGRAPH if self._step not in (None, fact.step) else ""
        self._step = fact.step
        return [("content", between + text)]

    def _completed(self, fact: RunCompleted, at: float) -> list[Named]:
        about = {"finish_reason": fact.finish_reason, **({"usage": fact.usage} if fact.usage else {})}
        answer = deva_api.answer(self._session, fact.message, at, agent=self._agent, asked=self._asked, iso=self._iso)
        return [("completion", about), ("response_message", answer)]

    def _failed(self, fact: RunFailed, at: float) -> list[Named]:
        retryable = (fact.detail or {}).get("retryable", fact.code not in FINAL)
        return [_error(fact.code, fact.message, retryable=bool(retryable))]

    def _cancelled(self, fact: RunCancelled, at: float) -> list[Named]:
        return [_error("cancelled", "The answer was stopped.", retryable=True)]

    def _deleted(self, fact: SessionDeleted, at: float) -> list[Named]:
        return [_error("session_not_found", "The thread has been deleted.", retryable=False)]


Named = tuple[str, object]
"""A frame's name and data."""


def _error(code: str, message: str, *, retryable: bool) -> Named:
    return "error", {"code": code, "message": message, "retryable": retryable}


def _frame(name: str, data: object, id: str) -> bytes:
    return sse.encode(sse.SSEMessage(data=unbroken(msgspec.json.encode(data)).decode(), event=name, id=id))


_HANDLERS: dict[type[AnyFact], Callable[[AnswerEncoder, Any, float], list[Named]]] = {
    MessageCreated: AnswerEncoder._message,
    RunStarted: AnswerEncoder._started,
    TextDelta: AnswerEncoder._text,
    RefusalDelta: AnswerEncoder._text,  # to the user it is what the answer says
    RunCompleted: AnswerEncoder._completed,
    RunFailed: AnswerEncoder._failed,
    RunCancelled: AnswerEncoder._cancelled,
    SessionDeleted: AnswerEncoder._deleted,
}
