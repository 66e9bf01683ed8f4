"""The agent that the real OpenAI SDK talks to: what the user writes says what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from legato.agent import Turn
from legato.errors import AgentError
from legato.part import Usage
from legato.yields import Finish, Refusal, Thinking, ToolArguments, ToolCall, ToolReady, ToolResult

# Seconds between two words: slow enough that readers come and go in between, whatever the machine.
PACE = 0.02


async def scripted(turn: Turn) -> AsyncIterator[Any]:
    """Plays the part that the message names, or says the message again."""
    match turn.message.text:
        case "tools":
            yield Thinking("I should ")
            yield Thinking("look.")
            yield ToolCall("call_1", "Bash")
            yield ToolArguments("call_1", '{"command":')
            yield ToolArguments("call_1", '"ls"}')
            yield ToolResult("call_1", output={"files": ["é.txt"]})
            yield "There is "
            yield "é.txt."
        case "calls":
            yield ToolCall("call_1", "f", by="client")
            yield ToolCall("call_2", "g", by="client")
            yield ToolArguments("call_2", "[2]")
            yield ToolArguments("call_1", "[1]")
            yield ToolReady("call_1")
            yield ToolReady("call_2")
        case "look":
            yield ToolCall("call_9", "lookup", '{"q": "x"}')
        case "recall":
            told = [f"{message.role}: {message.text}" for message in turn.history]
            yield ", ".join(told)
        case "refuse":
            yield Refusal("I can")
            yield Refusal("not.")
        case "fail":
            yield "So far "
            raise AgentError("No.", code="no")
        case "length":
            yield "Cut"
            yield Finish("length")
        case "slow":
            for number in range(20):
                yield f"{number} "
                await asyncio.sleep(PACE)
        case "forever":
            while True:
                yield "on and "
                await asyncio.sleep(PACE)
        case text:
            yield "You said: "
            yield text
    yield Usage(input_tokens=3, output_tokens=4, cached_tokens=1)
