"""Who runs a call (R21): what others ran is told as that, over every way on which it comes back; and nobody is asked to
run what is not theirs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from driving import Chat, chatting, decoded
from legato.agent import Turn
from legato.agents.conversation import NOT_CARRIED_OUT, conversation
from legato.items import INTERRUPTED, NOT_ALLOWED
from legato.server.responses import LOOKED_FOR
from legato.sessions import Sessions
from legato.yields import ToolArguments, ToolCall, ToolResult, ToolStarted

Json = dict[str, Any]
MCP: Json = {"type": "mcp_call", "id": "mcp_1", "name": "f", "arguments": '{"x":1}', "server_label": "legato"}
ASKED: Json = {"type": "mcp_approval_request", "id": "mcpr_1", "name": "f", "arguments": "{}", "server_label": "s"}
ALLOWED: Json = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
DENIED: Json = {**ALLOWED, "approve": False}
LISTED: Json = {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": []}
FAILURE: Json = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no such city"}]}
NO = f"Error: {NOT_CARRIED_OUT}"
CUT = f"Error: {INTERRUPTED}"


class Notes:
    """An agent that keeps what it was told, in short: "call NAME", and what came of it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def __call__(self, turn: Turn) -> AsyncIterator[str]:
        self.told = short(conversation(turn))
        yield "ok"


def short(messages: Sequence[Json]) -> list[str]:
    """Messages in the form of Chat Completions; each call has what came of it right behind its message."""
    words = []
    for message in messages:
        words += [f"{message['role']} {message['content']}"] if message["content"] else []
        words += [f"call {call['function']['name']} {call['function']['arguments']}"
                  for call in message.get("tool_calls", ())]  # fmt: skip
        words += ["tool "] if message["role"] == "tool" and not message["content"] else []
    return words


HISTORIES: dict[str, tuple[list[Json], list[str]]] = {
    "output": ([{**MCP, "output": "sun"}], ['call f {"x":1}', "tool sun"]),
    "output and status": ([{**MCP, "output": "sun", "error": None, "status": "completed"}],
                          ['call f {"x":1}', "tool sun"]),
    "of another server": ([{**MCP, "server_label": "s", "output": "sun"}], ['call f {"x":1}', "tool sun"]),
    "neither": ([{**MCP, "output": None, "error": None}], ['call f {"x":1}', "tool "]),
    "nothing said of it": ([MCP], ['call f {"x":1}', "tool "]),
    "empty output": ([{**MCP, "output": ""}], ['call f {"x":1}', "tool "]),
    "an object as output": ([{**MCP, "output": {"a": 1}}], ['call f {"x":1}', 'tool {"a":1}']),
    "parts as output": ([{**MCP, "output": [{"type": "text", "text": "sun"}]}], ['call f {"x":1}', "tool sun"]),
    "words as error": ([{**MCP, "error": "no"}], ['call f {"x":1}', "tool Error: no"]),
    "error": ([{**MCP, "status": "failed", "error": FAILURE}], ['call f {"x":1}', "tool Error: no such city"]),
    "http error": ([{**MCP, "error": {"type": "http_error", "code": 401, "message": "Who?"}}],
                   ['call f {"x":1}', "tool Error: Who?"]),
    "failed, without words": ([{**MCP, "status": "failed"}], ['call f {"x":1}', "tool Error: "]),
    "cut off": ([{**MCP, "status": "incomplete"}], ['call f {"x":1}', f"tool {CUT}"]),
    "still running": ([{**MCP, "status": "calling"}], ['call f {"x":1}', f"tool {CUT}"]),
    "no id": ([{key: value for key, value in MCP.items() if key != "id"}], ['call f {"x":1}', "tool "]),
    "arguments as an object": ([{**MCP, "arguments": {"x": 1}}], ['call f {"x":1}', "tool "]),
    "no arguments": ([{**MCP, "arguments": None}], ["call f {}", "tool "]),
    "two in a row": ([{**MCP, "output": "1"}, {**MCP, "id": "mcp_2", "output": "2"}],
                     ['call f {"x":1}', "tool 1", 'call f {"x":1}', "tool 2"]),
    "the same id twice": ([{**MCP, "output": "1"}, {**MCP, "output": "2"}],
                          ['call f {"x":1}', "tool 1", 'call f {"x":1}', "tool 2"]),
    "beside a call of the client": (
        [{**MCP, "output": "1"}, {"type": "function_call", "call_id": "c", "name": "g", "arguments": "{}"},
         {"type": "function_call_output", "call_id": "c", "output": "2"}],
        ['call f {"x":1}', "tool 1", "call g {}", "tool 2"],
    ),
    "behind a call that the client left": (
        [{"type": "function_call", "call_id": "c", "name": "g", "arguments": "{}"}, {**MCP, "output": "1"}],
        ["call g {}", 'call f {"x":1}', "tool 1", f"tool {NO}"],
    ),
    "tools listed": ([LISTED, {**MCP, "output": "sun"}], ['call f {"x":1}', "tool sun"]),
    "asked for": ([ASKED], ["call f {}", f"tool {NO}"]),
    "allowed": ([ASKED, ALLOWED], ["call f {}", f"tool {NO}"]),
    "allowed, and done": ([ASKED, ALLOWED, {**MCP, "approval_request_id": "mcpr_1", "output": "sun"}],
                          ['call f {"x":1}', "tool sun"]),
    "denied": ([ASKED, DENIED], ["call f {}", f"tool Error: {NOT_ALLOWED}"]),
    "denied for a reason": ([ASKED, {**DENIED, "reason": "Too dear."}],
                            ["call f {}", f"tool Error: {NOT_ALLOWED} Too dear."]),
}  # fmt: skip


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(("items", "wanted"), HISTORIES.values(), ids=HISTORIES)
async def test_calls_of_others_in_a_history(items: list[Json], wanted: list[str], text: bool) -> None:
    """What was carried out is told as that, and what came of it; with an answer behind it, or cut off before one."""
    notes = Notes()
    said = [{"role": "assistant", "content": "So."}] if text else []
    history = [{"role": "user", "content": "one"}, *items, *said, {"role": "user", "content": "two"}]
    async with chatting(None, notes) as chat:
        answer = await chat.driver.request("POST", "/v1/responses", json={"input": history})
        assert answer.status == 200, answer.json()

    assert ["user one", *wanted, *(["assistant So."] if text else []), "user two"] == notes.told


@pytest.mark.parametrize("name", ["output", "neither", "error", "cut off", "two in a row"])
async def test_calls_of_others_behind_the_question(name: str) -> None:
    """The answer had begun with them: they are told, and it goes on behind them."""
    items, wanted = HISTORIES[name]
    notes = Notes()
    async with chatting(None, notes) as chat:
        asked = {"input": [{"role": "user", "content": "one"}, *items]}
        answer = await chat.driver.request("POST", "/v1/responses", json=asked)
        assert answer.status == 200, answer.json()

    assert ["user one", *wanted] == notes.told


# What we said ourselves -----------------------------------------------------------------------------------------------


class Worker:
    """An agent that runs tools, or is told what came of that.

    Attributes:
        told: see ``Notes``.
        running: a tool is.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.running = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[Any]:
        match turn.message.text:
            case "work":
                yield "Let me see. "
                yield ToolCall("a", "f")
                yield ToolArguments("a", '{"x":1}')
                yield ToolCall("b", "g", "{}", by="provider")
                yield ToolStarted("a")
                yield ToolResult("b", "no", success=False)
                yield ToolResult("a", {"sun": True})
                yield "Sun."
            case "hang" | "ask":
                yield ToolCall("a", "f", "{}")
                if turn.message.text == "ask":
                    self.running.set()
                    await turn.ask_permission("f", "May I?", call="a")
                yield ToolStarted("a")
                self.running.set()
                await asyncio.Event().wait()
            case "break":
                yield ToolCall("a", "f", "{}")
                raise RuntimeError("It broke.")
            case _:
                self.told = short(conversation(turn))
                yield "ok"


async def respond(chat: Chat, input: Any, **fields: Any) -> Json:
    answer = await chat.driver.request("POST", "/v1/responses", json={"input": input, **fields})
    assert answer.status == 200, answer.json()
    response: Json = answer.json()
    return response


async def test_what_we_ran_comes_back_as_what_it_is() -> None:
    """In the items of the response, by its id, or in its conversation: the same is told. No client runs any of it."""
    worker = Worker()
    async with chatting(None, worker) as chat:
        first = await respond(chat, "work")
        assert {item["type"] for item in first["output"]} == {"message", "mcp_call"}
        told = []
        for more in ({"previous_response_id": first["id"]}, {"conversation": first["conversation"]["id"]}):
            await respond(chat, "And?", **more)
            told.append(worker.told[: worker.told.index("user And?")])
        question = [{"role": "user", "content": "work"}]
        await respond(chat, [*question, *first["output"], {"role": "user", "content": "And?"}])
        told.append(worker.told[: worker.told.index("user And?")])

    together = ["assistant Let me see. ", 'call f {"x":1}', "call g {}", 'tool {"sun":true}', "tool Error: no"]
    assert told[:2] == [["user work", *together, "assistant Sun."]] * 2
    apart = ["assistant Let me see. ", 'call f {"x":1}', 'tool {"sun":true}', "call g {}", "tool Error: no"]
    assert told[2] == ["user work", *apart, "assistant Sun."]


async def test_a_running_call_is_shown_as_that() -> None:
    """In the response as it is, before there is a result; then it is over with its run."""
    worker = Worker()
    async with chatting(None, worker) as chat:
        begun = await respond(chat, "hang", background=True)
        async with asyncio.timeout(30):
            await worker.running.wait()
        target = f"/v1/responses/{begun['id']}"
        (item,) = (await chat.driver.request("GET", target)).json()["output"]
        assert (item["status"], item["arguments"], item["output"], item["error"]) == ("calling", "{}", None, None)
        stopped = (await chat.driver.request("POST", f"{target}/cancel")).json()
        assert (stopped["status"], stopped["output"][0]["status"]) == ("cancelled", "incomplete")


async def test_a_stream_with_calls_can_be_taken_up_at_every_event() -> None:
    """Its numbers and bytes are the same, and its end is the response as it is kept."""
    async with chatting(None, Worker()) as chat:
        first = await respond(chat, "work")
        target = f"/v1/responses/{first['id']}?stream=true"
        whole = [json.loads(each.data) for each in decoded((await chat.driver.request("GET", target)).body)[:-1]]
        assert [each["sequence_number"] for each in whole] == list(range(len(whole)))
        assert whole[-1]["response"] == first
        for number in range(len(whole) - 1):
            rest = await chat.driver.request("GET", f"{target}&starting_after={number}")
            assert [json.loads(each.data) for each in decoded(rest.body)[:-1]] == whole[number + 1 :]


async def test_what_was_asked_is_listed_as_it_came() -> None:
    """Calls of others among it, each with an id."""
    async with chatting(None, Notes()) as chat:
        history = [{"role": "user", "content": "one"}, LISTED, ASKED, DENIED, {**MCP, "output": "sun"}]
        first = await respond(chat, [*history, {"role": "user", "content": "two"}])
        listed = await chat.driver.request("GET", f"/v1/responses/{first['id']}/input_items?order=asc")

    given = listed.json()["data"]
    assert [item["type"] for item in given] == ["message", *(item["type"] for item in history[1:]), "message"]
    assert {**MCP, "output": "sun", "status": "completed"} == given[4]
    assert len({item["id"] for item in given}) == len(given)


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ("ai/5.0.277 ai-sdk/provider-utils/3.0.1 runtime/node.js/22 ai-sdk/openai/2.0.131", False),
        ("ai-sdk/openai/1.3.24", False),
        ("ai-sdk/azure/2.0.1", False),
        ("ai/5.0.277 ai-sdk/provider-utils/3.0.40 runtime/node.js/v20.20.2", False),
        ("ai/6.0.326 ai-sdk/provider-utils/4.0.1 runtime/node.js/22", True),
        ("ai/50.0.1", True),
        ("openai/5.0.1 my-ai/5.1", True),
        ("ai-sdk/openai/3.0.141", True),
        ("ai-sdk/openai/20.1.0", True),
        ("OpenAI/Python 3.52.0", True),
        ("", True),
    ],
)
async def test_who_knows_no_such_item_is_shown_none(agent: str, shown: bool) -> None:
    """The AI SDK 5 fails at a whole response with a type of item that is not in its list, and at nothing else."""
    async with chatting(None, Worker()) as chat:
        headers = {"user-agent": agent}
        answer = await chat.driver.request("POST", "/v1/responses", json={"input": "work"}, headers=headers)
        kept = await chat.driver.request("GET", f"/v1/responses/{answer.json()['id']}", headers=headers)

    for each, wanted in ((answer, shown), (kept, True)):
        assert ("mcp_call" in {item["type"] for item in each.json()["output"]}) == wanted
    assert answer.json()["output"][-1]["content"][0]["text"] == "Sun."


@pytest.mark.parametrize("left_out", [("output", "error"), ("output", "error", "status")])
async def test_what_came_of_it_need_not_be_sent(left_out: tuple[str, ...]) -> None:
    """pydantic-ai leaves it out of what it sends back: it is kept here. Of whom the id does not know, nothing is."""
    worker = Worker()
    async with chatting(None, worker) as chat:
        first = await respond(chat, "work")
        bare = [{name: value for name, value in item.items() if name not in left_out} for item in first["output"]]
        unknown = {**MCP, "id": bare[1]["id"].replace("~", "~0")}
        await respond(chat, [{"role": "user", "content": "work"}, *bare, unknown, {"role": "user", "content": "And?"}])

    assert ['call f {"x":1}', 'tool {"sun":true}', "call g {}", "tool Error: no"] == worker.told[2:6]
    assert ['call f {"x":1}', "tool ", "user And?"] == worker.told[-3:]


async def test_calls_that_nobody_has_are_not_looked_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are said to be is told all the same."""
    looked: list[str] = []
    find = Sessions.find

    async def counted(sessions: Sessions, caller: Any, session: str, run: str) -> Any:
        looked.append(run)
        return await find(sessions, caller, session, run)

    monkeypatch.setattr(Sessions, "find", counted)
    notes = Notes()
    async with chatting(None, notes) as chat:
        calls = [{**MCP, "id": f"mcp_s_1~{number:x}_0"} for number in range(3 * LOOKED_FOR)]
        question = {"role": "user", "content": "And?"}
        await respond(chat, [question, *calls, question])

    assert len({run for run in looked if run.startswith("s_1~")}) == LOOKED_FOR
    assert sum(line.startswith("call f") for line in notes.told) == 3 * LOOKED_FOR


@pytest.mark.parametrize("how", ["hang", "ask", "break"])
@pytest.mark.parametrize("way", ["previous", "items"])
async def test_a_call_that_was_interrupted_is_nobody_s(how: str, way: str) -> None:
    """Its run was stopped, or failed: no client is asked to run it, and the model is not told that it did nothing."""
    worker = Worker()
    async with chatting(None, worker) as chat:
        begun = await respond(chat, how, background=True)
        if how != "break":
            async with asyncio.timeout(30):
                await worker.running.wait()
            await chat.driver.request("POST", f"/v1/responses/{begun['id']}/cancel")
        await chat.driver.request("GET", f"/v1/responses/{begun['id']}?stream=true")  # until its end
        first = (await chat.driver.request("GET", f"/v1/responses/{begun['id']}")).json()
        (item,) = first["output"]
        assert (item["type"], item["status"], item["output"]) == ("mcp_call", "incomplete", None)
        fields = {"previous_response_id": first["id"]} if way == "previous" else {}
        said = [] if way == "previous" else [{"role": "user", "content": how}, *first["output"]]
        await respond(chat, [*said, {"role": "user", "content": "And?"}], **fields)

    assert worker.told[:2] == [f"user {how}", "call f {}"]
    assert NOT_CARRIED_OUT not in "".join(worker.told)
    assert worker.told[2] in (f"tool {CUT}", "tool Error: The run ended before this call had a result.")
