"""Making the tool calls of a model: asked for, run beside each other, and each with its result, whatever happens.

The rule: ``tool.started`` is stored before a tool begins, so that after a crash a call that may have had an effect can
be told from one that had none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ..agent import Turn
from ..part import as_json
from ..tool import Tool, ToolError
from ..yields import ToolResult, ToolStarted

logger = logging.getLogger("legato")

DENIED = "The user did not allow it."
AROUND = 64
"""Bytes of ``tool.completed`` besides the call and its output."""


@dataclass(slots=True)
class Call:
    """A tool call of a model.

    Attributes:
        id: unique in the run, as it is in the log.
        given: the provider's id of it.
        name: the tool.
        arguments: JSON text.
        ours: whether it is left to us; the provider may have made it itself.
        result: what came of it, once something did.
    """

    id: str
    given: str
    name: str
    arguments: str = ""
    ours: bool = True
    result: ToolResult | None = None


_Words = asyncio.Queue[tuple[ToolStarted | ToolResult, asyncio.Event | None]]


async def perform(
    calls: Sequence[Call], tools: Mapping[str, Tool], turn: Turn, interrupted: Collection[str] = ()
) -> AsyncGenerator[ToolStarted | ToolResult, None]:
    """Make ``calls``, each of which then has its result. Leaving the iteration stops them.

    Args:
        calls: without a result yet.
        tools: by name.
        turn: asks the user where a tool wants it.
        interrupted: ids of those that had begun when an earlier attempt of the run died.
    """
    said: _Words = asyncio.Queue()
    tasks = [asyncio.create_task(_perform(call, tools, turn, call.id in interrupted, said)) for call in calls]
    running = len(tasks)
    try:
        while running:
            item, begun = await said.get()
            yield item
            if begun is not None:
                await turn.stored()
                begun.set()
            if isinstance(item, ToolResult):
                running -= 1
    finally:
        for task in tasks:
            task.cancel()


async def _perform(call: Call, tools: Mapping[str, Tool], turn: Turn, interrupted: bool, said: _Words) -> None:
    result = ToolResult(call.id, f"{call.name} was stopped.", success=False)
    try:
        result = ToolResult(call.id, _fitting(call, await _run(call, tools, turn, interrupted, said), turn))
    except ToolError as exc:
        # A character takes at most 6 bytes of JSON.
        result = ToolResult(call.id, exc.message[: turn.max_event_bytes // 8], success=False)
    except (Exception, SystemExit, KeyboardInterrupt) as exc:  # a question's function may raise anything, too
        logger.error("tool %s could not be run", call.name, exc_info=exc)
        result = ToolResult(call.id, f"{call.name} could not be run.", success=False)
    finally:
        call.result = result
        said.put_nowait((result, None))


def _fitting(call: Call, output: object, turn: Turn) -> object:
    """The output, if an event holds it: else the run would fail, after all that has been paid for it.

    Raises:
        ToolError: it does not; the model may ask for less.
    """
    size = len(msgspec.json.encode({"id": call.id, "name": call.name, "output": output}))
    if size + AROUND > turn.max_event_bytes:
        raise ToolError(f"{call.name} was done, but its output of {size} bytes is too long; ask it for less.")
    return output


async def _run(call: Call, tools: Mapping[str, Tool], turn: Turn, interrupted: bool, said: _Words) -> object:
    tool = tools.get(call.name)
    if tool is None:
        raise ToolError(f"There is no tool {call.name[:100]!r}; there are: {', '.join(tools) or 'none'}.")
    if interrupted and tool.on_crash == "fail":
        raise ToolError(f"The server stopped while {call.name} was running; nobody knows whether it was done.")
    arguments = tool.arguments(call.arguments)
    if question := tool.question(arguments):
        facts = as_json("Arguments", arguments)
        if not await turn.ask_permission(tool.name, question, params=facts, call=call.id):
            raise ToolError(DENIED)
    begun = asyncio.Event()
    said.put_nowait((ToolStarted(call.id), begun))
    await begun.wait()
    return await tool.run(arguments, turn)
