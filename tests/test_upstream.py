"""Agents that ask a model: what it says, its tools, its failures, and a crash at every event."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fake_server import Handler, Reply, Request, json_reply, stream_reply
from legato.agent import Agent, Turn
from legato.agents.model import Model
from legato.agents.model_turn import NOTE_EVERY
from legato.agents.upstream import model_agent
from legato.bounds import Limits
from legato.errors import AgentError, InvalidInput
from legato.event import CheckpointNoted, Draft, Event, PermissionRequested, RunStarted, TextDelta
from legato.part import CallPart, Message, TextPart, Usage
from legato.recorder import Recorder
from legato.tool import Tool, ToolError
from legato.transcript import Transcript, fold
from model_server import Keeper, asking, calls, says
from provider_streams import (
    ANTHROPIC_TEXT,
    ANTHROPIC_TOOLS,
    CHAT_LENGTH,
    CHAT_TEXT,
    CHAT_TOOLS,
    ERROR_EVENTS,
    FAILED_EVENTS,
    FIDDLE,
    TEXT,
    TEXT_EVENTS,
    cut_reply,
    delta,
    item,
    sse,
)
from running import NET, Stage, staged
from test_agent import Desk


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged("memory", tmp_path) as stage:
        yield stage


async def answer(stage: Stage, agent: Agent, text: str = "Hello", **settings: Any) -> Event:
    """The terminal event of one message's run."""
    runner = stage.runner(agent)
    return await stage.ended(await runner.send(await stage.session(), text, **settings))


def kinds(event: Event) -> list[tuple[str, str]]:
    parts = event.fact.said.parts
    return [(part.type, part.arguments if isinstance(part, CallPart) else part.text) for part in parts]


def is_second_attempt(event: Event) -> bool:
    return isinstance(event.fact, RunStarted) and event.fact.attempt == 2


def add(x: int) -> int:
    """Add one."""
    return x + 1


# What the model says --------------------------------------------------------------------------------------------------


async def test_an_answer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinking, text, usage: each becomes what it is here; the conversation and the settings reach the model."""
    keeper = Keeper(says("Hel", f"lo {FIDDLE}", thinking=["Hm", "."]))
    agent = model_agent(asking(monkeypatch, keeper), instructions="Be kind.", options={"top_p": 0.5})
    end = await answer(stage, agent, metadata={"temperature": 0.1, "tool_choice": "auto"})

    assert ("run.completed", "stop", TEXT) == (end.type, end.fact.finish_reason, end.fact.message.text)
    assert [("thinking", "Hm."), ("text", TEXT)] == kinds(end)
    assert Usage(5, 7, 2, 3, model="m-1") == end.fact.used
    asked = keeper.asked[0]
    assert ("m-1", 0.1, 0.5, True) == (asked["model"], asked["temperature"], asked["top_p"], asked["stream"])
    assert [("system", "Be kind."), ("user", "Hello")] == [(each["role"], each["content"]) for each in asked["input"]]
    assert {"tools", "tool_choice", "background"}.isdisjoint(asked)


@pytest.mark.parametrize(
    ("wire", "body", "parts"),
    [
        ("chat", sse(CHAT_TEXT, named=False), [("thinking", "Hm."), ("text", TEXT)]),
        ("messages", sse(ANTHROPIC_TEXT), [("thinking", "Hm."), ("text", TEXT)]),
    ],
)
async def test_other_apis(
    wire: str, body: bytes, parts: list[Any], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chat Completions and Anthropic Messages say the same."""
    end = await answer(stage, model_agent(asking(monkeypatch, lambda _: stream_reply(body, None), wire)))

    assert ("run.completed", parts) == (end.type, kinds(end))


async def test_a_second_turn_knows_the_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the background: the whole conversation is told, since the provider may have forgotten it."""
    keeper = Keeper(says("One."), says("Two."))
    runner = stage.runner(model_agent(asking(monkeypatch, keeper, background=True)))
    session = await stage.session()
    await stage.ended(await runner.send(session, "First?"))
    await stage.ended(await runner.send(session, "Second?"))

    told = [item["content"] for item in keeper.asked[1]["input"]]
    assert ["First?", [{"type": "output_text", "text": "One."}], "Second?"] == told
    assert "previous_response_id" not in keeper.asked[1]


async def test_a_refusal(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model declines: that is told apart from an answer, and in the next turn it knows that it did."""
    declined = [item(0, "added", type="message", content=[]), delta(0, "refusal", "I can"), delta(0, "refusal", "not.")]
    keeper = Keeper(declined, says("Hello."))
    runner = stage.runner(model_agent(asking(monkeypatch, keeper)))
    session = await stage.session()
    end = await stage.ended(await runner.send(session, "Bad?"))
    await stage.ended(await runner.send(session, "Good?"))

    assert ("refusal", [("refusal", "I cannot.")]) == (end.fact.finish_reason, kinds(end))
    assert [{"type": "output_text", "text": "I cannot."}] == keeper.asked[1]["input"][1]["content"]


# Tools ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
async def test_tools(background: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model calls, the tools run beside each other, and the model is told what came of them."""
    both = asyncio.Barrier(2)

    async def wait(word: str) -> dict[str, str]:
        await both.wait()
        return {"word": word}

    asked = [("a", "wait", '{"word":"one"}'), ("b", "wait", '{"word":"two"}')]
    keeper = Keeper(calls(*asked, text="Let me see."), says("Done."))
    model = asking(monkeypatch, keeper, background=background)
    end = await answer(stage, model_agent(model, tools=[Tool(wait), Tool(add)]))

    message = end.fact.message
    assert ("run.completed", "stop", "Done.") == (end.type, end.fact.finish_reason, message.text)
    assert [1, 1, 1, 2] == [part.step for part in message.parts]
    assert [{"word": "one"}, {"word": "two"}] == [part.output for part in message.parts[1:3]]
    assert Usage(10, 14, 4, 6, model="m-1") == end.fact.used
    assert ["wait", "add"] == [tool["name"] for tool in keeper.asked[0]["tools"]]
    items = keeper.asked[1]["input"]
    outputs = [(item["call_id"], item["output"]) for item in items if item["type"] == "function_call_output"]
    assert [("a", '{"word":"one"}'), ("b", '{"word":"two"}')] == outputs
    if background:  # the provider has the rest
        assert (2, "resp_1") == (len(items), keeper.asked[1]["previous_response_id"])
    else:
        assert ["message", "message", "function_call", "function_call"] == [item["type"] for item in items[:4]]


@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("nope", "{}", "There is no tool 'nope'; there are: add, fail, broken, leaving."),
        ("add", '{"x":"1"}', "The arguments do not fit add: Expected `int`, got `str` - at `$.x`."),
        ("add", '{"x":', "The arguments do not fit add: Input data was truncated."),
        ("fail", "{}", "No such city."),
        ("broken", "{}", "broken could not be run."),
        ("leaving", "{}", "leaving could not be run."),
    ],
)
async def test_calls_that_fail(
    name: str, arguments: str, output: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is told why, and the run goes on."""

    def fail() -> None:
        raise ToolError("No such city.")

    def question() -> str:
        raise ValueError("a question with a mistake in it")

    tools = [Tool(add), Tool(fail), Tool(lambda: 1, name="broken", approval=question)]
    tools.append(Tool(lambda: 1, name="leaving", approval=lambda: sys.exit()))
    keeper = Keeper(calls(("a", name, arguments)), says("Sorry."))
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=tools))

    part = end.fact.message.parts[0]
    assert ("run.completed", False, output) == (end.type, part.success, part.output)
    told = keeper.asked[1]["input"][-1]
    assert f"Error: {output}" == told["output"]


@pytest.mark.parametrize("size", [900, 905, 9_000])
@pytest.mark.parametrize("fail", [False, True])
async def test_an_output_beyond_what_an_event_holds(
    size: int, fail: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is told so and may ask for less, where the run would fail after all that was paid for it."""

    def read() -> str:
        if fail:
            raise ToolError("\0" * size)
        return "x" * size

    keeper = Keeper(calls(("a", "read", "{}")), says("Well."))
    agent = model_agent(asking(monkeypatch, keeper), tools=[Tool(read)])
    runner = stage.runner(agent, limits=Limits(event_bytes=1_000))
    end = await stage.ended(await runner.send(await stage.session(), "Go"))
    part = end.fact.message.parts[0]

    assert (end.type, part.success) == ("run.completed", size < 905 and not fail)
    assert fail or part.success or "too long; ask it for less" in part.output


@pytest.mark.parametrize("granted", [True, False])
async def test_a_tool_that_asks(granted: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user sees the question and the arguments; without a yes, the tool is not begun."""
    done: list[int] = []
    tool = Tool(lambda x: done.append(x), name="delete", approval="Delete {x}?")
    keeper = Keeper(calls(("a", "delete", '{"x":1}')), says("Well."))
    runner = stage.runner(model_agent(asking(monkeypatch, keeper), tools=[tool]))
    sent = await runner.send(await stage.session(), "Go")
    asked = await stage.seen(sent.session, "permission.requested")
    assert ("Delete 1?", "delete", {"x": 1}, []) == (
        asked.fact.description,
        asked.fact.tool,
        asked.fact.params,
        done,
    )
    await runner.resolve_permission(asked.fact.id, granted)
    end = await stage.ended(sent)

    part = end.fact.message.parts[0]
    assert (granted, [1] if granted else []) == (part.success, done)
    assert ("tool.started" in await stage.types(sent)) is granted
    assert granted or part.output == "The user did not allow it."


async def test_a_tool_begins_when_that_is_stored(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While ``tool.started`` is on its way to the disk, nothing may happen that a crash would forget."""
    begun: list[int] = []
    held, open_gate = asyncio.Event(), asyncio.Event()

    async def before(session: str, drafts: Sequence[Draft]) -> None:
        if any(draft.type == "tool.started" for draft in drafts):
            held.set()
            await open_gate.wait()

    stage.store.before = before
    keeper = Keeper(calls(("a", "work", "{}")), says("Done."))
    tool = Tool(lambda: begun.append(1), name="work")
    runner = stage.runner(model_agent(asking(monkeypatch, keeper), tools=[tool]))
    sent = await runner.send(await stage.session(), "Go")
    async with asyncio.timeout(NET):
        await held.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert [] == begun
    open_gate.set()
    await stage.ended(sent)
    assert [1] == begun


async def test_the_client_s_own_tools(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are offered to the model, its calls of them are left to the client, and our own run all the same."""
    keeper = Keeper(calls(("a", "theirs", '{"y":2}'), ("b", "add", '{"x":1}')), says("Four."))
    runner = stage.runner(model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]))
    session = await stage.session()
    theirs = {"type": "function", "name": "theirs", "parameters": {"type": "object"}}
    metadata = {"tools": [theirs, {**theirs, "name": "add"}, "odd"]}
    end = await stage.ended(await runner.send(session, "Go", metadata=metadata))
    parts = end.fact.message.parts

    assert ("tool_calls", False, 2) == (end.fact.finish_reason, parts[0].done, parts[1].output)
    assert [("add", "Add one."), ("theirs", None)] == [
        (tool["name"], tool.get("description")) for tool in keeper.asked[0]["tools"]
    ]
    items = [{"type": "function_call_output", "call_id": "a", "output": "4"}]
    end = await stage.ended(await runner.send(session, "4", metadata={**metadata, "input": items}))
    assert "Four." == end.fact.message.text
    told = keeper.asked[1]["input"]
    assert [("a", "4"), ("b", "2")] == sorted((i["call_id"], i["output"]) for i in told if "output" in i)


async def test_tools_in_another_form(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested as in Chat Completions, and kinds that the provider has itself: whatever is no tool is said so."""
    keeper = Keeper(calls(("a", "theirs", "{}")))
    agent = model_agent(asking(monkeypatch, keeper), tools=[Tool(add)])
    nested = {"type": "function", "function": {"name": "theirs"}}
    end = await answer(stage, agent, metadata={"tools": [nested, {"type": "web_search"}, {"type": "x", "name": []}]})
    assert "tool_calls" == end.fact.finish_reason
    assert [("function", "add"), ("function", "theirs"), ("web_search", None), ("x", [])] == [
        (tool["type"], tool.get("name")) for tool in keeper.asked[0]["tools"]
    ]

    end = await answer(stage, agent, metadata={"tools": [{"name": ["theirs"]}]})
    assert ("invalid_input", 1) == (end.fact.code, len(keeper.asked))
    assert "A tool has a name" in end.fact.message


@pytest.mark.parametrize(
    ("choice", "then"),
    [
        ("required", None),
        ({"type": "function", "name": "add"}, None),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, None),
        ("none", "none"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []},) * 2,
    ],
)
async def test_a_call_that_is_asked_for(choice: Any, then: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants a tool to be called wants an answer behind it; who allows or forbids some does so to the end."""
    keeper = Keeper(calls(("a", "add", '{"x":1}')), says("Two."))
    agent = model_agent(asking(monkeypatch, keeper), tools=[Tool(add)])
    await answer(stage, agent, metadata={"tool_choice": choice})

    assert [choice, then] == [asked.get("tool_choice") for asked in keeper.asked]


async def test_a_model_that_never_stops_calling(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit to how often it is asked; and calls of one id in each answer are still told apart."""
    keeper = Keeper(calls(("same", "add", '{"x":1}')))
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)], max_steps=3))

    assert ("run.failed", "too_many_steps", 3) == (end.type, end.fact.code, len(keeper.asked))
    ids = [part.id for part in end.fact.partial.parts]
    assert ("same", 3) == (ids[0], len(set(ids)))
    told = [item["call_id"] for item in keeper.asked[2]["input"] if item["type"] == "function_call_output"]
    assert ["same", "same"] == told  # the provider knows its own ids


async def test_calls_without_ids(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers give none: each gets one, and the model hears of it by that."""
    keeper = Keeper(calls(("", "add", '{"x":1}'), ("", "add", '{"x":2}')), says("Done."))
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]))

    assert ("run.completed", [2, 3]) == (end.type, [part.output for part in end.fact.message.parts[:2]])
    items = keeper.asked[1]["input"]
    told = {item["call_id"] for item in items if item["type"] == "function_call"}
    assert (2, told) == (len(told), {item["call_id"] for item in items if item["type"] == "function_call_output"})


async def test_calls_that_the_provider_makes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Legato runs its agent's tools by itself: they are shown, and not made again."""
    made = [
        *calls(("a", "add", '{"x":1}')),
        {"type": "response.output_item.added", "output_index": 1,
         "item": {"type": "function_call_output", "id": "o", "call_id": "a", "output": "7"}},
        *({**event, "output_index": 2} for event in says("Seven.")),
    ]  # fmt: skip
    keeper = Keeper(made)
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]))

    parts = end.fact.message.parts
    assert ("7", "Seven.", 1) == (parts[0].output, end.fact.message.text, len(keeper.asked))


MCP = {
    "type": "mcp_call",
    "id": "h_1",
    "name": "look",
    "arguments": '{"x":1}',
    "server_label": "s",
    "status": "completed",
}
WORDS_OF_IT = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no such city"}]}
HOSTED: dict[str, tuple[dict[str, Any], tuple[str, str, str, bool]]] = {
    "output": ({**MCP, "output": "found", "error": None}, ("look", '{"x":1}', "found", True)),
    "no output": ({**MCP, "output": None, "error": None}, ("look", '{"x":1}', "", True)),
    "neither": (MCP, ("look", '{"x":1}', "", True)),
    "words as error": ({**MCP, "status": "failed", "error": "no"}, ("look", '{"x":1}', "no", False)),
    "error": ({**MCP, "status": "failed", "error": WORDS_OF_IT}, ("look", '{"x":1}', "no such city", False)),
    "http error": ({**MCP, "error": {"type": "http_error", "code": 401, "message": "Who?"}},
                   ("look", '{"x":1}', "Who?", False)),
    "odd error": ({**MCP, "error": {"code": 5}}, ("look", '{"x":1}', '{"code":5}', False)),
    "incomplete": ({**MCP, "status": "incomplete"}, ("look", '{"x":1}', "", False)),
    "object as arguments": ({**MCP, "arguments": {"x": 1}, "output": {"y": 2}}, ("look", '{"x":1}', '{"y":2}', True)),
    "search": ({"type": "web_search_call", "id": "h_1", "status": "completed", "action": {"type": "search"}},
               ("web_search", '{"action":{"type":"search"}}', "", True)),
    "files": ({"type": "file_search_call", "id": "h_1", "status": "completed", "queries": ["q"], "results": [{"a": 1}]},
              ("file_search", '{"queries":["q"]}', '{"results":[{"a":1}]}', True)),
    "code": ({"type": "code_interpreter_call", "id": "h_1", "status": "failed", "code": "1/0", "outputs": []},
             ("code_interpreter", '{"code":"1/0"}', "", False)),
    "picture": ({"type": "image_generation_call", "id": "h_1", "status": "completed", "result": "A" * 300_000},
                ("image_generation", "{}", "", True)),
    "of the future": ({"type": "dream_call", "id": "h_1", "of": "sheep"}, ("dream", "{}", '{"of":"sheep"}', True)),
}  # fmt: skip


def hosted(made: dict[str, Any], how: str) -> list[Any]:
    """An answer that says something, in which the provider makes a call by itself, in several ways to tell it."""
    text = [{**event, "output_index": 1, "item_id": "m"} if "item_id" in event else {**event, "output_index": 1}
            for event in says("So.")]  # fmt: skip
    if how == "at once":
        return [item(0, "done", **made), *text]
    begun = {key: value for key, value in made.items() if key in ("type", "id", "name", "server_label")}
    pieces: list[Any] = []
    if made["type"] == "mcp_call" and how == "streamed":
        arguments = made["arguments"] if isinstance(made["arguments"], str) else '{"x":1}'
        pieces = [
            {"type": "response.mcp_call.in_progress", "item_id": made["id"], "output_index": 0},
            *(delta(0, "mcp_call_arguments", piece, item_id=made["id"]) for piece in (arguments[:3], arguments[3:])),
            {"type": "response.mcp_call_arguments.done", "item_id": made["id"], "output_index": 0,
             "arguments": arguments},
            {"type": "response.mcp_call.completed", "item_id": made["id"], "output_index": 0},
        ]  # fmt: skip
    said = item(0, "done", **made)
    added = item(0, "added", **begun, status="in_progress", arguments="")
    return [added, *pieces, *text, said] if how == "while it speaks" else [added, *pieces, said, *text]


@pytest.mark.parametrize("how", ["streamed", "whole", "at once", "while it speaks"])
@pytest.mark.parametrize(("made", "wanted"), HOSTED.values(), ids=HOSTED)
async def test_calls_of_the_provider_s_own_tools(
    made: dict[str, Any], wanted: tuple[Any, ...], how: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told as made by the provider; nobody makes them again, and nobody is asked to."""
    keeper = Keeper(hosted(made, how))
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]))

    (call,) = [part for part in end.fact.said.parts if isinstance(part, CallPart)]
    assert ("run.completed", "stop", "So.", 1) == (
        end.type,
        end.fact.finish_reason,
        end.fact.said.text,
        len(keeper.asked),
    )
    assert ("provider", wanted) == (call.by, (call.name, call.arguments, call.output, call.success))


async def test_a_whole_answer_with_a_call_of_the_provider_s_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing was streamed of it, and it stands in the end of a stream only."""
    output = [
        HOSTED["output"][0],
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
    ]
    for events in ([], says("So.")):
        keeper = Keeper(events, output=output)
        end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]))
        (call,) = [part for part in end.fact.said.parts if isinstance(part, CallPart)]
        assert ("provider", "found", "So.") == (
            call.by,
            call.output,
            "".join(p.text for p in end.fact.said.parts if isinstance(p, TextPart)),
        )


@pytest.mark.parametrize("choice", ["function_call", "mcp_call"])
async def test_a_call_that_a_limit_cuts(choice: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the provider's, too, has an end, and is not left to anybody."""
    about = {"type": choice, "id": "h_1", "name": "add", **({"call_id": "c"} if choice == "function_call" else {})}
    keeper = Keeper([item(0, "added", arguments="", **about)], end="incomplete",
                    incomplete_details={"reason": "max_output_tokens"})  # fmt: skip
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]))

    (call,) = end.fact.said.parts
    by = "provider" if choice == "mcp_call" else "server"
    assert ("length", by, False, 1) == (end.fact.finish_reason, call.by, call.success, len(keeper.asked))


async def test_our_own_calls_beside_the_provider_s(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are made, and what came of them is told; a client's own is left to it."""
    made = [item(0, "added", **MCP), item(0, "done", **{**MCP, "output": "found"})]
    ours = [{**event, "output_index": 1} for event in calls(("a", "add", '{"x":1}'))]
    theirs = [{**event, "output_index": 2} for event in calls(("b", "ask", "{}"))]
    keeper = Keeper([*made, *ours], [*made, *ours, *theirs])
    tools = {"tools": [{"type": "function", "name": "ask"}, {"type": "function", "name": "add"}]}
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]), metadata=tools)

    said = [(part.name, part.by, part.done) for part in end.fact.said.parts if isinstance(part, CallPart)]
    assert [("look", "provider", True), ("add", "server", True)] * 2 + [("ask", "client", False)] == said
    assert ("tool_calls", 2) == (end.fact.finish_reason, len(keeper.asked))
    outputs = [each["call_id"] for each in keeper.asked[1]["input"] if each.get("type") == "function_call_output"]
    assert ["a"] == outputs


@pytest.mark.parametrize("arguments", ['{"x":', "[1]"])
async def test_arguments_that_are_no_object(arguments: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is told so over each API: also where the call itself cannot be told as it was."""
    written = {"type": "input_json_delta", "partial_json": arguments}
    called = [*ANTHROPIC_TOOLS[:2], {**ANTHROPIC_TOOLS[2], "delta": written}, ANTHROPIC_TOOLS[4], *ANTHROPIC_TOOLS[-2:]]
    replies = [sse(called), sse(ANTHROPIC_TEXT)]
    told: list[Any] = []

    def handler(request: Request) -> Reply:
        told.append(request.json["messages"])
        return stream_reply(replies.pop(0), None)

    model = asking(monkeypatch, handler, "messages")
    end = await answer(stage, model_agent(model, tools=[Tool(add)]))

    assert ("run.completed", TEXT) == (end.type, end.fact.message.text)
    assert {} == told[1][1]["content"][0]["input"]
    assert "The arguments do not fit add" in end.fact.message.parts[0].output


async def test_parallel_calls_over_chat(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of calls that alternate are credited to the right one."""
    replies = [sse(CHAT_TOOLS, named=False), sse(CHAT_TEXT, named=False)]
    tools = [Tool(add), Tool(lambda y: y * 10, name="sub")]
    model = asking(monkeypatch, lambda _: stream_reply(replies.pop(0), None), "chat")
    end = await answer(stage, model_agent(model, tools=tools))

    assert [2, 20] == [part.output for part in end.fact.message.parts[:2]]
    assert TEXT == end.fact.message.text


# Failures -------------------------------------------------------------------------------------------------------------


def fails(status: int, code: str = "odd", message: str = "It is odd.", **more: Any) -> Handler:
    return lambda _: json_reply({"error": {"message": message, "code": code, "type": "t", **more}}, status)


def unreachable(request: Request) -> Reply:
    raise httpx2.ConnectError("Connection refused.")


@pytest.mark.parametrize(
    ("handler", "code", "message"),
    [
        (fails(401, "invalid_api_key", "Wrong key sk-123."), "model_key_refused",
         "The model's provider does not accept the server's key."),
        (fails(400, "bad_key", "Wrong key: key."), "bad_key", "The model's provider says: Wrong [key]: [key]."),
        (fails(400, "long", "x" * 9_000), "long", "The model's provider says: " + "x" * 1_000),
        (lambda _: Reply(502, b"<html>nginx at 10.0.0.7</html>"), "http_502",
         "The model's provider answered with the status 502."),
        (fails(404, "model_not_found"), "model_not_found", "The model's provider says: It is odd."),
        (fails(429, "rate_limit_exceeded"), "rate_limit_exceeded", "The model's provider says: It is odd."),
        (unreachable, "model_unreachable", "The model cannot be reached."),
        (lambda _: Reply(die=True), "model_interrupted", "The model's answer broke off, and cannot be continued."),
        (lambda _: cut_reply(sse(TEXT_EVENTS[:4])), "model_interrupted",
         "The model's answer broke off, and cannot be continued."),
        (lambda _: stream_reply(sse(FAILED_EVENTS), None), "server_error", "The model's provider says: It broke."),
        (lambda _: stream_reply(sse(ERROR_EVENTS), None), "quota", "The model's provider says: Too poor."),
        (lambda _: stream_reply(b"data: {\n\n", None), "model_malformed",
         "What the model's provider sent cannot be understood."),
    ],
)  # fmt: skip
async def test_failures(
    handler: Handler, code: str, message: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails with a code, and with words that are the user's to see; what came is kept."""
    end = await answer(stage, model_agent(asking(monkeypatch, handler)))

    assert ("run.failed", code, message) == (end.type, end.fact.code, end.fact.message)
    assert end.fact.partial.text in ("", "Hel")


async def test_an_answer_that_is_too_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was stopped has answered, as far as it came; a call that was cut off is not made."""
    end = await answer(
        stage, model_agent(asking(monkeypatch, lambda _: stream_reply(sse(CHAT_LENGTH, named=False), None), "chat"))
    )
    assert ("run.completed", "length", "Hel") == (end.type, end.fact.finish_reason, end.fact.message.text)

    keeper = Keeper(calls(("a", "add", '{"x":1'), text="Hm"), end="incomplete",
                    incomplete_details={"reason": "max_output_tokens"})  # fmt: skip
    end = await answer(stage, model_agent(asking(monkeypatch, keeper), tools=[Tool(add)]))
    part = end.fact.message.parts[1]
    assert ("length", "The call was cut off.", 1) == (end.fact.finish_reason, part.output, len(keeper.asked))


async def test_a_provider_without_a_background(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so once, and is asked plainly from then on."""
    keeper = Keeper(says("Hello."))
    refused: list[bool] = []

    def before(request: Request) -> Reply | None:
        if request.json.get("background"):
            refused.append(True)
            return fails(400, param="background")(request)
        return None

    keeper.before = before
    agent = model_agent(asking(monkeypatch, keeper, background=True))
    for _ in range(2):
        assert "run.completed" == (await answer(stage, agent)).type
    assert ([True], 2) == (refused, len(keeper.asked))


async def test_two_runs_that_learn_of_no_background(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were asked for in the background before the first refusal came; both are asked for plainly then."""
    keeper = Keeper(says("Hello."))
    keeper.before = lambda request: fails(400, param="background")(request) if request.json.get("background") else None
    model = asking(monkeypatch, keeper, background=True)
    both, provider = asyncio.Barrier(2), Model.provider

    def held(model: Model) -> Any:
        client = provider(model)
        connect = client.connect

        async def together(call: Any) -> Any:
            if call.body.get("background"):
                await both.wait()
            return await connect(call)

        client.connect = together
        return client

    monkeypatch.setattr(Model, "provider", held)
    runner = stage.runner(model_agent(model))
    sent = [await runner.send(await stage.session(), "Hello") for _ in range(2)]

    assert ["run.completed"] * 2 == [(await stage.ended(each)).type for each in sent]


async def test_a_crash_without_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment in which such a provider is asked plainly, it is not asked the same again; no tool runs twice."""
    made: list[int] = []
    keeper = Keeper(calls(("a", "work", '{"x":1}')), says("Done."))
    keeper.before = lambda request: fails(400, param="background")(request) if request.json.get("background") else None
    model = asking(monkeypatch, keeper, background=True)

    def run() -> Run:
        return Run(model_agent(model, tools=[Tool(lambda x: made.append(x), name="work")]))

    whole = run()
    await whole.attempt()
    for crash in range(2, len(whole.events)):
        broken = run()
        await broken.attempt(crash_after=crash)
        asked, done = len(keeper.asked), len(made)
        notes = [event.fact.data for event in broken.events if isinstance(event.fact, CheckpointNoted)]
        if notes[-1].get("over"):  # the step is whole
            assert await broken.attempt() == "stop", crash
            assert len(made) <= done + 1, crash
            continue
        with pytest.raises(AgentError, match="What came is kept"):
            await broken.attempt()
        assert (asked, done) == (len(keeper.asked), len(made)), crash


def test_no_steps() -> None:
    """A model that may not be asked is no agent."""
    with pytest.raises(InvalidInput, match="max_steps is at least 1"):
        model_agent(Model("m", "chat", "http://host"), max_steps=0)


# Being stopped --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_a_stop_reaches_the_provider(how: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled answer is cancelled there, too, or it would be paid to its end; one that is to go on is not."""
    keeper = Keeper(says("Hel", "lo"))

    def before(request: Request) -> Reply | None:
        if request.method == "POST" and not request.path.endswith("cancel"):
            whole = sse(keeper.events("resp_1"))
            return stream_reply(whole[: whole.index(b'"delta": "lo"')], None, cut=True)
        return stream_reply(b": waiting\n\n", None, cut=True) if request.method == "GET" else None

    keeper.before = before
    model = asking(monkeypatch, keeper, background=True)
    agent = model_agent(model)
    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "Hello")
    await stage.seen(sent.session, "text.delta")
    if how == "cancel":
        await runner.cancel(sent.session)
        assert "run.cancelled" == (await stage.ended(sent)).type
    else:
        await runner.stop()
    assert agent.on_stop is not None
    await agent.on_stop()

    assert (["resp_1"] if how == "cancel" else []) == keeper.cancelled


async def test_an_answer_beyond_a_limit_is_stopped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has failed, and nobody will read what the provider would still write."""
    keeper = Keeper(says("Hello", " for", " ever"))
    agent = model_agent(asking(monkeypatch, keeper, background=True))
    runner = stage.runner(agent, limits=Limits(run_characters=6))
    end = await stage.ended(await runner.send(await stage.session(), "Hello"))
    assert agent.on_stop is not None
    await stage.idle(runner)
    await agent.on_stop()

    assert ("too_large", ["resp_1"]) == (end.fact.code, keeper.cancelled)


# Crashes --------------------------------------------------------------------------------------------------------------


class Run:
    """Attempts of one run, on the agent alone: what each yields is recorded as the runner would.

    Attributes:
        events: what is stored.
    """

    def __init__(self, agent: Agent, events: Sequence[Event] = ()) -> None:
        self.agent = agent
        self.events = list(events)
        self.begun: list[str] = []

    async def attempt(self, *, crash_after: int | None = None) -> str | None:
        """Call the agent until it is done (then its finish reason), or until so many events are stored."""
        attempt = 1 + sum(event.type == "run.started" for event in self.events)
        earlier = fold(self.events) if attempt > 1 else None
        turn = Turn(
            desk=Desk(), session="s", run="s~r", attempt=attempt, events=self.events if attempt > 1 else (),
            message=Message(id="m", role="user", text="Go"),
        )  # fmt: skip
        recorder = Recorder("s~r", earlier=earlier, resumed=True)
        self._store(Draft(RunStarted("a", attempt), "s~r"))
        stream = self.agent.stream(turn)
        try:
            async for item in stream:
                for draft in recorder.record(item):
                    if crash_after is not None and len(self.events) >= crash_after:
                        turn.left_open = True  # what is dead says nothing to the provider
                        return None
                    self._store(draft)
            return recorder.finish_reason
        finally:
            await stream.aclose()

    def _store(self, draft: Draft) -> None:
        self.events.append(Event(draft.fact, len(self.events) + 1, 0.0, draft.run))

    @property
    def transcript(self) -> Transcript:
        return fold(self.events)


WORDS = [f"word {number} " for number in range(NOTE_EVERY + 10)]


def story(monkeypatch: pytest.MonkeyPatch, **tool: Any) -> tuple[Agent, Keeper, list[int]]:
    """An agent whose model thinks, talks, calls two tools, and talks at length; and what the tool was called with."""
    made: list[int] = []

    def work(x: int) -> int:
        made.append(x)
        return x + 1

    first = [("a", "work", '{"x":1}'), ("b", "work", '{"x":2}')]
    keeper = Keeper(calls(*first, text="Let me see."), says(*WORDS, thinking=["Hm", "."]))
    model = asking(monkeypatch, keeper, background=True)
    return model_agent(model, tools=[Tool(work, **tool)]), keeper, made


async def test_a_crash_at_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process dies, the next attempt ends with the same answer, and the model was asked twice in all."""
    agent, _, _ = story(monkeypatch)
    whole = Run(agent)
    assert "stop" == await whole.attempt()
    assert sum(event.type == "agent.checkpoint" for event in whole.events) > 4

    for crash in range(1, len(whole.events)):
        agent, keeper, made = story(monkeypatch, on_crash="retry")
        run = Run(agent)
        await run.attempt(crash_after=crash)
        assert "stop" == await run.attempt(), crash

        assert whole.transcript.message("s~r") == run.transcript.message("s~r"), crash
        assert 2 == len(keeper.asked), crash
        assert {1, 2} == set(made), crash
        assert keeper.cancelled == []


async def test_two_crashes_at_any_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the third attempt has no seam: every pair in the first part, and some beyond."""
    agent, _, _ = story(monkeypatch)
    whole = Run(agent)
    await whole.attempt()
    places = [*range(1, 30), *range(30, len(whole.events), 17)]

    for first, second in itertools.combinations(places, 2):
        agent, keeper, _ = story(monkeypatch, on_crash="retry")
        run = Run(agent)
        await run.attempt(crash_after=first)
        await run.attempt(crash_after=second + 1)  # one more event, that of the new attempt
        await run.attempt()

        assert whole.transcript.message("s~r") == run.transcript.message("s~r"), (first, second)
        assert 2 == len(keeper.asked), (first, second)


@pytest.mark.parametrize("on_crash", ["fail", "retry"])
async def test_a_tool_that_was_running(on_crash: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that may have had its effect is not run again, unless it says so; the model is told."""
    agent, keeper, made = story(monkeypatch, on_crash=on_crash)
    run = Run(agent)
    whole = Run(story(monkeypatch)[0])
    await whole.attempt()
    started = next(place for place, event in enumerate(whole.events, 1) if event.type == "tool.started")
    agent, keeper, made = story(monkeypatch, on_crash=on_crash)
    run = Run(agent)
    await run.attempt(crash_after=started)
    made.clear()
    await run.attempt()

    parts = [part for part in run.transcript.message("s~r").parts if isinstance(part, CallPart)]
    if on_crash == "retry":
        assert ([1, 2], [2, 3]) == (sorted(made), [part.output for part in parts])
    else:
        assert ([2], [False, True]) == (made, [part.success for part in parts])
        assert "nobody knows whether it was done" in parts[0].output
        told = [item["output"] for item in keeper.asked[1]["input"]]
        assert [f"Error: {parts[0].output}", "3"] == told


async def test_a_crash_while_the_user_is_asked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is not asked twice: the one that is open gets its answer after the restart."""
    agent, keeper, made = story(monkeypatch, approval="Work on {x}?")
    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "Go")
    first = await stage.seen(sent.session, "permission.requested")
    await stage.crash()
    runner = stage.runner(agent)
    await runner.start()
    await stage.seen(sent.session, is_second_attempt)
    for event in await stage.events(sent.session, sent.run):
        if isinstance(event.fact, PermissionRequested):
            await runner.resolve_permission(event.fact.id, event.fact.id == first.fact.id)
    end = await stage.ended(sent)

    asked = [e.fact.params for e in await stage.events(sent.session) if isinstance(e.fact, PermissionRequested)]
    assert ([{"x": 1}, {"x": 2}], [1], 2) == (asked, made, len(keeper.asked))
    assert [True, False] == [
        part.success for part in end.fact.message.parts if isinstance(part, CallPart) and part.done
    ]


async def test_an_answer_too_old_to_be_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for until it is whole, at every place where the process may have died; what is missing is said."""
    agent, _, _ = story(monkeypatch)
    whole = Run(agent)
    await whole.attempt()
    for crash in range(1, len(whole.events), 3):
        agent, keeper, _ = story(monkeypatch, on_crash="retry")
        run = Run(agent)
        await run.attempt(crash_after=crash)
        keeper.streamable = False
        await run.attempt()

        assert whole.transcript.message("s~r") == run.transcript.message("s~r"), crash
        assert 2 == len(keeper.asked), crash


@pytest.mark.parametrize("end", ["failed", "incomplete"])
async def test_an_old_answer_that_did_not_end_well(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What became of it meanwhile becomes of the run."""
    why = {"failed": {"error": {"code": "server_error", "message": "It broke."}},
           "incomplete": {"incomplete_details": {"reason": "max_output_tokens"}}}[end]  # fmt: skip
    keeper = Keeper(says("Hel", "lo"), end=end, **why)
    agent = model_agent(asking(monkeypatch, keeper, background=True))
    run = Run(agent)
    await run.attempt(crash_after=3)
    keeper.streamable = False
    if end == "failed":
        with pytest.raises(AgentError, match="It broke") as caught:
            await run.attempt()
        assert "server_error" == caught.value.code
    else:
        assert "length" == await run.attempt()
        assert "Hello" == run.transcript.text()


async def test_a_crash_around_calls_that_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that were cut off, or made by the provider, have their one result, wherever the process dies."""
    cut = calls(("a", "add", '{"x":1'), ("b", "add", '{"x":2'), text="Hm")
    about = {"type": "function_call", "call_id": "c", "name": "look"}
    pieces = [delta(0, "function_call_arguments", "1") for _ in range(NOTE_EVERY - 2)]  # a note behind the last one
    made = [
        item(0, "added", arguments="", **about),
        *pieces,
        item(0, "done", arguments="1" * len(pieces), **about),
        item(1, "added", type="function_call_output", call_id="c", output="found"),
        *({**event, "output_index": 2} for event in says("So.")),
    ]

    def run(output: Any, events: Sequence[Event] = (), **end: Any) -> Run:
        model = asking(monkeypatch, Keeper(output, **end), background=True)
        return Run(model_agent(model, tools=[Tool(add)]), events)

    began = hosted(HOSTED["error"][0], "while it speaks")
    both = [*hosted({**MCP, "output": "found"}, "streamed")[:6], *began]
    for output, end in ((cut, "incomplete"), (made, "completed"), (began, "completed"), (both[:-1], "incomplete")):
        fields = {"end": end, "incomplete_details": {"reason": "max_output_tokens"}}
        whole = run(output, **fields)
        finish = await whole.attempt()
        for crash in range(1, len(whole.events)):
            broken = run(output, **fields)
            await broken.attempt(crash_after=crash)
            assert finish == await broken.attempt(), crash
            assert whole.transcript.message("s~r") == broken.transcript.message("s~r"), crash


async def test_a_crash_that_cannot_be_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was not written in the background is gone; it is not asked for, and paid, again."""
    keeper = Keeper(says("Hel", "lo"))
    agent = model_agent(asking(monkeypatch, keeper, background=False))
    run = Run(agent)
    await run.attempt(crash_after=2)
    with pytest.raises(AgentError) as caught:
        await run.attempt()

    assert ("interrupted", 1) == (caught.value.code, len(keeper.asked))


async def test_a_real_crash(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the runner and its store: the run is one text, and the usage is that of one answer."""
    agent, keeper, _ = story(monkeypatch, on_crash="retry")
    runner = stage.runner(agent, limits=Limits(cancel_grace=5.0))
    reached = asyncio.Event()

    async def before(session: str, drafts: Sequence[Draft]) -> None:
        if any(isinstance(draft.fact, TextDelta) and WORDS[-1] in draft.fact.text for draft in drafts):
            reached.set()
            await asyncio.Event().wait()

    stage.store.before = before
    sent = await runner.send(await stage.session(), "Go")
    async with asyncio.timeout(NET):
        await reached.wait()
    await stage.crash()
    agent, _, _ = story(monkeypatch, on_crash="retry")
    model = asking(monkeypatch, keeper, background=True)
    agent = model_agent(model, tools=[Tool(lambda x: x, name="work")], name=agent.name)
    await stage.runner(agent).start()
    end = await stage.ended(sent)

    assert ("run.completed", "".join(WORDS), 2) == (end.type, end.fact.message.text, len(keeper.asked))
    assert 10 == end.fact.usage["input_tokens"]


async def test_a_yes_to_one_call_is_none_to_the_next(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model makes the very same call again, and the process dies while that is asked: it is still asked."""
    paid: list[int] = []
    keeper = Keeper(calls(("a", "pay", '{"x":5}')), calls(("b", "pay", '{"x":5}')), says("Paid once."))
    model = asking(monkeypatch, keeper, background=True)
    agent = model_agent(model, tools=[Tool(lambda x: paid.append(x), name="pay", approval="Pay {x}?")])
    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "Go")
    first = await stage.seen(sent.session, "permission.requested")
    await runner.resolve_permission(first.fact.id, True)
    second = await stage.seen(
        sent.session, lambda event: isinstance(event.fact, PermissionRequested) and event.fact.id.endswith("p2")
    )
    await stage.crash()
    runner = stage.runner(agent)
    await runner.start()
    await stage.seen(sent.session, is_second_attempt)
    await runner.resolve_permission(second.fact.id, False)
    end = await stage.ended(sent)

    assert ([5], [True, False]) == (paid, [part.success for part in end.fact.message.parts[:2]])
    assert 2 == (await stage.types(sent)).count("permission.requested")
