"""What a model's answer is made of: ``StreamChunk`` while it comes, ``ChatResult`` when it is there. No I/O.

``Tally`` turns the one into the other: each wire's fold tells it what came, and it makes the chunk and keeps the sum,
so the partial result that an error carries is always exactly what the chunks before it said.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from ..check import Halves, whole
from ..json import JsonObject

__all__ = [
    "ChatResult",
    "StreamChunk",
    "Tagged",
    "Tally",
    "TokenUsage",
    "ToolCall",
    "ToolCallDelta",
    "ToolOutput",
    "count",
    "spent",
]


class TokenUsage(msgspec.Struct, frozen=True, gc=False):
    """What an answer cost, in tokens.

    Attributes:
        input_tokens: all that was read, cached ones included.
        output_tokens: all that was written, thinking included.
        total_tokens: the sum of both.
        cached_tokens: the part of the input that came from the provider's cache.
        reasoning_tokens: the part of the output that was thinking, where the provider says it.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


MOST: Final = 2**53 - 1


def spent(
    read: object, written: object, total: object = None, cached: object = None, thought: object = None
) -> TokenUsage:
    """What an answer cost, from numbers of which each may be missing, or be none."""
    counts = [count(each) for each in (read, written, total, cached, thought)]
    counts[2] = counts[2] or counts[0] + counts[1]
    return TokenUsage(*counts)


def count(value: object) -> int:
    """A number of tokens; 0 when it is none."""
    if isinstance(value, str | float):
        try:
            value = float(value)
            value = int(value) if value == value and abs(value) <= MOST else 0
        except ValueError:
            return 0
    return min(max(value, 0), MOST) if isinstance(value, int) and not isinstance(value, bool) else 0


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of a tool call.

    Attributes:
        index: which call of the answer, from 0 in the order in which they began; pieces of several may alternate.
        id: the call's id, in its first piece; None in the others.
        name: the tool's name, in the first piece; "" in the others.
        arguments: a piece of the arguments' JSON text.
        hosted: in the first piece, whether the provider makes the call itself.
    """

    index: int
    id: str | None = None
    name: str = ""
    arguments: str = ""
    hosted: bool = False


class ToolOutput(msgspec.Struct, frozen=True, gc=False):
    """What came of a tool call that the provider has made itself, as a Legato server does for its agents.

    Attributes:
        index: which call of the answer.
        output: what the tool gave, as text; or why it gave nothing.
        success: whether it could do what was asked.
    """

    index: int
    output: str
    success: bool = True


class ToolCall(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """A tool call as far as it came.

    Attributes:
        id: what the tool's answer refers to.
        name: the tool.
        arguments: JSON text; of a call that was cut, its beginning.
        output: what the tool gave, if the provider has made the call; None: it is the caller's to make.
        success: of such an output.
        hosted: it is the provider's to make, whether or not there is an output.
    """

    id: str
    name: str
    arguments: str = ""
    output: str | None = None
    success: bool = True
    hosted: bool = False


class StreamChunk(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One step of an answer.

    Attributes:
        delta: a piece of the text; "" when the step is of another kind.
        thinking: a piece of the model's thinking.
        tool_call_delta: a piece of a tool call.
        usage: what the answer cost; the last one that comes counts.
        refusal: a piece of the text with which the model declines to answer.
        finish_reason: why the answer ended, in its last step: ``"stop"``, ``"tool_calls"`` or the provider's own word.
        tool_output: what came of a call that the provider has made itself.
        id: the provider's id of the answer, alone in the first step of one that is written in the background: what to
            keep so that it can be continued.
    """

    delta: str = ""
    thinking: str = ""
    tool_call_delta: ToolCallDelta | None = None
    usage: TokenUsage | None = None
    refusal: str = ""
    finish_reason: str | None = None
    tool_output: ToolOutput | None = None
    id: str | None = None


class ChatResult(msgspec.Struct, frozen=True, omit_defaults=True, repr_omit_defaults=True):
    """An answer, whole or as far as it came.

    Attributes:
        text: all text.
        thinking: all thinking; parts are separated by a blank line.
        tool_calls: in the order in which they began; the place is the ``index`` of their pieces.
        usage: what it cost; None when the provider did not say.
        refusal: the text with which the model declined; "" when it did not.
        finish_reason: ``"stop"``, ``"tool_calls"``, ``"length"``, ``"content_filter"`` or the provider's own word; None
            when the answer did not come to an end.
        id: the provider's id of this answer; None before it is known.
        model: the model that answered, as the provider calls it.
        content: what the provider wants back, in its own form, to go on with an answer that it has paused
            (``finish_reason`` is ``"pause_turn"``); None of all others.
        opaque: what the provider wants back with this answer in the next request, as pieces: see ``last_pass``.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: TokenUsage | None = None
    refusal: str = ""
    finish_reason: str | None = None
    id: str | None = None
    model: str | None = None
    content: tuple[JsonObject, ...] | None = None
    opaque: tuple[JsonObject, ...] = ()


class Tagged:
    """Text that begins with thinking between tags, as open models write it where their server leaves it so.

    Args:
        tag: the name: ``think`` for ``<think>`` and ``</think>``.
    """

    def __init__(self, tag: str) -> None:
        self._open, self._close = f"<{tag}>", f"</{tag}>"
        self._state: Literal["before", "thinking", "behind", "over"] = "before"
        self._held = ""

    def split(self, text: str) -> tuple[str, str]:
        """What of a further piece is thinking, and what is text; what may be a tag waits for the next piece."""
        if self._state == "over":
            return "", text
        text, self._held = self._held + text, ""
        thought = ""
        if self._state == "before":
            bare = text.lstrip()
            if not bare.startswith(self._open):
                if self._open.startswith(bare):
                    self._held = text
                    return "", ""
                self._state = "over"
                return "", text
            self._state, text = "thinking", bare.removeprefix(self._open)
        if self._state == "thinking":
            thought, close, text = text.partition(self._close)
            if not close:
                held = next(
                    (n for n in range(min(len(self._close) - 1, len(thought)), 0, -1)
                     if thought.endswith(self._close[:n])), 0
                )  # fmt: skip
                self._held = thought[len(thought) - held :]
                return thought[: len(thought) - held], ""
            self._state = "behind"
        text = text.lstrip()  # the blank line behind the tag
        if text:
            self._state = "over"
        return thought, text

    def end(self) -> tuple[str, str]:
        """What still waits: no tag."""
        held, self._held = self._held, ""
        return (held, "") if self._state == "thinking" else ("", held)


class Tally:
    """The sum of an answer's pieces.

    Attributes:
        id: see ``ChatResult``; so are ``model``, ``usage``, ``finish_reason``, ``content`` and ``opaque``.
        tagged: what tells thinking from text by tags; None leaves tags in the text.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.usage: TokenUsage | None = None
        self.finish_reason: str | None = None
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._hosted: set[int] = set()  # calls that the provider makes
        self._outputs: dict[int, tuple[str, bool]] = {}  # what came of them, and whether it is what was asked for
        self._halves: dict[object, Halves] = {}  # by kind, or by index of a call
        self.content: tuple[JsonObject, ...] | None = None
        self.opaque: tuple[JsonObject, ...] = ()
        self.tagged: Tagged | None = None

    @property
    def calls(self) -> int:
        """How many tool calls have begun."""
        return len(self._calls)

    @property
    def thought(self) -> bool:
        """Whether there has been any thinking."""
        return bool(self._thinking)

    @property
    def thinking(self) -> str:
        """All of it."""
        return "".join(self._thinking)

    @property
    def spoken(self) -> bool:
        """Whether there has been any text, or a refusal."""
        return bool(self._text or self._refusal)

    def _whole(self, kind: object, delta: str) -> str:
        """The piece without half letters: a first half waits for the piece with the other one."""
        if delta.isascii() and not self._halves:
            return delta
        halves = self._halves.get(kind)
        if halves is None:
            if not "\ud800" <= delta[-1:] <= "\udbff":
                return whole(delta)
            halves = self._halves[kind] = Halves()
        return halves.join(delta)

    def text(self, delta: str) -> list[StreamChunk]:
        """Take a piece of text; the empty one is no step."""
        if self.tagged is not None:
            thought, delta = self.tagged.split(delta)
            if thought:
                return self.think(thought) + self._say(delta)
        elif delta and not self._halves and delta.isascii():  # as nearly all are
            self._text.append(delta)
            return [StreamChunk(delta)]
        return self._say(delta)

    def _say(self, delta: str) -> list[StreamChunk]:
        delta = self._whole("text", delta)
        if not delta:
            return []
        self._text.append(delta)
        return [StreamChunk(delta)]

    def think(self, delta: str) -> list[StreamChunk]:
        """Take a piece of thinking."""
        delta = self._whole("thinking", delta)
        if not delta:
            return []
        self._thinking.append(delta)
        return [StreamChunk(thinking=delta)]

    def refuse(self, delta: str) -> list[StreamChunk]:
        """Take a piece of a refusal."""
        delta = self._whole("refusal", delta)
        if not delta:
            return []
        self._refusal.append(delta)
        return [StreamChunk(refusal=delta)]

    def begin_call(self, id: str, name: str, arguments: str = "", *, hosted: bool = False) -> list[StreamChunk]:
        """Take the beginning of a tool call; its index is the number of calls before it."""
        index = len(self._calls)
        id, name, arguments = whole(id), whole(name), self._whole(index, arguments)
        self._calls.append((id, name, [arguments]))
        self._hosted |= {index} if hosted else set()
        return [StreamChunk(tool_call_delta=ToolCallDelta(index, id, name, arguments, hosted))]

    def add_arguments(self, index: int, arguments: str) -> list[StreamChunk]:
        """Take a piece of the arguments of a call that has begun."""
        arguments = self._whole(index, arguments)
        if not arguments:
            return []
        self._calls[index][2].append(arguments)
        return [StreamChunk(tool_call_delta=ToolCallDelta(index, arguments=arguments))]

    def given(self, index: int) -> tuple[str, str]:
        """Id and name of a call."""
        id, name, _ = self._calls[index]
        return id, name

    def arguments(self, index: int) -> str:
        """The arguments of a call so far."""
        return "".join(self._calls[index][2])

    def answer_call(self, id: str, output: str) -> list[StreamChunk]:
        """Take what came of a call that the provider has made itself, once; nothing if no call has that id."""
        index = next((place for place, call in enumerate(self._calls) if call[0] == id), None)
        return [] if index is None else self.answer(index, output)

    def answer(self, index: int, output: str, *, success: bool = True) -> list[StreamChunk]:
        """Take what came of a call that has begun, and that the provider has made itself; once."""
        if index in self._outputs:
            return []
        self._outputs[index] = whole(output), success
        return [StreamChunk(tool_output=ToolOutput(index, whole(output), success))]

    def hosted(self, id: str) -> int | None:
        """The last call of this id that the provider makes itself; None if there is none."""
        return next((index for index in sorted(self._hosted, reverse=True) if self._calls[index][0] == id), None)

    @property
    def unanswered(self) -> bool:
        """Whether a tool call is left to the caller."""
        return len(self._hosted | self._outputs.keys()) < len(self._calls)

    def end(self, usage: TokenUsage | None, finish_reason: str | None) -> list[StreamChunk]:
        """Take the usage or the reason of the end; None for what is not known, or known before."""
        self.usage = usage or self.usage
        self.finish_reason = finish_reason or self.finish_reason
        if usage is None and finish_reason is None:
            return []
        chunks = [] if finish_reason is None else self._last_words()
        return [*chunks, StreamChunk(usage=usage, finish_reason=finish_reason)]

    def _last_words(self) -> list[StreamChunk]:
        """What still waits for its other half, or the rest of a tag, which do not come any more."""
        chunks = []
        if self.tagged is not None:
            thought, text = self.tagged.end()
            chunks += self.think(thought) + self._say(text)
        for kind, halves in self._halves.items():
            if half := halves.end():
                match kind:
                    case int():
                        chunks += self.add_arguments(kind, half)
                    case "text":
                        chunks += self._say(half)
                    case "thinking":
                        chunks += self.think(half)
                    case _:
                        chunks += self.refuse(half)
        return chunks

    def result(self) -> ChatResult:
        """The sum so far."""
        return ChatResult(
            text="".join(self._text),
            thinking="".join(self._thinking),
            tool_calls=tuple(
                ToolCall(id, name, "".join(pieces), output, success, index in self._hosted)
                for index, (id, name, pieces) in enumerate(self._calls)
                for output, success in [self._outputs.get(index, (None, True))]
            ),
            usage=self.usage,
            refusal="".join(self._refusal),
            finish_reason=self.finish_reason,
            id=self.id,
            model=self.model,
            content=self.content,
            opaque=self.opaque,
        )
