"""Fuzzing the three readers of models' streams: whatever is done to a valid stream, it is a whole answer or an error.

Seeded and bounded: the same mutations in every run.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legato.http.call import HttpCall
from legato.http.errors import ConnectionLost
from legato.provider import ProviderError
from legato.provider.anthropic import AnthropicFold
from legato.provider.chat_completions import ChatCompletionsFold
from legato.provider.responses_fold import ResponsesFold
from legato.provider.stream import FoldedCall, MayPass, StreamState
from provider_streams import (
    CREATED,
    SPENT,
    START,
    STOP,
    add,
    block,
    call,
    chunk,
    delta,
    finish,
    item,
    numbered,
    over,
    sse,
    state,
)

WORDS = ["<t0>", "<t1>", "<t2>", "<t3>"]
"""Pieces of text, none of which is part of another, so that each can be counted."""
TEXT = "".join(WORDS)

STREAMS: dict[str, list[Any]] = {
    "ChatCompletions": [
        chunk(role="assistant", content=""),
        chunk(reasoning_content="Hm."),
        *(chunk(content=word) for word in WORDS),
        chunk(tool_calls=[call(0, "", "a", "add"), call(1, "", "b", "sub")]),
        chunk(tool_calls=[call(0, '{"x":1}')]),
        chunk(tool_calls=[call(1, '{"y":2}')]),
        chunk("tool_calls"),
        {"id": "chat_1", "model": "m-1", "choices": [], "usage": SPENT},
        "[DONE]",
    ],
    "Responses": numbered(
        CREATED,
        item(0, "added", type="reasoning", summary=[]),
        delta(0, "reasoning_summary_text", "Hm.", summary_index=0),
        item(0, "done", type="reasoning", summary=[{"text": "Hm."}]),
        item(1, "added", type="message", content=[]),
        *(delta(1, "output_text", word, content_index=0) for word in WORDS),
        item(1, "done", type="message", content=[{"type": "output_text", "text": TEXT}]),
        item(2, "added", type="function_call", call_id="a", name="add", arguments=""),
        delta(2, "function_call_arguments", '{"x":1}'),
        item(2, "done", type="function_call", call_id="a", name="add", arguments='{"x":1}'),
        state("completed", output=[{"type": "message", "id": "item_1", "content": [{"text": TEXT}]}]),
    ),
    "Anthropic": [
        START,
        block(0, type="thinking", thinking=""),
        add(0, "thinking_delta", thinking="Hm."),
        over(0),
        block(1, type="text", text=""),
        *(add(1, "text_delta", text=word) for word in WORDS),
        over(1),
        block(2, type="tool_use", id="a", name="add", input={}),
        add(2, "input_json_delta", partial_json='{"x":1}'),
        over(2),
        finish("tool_use"),
        STOP,
    ],
}
FOLDS: dict[str, Any] = {
    "ChatCompletions": ChatCompletionsFold,
    "Responses": ResponsesFold,
    "Anthropic": AnthropicFold,
}
ODD = [None, 0, -1, 1.5, 10**400, True, "", "x", "0", "\ud83d", "\ude00", [], [None], {}, {"text": 1}, [[]], "null",
       float("nan"), float("inf"), "error", {"error": "x"}, [{"type": "text"}], "message", 2**63]  # fmt: skip


def run(wire: str, body: bytes, *, lost: bool = False, cut: int = 7, kind: str = "text/event-stream") -> Any:
    """The result, the chunks and the error of a body that comes in pieces of so many bytes."""
    state = StreamState(FoldedCall(HttpCall("POST", "/", dict), FOLDS[wire]))
    chunks: list[Any] = []
    pieces: list[Any] = [body[place : place + cut] for place in range(0, len(body), cut)]
    try:
        state.request()
        state.opened({"content-type": kind})  # type: ignore[arg-type]
        for piece in [*pieces, None]:
            if piece is None and lost:
                state.cut(ConnectionLost("cut"))
            else:
                state.receive(piece)
            state.begun()
            chunks += state.items()
            if state.ended:
                return state.partial, chunks, None
            if state.broken:
                state.pause()
                raise AssertionError("None of these can be continued.")
    except MayPass as passing:
        return state.partial, chunks, passing.failure
    except ProviderError as error:
        return error.partial, chunks, error
    raise AssertionError("A body that has ended is an end, or an error.")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(each for key, one in inner for each in places(one, (*path, key)))]


def change(value: Any, path: tuple[Any, ...], kind: str, odd: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    if kind == "drop":
        del value[path[-1]]
    elif kind == "retype":
        value[path[-1]] = copy.deepcopy(odd)
    elif isinstance(value, dict):
        value[f"{path[-1]}2"] = value[path[-1]]
    else:
        value.insert(path[-1], copy.deepcopy(value[path[-1]]))


@st.composite
def mutated(draw: st.DrawFn, wire: str) -> list[Any]:
    """A stream's payloads after up to four mutations."""
    payloads: list[Any] = copy.deepcopy(STREAMS[wire])
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["drop", "retype", "twice", "lose", "double", "swap", "cut"]))
        place = draw(st.integers(0, len(payloads) - 1))
        if kind == "lose":
            del payloads[place]
        elif kind == "double":
            payloads.insert(place, copy.deepcopy(payloads[place]))
        elif kind == "swap":
            other = draw(st.integers(0, len(payloads) - 1))
            payloads[place], payloads[other] = payloads[other], payloads[place]
        elif kind == "cut":
            del payloads[place + 1 :]
        elif isinstance(payloads[place], dict) and (inside := places(payloads[place])):
            change(payloads[place], draw(st.sampled_from(inside)), kind, draw(st.sampled_from(ODD)))
        if not payloads:
            break
    return payloads


def body_of(payloads: list[Any]) -> bytes:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in payloads]
    return "".join(f"data: {text}\n\n" for text in texts).encode("utf-8", "surrogatepass")


def summed(chunks: list[Any]) -> tuple[str, str, str, list[tuple[str, ...]]]:
    calls: list[list[str]] = []
    for piece in (each.tool_call_delta for each in chunks if each.tool_call_delta):
        if piece.index == len(calls):
            calls.append([piece.id, piece.name, ""])
        calls[piece.index][2] += piece.arguments
    return (
        "".join(each.delta for each in chunks),
        "".join(each.thinking for each in chunks),
        "".join(each.refusal for each in chunks),
        [tuple(each) for each in calls],
    )


def said(payloads: list[Any]) -> dict[str, int]:
    """How often each word is said at most: by pieces of text, each of which counts, or where it stands as a whole."""
    pieces, wholes = Counter[str](), Counter[str]()
    for each in payloads:
        found = Counter({word: json.dumps(each).count(word) for word in WORDS})
        if isinstance(each, dict) and ("item" in each or "response" in each):
            wholes |= found
        else:
            pieces += found
    return {word: max(pieces[word], wholes[word], 1) for word in WORDS}


def ended_by(wire: str, payloads: list[Any]) -> bool:
    """Whether what ends an answer of this wire is there, at its place."""
    dicts = [each for each in payloads if isinstance(each, dict)]
    if wire == "ChatCompletions":
        given = [one if isinstance(one, list) else [one] for one in (each.get("choices") for each in dicts)]
        choices = [choice for one in given for choice in one if isinstance(choice, dict)]
        return "[DONE]" in payloads or any(choice.get("finish_reason") or choice.get("message") for choice in choices)
    if wire == "Responses":
        return any(each.get("type") == "response.completed" or isinstance(each.get("output"), list) for each in dicts)
    return any(
        each.get("type") in ("message_stop", "message", "message_delta") or isinstance(each.get("content"), list)
        for each in dicts
    )


BOUNDED = settings(
    max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("wire", STREAMS)
@BOUNDED
@given(data=st.data(), lost=st.booleans(), cut=st.sampled_from([1, 7, 64, 10_000]))
def test_a_stream_that_was_tampered_with(wire: str, data: st.DataObject, lost: bool, cut: int) -> None:
    """No crash, no hang, no text twice, and never complete without the provider's own end."""
    payloads = data.draw(mutated(wire))
    result, chunks, error = run(wire, body_of(payloads), lost=lost, cut=cut)

    assert summed(chunks) == (result.text, result.thinking, result.refusal,
                              [(c.id, c.name, c.arguments) for c in result.tool_calls])  # fmt: skip
    result.text.encode()  # no half letters
    assert all(result.text.count(word) <= most for word, most in said(payloads).items())
    if error is None:
        assert ended_by(wire, payloads)
    again = run(wire, body_of(payloads), lost=lost, cut=10_000)
    assert (result, type(error)) == (again[0], type(again[2]))


@pytest.mark.parametrize("wire", STREAMS)
@BOUNDED
@given(data=st.data(), cut=st.sampled_from([1, 64, 10_000]), kind=st.sampled_from(["text/event-stream", "", "text/x"]))
def test_bytes_that_were_tampered_with(wire: str, data: st.DataObject, cut: int, kind: str) -> None:
    """Also where the damage is no JSON any more: bytes dropped, doubled, or put in."""
    body = bytearray(sse(STREAMS[wire], named=False))
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(body) - 1))
        end = min(len(body), begin + data.draw(st.integers(1, 60)))
        match data.draw(st.sampled_from(["drop", "double", "put", "cut"])):
            case "drop":
                del body[begin:end]
            case "double":
                body[begin:begin] = body[begin:end]
            case "put":
                body[begin:begin] = data.draw(st.sampled_from([b"\n", b"\r", b"\n\n", b"{", b"}", b"error: ", b"[[[[",
                                                              b"\xed\xa0\xbd", b"\x00", b'"', b"data: ", b"event: x\n",
                                                              b"[" * 3_000, b"9" * 6_000]))  # fmt: skip
            case _:
                del body[begin:]
        if not body:
            break
    result, chunks, _ = run(wire, bytes(body), cut=cut, kind=kind)

    assert result.text == "".join(each.delta for each in chunks)
    result.text.encode()


@pytest.mark.parametrize("wire", STREAMS)
@pytest.mark.parametrize("lost", [False, True])
def test_the_stream_itself(wire: str, lost: bool) -> None:
    """What is tampered with is whole, and every beginning of it without its end is an error."""
    payloads = STREAMS[wire]
    result, _, error = run(wire, body_of(payloads), lost=lost)
    assert (None, TEXT, "Hm.", "tool_calls") == (error, result.text, result.thinking, result.finish_reason)

    for size in range(len(payloads)):
        _, _, error = run(wire, body_of(payloads[:size]), lost=lost)
        assert (error is None) <= ended_by(wire, payloads[:size])
        assert error is not None or not lost
