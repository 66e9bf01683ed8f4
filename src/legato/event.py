"""Events: the facts a session's log is made of, and what an agent yields to make them.

This module knows the vocabulary (types, run states, the parts of an assistant message) and nothing of stores, wires
or clocks. The one rule: an event never changes, and whatever a reader needs of an answer stands in its events.

``EVENTS`` is the table of types. A *delta* names its part and its character offset (Unicode code points) in it, so
that applying it twice does no harm. ``message.created`` and the terminal events carry whole messages, so history is
a read of the log without its deltas.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from .errors import IllegalTransition, InvalidInput

Offset = int
"""An event's number in its session: dense, from 1, given by the store; 0 is before the first."""


class Event(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One stored fact of a session.

    Attributes:
        type: a key of ``EVENTS``.
        data: a JSON object; the table says which fields. Never change it: all readers share it.
        offset: the event's number in its session, from 1.
        at: when it was stored, seconds since the epoch.
        run: the run it belongs to, or None for an event of the session itself.
        wire: the event's encoded bytes by dialect, made once and shared by all readers (filled in by the server).
    """

    type: str
    data: dict[str, Any]
    offset: Offset
    at: float
    run: str | None = None
    wire: dict[str, bytes] = msgspec.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        # Without ``wire``: what has been encoded so far is not part of the fact.
        if not isinstance(other, Event):
            return NotImplemented
        return (self.offset, self.type, self.run, self.at, self.data) == (
            other.offset,
            other.type,
            other.run,
            other.at,
            other.data,
        )

    __hash__ = None  # type: ignore[assignment]  # data is a dict


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event that has not been stored: the store gives it its offset and time."""

    type: str
    data: dict[str, Any]
    run: str | None = None


EVENTS: dict[str, str] = {
    "session.created": "title?, agent?, metadata?, forked_from?",
    "session.deleted": "(nothing): the last event of a session",
    "session.rewound": "to: the id of the last message that history keeps, or '' for none; until?: what has a greater "
    "offset than this stays, too",
    "session.run_withdrawn": "run: no longer to be had by its id (a response that was deleted); history keeps it",
    "message.created": "id, role (user; assistant when a fork copied it), text, agent?, metadata?, retries? (the run "
    "whose answer is to be given anew, or null; the message stands in the log once before)",
    "run.started": "agent, attempt (from 1)",
    "thinking.delta": "part, step, start, text",
    "text.delta": "part, step, start, text",
    "refusal.delta": "part, step, start, text: the model says that it will not answer",
    "tool_call.started": "part, step, id, name",
    "tool_call.delta": "part, step, id, start, arguments (a piece of JSON text)",
    "tool_call.completed": "part, step, id, name, arguments (the whole JSON text)",
    "tool.started": "id, name, progress",
    "tool.completed": "id, name, progress, success, output",
    "permission.requested": "id, tool, description, action, path?, params?, call? (the id of the tool call that it is "
    "for), expires_at?",
    "permission.resolved": "id, granted, by (user | timeout | run_ended)",
    "notification.created": "id, kind, title, message, response, choices?, timeout (s), created_at",
    "notification.resolved": "id, run (that asked; it may have ended), response?, value?, by (user | timeout)",
    "agent.checkpoint": "data: any JSON value, an agent's note to itself; readers do not see it",
    "run.cancel_requested": "reason?",
    "run.completed": "message (whole: id, text, parts), usage?, finish_reason",
    "run.failed": "code, message, partial (the whole message as far as it came), usage?, detail?",
    "run.cancelled": "partial (the whole message as far as it came), usage?, reason?",
}
"""Every event type, with the fields of its ``data``.

The ``text`` of a whole message holds its refusals, too, where they were said: whoever knows no refusals sees one as the
answer, not an empty one. ``parts`` has them apart.
"""

TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled"})
"""The types that end a run; each run has exactly one."""

DELTAS = frozenset({"thinking.delta", "text.delta", "refusal.delta", "tool_call.delta"})
"""The types whose content stands again, whole, in a later event of the same run."""


class RunState(enum.Enum):
    """Where a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[tuple[RunState | None, str], RunState] = {
    (None, "message.created"): RunState.QUEUED,
    (RunState.QUEUED, "run.started"): RunState.RUNNING,
    (RunState.QUEUED, "run.cancel_requested"): RunState.CANCELLING,
    (RunState.QUEUED, "run.failed"): RunState.FAILED,
    (RunState.RUNNING, "run.started"): RunState.RUNNING,  # a further attempt, after a crash
    (RunState.RUNNING, "run.cancel_requested"): RunState.CANCELLING,
    (RunState.RUNNING, "run.completed"): RunState.COMPLETED,
    (RunState.RUNNING, "run.failed"): RunState.FAILED,
    (RunState.CANCELLING, "run.started"): RunState.CANCELLING,
    (RunState.CANCELLING, "run.cancel_requested"): RunState.CANCELLING,
    (RunState.CANCELLING, "run.completed"): RunState.COMPLETED,  # it was done before it saw the cancel
    (RunState.CANCELLING, "run.failed"): RunState.FAILED,
    (RunState.CANCELLING, "run.cancelled"): RunState.CANCELLED,
}
"""The whole life of a run. An event type that is in no row leaves an unfinished run where it is."""

_MOVES = frozenset(type_ for _, type_ in TRANSITIONS)


def advance(state: RunState | None, type_: str) -> RunState | None:
    """The state of a run after an event of ``type_``.

    Raises:
        IllegalTransition: the state forbids it; in particular, nothing follows a terminal event.
    """
    if type_ in _MOVES:
        try:
            return TRANSITIONS[state, type_]
        except KeyError:
            pass
    elif state in (RunState.RUNNING, RunState.CANCELLING, RunState.QUEUED):
        return state
    name = "a new run" if state is None else f"a run that is {state.value}"
    raise IllegalTransition(f"{type_} cannot follow in {name}.", state=state and state.value, type=type_)


def as_json(name: str, value: Any) -> Any:
    """What JSON makes of ``value`` (lists for tuples, text for dates), and a copy that nobody else can change.

    Raises:
        InvalidInput: it is not made of JSON values; the text begins with ``name``.
    """
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidInput(f"{name} must be made of JSON values: {exc}") from exc


# What an agent yields -------------------------------------------------------------------------------------------------


class Text(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer. Yielding a plain ``str`` means the same."""

    text: str


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's explanation why it does not answer. Readers that know no refusals see it as text.

    An answer that ends with one has the finish reason ``"refusal"``, unless ``Finish`` gives another."""

    text: str


class Thinking(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's reasoning, shown apart from the answer."""

    text: str


class ToolCall(msgspec.Struct, frozen=True):
    """The model begins to call a tool; its arguments follow, whole here or in pieces by ``ToolArguments``.

    Attributes:
        id: unique in the run; what later events of the call name.
        name: the tool's name.
        arguments: the whole JSON text of the arguments, or None when they will be streamed.
    """

    id: str
    name: str
    arguments: str | None = None


class ToolArguments(msgspec.Struct, frozen=True, gc=False):
    """A piece of the JSON text of a call's arguments."""

    id: str
    text: str


class ToolReady(msgspec.Struct, frozen=True, gc=False):
    """The arguments of a streamed call are complete."""

    id: str


class ToolStarted(msgspec.Struct, frozen=True, gc=False):
    """The tool begins to work. ``progress`` is a sentence for the reader.

    Completes a call whose arguments were being streamed."""

    id: str
    progress: str = ""


class ToolResult(msgspec.Struct, frozen=True, gc=False):
    """The tool is done. ``output`` is any JSON value (the error's text when ``success`` is false)."""

    id: str
    output: Any = None
    success: bool = True
    progress: str = ""


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens and cost so far; the last one a run yields stands in its terminal event.

    Cached tokens are part of the input, reasoning tokens of the output."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    model: str = ""


class Finish(msgspec.Struct, frozen=True, gc=False):
    """Why the answer ended, when it was not simply done: ``"length"``, ``"content_filter"`` ... The run completes with
    it."""

    reason: str


class Checkpoint(msgspec.Struct, frozen=True, gc=False):
    """A note of the agent to itself, stored in the order in which it was yielded. Readers do not see it.

    After a crash, ``turn.checkpoint`` is the last one: where to go on, what was begun elsewhere. ``data`` is any JSON
    value, as large as one event may be.
    """

    data: Any


Yielded = (
    str
    | Text
    | Refusal
    | Thinking
    | ToolCall
    | ToolArguments
    | ToolReady
    | ToolStarted
    | ToolResult
    | Usage
    | Finish
    | Checkpoint
)
"""Everything an agent may yield."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole message of a conversation, as an agent and a history page see it.

    Attributes:
        id: unique in its session.
        role: ``"user"`` or ``"assistant"``.
        text: the user's text, or the text of the assistant's final step, a refusal included.
        parts: of an assistant: its thinking, text, refusals and tool calls in order, see ``Transcript``.
        metadata: of a user: what the sender added, for example ``{"plan_mode": true}``.
        run: the run that answers it, or that it came from.
        offset: the event that holds it.
        at: when it was stored, seconds since the epoch.
        status: of an assistant: ``"completed"``, ``"failed"`` or ``"cancelled"``.
        usage: of an assistant: the fields of ``Usage``.
        error: of a failed assistant's message: ``code`` and ``message``.
    """

    id: str
    role: str
    text: str
    parts: list[dict[str, Any]] = []
    metadata: dict[str, Any] = {}
    run: str | None = None
    offset: Offset = 0
    at: float = 0.0
    status: str = "completed"
    usage: dict[str, Any] = {}
    error: dict[str, Any] = {}
