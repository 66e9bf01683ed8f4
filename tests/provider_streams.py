"""Streams in the shapes of several vendors, made up here, and both faces of the providers behind one door."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from fake_server import FakeTransport, Handler, Reply, stream_reply
from legato import provider
from legato.provider import ChatResult, ProviderError, StreamChunk, TokenUsage, ToolCall

FACES = ["sync", "async"]
FIDDLE = "\U0001f3bb"  # four bytes in UTF-8
HELLO = [{"role": "user", "content": "Hello"}]


def sse(payloads: Iterable[Any], *, named: bool = True, end: str = "\n", before: str = "") -> bytes:
    """The frames of JSON payloads; a str is a frame's data as it is."""
    frames = []
    for payload in payloads:
        data = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
        name = f"event: {payload['type']}\n" if named and isinstance(payload, dict) else ""
        frames.append(f"{before}{name}data: {data}\n\n")
    return "".join(frames).replace("\n", end).encode()


# Responses -----------------------------------------------------------------------------------------------------------


def numbered(*events: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def state(name: str, /, **fields: Any) -> dict[str, Any]:
    status = fields.pop("status", {"created": "in_progress"}.get(name, name))
    response = {"id": "resp_1", "object": "response", "status": status, "model": "m-1", "output": [], **fields}
    return {"type": f"response.{name}", "response": response}


def item(place: int, name: str, /, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.output_item.{name}", "output_index": place, "item": {"id": f"item_{place}", **fields}}


def delta(place: int, kind: str, text: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "item_id": f"item_{place}", "output_index": place, "delta": text, **more}


USAGE = {
    "input_tokens": 5,
    "output_tokens": 7,
    "total_tokens": 12,
    "input_tokens_details": {"cached_tokens": 2},
    "output_tokens_details": {"reasoning_tokens": 3},
}
COST = TokenUsage(5, 7, 12, 2, 3)
CREATED = state("created")
TEXT_EVENTS = numbered(
    CREATED,
    item(0, "added", type="message", role="assistant", content=[]),
    {"type": "response.vendor.hint", "colour": "red"},
    delta(0, "output_text", "Hel", content_index=0),
    delta(0, "output_text", f"lo {FIDDLE}", content_index=0),
    item(0, "done", type="message", content=[{"type": "output_text", "text": f"Hello {FIDDLE}"}]),
    state("completed", usage=USAGE),
)
REASONING_EVENTS = numbered(
    CREATED,
    item(0, "added", type="reasoning", summary=[]),
    delta(0, "reasoning_summary_text", "First", summary_index=0),
    delta(0, "reasoning_summary_text", "Second", summary_index=1),
    item(0, "done", type="reasoning", summary=[{"type": "summary_text", "text": "FirstSecond"}]),
    item(1, "added", type="message", content=[]),
    delta(1, "output_text", "4"),
    state("completed", usage=USAGE),
)
TOOL_EVENTS = numbered(
    CREATED,
    item(0, "added", type="function_call", call_id="call_a", name="add", arguments=""),
    item(1, "added", type="function_call", call_id="call_b", name="sub", arguments=""),
    delta(1, "function_call_arguments", '{"y":'),
    delta(0, "function_call_arguments", '{"x":'),
    delta(1, "function_call_arguments", "2}"),
    delta(0, "function_call_arguments", "1}"),
    item(0, "done", type="function_call", call_id="call_a", name="add", arguments='{"x":1}'),
    item(1, "done", type="function_call", call_id="call_b", name="sub", arguments='{"y":2}'),
    state("completed", usage=USAGE),
)
FAILED_EVENTS = numbered(
    CREATED,
    item(0, "added", type="message", content=[]),
    delta(0, "output_text", "Hel"),
    state("failed", error={"code": "server_error", "message": "It broke."}),
)
ERROR_EVENTS = numbered(
    CREATED,
    delta(0, "output_text", "Hel"),
    {"type": "error", "error": {"type": "server_error", "code": "quota", "message": "Too poor.", "param": None}},
    state("failed", error={"code": "quota", "message": "Too poor."}),
)
INCOMPLETE_EVENTS = numbered(
    CREATED,
    delta(0, "output_text", "Hel"),
    state("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=USAGE),
)
CALLS = (ToolCall("call_a", "add", '{"x":1}'), ToolCall("call_b", "sub", '{"y":2}'))


# Chat Completions ----------------------------------------------------------------------------------------------------


def chunk(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": fields, "finish_reason": finish}]
    return {"id": "chat_1", "object": "chat.completion.chunk", "model": "m-1", "choices": choices, "usage": None}


def call(index: int, arguments: str, id: str | None = None, name: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"index": index, "function": function} if id is None else {"index": index, "id": id, "function": function}


SPENT = {
    "prompt_tokens": 5,
    "completion_tokens": 7,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
USED = {"id": "chat_1", "model": "m-1", "choices": [], "usage": SPENT}
CHAT_TEXT = [
    chunk(role="assistant", content=""),
    chunk(reasoning_content="Hm."),
    chunk(content="Hel"),
    chunk(content=f"lo {FIDDLE}"),
    chunk("stop"),
    USED,
    "[DONE]",
]
CHAT_TOOLS = [
    chunk(role="assistant", content=None),
    chunk(tool_calls=[call(0, "", "call_a", "add"), call(1, "", "call_b", "sub")]),
    chunk(tool_calls=[call(1, '{"y":')]),
    chunk(tool_calls=[call(0, '{"x":1}'), call(1, "2}")]),
    chunk("tool_calls"),
    USED,
    "[DONE]",
]
CHAT_ERROR = [
    chunk(content="Hel"),
    {**chunk(content=""), "error": {"code": 429, "message": "Too much."}, "usage": SPENT},
    "[DONE]",
]
CHAT_LENGTH = [chunk(content="Hel"), chunk("length"), USED, "[DONE]"]


# Anthropic -----------------------------------------------------------------------------------------------------------

START = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "m-1", "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}},
}
PING = {"type": "ping"}
STOP = {"type": "message_stop"}


def block(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": fields}


def add(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def over(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def finish(reason: str) -> dict[str, Any]:
    usage = {"output_tokens": 7, "cache_read_input_tokens": 2}
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


ANTHROPIC_COST = TokenUsage(5, 7, 12, 2)
STARTED = TokenUsage(3, 1, 4)
ANTHROPIC_TEXT = [
    START,
    block(0, type="thinking", thinking=""),
    PING,
    add(0, "thinking_delta", thinking="Hm."),
    add(0, "signature_delta", signature="abc"),
    over(0),
    block(1, type="text", text=""),
    add(1, "text_delta", text="Hel"),
    {"type": "something_new", "index": "odd"},
    add(1, "text_delta", text=f"lo {FIDDLE}"),
    over(1),
    finish("end_turn"),
    STOP,
]
ANTHROPIC_TOOLS = [
    START,
    block(0, type="tool_use", id="call_a", name="add", input={}),
    add(0, "input_json_delta", partial_json='{"x":'),
    add(0, "input_json_delta", partial_json="1}"),
    over(0),
    block(1, type="tool_use", id="call_b", name="sub", input={}),
    add(1, "input_json_delta", partial_json='{"y":2}'),
    over(1),
    block(2, type="tool_use", id="call_c", name="now", input={}),
    add(2, "input_json_delta", partial_json=""),
    over(2),
    finish("tool_use"),
    STOP,
]
ANTHROPIC_ERROR = [
    START,
    block(0, type="text", text="Hel"),
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded."}},
]


# All -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A stream, what it says, and the error in which it ends."""

    wire: str
    body: bytes
    result: ChatResult
    error: type[ProviderError] | None = None


def result(**fields: Any) -> ChatResult:
    return ChatResult(**{"id": "resp_1", "model": "m-1", **fields})


def chat_result(**fields: Any) -> ChatResult:
    return result(id="chat_1", **fields)


def message(**fields: Any) -> ChatResult:
    return result(id="msg_1", **fields)


TEXT = f"Hello {FIDDLE}"
CALLS_AND_NOW = (*CALLS, ToolCall("call_c", "now", "{}"))
INCOMPLETE, FAILED = provider.ResponseIncomplete, provider.ResponseFailed

RECORDINGS = {
    "text": Recording("Responses", sse(TEXT_EVENTS), result(text=TEXT, usage=COST, finish_reason="stop")),
    "text, CRLF, [DONE]": Recording(
        "Responses",
        sse([*TEXT_EVENTS, "[DONE]"], end="\r\n"),
        result(text=TEXT, usage=COST, finish_reason="stop"),
    ),
    "reasoning, comments, retry, no names": Recording(
        "Responses",
        sse(REASONING_EVENTS, named=False, before=": PROCESSING\n\nretry: 100\n"),
        result(text="4", thinking="First\n\nSecond", usage=COST, finish_reason="stop"),
    ),
    "tools": Recording("Responses", sse(TOOL_EVENTS), result(tool_calls=CALLS, usage=COST, finish_reason="tool_calls")),
    "failed": Recording("Responses", sse(FAILED_EVENTS), result(text="Hel"), FAILED),
    "error": Recording("Responses", sse(ERROR_EVENTS), result(text="Hel"), FAILED),
    "incomplete": Recording(
        "Responses", sse(INCOMPLETE_EVENTS), result(text="Hel", usage=COST, finish_reason="length"), INCOMPLETE
    ),
    "chat text, comments": Recording(
        "ChatCompletions",
        sse(CHAT_TEXT, named=False, before=": PROCESSING\n\n"),
        chat_result(
            text=TEXT, thinking="Hm.", usage=COST, finish_reason="stop", opaque=({"thinking": "reasoning_content"},)
        ),
    ),
    "chat tools, CRLF": Recording(
        "ChatCompletions",
        sse(CHAT_TOOLS, named=False, end="\r\n"),
        chat_result(tool_calls=CALLS, usage=COST, finish_reason="tool_calls"),
    ),
    "chat error": Recording(
        "ChatCompletions", sse(CHAT_ERROR, named=False), chat_result(text="Hel", usage=COST), FAILED
    ),
    "chat length": Recording(
        "ChatCompletions",
        sse(CHAT_LENGTH, named=False),
        chat_result(text="Hel", usage=COST, finish_reason="length"),
        INCOMPLETE,
    ),
    "anthropic text": Recording(
        "Anthropic",
        sse(ANTHROPIC_TEXT),
        message(
            text=TEXT,
            thinking="Hm.",
            usage=ANTHROPIC_COST,
            finish_reason="stop",
            opaque=({"block": {"type": "thinking", "thinking": "Hm.", "signature": "abc"}}, {"text": len(TEXT)}),
        ),
    ),
    "anthropic tools": Recording(
        "Anthropic",
        sse(ANTHROPIC_TOOLS),
        message(tool_calls=CALLS_AND_NOW, usage=ANTHROPIC_COST, finish_reason="tool_calls"),
    ),
    "anthropic error": Recording("Anthropic", sse(ANTHROPIC_ERROR), message(text="Hel", usage=STARTED), FAILED),
}


# The faces -----------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What came of reading a stream."""

    items: list[Any] = field(default_factory=list)
    error: ProviderError | None = None
    partial: ChatResult = field(default_factory=ChatResult)


def use(face: str, name: str, server: Handler | str, act: Callable[[Any], Any], **settings: Any) -> Any:
    """What ``act(client)`` gives; a handler is served in memory, a str is an address."""
    settings = {"retry_config": None, **settings}
    waits = settings.pop("waits", [])
    url = server if isinstance(server, str) else "http://test/v1"

    async def go() -> Any:
        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        http = {} if isinstance(server, str) else {"http_client": httpx2.AsyncClient(transport=FakeTransport(server))}
        made = getattr(provider, f"Async{name}")(url, "key", sleep=sleep, **http, **settings)
        async with asyncio.timeout(60), made as client:
            done = act(client)
            return await done if inspect.isawaitable(done) else done

    if face == "async":
        return asyncio.run(go())
    http = {} if isinstance(server, str) else {"http_client": httpx2.Client(transport=FakeTransport(server))}
    with getattr(provider, name)(url, "key", sleep=waits.append, **http, **settings) as client:
        return act(client)


def read(stream: Any) -> Any:
    """All that a stream gives, and its error, as ``Seen`` or an awaitable of it."""
    seen = Seen()
    if not hasattr(stream, "__aiter__"):
        with _noting(stream, seen):
            seen.items.extend(stream)
        return seen

    async def go() -> Seen:
        with _noting(stream, seen):
            async for item in stream:
                seen.items.append(item)
        return seen

    return go()


@contextmanager
def _noting(stream: Any, seen: Seen) -> Iterator[None]:
    try:
        yield
    except ProviderError as error:
        seen.error = error
    seen.partial = stream.partial


def chat(client: Any, **options: Any) -> Any:
    return read(client.chat_stream(**{"model": "m", "messages": HELLO, **options}))


def streamed(face: str, recording: Recording, **settings: Any) -> Seen:
    """A recording, read as chunks."""
    seen: Seen = use(face, f"{recording.wire}Provider", lambda _: stream_reply(recording.body, None), chat, **settings)
    return seen


def total(chunks: list[StreamChunk], like: ChatResult) -> ChatResult:
    """What chunks add up to, put together here; id, model and usage as in ``like``."""
    calls: list[list[Any]] = []
    for piece in (chunk.tool_call_delta for chunk in chunks if chunk.tool_call_delta):
        if piece.index == len(calls):
            calls.append([piece.id or "", piece.name, "", None, True, piece.hosted])
        calls[piece.index][2] += piece.arguments
    for made in (chunk.tool_output for chunk in chunks if chunk.tool_output):
        calls[made.index][3:5] = [made.output, made.success]
    return ChatResult(
        text="".join(chunk.delta for chunk in chunks),
        thinking="".join(chunk.thinking for chunk in chunks),
        tool_calls=tuple(ToolCall(*parts) for parts in calls),
        usage=like.usage,
        refusal="".join(chunk.refusal for chunk in chunks),
        finish_reason=next((chunk.finish_reason for chunk in chunks if chunk.finish_reason), None),
        id=like.id,
        model=like.model,
        opaque=like.opaque,
    )


def cut_reply(body: bytes) -> Reply:
    return stream_reply(body, None, cut=True)
