"""The providers against a real model server (llama.cpp's) with a tiny model: see ``tiny_model.py``."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from legato.provider import ChatResult, ProviderRefused, ResponseIncomplete
from provider_streams import FACES, HELLO, chat, use
from tiny_model import MAKER, MODEL, serving_model, tiny_model
from venvs import llama_python

WIRES = ["ChatCompletions", "Responses", "Anthropic"]
both = pytest.mark.parametrize("face", FACES)
each = pytest.mark.parametrize("wire", WIRES)
# Of these, since llama.cpp calls each answer of its Responses API completed, also one that was cut.
tells_length = pytest.mark.parametrize("wire", ["ChatCompletions", "Anthropic"])

WEATHER = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_model() as address:
        yield address


@pytest.fixture(scope="module")
def endless_url() -> Iterator[str]:
    with serving_model(endless=True) as address:
        yield address


def streamed(url: str, wire: str, face: str = "async", **options: Any) -> Any:
    return use(face, f"{wire}Provider", url, lambda client: chat(client, model=MODEL, **options))


def whole(url: str, wire: str, **options: Any) -> ChatResult:
    result: ChatResult = use(
        "async", f"{wire}Provider", url, lambda client: client.chat(model=MODEL, **{"messages": HELLO, **options})
    )
    return result


def content(result: ChatResult) -> tuple[Any, ...]:
    """All of an answer but the names that each has of its own."""
    calls = [(call.name, json.loads(call.arguments)) for call in result.tool_calls]
    return result.text, calls, result.usage, result.finish_reason


def test_the_model_is_the_same_every_time(tmp_path: Path) -> None:
    """Made again, it has the same bytes."""
    again = tmp_path / "again.gguf"
    subprocess.run([str(llama_python()), str(MAKER), str(again)], check=True)
    assert tiny_model().read_bytes() == again.read_bytes()


@both
@each
def test_an_answer_comes_token_by_token(wire: str, face: str, url: str) -> None:
    """One chunk for each token but the last, which ends it; then what it cost."""
    seen = streamed(url, wire, face)

    assert seen.error is None
    deltas = [chunk.delta for chunk in seen.items if chunk.delta]
    assert seen.partial.text == "".join(deltas)
    assert (seen.partial.finish_reason, seen.partial.usage.output_tokens) == ("stop", len(deltas) + 1)
    assert seen.partial.usage.input_tokens > len(HELLO[0]["content"])


@each
@pytest.mark.parametrize(
    "options", [{}, {"tools": [WEATHER]}, {"messages": [{"role": "user", "content": "Täglich ☃?"}]}]
)
def test_the_whole_answer_is_the_streamed_one(wire: str, options: dict[str, Any], url: str) -> None:
    """Text, calls, usage and the reason of the end."""
    assert content(streamed(url, wire, **options).partial) == content(whole(url, wire, **options))


def test_all_apis_give_the_same_answer(url: str) -> None:
    """It is one model, asked the same."""
    assert len({str(content(streamed(url, wire).partial)) for wire in WIRES}) == 1


@both
@tells_length
def test_an_answer_that_was_cut_is_incomplete(wire: str, face: str, url: str) -> None:
    """With what was said; without chance, the whole answer is the same."""
    seen = streamed(url, wire, face, temperature=0, max_tokens=9)

    assert isinstance(seen.error, ResponseIncomplete)
    assert (seen.error.reason, seen.error.partial, seen.partial.usage.output_tokens) == ("length", seen.partial, 9)
    with pytest.raises(ResponseIncomplete) as caught:
        whole(url, wire, temperature=0, max_tokens=9)
    assert content(caught.value.partial) == content(seen.partial)


@each
def test_a_tool_is_called_and_its_answer_taken(wire: str, url: str) -> None:
    """The arguments come in pieces and fit the tool; the next answer is text."""
    asked = streamed(url, wire, tools=[WEATHER])

    assert (asked.error, asked.partial.finish_reason, asked.partial.text) == (None, "tool_calls", "")
    assert len([chunk for chunk in asked.items if chunk.tool_call_delta]) > 2
    for call in asked.partial.tool_calls:
        assert (call.name, list(json.loads(call.arguments))) == ("weather", ["city"])

    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in asked.partial.tool_calls
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in calls]
    said = [*HELLO, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    answer = streamed(url, wire, tools=[WEATHER], messages=said)

    assert (answer.error, answer.partial.finish_reason, answer.partial.tool_calls) == (None, "stop", ())
    assert answer.partial.text
    assert answer.partial.usage.input_tokens > asked.partial.usage.input_tokens


@both
@each
def test_leaving_the_loop_stops_the_model(wire: str, face: str, url: str) -> None:
    """Long before it has said all it was asked for; the client stays open."""
    asked, before = 30_000, decoded(url)

    def leave(client: Any) -> Any:
        stream = client.chat_stream(model=MODEL, messages=HELLO, temperature=0, max_tokens=asked)
        if face == "async":
            return leave_async(stream)
        for _ in stream:
            break
        return wait_until_idle(url)

    async def leave_async(stream: Any) -> None:
        async for _ in stream:
            break
        await asyncio.to_thread(wait_until_idle, url)

    use(face, f"{wire}Provider", url, leave)

    assert 0 < decoded(url) - before < asked / 2


@each
def test_an_endless_model_outlasts_its_reader(wire: str, endless_url: str) -> None:
    """It has not ended after many times the usual length."""

    async def some(client: Any) -> int:
        chunks = 0
        async for chunk in client.chat_stream(model=MODEL, messages=HELLO, max_tokens=30_000):
            assert chunk.finish_reason is None
            chunks += 1
            if chunks == 1000:
                break
        return chunks

    assert use("async", f"{wire}Provider", endless_url, some) == 1000


def decoded(url: str) -> int:
    """How many steps the server's model has made since it was started."""
    lines = httpx2.get(url.replace("/v1", "/metrics")).text.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("llamacpp:n_decode_total"))


def wait_until_idle(url: str) -> None:
    while any(slot["is_processing"] for slot in httpx2.get(url.replace("/v1", "/slots")).json()):
        time.sleep(0.01)


@each
def test_a_prompt_that_is_too_long_is_refused(wire: str, url: str) -> None:
    """With the server's own reason."""
    seen = streamed(url, wire, messages=[{"role": "user", "content": "☃" * 20_000}])

    assert isinstance(seen.error, ProviderRefused)
    assert (seen.error.status_code, seen.error.type) == (400, "exceed_context_size_error")
    assert seen.partial == ChatResult()
