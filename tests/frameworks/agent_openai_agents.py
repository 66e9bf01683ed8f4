"""The script's model behind an agent of the OpenAI Agents SDK."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import script
from agents import (
    Agent,
    Model,
    ModelResponse,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunContextWrapper,
    function_tool,
    set_tracing_disabled,
)
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from stepwise import stepwise

from legato.agents.openai_agents import adapt

set_tracing_disabled(True)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def read(system: str | None, items: list[Any]) -> script.Seen:
    seen = script.Seen()
    if system:
        seen.add("system", system)
    for item in items:
        match item.get("type", "message"):
            case "message":
                content = item["content"]
                parts = [{"text": content}] if isinstance(content, str) else content
                seen.add(item["role"], "".join(part.get("text") or f" [{part['type']}]" for part in parts))
            case "function_call":
                seen.add("call", f"{item['name']} {json.dumps(json.loads(item['arguments']))}")
            case "function_call_output":
                seen.add("result", str(item["output"]))
    return seen


class Response:
    """One answer of the model as events of the Responses API."""

    def __init__(self) -> None:
        self._output: list[dict[str, Any]] = []
        self._text = ""
        self._number = 0

    def begin(self) -> Any:
        return self._event("response.created", response=self._response("in_progress"))

    def write(self, piece: object) -> Iterator[Any]:
        match piece:
            case script.Think(text):
                yield from self._item("reasoning", summary=[])
                yield self._delta("response.reasoning_summary_text.delta", text, summary_index=0)
                self._output[-1]["summary"] = [{"type": "summary_text", "text": self._text}]
            case script.Say(text):
                yield from self._item("message", role="assistant", status="completed", content=[])
                yield self._delta("response.output_text.delta", text, content_index=0, logprobs=[])
                said = {"type": "output_text", "text": self._text, "annotations": []}
                self._output[-1]["content"] = [said]
            case script.Call(_, id, name):
                yield from self._item("function_call", new=True, call_id=id, name=name, arguments="")
            case script.Arguments(place, text):
                calls = [number for number, item in enumerate(self._output) if item["type"] == "function_call"]
                self._output[calls[place]]["arguments"] += text
                yield self._event(
                    "response.function_call_arguments.delta",
                    item_id=self._output[calls[place]]["id"],
                    output_index=calls[place],
                    delta=text,
                )
            case script.End() as end:
                yield from self._end(end)

    def _end(self, end: script.End) -> Iterator[Any]:
        for number, item in enumerate(self._output):
            yield self._event("response.output_item.done", output_index=number, item=item)
        usage = {
            "input_tokens": end.input_tokens,
            "output_tokens": end.output_tokens,
            "total_tokens": end.input_tokens + end.output_tokens,
            "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
        }
        cut = {"reason": "max_output_tokens"} if end.reason == "length" else None
        response = self._response("completed", usage=usage, incomplete_details=cut)
        yield self._event("response.completed", response=response)

    def _item(self, type: str, *, new: bool = False, **fields: Any) -> Iterator[Any]:
        if self._output and self._output[-1]["type"] == type and not new:
            return
        self._text = ""
        self._output.append({"type": type, "id": f"{type}_{len(self._output)}", **fields})
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=dict(self._output[-1]))

    def _delta(self, type: str, text: str, **fields: Any) -> Any:
        self._text += text
        item = self._output[-1]
        return self._event(type, item_id=item["id"], output_index=len(self._output) - 1, delta=text, **fields)

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 0,
            "model": "scripted",
            "status": status,
            "output": self._output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            **fields,
        }

    def _event(self, type: str, **fields: Any) -> Any:
        self._number += 1
        return EVENT.validate_python({"type": type, "sequence_number": self._number, **fields})


class Scripted(Model):
    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        raise NotImplementedError

    async def stream_response(self, system: str | None, items: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        response = Response()
        yield response.begin()
        async with contextlib.aclosing(script.answer(read(system, items))) as pieces:
            try:
                async for piece in pieces:
                    for event in response.write(piece):
                        yield event
            except script.Busy as exc:
                answer = httpx2.Response(429, request=httpx2.Request("POST", "http://model"))
                raise openai.RateLimitError(str(exc), response=answer, body=None) from exc


@dataclasses.dataclass
class Context:
    """What the server knows of the user."""

    name: str


@function_tool
def whoami(context: RunContextWrapper[Context]) -> str:
    """Tell who the user is."""
    return context.context.name


@function_tool
def broken(what: str) -> str:
    """Break."""
    raise ValueError(f"Broken: {what}")


assistant = Agent(
    name="agent",
    instructions="Be brief.",
    model=Scripted(),
    tools=[function_tool(script.add), function_tool(needs_approval=True)(script.shell), broken],
)
agent = stepwise(adapt(assistant, on_crash="retry"))

with_context = adapt(
    Agent(name="with_context", model=Scripted(), tools=[whoami]),
    options=lambda turn: {"context": Context(turn.message.text.split()[-1])},
)

specialist = Agent(name="specialist", instructions="You know all.", model=Scripted())
handing_over = adapt(Agent(name="handing_over", model=Scripted(), handoffs=[specialist]))

impatient = adapt(
    Agent(name="impatient", model=Scripted(), tools=[function_tool(script.add)]),
    options=lambda turn: {"max_turns": 1},
)


# The SDK's own model classes ------------------------------------------------------------------------------------------


def served(respond: Any) -> openai.AsyncOpenAI:
    """A client of a provider in memory."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(respond))
    return openai.AsyncOpenAI(api_key="k", base_url="http://model/v1", http_client=http, max_retries=0)


def streamed(*events: Any) -> httpx2.Response:
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in events)
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=body)


def responding(*output: Any) -> list[Any]:
    """The events of a response with this output, and nothing at its end."""
    created = {"type": "response.created", "sequence_number": 0, "response": response("in_progress")}
    return [created, *({"sequence_number": place, **each} for place, each in enumerate(output, 1))]


def response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "r", "object": "response", "created_at": 1, "status": status, "model": "m", "output": [],
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **fields}  # fmt: skip


HEL = {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": "Hel",
       "logprobs": []}  # fmt: skip


def end(request: httpx2.Request) -> httpx2.Response:
    """An answer that ends as it is asked to."""
    kind, word = json.loads(request.content)["input"][-1]["content"].split()
    about = {"type": f"response.{kind}", "sequence_number": 9}
    match kind:
        case "incomplete":
            return streamed(
                *responding(HEL), {**about, "response": response(kind, incomplete_details={"reason": word})}
            )
        case "failed":
            failed = response(kind, error={"code": word, "message": "Odd."})
            return streamed(*responding(HEL), {**about, "response": failed})
    error = {"type": "error", "code": word, "message": "Odd.", "param": None, "sequence_number": 9}
    return streamed(*responding(HEL), error)


def call(request: httpx2.Request) -> httpx2.Response:
    """A call of a tool."""
    item = {"type": "function_call", "id": "f", "call_id": "c", "name": "weather", "arguments": '{"city":"Oslo"}',
            "status": "completed"}  # fmt: skip
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    completed = {"type": "response.completed", "sequence_number": 9, "response": response("completed", output=[item])}
    return streamed(*responding(done), completed)


def think(request: httpx2.Request) -> httpx2.Response:
    """Chat Completions, with thinking under both names."""
    about = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[Any] = [
        {"role": "assistant", "reasoning_content": "H", "reasoning": "H"},
        {"reasoning_content": "m.", "reasoning": "m."},
        {"content": "Hi"},
    ]
    chunks = [{**about, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last = {**about, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return streamed(*chunks, last)


@function_tool
def weather(city: str) -> str:
    """The weather."""
    return f"Sunny in {city}."


ending = adapt(Agent(name="ending", model=OpenAIResponsesModel("m", served(end))))
first_tool = adapt(
    Agent(
        name="first_tool",
        model=OpenAIResponsesModel("m", served(call)),
        tools=[weather],
        tool_use_behavior="stop_on_first_tool",
    )
)
thinking = adapt(Agent(name="thinking", model=OpenAIChatCompletionsModel("m", served(think))))
