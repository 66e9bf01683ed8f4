"""What is read from a body takes a time in proportion to it, and holds nobody up however long that is.

Work is counted in calls that Python makes, between two looks of the event loop or in all, and not in seconds.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from legato import Legato, json
from legato.aside import WAITING, Aside
from legato.dialect import mix_api, responses_api
from legato.dialect.responses_api import Create, CreateChat
from legato.errors import InvalidInput, Overloaded, TooLarge
from legato.json import LARGE, MAX_VALUES, PIECE, JsonObject, decode_in_pieces
from legato.part import CallPart
from legato.testing import Driver

USER = {"role": "user", "content": "go"}
DONE = {"role": "assistant", "content": "done"}


def call(id: object) -> JsonObject:
    return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"}


def output(id: object, text: str = "ok") -> JsonObject:
    return {"type": "function_call_output", "call_id": id, "output": text}


def chat_call(id: object) -> JsonObject:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def image(size: int) -> JsonObject:
    return {"type": "input_image", "image_url": "data:image/png;base64," + "A" * size}


INPUTS: dict[str, Callable[[int], list[JsonObject]]] = {
    "calls, then what came of them": lambda n: [*map(call, names(n)), *map(output, names(n)), DONE],
    "calls, each with what came of it": lambda n: (
        [x for i in range(n) for x in (call(str(i)), output(str(i)))] + [DONE]
    ),
    "calls of one name": lambda n: [*[call("a")] * n, *[output("a")] * n, DONE],
    "calls of no name": lambda n: [*[call(None)] * n, *[output(None)] * n, DONE],
    "calls with odd names": lambda n: [*[call(["a"])] * n, *[output(["a"])] * n, DONE],
    "what came of one call": lambda n: [call("a"), *[output("a")] * n, DONE],
    "what came of no call": lambda n: [DONE, *map(output, names(n)), DONE],
    "long names": lambda n: [*[call("a" * n)] * 9, *[output("a" * n)] * 9, DONE],
    "turns": lambda n: [USER, DONE] * (n // 2),
    "users": lambda n: [USER] * n,
    "users before an answer": lambda n: [USER] * n + [DONE],
    "answers": lambda n: [DONE] * n,
    "systems": lambda n: [{"role": "system", "content": "a"}] * n,
    "thoughts": lambda n: [{"type": "reasoning", "summary": [{"text": "a"}]}] * n,
    "parts of a message": lambda n: [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * n}],
    "parts of an answer": lambda n: [{"role": "assistant", "content": [{"text": "a"}, {"refusal": "b"}] * (n // 2)}],
    "parts that are no text": lambda n: [{"role": "user", "content": [{"type": "input_image"}] * n}],
    "parts of an output": lambda n: [call("a"), output("a") | {"output": [{"text": "a"}] * n}, DONE],
    "fields of an item": lambda n: [{"role": "user", "content": "a", **{f"k{i}": i for i in range(n)}}],
    "items of no kind": lambda n: [{"type": "web_search_call"}] * n,
}
CHATS: dict[str, Callable[[int], list[JsonObject]]] = {
    "calls of one message": lambda n: [
        {"role": "assistant", "tool_calls": [*map(chat_call, names(n))]},
        *({"role": "tool", "tool_call_id": str(i), "content": "ok"} for i in range(n)),
        DONE,
    ],
    "calls of many messages": lambda n: (
        [
            x
            for i in range(n // 2)
            for x in (
                {"role": "assistant", "tool_calls": [chat_call("a")]},
                {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "ok"}]},
            )
        ]
        + [DONE]
    ),
    "refusals": lambda n: [{"role": "assistant", "refusal": "no"}] * n,
    "turns": lambda n: [USER, DONE] * (n // 2),
}


def body(path: str, kind: str, n: int) -> JsonObject:
    """A request for a response that says so much."""
    if path.endswith("responses"):
        said = [{"role": "user", "content": [image(150 * n)]}] if kind == FILE else INPUTS[kind](n)
        return {"input": [*said, USER]}
    return {"messages": [*CHATS[kind](n), USER]}


FILE = "a large file"
KINDS = [("/v1/responses", kind) for kind in INPUTS] + [("/v1/chat/completions", kind) for kind in CHATS]


@contextmanager
def counted() -> Iterator[list[int]]:
    """The calls of this thread in each step of an event loop, and in all if there is none."""
    steps = [0]
    step = asyncio.Handle._run.__code__

    def count(frame: Any, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            steps[-1] += 1
            if frame.f_code is step:
                steps.append(0)

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        yield steps
    finally:
        sys.setprofile(previous)


@pytest.mark.parametrize(("path", "kind"), KINDS)
def test_reading_a_body_takes_as_long_as_it_is(path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as much takes twice as many calls, piece by piece."""
    monkeypatch.setattr(responses_api, "LARGE", 0)
    monkeypatch.setattr(json, "PIECE", 100)

    def cost(n: int) -> int:
        raw = msgspec.json.encode(body(path, kind, n))
        with counted() as steps:
            if path.endswith("responses"):
                created = responses_api.decode(raw, Create)
            else:
                created = responses_api.from_chat(responses_api.decode(raw, CreateChat))
            responses_api.prompt(created)
        return sum(steps)

    assert cost(4_000) < 2.5 * cost(2_000)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize(("path", "kind"), [*KINDS, ("/v1/responses", FILE)])
async def test_a_large_body_holds_no_one_up(path: str, kind: str, store: str, tmp_path: Path) -> None:
    """However much it is, the event loop looks around after so many calls; what waits meanwhile goes on.

    What is one event of the log is settled, stored and read aside. Many are given to the store at once, so there is a
    bound of them, and each costs the loop some calls. And of what is not large, each item does.
    """
    events = ("turns", "users before an answer", "answers", "refusals", "what came of no call")
    most = 60_000 if kind in events else 15_000

    async def agent(turn: object) -> str:
        return "x"

    source = "memory:" if store == "memory" else f"sqlite:///{tmp_path / 'x.db'}"
    async with Driver(Legato(source, agents=[agent])) as driver:  # type: ignore[list-item]
        raw = msgspec.json.encode(body(path, kind, 4_800))
        for _ in range(2):  # what is loaded for the first of them is not counted
            with counted() as steps:
                answer = await driver.request("POST", path, body=raw)
            assert answer.status == 200, answer.text
        assert max(steps) < most


# Calls and what came of them ------------------------------------------------------------------------------------------


def test_what_came_of_a_call_is_of_the_newest_and_the_last_that_was_said() -> None:
    """Of several calls of one id, an output is that of the newest step; one that is repeated counts."""
    items = [call("a"), output("a", "0"), call("a"), output("a", "1"), call("b"), output("a", "2"), call("c"), DONE]
    asked = responses_api.prompt(Create(input=[*items, output("b", "late"), USER]))
    parts = [part for part in asked.earlier[0].parts or [] if isinstance(part, CallPart)]
    assert [(part.step, part.id, part.output, part.done) for part in parts] == [
        (1, "a", "0", True),
        (2, "a", "2", True),
        (3, "b", msgspec.UNSET, False),
        (3, "c", msgspec.UNSET, False),
    ]


def test_so_many_messages_may_have_been_said_before() -> None:
    """More are refused: each is an event of the log."""
    most = responses_api.MAX_EARLIER
    assert len(responses_api.prompt(Create(input=[*[USER] * (most - 1), DONE, USER])).earlier) == most
    with pytest.raises(responses_api.BadRequest, match=str(most + 1)):
        responses_api.prompt(Create(input=[*[USER] * most, DONE, USER]))


# Pieces ---------------------------------------------------------------------------------------------------------------

BLANKS = b" \n\t" * PIECE
VALUES = [
    *("a", "a" * LARGE, '"\\' * LARGE, "\u20ac" * LARGE, 1, 1.5, None, True, [], {}),
    [1] * LARGE,
    [[], {}, "a,[{" * 9] * 20_000,
    {f"k{n}": n for n in range(LARGE // 4)},
    {"a": {"b": [{"c": "d" * LARGE}, *range(LARGE // 4)]}},
    {"a": ",[{" * 300_000, "b": '\\",' * 100_000},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_pieces_are_the_whole(value: object) -> None:
    """A text that is decoded in pieces is what it is when it is decoded at once, whatever is in its strings."""
    raw = msgspec.json.encode(value)
    assert decode_in_pieces(raw, object) == value == decode_in_pieces(BLANKS + raw + BLANKS, object)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"input": "' + b'\\"' * LARGE, b"[1,2" * LARGE, b'"\xff"', b"{}{}", BLANKS]
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    """As it is by msgspec."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode_in_pieces(raw, object)


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/responses", "/v1/chat/completions", "/api/sessions", "/api/sdk/chat"]
)
@pytest.mark.parametrize("value", [b"{}", b"[]", b"1", b'""', b'{"a":[]}'])
async def test_too_many_values_are_refused(path: str, value: bytes) -> None:
    """What makes objects of so many values could not be interrupted."""

    async def agent(turn: object) -> str:
        return "x"

    async with Driver(Legato("memory:", agents=[agent])) as driver:  # type: ignore[list-item]
        raw = b'{"input":[' + b",".join([value] * (MAX_VALUES + 1)) + b"]}"
        answer = await driver.request("POST", path, body=raw)
        assert answer.status == 413, answer.text


async def test_a_large_body_is_refused_as_a_small_one_is() -> None:
    """With the same words, which name the place."""

    async def agent(turn: object) -> str:
        return "x"

    async with Driver(Legato("memory:", agents=[agent])) as driver:  # type: ignore[list-item]
        for fill in ("", "x" * LARGE):
            for given, param in (
                ({"input": [USER, 1]}, "input[1]"),
                ({"input": "a", "temperature": "hot"}, "temperature"),
                ({"input": "a", "metadata": {str(n): "v" for n in range(300)}}, "metadata"),
            ):
                answer = await driver.request("POST", "/v1/responses", json={**given, "fill": fill})
                assert (answer.status, answer.json()["error"]["param"]) == (400, param)
            answer = await driver.request("POST", "/api/sessions", json={"title": 1, "fill": fill})
            assert answer.status == 400
            assert "$.title" in answer.text


async def test_what_is_large_is_stored_as_what_is_small() -> None:
    """A message that was worked on beside the loop is in the log as any other, and is read again as it was sent."""

    async def agent(turn: Any) -> str:
        return f"{len(turn.history)} {len(turn.message.metadata['input'])}"

    async with Driver(Legato("memory:", agents=[agent])) as driver:
        for n in (3, 3_000):
            items = [USER, *map(call, names(n)), *map(output, names(n)), DONE, USER]
            answer = (await driver.request("POST", "/v1/responses", json={"input": items})).json()
            assert answer["output"][0]["content"][0]["text"] == f"2 {len(items)}"
            page = await driver.request("GET", f"/v1/responses/{answer['id']}/input_items?limit=2")
            assert [item["role"] for item in page.json()["data"]] == ["user", "assistant"]


@pytest.mark.parametrize("size", [2, LARGE])
def test_the_text_of_a_streaming_message_may_be_json(size: int) -> None:
    """Of any size; what is not JSON, or no object with a text, is a text."""
    given = {"text": "a", "fill": "x" * size}
    message = mix_api.StreamMessage(content=msgspec.json.encode(given).decode())
    assert mix_api.stream_message(message) == ("a", {"fill": "x" * size})
    message = mix_api.StreamMessage(content="{" * size)
    assert mix_api.stream_message(message) == ("{" * size, {})


async def test_depth_is_bounded_also_in_large_bodies() -> None:
    """A value that nobody could read again is refused before it is stored."""

    async def agent(turn: object) -> str:
        return "x"

    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    async with Driver(Legato("memory:", agents=[agent])) as driver:  # type: ignore[list-item]
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        for fill in ("", "x" * LARGE):
            for path, given in (
                ("/v1/responses", {"input": [{**USER, "deep": deep}]}),
                ("/api/sessions/s/messages", {"text": "a", "deep": deep}),
            ):
                answer = await driver.request("POST", path, json={**given, "fill": fill})
                assert answer.status == 400, answer.text
                assert "deep" in answer.text
    with pytest.raises(InvalidInput, match="deeper"):
        decode_in_pieces(b"[" * 100 + b'"' + b"x" * LARGE + b'"' + b"]" * 100, object)
    with pytest.raises(TooLarge):
        decode_in_pieces(b"[" + b"1," * MAX_VALUES + b"1]", object)


async def test_what_waits_aside_is_bounded() -> None:
    """In bytes; what is small does not wait for what is huge, and who comes when too much waits is refused."""
    aside, go = Aside(), threading.Event()
    try:
        huge = [asyncio.ensure_future(aside.do(WAITING // 8, go.wait, 30)) for _ in range(7)]
        await asyncio.sleep(0)
        assert await aside.do(LARGE, str, 1) == "1"
        with pytest.raises(Overloaded):
            await aside.do(WAITING // 4, str, 1)
        go.set()
        assert all(await asyncio.gather(*huge))
        assert await aside.do(WAITING, str, 1) == "1"
    finally:
        aside.close()
