"""The providers' two verbs over all three wires: whole streams, cut streams, refusals, timeouts; on both faces."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fake_server import FakeServer, Reply, Request, json_reply, stream_reply
from legato.client import BackoffStrategy, RetryConfig
from legato.errors import InvalidInput
from legato.provider import (
    AsyncResponsesProvider,
    ProviderRefused,
    ProviderUnreachable,
    ResponseFailed,
    ResponseIncomplete,
    StreamInterrupted,
    StreamMalformed,
    Timeouts,
    ToolCall,
)
from provider_streams import (
    CALLS,
    CHAT_TEXT,
    FACES,
    HELLO,
    RECORDINGS,
    TEXT,
    TEXT_EVENTS,
    Recording,
    Seen,
    call,
    chat,
    chunk,
    cut_reply,
    read,
    sse,
    streamed,
    total,
    use,
)

QUICK = RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 60_000), True)

named = pytest.mark.parametrize("name", RECORDINGS)
both = pytest.mark.parametrize("face", FACES)
wires = pytest.mark.parametrize("wire", ["Responses", "ChatCompletions", "Anthropic"])


@both
@named
def test_a_stream_gives_chunks_that_add_up_to_its_result(face: str, name: str) -> None:
    """Text, thinking, tool calls, usage and reason come as chunks; a failure is raised with all that came."""
    recording = RECORDINGS[name]

    seen = streamed(face, recording)

    assert recording.error == (seen.error and type(seen.error))
    assert recording.result == seen.partial
    assert recording.result == total(seen.items, seen.partial)
    if seen.error:
        assert recording.result == seen.error.partial


@both
@named
def test_a_stream_cut_at_any_byte_is_whole_or_an_error_with_what_came(face: str, name: str) -> None:
    """Wherever the connection is lost, the caller gets the whole answer, or an error whose partial result is exact."""
    recording = RECORDINGS[name]
    whole = streamed(face, recording)
    # How many chunks the first n whole frames give, from streams that end properly behind them.
    frames = _frame_ends(recording.body)
    due = {end: len(streamed(face, _begun(recording, end)).items) for end in frames}

    def all_cuts(client: Any) -> Any:
        return _each_cut(client, cuts)

    cuts = iter(range(1, len(recording.body)))
    seen_by_cut = _run_cuts(face, recording, all_cuts)

    for cut, seen in seen_by_cut.items():
        expected = max((due[end] for end in frames if end <= cut), default=0)
        assert whole.items[: len(seen.items)] == seen.items
        assert expected <= len(seen.items)
        assert seen.partial == total(seen.items, seen.partial)
        if seen.error is None:
            assert recording.result == seen.partial
        else:
            assert isinstance(seen.error, recording.error or StreamInterrupted) or (
                type(seen.error) is StreamInterrupted
            )
            assert seen.error.partial == seen.partial


def _frame_ends(body: bytes) -> list[int]:
    blank = b"\r\n\r\n" if b"\r\n" in body else b"\n\n"
    return [place + len(blank) for place in range(len(body)) if body.startswith(blank, place)]


def _begun(recording: Recording, end: int) -> Recording:
    return Recording(recording.wire, recording.body[:end], recording.result)


def _each_cut(client: Any, cuts: Iterator[int]) -> Any:
    """Read one stream for each cut, with one client; the handler takes the same cuts in step."""
    seen: dict[int, Seen] = {}
    first = chat(client)
    if isinstance(first, Seen):
        for cut in cuts:
            seen[cut] = chat(client)
        return seen

    async def go() -> dict[int, Seen]:
        await first
        for cut in cuts:
            seen[cut] = await chat(client)
        return seen

    return go()


def _run_cuts(face: str, recording: Recording, act: Any) -> dict[int, Seen]:
    size = 0

    def handler(request: Request) -> Reply:
        nonlocal size
        reply = cut_reply(recording.body[:size])  # the first one, with nothing, is not looked at
        size += 1
        return reply

    found: dict[int, Seen] = use(face, f"{recording.wire}Provider", handler, act)
    return found


@both
@pytest.mark.parametrize("name", ["text", "chat tools, CRLF", "anthropic text"])
def test_a_stream_in_pieces_of_one_byte_is_the_same(face: str, name: str) -> None:
    """How the bytes are cut into chunks, also inside of a letter, makes no difference."""
    recording = RECORDINGS[name]
    with dripping(recording.body) as url:
        seen = use(face, f"{recording.wire}Provider", url, chat)

    assert (None, recording.result) == (seen.error, seen.partial)


@contextmanager
def dripping(body: bytes) -> Iterator[str]:
    """The address of a server that sends a body in HTTP chunks of one byte."""
    lines = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with listening(lambda file: file.write(HEAD + lines)) as url:
        yield url


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@contextmanager
def listening(answer: Any) -> Iterator[str]:
    """The address of a server that reads one request, and then leaves the connection to ``answer(file)``."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(30)

    def serve() -> None:
        connection, _ = server.accept()
        connection.settimeout(30)
        with connection, connection.makefile("rwb", buffering=0) as file:
            size = 0
            while (line := file.readline().lower()) not in (b"\r\n", b""):
                if line.startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
            while size:
                size -= len(file.read(size))
            answer(file)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    finally:
        thread.join(30)
        server.close()


@both
@wires
def test_leaving_the_loop_closes_the_connection(face: str, wire: str) -> None:
    """A ``break`` is seen by the provider as the end of the connection, while the client lives on."""
    body = next(one.body for one in RECORDINGS.values() if one.wire == wire)
    first = body[: body.index(b"Hel") + 20]
    begun = body[: body.index(b"\n\n", len(first)) + 2]
    closed = threading.Event()

    def answer(file: Any) -> None:
        file.write(HEAD + b"%x\r\n%s\r\n" % (len(begun), begun))
        try:
            rest = file.read(1)
        except ConnectionError:
            rest = b""
        if not rest:
            closed.set()

    def act(client: Any) -> Any:
        stream = client.chat_stream(model="m", messages=HELLO)
        if hasattr(stream, "__iter__"):
            for _ in stream:
                break
            return closed.wait(30)

        async def go() -> bool:
            async for _ in stream:
                break
            return await asyncio.to_thread(closed.wait, 30)

        return go()

    with listening(answer) as url:
        assert use(face, f"{wire}Provider", url, act)


async def test_a_cancelled_task_closes_the_connection() -> None:
    """Whoever is cancelled while it waits for the next chunk leaves nothing open."""
    begun = sse(TEXT_EVENTS[:4])
    closed, first = threading.Event(), asyncio.Event()

    def answer(file: Any) -> None:
        file.write(HEAD + b"%x\r\n%s\r\n" % (len(begun), begun))
        if not file.read(1):
            closed.set()

    async def follow(provider: AsyncResponsesProvider) -> None:
        async for _ in provider.chat_stream(model="m", messages=HELLO):
            first.set()

    with listening(answer) as url:
        async with asyncio.timeout(30), AsyncResponsesProvider(url) as provider:
            task = asyncio.create_task(follow(provider))
            await first.wait()
            task.cancel()

            assert await asyncio.to_thread(closed.wait, 30)
            assert [asyncio.CancelledError] == [type(end) for end in await asyncio.gather(task, return_exceptions=True)]


@both
def test_a_stream_is_read_once(face: str) -> None:
    """To iterate again would ask again."""
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return stream_reply(sse(TEXT_EVENTS), None)

    def act(client: Any) -> Any:
        stream = client.chat_stream(model="m", messages=HELLO)
        if hasattr(stream, "__iter__"):
            return [read(stream), read(stream)]

        async def go() -> list[Seen]:
            return [await read(stream), await read(stream)]

        return go()

    with pytest.raises(InvalidInput, match="once"):
        use(face, "ResponsesProvider", handler, act)

    assert 1 == len(asked)


@both
def test_content_may_be_parts(face: str) -> None:
    """Some models that think send their content as a list."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Hello"}]
    body = sse([chunk(content=parts), chunk("stop"), "[DONE]"], named=False)

    seen = use(face, "ChatCompletionsProvider", lambda _: stream_reply(body, None), chat)

    assert (None, "Hm.", "Hello") == (seen.error, seen.partial.thinking, seen.partial.text)


@both
@wires
def test_a_clean_end_without_a_terminal_event_is_an_error(face: str, wire: str) -> None:
    """A body that ends properly in the middle of an answer is never taken for the whole."""
    body = next(one.body for one in RECORDINGS.values() if one.wire == wire)
    begun = body[: body.index(b"lo ") - 200].rpartition(b"\n\n")[0] + b"\n\n"

    seen = use(face, f"{wire}Provider", lambda _: stream_reply(begun, None), chat)

    assert (StreamInterrupted, False) == (type(seen.error), seen.error.silent)


@both
def test_without_done_a_reason_to_finish_and_a_clean_end_are_enough(face: str) -> None:
    """Some servers of Chat Completions send no ``[DONE]``."""
    body = sse(CHAT_TEXT[:-1], named=False)

    seen = use(face, "ChatCompletionsProvider", lambda _: stream_reply(body, None), chat)

    assert (None, TEXT, "stop") == (seen.error, seen.partial.text, seen.partial.finish_reason)


@both
def test_without_done_a_stopped_answer_is_incomplete(face: str) -> None:
    """Also without ``[DONE]``, an answer that was stopped for its length is not whole."""
    body = sse([chunk(content="Hel"), chunk("length")], named=False)

    seen = use(face, "ChatCompletionsProvider", lambda _: stream_reply(body, None), chat)

    assert (ResponseIncomplete, "length", "Hel") == (type(seen.error), seen.error.reason, seen.error.partial.text)


@both
def test_what_follows_done_is_not_read(face: str) -> None:
    """``[DONE]`` ends a stream."""
    body = sse([*CHAT_TEXT, chunk(content="more")], named=False)

    seen = use(face, "ChatCompletionsProvider", lambda _: stream_reply(body, None), chat)

    assert (None, TEXT) == (seen.error, seen.partial.text)


@both
@wires
@pytest.mark.parametrize("bad", ["{", "[]", "null", '"text"', "{}x"])
def test_a_malformed_event_is_an_error(face: str, wire: str, bad: str) -> None:
    """An event that is no JSON object is raised, not skipped."""
    body = next(one.body for one in RECORDINGS.values() if one.wire == wire)
    end = body.index(b"\n\n", body.index(b"Hel")) + 2

    seen = use(face, f"{wire}Provider", lambda _: stream_reply(body[:end] + sse([bad]) + body[end:], None), chat)

    assert (StreamMalformed, "Hel") == (type(seen.error), seen.error.partial.text)


@both
@wires
def test_a_body_that_is_no_event_stream_is_an_error(face: str, wire: str) -> None:
    """An answer of another kind, as of a proxy that wants a login, is not an empty answer."""
    reply = Reply(200, b"<html>", {"content-type": "text/html"})

    seen = use(face, f"{wire}Provider", lambda _: reply, chat)

    assert (StreamMalformed, "text/html") == (type(seen.error), seen.error.detail["content_type"])


@both
def test_tool_calls_without_an_index_are_told_apart(face: str) -> None:
    """Some servers of Chat Completions give no index, or 0 for all calls."""
    without = [{**call(0, args, id, name), "index": None} for id, name, args in CALL_PIECES]
    zero = [call(0, args, id, name) for id, name, args in CALL_PIECES]

    for pieces in (without, zero):
        body = sse([*(chunk(tool_calls=[piece]) for piece in pieces), chunk("tool_calls"), "[DONE]"], named=False)
        seen = use(face, "ChatCompletionsProvider", lambda _, body=body: stream_reply(body, None), chat)

        assert (None, CALLS) == (seen.error, seen.partial.tool_calls)


CALL_PIECES = [("call_a", "add", '{"x":'), (None, None, "1}"), ("call_b", "sub", '{"y":'), (None, None, "2}")]


@both
def test_arguments_of_no_call_are_malformed(face: str) -> None:
    """A piece of a tool call that never began cannot be used."""
    body = sse([chunk(tool_calls=[call(3, "{}")])], named=False)

    seen = use(face, "ChatCompletionsProvider", lambda _: stream_reply(body, None), chat)

    assert StreamMalformed is type(seen.error)


# Refusals, retries, timeouts -----------------------------------------------------------------------------------------


@both
@wires
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ({"error": {"message": "No.", "type": "t", "code": "c", "param": "p"}}, "c", "No."),
        ({"type": "error", "error": {"type": "t", "message": "No."}}, "t", "No."),
        ({"error": "No."}, "http_400", "No."),
        ({"message": "No.", "code": 17}, "17", "No."),
    ],
)
def test_an_error_status_is_raised_with_its_facts(face: str, wire: str, error: Any, code: str, message: str) -> None:
    """The reason is read from each form in which providers give it."""
    seen = use(face, f"{wire}Provider", lambda _: json_reply(error, 400), chat)

    assert (ProviderRefused, 400, code, message) == (
        type(seen.error),
        seen.error.status_code,
        seen.error.code,
        seen.error.message,
    )


@both
@pytest.mark.parametrize("headers", [{"retry-after": "7"}, {"retry-after-ms": "7000", "retry-after": "100"}])
def test_an_error_status_tells_how_long_to_wait(face: str, headers: dict[str, str]) -> None:
    """Retry-After is there for the caller, in seconds."""
    seen = use(face, "ResponsesProvider", lambda _: json_reply({}, 429, **headers), chat)

    assert 7.0 == seen.error.retry_after


@both
@wires
def test_a_passing_refusal_is_tried_again_before_the_first_byte(face: str, wire: str) -> None:
    """429, 5XX and a lost connection are repeated until an answer begins."""
    body = next(one.body for one in RECORDINGS.values() if one.wire == wire)
    replies = iter([Reply(429), Reply(503), Reply(die=True), cut_reply(b""), stream_reply(body, None)])

    seen = use(face, f"{wire}Provider", lambda _: next(replies), chat, retry_config=QUICK)

    assert (None, TEXT) == (seen.error, seen.partial.text)


@both
@wires
def test_nothing_is_tried_again_after_the_first_byte(face: str, wire: str) -> None:
    """An answer that has begun is not asked for, and paid for, again."""
    asked: list[Request] = []
    body = next(one.body for one in RECORDINGS.values() if one.wire == wire)

    def handler(request: Request) -> Reply:
        asked.append(request)
        return cut_reply(body[:1])

    seen = use(face, f"{wire}Provider", handler, chat, retry_config=QUICK)

    assert (StreamInterrupted, 1) == (type(seen.error), len(asked))


@both
def test_a_refusal_that_says_so_is_not_tried_again(face: str) -> None:
    """``x-should-retry: false`` ends the attempts, also of a 429."""
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return json_reply({"error": {"code": "insufficient_quota"}}, 429, **{"x-should-retry": "false"})

    seen = use(face, "ResponsesProvider", handler, chat, retry_config=QUICK)

    assert (ProviderRefused, "insufficient_quota", 1) == (type(seen.error), seen.error.code, len(asked))


@both
def test_a_redirect_is_not_followed(face: str) -> None:
    """A key does not go where a redirect wants it."""
    seen = use(face, "AnthropicProvider", lambda _: Reply(307, headers={"location": "http://elsewhere/"}), chat)

    assert (ProviderRefused, 307) == (type(seen.error), seen.error.status_code)


@both
def test_a_provider_that_is_not_there_is_unreachable(face: str) -> None:
    """A refused connection is an error of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    seen = use(face, "ResponsesProvider", f"http://127.0.0.1:{port}", chat)

    assert ProviderUnreachable is type(seen.error)


@both
def test_a_silent_stream_ends_with_what_came(face: str) -> None:
    """After the head, ``silence`` is the limit, not ``first_byte``."""
    begun = sse(TEXT_EVENTS[:4])
    timeouts = Timeouts(first_byte=60, silence=0.05)

    with FakeServer(lambda _: stream_reply(begun, None, silent=True)) as server:
        seen = use(face, "ResponsesProvider", server.url, chat, timeouts=timeouts)

    assert (StreamInterrupted, True, "Hel") == (type(seen.error), seen.error.silent, seen.error.partial.text)


@both
def test_an_answer_that_does_not_begin_is_given_up(face: str) -> None:
    """Before the head, ``first_byte`` is the limit, not ``silence``."""
    stop = threading.Event()
    timeouts = Timeouts(first_byte=0.05, silence=60)

    with listening(lambda _: stop.wait(30)) as url:
        seen = use(face, "ResponsesProvider", url, chat, timeouts=timeouts)
        stop.set()

    assert (StreamInterrupted, True) == (type(seen.error), seen.error.silent)


@both
def test_a_connection_cut_on_the_wire_is_an_interruption(face: str) -> None:
    """Over a real socket, a body without its end is known for what it is."""
    with FakeServer(lambda _: cut_reply(sse(TEXT_EVENTS[:4]))) as server:
        seen = use(face, "ResponsesProvider", server.url, chat)

    assert (StreamInterrupted, False, "Hel") == (type(seen.error), seen.error.silent, seen.error.partial.text)


NO_ADDRESSES = [
    "localhost:11434",
    "http://",
    "http:///v1",
    "http://:1",
    "http://h:65536",
    "http://h:0",
    "http://h:x",
    "http://[::1",
]


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_an_address_is_a_url(url: str) -> None:
    """What is no http address of a host is refused at once."""
    with pytest.raises(InvalidInput, match="http"):
        use("sync", "ResponsesProvider", url, lambda client: None)


# chat() --------------------------------------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "Responses": {
        "id": "r",
        "model": "m",
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"x":1}'},
        ],
        "usage": {"input_tokens": 1, "output_tokens": 2},
    },
    "ChatCompletions": {
        "id": "r",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "content": "Hello",
                    "reasoning": "Hm.",
                    "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": '{"x":1}'}}],
                },
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    },
    "Anthropic": {
        "id": "r",
        "model": "m",
        "stop_reason": "tool_use",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "c", "name": "add", "input": {"x": 1}},
        ],
        "usage": {"input_tokens": 1, "output_tokens": 2},
    },
}


@both
@wires
def test_chat_gives_the_whole_answer(face: str, wire: str) -> None:
    """Without a stream the result is the same as with one."""
    got = use(face, f"{wire}Provider", lambda _: json_reply(WHOLE[wire]), lambda c: c.chat(model="m", messages=HELLO))

    assert ("Hello", "Hm.", "tool_calls", "r", 3) == (
        got.text,
        got.thinking,
        got.finish_reason,
        got.id,
        got.usage.total_tokens,
    )
    assert (ToolCall("c", "add", '{"x":1}'),) == got.tool_calls


@both
@pytest.mark.parametrize(
    ("wire", "changed"),
    [
        ("Responses", {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
        ("ChatCompletions", {"choices": [{"finish_reason": "length", "message": {"content": "Hello"}}]}),
        ("Anthropic", {"stop_reason": "max_tokens"}),
    ],
)
def test_chat_raises_when_the_model_was_stopped(face: str, wire: str, changed: Any) -> None:
    """An answer that is not whole is an error that carries it."""

    def act(client: Any) -> Any:
        return client.chat(model="m", messages=HELLO)

    with pytest.raises(ResponseIncomplete) as caught:
        use(face, f"{wire}Provider", lambda _: json_reply({**WHOLE[wire], **changed}), act)

    assert ("length", "Hello") == (caught.value.reason, caught.value.partial.text)


@both
@pytest.mark.parametrize(
    ("wire", "answer", "error"),
    [
        ("Responses", {}, StreamMalformed),
        ("ChatCompletions", {}, StreamMalformed),
        ("Anthropic", {}, StreamMalformed),
        ("ChatCompletions", {"choices": "none"}, StreamMalformed),
        ("ChatCompletions", {"error": {"message": "No."}}, ResponseFailed),
        ("Responses", {"status": "failed", "output": [], "error": {"message": "No."}}, ResponseFailed),
    ],
)
def test_chat_raises_when_there_is_no_answer(face: str, wire: str, answer: Any, error: type[Exception]) -> None:
    """A success that says nothing, or that it is none, is an error."""
    with pytest.raises(error):
        use(face, f"{wire}Provider", lambda _: json_reply(answer), lambda c: c.chat(model="m", messages=HELLO))


@both
def test_chat_raises_what_is_no_json(face: str) -> None:
    """A proxy's page is not an answer."""
    with pytest.raises(StreamMalformed):
        use(face, "ResponsesProvider", lambda _: Reply(200, b"<html>"), lambda c: c.chat(model="m", messages=HELLO))


# Requests ------------------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
    },
    {
        "role": "assistant",
        "content": "Hm.",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "2"},
    {"role": "user", "content": "And?"},
]


def asked(face: str, wire: str, **options: Any) -> Request:
    """The request that a talk makes."""
    seen: list[Request] = []

    def handler(request: Request) -> Reply:
        seen.append(request)
        return Reply(400)

    def act(client: Any) -> Any:
        return read(client.chat_stream(model="m", messages=TALK, tools=TOOLS, **options))

    use(face, f"{wire}Provider", handler, act)
    return seen[0]


@both
def test_a_talk_becomes_a_responses_request(face: str) -> None:
    """Messages become items, tools are flat, the limit has its other name."""
    request = asked(face, "Responses", max_tokens=9, temperature=0.5, reasoning={"effort": "low"})

    assert ("/v1/responses", "Bearer key") == (request.path, request.headers["authorization"])
    assert {
        "model": "m",
        "stream": True,
        "max_output_tokens": 9,
        "temperature": 0.5,
        "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}],
        "input": [
            {"type": "message", "role": "system", "content": "Be brief."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
                ],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"x":1}'},
            {"type": "function_call_output", "call_id": "c", "output": "2"},
            {"type": "message", "role": "user", "content": "And?"},
        ],
    } == request.json


@both
def test_a_talk_becomes_a_chat_completions_request(face: str) -> None:
    """Messages stay, usage is asked for."""
    request = asked(face, "ChatCompletions", max_tokens=9)

    assert ("/v1/chat/completions", "Bearer key") == (request.path, request.headers["authorization"])
    assert {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "tools": TOOLS,
        "messages": TALK,
    } == request.json


@both
def test_a_talk_becomes_an_anthropic_request(face: str) -> None:
    """The system's words stand apart, neighbours of one role become one, tool results are the user's."""
    request = asked(face, "Anthropic")

    assert ("/v1/messages", "key") == (request.path, request.headers["x-api-key"])
    assert {
        "model": "m",
        "stream": True,
        "max_tokens": 4096,
        "system": "Be brief.",
        "tools": [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Hm."},
                    {"type": "tool_use", "id": "c", "name": "add", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": "2"},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
    } == request.json


@wires
def test_tools_may_be_flat(wire: str) -> None:
    """A tool is the same, nested or not, with its schema under either name."""
    flat = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    schema = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
    bodies = []
    for tool in (TOOLS[0], flat, schema):
        seen: list[Request] = []

        def handler(request: Request, seen: list[Request] = seen) -> Reply:
            seen.append(request)
            return json_reply(WHOLE[wire])

        use("sync", f"{wire}Provider", handler, lambda c, tool=tool: c.chat(model="m", messages=HELLO, tools=[tool]))
        bodies.append(seen[0].json)

    assert bodies[0] == bodies[1] == bodies[2]


@wires
@pytest.mark.parametrize("wrong", [{"tools": [{"name": 3}]}, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}])
def test_what_cannot_be_asked_is_refused_before_it_is_sent(wire: str, wrong: Any) -> None:
    """A tool without a name, or a tool call without an id, is the caller's mistake."""
    if wire == "ChatCompletions" and "messages" in wrong:
        return  # messages are in its own form, and go as they are

    def act(client: Any) -> Any:
        return client.chat(**{"model": "m", "messages": HELLO, **wrong})

    with pytest.raises(InvalidInput):
        use("sync", f"{wire}Provider", lambda _: json_reply(WHOLE[wire]), act)


def test_the_key_is_in_no_error() -> None:
    """Whatever is raised can be shown."""
    seen = use("sync", "ResponsesProvider", lambda _: json_reply({"error": "No."}, 401), chat)

    assert "Bearer" not in json.dumps([str(seen.error), seen.error.detail, dict(seen.error.headers)])


@both
@pytest.mark.parametrize(("reply", "error"), [(Reply(503), ProviderRefused), (Reply(die=True), StreamInterrupted)])
def test_chat_raises_when_nobody_answers(face: str, reply: Reply, error: type[Exception]) -> None:
    """Without a stream, refusals and lost connections are the same errors."""
    with pytest.raises(error):
        use(face, "ResponsesProvider", lambda _: reply, lambda c: c.chat(model="m", messages=HELLO))


@both
@wires
def test_a_line_beyond_all_bounds_is_malformed(face: str, wire: str) -> None:
    """A provider cannot fill the memory with one line; whether it ends or not."""
    endless = b"data: " + bytes([120]) * (8 * 1024 * 1024 + 1)

    for reply in (stream_reply(endless + b"\n\n", None), cut_reply(endless)):
        seen = use(face, f"{wire}Provider", lambda _, reply=reply: reply, chat)

        assert StreamMalformed is type(seen.error)


@both
@wires
def test_the_last_event_may_lack_its_blank_line(face: str, wire: str) -> None:
    """A whole terminal event counts, also when the server forgets how to end it."""
    body = next(one.body for one in RECORDINGS.values() if one.wire == wire)

    seen = use(face, f"{wire}Provider", lambda _: stream_reply(body.rstrip(), None), chat)

    assert (None, TEXT) == (seen.error, seen.partial.text)


@both
def test_leaving_with_closes_the_stream(face: str) -> None:
    """A stream is a context manager, and knows its answer's id."""

    def act(client: Any) -> Any:
        stream = client.chat_stream(model="m", messages=HELLO)
        if hasattr(stream, "__iter__"):
            with stream as opened:
                return next(iter(opened)), stream.id

        async def go() -> Any:
            async with stream as opened:
                return await anext(aiter(opened)), stream.id

        return go()

    with FakeServer(lambda _: stream_reply(sse(TEXT_EVENTS[:4]), None, silent=True)) as server:
        first, id = use(face, "ResponsesProvider", server.url, act)

    assert ("Hel", "resp_1") == (first.delta, id)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "message_start"},
        {"type": "content_block_start", "index": 0},
        {"type": "content_block_delta", "index": "x"},
        {"index": 0},
    ],
)
def test_an_event_without_what_it_must_have_is_malformed(event: Any) -> None:
    """An event of Anthropic's that cannot be used is raised."""
    body = sse([json.dumps(event)], named=False)

    seen = use("sync", "AnthropicProvider", lambda _: stream_reply(body, None), chat)

    assert StreamMalformed is type(seen.error)


def test_parts_of_other_kinds_add_nothing() -> None:
    """What nobody knows is passed over; a second thinking is set off by a blank line."""
    events = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "Hm."}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "something_new", "id": "x"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "thinking", "thinking": "So."}},
        {"type": "message_stop"},
    ]

    seen = use("sync", "AnthropicProvider", lambda _: stream_reply(sse(events), None), chat)

    assert (None, "Hm.\n\nSo.", "", ()) == (
        seen.error,
        seen.partial.thinking,
        seen.partial.text,
        seen.partial.tool_calls,
    )


OWN = {"type": "web_search", "name": "search"}
IMAGE = {"type": "image_url", "image_url": "http://host/a.png"}


@pytest.mark.parametrize(
    ("wire", "part"),
    [
        ("Responses", {"type": "input_image", "image_url": "http://host/a.png", "detail": "auto"}),
        ("Anthropic", {"type": "image", "source": {"type": "url", "url": "http://host/a.png"}}),
        ("ChatCompletions", IMAGE),
    ],
)
def test_what_is_in_a_providers_own_form_stays_as_it_is(wire: str, part: Any) -> None:
    """Tools and parts that only the provider knows go through; an image by its address is translated."""
    seen: list[Request] = []
    parts = [IMAGE, {"type": "own", "data": 1}]

    def handler(request: Request) -> Reply:
        seen.append(request)
        return json_reply(WHOLE[wire])

    talk = [{"role": "user", "content": parts}]
    use("sync", f"{wire}Provider", handler, lambda c: c.chat(model="m", messages=talk, tools=[OWN]))
    body = seen[0].json

    assert [OWN] == body["tools"]
    assert [part, parts[1]] == (body["input"] if wire == "Responses" else body["messages"])[0]["content"]


def test_input_items_stay_as_they_are() -> None:
    """Items of the Responses API, for example of an earlier answer, may stand among the messages."""
    seen: list[Request] = []
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}

    def handler(request: Request) -> Reply:
        seen.append(request)
        return json_reply(WHOLE["Responses"])

    use("sync", "ResponsesProvider", handler, lambda c: c.chat(model="m", messages=[reasoning, *HELLO]))

    assert reasoning == seen[0].json["input"][0]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "critic", "content": "No."},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "add", "arguments": "{"}}]},
    ],
)
def test_a_message_anthropic_cannot_take_is_refused_before_it_is_sent(message: Any) -> None:
    """An unknown role, or arguments that are no JSON, are the caller's mistake."""
    with pytest.raises(InvalidInput):
        use(
            "sync",
            "AnthropicProvider",
            lambda _: json_reply(WHOLE["Anthropic"]),
            lambda c: c.chat(model="m", messages=[message]),
        )


def test_a_whole_answer_of_another_form_is_malformed() -> None:
    """A message whose content is no list cannot be used."""
    with pytest.raises(StreamMalformed):
        use(
            "sync",
            "AnthropicProvider",
            lambda _: json_reply({"id": "m", "content": "Hello"}),
            lambda c: c.chat(model="m", messages=HELLO),
        )
