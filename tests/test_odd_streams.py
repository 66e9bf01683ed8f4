"""More oddities of models' streams: arguments that repeat themselves, other ends, other ways to say so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fake_server import Reply, Request, json_reply, stream_reply
from legato.http.retry import BackoffStrategy, RetryConfig
from legato.provider import ResponseFailed
from provider_streams import (
    HELLO,
    START,
    STOP,
    add,
    block,
    call,
    chat,
    chunk,
    delta,
    finish,
    item,
    numbered,
    over,
    sse,
    state,
    use,
)

QUICK = RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 60_000), True)
WEATHER = '{"city": "Rome {\\"x\\": [1]}", "days": [1, {"a": {}}]}'
NESTED = '{"a":{"a":1}}'
TWICE = '{"t":"{\\"t\\":"}'


def cut(text: str, *places: int) -> list[str]:
    return [text[begin:end] for begin, end in zip((0, *places), (*places, None), strict=True)]


def growing(text: str, *places: int) -> list[str]:
    return [text[:end] for end in (*places, None)]


ARGUMENTS: dict[str, tuple[list[Any], str]] = {
    "pieces": (cut(WEATHER, 1, 9, 20), WEATHER),
    "each repeats all before": (growing(WEATHER, 1, 9, 20), WEATHER),
    "from the first bracket": (growing(WEATHER, 1), WEATHER),
    "in the middle of a text": (growing(WEATHER, 14, 22), WEATHER),
    "before a value": (growing(WEATHER, 8), WEATHER),
    "each one character": (growing(WEATHER, *range(1, len(WEATHER))), WEATHER),
    "the last twice": ([*growing(WEATHER, 9), WEATHER], WEATHER),
    "the same twice": ([WEATHER[:9], *growing(WEATHER, 9)], WEATHER),
    "an object in one of its name": (['{"a":', '{"a":1}}'], NESTED),
    "the same in three": (['{"a":', '{"a":', "1}}"], NESTED),
    "a text that looks like the beginning": (['{"t":"', '{\\"t\\":"}'], TWICE),
    "null before the true ones": ([None, *cut(WEATHER, 9)], WEATHER),
    "null as text": (["null", *cut(WEATHER, 9)], WEATHER),
    "null with a blank": ([" null ", WEATHER], WEATHER),
    "nulls": (["null", "null", WEATHER], WEATHER),
    "nothing but null": (["null"], ""),
}


@pytest.mark.parametrize("named", ["first", "each"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str, named: str) -> None:
    """The right ones, whichever way they come; what was told of them on the way is their beginning."""
    pieces, wanted = ARGUMENTS[name]
    chunks = []
    for place, piece in enumerate(pieces):
        about = {"id": "a"} if not place or named == "each" else {}
        function = {"arguments": piece, **({"name": "f"} if about else {})}
        chunks.append(chunk(tool_calls=[{"index": 0, **about, "function": function}]))
    chunks += [chunk(tool_calls=[call(1, '{"y":2}', "b", "g")]), chunk("tool_calls")]
    seen = use(
        "sync", "ChatCompletionsProvider", lambda _: stream_reply(sse([*chunks, "[DONE]"], named=False), None), chat
    )

    assert seen.error is None
    assert [(each.id, each.name, each.arguments) for each in seen.partial.tool_calls] == [
        ("a", "f", wanted), ("b", "g", '{"y":2}')
    ]  # fmt: skip
    told = [each.tool_call_delta for each in seen.items if each.tool_call_delta is not None]
    assert "".join(each.arguments for each in told if each.index == 0) == wanted


@pytest.mark.parametrize("opening", ["", "Hel"])
@pytest.mark.parametrize("kind", ["text", "thinking"])
def test_a_block_that_begins_with_words(kind: str, opening: str) -> None:
    """Anthropic's blocks may have some before their first delta."""
    words = {"text": opening} if kind == "text" else {"thinking": opening, "signature": ""}
    field = {"text": "lo"} if kind == "text" else {"thinking": "lo"}
    events = [START, block(0, type=kind, **words), add(0, f"{kind}_delta", **field), over(0),
              block(1, type="text", text="!"), over(1), finish("end_turn"), STOP]  # fmt: skip
    seen = use("sync", "AnthropicProvider", lambda _: stream_reply(sse(events), None), chat)

    said = (seen.partial.thinking, seen.partial.text)
    assert said == (("", f"{opening}lo!") if kind == "text" else (f"{opening}lo", "!"))


TEXT = [item(0, "added", type="message", content=[]), delta(0, "output_text", "Hi"),
        item(0, "done", type="message", content=[{"type": "output_text", "text": "Hi"}])]  # fmt: skip
ENDS: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "completed": ({"status": "completed"}, "stop", None),
    "no status": ({"status": None}, "stop", None),
    "a status of its own": ({"status": "done"}, "stop", None),
    "failed": ({"status": "failed", "error": {"code": "server_error", "message": "Broke."}}, None, "Broke."),
    "an error": ({"status": "completed", "error": {"code": "x", "message": "Broke."}}, None, "Broke."),
    "incomplete": ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length", "length"),
    "cancelled": ({"status": "cancelled"}, None, "cancelled"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_response_that_is_done(name: str) -> None:
    """``response.done`` is the end of some servers; its status says how it went."""
    fields, reason, words = ENDS[name]
    response = {**state("completed")["response"], **fields}
    body = sse(numbered(state("created"), *TEXT, {"type": "response.done", "response": response}))
    seen = use("sync", "ResponsesProvider", lambda _: stream_reply(body, None), chat)

    assert (seen.error is None) is (words is None)
    assert words is None or words in str(seen.error)
    assert (seen.partial.text, seen.partial.finish_reason) == ("Hi", reason)


WHOLE = {"ChatCompletionsProvider": {"choices": [{"message": {"role": "assistant", "content": "Hi"},
                                                  "finish_reason": "stop"}]},
         "AnthropicProvider": {"type": "message", "content": [{"type": "text", "text": "Hi"}],
                               "stop_reason": "end_turn"}}  # fmt: skip
BUSY: list[Any] = [
    {"error": {"type": "overloaded_error", "message": "Overloaded"}},
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    {"error": {"code": 503, "message": "Busy"}},
    {"error": {"code": "rate_limit_exceeded", "message": "Slow down"}},
]
FINAL: list[Any] = [
    {"error": {"type": "invalid_request_error", "message": "No."}},
    {"error": {"code": "insufficient_quota", "message": "No."}},
]


@pytest.mark.parametrize("face", ["async", "sync"])
@pytest.mark.parametrize("api", WHOLE)
@pytest.mark.parametrize("body", [*BUSY, *FINAL], ids=json.dumps)
def test_an_overload_that_is_told_with_a_good_status(face: str, api: str, body: Any) -> None:
    """Asked for as a whole, an answer is tried again; what will not pass is not."""
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return json_reply(body if len(asked) == 1 else WHOLE[api])

    def act(client: Any) -> Any:
        return client.chat(model="m", messages=HELLO)

    if body in BUSY:
        assert use(face, api, handler, act, retry_config=QUICK).text == "Hi"
        assert len(asked) == 2
    else:
        with pytest.raises(ResponseFailed, match=r"No\."):
            use(face, api, handler, act, retry_config=QUICK)
        assert len(asked) == 1


@pytest.mark.parametrize(("delay", "seconds"), [("3600s", 3600.0), ("1.5s", 1.5), ("0s", 0.0), ("soon", None)])
def test_how_google_says_when_to_come_back(delay: str, seconds: float | None) -> None:
    """In the details of its error, and in no header."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    other = {"@type": "type.googleapis.com/google.rpc.Help"}
    error = {"error": {"code": 429, "message": "Quota.", "status": "RESOURCE_EXHAUSTED", "details": [other, info]}}
    for body in (error, [error]):
        seen = use("sync", "ChatCompletionsProvider", lambda _, body=body: json_reply(body, 429), chat)
        assert seen.error.retry_after == seconds
