"""The door of an agent: every field of everything that it can yield, raise or ask, with what it must not be.

What a log holds is what the facts say it is: whatever came is stored as the declared type, or its run fails, with the
name of the field. And whoever reads that session, or a list of all, is answered as before.
"""

from __future__ import annotations

import asyncio
import decimal
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from driving import Chat, chatting, ends
from legato import (
    AgentError,
    Checkpoint,
    Finish,
    Limits,
    Refusal,
    Text,
    Thinking,
    ToolArguments,
    ToolCall,
    ToolReady,
    ToolResult,
    ToolStarted,
    Usage,
)
from legato.client import models
from legato.errors import InvalidInput, TooLarge
from legato.event import EVENTS
from legato.part import DEPTH, convert, decoder
from legato.store.memory import MemoryStore
from raw_log import canonical


class Shout(str):
    """Text, but not only."""

    def isascii(self) -> bool:
        return True

    def __str__(self) -> str:
        return "something else"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, Any] = {
    "None": None,
    "text": "x",
    "a number as text": "12",
    "True": True,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "2**70": 2**70,
    "10**400": 10**400,
    "10**5000": 10**5000,
    "-1": -1,
    "0.5": 0.5,
    "a decimal": decimal.Decimal("0.25"),
    "no decimal": decimal.Decimal("nan"),
    "[]": [],
    "{}": {},
    "an object": object(),
    "a class": str,
    "half a pair": "a\ud800b",
    "bytes": b"\xff",
    "a kind of text": Shout("é\ud800"),
    "long": "y" * 300_000,
    "deep": nested(50_000),
    "rather deep": nested(DEPTH + 1),
}
CALL = ToolCall("c0", "look")
YIELDS: dict[type, dict[str, Any]] = {
    Text: {"text": "t"},
    Refusal: {"text": "t"},
    Thinking: {"text": "t"},
    ToolCall: {"id": "c", "name": "n", "arguments": "{}", "by": None},
    ToolArguments: {"id": "c0", "text": "{}"},
    ToolReady: {"id": "c0"},
    ToolStarted: {"id": "c0", "progress": "p"},
    ToolResult: {"id": "c0", "output": 1, "success": True, "progress": "p"},
    Usage: {"input_tokens": 1, "output_tokens": 1, "cached_tokens": 1, "reasoning_tokens": 1, "cost": 1.0, "model": ""},
    Finish: {"reason": "r"},
    Checkpoint: {"data": 1},
}
ASKS: dict[str, dict[str, Any]] = {
    "ask_permission": dict.fromkeys(("tool", "description", "action", "path", "params", "call", "timeout")),
    "notify": dict.fromkeys(("title", "message", "kind", "response", "choices", "timeout", "wait")),
}
FIELDS = [
    *((kind.__name__, field) for kind, fields in YIELDS.items() for field in fields),
    *((f"turn.{name}", field) for name, fields in ASKS.items() for field in fields),
    *(("AgentError", field) for field in ("message", "code", "detail")),
]


def test_no_yield_is_forgotten() -> None:
    """Every field of every struct that an agent may yield stands in the table."""
    assert {kind: set(fields) for kind, fields in YIELDS.items()} == {
        kind: set(kind.__struct_fields__) for kind in YIELDS
    }


async def doing(turn: Any, kind: str, field: str, value: Any) -> AsyncIterator[Any]:
    """An answer with this value in this field."""
    yield "Before. "
    if kind == "AgentError":
        if field == "detail":
            raise AgentError("No.", why=value)
        raise AgentError(**{"message": "No.", field: value})
    if kind.startswith("turn."):
        if kind == "turn.notify":
            asked = turn.notify(**{"title": "t", "message": "m", field: value})
        else:
            asked = turn.ask_permission(**{"tool": "t", "description": "d", "timeout": 0, field: value})
        asking = asyncio.ensure_future(asked)
        await asyncio.wait([asking], timeout=0.05)  # some wait without an end
        if asking.done():
            await asking
    else:
        yield CALL
        made, given = next((made, given) for made, given in YIELDS.items() if made.__name__ == kind)
        yield made(**{**given, field: value})
    yield "After."


READS_OF_A_RUN: list[tuple[str, str, Any]] = [
    ("GET", "/v1/responses/resp_{r}", dict[str, Any]),
    ("GET", "/v1/responses/resp_{r}?stream=true", None),
    ("POST", "/api/sdk/chat/{s}/messages/{r}~u/query/stream", None),
]
READS: list[tuple[str, str, Any]] = [
    ("GET", "/api/sessions", list[models.SessionData]),
    ("GET", "/api/sessions/{s}", models.SessionData),
    ("GET", "/api/sessions/{s}/messages", list[models.BackendMessage]),
    ("GET", "/api/sessions/{s}/export", models.ExportSession),
    ("GET", "/api/sessions/{s}/events", models.EventPage),
    ("GET", "/api/messages/history", list[models.BackendMessage]),
    ("GET", "/api/sdk/chat/{s}", dict[str, Any]),
    ("GET", "/api/sdk/chat/{s}/messages", dict[str, Any]),
    ("GET", "/api/inspect", dict[str, Any]),
    ("GET", "/api/inspect/sessions/{s}", dict[str, Any]),
    ("GET", "/api/inspect/sessions/{s}/wire?dialects=mix/legato,responses,chat,deva", dict[str, Any]),
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
async def test_a_field_is_what_it_is_declared_to_be_or_its_run_fails(
    kind: str, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And everything that shows the session, or all of them, is there, and fit for our own client."""
    caplog.set_level(logging.WARNING, logger="legato")
    given: dict[str, Any] = {}

    async def agent(turn: Any) -> AsyncIterator[Any]:
        async for item in doing(turn, kind, field, given["value"]):
            yield item

    async with chatting(None, agent) as chat:
        for name, value in VALUES.items():
            given["value"] = value
            caplog.clear()
            answer = (await chat.said()).json()
            events = [event for event in await canonical(chat.driver, chat.session) if event["run"] == answer["runId"]]
            for event in events:
                stored = msgspec.json.encode(event["data"])
                decoder(EVENTS[event["type"]]).decode(stored)  # as strictly as it can be
            end = events[-1]
            if end["data"].get("usage"):
                used = convert(end["data"]["usage"], Usage)
                assert math.isfinite(used.cost)
                assert min(used.cost, used.input_tokens, used.output_tokens, used.cached_tokens) >= 0
            if end["type"] == "run.failed" and kind != "AgentError":
                assert end["data"]["code"] in ("invalid_input", "too_large"), (name, end)
                if end["data"]["code"] == "invalid_input" and "There is no tool call" not in end["data"]["message"]:
                    named = "choice" if field == "choices" else field
                    assert f"{kind.removeprefix('turn.')}" in end["data"]["message"], (name, end["data"]["message"])
                    assert named in end["data"]["message"], (name, end["data"]["message"])
                assert "the agent did what it cannot: " in caplog.text, name
            assert end["type"] != "run.failed" or end["data"]["code"] != "internal_error"
            await read_all(chat, READS_OF_A_RUN, run=answer["runId"])
            assert "does not fit" not in caplog.text, name  # nothing had to be mended to be shown
        caplog.clear()
        await read_all(chat, READS)
        assert "does not fit" not in caplog.text


async def read_all(chat: Chat, reads: Sequence[tuple[str, str, Any]], run: str = "") -> None:
    """Each is answered, and is what it is declared to be."""
    for method, target, model in reads:
        read = await chat.driver.request(method, target.format(s=chat.session, r=run))
        assert (read.status, read.error) == (200, None), target
        if model is not None:
            msgspec.json.decode(read.body, type=model)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (Usage(None, None, None, None, None, None), {"cost": 0.0}),  # type: ignore[arg-type]  # as a provider says
        (Usage(12.0, cost=3), {"input_tokens": 12, "cost": 3.0}),  # type: ignore[arg-type]
        (Usage(cost=decimal.Decimal("0.25")), {"cost": 0.25}),  # type: ignore[arg-type]
    ],
)
async def test_a_number_that_means_the_same_is_taken(given: Usage, stored: dict[str, Any]) -> None:
    """What is not known is 0, and a whole number is one however it is written."""

    async def agent(turn: Any) -> AsyncIterator[Any]:
        yield "Yes."
        yield given

    async with chatting(None, agent) as chat:
        await chat.said()
        end = (await canonical(chat.driver, chat.session))[-1]
        assert (end["type"], end["data"]["usage"]) == ("run.completed", stored)


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "cost"])
async def test_text_is_no_number(field: str) -> None:
    """``"12"`` is refused and never added up."""

    async def agent(turn: Any) -> AsyncIterator[Any]:
        yield "Yes."
        yield Usage(**{field: "12"})

    async with chatting(None, agent) as chat:
        await chat.said()
        end = (await canonical(chat.driver, chat.session))[-1]["data"]
        assert (end["code"], end["detail"]["field"]) == ("invalid_input", f"Usage.{field}")


# The end fits ---------------------------------------------------------------------------------------------------------


async def many_calls(turn: Any) -> AsyncIterator[Any]:
    for number in range(1_100):
        yield ToolCall(f"c{number}", "n" * 250_000, "{}")


async def long_reason(turn: Any) -> AsyncIterator[Any]:
    yield "Yes."
    yield Finish("r" * 1_000_000)


async def long_error(turn: Any) -> AsyncIterator[Any]:
    yield "Yes."
    raise AgentError("e" * 50_000_000)


async def large_detail(turn: Any) -> AsyncIterator[Any]:
    yield "Yes."
    raise AgentError("No.", urls=["https://example.org/" + "u" * 100_000] * 100)


async def own_error(turn: Any) -> AsyncIterator[Any]:
    class Odd(AgentError):
        def __init__(self) -> None:  # what every error has, this one has not
            Exception.__init__(self, "odd")

    yield "Yes."
    raise Odd


@pytest.mark.parametrize(
    ("agent", "code"),
    [
        (many_calls, "too_large"),
        (long_reason, "too_large"),
        (long_error, "agent_error"),
        (large_detail, "agent_error"),
        (own_error, "agent_error"),
    ],
)
async def test_a_run_ends_whatever_is_too_long_in_it(agent: Any, code: str) -> None:
    """At its first try, with what was said."""
    async with chatting(None, agent) as chat:
        await chat.said()
        events = await canonical(chat.driver, chat.session)
        assert (events[-1]["type"], events[-1]["data"]["code"]) == ("run.failed", code)
        assert len(msgspec.json.encode(events[-1])) < 300_000
        assert events[-1]["data"]["partial"]["text"] == ("" if agent is many_calls else "Yes.")


class Narrow(MemoryStore):
    """A store that takes no event of more than 3,000 bytes."""

    async def append(self, session: str, drafts: Any, **options: Any) -> Any:
        for draft in drafts:
            if len(msgspec.json.encode(draft.fact)) > 3_000:
                raise TooLarge("That is too much.")
        return await super().append(session, drafts, **options)


@pytest.mark.parametrize(
    ("last", "type", "code"),
    [
        ("", "run.completed", "too_large"),
        (AgentError("No.", code="no"), "run.failed", "no"),
    ],
)
async def test_an_end_that_the_store_does_not_take_goes_without_the_message(last: Any, type: str, code: str) -> None:
    """The pieces are in the log, and the run is over."""

    async def agent(turn: Any) -> AsyncIterator[Any]:
        for _ in range(4):
            yield "x" * 1_000
            yield Thinking("y" * 1_000)
            await turn.stored()
        if isinstance(last, AgentError):
            raise last
        yield Usage(3)

    async with chatting(None, agent, store=Narrow()) as chat:
        sent = (await chat.send()).json()
        async with asyncio.timeout(30):
            seen = await chat.follow(sent["cursor"], until=ends(sent["runId"]))
        assert seen[-1].event == "error"
        end = (await canonical(chat.driver, chat.session))[-1]["data"]
        assert (end["code"], end["partial"]["text"], end["partial"]["parts"]) == (code, "", [])
        assert (await chat.get("/messages")).status == 200


# One budget -----------------------------------------------------------------------------------------------------------


async def checkpoints(turn: Any) -> AsyncIterator[Any]:
    while True:
        yield Checkpoint("x" * 1_000)


async def calls(turn: Any) -> AsyncIterator[Any]:
    for number in range(10_000):
        yield ToolCall(f"c{number}", "n" * 200, "{}")


async def progress(turn: Any) -> AsyncIterator[Any]:
    yield CALL
    while True:
        yield ToolStarted("c0", "p" * 1_000)


async def arguments(turn: Any) -> AsyncIterator[Any]:
    yield CALL
    while True:
        yield ToolArguments("c0", "é" * 500)


async def notifications(turn: Any) -> AsyncIterator[Any]:
    while True:
        await turn.notify("t", "m" * 1_000)
        yield "."


async def questions(turn: Any) -> AsyncIterator[Any]:
    while True:
        await turn.ask_permission("t", "d" * 1_000, timeout=0)
        yield "."


async def text(turn: Any) -> AsyncIterator[Any]:
    while True:
        yield "é" * 500


@pytest.mark.parametrize("agent", [checkpoints, calls, progress, arguments, notifications, questions, text])
async def test_all_that_a_run_stores_has_one_bound(agent: Callable[..., Any]) -> None:
    """Whatever it is made of, the run fails when it has stored so much, and with a code of its own."""
    async with chatting(None, agent, limits=Limits(run_bytes=100_000)) as chat:
        await chat.said()
        events = await canonical(chat.driver, chat.session)
        assert (events[-1]["type"], events[-1]["data"]["code"]) == ("run.failed", "too_many_bytes")
        stored = sum(len(msgspec.json.encode(event["data"])) for event in events[:-1])
        assert 50_000 < stored < 130_000


@pytest.mark.parametrize("name", ["permission", "notification"])
async def test_an_agent_is_told_where_it_asks_too_much(name: str) -> None:
    """It may go on with what needs no room."""
    told: list[str] = []

    async def agent(turn: Any) -> AsyncIterator[Any]:
        try:
            if name == "permission":
                await turn.ask_permission("t", "d" * 2_000, timeout=0)
            else:
                await turn.notify("t", "m" * 2_000)
        except TooLarge as exc:
            told.append(exc.code)
        yield "Then not."

    async with chatting(None, agent, limits=Limits(run_bytes=1_000)) as chat:
        await chat.said()
        end = (await canonical(chat.driver, chat.session))[-1]
    assert (told, end["data"].get("code")) == (["too_many_bytes"], "too_many_bytes")


async def test_what_a_tool_gives_may_be_deep_but_not_deeper_than_readers() -> None:
    """The bound is the same for whoever gives JSON."""
    from legato.part import as_json

    assert as_json("A value", nested(DEPTH - 1)) == nested(DEPTH - 1)
    assert as_json("A value", [nested(3)] * 1_000)
    with pytest.raises(InvalidInput, match="deeper than 200"):
        as_json("A value", nested(DEPTH + 1))
