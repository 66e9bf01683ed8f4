"""The Responses dialect: the fold from a run's events to a response's, its requests, and its routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Union

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from driving import Chat, Gate, chatting, decoded, echo
from facts import draft, stored
from legato.agent import Turn
from legato.dialect import responses_api, responses_items, responses_schema
from legato.dialect.chat import ChatEncoder
from legato.dialect.responses import DONE, ResponseEncoder, ResponseFold, parse_id, response_id
from legato.dialect.responses_api import BadRequest, Create, CreateChat
from legato.dialect.responses_output import NO_RESULT
from legato.errors import AgentError, StoreError
from legato.event import Draft, Event, MessageCreated
from legato.history import history
from legato.part import CallPart, RefusalPart, TextPart, Usage
from legato.recorder import Recorder, brought
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.testing import ASGIResponse
from legato.yields import Finish, Refusal, Thinking, ToolArguments, ToolCall, ToolReady, ToolResult, ToolStarted

SESSION, RUN = "s_1", "s_1~0a"
WORDS = st.sampled_from(
    [
        "type", "role", "content", "text", "refusal", "summary", "output", "call_id", "name",
        "arguments", "input", "tool_calls", "function", "id", "tool_call_id", "user", "assistant",
        "system", "tool", "message", "function_call", "function_call_output", "reasoning", "input_text", "input_image",
        "mcp_call", "mcp_approval_request", "mcp_approval_response", "approval_request_id", "approve", "error",
        "server_label", "status", "by", "success",
    ]
)  # fmt: skip
ENDINGS: dict[str, dict[str, Any]] = {
    "run.completed": {"finish_reason": "stop"},
    "run.failed": {"code": "no", "message": "No."},
    "run.cancelled": {},
}


def recorded(
    *items: Any, end: str = "run.completed", metadata: dict[str, Any] | None = None, before: Sequence[Draft] = ()
) -> list[Event]:
    """The log of a run whose agent yields ``items``; ``end`` is its terminal type, or empty if it has none yet."""
    recorder = Recorder(RUN, theirs=brought(metadata or {}))
    asked = {"id": f"{RUN}~u", "role": "user", "text": "hi", "agent": "a", "metadata": metadata or {}}
    drafts = [*before, draft("message.created", asked, RUN), draft("run.started", {"agent": "a", "attempt": 1}, RUN)]
    for item in items:
        if item == "restart":
            drafts.append(draft("run.started", {"agent": "a", "attempt": 2}, RUN))
            recorder = Recorder(RUN, earlier=recorder.transcript, theirs=brought(metadata or {}))
        else:
            drafts += recorder.record(item)
    if end:
        data = {**ENDINGS[end], "message" if end == "run.completed" else "partial": recorder.transcript.message(RUN)}
        if end == "run.completed":
            data["finish_reason"] = recorder.finish_reason
        if recorder.usage is not None:
            data["usage"] = {"input_tokens": 3, "output_tokens": 4, "cached_tokens": 1}
        drafts.append(draft(end, data, RUN))
    return [Event(d.fact, place, 1000.0 + place, d.run) for place, d in enumerate(drafts, 1)]


def told(events: Sequence[Event]) -> list[dict[str, Any]]:
    fold = ResponseFold(SESSION, RUN, agent="a")
    return [payload for event in events for payload in fold.feed(event)]


def types(payloads: Sequence[dict[str, Any]]) -> list[str]:
    return [payload["type"].removeprefix("response.") for payload in payloads]


def deltas(payloads: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(each["output_index"], each["delta"]) for each in payloads if each["type"].endswith(".delta")]


THOROUGH = (
    Thinking("H"),
    Thinking("m"),
    "Look: ",
    ToolCall("a", "Read"),
    ToolArguments("a", '{"p":'),
    ToolArguments("a", "1}"),
    ToolStarted("a"),
    ToolResult("a", output={"é": None}),
    ToolCall("b", "Stop", "{}"),
    ToolResult("b", output="no", success=False),
    "Do",
    "ne\n\ndata: x",
    Usage(input_tokens=3, output_tokens=4),
)
FUNCTION = {"type": "function", "name": "f"}
PARALLEL = (
    *(ToolCall("a", "A"), ToolCall("c", "f"), ToolCall("b", "B"), ToolArguments("b", "{}"), ToolArguments("a", '{"p"')),
    *(ToolArguments("c", "{}"), ToolArguments("a", ":1}"), ToolStarted("a"), ToolReady("c"), ToolStarted("b")),
    *("I look", "ing.", ToolResult("b", "no", success=False), " Still.", ToolResult("a", [1])),
)
LOGS = {
    "text": recorded("a", "b"),
    "thorough": recorded(*THOROUGH),
    "background": recorded("a", metadata={"background": True}),
    "failed": recorded("a", end="run.failed"),
    "cancelled": recorded(Thinking("a"), end="run.cancelled"),
    "incomplete": recorded("a", Finish("length")),
    "refused": recorded("Well, ", Refusal("I "), Refusal("cannot\n\n")),
    "refusal cut": recorded(Refusal("I "), end="run.cancelled"),
    "restarted": recorded("a", "restart", "b"),
    "parallel": recorded(*PARALLEL, "Done.", metadata={"tools": [FUNCTION]}),
    "running": recorded(*PARALLEL[:-1], end="run.cancelled", metadata={"tools": [FUNCTION]}),
    "arguments cut": recorded("a", ToolCall("a", "A"), ToolArguments("a", '{"p'), end="run.failed"),
    "restarted in calls": recorded(*PARALLEL[:-2], ToolCall("d", "D"), "restart", ToolCall("d", "D", ""), "b"),
    "left open": recorded(ToolCall("a", "A"), ToolArguments("a", "ls"), ToolReady("a")),
    "hosted": recorded(ToolCall("a", "A", by="provider"), ToolResult("a", None), ToolCall("b", "B", by="client")),
    "nothing": recorded(),
    "at once": [*recorded(end="")[:1], recorded(end="run.failed")[-1]],
}

# The fold -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_events_are_numbered_from_0_without_gaps(log: list[Event]) -> None:
    """Over all events of the response, errors included."""
    payloads = told(log)
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_live_equals_replay_after_every_event(log: list[Event]) -> None:
    """Whatever number a reader comes back with, it gets exactly the bytes that follow."""
    whole = [ResponseEncoder(ResponseFold(SESSION, RUN, agent="a"))]
    frames = b"".join(whole[0].encode(event) for event in log).split(b"\n\n")
    for after in range(len(frames) - 3):  # the last two are [DONE] and what follows it
        again = ResponseEncoder(ResponseFold(SESSION, RUN, agent="a"), after=after)
        assert b"".join(map(again.encode, log)) == b"\n\n".join(frames[after + 1 :])
    past = ResponseEncoder(ResponseFold(SESSION, RUN, agent="a"), after=len(frames) - 3)
    assert b"".join(map(past.encode, log)) == b""
    assert past.over


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_items_are_told_by_the_rules_of_the_sdk(log: list[Event]) -> None:
    """Created first, added before its content, one item after another, each done as it stands in the final output."""
    payloads = told(log)
    assert payloads[0]["type"] == "response.created"
    open_item: dict[str, Any] | None = None
    running: dict[int, dict[str, Any]] = {}  # calls that are not the client's, whose result is to come
    done: dict[int, dict[str, Any]] = {}
    for payload in payloads:
        index = payload.get("output_index")
        item = running.get(index) or open_item
        if payload["type"] == "response.output_item.added":
            assert open_item is None
            assert index == len(done) + len(running)
            open_item = payload["item"]
        elif payload["type"] == "response.output_item.done":
            assert item is not None
            assert (payload["item"]["id"], payload["item"]["type"]) == (item["id"], item["type"])
            done[index] = payload["item"]
            if running.pop(index, None) is None:
                open_item = None
        elif "item_id" in payload:
            assert item is not None
            assert payload["item_id"] == item["id"]
            if payload["type"] == "response.mcp_call_arguments.done":
                running[index], open_item = item, None
    final = payloads[-1]["response"]
    assert (open_item, running) == (None, {})
    assert final["output"] == [done[index] for index in sorted(done)]
    assert {payload["response"]["id"] for payload in payloads if "response" in payload} == {response_id(RUN)}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_frames_have_no_id_and_done_comes_last(log: list[Event]) -> None:
    """After an id, decoders of the SDKs take a heartbeat for an event; the event's name is its type."""
    encoder = ResponseEncoder(ResponseFold(SESSION, RUN, agent="a"))
    body = b"".join(encoder.encode(event) for event in log)
    assert body.endswith(DONE)
    assert b"\nid:" not in body
    messages = decoded(body)
    assert [message.event for message in messages[:-1]] == [json.loads(m.data)["type"] for m in messages[:-1]]


EVENT_TYPES: Any = Union[responses_schema.RESPONSE_EVENTS]  # noqa: UP007  # of a tuple
CHUNK_TYPES = {"error": responses_schema.APIErrorResponse, "choices": responses_schema.ChatCompletionChunk}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_every_event_and_chunk_is_of_its_documented_type(log: list[Event]) -> None:
    """With all of its fields, and no others; so is the completion."""
    told_types = [(payload, EVENT_TYPES) for payload in told(log)]
    sent = [(chunk, CHUNK_TYPES["error" if "error" in chunk else "choices"]) for chunk in chunks(log)]
    encoder = ChatEncoder(RUN, agent="a")
    for event in log:
        encoder.feed(event)
    for payload, type in (*told_types, *sent, (encoder.completion(), responses_schema.ChatCompletion)):
        assert msgspec.to_builtins(msgspec.convert(payload, type)) == payload


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_every_event_and_chunk_is_of_the_sdks_own_types(log: list[Event]) -> None:
    """Checked strictly, which the SDK itself does not do. Only the code of a failure is a free word here."""
    events, failed = TypeAdapter(ResponseStreamEvent), 0
    for payload in told(log):
        if payload["type"] == "response.failed" and payload["response"]["error"]:
            failed += 1
            payload["response"]["error"]["code"] = "server_error"
        event: Any = events.validate_json(json.dumps(payload), strict=True)
        assert event.type == payload["type"]
    assert failed == (log[-1].type == "run.failed")
    for chunk in chunks(log):
        if "error" not in chunk:
            ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)


def test_text_is_a_message_item() -> None:
    """With one part, which is added, grows and is done."""
    payloads = told(recorded("a", "b"))
    assert types(payloads) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    item = payloads[-2]["item"]
    part = {"type": "output_text", "text": "ab", "annotations": [], "logprobs": []}
    assert item == {"type": "message", "id": f"msg_{RUN}_0", "status": "completed", "role": "assistant",
                    "content": [part]}  # fmt: skip


def test_a_refusal_is_a_message_item_with_a_part_of_its_own() -> None:
    """The response completes: it has been answered."""
    payloads = told(recorded(Refusal("I "), Refusal("cannot.")))
    assert types(payloads) == [
        "created", "in_progress", "output_item.added", "content_part.added", "refusal.delta", "refusal.delta",
        "refusal.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert payloads[3]["part"] == {"type": "refusal", "refusal": ""}
    assert payloads[6]["refusal"] == "I cannot."
    item = payloads[-1]["response"]["output"][0]
    assert (item["type"], item["role"], item["content"]) == (
        "message", "assistant", [{"type": "refusal", "refusal": "I cannot."}],
    )  # fmt: skip


def test_thinking_is_a_reasoning_summary() -> None:
    """The one form that all clients know."""
    payloads = told(recorded(Thinking("H"), Thinking("m"), "a"))
    assert types(payloads)[2:9] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.delta", "reasoning_summary_text.done", "reasoning_summary_part.done",
        "output_item.done",
    ]  # fmt: skip
    assert payloads[8]["item"]["summary"] == [{"type": "summary_text", "text": "Hm"}]


BEGUN = ["output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done"]


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (ToolResult("a", output={"x": 1}), ("completed", '{"x":1}', None)),
        (ToolResult("a", "as text"), ("completed", "as text", None)),
        (ToolResult("a"), ("completed", "", None)),
        (ToolResult("a", "no such file", success=False), ("failed", None, "no such file")),
        (ToolResult("a", {"errno": 2}, success=False), ("failed", None, '{"errno":2}')),
        (ToolResult("a", success=False), ("failed", None, "The tool failed.")),
    ],
)
@pytest.mark.parametrize("by", ["server", "provider", None])
def test_a_call_that_is_not_the_client_s_is_an_mcp_call(by: Any, given: ToolResult, came: tuple[Any, ...]) -> None:
    """What came of it stands in the item itself, so nobody runs it again."""
    payloads = told(recorded(ToolCall("a", "Read", by=by), ToolArguments("a", "{}"), ToolStarted("a"), given))
    status, output, error = came
    assert types(payloads)[2:8] == [*BEGUN, f"mcp_call.{status}", "output_item.done"]
    about = {"type": "mcp_call", "id": f"mcp_{RUN}_0", "server_label": "legato", "approval_request_id": None,
             "name": "Read"}  # fmt: skip
    assert payloads[2]["item"] == {**about, "arguments": "", "status": "in_progress", "output": None, "error": None}
    (item,) = payloads[-1]["response"]["output"]
    failure = error and {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": error}]}
    assert item == {**about, "arguments": "{}", "status": status, "output": output, "error": failure}


@pytest.mark.parametrize(
    "tool",
    [FUNCTION, {"type": "function", "function": {"name": "f"}}, {"name": "f"}, {"type": "custom", "name": "f"},
     {"type": "custom", "custom": {"name": "f"}}, {"name": "f", "input_schema": {}}],
)  # fmt: skip
def test_a_call_of_a_tool_that_the_request_brought_is_the_client_s(tool: dict[str, Any]) -> None:
    """Of all others it is never asked, although nobody says who runs them."""
    log = recorded(ToolCall("a", "f"), ToolArguments("a", "{}"), ToolCall("b", "g", "{}"), metadata={"tools": [tool]})
    theirs, own = told(log)[-1]["response"]["output"]
    assert (theirs["type"], theirs["call_id"], theirs["name"], theirs["arguments"]) == ("function_call", "a", "f", "{}")
    assert (own["type"], own["name"]) == ("mcp_call", "g")
    assert [call["id"] for call in completion(log)["message"]["tool_calls"]] == ["a"]


@pytest.mark.parametrize(
    "tool",
    [{"type": "web_search"}, {"type": "web_search_20250305", "name": "f"}, {"type": "mcp", "name": "f"}, "f", None,
     {"type": "function"}, {"name": ["f"]}, {"type": ["function"], "name": "f"}],
)  # fmt: skip
def test_a_provider_s_own_kind_of_tool_is_not_the_client_s(tool: Any) -> None:
    """Nor what is no tool at all."""
    (item,) = told(recorded(ToolCall("a", "f", "{}"), metadata={"tools": [tool]}))[-1]["response"]["output"]
    assert item["type"] == "mcp_call"


def test_other_items_come_while_a_call_runs() -> None:
    """Its arguments are whole, so nothing is taken for a piece of them; its end comes when there is one."""
    payloads = told(recorded(*PARALLEL, metadata={"tools": [FUNCTION]}))
    seen = [(type, each.get("output_index")) for type, each in zip(types(payloads), payloads, strict=True)]
    assert [each for each in seen if each[0] == "output_text.delta"] == [
        ("output_text.delta", 3), ("output_text.delta", 3), ("output_text.delta", 4)
    ]  # fmt: skip
    assert seen.index(("mcp_call.failed", 2)) < seen.index(("mcp_call.completed", 0))
    assert seen.index(("output_text.delta", 3)) < seen.index(("mcp_call.failed", 2))
    assert [item["type"] for item in payloads[-1]["response"]["output"]] == [
        "mcp_call", "function_call", "mcp_call", "message", "message"
    ]  # fmt: skip


@pytest.mark.parametrize("end", ENDINGS)
@pytest.mark.parametrize(
    ("items", "arguments"),
    [
        ([], "{}"),
        ([ToolArguments("a", '{"p":')], '{"arguments":"{\\"p\\":"}'),
        ([ToolArguments("a", '{"p":1}')], '{"p":1}'),
        ([ToolArguments("a", '{"p":1}'), ToolReady("a")], '{"p":1}'),
        ([ToolArguments("a", '{"p":1}'), ToolStarted("a")], '{"p":1}'),
    ],
)
def test_a_call_that_comes_to_nothing_is_incomplete(end: str, items: list[Any], arguments: str) -> None:
    """It is over with its run, is not the client's to run, and its arguments are JSON whatever came of them."""
    payloads = told(recorded(ToolCall("a", "A"), *items, end=end))
    (item,) = payloads[-1]["response"]["output"]
    assert (item["status"], item["output"], item["arguments"]) == ("incomplete", None, arguments)
    assert item["error"]["content"][0]["text"] == NO_RESULT
    assert types(payloads).count("output_item.done") == 1
    assert not {"mcp_call.completed", "mcp_call.failed"} & set(types(payloads))


@pytest.mark.parametrize("given", [None, "", " ", "ls -l", '{"p":', "[1", '{"p":1}', "[1]"])
def test_arguments_of_such_a_call_are_json(given: str | None) -> None:
    """Clients decode them although they do not run it."""
    payloads = told(recorded(ToolCall("a", "A", given), ToolResult("a", "ok")))
    (item,) = payloads[-1]["response"]["output"]
    json.loads(item["arguments"])
    (done,) = [each["arguments"] for each in payloads if each["type"] == "response.mcp_call_arguments.done"]
    assert done == item["arguments"]
    if given in (None, "", '{"p":1}', "[1]"):
        assert deltas(payloads) == [(0, item["arguments"])]


def test_a_call_goes_on_in_a_further_attempt() -> None:
    """Its result is told when it comes; what the dead attempt had begun to ask is over."""
    begun = [ToolCall("a", "A", "{}"), ToolStarted("a"), ToolCall("b", "B")]
    recorder = Recorder(RUN)
    drafts = [each for item in begun for each in recorder.record(item)]
    later = Recorder(RUN, earlier=recorder.transcript, resumed=True)
    drafts += [draft("run.started", {"agent": "a", "attempt": 2}, RUN)]
    drafts += [each for item in ("So. ", ToolResult("a", "ok"), ToolResult("b", "late")) for each in later.record(item)]
    log = [*recorded(end=""), *(Event(each.fact, 9, 0.0, RUN) for each in drafts), recorded()[-1]]
    items = told(log)[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in items] == [
        ("mcp_call", "completed"), ("mcp_call", "incomplete"), ("message", "completed"),
    ]  # fmt: skip


def logged(by: dict[str, str]) -> list[Event]:
    """The log of a run that makes a call and has its result; ``by`` is what its beginning says besides."""
    about = {"step": 1, "id": "a", "name": "Read"}
    events: list[tuple[str, dict[str, Any]]] = [
        ("tool_call.started", {**about, **by, "part": 0}),
        ("tool_call.completed", {**about, "part": 0, "arguments": "{}"}),
        ("tool.completed", {"id": "a", "name": "Read", "progress": "", "success": True, "output": {"x": 1}}),
    ]
    return [*recorded(end=""), *(stored(*each, 9, 0.0, RUN) for each in events), recorded()[-1]]


def test_a_log_that_does_not_say_who_runs_a_call_is_told_as_ever() -> None:
    """The numbers that its readers have stay true: the output is an item of its own."""
    payloads = told(logged({}))
    assert types(payloads)[2:8] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "output_item.added", "output_item.done",
    ]  # fmt: skip
    call, output = payloads[-1]["response"]["output"]
    assert (call["call_id"], call["name"], call["arguments"]) == ("a", "Read", "{}")
    assert (output["call_id"], output["output"]) == ("a", '{"x":1}')
    assert completion(logged({}))["finish_reason"] == "stop"


@pytest.mark.parametrize("by", ["sandbox", "", "Client"])
def test_a_word_from_the_future_is_not_the_client(by: str) -> None:
    """Whoever runs it, nobody is asked to."""
    (item,) = told(logged({"by": by}))[-1]["response"]["output"]
    assert (item["type"], item["output"]) == ("mcp_call", '{"x":1}')
    assert "tool_calls" not in completion(logged({"by": by}))["message"]


def test_whole_arguments_are_one_delta() -> None:
    """Clients that only gather deltas have them, too."""
    assert deltas(told(recorded(ToolCall("a", "Read", '{"p":1}')))) == [(0, '{"p":1}')]


def test_parallel_calls_do_not_interleave() -> None:
    """What belongs to the second waits until the first is done: clients credit a delta to the last item added."""
    calls = [ToolCall(id, id, by="client") for id in "ab"] + [ToolArguments("b", "[2"), ToolArguments("a", "[1]")]
    payloads = told(recorded(*calls, ToolArguments("b", "]"), ToolReady("a"), ToolReady("b")))
    assert deltas(payloads) == [(0, "[1]"), (1, "[2]")]
    assert [item["arguments"] for item in payloads[-1]["response"]["output"]] == ["[1]", "[2]"]


def test_a_delta_that_comes_twice_is_told_once() -> None:
    """Each names its place, so an overlap does no harm, here or in a chat."""
    begin = recorded(end="")
    pieces = [(0, "ab"), (1, "bc"), (0, "abc"), (3, "d")]
    data = [{"part": 0, "step": 1, "start": start, "text": text} for start, text in pieces]
    log = [*begin, *(stored("text.delta", each, 9, 0.0, RUN) for each in data), recorded()[-1]]
    assert deltas(told(log)) == [(0, "ab"), (0, "c"), (0, "d")]
    contents = [chunk["choices"][0]["delta"].get("content") for chunk in chunks(log)]
    assert contents == ["", "ab", "c", "d", None]


@pytest.mark.parametrize(("held", "wanted"), [(False, [(0, "x")]), (True, [(0, "{}"), (1, "[1]")])])
def test_arguments_that_end_otherwise_than_they_began(held: bool, wanted: list[tuple[int, str]]) -> None:
    """The whole is what stands in the end; nothing that is wrong is told if it has not been told yet."""
    about = [{"part": part, "step": 1, "id": f"c{part}", "name": "f"} for part in (0, 1)]
    part = 1 if held else 0
    events = [
        *(("tool_call.started", each) for each in about[: part + 1]),
        ("tool_call.delta", {**about[part], "start": 0, "arguments": "x"}),
        ("tool_call.completed", {**about[part], "arguments": "[1]"}),
        *([("tool_call.completed", {**about[0], "arguments": "{}"})] if held else []),
    ]
    log = [*recorded(end=""), *(stored(type, data, 9, 0.0, RUN) for type, data in events), recorded()[-1]]
    payloads = told(log)
    assert deltas(payloads) == wanted
    assert payloads[-1]["response"]["output"][part]["arguments"] == "[1]"


def test_a_failed_run_is_an_error_and_then_failed() -> None:
    """The error has both shapes that clients know."""
    error, failed = told(recorded("a", end="run.failed"))[-2:]
    assert (error["type"], error["code"], error["error"]["message"]) == ("error", "no", "No.")
    response = failed["response"]
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": "no", "message": "No."}
    assert response["output"][0]["status"] == "incomplete"


def test_a_cancelled_run_is_failed_with_status_cancelled() -> None:
    """This dialect has no event of that name; what was said is kept."""
    payloads = told(recorded("a", end="run.cancelled"))
    response = payloads[-1]["response"]
    assert (payloads[-1]["type"], response["status"], response["error"]) == ("response.failed", "cancelled", None)
    assert response["output"][0]["content"][0]["text"] == "a"
    assert "error" not in types(payloads)


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter"), ("refusal", None)]
)
def test_an_answer_that_was_cut_is_incomplete(finish: str, reason: str | None) -> None:
    """Its last item, too; other reasons to finish complete it."""
    last = told(recorded("a", Finish(finish)))[-1]
    response = last["response"]
    assert last["type"] == ("response.incomplete" if reason else "response.completed")
    assert response["incomplete_details"] == ({"reason": reason} if reason else None)
    assert response["output"][0]["status"] == ("incomplete" if reason else "completed")
    assert (response["completed_at"] is None) == bool(reason)


def test_a_background_response_is_queued_first() -> None:
    """Until its run has started."""
    payloads = told(recorded(metadata={"background": True}))
    assert types(payloads) == ["created", "queued", "in_progress", "completed"]
    assert [payload["response"]["status"] for payload in payloads] == ["queued", "queued", "in_progress", "completed"]


def test_a_further_attempt_is_in_progress_once_more() -> None:
    """What the dead one had begun is left incomplete, and one terminal event ends both."""
    payloads = told(recorded("a", "restart", "b"))
    assert types(payloads).count("in_progress") == 2
    assert [(item["status"], item["content"][0]["text"]) for item in payloads[-1]["response"]["output"]] == [
        ("incomplete", "a"), ("completed", "b"),
    ]  # fmt: skip


def test_usage_is_counted_as_the_sdks_want_it() -> None:
    """And as none when the agent has not told it; null as long as it goes on."""
    first, *_, last = told(recorded("a"))
    assert (first["response"]["usage"], last["response"]["usage"]["total_tokens"]) == (None, 0)
    usage = told(recorded("a", Usage(input_tokens=3, output_tokens=4, cached_tokens=1)))[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (3, 4, 7)
    assert usage["input_tokens_details"] == {"cached_tokens": 1, "cache_write_tokens": 0}


def test_a_response_says_what_was_set() -> None:
    """And defaults for what was not, never null where clients want numbers."""
    tool = {"type": "function", "name": "f"}
    response = told(recorded(metadata={"instructions": "Be brief.", "tools": [tool], "temperature": 0.5}))[0][
        "response"
    ]
    assert response["instructions"] == "Be brief."
    assert response["tools"] == [{**tool, "description": None, "parameters": None, "strict": None}]
    assert (response["temperature"], response["top_p"], response["tool_choice"]) == (0.5, 1.0, "auto")


def test_metadata_of_another_dialect_does_no_harm() -> None:
    """It may have the same names for other things."""
    response = told(recorded(metadata={"temperature": "warm", "plan_mode": True}))[0]["response"]
    assert response["temperature"] == 1.0


def test_events_of_other_runs_make_none() -> None:
    """Nor those of the session, nor what follows the end."""
    log = recorded("a")
    fold = ResponseFold(SESSION, "s_1~0b", agent="a")
    assert [fold.feed(event) for event in log] == [[]] * len(log)
    fold = ResponseFold(SESSION, RUN, agent="a")
    for event in log:
        fold.feed(event)
    assert fold.feed(log[-1]) == []


def test_a_deleted_session_is_an_error_for_its_reader() -> None:
    """An end without a terminal event would look like the end of the answer."""
    encoder = ResponseEncoder(ResponseFold(SESSION, RUN, agent="a"))
    for event in recorded("a", end=""):
        encoder.encode(event)
    frame = encoder.encode(stored("session.deleted", {}, 99, 0.0))
    (message,) = decoded(frame)
    assert (message.event, json.loads(message.data)["code"], encoder.over) == ("error", "response_deleted", True)


def test_ids_lead_back_to_their_runs() -> None:
    """Without an index; what cannot be one is none."""
    assert parse_id(response_id("my.s-1_~0af")) == ("my.s-1_", "my.s-1_~0af")
    for wrong in ("", "resp_", "resp_s", "resp_s~", "resp_s~xyz", "s~0a", "resp_../s~0a", "resp_s~0a\n"):
        assert parse_id(wrong) is None


# Chat Completions -----------------------------------------------------------------------------------------------------


def chunks(log: Sequence[Event], **options: Any) -> list[dict[str, Any]]:
    encoder = ChatEncoder(RUN, agent="a", **options)
    messages = decoded(b"".join(encoder.encode(event) for event in log))
    assert {message.event for message in messages} == {"message"}
    assert messages[-1].data == "[DONE]"
    return [json.loads(message.data) for message in messages[:-1]]


def completion(log: Sequence[Event]) -> dict[str, Any]:
    """The one choice of the completion."""
    encoder = ChatEncoder(RUN, agent="a")
    for event in log:
        encoder.feed(event)
    choice: dict[str, Any] = encoder.completion()["choices"][0]
    return choice


def test_chat_chunks_begin_with_the_role_and_end_with_the_reason() -> None:
    """One id for all of them, no usage unless it was asked for."""
    seen = chunks(recorded("a", "b", Usage(3, 4)))
    assert [chunk["choices"][0]["delta"] for chunk in seen] == [
        {"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in seen] == [None, None, None, "stop"]
    assert {chunk["id"] for chunk in seen} == {f"chatcmpl-{RUN}"}
    assert not any("usage" in chunk for chunk in seen)


def test_chat_usage_is_a_chunk_without_choices() -> None:
    """And null in all the others."""
    seen = chunks(recorded("a", Usage(3, 4)), include_usage=True)
    assert [chunk["usage"] for chunk in seen[:-1]] == [None] * (len(seen) - 1)
    assert (seen[-1]["choices"], seen[-1]["usage"]["total_tokens"]) == ([], 7)


def test_chat_tool_calls_have_their_index() -> None:
    """Parallel ones, too; unanswered ones are the reason to finish."""
    calls = [ToolCall("a", "A", by="client"), ToolCall("b", "B", "[2]", "client")]
    calls += [ToolArguments("a", "[1]"), ToolReady("a")]  # type: ignore[list-item]
    seen = [chunk["choices"][0] for chunk in chunks(recorded(*calls))]
    pieces = [call for choice in seen for call in choice["delta"].get("tool_calls", ())]
    assert [(piece["index"], piece["function"]["arguments"]) for piece in pieces] == [
        (0, ""), (1, ""), (1, "[2]"), (0, "[1]"),
    ]  # fmt: skip
    assert seen[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("by", ["server", "provider", None])
@pytest.mark.parametrize("items", [[], [ToolStarted("a")], [ToolResult("a", 1)], [ToolResult("a", 1, success=False)]])
def test_a_call_that_is_not_the_client_s_is_left_out_of_a_chat(by: Any, items: list[Any]) -> None:
    """There is no form for it; whatever comes of it, the client is not asked."""
    log = recorded("Look: ", ToolCall("a", "A", by=by), ToolArguments("a", "{}"), *items, "there.")
    seen = [chunk["choices"][0] for chunk in chunks(log)]
    assert [choice["delta"] for choice in seen[1:]] == [{"content": "Look: "}, {"content": "there."}, {}]
    assert seen[-1]["finish_reason"] == completion(log)["finish_reason"] == "stop"
    assert completion(log)["message"] == {"role": "assistant", "content": "Look: there.", "refusal": None}


def test_a_chat_that_was_stopped_asks_for_nothing() -> None:
    """Its calls may lack their ends."""
    log = recorded(ToolCall("a", "A", by="client"), ToolArguments("a", '{"p'), end="run.cancelled")
    assert chunks(log)[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_failed_chat_ends_with_an_error() -> None:
    """At which the SDKs raise."""
    assert chunks(recorded("a", end="run.failed"))[-1]["error"]["code"] == "no"


@pytest.mark.parametrize(("finish", "reason"), [("length", "length"), ("content_filter", "content_filter")])
def test_a_chat_that_was_cut_says_why(finish: str, reason: str) -> None:
    """As its clients call it."""
    assert chunks(recorded("a", Finish(finish)))[-1]["choices"][0]["finish_reason"] == reason


def test_a_refusal_in_a_chat_is_no_content() -> None:
    """It has a field of its own, piece by piece and in the whole; the chat has stopped."""
    log = recorded(Refusal("I "), Refusal("cannot."))
    seen = chunks(log)
    assert [chunk["choices"][0]["delta"] for chunk in seen[1:]] == [{"refusal": "I "}, {"refusal": "cannot."}, {}]
    assert seen[-1]["choices"][0]["finish_reason"] == "stop"
    encoder = ChatEncoder(RUN, agent="a")
    for event in log:
        encoder.feed(event)
    message = encoder.completion()["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "I cannot.")


# Requests -------------------------------------------------------------------------------------------------------------


def test_input_as_text_and_as_items_is_the_same() -> None:
    """Also with parts in the style of Chat Completions, as some clients send them."""
    parts = [{"type": "text", "text": "h"}, {"type": "input_text", "text": "i"}]
    inputs = ["hi", [{"role": "user", "content": "hi"}], [{"type": "message", "role": "user", "content": parts}]]
    assert [responses_api.prompt(Create(input=each)).text for each in inputs] == ["hi"] * 3  # type: ignore[arg-type]


def test_earlier_items_are_history() -> None:
    """Neighbouring items of the assistant are one message; outputs stand in their calls."""
    asked = responses_api.prompt(
        Create(
            input=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "one"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "3"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "It is 3."}]},
                {"role": "user", "content": "two"},
            ],
            instructions="Be kind.",
        )
    )
    user, assistant = asked.earlier
    assert (asked.text, user.text, assistant.text) == ("two", "one", "It is 3.")
    assert (user.role, assistant.role) == ("user", "assistant")
    assert assistant.parts is not None
    assert [part.type for part in assistant.parts] == ["thinking", "tool_call", "text"]
    assert isinstance(assistant.parts[1], CallPart)
    assert assistant.parts[1].output == "3"
    assert asked.metadata["instructions"] == "Be kind.\n\nBe brief."


def test_a_refusal_in_earlier_items_is_a_refusal_in_history() -> None:
    """As this API writes it, and as Chat Completions do."""
    refusal = [{"type": "output_text", "text": "I "}, {"type": "refusal", "refusal": "cannot."}]
    chat = CreateChat(messages=[{"role": "assistant", "content": "I ", "refusal": "cannot."},
                                {"role": "user", "content": "Why?"}])  # fmt: skip
    items = [{"role": "assistant", "content": refusal}, {"role": "user", "content": "Why?"}]
    for body in (Create(input=items), responses_api.from_chat(chat)):
        (message,) = responses_api.prompt(body).earlier
        assert message.text == "I cannot."
        assert message.parts == [TextPart(1, "I "), RefusalPart(1, "cannot.")]


def test_what_tools_gave_can_be_all_there_is() -> None:
    """A client that executes its own tools sends nothing else."""
    asked = responses_api.prompt(Create(input=[{"type": "function_call_output", "call_id": "c", "output": "3"}]))
    assert asked.text == "3"
    assert asked.metadata["input"][0]["call_id"] == "c"


def test_an_image_alone_has_a_name() -> None:
    """A message needs text; the agent finds the image in the metadata."""
    asked = responses_api.prompt(
        Create(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}])
    )
    assert asked.text == "[input_image]"


def test_what_does_not_fit_is_named() -> None:
    """The parameter, and what is wrong with it, by the codes of this API."""
    for raw, code, param in (
        (b"{}", "missing_required_parameter", "input"),
        (b'{"input": null}', "invalid_type", "input"),
        (b'{"input": "x", "metadata": {"a": 1}}', "invalid_type", "metadata[...]"),
        (b'{"input": "x", "truncation": "never"}', "invalid_value", "truncation"),
        (b'{"input": "x", "temperature": -1}', "decimal_below_min_value", "temperature"),
        (b'{"input": "x", "top_p": 2}', "decimal_above_max_value", "top_p"),
        (b'{"input": "x", "max_output_tokens": 0}', "integer_below_min_value", "max_output_tokens"),
        (b'{"input": "x", "top_logprobs": 21}', "integer_above_max_value", "top_logprobs"),
        (b'{"input": "x"', "invalid_json", None),
    ):
        with pytest.raises(BadRequest) as caught:
            responses_api.decode(raw, Create)
        assert (caught.value.code, caught.value.detail["param"]) == (code, param)


@pytest.mark.parametrize("input", ["", " ", [], [{"role": "assistant", "content": "x"}]])
def test_nothing_to_answer_is_refused(input: Any) -> None:
    """With the parameter's name."""
    with pytest.raises(BadRequest) as caught:
        responses_api.prompt(Create(input=input))
    assert caught.value.detail["param"] == "input"


def test_chat_messages_are_items() -> None:
    """Calls and their results, too; tools lose their wrapping."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = CreateChat(
        messages=[
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
        ],
        tools=[{"type": "function", "function": {"name": "f"}}],
        reasoning_effort="low",
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    )
    asked = responses_api.prompt(responses_api.from_chat(body))
    assert asked.text == "3"
    assert asked.earlier[1].parts == [CallPart(1, "c", "f", "{}")]
    assert asked.metadata["tools"] == [{"type": "function", "name": "f"}]
    assert asked.metadata["reasoning"] == {"effort": "low"}
    assert asked.metadata["text"] == {"format": {"type": "json_schema", "name": "n", "schema": {}}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(WORDS, JSON | WORDS, max_size=5), max_size=4))
@settings(max_examples=300, derandomize=True, database=None)
def test_odd_items_are_taken_or_refused(items: list[dict[str, Any]]) -> None:
    """Never anything else, here or when they are listed; whatever is stored can be stored."""
    for input in (items, responses_api.from_chat(CreateChat(messages=items)).input):
        try:
            asked = responses_api.prompt(Create(input=input))
        except BadRequest:
            continue
        assert asked.text.strip()
        history([Event(fact, 1, 0.0) for fact in asked.earlier])
        json.dumps(
            [
                asked.metadata,
                responses_items.input_items(RUN, MessageCreated("m", "user", asked.text, metadata=asked.metadata)),
            ]
        )


# Routes ---------------------------------------------------------------------------------------------------------------


async def ask(chat: Chat, **body: Any) -> ASGIResponse:
    headers = body.pop("headers", {})
    return await chat.driver.request("POST", "/v1/responses", json={"input": "hi", **body}, headers=headers)


def refused(response: ASGIResponse) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return response.status, error["code"], error["param"]


async def failing(turn: Turn) -> AsyncIterator[str]:
    """Fails with a reason that users may see."""
    yield "I"
    raise AgentError("No.", code="no")


async def curious(turn: Turn) -> AsyncIterator[str]:
    """Tells what it was given."""
    yield json.dumps({"metadata": turn.message.metadata, "history": [[m.role, m.text] for m in turn.history]})


def said(response: ASGIResponse) -> Any:
    return json.loads(response.json()["output"][0]["content"][0]["text"])


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_both_prefixes_are_served(prefix: str) -> None:
    """Clients add `/v1` by themselves, or not."""
    async with chatting() as chat:
        body = {"model": "echo", "input": "hi"}
        answer = (await chat.driver.request("POST", f"{prefix}/responses", json=body)).json()
        assert (answer["status"], answer["model"]) == ("completed", "echo")
        again = await chat.driver.request("GET", f"{prefix}/responses/{answer['id']}")
        assert again.json() == answer
        assert (await chat.driver.request("GET", f"{prefix}/models")).json()["data"][0]["id"] == "echo"
        assert (await chat.driver.request("GET", f"{prefix}/models/echo")).json()["object"] == "model"


async def test_an_answer_names_its_agent() -> None:
    """From the first event on, also where the request has named none."""
    async with chatting() as chat:
        stream = await ask(chat, stream=True)
        models = [json.loads(m.data)["response"]["model"] for m in decoded(stream.body) if '"response":' in m.data]
        assert set(models) == {"echo"}
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        stream = await chat.driver.request("POST", "/chat/completions", json=body)
        assert {json.loads(m.data)["model"] for m in decoded(stream.body) if m.data != "[DONE]"} == {"echo"}


async def test_every_resume_of_a_stored_response_is_the_rest_of_it() -> None:
    """After each number, any number of times, also of one that was not streamed at first."""
    async with chatting() as chat:
        id = (await ask(chat)).json()["id"]
        whole = (await chat.driver.request("GET", f"/v1/responses/{id}?stream=true")).body
        frames = whole.split(b"\n\n")
        for after in range(len(frames) - 3):
            rest = await chat.driver.request("GET", f"/responses/{id}?stream=true&starting_after={after}")
            assert rest.body == b"\n\n".join(frames[after + 1 :])
        past = await chat.driver.request("GET", f"/responses/{id}?stream=true&starting_after=999")
        assert (past.status, past.body) == (200, b"")


async def test_a_number_that_was_never_sent_is_not_waited_for() -> None:
    """The last one that was sent is: what follows it comes when it comes."""
    gate = Gate()
    async with asyncio.timeout(30), chatting(None, gate) as chat:
        gate.let("a")
        id = (await ask(chat, background=True)).json()["id"]
        async with chat.driver.stream(f"/responses/{id}?stream=true") as live:
            async for message in live.messages():
                if message.event == "response.output_text.delta":
                    break
        last = json.loads(message.data)["sequence_number"]
        answer = await chat.driver.request("GET", f"/responses/{id}?stream=true&starting_after={last + 1}")
        assert refused(answer) == (400, "invalid_value", "starting_after")
        async with chat.driver.stream(f"/responses/{id}?stream=true&starting_after={last}") as rest:
            gate.close()
            following = [json.loads(each.data) async for each in rest.messages() if each.data != "[DONE]"]
        assert [each["sequence_number"] for each in following[:2]] == [last + 1, last + 2]


async def test_a_background_response_is_answered_as_it_was_asked_for() -> None:
    """Queued and empty, however quick the agent is."""
    async with chatting() as chat:
        answer = (await ask(chat, background=True)).json()
        assert (answer["status"], answer["output"]) == ("queued", [])


async def test_a_resume_follows_a_running_response() -> None:
    """What was live for one reader is replay for the other, and both see the end."""
    gate = Gate()
    async with asyncio.timeout(30), chatting(None, gate) as chat:
        gate.let("a")
        id = (await ask(chat, background=True)).json()["id"]
        async with chat.driver.stream(f"/responses/{id}?stream=true") as live:
            async for message in live.messages():
                if message.event == "response.output_text.delta":
                    break
            async with chat.driver.stream(f"/responses/{id}?stream=true&starting_after=3") as late:
                gate.let("b")
                gate.close()
                rest = [message.event async for message in late.messages()]
            assert rest[0] == "response.content_part.added"
            assert rest[-2:] == ["response.completed", "message"]


async def test_a_reader_that_leaves_ends_nothing() -> None:
    """The response goes on, and is there to be read."""
    gate = Gate()
    async with asyncio.timeout(30), chatting(None, gate) as chat:
        body = json.dumps({"input": "hi", "stream": True}).encode()
        async with chat.driver.stream("/responses", method="POST", body=body) as stream:
            async for message in stream.messages():
                id = json.loads(message.data)["response"]["id"]
                break
        gate.let("on")
        gate.close()
        events = decoded((await chat.driver.request("GET", f"/responses/{id}?stream=true")).body)
        assert json.loads(events[-2].data)["response"]["status"] == "completed"


async def test_a_request_whose_client_leaves_is_let_go() -> None:
    """Nobody waits for the answer any more; the run goes on."""
    gate = Gate()
    async with asyncio.timeout(30), chatting(None, gate) as chat:
        body = json.dumps({"input": "hi", "conversation": chat.session}).encode()
        stream = chat.driver.stream("/responses", method="POST", body=body)
        waiting = asyncio.create_task(stream.__aenter__())
        while not (await chat.get()).json()["running"]:
            pass
        stream.disconnect()
        await waiting
        await stream.finished()
        assert (await chat.get()).json()["running"]
        gate.close()


async def test_silence_is_a_comment() -> None:
    """A whole block, and no id anywhere."""
    gate = Gate()
    async with asyncio.timeout(30), chatting(None, gate, heartbeat=0.01) as chat:
        body = json.dumps({"input": "hi", "stream": True}).encode()
        async with chat.driver.stream("/responses", method="POST", body=body) as stream:
            while b": ping\n\n" not in stream.body:
                await stream.read()
            assert b"id:" not in stream.body.replace(b'"id":', b"")
        gate.close()


async def test_a_cancel_gives_the_cancelled_response_back() -> None:
    """Also of a response that was not begun in the background: a disconnect does not end it. Twice is no error."""
    gate = Gate()
    async with asyncio.timeout(30), chatting(None, gate) as chat:
        body = json.dumps({"input": "hi", "stream": True}).encode()
        async with chat.driver.stream("/responses", method="POST", body=body) as stream:
            async for message in stream.messages():
                id = json.loads(message.data)["response"]["id"]
                break
            first = await chat.driver.request("POST", f"/responses/{id}/cancel")
            rest = [message.event async for message in stream.messages()]
        again = await chat.driver.request("POST", f"/responses/{id}/cancel")
        assert (first.status, first.json()["status"], again.json()) == (200, "cancelled", first.json())
        assert rest[-2:] == ["response.failed", "message"]


async def test_a_failed_response_says_why() -> None:
    """With 200: the request was answered, the response failed."""
    async with chatting(None, failing) as chat:
        answer = (await ask(chat)).json()
        assert (answer["status"], answer["error"]["code"]) == ("failed", "no")


async def test_a_response_continues_the_one_before() -> None:
    """In the same session, with its history."""
    async with chatting(None, curious) as chat:
        first = await ask(chat, input="one")
        second = await ask(chat, input="two", previous_response_id=first.json()["id"])
        third = await ask(chat, input="three", conversation=first.json()["conversation"])
        assert [text for _, text in said(third)["history"]][::2] == ["one", "two"]
        assert second.json()["conversation"] == first.json()["conversation"] == third.json()["conversation"]


async def test_a_response_that_is_not_the_last_is_continued_in_a_copy() -> None:
    """Two answers to one response do not see each other."""
    async with chatting(None, curious) as chat:
        first = (await ask(chat, input="one")).json()
        await ask(chat, input="two", previous_response_id=first["id"])
        other = await ask(chat, input="other", previous_response_id=first["id"])
        assert [text for _, text in said(other)["history"]][::2] == ["one"]
        assert other.json()["conversation"] != first["conversation"]


async def test_a_response_continues_one_that_is_still_given() -> None:
    """It waits behind it; but only the last one in a conversation can be continued before it has ended."""
    gate = Gate()
    async with asyncio.timeout(30), chatting(None, gate) as chat:
        first = (await ask(chat, background=True)).json()
        second = (await ask(chat, background=True, previous_response_id=first["id"])).json()
        third = await ask(chat, previous_response_id=first["id"])
        assert second["status"] == "queued"
        assert refused(third) == (400, "previous_response_in_progress", "previous_response_id")
        gate.close()
        gate.close()


async def test_what_was_taken_back_is_not_continued() -> None:
    """A rewind of the conversation took the response out of it."""
    async with chatting() as chat:
        await chat.said("one")
        taken = [(await ask(chat, conversation=chat.session)).json() for _ in range(2)]
        kept = (await chat.get("/messages")).json()[1]["id"]
        await chat.post("/rewind", {"messageId": kept})
        for response in taken:
            answer = await ask(chat, previous_response_id=response["id"])
            assert refused(answer) == (400, "previous_response_not_found", "previous_response_id")


async def test_earlier_items_are_added_to_a_conversation() -> None:
    """Also when it exists already."""
    async with chatting(None, curious) as chat:
        items = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        given = said(await ask(chat, input=items, conversation={"id": chat.session}))
        assert given["history"] == [["user", "a"], ["assistant", "b"]]


async def test_the_agent_gets_what_was_set() -> None:
    """By the names of the API, in the message's metadata; system messages are instructions."""
    async with chatting(None, curious) as chat:
        items = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        tools = [{"type": "function", "name": "f"}]
        given = said(await ask(chat, input=items, instructions="Be brief.", tools=tools, temperature=0))
        assert given["history"] == [["user", "a"], ["assistant", "b"]]
        assert given["metadata"] == {"instructions": "Be brief.", "tools": tools, "temperature": 0.0, "input": items}


async def test_head_of_a_stream_is_its_head() -> None:
    """And its proper end, also while the response goes on; it holds no place."""
    gate = Gate()
    async with chatting(None, gate, max_streams=1) as chat, asyncio.timeout(30):
        id = (await ask(chat, background=True)).json()["id"]
        gate.let("a")
        for _ in range(2):
            async with chat.driver.stream(f"/v1/responses/{id}?stream=true", method="HEAD") as stream:
                assert (stream.status, await stream.read()) == (200, b"")
                await stream.finished()
                assert stream.error is None
        assert len(chat.app.streams) == 0
        gate.close()


class BrokenOnceStored(MemoryStore):
    """Stores a message, and then cannot be read."""

    broken = False

    async def append(self, session: str, drafts: Sequence[Draft], **options: Any) -> Any:
        appended = await super().append(session, drafts, **options)
        self.broken = self.broken or any(isinstance(draft.fact, MessageCreated) for draft in drafts)
        return appended

    async def read(self, *arguments: Any, **options: Any) -> Any:
        self._check()
        return await super().read(*arguments, **options)

    async def info(self, session: str) -> Any:
        self._check()
        return await super().info(session)

    def _check(self) -> None:
        if self.broken:
            raise StoreError("The disk is gone.")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("responses", {"input": "hi"}),
        ("responses", {"input": "hi", "stream": True}),
        ("responses", {"input": "hi", "background": True}),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True}),
    ],
)
async def test_what_was_stored_is_not_to_be_sent_again(path: str, body: Any) -> None:
    """Whatever fails after that: an SDK that repeated it by itself would have it answered, and paid for, twice."""
    async with chatting(store=BrokenOnceStored()) as chat, asyncio.timeout(30):
        failed = await chat.driver.request("POST", f"/v1/{path}", json=body)
        assert (refused(failed)[:2], failed.headers["x-should-retry"]) == ((500, "store_failed"), "false")


@pytest.mark.parametrize("path", ["/v1/responses", "/responses", "/models", "/chat/completions", "/chat/x", "/v1/x"])
async def test_what_is_refused_before_it_is_looked_at_has_the_form_of_its_dialect(path: str) -> None:
    """A foreign page, a foreign name, a path that is not there."""
    async with chatting(hosts=["localhost"]) as chat:
        for headers, error in (
            ({"origin": "https://evil.test"}, (403, "origin_not_allowed", None)),
            ({"host": "evil.test"}, (421, "host_not_allowed", None)),
        ):
            assert refused(await chat.driver.request("POST", path, json={}, headers=headers)) == error
        if path.endswith("x"):
            assert refused(await chat.driver.request("POST", path, json={})) == (404, "not_found", None)


async def test_the_same_key_is_the_same_response() -> None:
    """Also for a request that begins a session; another request with that key is refused for good."""
    async with chatting() as chat:
        key = {"idempotency-key": "k1"}
        first = (await ask(chat, headers=key)).json()
        assert (await ask(chat, headers=key)).json() == first
        other = await ask(chat, input="other", headers=key)
        assert refused(other) == (409, "idempotency_key_reused", None)
        assert other.headers["x-should-retry"] == "false"
        key = {"idempotency-key": "k2"}
        second = (await ask(chat, previous_response_id=first["id"], headers=key)).json()
        assert (await ask(chat, previous_response_id=first["id"], headers=key)).json() == second


async def delete(chat: Chat, id: str) -> ASGIResponse:
    return await chat.driver.request("DELETE", f"/responses/{id}")


async def check_gone(chat: Chat, id: str) -> None:
    for method, path in (("GET", ""), ("GET", "?stream=true"), ("GET", "/input_items"), ("POST", "/cancel"),
                         ("DELETE", "")):  # fmt: skip
        answer = await chat.driver.request(method, f"/responses/{id}{path}")
        assert refused(answer) == (404, "response_not_found", "response_id"), (method, path)
    answer = await ask(chat, previous_response_id=id)
    assert refused(answer) == (400, "previous_response_not_found", "previous_response_id")


async def session_of(chat: Chat, id: str) -> list[str]:
    """The types of the log that the response is in, without deltas; of a deleted one just that."""
    place = parse_id(id)
    assert place is not None
    return [event.type for event in await chat.app.store.read(place[0], 0, deltas=False)]


async def test_a_deleted_response_is_gone() -> None:
    """With its log, when it is the only one there."""
    async with chatting() as chat:
        id = (await ask(chat)).json()["id"]
        assert (await delete(chat, id)).json() == {"id": id, "object": "response", "deleted": True}
        await check_gone(chat, id)
        assert await session_of(chat, id) == ["session.deleted"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_response_is_deleted_out_of_a_conversation(kind: str, tmp_path: Path) -> None:
    """The others stay, and go on, with all that was said; the last one takes the log along."""
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "log.db", durability="normal")
    async with chatting(None, curious, store=store) as chat:
        first = (await ask(chat, input="one")).json()
        second = (await ask(chat, input="two", previous_response_id=first["id"])).json()
        assert (await delete(chat, first["id"])).status == 200
        await check_gone(chat, first["id"])
        assert (await chat.driver.request("GET", f"/responses/{second['id']}")).json() == second
        for place in ({"previous_response_id": second["id"]}, {"conversation": first["conversation"]["id"]}):
            third = await ask(chat, input="three", **place)
            assert [text for role, text in said(third)["history"] if role == "user"][:2] == ["one", "two"]
            assert (await delete(chat, third.json()["id"])).status == 200
        assert (await delete(chat, second["id"])).status == 200
        assert await session_of(chat, second["id"]) == ["session.deleted"]
        await check_gone(chat, second["id"])


async def test_a_deleted_response_does_not_come_back_with_its_key() -> None:
    """The same request again is not answered anew, and not with what was deleted."""
    async with chatting() as chat:
        key = {"idempotency-key": "k1"}
        first = (await ask(chat)).json()
        place = {"conversation": first["conversation"]["id"]}
        second = (await ask(chat, headers=key, **place)).json()["id"]
        assert (await delete(chat, second)).status == 200
        assert refused(await ask(chat, headers=key, **place))[0] == 404


class Paused(MemoryStore):
    """A store that lets somebody else act first when an event of a type is about to be appended."""

    first: tuple[str, Callable[[], Awaitable[Any]]] | None = None

    async def append(self, session: str, drafts: Sequence[Draft], **options: Any) -> Any:
        if self.first is not None and self.first[0] in [draft.type for draft in drafts]:
            act, self.first = self.first[1], None
            await act()
        return await super().append(session, drafts, **options)


@pytest.mark.parametrize("alone", [True, False])
async def test_of_two_deletes_at_once_one_succeeds(alone: bool) -> None:
    """The log says it once."""
    store = Paused()
    async with chatting(None, store=store) as chat:
        id = (await ask(chat)).json()["id"]
        if not alone:
            await ask(chat, previous_response_id=id)
        statuses = []

        async def other() -> None:
            statuses.append((await delete(chat, id)).status)

        store.first = ("session.deleted" if alone else "session.run_withdrawn", other)
        statuses.append((await delete(chat, id)).status)
        assert statuses == [200, 404]
        types = await session_of(chat, id)
        assert types == ["session.deleted"] if alone else types.count("session.run_withdrawn") == 1


async def test_a_delete_takes_no_message_along_that_comes_meanwhile() -> None:
    """A message that was taken is answered: the log stays, and only the deleted response is gone."""
    store = Paused()
    async with chatting(None, store=store) as chat:
        first = (await ask(chat)).json()
        others = []

        async def other() -> None:
            others.append((await ask(chat, input="wait", conversation=first["conversation"]["id"])).json())

        store.first = ("session.deleted", other)
        assert (await delete(chat, first["id"])).status == 200
        await check_gone(chat, first["id"])
        assert (await chat.driver.request("GET", f"/responses/{others[0]['id']}")).json() == others[0]


async def test_the_last_two_deleted_at_once_take_the_log_along() -> None:
    """Each sees the other's; whoever is later deletes the log, and the other finds it done."""
    store = Paused()
    async with chatting(None, store=store) as chat:
        first = (await ask(chat)).json()["id"]
        second = (await ask(chat, previous_response_id=first)).json()["id"]

        store.first = ("session.run_withdrawn", lambda: delete(chat, second))
        assert (await delete(chat, first)).status == 200
        assert await session_of(chat, first) == ["session.deleted"]


async def test_a_session_that_is_deleted_while_its_last_response_is() -> None:
    """Whoever comes too late is told that there is no such response, as if it had come after."""
    store = Paused()
    async with chatting(None, store=store) as chat:
        for others, type in ((0, "session.deleted"), (1, "session.run_withdrawn")):
            first = (await ask(chat)).json()
            session = first["conversation"]["id"]
            for _ in range(others):
                await ask(chat, previous_response_id=first["id"])
            store.first = (type, lambda session=session: chat.driver.request("DELETE", f"/api/sessions/{session}"))
            assert refused(await delete(chat, first["id"])) == (404, "response_not_found", "response_id")
            assert store.first is None
            assert await session_of(chat, first["id"]) == ["session.deleted"]


async def test_a_response_stays_deleted_when_the_server_starts_again(tmp_path: Path) -> None:
    """It is a fact in the log."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    async with chatting(None, store=url) as chat:
        first = (await ask(chat)).json()["id"]
        second = (await ask(chat, previous_response_id=first)).json()
        assert (await delete(chat, first)).status == 200
    async with chatting(None, store=url) as chat:
        await check_gone(chat, first)
        assert (await chat.driver.request("GET", f"/responses/{second['id']}")).json() == second


async def test_a_response_that_is_deleted_while_another_goes_on_from_it() -> None:
    """Whoever comes too late is told that there is none, as if it had come after the delete."""
    store = Paused()
    async with chatting(None, store=store) as chat:
        first = (await ask(chat)).json()["id"]
        store.first = ("message.created", lambda: delete(chat, first))
        answer = await ask(chat, previous_response_id=first)
        assert refused(answer) == (400, "previous_response_not_found", "previous_response_id")


async def test_a_running_response_is_not_deleted() -> None:
    """It is to be cancelled first."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        id = (await ask(chat, background=True)).json()["id"]
        assert refused(await chat.driver.request("DELETE", f"/responses/{id}")) == (400, "in_progress", None)
        gate.close()


async def test_input_items_are_listed() -> None:
    """The last one first, in pages."""
    async with chatting() as chat:
        items = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        id = (await ask(chat, input=items)).json()["id"]
        page = (await chat.driver.request("GET", f"/responses/{id}/input_items?limit=2")).json()
        assert ([item["content"][0]["text"] for item in page["data"]], page["has_more"]) == (["c", "b"], True)
        rest = await chat.driver.request("GET", f"/responses/{id}/input_items?after={page['last_id']}")
        assert [item["content"][0]["text"] for item in rest.json()["data"]] == ["a"]
        plain = (await ask(chat, input="x")).json()["id"]
        (only,) = (await chat.driver.request("GET", f"/responses/{plain}/input_items")).json()["data"]
        assert (only["role"], only["content"]) == ("user", [{"type": "input_text", "text": "x"}])


async def test_a_response_that_was_not_to_be_stored_is_not_found() -> None:
    """By its id; the log has it, and who knows the session."""
    async with chatting() as chat:
        answer = (await ask(chat, store=False)).json()
        assert answer["status"] == "completed"
        assert (await chat.driver.request("GET", f"/responses/{answer['id']}")).status == 404
        answer = await ask(chat, previous_response_id=answer["id"])
        assert refused(answer) == (400, "previous_response_not_found", "previous_response_id")


REFUSED: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
    ({"model": "nobody"}, (400, "model_not_found", "model")),
    ({"input": 5}, (400, "invalid_type", "input")),
    ({"temperature": 3}, (400, "decimal_above_max_value", "temperature")),
    ({"stream": "yes"}, (400, "invalid_type", "stream")),
    ({"metadata": {"a": 1}}, (400, "invalid_type", "metadata[...]")),
    ({"previous_response_id": "resp_x"}, (400, "previous_response_not_found", "previous_response_id")),
    ({"conversation": "s_unknown"}, (404, "session_not_found", None)),
    ({"conversation": "s", "previous_response_id": "r"}, (400, "invalid_value", "previous_response_id")),
]


@pytest.mark.parametrize(("body", "wanted"), REFUSED)
async def test_bad_requests_are_refused(body: dict[str, Any], wanted: tuple[int, str, str | None]) -> None:
    """With the statuses and codes that the SDKs make their errors of."""
    async with chatting() as chat:
        assert refused(await ask(chat, **body)) == wanted


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/v1/responses/resp_s~0a", (404, "response_not_found", "response_id")),
        ("GET", "/v1/responses/resp_s~0a?stream=true&starting_after=x", (400, "invalid_value", "starting_after")),
        ("GET", "/v1/responses/resp_s~0a?stream=maybe", (400, "invalid_value", "stream")),
        ("POST", "/v1/responses/x/cancel", (404, "response_not_found", "response_id")),
        ("DELETE", "/v1/responses/x", (404, "response_not_found", "response_id")),
        ("GET", "/v1/models/nobody", (404, "model_not_found", "model")),
        ("GET", "/v1/responses", (405, "method_not_allowed", None)),
        ("GET", "/v1/files", (404, "not_found", None)),
        ("POST", "/v1/responses", (400, "invalid_json", None)),
        ("POST", "/v1/chat/completions", (400, "invalid_json", None)),
    ],
)
async def test_bad_paths_are_refused(method: str, path: str, wanted: tuple[int, str, str | None]) -> None:
    """In this dialect's envelope."""
    async with chatting() as chat:
        assert refused(await chat.driver.request(method, path)) == wanted


async def test_a_draining_server_takes_no_requests() -> None:
    """503 with `Retry-After`, before anything is stored."""
    async with chatting() as chat:
        before = len((await chat.driver.request("GET", "/api/sessions")).json())
        chat.app.runner.draining = True
        answer = await ask(chat)
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert len((await chat.driver.request("GET", "/api/sessions")).json()) == before


async def test_a_chat_completion_is_answered() -> None:
    """Whole; a failed one is an error that is not to be sent again."""
    async with chatting(None, echo, failing) as chat:
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        answer = (await chat.driver.request("POST", "/chat/completions", json=body)).json()
        assert answer["choices"][0]["message"]["content"] == "You said: hi"
        failed = await chat.driver.request("POST", "/chat/completions", json={**body, "model": "failing"})
        assert (refused(failed), failed.headers["x-should-retry"]) == ((500, "no", None), "false")
        unknown = await chat.driver.request("POST", "/chat/completions", json={**body, "model": "nobody"})
        assert refused(unknown) == (404, "model_not_found", "model")


async def test_a_run_of_the_other_dialect_is_a_response() -> None:
    """And a response is a run on `/stream`."""
    async with chatting() as chat:
        sent = (await chat.said("hi")).json()
        answer = (await chat.driver.request("GET", f"/responses/{response_id(sent['runId'])}")).json()
        assert answer["output"][0]["content"][0]["text"] == "You said: hi"
        made = (await ask(chat, conversation=chat.session)).json()
        messages = (await chat.get("/messages")).json()
        assert messages[-1]["assistantResponse"] == "You said: hi"
        assert response_id(messages[-1]["runId"]) == made["id"]
