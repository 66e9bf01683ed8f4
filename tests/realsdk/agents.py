"""The agent that the real SDKs talk to: what the user writes says what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from legato.agent import Turn
from legato.yields import Text, Thinking, ToolArguments, ToolCall, ToolResult, ToolStarted

# Seconds between two words: slow enough that readers come and go in between, whatever the machine.
PACE = 0.02


async def scripted(turn: Turn) -> AsyncIterator[Any]:
    """Plays the part that the message names, or says the message again."""
    async for item in PARTS.get(turn.message.text, echo)(turn):
        yield item


async def echo(turn: Turn) -> AsyncIterator[Any]:
    yield Thinking("Hmm, ")
    yield Thinking("hello.")
    for word in ("You ", "said: ", turn.message.text):
        yield Text(word)


async def tools(turn: Turn) -> AsyncIterator[Any]:
    yield Thinking("I should look.")
    yield ToolCall(id="call_1", name="Bash")
    yield ToolArguments(id="call_1", text='{"command":')
    yield ToolArguments(id="call_1", text='"ls"}')
    yield ToolStarted(id="call_1", progress="Listing files")
    yield ToolResult(id="call_1", output="a.txt", progress="One file")
    yield Text("There is ")
    yield Text("a.txt.")


async def slow(turn: Turn) -> AsyncIterator[Any]:
    for number in range(20):
        yield Text(f"{number} ")
        await asyncio.sleep(PACE)


async def forever(turn: Turn) -> AsyncIterator[Any]:
    while True:
        yield Text("on and ")
        await asyncio.sleep(PACE)


async def permission(turn: Turn) -> AsyncIterator[Any]:
    yield Text("May I? ")
    granted = await turn.ask_permission("Bash", "Lists your files.", action="run", params={"command": "ls"})
    yield Text("Granted." if granted else "Denied.")


async def choice(turn: Turn) -> AsyncIterator[Any]:
    answer = await turn.notify(
        "Colour", "Which one?", kind="question", response="choice", choices=["red", "blue"], wait=True
    )
    yield Text(f"You chose {answer and answer.value}.")


async def question(turn: Turn) -> AsyncIterator[Any]:
    answer = await turn.notify("Name", "What is it?", kind="question", response="text", wait=True)
    yield Text(f"You wrote {answer and answer.value}.")


async def announce(turn: Turn) -> AsyncIterator[Any]:
    await turn.notify("Note", "This is only for your information.")
    yield Text("Announced.")


async def fail(turn: Turn) -> AsyncIterator[Any]:
    yield Text("So far ")
    raise RuntimeError("The agent broke.")


PARTS: dict[str, Callable[[Turn], AsyncIterator[Any]]] = {
    "tools": tools,
    "slow": slow,
    "forever": forever,
    "permission": permission,
    "choice": choice,
    "question": question,
    "announce": announce,
    "fail": fail,
}
