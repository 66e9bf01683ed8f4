"""Traces: the spans of a run, through its queue and its crashes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fake_server import json_reply
from legato import Legato
from legato.agent import Turn
from legato.agents.upstream import model_agent
from legato.bounds import Limits
from legato.errors import AgentError, InvalidInput
from legato.log import Log
from legato.testing import Driver
from legato.tool import Tool
from legato.traces import NAMES, SCHEMA
from legato.yields import ToolCall, ToolResult, ToolStarted, Usage
from model_server import Keeper, asking, calls, says

SENDER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRETS = ("hush", "whisper", "murmur")
EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    """The tracer provider of the process: there is only one, for good."""
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(made)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    EXPORTER.clear()
    yield
    EXPORTER.clear()


async def agent(turn: Turn) -> AsyncIterator[Any]:
    """Does what it is told, with a tool in between."""
    if turn.message.text == "fail":
        raise AgentError("hush", code="out_of_tea")
    yield "hush "
    with trace.get_tracer("mine").start_as_current_span("of the agent"):
        await asyncio.sleep(0)
    yield ToolCall("t1", "kettle", '{"of":"whisper"}')
    yield ToolStarted("t1", "whisper")
    if turn.message.text == "ask":
        await turn.ask_permission("kettle", "murmur?", timeout=None)
    yield ToolResult("t1", {"tea": "murmur"}, success=turn.message.text != "break")
    yield Usage(input_tokens=7, output_tokens=3, cost=0.5, model="tea-1")
    yield "and whisper."


def legato(store: str = "memory:", **options: Any) -> Legato:
    app = Legato(store, agents=[agent], traces=True, **options)
    app.agents["agent"].on_crash = "retry"
    return app


async def send(driver: Driver, text: str, **headers: str) -> None:
    answer = await driver.request("POST", "/api/sessions/a/messages", json={"text": text}, headers=headers)
    assert answer.status in (200, 202), answer.text


async def ended(app: Legato, count: int = 1) -> None:
    while sum(app.life.figures.ended.counts.values()) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    while app.runner.running:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def asks(app: Legato) -> None:
    while app.runner.asking == 0:  # noqa: ASYNC110
        await asyncio.sleep(0)


def spans() -> dict[str, ReadableSpan]:
    """Those that have ended, by name."""
    found = EXPORTER.get_finished_spans()
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


async def test_a_run_is_a_span_with_its_steps_and_tools() -> None:
    """In the trace of who sent the message, each within what it belongs to, by the names of the conventions."""
    app = legato()
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, "go", traceparent=SENDER)
        await ended(app)
    found = spans()
    run, tool = found["invoke_agent agent"], found["execute_tool kettle"]

    assert found.keys() == {"invoke_agent agent", "step 1", "step 2", "execute_tool kettle", "of the agent"}
    assert {f"{span.context.trace_id:032x}" for span in found.values() if span.context} == {SENDER.split("-")[1]}
    assert f"{parent(run):016x}" == SENDER.split("-")[2]
    assert parent(found["step 1"]) == parent(found["step 2"]) == parent(found["of the agent"]) == id_of(run)
    assert parent(tool) == id_of(found["step 1"])
    assert run.instrumentation_scope is not None
    assert (run.instrumentation_scope.name, run.instrumentation_scope.schema_url) == ("legato", SCHEMA)
    told = attributes(run)
    run_id = told.pop("legato.run.id")
    assert run_id.startswith("a~")
    assert told == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "legato",
        "gen_ai.agent.name": "agent",
        "gen_ai.conversation.id": "a",
        "legato.run.attempt": 1,
        "legato.run.outcome": "completed",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.model": "tea-1",
    }
    assert attributes(tool) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "kettle",
        "gen_ai.tool.call.id": "t1",
        "gen_ai.tool.type": "function",
    }
    assert run.status.status_code is trace.StatusCode.UNSET


async def test_no_span_has_content() -> None:
    """Not in a name, an attribute, an event or a status."""
    app = legato()
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        for text in ("go hush", "fail", "break"):
            await send(driver, text)
        await ended(app, 3)
    told = "".join(span.to_json() for span in EXPORTER.get_finished_spans())

    assert len(told) > 1000
    assert [secret for secret in SECRETS if secret in told] == []


@pytest.mark.parametrize(
    ("text", "span", "kind"),
    [("fail", "invoke_agent agent", "out_of_tea"), ("break", "execute_tool kettle", "tool_error")],
)
async def test_what_fails_says_why_by_its_code(text: str, span: str, kind: str) -> None:
    """And not in words, which may be a user's."""
    app = legato()
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, text)
        await ended(app)
    found = spans()[span]

    assert attributes(found)["error.type"] == kind
    assert (found.status.status_code, found.status.description) == (trace.StatusCode.ERROR, kind)


@pytest.mark.parametrize(
    "line", ["", "00-x", SENDER[:-1], f"00-{'0' * 32}-{'0' * 16}-01", SENDER.upper(), SENDER + "\u00e9"]
)
async def test_what_is_no_span_is_none(line: str) -> None:
    """A request may say anything; the run begins a trace of its own then."""
    app = legato()
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, "go", traceparent=line)
        await ended(app)

    assert spans()["invoke_agent agent"].parent is None


async def test_the_span_of_the_program_around_it_comes_first() -> None:
    """An application that traces its own requests has the run in them."""
    app = legato()
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        with trace.get_tracer("mine").start_as_current_span("request") as request:
            await send(driver, "go", traceparent=SENDER)
        await ended(app)

    assert parent(spans()["invoke_agent agent"]) == request.get_span_context().span_id


async def test_a_run_that_waited_began_when_it_was_sent() -> None:
    """It is of its sender's trace, whoever had the place before and whatever made it begin."""
    app = legato(limits=Limits(concurrent_runs=1))
    async with Driver(app) as driver:
        for session in ("a", "b"):
            await driver.request("POST", "/api/sessions", json={"id": session})
        await send(driver, "ask")
        await asks(app)
        other = SENDER.replace("0af7", "0af8")
        target = "/api/sessions/b/messages"
        await driver.request("POST", target, json={"text": "go"}, headers={"traceparent": other})
        await driver.request("POST", "/api/sessions/a/cancel", json={})
        await ended(app, 2)
        sent = [event async for event in Log(app.store, "b").all()][1]
    runs = [span for span in EXPORTER.get_finished_spans() if attributes(span).get("gen_ai.conversation.id") == "b"]

    assert [f"{span.context.trace_id:032x}" for span in runs if span.context] == [other.split("-")[1]]
    assert runs[0].start_time == round(sent.at * 1_000_000_000)


async def test_an_attempt_after_a_crash_is_of_the_same_trace(tmp_path: Path) -> None:
    """With a link to the one before, whose process had no chance to end its span."""
    store = f"sqlite:///{tmp_path}/log.db"
    first = legato(store, grace=0.0, limits=Limits(cancel_grace=0.01))
    async with Driver(first) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, "ask", traceparent=SENDER)
        await asks(first)
    (before,) = [span for span in EXPORTER.get_finished_spans() if span.name.startswith("invoke")]
    assert attributes(before)["legato.run.outcome"] == "left"
    EXPORTER.clear()  # as if it had been killed: what ties the two together is in the log
    second = legato(store)
    async with Driver(second) as driver:
        await asks(second)
        await driver.request("POST", "/api/sessions/a/cancel", json={})
        await ended(second)
    (after,) = [span for span in EXPORTER.get_finished_spans() if span.name.startswith("invoke")]

    assert f"{parent(after):016x}" == SENDER.split("-")[2]
    assert [link.context.span_id for link in after.links] == [id_of(before)]
    assert attributes(after)["legato.run.attempt"] == 2
    assert attributes(after)["legato.run.outcome"] == "cancelled"


async def test_the_same_message_from_another_span_is_the_same() -> None:
    """A client that sends again, under its key, is in another span by then."""
    app = legato()
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, "go", traceparent=SENDER, **{"idempotency-key": "k"})
        await send(driver, "go", traceparent=SENDER.replace("b7ad", "b7ae"), **{"idempotency-key": "k"})
        await ended(app)

    assert len([name for name in spans() if name.startswith("invoke")]) == 1


async def test_nobody_who_does_not_trace_has_it_in_the_log() -> None:
    """Whatever requests say."""
    app = Legato("memory:", agents=[agent])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, "go", traceparent=SENDER)
        await ended(app)
        told = b"".join([event.json async for event in Log(app.store, "a").all()])

    assert b"trace" not in told
    assert EXPORTER.get_finished_spans()[0].name == "of the agent"
    assert len(EXPORTER.get_finished_spans()) == 1


def test_the_table_has_each_name_once() -> None:
    """Ours, and those of the conventions."""
    assert len(set(NAMES.values())) == len(NAMES)
    assert all(name.startswith(("gen_ai.", "legato.", "error.", "server.")) for name in NAMES.values())


async def test_a_request_to_a_model_is_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its step, with what the provider says of its answer, and nothing of what it answers."""
    keeper = Keeper(calls(("c1", "add", '{"x": 1}')), says("hush"))
    app = Legato("memory:", agents=[model_agent(asking(monkeypatch, keeper), tools={"add": Tool(add)})], traces=True)
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, "whisper")
        await ended(app)
    chats = [span for span in EXPORTER.get_finished_spans() if span.name == "chat m-1"]
    steps = [span for span in EXPORTER.get_finished_spans() if span.name.startswith("step")]

    assert [parent(chat) for chat in chats] == [id_of(step) for step in steps]
    assert chats[0].kind is trace.SpanKind.CLIENT
    (run,) = [span for span in EXPORTER.get_finished_spans() if span.name == "invoke_agent m-1"]
    assert attributes(run)["gen_ai.provider.name"] == "openai"
    told = attributes(chats[1])
    assert told.pop("gen_ai.response.id")
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m-1",
        "gen_ai.response.model": "m-1",
        "server.address": "test",
        "server.port": 80,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 3,
    }
    assert [name for name in SECRETS if name in "".join(span.to_json() for span in EXPORTER.get_finished_spans())] == []
    figures = app.agents["m-1"].figures
    assert figures is not None
    assert (figures.requests, figures.asked, figures.errors.counts) == (2, 2, {})


async def test_a_model_that_fails_fails_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class of the error; and it is counted."""
    answer = json_reply({"error": {"message": "hush", "code": "slow_down"}}, 429)
    app = Legato("memory:", agents=[model_agent(asking(monkeypatch, lambda _: answer))], traces=True)
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await send(driver, "whisper")
        await ended(app)
    (chat,) = [span for span in EXPORTER.get_finished_spans() if span.name == "chat m-1"]

    assert chat.status.status_code is trace.StatusCode.ERROR
    assert "hush" not in chat.to_json()
    figures = app.agents["m-1"].figures
    assert figures is not None
    assert figures.errors.counts == {("ProviderRefused", "429"): 1}


def add(x: int) -> int:
    """Add one."""
    return x + 1


async def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not at the first run."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InvalidInput, match=r"pip install 'legato\[otel\]'"):
        legato()
