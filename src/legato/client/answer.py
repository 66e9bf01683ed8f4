"""One answer, followed among a session's events: which events are its own, its text so far, and its end. No I/O."""

from __future__ import annotations

from .errors import CursorReset
from .events import (
    CompleteEvent,
    ConnectedEvent,
    ContentEvent,
    ErrorEvent,
    NotificationEvent,
    NotificationResolvedEvent,
    SessionDeletedEvent,
    StreamEvent,
    ToolExecutionCompleteEvent,
    ToolExecutionStartEvent,
    ToolUseStartEvent,
)
from .models import SendResult

__all__ = ["AnswerState", "AnswerView", "Outcome", "PartText"]

Outcome = CompleteEvent | ErrorEvent | SessionDeletedEvent
"""How an answer ends."""


class PartText:
    """A text put together from pieces that know their place; a piece that comes twice does no harm."""

    __slots__ = ("_length", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0

    def apply(self, piece: str, start: int | None) -> None:
        """Put a piece at ``start`` (code points); None, or a place beyond the end, is the end."""
        if start is not None and start < self._length:
            text = str(self)
            self._pieces = [text[:start] + piece + text[start + len(piece) :]]
            self._length = len(self._pieces[0])
        else:
            self._pieces.append(piece)
            self._length += len(piece)

    def __str__(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""


class AnswerState:
    """What is known of one answer.

    Args:
        sent: what the server said when it took the question. Without a ``run_id`` (a Mix server) every event of the
            session counts as the answer's.

    Attributes:
        outcome: the last event; None before it came.
    """

    def __init__(self, sent: SendResult) -> None:
        self.outcome: Outcome | None = None
        self._run = sent.run_id
        self._asked: set[str] = set()  # ids of the answer's tool calls and notifications
        self._message: str | None = None  # the assistant message that is being written
        self._parts: dict[int, PartText] = {}  # of that message

    @property
    def text(self) -> str:
        """The text of the newest assistant message so far; in the end, the answer."""
        if isinstance(self.outcome, CompleteEvent) and self.outcome.data.content is not None:
            return self.outcome.data.content
        return "".join(str(self._parts[part]) for part in sorted(self._parts))

    def take(self, event: StreamEvent) -> bool:
        """Take note of an event; False when it is not of this answer.

        Raises:
            CursorReset: the server has lost what it said before; whether it knows the question is unknown.
        """
        if isinstance(event, ConnectedEvent) and event.data.reset:
            raise CursorReset(
                "The server's log does not hold what was read of this answer.",
                earliest=event.data.earliest,
                latest=event.data.latest,
            )
        if not self._owns(event):
            return False
        if isinstance(event, ToolUseStartEvent | NotificationEvent):
            self._asked.add(event.data.id)
        elif isinstance(event, ContentEvent):
            self._write(event)
        elif isinstance(event, Outcome):
            self.outcome = event
        return True

    def _owns(self, event: StreamEvent) -> bool:
        data = event.data
        if isinstance(event, SessionDeletedEvent) or self._run is None:
            return True
        if data.run_id is not None:
            return data.run_id == self._run
        if data.assistant_message_id is not None:
            return data.assistant_message_id.startswith(f"{self._run}~")
        if isinstance(event, ToolExecutionStartEvent | ToolExecutionCompleteEvent):
            return event.data.tool_call_id in self._asked
        if isinstance(event, NotificationResolvedEvent):
            return event.data.id in self._asked
        return data.parent_tool_call_id in self._asked

    def _write(self, event: ContentEvent) -> None:
        data = event.data
        if data.parent_tool_call_id is not None:
            return  # a sub-agent talks to the agent, not to the reader
        if data.assistant_message_id != self._message:
            self._message, self._parts = data.assistant_message_id, {}
        self._parts.setdefault(data.part, PartText()).apply(data.content, data.start)


class AnswerView:
    """What both faces' answers show.

    Attributes:
        session_id: the conversation; give it to the next ``ask``.
        run_id: the run that answers; None from a Mix server.
    """

    def __init__(self, sent: SendResult) -> None:
        self.session_id = sent.session_id
        self.run_id = sent.run_id
        self._state = AnswerState(sent)

    @property
    def text(self) -> str:
        """The newest assistant message so far; in the end, the answer."""
        return self._state.text

    @property
    def outcome(self) -> Outcome | None:
        """The last event; None before it came."""
        return self._state.outcome
