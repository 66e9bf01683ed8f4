"""The model that all frameworks are tested with: what the user wrote says what it answers.

It knows no framework. Each ``agent_*.py`` beside it turns what its framework gives a model into ``Seen``, and the
pieces that come from here into its framework's own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

PACE = float(os.environ.get("PACE", "0.02"))
"""Seconds between two words of a slow answer: slow enough that a reader can act in between, whatever the machine."""
SECRET = "the password is swordfish"


@dataclasses.dataclass
class Think:
    """A piece of the model's reasoning."""

    text: str


@dataclasses.dataclass
class Say:
    """A piece of its answer."""

    text: str


@dataclasses.dataclass
class Call:
    """The beginning of a tool call; ``place`` tells parallel ones apart."""

    place: int
    id: str
    name: str


@dataclasses.dataclass
class Arguments:
    """A piece of a call's arguments."""

    place: int
    text: str


@dataclasses.dataclass
class End:
    """The end of one answer of the model."""

    reason: str = "stop"
    input_tokens: int = 10
    output_tokens: int = 5
    reasoning_tokens: int = 1
    cached_tokens: int = 2


@dataclasses.dataclass
class Seen:
    """What a model was given: all lines, the last that the user wrote, and the number of tool results after it."""

    lines: list[str] = dataclasses.field(default_factory=list)
    user: str = ""
    results: int = 0

    def add(self, kind: str, text: str) -> None:
        self.lines.append(f"{kind}: {text}")
        if kind == "user":
            self.user, self.results = text, 0
        elif kind == "result":
            self.results += 1


class Busy(Exception):
    """Stands for the framework's own error for a rate limit."""


def note(text: str) -> None:
    """Leave a line where the test finds it, in a file that outlives the process."""
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(f"{text}\n")


async def answer(seen: Seen) -> AsyncIterator[object]:
    """One answer of the model; the last piece is ``End``, unless it fails."""
    part = PARTS.get(seen.user.partition(" ")[0], hello)
    try:
        async for piece in part(seen):
            yield piece
    finally:
        note(f"closed {seen.user} {seen.results}")


async def hello(seen: Seen) -> AsyncIterator[object]:
    for piece in (Think("Hm, "), Think("hello."), Say("Hello, "), Say("world."), End()):
        yield piece


async def tools(seen: Seen) -> AsyncIterator[object]:
    """Two calls at once, their arguments in pieces; one of the tools fails."""
    if seen.results:
        yield Say("It is ")
        yield Say("3.")
        yield End()
        return
    yield Think("I add.")
    yield Say("Let me see. ")
    yield Call(0, "call_1", "add")
    yield Arguments(0, '{"a":1')
    yield Arguments(0, ',"b":2}')
    yield Call(1, "call_2", "broken")
    yield Arguments(1, '{"what":"it"}')
    yield End("tool_calls")


async def twice(seen: Seen) -> AsyncIterator[object]:
    """Two steps with a call each, which has the same id in both, as some local servers give them."""
    if seen.results == 2:
        yield Say("Done.")
        yield End()
        return
    yield Call(0, f"call_{seen.user.partition(' ')[2] or seen.results}", "add")
    yield Arguments(0, f'{{"a":{seen.results},"b":1}}')
    yield End("tool_calls")


async def danger(seen: Seen) -> AsyncIterator[object]:
    """A call of a tool that needs the user's permission, beside one that does not."""
    if seen.results:
        yield Say(f"So: {seen.lines[-1]}")
        yield End()
        return
    yield Call(0, "call_1", "add")
    yield Arguments(0, '{"a":1,"b":2}')
    yield Call(1, "call_2", "shell")
    yield Arguments(1, '{"command":"rm -r /"}')
    yield End("tool_calls")


async def recall(seen: Seen) -> AsyncIterator[object]:
    """Tells all that the model was given."""
    yield Say("\n".join(seen.lines))
    yield End()


async def slow(seen: Seen) -> AsyncIterator[object]:
    """Speaks until it is stopped."""
    while True:
        yield Say("on and ")
        await asyncio.sleep(PACE)


async def steps(seen: Seen) -> AsyncIterator[object]:
    """A call, and then an answer that takes its time."""
    if not seen.results:
        yield Call(0, "call_1", "add")
        yield Arguments(0, '{"a":1,"b":2}')
        yield End("tool_calls")
        return
    for number in range(40):
        yield Say(f"{number} ")
        await asyncio.sleep(PACE)
    yield End()


async def city(seen: Seen) -> AsyncIterator[object]:
    """A structured answer, as the arguments of the tool by which pydantic-ai takes it."""
    yield Call(0, "call_1", "final_result")
    yield Arguments(0, '{"name":"Rome",')
    yield Arguments(0, '"people":3}')
    yield End("tool_calls")


async def json(seen: Seen) -> AsyncIterator[object]:
    """A structured answer as text."""
    yield Say('{"name":"Rome",')
    yield Say('"people":3}')
    yield End()


async def who(seen: Seen) -> AsyncIterator[object]:
    """Asks a tool that looks into what the server knows."""
    if seen.results:
        yield Say(f"You are {seen.lines[-1].removeprefix('result: ')}.")
        yield End()
        return
    yield Call(0, "call_1", "whoami")
    yield Arguments(0, "{}")
    yield End("tool_calls")


async def transfer(seen: Seen) -> AsyncIterator[object]:
    """Hands over to another agent."""
    if seen.results:
        yield Say(f"I am the specialist. {seen.lines[0]}")
        yield End()
        return
    yield Call(0, "call_1", "transfer_to_specialist")
    yield Arguments(0, "{}")
    yield End("tool_calls")


async def words(seen: Seen) -> AsyncIterator[object]:
    """A word, several times, so that models beside each other speak at the same time."""
    for _ in range(5):
        yield Say(f"{seen.user.partition(' ')[2]} ")
        await asyncio.sleep(PACE)
    yield End()


async def wait(seen: Seen) -> AsyncIterator[object]:
    """A call of a tool that takes its time."""
    if not seen.results:
        yield Say("Wait. ")
        yield Call(0, "call_1", "linger")
        yield Arguments(0, "{}")
        yield End("tool_calls")
        return
    yield Say(f"It {seen.lines[-1].removeprefix('result: ')}.")
    yield End()


async def cut(seen: Seen) -> AsyncIterator[object]:
    """Ended by the limit of tokens."""
    yield Say("Once upon")
    yield End("length")


async def busy(seen: Seen) -> AsyncIterator[object]:
    """Fails as a provider with too many requests does."""
    yield Say("I ")
    raise Busy(SECRET)


async def bug(seen: Seen) -> AsyncIterator[object]:
    """Fails as nobody expects."""
    yield Say("I ")
    raise LookupError(SECRET)


PARTS = {
    "tools": tools,
    "twice": twice,
    "danger": danger,
    "recall": recall,
    "slow": slow,
    "steps": steps,
    "city": city,
    "json": json,
    "who": who,
    "transfer": transfer,
    "words": words,
    "wait": wait,
    "cut": cut,
    "busy": busy,
    "bug": bug,
}


# Tools ----------------------------------------------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    """Add two numbers."""
    note(f"add {a} {b}")
    return a + b


def shell(command: str) -> str:
    """Run a command."""
    note(f"shell {command}")
    return f"ran {command}"


async def linger() -> str:
    """Take some time."""
    note("lingering")
    await asyncio.sleep(PACE * 50)
    return "took its time"
