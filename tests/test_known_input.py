"""What a request may hold: each item and each part of one is told, left out on purpose, or refused by its name; and
what stands for an item that is kept is put in its place."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from driving import Chat, chatting
from legato import Caller
from legato.agent import Turn
from legato.agents.conversation import conversation
from legato.items import DONE_BY_PROVIDER, KNOWN
from legato.server.app import Legato
from legato.testing import ASGIResponse
from legato.yields import Thinking, ToolCall
from test_histories import Listener, told

Json = dict[str, Any]
USER: Json = {"role": "user", "content": "And?"}


async def respond(chat: Chat, input: Any, **fields: Any) -> ASGIResponse:
    headers = fields.pop("headers", None)
    return await chat.driver.request("POST", "/v1/responses", json={"input": input, **fields}, headers=headers)


def refusal(answer: ASGIResponse) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return answer.status, error["code"], error["param"]


# Types of items -------------------------------------------------------------------------------------------------------

TOLD: dict[str, tuple[list[Json], list[str]]] = {
    "message": ([{"type": "message", "role": "user", "content": "Hi"}], ["u Hi"]),
    "message without type": ([{"role": "user", "content": "Hi"}], ["u Hi"]),
    "function_call": (
        [{"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "{}"},
         {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]}],
        ["c c", "o c 1"],
    ),
    "custom_tool_call": (
        [{"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"},
         {"type": "custom_tool_call_output", "call_id": "c", "output": "1"}],
        ["c c", "o c 1"],
    ),
    "parts of the assistant": (
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}, {"type": "output_text", "text": "A"},
                                           {"type": "refusal", "refusal": "no"}, {"text": "B"}]}],
        ["a AnoB"],
    ),
    "reasoning": ([{"type": "reasoning", "summary": []}, {"role": "assistant", "content": "A"}], ["a A"]),
}  # fmt: skip


@pytest.mark.parametrize(("items", "wanted"), TOLD.values(), ids=TOLD)
async def test_what_says_something_is_told(items: list[Json], wanted: list[str]) -> None:
    """In the words that every model knows."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        assert (await respond(chat, [*items, USER])).status == 200
    assert told(conversation(listener.turns[0])) == [*wanted, "u And?"]


@pytest.mark.parametrize("type", DONE_BY_PROVIDER)
async def test_what_another_provider_did_by_itself_is_left_out(type: str) -> None:
    """What came of it stands in the text behind it."""
    listener = Listener()
    items = [USER, {"type": type, "id": "x", "status": "completed"}, {"role": "assistant", "content": "A"}, USER]
    async with chatting(None, listener) as chat:
        assert (await respond(chat, items)).status == 200
    assert told(conversation(listener.turns[0])) == ["u And?", "a A", "u And?"]


REFUSED = [
    *("mystery", "computer_call", "computer_call_output", "local_shell_call", "local_shell_call_output", "shell_call"),
    *("shell_call_output", "apply_patch_call", "apply_patch_call_output", "compaction", "Message", "", 7, [], {}),
]


@pytest.mark.parametrize("type", REFUSED, ids=str)
@pytest.mark.parametrize("place", [0, 2])
async def test_an_item_that_nobody_would_be_told_is_refused(type: Any, place: int) -> None:
    """By its place, wherever it stands, and nothing is stored."""
    assert type not in KNOWN
    items = [USER, {"role": "assistant", "content": "A"}, USER]
    items.insert(place, {"type": type, "id": "x", "call_id": "c", "output": "1"})
    listener = Listener()
    async with chatting(None, listener) as chat:
        answer = await respond(chat, items)
        assert refusal(answer) == (400, "invalid_value", f"input[{place}].type")
        assert repr(type) in answer.json()["error"]["message"]
    assert listener.turns == []


ODD_ITEMS: list[tuple[Any, str, str]] = [
    ({}, "missing_required_parameter", "input[0].type"),
    ({"content": "x"}, "missing_required_parameter", "input[0].type"),
    ({"type": "message", "content": "x"}, "missing_required_parameter", "input[0].role"),
    ({"role": "tool", "content": "x"}, "invalid_value", "input[0].role"),
    ({"role": 7, "content": "x"}, "invalid_value", "input[0].role"),
    ({"role": "user", "content": 7}, "invalid_type", "input[0].content"),
    ({"role": "user", "content": ["x"]}, "invalid_type", "input[0].content[0]"),
    ({"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "mystery"}]}, "invalid_value",
     "input[0].content[1].type"),
    ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, "invalid_value", "input[0].content[0].type"),
    ({"role": "user", "content": [{}]}, "invalid_value", "input[0].content[0].type"),
    ({"role": "system", "content": [{"type": "video"}]}, "invalid_value", "input[0].content[0].type"),
    ({"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}, "invalid_value",
     "input[0].content[0].type"),
    ({"type": "function_call_output", "call_id": "c", "output": [{"type": "mystery"}]}, "invalid_value",
     "input[0].output[0].type"),
    ({"type": "function_call_output", "call_id": "c", "output": 7}, "invalid_type", "input[0].output"),
    ("x", "invalid_type", "input[0]"),
    (None, "invalid_type", "input[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "code", "param"), ODD_ITEMS)
async def test_what_is_odd_in_an_item_is_refused_by_its_place(item: Any, code: str, param: str) -> None:
    """Never passed over."""
    async with chatting() as chat:
        answer = await respond(chat, [item, USER])
    assert answer.status == 400
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["param"] in (param, "input[...]")


ODD_MESSAGES: list[tuple[Json, str]] = [
    ({"content": "x"}, "messages[1].role"),
    ({"role": "critic", "content": "x"}, "messages[1].role"),
    ({"role": None, "content": "x"}, "messages[1].role"),
    ({"role": "user", "content": [{"type": "mystery"}]}, "messages[1].content[0].type"),
    ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "video_url"}]},
     "messages[1].content[1].type"),
    ({"role": "assistant", "content": [{"type": "image_url"}]}, "messages[1].content[0].type"),
    ({"role": "tool", "tool_call_id": "c", "content": [{"type": "mystery"}]}, "messages[1].content[0].type"),
    ({"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "magic"}]},
     "messages[1].tool_calls[0].type"),
    ({"role": "assistant", "content": None, "tool_calls": ["c"]}, "messages[1].tool_calls[0].type"),
    ({"role": "assistant", "content": None, "audio": {"id": "a"}}, "messages[1].audio"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "param"), ODD_MESSAGES)
async def test_what_is_odd_in_a_chat_is_refused_by_its_place(message: Json, param: str) -> None:
    """In the client's own words, not in those of the other API."""
    async with chatting() as chat:
        body = {"messages": [USER, message, USER]}
        assert refusal(await chat.driver.request("POST", "/v1/chat/completions", json=body))[::2] == (400, param)


OLD_FORMS: dict[str, tuple[list[Json], list[str]]] = {
    "function_call": (
        [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
         {"role": "function", "name": "f", "content": "1"}],
        ["c f", "o f 1"],
    ),
    "custom": (
        [{"role": "assistant", "content": None,
          "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
         {"role": "tool", "tool_call_id": "c", "content": "1"}],
        ["c c", "o c 1"],
    ),
    "no type": (
        [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
         {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "1"}]}],
        ["c c", "o c 1"],
    ),
    "audio": ([{"role": "assistant", "content": "A", "audio": None}], ["a A"]),
}  # fmt: skip


@pytest.mark.parametrize(("messages", "wanted"), OLD_FORMS.values(), ids=OLD_FORMS)
async def test_rarer_forms_of_a_chat_are_told(messages: list[Json], wanted: list[str]) -> None:
    """Calls as they were before there could be several, or of custom tools."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        body = {"messages": [USER, *messages, USER]}
        assert (await chat.driver.request("POST", "/v1/chat/completions", json=body)).status == 200
    assert told(conversation(listener.turns[0])) == ["u And?", *wanted, "u And?"]


# References -----------------------------------------------------------------------------------------------------------


class Speaker(Listener):
    """Thinks, talks and calls the client's tool; and keeps what it was given."""

    async def __call__(self, turn: Turn) -> AsyncIterator[Any]:
        self.turns.append(turn)
        yield Thinking("Hm.")
        yield f"Answer {len(self.turns)}."
        yield ToolCall("c", "f", "{}")


def reference(id: str, typed: bool = True) -> Json:
    return {"type": "item_reference", "id": id} if typed else {"id": id}


@pytest.mark.parametrize("typed", [True, False])
async def test_a_reference_is_what_it_stands_for(typed: bool) -> None:
    """As the AI SDK sends it: the whole conversation, what was answered by its ids, in a request that names no other;
    and it is listed as what it is."""
    speaker = Speaker()
    async with chatting(None, speaker) as chat:
        tools = [{"type": "function", "name": "f"}]
        first = (await respond(chat, [{"role": "user", "content": "one"}], tools=tools)).json()
        output = {"type": "function_call_output", "call_id": "c", "output": "1"}
        items = [
            {"role": "user", "content": "one"},
            *(reference(item["id"], typed) for item in first["output"]),
            output,
            {"role": "user", "content": "two"},
        ]
        second = await respond(chat, items, tools=tools)
        assert second.status == 200
        listed = await chat.driver.request("GET", f"/v1/responses/{second.json()['id']}/input_items?order=asc")
    wanted = ["u one", "a Answer 1.", "c c", "o c 1", "u two"]
    assert told(conversation(speaker.turns[1])) == wanted
    assert [item["type"] for item in listed.json()["data"]] == [
        "message", "reasoning", "message", "function_call", "function_call_output", "message",
    ]  # fmt: skip
    (thought, *_) = speaker.turns[1].history[1].parts
    assert (thought.type, getattr(thought, "text", "")) == ("thinking", "Hm.")


async def test_a_reference_to_what_was_asked() -> None:
    """By the ids that the list of its input gives."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        asked = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
        first = (await respond(chat, asked)).json()
        listed = await chat.driver.request("GET", f"/v1/responses/{first['id']}/input_items?order=asc")
        ids = [item["id"] for item in listed.json()["data"]]
        await respond(chat, [*map(reference, ids), reference(first["output"][0]["id"]), USER])
    assert told(conversation(listener.turns[1])) == ["u one", "u two", "a ok", "u And?"]


@pytest.mark.parametrize("by", ["previous_response_id", "conversation"])
async def test_a_reference_to_what_is_in_the_conversation_says_nothing_twice(by: str) -> None:
    """It is told as a part of that."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        first = (await respond(chat, "one")).json()
        known = {"previous_response_id": first["id"], "conversation": first["conversation"]}
        answer = await respond(chat, [reference(first["output"][0]["id"]), USER], **{by: known[by]})
        assert answer.status == 200
    assert told(conversation(listener.turns[1])) == ["u one", "a ok", "u And?"]


ADDED: dict[str, tuple[list[Json], list[str]]] = {
    "a message": ([{"role": "user", "content": "one"}], ["u one"]),
    "texts of both": (
        [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "3"}],
        ["u one", "a two", "u 3"],
    ),
    "a call and its output": (
        [{"role": "user", "content": "one"},
         {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
         {"type": "function_call_output", "call_id": "c", "output": "1"},
         {"role": "assistant", "content": "two"}],
        ["u one", "c c", "o c 1", "a two"],
    ),
    "parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": "one"}]},
         {"role": "assistant", "content": [{"type": "output_text", "text": "two"}]}],
        ["u one", "a two"],
    ),
    "a call of somebody else": (
        [{"role": "user", "content": "one"},
         {"type": "mcp_call", "id": "m", "server_label": "x", "name": "f", "arguments": "{}", "output": "1"},
         {"role": "assistant", "content": "two"}],
        ["u one", "c m", "o m 1", "a two"],
    ),
}  # fmt: skip


async def conversations(chat: Chat, items: list[Json], path: str = "", **headers: str) -> Json:
    answer = await chat.driver.request("POST", f"/v1/conversations{path}", json={"items": items}, headers=headers)
    assert answer.status == 200, answer.json()
    found: Json = answer.json()
    return found


async def listed(chat: Chat, conversation: str) -> list[str]:
    path = f"/v1/conversations/{conversation}/items?order=asc&limit=100"
    return [item["id"] for item in (await chat.driver.request("GET", path)).json()["data"]]


@pytest.mark.parametrize("where", ["elsewhere", "in another conversation", "in its own", "in a copy"])
@pytest.mark.parametrize("how", ["begun with", "added"])
@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", ADDED)
async def test_a_reference_to_what_was_added(name: str, typed: bool, how: str, where: str) -> None:
    """To a conversation, with it or later: told by its id as by itself, and once where it is told anyway."""
    given, wanted = ADDED[name]
    listener = Listener()
    async with chatting(None, listener) as chat:
        id = (await conversations(chat, given if how == "begun with" else []))["id"]
        if how == "added":
            await conversations(chat, given, f"/{id}/items")
        ids = await listed(chat, id)
        assert len(ids) == len(given)
        fields: Json = {}
        if where == "in another conversation":
            fields["conversation"] = (await conversations(chat, []))["id"]
        elif where != "elsewhere":
            fields["conversation"] = id
        if where == "in a copy":
            first = (await respond(chat, "x", **fields)).json()
            await respond(chat, "y", **fields)
            fields = {"previous_response_id": first["id"]}
            wanted = [*wanted, "u x", "a ok"]
        answer = await respond(chat, [*(reference(each, typed) for each in ids), USER], **fields)
        assert answer.status == 200, answer.json()
    said = [re.sub(r"\bmcp_\S+", "m", line) for line in told(conversation(listener.turns[-1]))]
    assert said == [*wanted, "u And?"]


@pytest.mark.parametrize("later", ["answered", "added"])
async def test_a_reference_to_what_a_copy_leaves_out(later: str) -> None:
    """What came behind the answer that is gone on from is no part of the new conversation, and is told."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        first = (await respond(chat, "one")).json()
        known = first["conversation"]["id"]
        second = (await respond(chat, "two", conversation=known)).json()
        ids = [second["output"][0]["id"]]
        if later == "added":
            added = await conversations(chat, [{"role": "assistant", "content": "ok"}], f"/{known}/items")
            ids = [added["data"][0]["id"]]
        copied = await respond(chat, [reference(ids[0]), USER], previous_response_id=first["id"])
        assert told(conversation(listener.turns[-1])) == ["u one", "a ok", "a ok", "u And?"]
        copy = copied.json()["conversation"]["id"]
        assert copy != known
        # What was copied is told under the ids of both.
        ids = [*await listed(chat, copy), first["output"][0]["id"]]
        assert (await respond(chat, [*map(reference, ids), USER], conversation=copy)).status == 200
        assert told(conversation(listener.turns[-1])) == ["u one", "a ok", "a ok", "u And?", "a ok", "u And?"]
        assert (await respond(chat, [*map(reference, ids[:2]), USER])).status == 200
        assert told(conversation(listener.turns[-1])) == ["u one", "a ok", "u And?"]


@pytest.mark.parametrize("gone", ["item", "conversation"])
async def test_a_reference_to_what_was_added_and_deleted(gone: str) -> None:
    """Is refused by its place; the others are found."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        given = [{"role": "assistant", "content": "one"}, {"role": "assistant", "content": "two"}]
        id = (await conversations(chat, given))["id"]
        one, two = await listed(chat, id)
        path = f"/v1/conversations/{id}" + (f"/items/{one}" if gone == "item" else "")
        assert (await chat.driver.request("DELETE", path)).status == 200
        for wrong in (one, f"{two}1", two.replace("msg", "fc"), f"msg_{id}~hx.0_0", f"msg_{id}_0", "msg_é~h1_0"):
            for more in ({}, {"conversation": id} if gone == "item" else {}):
                answer = await respond(chat, [USER, reference(wrong), USER], **more)
                assert refusal(answer) == (400, "item_not_found", "input[1].id")
        assert (await respond(chat, [reference(two), USER])).status == (200 if gone == "item" else 400)


@pytest.mark.parametrize("place", [0, 1, 3])
async def test_a_reference_to_what_another_has_added_is_refused(place: int) -> None:
    """By its place, as if it were not there; nothing is asked."""

    def identify(scope: Any) -> Caller:
        return Caller(dict(scope["headers"]).get(b"x-user", b"").decode())

    listener = Listener()
    async with chatting(Legato("memory:", agents=[listener], identify=identify)) as chat:
        hers = (await conversations(chat, [], **{"x-user": "her"}))["id"]
        added = await conversations(chat, [{"role": "user", "content": "one"}], f"/{hers}/items", **{"x-user": "her"})
        own = (await conversations(chat, [], **{"x-user": "him"}))["id"]
        items = [*[USER] * place, reference(added["data"][0]["id"]), USER]
        for fields in ({}, {"conversation": own}, {"conversation": hers}):
            answer = await respond(chat, items, headers={"x-user": "him"}, **fields)
            assert refusal(answer) == (400, "item_not_found", f"input[{place}].id")
        assert listener.turns == []
        assert (await respond(chat, items, headers={"x-user": "her"})).status == 200


async def test_what_a_reference_cannot_find_is_refused() -> None:
    """Made up, deleted, not to be kept, of the wrong place, and what is no id at all."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        kept = (await respond(chat, "one")).json()
        hidden = (await respond(chat, "one", store=False)).json()
        deleted = (await respond(chat, "one")).json()
        await chat.driver.request("DELETE", f"/v1/responses/{deleted['id']}")
        id = kept["output"][0]["id"]
        ids: list[Any] = ["msg_1", "rs_x~0_0", id + "1", id.replace("msg", "rs"), hidden["output"][0]["id"],
                          deleted["output"][0]["id"], "", None, 7, "é", "x" * 5_000]  # fmt: skip
        for place, wrong in enumerate(ids):
            for typed in (True, False):
                answer = await respond(chat, [*[USER] * place, reference(wrong, typed), USER])
                assert refusal(answer) == (400, "item_not_found", f"input[{place}].id")
        only = await respond(chat, [reference(id)])
        assert refusal(only) == (400, "invalid_value", "input")
    assert len(listener.turns) == 3


async def test_a_reference_to_what_is_another_s_is_refused() -> None:
    """As if it were not there."""

    def identify(scope: Any) -> Caller:
        return Caller(dict(scope["headers"]).get(b"x-user", b"").decode())

    async with chatting(Legato("memory:", agents=[Listener()], identify=identify)) as chat:
        hers = (await respond(chat, "one", headers={"x-user": "her"})).json()
        items = [reference(hers["output"][0]["id"]), USER]
        assert refusal(await respond(chat, items, headers={"x-user": "him"}))[1] == "item_not_found"
        assert (await respond(chat, items, headers={"x-user": "her"})).status == 200
