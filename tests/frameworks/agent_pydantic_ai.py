"""The script's model behind a pydantic-ai agent."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import script
from pydantic import BaseModel
from pydantic_ai import Agent, ApprovalRequired, ModelRetry, NativeOutput, RunContext, Tool
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import (
    AgentInfo,
    DeltaThinkingPart,
    DeltaToolCall,
    FunctionModel,
    FunctionStreamedResponse,
)
from pydantic_ai.usage import RequestUsage, UsageLimits
from stepwise import stepwise

from legato import Turn
from legato.agents.pydantic_ai import adapt, translate


def read(messages: list[ModelMessage]) -> script.Seen:
    seen = script.Seen()
    for message in messages:
        for part in message.parts:
            match part.part_kind:
                case "system-prompt":
                    seen.add("system", part.content)
                case "user-prompt":
                    parts = [part.content] if isinstance(part.content, str) else part.content
                    seen.add("user", "".join(p if isinstance(p, str) else f" [{p.kind}]" for p in parts))
                case "text":
                    seen.add("assistant", part.content)
                case "tool-call":
                    seen.add("call", f"{part.tool_name} {json.dumps(part.args_as_dict())}")
                case "tool-return":
                    seen.add("result", part.model_response_str())
    return seen


async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
    seen = read(messages)
    if info.instructions:
        seen.add("system", info.instructions)
    async with contextlib.aclosing(script.answer(seen)) as pieces:
        try:
            async for piece in pieces:
                yield write(piece)
        except script.Busy as exc:
            raise ModelHTTPError(429, "scripted", {"error": str(exc)}) from exc


def write(piece: object) -> Any:
    match piece:
        case script.Think(text):
            return {0: DeltaThinkingPart(content=text)}
        case script.Say(text):
            return text
        case script.Call(place, id, name):
            return {place + 2: DeltaToolCall(name=name, tool_call_id=id)}
        case script.Arguments(place, text):
            return {place + 2: DeltaToolCall(json_args=text)}
        case _:
            return piece


class Streamed(FunctionStreamedResponse):
    """Takes usage and the reason of the end from the script; the function model makes them up."""

    async def _get_event_iterator(self) -> AsyncIterator[Any]:
        self._iter = self._pieces(self._iter)
        async for event in super()._get_event_iterator():
            yield event

    async def _pieces(self, pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for piece in pieces:
            if not isinstance(piece, script.End):
                yield piece
                continue
            self.finish_reason = "tool_call" if piece.reason == "tool_calls" else piece.reason
            self._usage = RequestUsage(
                input_tokens=piece.input_tokens,
                output_tokens=piece.output_tokens,
                cache_read_tokens=piece.cached_tokens,
                details={"reasoning_tokens": piece.reasoning_tokens},
            )


class Model(FunctionModel):
    @contextlib.asynccontextmanager
    async def request_stream(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        async with super().request_stream(*args, **options) as response:
            response.__class__ = Streamed
            yield response


assistant = Agent(Model(stream_function=stream, model_name="scripted"), system_prompt="Be brief.")
assistant.tool_plain(script.add)
assistant.tool_plain(requires_approval=True)(script.shell)


@assistant.tool_plain
def broken(what: str) -> str:
    """Break."""
    raise ModelRetry(f"Broken: {what}")


agent = stepwise(adapt(assistant, name="agent", on_crash="retry"))


class City(BaseModel):
    """A structured answer."""

    name: str
    people: int


structured = adapt(
    Agent(Model(stream_function=stream, model_name="scripted"), output_type=City, name="structured"),
)
native = adapt(
    Agent(Model(stream_function=stream, model_name="scripted"), output_type=NativeOutput(City), name="native"),
)

with_deps = Agent(Model(stream_function=stream, model_name="scripted"), deps_type=str)


@with_deps.tool
def whoami(context: RunContext[str]) -> str:
    """Tell who the user is."""
    return context.deps


with_context = adapt(with_deps, name="with_context", options=lambda turn: {"deps": turn.message.text.split()[-1]})

careful = Agent(Model(stream_function=stream, model_name="scripted"))


@careful.tool
def shell(context: RunContext[None], command: str) -> str:
    """Run a command, if it is harmless or the user allows it."""
    if command.startswith("rm") and not context.tool_call_approved:
        raise ApprovalRequired
    return script.shell(command)


decided = Agent(
    Model(stream_function=stream, model_name="scripted"),
    tools=[Tool(script.shell, requires_approval=True), script.add],
    capabilities=[HandleDeferredToolCalls(handler=lambda context, asked: asked.build_results(approve_all=True))],
)
deciding = adapt(decided, name="deciding")

asking_inside = adapt(careful, name="asking_inside")

impatient = adapt(assistant, name="impatient", options=lambda turn: {"usage_limits": UsageLimits(request_limit=1)})


async def by_hand(turn: Turn) -> AsyncIterator[Any]:
    """An agent that runs the framework itself."""
    async with assistant.run_stream_events(turn.message.text) as events:
        async for item in translate(events):
            yield item
