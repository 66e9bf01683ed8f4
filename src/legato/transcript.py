"""The assistant's message, as a fold of its run's events. ``recorder`` has the way back, from what an agent yields.

It serves the terminal event, the recovery after a crash, and every dialect that needs a whole message. A plain fold: no
clock, no store, the same input gives the same output for ever.

A *part* is a stretch of one kind (thinking, text, refusal, one tool call), numbered from 0 in its run. A *step* is one
message of the model, numbered from 1: what the model says after tool results belongs to the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from .event import (
    AnyFact,
    CallCompleted,
    CallDelta,
    CallStarted,
    Event,
    OpaqueNoted,
    RefusalDelta,
    Said,
    TextDelta,
    TextPiece,
    ThinkingDelta,
    ToolCompleted,
)
from .part import CallPart, Opaque, Part, RefusalPart, TextPart, ThinkingPart, encode


def message_id(run: str, step: int) -> str:
    """The id of the assistant's message of ``step`` in ``run``."""
    return f"{run}~a{step}"


class Growing:
    """A part that may not be over yet.

    Attributes:
        kind: ``thinking``, ``text``, ``refusal`` or ``tool_call``.
        id, name, ready: of a call; it is ready when its arguments are whole.
        length: characters of text, or of arguments.
        by: who runs a call.
        success, output: of a call, once something came of it.
    """

    __slots__ = ("_text", "by", "id", "kind", "length", "name", "output", "ready", "step", "success")

    def __init__(self, kind: Kind, step: int, *, id: str = "", name: str = "", by: str | None = None) -> None:
        self.kind = kind
        self.step = step
        self.id = id
        self.name = name
        self.by = by
        self.ready = False
        self.length = 0
        self._text = bytearray()  # grows in place, and holds nothing beside the text; joined strings would not
        self.success: bool | UnsetType = UNSET
        self.output: Any = UNSET

    @property
    def text(self) -> str:
        """The text, or the JSON text of the arguments, so far."""
        return self._text.decode("utf-8", "surrogatepass")

    def add(self, start: int, text: str) -> int:
        """Go on with a text that stands at ``start``, and count the characters of it that are new."""
        if start < self.length:  # added before; a delta names its place so that this does no harm (R7)
            text = text[self.length - start :]
        self._text += text.encode("utf-8", "surrogatepass")
        self.length += len(text)
        return len(text)

    def end(self, text: str) -> int:
        """Be ``text``, which is whole, and count the characters by which it is longer than what was there."""
        before, self.length = self.length, 0
        self._text.clear()
        self.ready = True
        return self.add(0, text) - before

    @property
    def done(self) -> bool:
        """Whether something came of the call."""
        return self.success is not UNSET

    def part(self) -> Part:
        """It, as far as it came."""
        if self.kind == "tool_call":
            return CallPart(self.step, self.id, self.name, self.text, self.success, self.output, self.by)
        return _PARTS[self.kind](self.step, self.text)


Kind = Literal["thinking", "text", "refusal", "tool_call"]
_PARTS: dict[str, type[TextPart | ThinkingPart | RefusalPart]] = {
    "thinking": ThinkingPart,
    "text": TextPart,
    "refusal": RefusalPart,
}
KINDS: dict[type[TextPiece], Kind] = {ThinkingDelta: "thinking", TextDelta: "text", RefusalDelta: "refusal"}


class Transcript:
    """What the assistant has said in one run so far.

    Attributes:
        parts: in order.
        opaque: what providers want back with it, in order.
        step: the number of the model's present message, from 1.
        size: characters of text, refusals, thinking, arguments, output and what is opaque so far.
        answered: whether a tool has reported since the model last spoke; what it says next is a new step.
    """

    def __init__(self) -> None:
        self.parts: list[Growing] = []
        self.opaque: list[Opaque] = []
        self.step = 1
        self.size = 0
        self._calls: dict[str, int] = {}
        self.answered = False

    def call(self, id: str) -> int | None:
        """The part of the tool call ``id``, or None if there is no such call."""
        return self._calls.get(id)

    def apply(self, fact: AnyFact) -> None:
        """Add one fact of the run; once more does no harm. Those that add nothing to the message are ignored."""
        match fact:
            case ThinkingDelta() | TextDelta() | RefusalDelta():
                self.say(fact)
            case CallStarted() if fact.id not in self._calls:
                self._calls[fact.id] = fact.part
                self._open(Growing("tool_call", fact.step, id=fact.id, name=fact.name, by=fact.by))
            case CallDelta():
                self.size += self.parts[fact.part].add(fact.start, fact.arguments)
            case CallCompleted():
                self.size += self.parts[fact.part].end(fact.arguments)
            case ToolCompleted():
                part = self.parts[self._calls[fact.id]]
                if not part.done:
                    part.success, part.output = fact.success, fact.output
                    self.size += len(fact.output) if isinstance(fact.output, str) else len(encode(fact.output))
                    self.answered = True
            case OpaqueNoted() if fact.owner and fact.place == len(self.opaque):  # a reader's log has nobody's
                self.opaque.append(Opaque(fact.owner, fact.data, fact.step))
                self.size += len(encode(fact.data))

    def say(self, fact: TextPiece) -> None:
        """``apply`` one that is a piece of text, as nearly all are."""
        if fact.part == len(self.parts):
            self._open(Growing(KINDS[type(fact)], fact.step))
        self.size += self.parts[fact.part].add(fact.start, fact.text)

    def _open(self, part: Growing) -> None:
        self.step = part.step
        self.answered = False
        self.parts.append(part)

    def text(self, step: int | None = None) -> str:
        """The text of one step, or of the last that has any. What a refusal says is text here."""
        texts: dict[int, str] = {}
        for part in self.parts:
            if part.kind in ("text", "refusal"):
                texts[part.step] = texts.get(part.step, "") + part.text
        if step is not None:
            return texts.get(step, "")
        return texts[max(texts)] if texts else ""

    def message(self, run: str) -> Said:
        """The whole message so far, as the terminal event of ``run`` carries it."""
        return Said(message_id(run, self.step), self.text(), [part.part() for part in self.parts], [*self.opaque])


def fold(events: Iterable[Event]) -> Transcript:
    """The transcript of ``events``, which are of one run and in order."""
    transcript = Transcript()
    for event in events:
        transcript.apply(event.fact)
    return transcript
