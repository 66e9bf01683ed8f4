"""What the adapters share, without any framework: the conversation, the calls of a run, errors in words for users."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from legato.agent import Turn
from legato.agents import framework, langgraph, openai_agents, pydantic_ai
from legato.agents.framework import Calls, Reasons, arguments_of, explained, finish, jsonable, messages
from legato.errors import AgentError, InvalidInput
from legato.event import Event
from legato.part import Message, Part, read_part
from legato.recorder import Recorder
from legato.yields import (
    Finish,
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


class Nobody:
    """A desk at which nothing may be asked."""

    ask_permission = notify = None


def turn(*history: Message, events: list[Any] | None = None) -> Turn:
    message = Message(id="m", role="user", text="And now?")
    return Turn(desk=Nobody(), session="s", run="r", message=message, history=history, events=events or [])  # type: ignore[arg-type]


def answer(*parts: Part, text: str = "") -> Message:
    return Message(id="a", role="assistant", text=text, parts=list(parts))


def called(id: str, step: int = 1, arguments: str = "{}", **result: Any) -> Part:
    return read_part({"type": "tool_call", "step": step, "id": id, "name": "add", "arguments": arguments, **result})


def recorded(*items: Any) -> list[Event]:
    """What a run that yielded these has in its log."""
    recorder = Recorder("r")
    drafts = [draft for item in items for draft in recorder.record(item)]
    return [Event(draft.fact, number, 0.0, "r") for number, draft in enumerate(drafts, start=1)]


# The conversation -----------------------------------------------------------------------------------------------------


def asks_for(id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}}


async def test_ids_are_what_apis_take() -> None:
    """Unique in the conversation, of harmless characters, not too long; each output keeps to its call."""
    parts = [called(id, success=True, output=id) for id in ("c", "x~1", "y" * 100)]
    told = messages(turn(answer(*parts), answer(called("c", success=True, output="again"))))

    ids = [call["id"] for message in told for call in message.get("tool_calls", ())]
    assert ["c", "x_1", "y" * 56, "c_2"] == ids
    outputs = [(m["tool_call_id"], m["content"]) for m in told if m["role"] == "tool"]
    assert list(zip(ids, ["c", "x~1", "y" * 100, "again"], strict=True)) == outputs


async def test_a_further_attempt_keeps_what_is_done() -> None:
    """Results of the earlier attempt are part of the conversation; what it was about to say or do is not."""
    events = recorded(
        Text("Let me see. "),
        ToolCall("c", "add", arguments="{}"),
        ToolCall("d", "add", arguments="{}"),
        ToolResult("c", output=3),
        Text("It is"),
    )

    assert [
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Let me see. ", "tool_calls": [asks_for("c")]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ] == messages(turn(events=events))


def test_arguments_that_are_no_object() -> None:
    """No framework could call a tool with them."""
    assert [{"a": 1}, {}] == [arguments_of(asks_for("c", text)) for text in ('{"a":1}', "[1]")]


# The calls of a run ---------------------------------------------------------------------------------------------------


def test_a_call_is_told_once() -> None:
    """Whatever a framework says again, or too late, is left out; what it left out is made up for."""
    calls = Calls()

    assert [ToolCall("c", "add", by="server")] == calls.begin("c", "add")
    assert [ToolArguments("c", '{"a"')] == calls.arguments("c", '{"a"')
    assert [ToolArguments("c", ":1}"), ToolReady("c")] == calls.complete("c", '{"a":1}')
    assert [] == calls.complete("c", '{"a":1}') == calls.arguments("c", "x")
    assert [ToolStarted("c")] == calls.start("c")
    assert [] == calls.start("c")
    assert [ToolResult("c", 3)] == calls.finish("c", 3)
    assert [] == calls.finish("c", 4) == calls.start("c")


def test_arguments_that_were_not_streamed() -> None:
    """They are told when they are whole; none are an empty object."""
    calls = Calls()
    calls.begin("c", "add")
    calls.begin("d", "add")
    calls.begin("e", "add")
    calls.arguments("e", '{"a": 1}')

    assert [ToolArguments("c", '{"a":1}'), ToolReady("c")] == calls.complete("c", '{"a":1}')
    assert [ToolArguments("d", "{}"), ToolReady("d"), ToolResult("d", None, False)] == calls.finish("d", None, False)
    # What has been told stands, also when the framework writes it differently in the end.
    assert [ToolReady("e")] == calls.complete("e", '{"a":1}')


def test_an_id_that_comes_again_is_another_call() -> None:
    """The later result is the later call's."""
    calls = Calls()
    calls.begin("c", "add")
    calls.finish("c", 1)

    assert [ToolCall("c-2", "add", by="server")] == calls.begin("c", "add")
    assert ToolResult("c-2", 2) == calls.finish("c", 2)[-1]


def test_a_call_that_nobody_knows_is_left_out() -> None:
    """As a result of a call of another run."""
    calls = Calls()

    assert [] == calls.arguments("c", "x") == calls.complete("c", "") == calls.start("c") == calls.finish("c", 3)


def test_what_calls_give_can_be_recorded() -> None:
    """Even in a senseless order, a run takes all of it."""
    calls, recorder = Calls(), Recorder("r")
    items = [*calls.finish("c", 1), *calls.begin("c", "add"), *calls.start("c"), *calls.complete("c", '{"a":1}')]
    items += [*calls.finish("c", 1), *calls.begin("c", "add"), *calls.arguments("c", "{"), *calls.finish("c", object())]
    drafts = [draft for item in items for draft in recorder.record(item)]

    assert ["tool.started", "tool.completed", "tool.completed"] == [
        draft.type for draft in drafts if draft.type.startswith("tool.")
    ]


# Values, ends, errors -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int


class Model:
    def __repr__(self) -> str:
        return "a model"


def test_any_value_is_json() -> None:
    """What has a form in JSON gets it; anything else is its text."""
    assert [{"x": 1}, [1, 2], None, "a model"] == [jsonable(value) for value in (Point(1), (1, 2), None, Model())]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("max_output_tokens", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("end_turn", None),
        ("tool_calls", None),
        (None, None),
    ],
)
def test_reasons_to_end(word: str | None, expected: str | None) -> None:
    """Vendors' words for what matters are Legato's."""
    assert ([Finish(expected)] if expected else []) == finish(word)


class RateLimitError(Exception):
    """As SDKs of vendors raise it."""


class APIStatusError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__("the key is sk-1234")
        self.status_code = status_code


class Quota(RateLimitError):
    """A kind of it that nobody knows."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RateLimitError("secret"), "model_rate_limited"),
        (Quota("secret"), "model_rate_limited"),
        (APIStatusError(400), "model_refused"),
        (APIStatusError(401), "model_key_refused"),
        (APIStatusError(429), "model_rate_limited"),
        (APIStatusError(503), "model_unreachable"),
        (ExceptionGroup("all models", [ValueError("secret"), RateLimitError("secret")]), "model_rate_limited"),
    ],
)
def test_known_errors_are_explained(error: Exception, code: str) -> None:
    """By the name of their class, without their words."""
    with pytest.raises(AgentError) as raised, explained("r"):
        raise error

    assert code == raised.value.code
    assert "secret" not in raised.value.message
    assert "sk-1234" not in raised.value.message
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("x"), AgentError("x", code="mine"), InvalidInput("x")])
def test_other_errors_pass(error: Exception) -> None:
    """Legato's own keep their words; of others nobody knows what they mean."""
    with pytest.raises(type(error)) as raised, explained("r"):
        raise error

    assert raised.value is error


# Without the framework ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "extra"),
    [(pydantic_ai, "pydantic-ai"), (openai_agents, "openai-agents"), (langgraph, "langgraph")],
)
def test_a_framework_that_is_not_installed(adapter: Any, extra: str) -> None:
    """The error says what to install."""
    with pytest.raises(ImportError, match=rf"legato\[{extra}\]"):
        adapter.adapt(object())


def test_a_module_of_the_framework_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's that hides the framework is named."""
    (tmp_path / "hiding_framework.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"another one \(.*hiding_framework\.py\)"):
        framework.load("hiding_framework", "extra", "Runner")


def test_a_framework_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is there, but misses something itself, that is what the error names."""
    (tmp_path / "broken_framework.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        framework.load("broken_framework", "extra")


HEEDLESS: Any = {"tools": tuple, "lacks": lambda _: None}


def test_frameworks_cannot_resume() -> None:
    """In the middle of a sentence, no model goes on."""
    with pytest.raises(InvalidInput, match="on_crash"):
        framework.adapted(lambda turn: None, name=None, on_crash="resume", description=None, found="x", **HEEDLESS)


@pytest.mark.parametrize(
    ("name", "found", "expected"), [("mine", "its", "mine"), (None, "its", "its"), (None, None, "agent")]
)
def test_the_name_of_an_adapted_agent(name: str | None, found: str | None, expected: str) -> None:
    """What was asked for, else the framework's, else the default agent's."""
    agent = framework.adapted(
        lambda turn: None, name=name, on_crash="retry", description="Does.", found=found, **HEEDLESS
    )

    assert (expected, "retry", "Does.") == (agent.name, agent.on_crash, agent.description)


# Streams, by the names of what is in them -----------------------------------------------------------------------------


async def translated(adapter: Any, *events: Any) -> list[Any]:
    async def stream() -> AsyncIterator[Any]:
        for event in events:
            yield event

    return [item async for item in adapter.translate(stream())]


@pytest.mark.parametrize("adapter", [pydantic_ai, openai_agents])
async def test_an_event_that_nobody_knows(adapter: Any) -> None:
    """It is passed over: a later version may have more of them."""
    unknown = SimpleNamespace(type="news", event_kind="news")

    assert [] == await translated(adapter, unknown)


async def test_pydantic_ai_of_an_earlier_version() -> None:
    """Results were called so, a retry was a part of its own, and usage was a method."""
    call = SimpleNamespace(part_kind="tool-call", tool_name="add", tool_call_id="c", args={"a": 1})
    retry = SimpleNamespace(part_kind="retry-prompt", tool_call_id="c", content="Not so.")
    usage = SimpleNamespace(input_tokens=1, output_tokens=2, cache_read_tokens=0)
    response = SimpleNamespace(model_name="m", finish_reason="length")
    end = SimpleNamespace(output="Well.", usage=lambda: usage, response=response)

    assert [
        ToolCall("c", "add", by="server"),
        ToolArguments("c", '{"a":1}'),
        ToolReady("c"),
        ToolStarted("c"),
        ToolResult("c", "Not so.", False),
        Text("Well."),
        Usage(input_tokens=1, output_tokens=2, model="m"),
        Finish("length"),
    ] == await translated(
        pydantic_ai,
        SimpleNamespace(event_kind="function_tool_call", part=call),
        SimpleNamespace(event_kind="function_tool_result", result=retry),
        SimpleNamespace(event_kind="agent_run_result", result=end),
    )


async def test_tools_of_the_provider_by_pydantic_ai() -> None:
    """A call that the model's provider executes has its result in the same response."""
    call = SimpleNamespace(part_kind="builtin-tool-call", tool_name="web_search", tool_call_id="c", args={"q": "x"})
    result = SimpleNamespace(part_kind="builtin-tool-return", tool_call_id="c", content=["found"], outcome="success")

    assert [
        ToolCall("c", "web_search", by="provider"),
        ToolArguments("c", '{"q":"x"}'),
        ToolReady("c"),
        ToolResult("c", ["found"]),
    ] == await translated(
        pydantic_ai,
        SimpleNamespace(event_kind="part_start", index=0, part=call),
        SimpleNamespace(event_kind="part_end", index=0, part=call),
        SimpleNamespace(event_kind="part_start", index=1, part=result),
        SimpleNamespace(event_kind="part_end", index=1, part=result),
    )


def raw(type: str, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(type="raw_response_event", data=SimpleNamespace(type=type, **fields))


async def test_tools_of_the_provider_by_the_openai_agents_sdk() -> None:
    """A hosted call begins and ends with its item; what it was asked for are its arguments."""
    begun = {"id": "ws_1", "type": "web_search_call", "status": "in_progress"}
    done = {**begun, "status": "completed", "action": {"type": "search", "query": "x"}}
    failed = {"id": "mcp_1", "type": "mcp_call", "name": "roll", "arguments": "{}", "error": "No.", "server_label": "d"}

    assert [
        ToolCall("ws_1", "web_search", by="provider"),
        ToolArguments("ws_1", '{"action":{"type":"search","query":"x"}}'),
        ToolReady("ws_1"),
        ToolResult("ws_1"),
        ToolCall("mcp_1", "roll", by="provider"),
        ToolArguments("mcp_1", "{}"),
        ToolReady("mcp_1"),
        ToolResult("mcp_1", {"error": "No.", "server_label": "d"}, False),
    ] == await translated(
        openai_agents,
        raw("response.output_item.added", output_index=0, item=begun),
        raw("response.output_item.done", output_index=0, item=done),
        raw("response.output_item.done", output_index=1, item=failed),
    )


async def test_reasoning_summaries_stand_apart() -> None:
    """Their parts are paragraphs."""
    assert [Thinking("One."), Thinking("\n\n"), Thinking("Two.")] == await translated(
        openai_agents,
        raw("response.reasoning_summary_part.added", summary_index=0),
        raw("response.reasoning_summary_text.delta", delta="One."),
        raw("response.reasoning_summary_part.added", summary_index=1),
        raw("response.reasoning_summary_text.delta", delta="Two."),
    )


async def test_a_model_that_does_not_stream_in_the_openai_agents_sdk() -> None:
    """Its message is told when the SDK has it; one that was streamed is not told again."""
    said = SimpleNamespace(content=[SimpleNamespace(text="All at once.")])
    message = SimpleNamespace(
        type="run_item_stream_event", name="message_output_created", item=SimpleNamespace(raw_item=said)
    )

    assert [Text("All at once.")] == await translated(openai_agents, raw("response.created"), message)
    said.content = [SimpleNamespace(refusal="I will not.")]
    assert [Refusal("I will not.")] == await translated(openai_agents, raw("response.created"), message)
    delta = raw("response.output_text.delta", delta="All at once.")
    assert [Text("All at once.")] == await translated(openai_agents, raw("response.created"), delta, message)


async def test_refusals() -> None:
    """They are told apart from answers, where the framework does so."""
    refused = chunk()
    refused.content_blocks = [{"type": "non_standard", "value": {"type": "refusal", "refusal": "I will not."}}]

    assert [Refusal("I will not.")] == await translated(langgraph, refused)
    assert [Refusal("I ")] == await translated(openai_agents, raw("response.refusal.delta", delta="I "))


def chunk(text: str = "", id: str = "m", last: bool = False, calls: Any = (), **fields: Any) -> SimpleNamespace:
    """A piece of a message as LangChain gives it."""
    return SimpleNamespace(
        type="AIMessageChunk",
        id=id,
        content_blocks=[{"type": "text", "text": text}] if text else [],
        tool_call_chunks=list(calls),
        usage_metadata=None,
        response_metadata={},
        chunk_position="last" if last else None,
        **fields,
    )


@pytest.mark.parametrize(
    "part",
    [
        chunk("x"),
        (chunk("x"), {"langgraph_node": "n"}),
        ((), (chunk("x"), {})),
        ("messages", (chunk("x"), {})),
        (("sub:1",), "messages", (chunk("x"), {})),
        {"type": "messages", "ns": (), "data": (chunk("x"), {})},
    ],
    ids=["bare", "one mode", "one mode, subgraphs", "modes", "modes, subgraphs", "version 2"],
)
async def test_every_form_of_a_langgraph_stream(part: Any) -> None:
    """However the graph is streamed, a piece of text is a piece of text."""
    assert [Text("x")] == await translated(langgraph, part)


async def test_other_parts_of_a_langgraph_stream() -> None:
    """Parts that mean nothing to a reader are passed over."""
    parts = [("values", {"messages": []}), ("updates", {"node": None}), ("updates", {"__interrupt__": ()}), {"n": {}}]
    parts += [("tasks", {"input": {"messages": []}}), ("custom", {"progress": 1}), ("debug", {}), ("checkpoints", {})]

    assert [] == await translated(langgraph, *parts)


async def test_calls_without_an_index_or_an_id() -> None:
    """A piece without an index belongs to the call before it; a call without an id gets one."""
    named = {"index": None, "id": "c", "name": "add", "args": "{"}
    rest = {"index": None, "id": None, "name": None, "args": "}"}
    nameless = {"index": 3, "id": None, "name": "sub", "args": "{}"}

    assert [
        ToolCall("c", "add", by="server"),
        ToolArguments("c", "{"),
        ToolArguments("c", "}"),
        ToolCall("m-1", "sub", by="server"),
        ToolArguments("m-1", "{}"),
    ] == await translated(langgraph, chunk(calls=[named]), chunk(calls=[rest]), chunk(calls=[nameless]))


MADE = {"type": "server_tool_result", "tool_call_id": "ws_1", "output": "sun", "status": "success"}
WHOLE = {"type": "server_tool_call", "id": "ws_1", "name": "remote_mcp", "args": {"x": 1}, "extras": {"tool_name": "f"}}
BEGUN = {"type": "server_tool_call_chunk", "id": "ws_1", "name": "f", "args": "", "index": 0}
PIECE = {"type": "server_tool_call_chunk", "index": 0}


@pytest.mark.parametrize(
    "pieces",
    [[[WHOLE, MADE]], [[WHOLE], [MADE]], [[BEGUN], [{**PIECE, "args": '{"x":'}], [{**PIECE, "args": "1}"}], [MADE]]],
)
async def test_tools_of_the_provider_by_langchain(pieces: list[list[Any]]) -> None:
    """What its models give as calls that a server has made is told as made by the provider, and as no end of a text."""
    chunks = [chunk("So. "), *(chunk() for _ in pieces), chunk("Sun.", last=True)]
    for each, blocks in zip(chunks[1:-1], pieces, strict=True):
        each.content_blocks = blocks
    told = await translated(langgraph, *chunks)

    assert ToolCall("ws_1", "f", by="provider") in told
    assert '{"x":1}' == "".join(item.text for item in told if isinstance(item, ToolArguments))
    assert [ToolResult("ws_1", "sun")] == [item for item in told if isinstance(item, ToolResult)]
    assert [Text("So. "), Text("Sun.")] == [item for item in told if isinstance(item, Text)]


async def test_a_failed_tool_of_the_provider_by_langchain() -> None:
    """Nor is a piece of a call that nobody knows."""
    lost, failed = chunk(), chunk()
    lost.content_blocks = [{**PIECE, "args": "x"}, {**MADE, "tool_call_id": "other"}]
    failed.content_blocks = [WHOLE, {**MADE, "status": "error", "output": "no"}]

    assert ToolResult("ws_1", "no", success=False) == (await translated(langgraph, lost, failed))[-1]
    assert [] == await translated(langgraph, lost)


async def test_a_second_speaker_waits() -> None:
    """Pieces of two messages that come in turns are told one message after the other, what follows behind them."""
    result = SimpleNamespace(type="tool", id="t", tool_call_id="c", content="3", status="success")
    call = {"index": 0, "id": "c", "name": "add", "args": "{}"}

    assert [
        Text("A1 "),
        Text("A2"),
        Text("\n\n"),
        Text("B1 "),
        ToolCall("c", "add", by="server"),
        ToolArguments("c", "{}"),
        ToolReady("c"),
        ToolResult("c", "3"),
        Text("C"),
    ] == await translated(
        langgraph,
        chunk("A1 ", id="a"),
        chunk("B1 ", id="b"),
        chunk(id="b", calls=[call], last=True),
        result,
        chunk("C", id="c"),
        chunk("A2", id="a", last=True),
    )


@pytest.mark.parametrize(("words", "reason"), [
    (["length", "LENGTH", "max_tokens", "MAX_TOKENS", "max-tokens", "Max Tokens", "max_output_tokens",
      "model_context_window_exceeded", "token_limit"], "length"),
    (["content_filter", "SAFETY", "safety", "RECITATION", "refusal", "blocklist", "PROHIBITED_CONTENT"],
     "content_filter"),
    (["stop", "STOP", "tool_use", "TOOL_CALLS", "function_call", "eos", "end_turn", "", "stop_sequence",
      "FINISH_REASON_UNSPECIFIED", "a word of its own"], None),
])  # fmt: skip
def test_why_an_answer_ended(words: list[str], reason: str | None) -> None:
    """A provider's words, without regard to case; only a limit is a limit."""
    for word in words:
        assert finish(word) == ([] if reason is None else [Finish(reason)]), word
    assert finish(None) == []


@pytest.mark.parametrize(("words", "wanted"), [
    (["tool_calls", "stop"], []),
    (["length", "stop"], [Finish("length"), Finish("stop")]),
    (["MAX_TOKENS", None, "", "end_turn", "tool_use"], [Finish("length"), Finish("stop")]),
    (["length", "SAFETY"], [Finish("length"), Finish("content_filter")]),
    (["length", "a word of its own", "length"], [Finish("length"), Finish("stop"), Finish("length")]),
    ([None, ""], []),
])  # fmt: skip
def test_why_one_answer_ended_says_nothing_of_the_next(words: list[str | None], wanted: list[Finish]) -> None:
    """Each step by itself: the last one counts."""
    reasons = Reasons()
    assert [item for word in words for item in reasons.take(word)] == wanted
