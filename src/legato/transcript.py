"""The assistant's message, as a fold of its run's events; and the way back, from what an agent yields to events.

``Transcript`` reads events: it serves the terminal event, the recovery after a crash, and every dialect that needs a
whole message. ``Recorder`` writes them: it knows where each part stands, so that every delta can name its part and its
character offset. Both are plain folds: no clock, no store, the same input gives the same output for ever.

A *part* is a stretch of one kind (thinking, text, refusal, one tool call), numbered from 0 in its run. A *step* is one
message of the model, numbered from 1: what the model says after tool results belongs to the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .errors import InvalidInput, TooLarge
from .event import (
    DELTAS,
    TERMINAL,
    Checkpoint,
    Draft,
    Event,
    Finish,
    Message,
    Refusal,
    Text,
    Thinking,
    ToolArguments,
    ToolCall,
    ToolReady,
    ToolResult,
    ToolStarted,
    Usage,
    as_json,
)

DELTA_CHARACTERS = 20_000
"""A longer piece of text is stored as several deltas: no frame shall pass the 128 KiB that old clients accept, and a
control character takes 6 bytes of JSON."""


def message_id(run: str, step: int) -> str:
    """The id of the assistant's message of ``step`` in ``run``."""
    return f"{run}~a{step}"


class Transcript:
    """What the assistant has said in one run so far.

    Attributes:
        parts: in order, each a dict with ``type`` (``thinking``, ``text``, ``refusal``, ``tool_call``), ``step`` and,
            by type, ``text``, or ``id``, ``name``, ``arguments`` and, once executed, ``output`` and ``success``.
        step: the number of the model's present message, from 1.
        size: characters of text, refusals, thinking, arguments and output so far.
        ready: the ids of the tool calls whose arguments are complete.
        answered: whether a tool has reported since the model last spoke; what it says next is a new step.
    """

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.step = 1
        self.size = 0
        self._pieces: list[list[str]] = []  # of each part's text or arguments, joined only when asked for
        self._lengths: list[int] = []
        self._calls: dict[str, int] = {}
        self.ready: set[str] = set()
        self.answered = False

    def length(self, part: int) -> int:
        """Characters in ``part`` so far: where its next delta starts."""
        return self._lengths[part]

    def call(self, id: str) -> int | None:
        """The part of the tool call ``id``, or None if there is no such call."""
        return self._calls.get(id)

    def arguments(self, id: str) -> str:
        """The JSON text of the arguments of call ``id`` so far."""
        return "".join(self._pieces[self._calls[id]])

    def apply(self, type: str, data: dict[str, Any]) -> None:
        """Add one event of the run; once more does no harm. Types that add nothing to the message are ignored."""
        if type in _TEXTS:
            if data["part"] == len(self.parts):
                self._open({"type": type.partition(".")[0], "step": data["step"]})
            self._extend(data["part"], data["start"], data["text"])
        elif type == "tool_call.started" and data["id"] not in self._calls:
            self._calls[data["id"]] = data["part"]
            self._open({"type": "tool_call", "step": data["step"], "id": data["id"], "name": data["name"]})
        elif type == "tool_call.delta":
            self._extend(data["part"], data["start"], data["arguments"])
        elif type == "tool_call.completed":
            part = data["part"]
            self.size += len(data["arguments"]) - self._lengths[part]
            self._pieces[part], self._lengths[part] = [data["arguments"]], len(data["arguments"])
            self.ready.add(data["id"])
        elif type == "tool.completed":
            part, output = self.parts[self._calls[data["id"]]], data["output"]
            if "success" not in part:
                part["success"], part["output"] = data["success"], output
                self.size += len(output) if isinstance(output, str) else len(msgspec.json.encode(output))
                self.answered = True

    def _open(self, part: dict[str, Any]) -> None:
        self.step = part["step"]
        self.answered = False
        self.parts.append(part)
        self._pieces.append([])
        self._lengths.append(0)

    def _extend(self, part: int, start: int, text: str) -> None:
        have = self._lengths[part]
        if start < have:  # applied before; a delta names its place so that this does no harm (R7)
            text = text[have - start :]
        if text:
            self._pieces[part].append(text)
            self._lengths[part] = have + len(text)
            self.size += len(text)

    def text(self, step: int | None = None) -> str:
        """The text of one step, or of the last that has any. What a refusal says is text here."""
        texts: dict[int, str] = {}
        for part, pieces in zip(self.parts, self._pieces, strict=True):
            if part["type"] in ("text", "refusal"):
                texts[part["step"]] = texts.get(part["step"], "") + "".join(pieces)
        if step is not None:
            return texts.get(step, "")
        return texts[max(texts)] if texts else ""

    def message(self, run: str) -> dict[str, Any]:
        """The whole message so far, as the terminal event of ``run`` carries it: ``id``, ``text``, ``parts``."""
        parts = []
        for part, pieces in zip(self.parts, self._pieces, strict=True):
            field = "arguments" if part["type"] == "tool_call" else "text"
            parts.append({**part, field: "".join(pieces)})
        return {"id": message_id(run, self.step), "text": self.text(), "parts": parts}


_TEXTS = frozenset({"text.delta", "refusal.delta", "thinking.delta"})


def fold(events: Iterable[Event]) -> Transcript:
    """The transcript of ``events``, which are of one run and in order."""
    transcript = Transcript()
    for event in events:
        transcript.apply(event.type, event.data)
    return transcript


class Recorder:
    """Turns what an agent yields into drafts, and keeps the run's transcript.

    Args:
        run: its id.
        earlier: what earlier attempts of the run left; this attempt begins a new step after it, unless ``resumed``.
        resumed: the agent goes on in the middle of the text that the earlier attempt left.
        max_event_bytes: bound of one event's data; a longer text is split, anything else raises ``TooLarge``.
        max_run_characters: bound of the whole message.
    """

    def __init__(
        self,
        run: str,
        *,
        earlier: Transcript | None = None,
        resumed: bool = False,
        max_event_bytes: int = 262_144,
        max_run_characters: int = 4_194_304,
    ) -> None:
        self.transcript = earlier or Transcript()
        self.usage: Usage | None = None
        self._finished = ""
        self._run = run
        self._max_event_bytes = max_event_bytes
        self._max_run_characters = max_run_characters
        self._ids: dict[str, str] = {}  # the agent's id of a call -> its id in the log
        if resumed:
            self._ids = {part["id"]: part["id"] for part in self.transcript.parts if part["type"] == "tool_call"}
        elif self.transcript.parts:
            self.transcript.answered = True

    @property
    def finish_reason(self) -> str:
        """Why the answer ended: what ``Finish`` said last, else ``"refusal"`` if it ended with one, else ``"stop"``."""
        parts = self.transcript.parts
        return self._finished or ("refusal" if parts and parts[-1]["type"] == "refusal" else "stop")

    def record(self, item: object) -> list[Draft]:
        """The drafts that store ``item``; none for ``Usage``, ``Finish`` and empty text.

        Raises:
            InvalidInput: not something an agent may yield, or out of place; the text says what was expected.
            TooLarge: beyond a bound.
        """
        if isinstance(item, str):
            return self._text("text.delta", item)
        handler = _HANDLERS.get(type(item))
        if handler is None:
            raise InvalidInput(
                f"An agent may yield str, Text, Refusal, Thinking, ToolCall, ToolArguments, ToolReady, ToolStarted, "
                f"ToolResult, Usage, Finish or Checkpoint; this one yielded {type(item).__name__}."
            )
        drafts: list[Draft] = handler(self, item)
        return drafts

    def _text(self, type: str, text: str) -> list[Draft]:
        text = _storable(text)
        drafts = []
        for begin in range(0, len(text), DELTA_CHARACTERS):
            piece = text[begin : begin + DELTA_CHARACTERS]
            step = self._begin_step()
            parts = self.transcript.parts
            kind = type.partition(".")[0]
            part = len(parts) - 1
            if part < 0 or parts[part]["type"] != kind or parts[part]["step"] != step:
                part += 1
            start = self.transcript.length(part) if part < len(parts) else 0
            drafts.append(self._draft(type, {"part": part, "step": step, "start": start, "text": piece}))
        return drafts

    def _call(self, item: ToolCall) -> list[Draft]:
        step, part = self._begin_step(), len(self.transcript.parts)
        if item.id in self._ids:
            raise InvalidInput(f"Tool call {item.id!r} exists already in this run; each call needs its own id.")
        id = _storable(item.id)
        while self.transcript.call(id) is not None:  # an earlier attempt made the same call
            id = f"{id}~{part}"
        self._ids[item.id] = id
        about = {"part": part, "step": step, "id": id, "name": _storable(item.name)}
        drafts = [self._draft("tool_call.started", about)]
        if item.arguments is not None:
            drafts.append(self._draft("tool_call.completed", {**about, "arguments": _storable(item.arguments)}))
        return drafts

    def _arguments(self, item: ToolArguments) -> list[Draft]:
        about = self._about(item.id)
        if about["id"] in self.transcript.ready:
            raise InvalidInput(f"The arguments of tool call {item.id!r} are complete; no more can follow.")
        del about["name"]
        start, text = self.transcript.length(about["part"]), _storable(item.text)
        return [
            self._draft(
                "tool_call.delta",
                {**about, "start": start + begin, "arguments": text[begin : begin + DELTA_CHARACTERS]},
            )
            for begin in range(0, len(text), DELTA_CHARACTERS)
        ]

    def _ready(self, item: ToolReady | ToolStarted | ToolResult) -> list[Draft]:
        about = self._about(item.id)
        if about["id"] in self.transcript.ready:
            return []
        arguments = self.transcript.arguments(about["id"])
        return [self._draft("tool_call.completed", {**about, "arguments": arguments})]

    def _started(self, item: ToolStarted) -> list[Draft]:
        about = self._about(item.id)
        data = {"id": about["id"], "name": about["name"], "progress": _storable(item.progress)}
        return [*self._ready(item), self._draft("tool.started", data)]

    def _result(self, item: ToolResult) -> list[Draft]:
        about = self._about(item.id)
        if "success" in self.transcript.parts[about["part"]]:
            raise InvalidInput(f"Tool call {item.id!r} has its result already.")
        data = {
            "id": about["id"],
            "name": about["name"],
            "progress": _storable(item.progress),
            "success": item.success,
            "output": _output(item.output),
        }
        return [*self._ready(item), self._draft("tool.completed", data)]

    def _usage(self, item: Usage) -> list[Draft]:
        self._check_size("Usage", msgspec.structs.asdict(item))  # now, and not when the run is to end
        self.usage = item
        return []

    def _finish(self, item: Finish) -> list[Draft]:
        self._finished = _storable(item.reason)
        return []

    def _checkpoint(self, item: Checkpoint) -> list[Draft]:
        return [self._draft("agent.checkpoint", {"data": as_json("A checkpoint", item.data)})]

    def _begin_step(self) -> int:
        return self.transcript.step + self.transcript.answered

    def _about(self, id: str) -> dict[str, Any]:
        """What the events of one call have in common, by the agent's id of it."""
        part = self.transcript.call(self._ids.get(id, ""))
        if part is None:
            raise InvalidInput(f"There is no tool call {id!r} in this run; yield ToolCall(id, name) first.")
        about = self.transcript.parts[part]
        return {"part": part, "step": about["step"], "id": about["id"], "name": about["name"]}

    def _draft(self, type: str, data: dict[str, Any]) -> Draft:
        if type not in DELTAS:
            self._check_size(type, data)
        self.transcript.apply(type, data)
        if self.transcript.size > self._max_run_characters:
            raise TooLarge(
                f"The run has passed its limit of {self._max_run_characters} characters.",
                limit=self._max_run_characters,
            )
        return Draft(type=type, data=data, run=self._run)

    def _check_size(self, type: str, data: dict[str, Any]) -> None:
        try:
            size = len(msgspec.json.encode(data))
        except (TypeError, ValueError, OverflowError) as exc:
            raise InvalidInput(f"{type} must be made of JSON values: {exc}") from exc
        if size > self._max_event_bytes:
            raise TooLarge(
                f"A {type} event of {size} bytes is beyond the limit of {self._max_event_bytes}.",
                size=size,
                limit=self._max_event_bytes,
            )


_HANDLERS: dict[type, Any] = {
    Text: lambda recorder, item: recorder._text("text.delta", item.text),
    Refusal: lambda recorder, item: recorder._text("refusal.delta", item.text),
    Thinking: lambda recorder, item: recorder._text("thinking.delta", item.text),
    ToolCall: Recorder._call,
    ToolArguments: Recorder._arguments,
    ToolReady: Recorder._ready,
    ToolStarted: Recorder._started,
    ToolResult: Recorder._result,
    Usage: Recorder._usage,
    Finish: Recorder._finish,
    Checkpoint: Recorder._checkpoint,
}


def _storable(text: str) -> str:
    """``text`` with each lone surrogate replaced by U+FFFD, since UTF-8 has no place for it."""
    if not isinstance(text, str):
        raise InvalidInput(f"Expected text, got {type(text).__name__}.")
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _output(output: Any) -> Any:
    return _storable(output) if isinstance(output, str) else as_json("A tool's output", output)


_TEXT_FIELD = {**dict.fromkeys(_TEXTS, "text"), "tool_call.delta": "arguments"}


def merge(drafts: list[Draft]) -> list[Draft]:
    """``drafts`` with neighbouring deltas of one part joined, up to ``DELTA_CHARACTERS``: the same text."""
    merged: list[Draft] = []
    for draft in drafts:
        last = merged[-1] if merged else None
        field = _TEXT_FIELD.get(draft.type)
        if (
            last is not None
            and field is not None
            and last.type == draft.type
            and last.data["part"] == draft.data["part"]
            and len(last.data[field]) + len(draft.data[field]) <= DELTA_CHARACTERS
        ):
            joined = {**last.data, field: last.data[field] + draft.data[field]}
            merged[-1] = Draft(type=draft.type, data=joined, run=draft.run)
        else:
            merged.append(draft)
    return merged


def history(events: Iterable[Event]) -> list[Message]:
    """The conversation as whole messages, from a session's events (its deltas may be missing).

    In the order of the conversation: an answer stands right after its question, also when further questions were
    already waiting by then. What a rewind took back is left out.
    """
    messages: list[Message] = []
    for event in events:
        if event.type == "message.created":
            messages.append(_question(event))
        elif event.type in TERMINAL:
            for place in reversed(range(len(messages))):  # its question is among the last
                if messages[place].run == event.run:
                    messages.insert(place + 1, _answer(event))
                    break
        elif event.type == "session.rewound":
            messages = _rewound(messages, event)
    return messages


def _rewound(messages: list[Message], event: Event) -> list[Message]:
    to, until = event.data["to"], event.data.get("until", event.offset)
    if to == "":
        kept = 0
    elif (place := next((n for n, message in enumerate(messages) if message.id == to), None)) is not None:
        kept = place + 1
    else:
        return messages
    # What its author had not seen when it was written, it does not take back.
    return [*messages[:kept], *(message for message in messages[kept:] if message.offset > until)]


def asks(events: Iterable[Event], message: str) -> list[Event]:
    """Each ``message.created`` of a user's message, oldest first: more than one if it was answered anew."""
    return [
        event
        for event in events
        if event.type == "message.created" and event.data["id"] == message and event.data["role"] == "user"
    ]


def _question(event: Event) -> Message:
    data = event.data
    return Message(
        id=data["id"],
        role=data["role"],
        text=data["text"],
        parts=data.get("parts", []),
        metadata=data.get("metadata", {}),
        run=event.run,
        offset=event.offset,
        at=event.at,
    )


def _error(event: Event) -> dict[str, Any]:
    return {field: event.data[field] for field in ("code", "message") if field in event.data}


def _answer(event: Event) -> Message:
    said = event.data["message" if event.type == "run.completed" else "partial"]
    return Message(
        id=said["id"],
        role="assistant",
        text=said["text"],
        parts=said["parts"],
        run=event.run,
        offset=event.offset,
        at=event.at,
        status=event.type.partition(".")[2],
        usage=event.data.get("usage", {}),
        error=_error(event) if event.type == "run.failed" else {},
    )
