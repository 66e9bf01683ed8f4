"""Agents whose words a message decides, so that whoever reads can know what they must have said.

A message to one of them is ``AGENT NUMBER``. What it says is drawn by that text: the same at each attempt.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Sequence

from ..agent import Agent, OnCrash, Turn
from ..errors import AgentError
from ..json import JsonObject
from ..part import CallPart, Part, RefusalPart, TextPart, ThinkingPart
from ..transcript import fold
from ..yields import Refusal, Thinking, ToolArguments, ToolCall, ToolReady, ToolResult, ToolStarted

WORDS = ["Legato ", "joins ", "notes. ", "ü", "\U0001f3b6 ", "line\n", "\u2028", "x" * 40, "e\u0301 ", "<b>", "data: "]
SLOWEST = 0.4
"""Seconds between two words at most, times ``Scripts.scale``."""

ON_CRASH: dict[str, OnCrash] = {"retry": "retry", "resume": "resume", "asks": "retry"}
"""Agents that go on in another process."""
NAMES = ("plain", "tools", "retry", "resume", "asks", "notifies", "fails", "endless")

Item = str | Thinking | Refusal | ToolCall | ToolArguments | ToolReady | ToolStarted | ToolResult
Spoken = tuple[str, str]
"""A part of a message: its kind, and its text; of a call, its arguments and what came of it."""


def script(text: str) -> list[tuple[float, Item]]:
    """What the agent that is asked ``text`` says, each after a share of ``SLOWEST``."""
    draws = random.Random(f"script of {text}")  # noqa: S311
    kind = text.partition(" ")[0]
    items: list[Item] = []

    def words(most: int) -> None:
        items.extend(draws.choice(WORDS) for _ in range(draws.randint(1, most)))

    if kind != "resume" and draws.random() < 0.3:
        items += [Thinking("Hm, "), Thinking("well.")]
    words(20 if kind in ("retry", "resume") else 8)
    if kind == "tools":
        for number in range(draws.randint(1, 3)):
            id = f"c{number}"
            if draws.random() < 0.5:
                items += [ToolCall(id, "look", '{"at": 1}')]
            else:
                items += [ToolCall(id, "look"), ToolArguments(id, '{"at"'), ToolArguments(id, ": 2}"), ToolReady(id)]
            if draws.random() < 0.3:
                words(2)  # between a call and its result
            items += [ToolStarted(id), ToolResult(id, f"found {number}")]
            words(4)
    if kind == "plain" and draws.random() < 0.1:
        items.append(Refusal("I would rather not."))
    return [(draws.random() if draws.random() < 0.6 else 0.0, item) for item in items]


def expected(text: str, begin: str = "") -> list[Spoken]:
    """The parts of the whole answer to ``text``, which begins with what the agent says of its own."""
    return _parts([*([begin] if begin else []), *(item for _, item in script(text))])


def _parts(items: Sequence[Item]) -> list[Spoken]:
    parts: list[list[str]] = []
    calls: dict[str, list[str]] = {}
    answered = False
    for item in items:
        match item:
            case ToolCall():
                calls[item.id] = ["tool_call", item.arguments or ""]
                parts.append(calls[item.id])
                answered = False
            case ToolArguments():
                calls[item.id][1] += item.text
            case ToolResult():
                calls[item.id][1] += f" {item.output}"
                answered = True
            case ToolReady() | ToolStarted():
                pass
            case _:
                kind = "thinking" if isinstance(item, Thinking) else "refusal" if isinstance(item, Refusal) else "text"
                words = item if isinstance(item, str) else item.text
                if parts and parts[-1][0] == kind and not answered:
                    parts[-1][1] += words
                else:
                    parts.append([kind, words])
                answered = False
    return [(kind, words) for kind, words in parts]


def file_for(text: str) -> JsonObject:
    """What comes with a message that has a file: some bytes that its text decides, as metadata."""
    data = random.Random(f"file of {text}").randbytes(4_000)  # noqa: S311
    return {"file": f"data:image/png;base64,{base64.b64encode(data).decode()}"}


def told(parts: Sequence[Part]) -> list[Spoken]:
    """The parts of a stored message, as ``expected`` has them."""
    said: list[Spoken] = []
    for part in parts:
        match part:
            case CallPart():
                output = "" if not isinstance(part.output, str) else f" {part.output}"
                said.append(("tool_call", part.arguments + output))
            case ThinkingPart() | RefusalPart() | TextPart():
                said.append((part.type, part.text))
    return said


class Scripts:
    """The agents: ``plain`` and ``tools`` fail with their process, ``retry`` and ``resume`` go on, ``asks`` and
    ``notifies`` wait for people, ``fails`` raises, and ``endless`` ends when it is told to, with a last word.

    Args:
        scale: of all waits.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale

    def agents(self) -> dict[str, Agent]:
        """By name."""
        functions = [getattr(self, name) for name in NAMES]
        return {each.__name__: Agent(each, on_crash=ON_CRASH.get(each.__name__, "fail")) for each in functions}

    async def _say(self, turn: Turn) -> AsyncIterator[Item]:
        for wait, item in script(turn.message.text):
            if wait:
                await asyncio.sleep(wait * SLOWEST * self._scale)
            yield item

    async def plain(self, turn: Turn) -> AsyncIterator[Item]:
        """Says its words."""
        async for item in self._say(turn):
            yield item

    async def tools(self, turn: Turn) -> AsyncIterator[Item]:
        """Says them around calls of tools."""
        async for item in self._say(turn):
            yield item

    async def retry(self, turn: Turn) -> AsyncIterator[Item]:
        """Begins anew after a crash."""
        async for item in self._say(turn):
            yield item

    async def resume(self, turn: Turn) -> AsyncIterator[str]:
        """Goes on where it stopped."""
        said = len(fold(turn.events).text())
        async for item in self._say(turn):
            assert isinstance(item, str)
            if said < len(item):
                yield item[said:]
            said = max(said - len(item), 0)

    async def asks(self, turn: Turn) -> AsyncIterator[Item]:
        """Asks before it says the rest."""
        yield "May I? "
        granted = await turn.ask_permission("look", turn.message.text, timeout=40 * self._scale)
        yield "Yes. " if granted else "No. "
        async for item in self._say(turn):
            yield item

    async def notifies(self, turn: Turn) -> AsyncIterator[Item]:
        """Waits until it is told that it was heard."""
        answer = await turn.notify("Look", turn.message.text, timeout=40 * self._scale, wait=True)
        yield f"By {'nobody' if answer is None else answer.by}. "
        async for item in self._say(turn):
            yield item

    async def fails(self, turn: Turn) -> AsyncIterator[Item]:
        """Raises in the end."""
        async for item in self._say(turn):
            yield item
        raise AgentError("This one always fails.")

    async def endless(self, turn: Turn) -> AsyncIterator[str]:
        """Says the same until it is told to stop."""
        try:
            while True:
                await asyncio.sleep(SLOWEST * self._scale)
                yield "on and "
        except asyncio.CancelledError:
            yield "off."
            raise
