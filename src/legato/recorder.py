"""The way from what an agent yields to events: ``Recorder`` knows where each part of the assistant's message stands, so
that every delta can name its part and its character offset.

A plain fold, as ``Transcript`` is: no clock, no store, the same input gives the same output for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, get_args

from .check import as_amount, as_count, as_flag, as_id, as_name, as_text, as_word
from .errors import InvalidInput, TooLarge
from .event import (
    AnyFact,
    CallCompleted,
    CallDelta,
    CallStarted,
    CheckpointNoted,
    Draft,
    Fact,
    OpaqueNoted,
    RefusalDelta,
    TextDelta,
    TextPiece,
    ThinkingDelta,
    ToolBegun,
    ToolCompleted,
)
from .json import JsonObject
from .part import Opaque, Usage, as_json, encode
from .transcript import KINDS, Growing, Transcript
from .yields import (
    Checkpoint,
    Finish,
    Refusal,
    RunBy,
    Text,
    Thinking,
    ToolArguments,
    ToolCall,
    ToolReady,
    ToolResult,
    ToolStarted,
)

DELTA_CHARACTERS = 20_000
"""A longer piece of text is stored as several deltas: no frame shall pass the 128 KiB that old clients accept, and a
control character takes 6 bytes of JSON."""
OWNER_CHARACTERS = 1_000
"""Bound of the name of whom something opaque is for: an API and its address."""


logger = logging.getLogger("legato")


class Recorder:
    """Turns what an agent yields into drafts, and keeps the run's transcript.

    Args:
        run: its id.
        earlier: what earlier attempts of the run left; this attempt begins a new step after it, unless ``resumed``.
        resumed: the agent goes on in the middle of the text that the earlier attempt left.
        max_event_bytes: bound of one event's data; a longer text is split, anything else raises ``TooLarge``.
        max_run_characters: bound of the whole message.
        max_run_bytes: bound of all that the run stores before its end: of text as UTF-8, of all else as JSON.
        spent: of those, what earlier attempts have stored.
        theirs: names of the tools that the request brought: their calls are the client's to run, if nobody says else.
    """

    def __init__(
        self,
        run: str,
        *,
        earlier: Transcript | None = None,
        resumed: bool = False,
        max_event_bytes: int = 262_144,
        max_run_characters: int = 4_194_304,
        max_run_bytes: int = 33_554_432,
        spent: int = 0,
        theirs: Collection[str] = (),
    ) -> None:
        self.transcript = earlier or Transcript()
        self.usage: Usage | None = None
        self._finished = ""
        self._run = run
        self._max_event_bytes = max_event_bytes
        self._max_run_characters = max_run_characters
        self._max_run_bytes = max_run_bytes
        self._spent = spent
        self._theirs = theirs
        self._ids: dict[str, str] = {}  # the agent's id of a call -> its id in the log
        self._half: tuple[type[TextPiece], str] | None = None  # of a letter whose other half the next piece may bring
        self._halves: dict[str, str] = {}  # the same of arguments, by the call's id in the log
        if resumed:
            self._ids = {part.id: part.id for part in self.transcript.parts if part.kind == "tool_call"}
        elif self.transcript.parts:
            self.transcript.answered = True

    @property
    def spent(self) -> int:
        """Bytes that the run has stored, or is about to, with those of earlier attempts."""
        return self._spent

    @property
    def finish_reason(self) -> str:
        """Why the answer ended: what ``Finish`` said last, else ``"refusal"`` if it ended with one, else ``"stop"``."""
        parts = self.transcript.parts
        return self._finished or ("refusal" if parts and parts[-1].kind == "refusal" else "stop")

    def record(self, item: object) -> list[Draft]:
        """The drafts that store ``item``; none for ``Usage``, ``Finish`` and empty text.

        Raises:
            InvalidInput: not something an agent may yield, or out of place; the text says what was expected.
            TooLarge: beyond a bound.
        """
        if self._half is not None:
            return self._after_half(*self._half, item)
        if isinstance(item, str):
            return self._text("Text.text", TextDelta, item)
        handler = _HANDLERS.get(type(item))
        if handler is None:
            raise InvalidInput(
                f"An agent may yield str, Text, Refusal, Thinking, ToolCall, ToolArguments, ToolReady, ToolStarted, "
                f"ToolResult, Usage, Finish, Opaque or Checkpoint; this one yielded {type(item).__name__}."
            )
        return handler(self, item)

    def end(self) -> list[Draft]:
        """The drafts of what waits for more, once nothing follows: U+FFFD for half a letter."""
        if self._half is None:
            return []
        kind, self._half = self._half[0], None
        return self._text("text", kind, "\ufffd")

    def _after_half(self, kind: type[TextPiece], half: str, item: object) -> list[Draft]:
        """Take what follows the first half of a letter: some cut text between the two, as UTF-16 lets them."""
        text = item if isinstance(item, str) else getattr(item, "text", None)
        if _TEXTS.get(str if isinstance(item, str) else type(item)) is not kind or not isinstance(text, str):
            return [*self.end(), *self.record(item)]
        self._half = None
        return self._text("text", kind, half + str.__str__(text))

    def spend(self, size: int) -> None:
        """Count so many bytes that are about to be stored for the run.

        Raises:
            TooLarge: they are more than it has left.
        """
        self._spent += size
        if self._spent > self._max_run_bytes:
            limit = self._max_run_bytes
            error = TooLarge(
                f"The run has passed its limit of {limit} bytes in all that it stores.", bound="run_bytes", limit=limit
            )
            error.code = "too_many_bytes"
            raise error

    def _text(self, name: str, kind: type[TextPiece], text: str) -> list[Draft]:
        # As few calls as there can be: nearly all that agents yield comes this way.
        if type(text) is str and text.isascii():
            size = len(text)
        else:
            if type(text) is str and "\ud800" <= text[-1:] <= "\udbff":
                self._half = (kind, text[-1])
                text = text[:-1]
            text = as_text(name, text)
            size = len(text.encode())
        if not size:
            return []
        if size > DELTA_CHARACTERS and len(text) > DELTA_CHARACTERS:
            pieces = [text[begin : begin + DELTA_CHARACTERS] for begin in range(0, len(text), DELTA_CHARACTERS)]
            return [draft for piece in pieces for draft in self._text(name, kind, piece)]
        self._spent += size
        if self._spent > self._max_run_bytes:
            self.spend(0)  # which says so
        transcript = self.transcript
        step, parts = transcript.step + transcript.answered, transcript.parts
        if parts and (last := parts[-1]).step == step and last.kind == KINDS[kind]:
            piece = kind(len(parts) - 1, step, last.length, text)
            transcript.size += last.add(last.length, text)
        else:
            piece = kind(len(parts), step, 0, text)
            transcript.say(piece)
        if transcript.size > self._max_run_characters:
            raise self._too_many_characters()
        return [Draft(piece, self._run)]

    def _call(self, item: ToolCall) -> list[Draft]:
        step, part = self.transcript.step + self.transcript.answered, len(self.transcript.parts)
        id = own = as_id("ToolCall.id", item.id)
        name = as_name("ToolCall.name", item.name)
        arguments = None if item.arguments is None else as_text("ToolCall.arguments", item.arguments)
        by = "client" if name in self._theirs else "server"
        by = by if item.by is None else as_word("ToolCall.by", item.by, get_args(RunBy))
        if own in self._ids:
            raise InvalidInput(f"Tool call {own!r} exists already in this run; each call needs its own id.")
        while self.transcript.call(id) is not None:  # an earlier attempt made the same call
            id = f"{id}~{part}"
        self._ids[own] = id
        drafts = [self._draft(CallStarted(part, step, id, name, by))]
        if arguments is not None:
            drafts.append(self._draft(CallCompleted(part, step, id, name, arguments)))
        return drafts

    def _arguments(self, item: ToolArguments) -> list[Draft]:
        place, part = self._find(item)
        text = item.text
        if type(text) is str and not (text.isascii() and not self._halves):
            text = self._halves.pop(part.id, "") + text
            if "\ud800" <= text[-1:] <= "\udbff":
                self._halves[part.id] = text[-1]
                text = text[:-1]
        text = as_text("ToolArguments.text", text)
        if part.ready:
            raise InvalidInput(f"The arguments of tool call {item.id!r} are complete; no more can follow.")
        start = part.length
        return [
            self._draft(CallDelta(place, part.step, part.id, start + begin, text[begin : begin + DELTA_CHARACTERS]))
            for begin in range(0, len(text), DELTA_CHARACTERS)
        ]

    def _ready(self, item: ToolReady | ToolStarted | ToolResult) -> list[Draft]:
        place, part = self._find(item)
        if part.ready:
            return []
        cut = self._arguments(ToolArguments(item.id, "\ufffd")) if self._halves.pop(part.id, "") else []
        return [*cut, self._draft(CallCompleted(place, part.step, part.id, part.name, part.text))]

    def _started(self, item: ToolStarted) -> list[Draft]:
        _, part = self._find(item)
        progress = as_text("ToolStarted.progress", item.progress)
        return [*self._ready(item), self._draft(ToolBegun(part.id, part.name, progress))]

    def _result(self, item: ToolResult) -> list[Draft]:
        _, part = self._find(item)
        success = as_flag("ToolResult.success", item.success)
        progress, output = as_text("ToolResult.progress", item.progress), _output(item.output)
        if part.done:
            raise InvalidInput(f"Tool call {item.id!r} has its result already.")
        return [
            *self._ready(item),
            self._draft(ToolCompleted(part.id, part.name, progress, success, output)),
        ]

    def _usage(self, item: Usage) -> list[Draft]:
        self.usage = checked_usage(item)
        return []

    def _finish(self, item: Finish) -> list[Draft]:
        self._finished = as_name("Finish.reason", item.reason)
        return []

    def _checkpoint(self, item: Checkpoint) -> list[Draft]:
        return [self._draft(CheckpointNoted(as_json("Checkpoint.data", item.data)))]

    def _opaque(self, item: Opaque) -> list[Draft]:
        transcript = self.transcript
        owner = as_text("Opaque.owner", item.owner, OWNER_CHARACTERS)
        if not owner:
            raise InvalidInput("Opaque.owner says for whom it is; got an empty text.")
        noted = OpaqueNoted(
            len(transcript.opaque),
            transcript.step + transcript.answered,
            owner,
            as_json("Opaque.data", item.data),
        )
        try:
            self._checked_size(noted)
        except TooLarge as exc:  # the answer is worth more than what it would help the next one
            logger.warning("run %s: what the model's provider wants back is left out: %s", self._run, exc)
            return []
        return [self._draft(noted)]

    def _find(self, item: ToolArguments | ToolReady | ToolStarted | ToolResult) -> tuple[int, Growing]:
        """The part of a call, by the agent's id of it, and its number."""
        id = as_id(f"{type(item).__name__}.id", item.id)
        place = self.transcript.call(self._ids.get(id, ""))
        if place is None:
            raise InvalidInput(f"There is no tool call {id!r} in this run; yield ToolCall(id, name) first.")
        return place, self.transcript.parts[place]

    def _draft(self, fact: Fact) -> Draft:
        if isinstance(fact, CallDelta):
            self.spend(len(fact.arguments.encode()))
        else:
            self.spend(self._checked_size(fact))
        self.transcript.apply(fact)
        if self.transcript.size > self._max_run_characters:
            raise self._too_many_characters()
        return Draft(fact, self._run)

    def _too_many_characters(self) -> TooLarge:
        limit = self._max_run_characters
        return TooLarge(f"The run has passed its limit of {limit} characters.", bound="run_characters", limit=limit)

    def _checked_size(self, fact: Fact) -> int:
        size = len(encode(fact))
        if size > self._max_event_bytes:
            raise TooLarge(
                f"A {fact.type} event of {size} bytes is beyond the limit of {self._max_event_bytes}.",
                bound="event_bytes",
                size=size,
                limit=self._max_event_bytes,
            )
        return size


_TEXTS: dict[type, type[TextPiece]] = {
    str: TextDelta,
    Text: TextDelta,
    Refusal: RefusalDelta,
    Thinking: ThinkingDelta,
}

_HANDLERS: dict[type, Callable[[Recorder, Any], list[Draft]]] = {
    Text: lambda recorder, item: recorder._text("Text.text", TextDelta, item.text),
    Refusal: lambda recorder, item: recorder._text("Refusal.text", RefusalDelta, item.text),
    Thinking: lambda recorder, item: recorder._text("Thinking.text", ThinkingDelta, item.text),
    ToolCall: Recorder._call,
    ToolArguments: Recorder._arguments,
    ToolReady: Recorder._ready,
    ToolStarted: Recorder._started,
    ToolResult: Recorder._result,
    Usage: Recorder._usage,
    Finish: Recorder._finish,
    Checkpoint: Recorder._checkpoint,
    Opaque: Recorder._opaque,
}


def brought(metadata: JsonObject) -> frozenset[str]:
    """Names of the tools that the sender of a message runs itself: the functions among its ``tools``, in any form."""
    tools = metadata.get("tools")
    names: set[str] = set()
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type", "function") if isinstance(tool, dict) else None
        if kind in ("function", "custom"):  # all other kinds are the provider's own
            nested = tool.get(kind)
            name = (nested if isinstance(nested, dict) else tool).get("name")
            names |= {name} if isinstance(name, str) else set()
    return frozenset(names)


def checked_usage(usage: Usage) -> Usage:
    """``usage`` as it can be stored and added up: what is not known is 0, or an empty name.

    Raises:
        InvalidInput, TooLarge: a field is none of that; the text names it.
    """
    return Usage(
        as_count("Usage.input_tokens", usage.input_tokens),
        as_count("Usage.output_tokens", usage.output_tokens),
        as_count("Usage.cached_tokens", usage.cached_tokens),
        as_count("Usage.reasoning_tokens", usage.reasoning_tokens),
        as_amount("Usage.cost", usage.cost),
        "" if usage.model is None else as_name("Usage.model", usage.model),
    )


def _output(output: object) -> object:
    return as_text("ToolResult.output", output) if isinstance(output, str) else as_json("ToolResult.output", output)


def merge(drafts: list[Draft]) -> list[Draft]:
    """``drafts`` with neighbouring deltas of one part joined, up to ``DELTA_CHARACTERS``: the same text."""
    if (whole := _one_text(drafts)) is not None:
        return [whole]
    merged: list[Draft] = []
    for draft in drafts:
        joined = _joined(merged[-1].fact, draft.fact) if merged else None
        if joined is None:
            merged.append(draft)
        else:
            merged[-1] = Draft(joined, draft.run)
    return merged


def _one_text(drafts: list[Draft]) -> Draft | None:
    """All of them as one, if they are pieces of one text, as what a run gathers mostly is."""
    pieces: list[Any] = [draft.fact for draft in drafts]
    if not pieces or (kind := type(first := pieces[0])) not in KINDS:
        return None
    for piece in pieces:
        if type(piece) is not kind or piece.part != first.part:
            return None
    text = "".join([piece.text for piece in pieces])
    if len(text) > DELTA_CHARACTERS:
        return None
    return Draft(kind(first.part, first.step, first.start, text), drafts[0].run)


def _joined(one: AnyFact, two: AnyFact) -> Fact | None:
    """Two deltas as one, if the second goes on where the first ends, and they are not too long together."""
    if isinstance(one, TextPiece) and isinstance(two, TextPiece) and type(one) is type(two):
        if one.part == two.part and len(one.text) + len(two.text) <= DELTA_CHARACTERS:
            return type(one)(one.part, one.step, one.start, one.text + two.text)
    elif (
        isinstance(one, CallDelta)
        and isinstance(two, CallDelta)
        and one.part == two.part
        and len(one.arguments) + len(two.arguments) <= DELTA_CHARACTERS
    ):
        return CallDelta(one.part, one.step, one.id, one.start, one.arguments + two.arguments)
    return None
