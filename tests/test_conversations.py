"""Conversations over ``/v1``: sessions by another name, and their items."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asking import ask
from driving import Chat, chatting
from legato import Thinking, ToolCall, ToolResult
from legato.agent import Turn
from legato.agents.conversation import conversation
from legato.caller import NOBODY
from legato.contents import Contents
from legato.history import history
from legato.testing import Driver
from legato.yields import Refusal


async def speaker(turn: Turn) -> AsyncIterator[Any]:
    """Says what it was told, or plays a part."""
    match turn.message.text:
        case "tools":
            yield Thinking("Hm.")
            yield "I look."
            yield ToolCall("c1", "look", "{}")
            yield ToolResult("c1", "seen")
            yield "It is there."
        case "refuse":
            yield Refusal("No.")
        case "slow":
            yield "slow"
            await asyncio.sleep(3600)
        case _:
            yield json.dumps(conversation(turn))


def said(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
REASONING = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "xyz"}


class API:
    """``/v1/conversations`` of an application."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.driver: Driver = chat.driver

    async def call(self, method: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        options = {} if body is None else {"json": body}
        answer = await self.driver.request(method, f"/v1/conversations{path}", headers=headers, **options)
        assert answer.status == status, answer.json()
        return answer.json()

    async def create(self, *items: Any, **fields: Any) -> str:
        return str((await self.call("POST", "", {"items": list(items), **fields}))["id"])

    async def add(self, id: str, *items: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.call("POST", f"/{id}/items", {"items": list(items)}))["data"]
        return found

    async def items(self, id: str, query: str = "order=asc&limit=100") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.call("GET", f"/{id}/items?{query}"))["data"]
        return found

    async def told(self, id: str, text: str = "now") -> list[dict[str, Any]]:
        """What a model would be told with this message in this conversation."""
        status, response = await ask(self.driver, text, conversation=id)
        assert status == 200, response
        words = response["output"][-1]["content"][0]["text"]
        found: list[dict[str, Any]] = json.loads(words)
        return found


def chatted() -> Any:
    return chatting(None, speaker)


def brief(item: dict[str, Any]) -> Any:
    """An item as one looks at it."""
    if item["type"] == "message":
        return item["role"], "".join(part.get("text", part.get("refusal", "")) for part in item["content"])
    return {"function_call": lambda: (item["name"], item["arguments"]),
            "function_call_output": lambda: ("out", item["output"]),
            "mcp_call": lambda: (item["name"], item["arguments"]),
            "reasoning": lambda: ("reasoning", item["summary"][0]["text"])}[item["type"]]()  # fmt: skip


async def test_a_conversation_is_a_session() -> None:
    """Begun here, it is there for all dialects; and any session is a conversation."""
    async with chatted() as chat:
        api = API(chat)
        made = await api.call("POST", "", {"metadata": {"topic": "x"}})
        assert made["object"] == "conversation"
        assert made["metadata"] == {"topic": "x"}
        assert made["id"].startswith("conv_")
        assert isinstance(made["created_at"], int)
        await ask(api.driver, "refuse", conversation=made["id"])
        page = await api.driver.request("GET", f"/api/sessions/{made['id']}/messages")
        assert next(each["userInput"] for each in page.json()) == "refuse"

        assert (await api.call("GET", f"/{chat.session}"))["metadata"] == {}
        assert await api.call("GET", f"/{made['id']}") == made


async def test_no_body_is_needed() -> None:
    """To begin one."""
    async with chatted() as chat:
        assert (await API(chat).call("POST", ""))["metadata"] == {}


@pytest.mark.parametrize("metadata", [
    {}, None, {"a": "b"}, {"k" * 64: "v" * 512}, {f"k{n}": "v" for n in range(16)}, {"é": "𝄞"},
])  # fmt: skip
async def test_metadata(metadata: Any) -> None:
    """16 pairs, which an update replaces; the log keeps what else dialects keep with the session."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(metadata={"old": "1"})
        assert (await api.call("POST", f"/{id}", {"metadata": metadata}))["metadata"] == (metadata or {})
        assert (await api.call("GET", f"/{id}"))["metadata"] == (metadata or {})
        again = await api.call("POST", f"/{id}", {"metadata": {"third": "3"}})
        assert again["metadata"] == {"third": "3"} == (await api.call("GET", f"/{id}"))["metadata"]
        await api.call("POST", f"/{chat.session}", {"metadata": metadata})
        assert (await api.driver.request("GET", f"/api/sessions/{chat.session}")).json()["sessionType"] == "main"


@pytest.mark.parametrize(("body", "param"), [
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {f"k{n}": "v" for n in range(17)}}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata"),
    ({"metadata": "x"}, "metadata"),
    ({"items": "x"}, "items"),
    ({"items": [said("user", "x")] * 21}, "items"),
    ({"items": [CALL, OUTPUT] * 50}, "items"),
    ({"items": [1]}, "items"),
    ({"items": [{}]}, "items[0].type"),
    ({"items": [said("user", "x"), {"type": "nonsense"}]}, "items[1].type"),
    ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0].type"),
    ({"items": [said("robot", "x")]}, "items[0].role"),
    ({"items": [{"role": "user", "content": [{"type": "video", "url": "x"}]}]}, "items[0].content[0].type"),
    ({"items": [{"role": "assistant", "content": ["x"]}]}, "items[0].content[0]"),
    ({"items": [{**CALL, "call_id": ["x"]}]}, "items[0].call_id"),
    ({"items": [{**OUTPUT, "call_id": {"x": 1}}]}, "items[0].call_id"),
    ({"items": [{**CALL, "type": ["function_call"]}]}, "items[0].type"),
    ({"items": [{"type": "custom_tool_call_output", "call_id": ["x"], "output": "a"}]}, None),
    ({"items": [{"type": "mcp_call", "call_id": ["x"], "role": ["user"], "name": 1, "arguments": {}}]}, None),
    ({"items": [{"type": "message", "role": "user"}]}, "items[0].content"),
    ({"items": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "items[0].arguments"),
    ({"items": [{"type": "function_call_output", "output": "x"}]}, "items[0].call_id"),
])  # fmt: skip
async def test_what_is_refused(body: Any, param: str | None) -> None:
    """By name, and nothing of it is stored."""
    async with chatted() as chat:
        api = API(chat)
        before = (await api.driver.request("GET", "/api/sessions")).json()
        if param is None:  # odd, and none of what is looked at
            await api.items((await api.call("POST", "", body))["id"])
            return
        error = (await api.call("POST", "", body, 400))["error"]
        assert error["type"] == "invalid_request_error"
        assert str(error["param"]).startswith(param)
        assert (await api.driver.request("GET", "/api/sessions")).json() == before


HISTORIES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "texts": (
        [said("user", "a"), said("assistant", "b"), {"role": "user", "content": "c"}],
        [said("user", "a"), said("assistant", "b"), said("user", "c")],
    ),
    "a call": (
        [said("user", "a"), CALL, OUTPUT, said("assistant", "b")],
        [said("user", "a"),
         {"role": "assistant", "content": None, "calls": [("c1", "f", '{"a": 1}')]},
         {"role": "tool", "content": "42"}, said("assistant", "b")],
    ),
    "parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": "see"},
                                      {"type": "input_image", "image_url": "http://x/y.png", "detail": "low"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "see"},
                                      {"type": "image_url", "image_url": {"url": "http://x/y.png", "detail": "low"}}]}],
    ),
    "a system message in the middle": (
        [said("user", "a"), said("developer", "Be brief."), said("system", "Be good."), said("user", "c")],
        [said("user", "a"), said("system", "Be brief."), said("system", "Be good."), said("user", "c")],
    ),
    "reasoning": ([said("user", "a"), REASONING, said("assistant", "b")], [said("user", "a"), said("assistant", "b")]),
    "what has no words": (
        [said("user", "a"), {"type": "web_search_call", "status": "completed"}, said("assistant", "b")],
        [said("user", "a"), said("assistant", "b")],
    ),
    "nothing": ([], []),
}  # fmt: skip


def plain(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a model is told, in the words of ``HISTORIES``."""
    found = []
    for each in told:
        one: dict[str, Any] = {"role": each["role"], "content": each["content"]}
        if calls := each.get("tool_calls") or each.get("calls"):
            one["calls"] = [
                (call["id"], call["function"]["name"], call["function"]["arguments"])
                if isinstance(call, dict)
                else call
                for call in calls
            ]
        found.append(one)
    return found


@pytest.mark.parametrize("how", ["with it", "together", "one by one"])
@pytest.mark.parametrize("name", HISTORIES)
async def test_what_is_added_is_told_to_the_model_in_order(name: str, how: str) -> None:
    """However it is added; and listed as it came, each with an id of its own."""
    given, wanted = HISTORIES[name]
    async with chatted() as chat:
        api = API(chat)
        if how == "with it":
            id = await api.create(*given)
        else:
            id = await api.create()
            for some in [[each] for each in given] if how == "one by one" else [given]:
                added = await api.add(id, *some)
                assert len(added) == len(some)

        listed = await api.items(id)
        assert len({item["id"] for item in listed}) == len(given)
        for item, one in zip(listed, given, strict=True):
            same = {name: value for name, value in one.items() if name != "content"}
            assert same.items() <= item.items()
            assert item["status"] == "completed"
            assert await api.call("GET", f"/{id}/items/{item['id']}") == item
            content = one.get("content")
            if isinstance(content, str):
                assert item["content"][0]["text"] == content
            elif content is not None:
                assert item["content"] == content

        told = await api.told(id)
        if how == "one by one" and name == "a call":  # each is a message: the output is found all the same
            assert [each["role"] for each in told] == ["user", "assistant", "tool", "assistant", "user"]
            assert told[2]["content"] == "42"
        else:
            assert plain(told) == plain([*wanted, said("user", "now")])


@pytest.mark.parametrize("item", [said("user", "x"), CALL, OUTPUT, REASONING])
@pytest.mark.parametrize("count", [20, 21, 100])
async def test_as_many_items_at_once_as_openai_takes(count: int, item: Any) -> None:
    """Twenty, with a new conversation and behind what is there; more are refused by name, and none of them is kept."""
    async with chatted() as chat:
        api = API(chat)
        many = [item] * count
        id = await api.create()
        for path in ("", f"/{id}/items"):
            answer = await api.call("POST", path, {"items": many}, 200 if count == 20 else 400)
            if count > 20:
                error = answer["error"]
                assert (error["param"], error["code"]) == ("items", "array_above_max_length")
        assert len(await api.items(id)) == (20 if count == 20 else 0)


async def test_what_was_answered_is_items() -> None:
    """With the ids that the response gave them, in the order of the conversation."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(said("user", "before"))
        _, tools = await ask(api.driver, "tools", conversation={"id": id})
        _, refused = await ask(api.driver, [{"role": "user", "content": [{"type": "input_text", "text": "refuse"}]}],
                               conversation=id)  # fmt: skip
        assert tools["conversation"] == {"id": id}
        listed = await api.items(id)

        questions = [item for item in listed if item.get("role") == "user"]
        assert [brief(item) for item in questions] == [("user", "before"), ("user", "tools"), ("user", "refuse")]
        answers = [item for item in listed if item not in questions]
        assert answers == [*tools["output"], *refused["output"]]
        input = await api.driver.request("GET", f"/v1/responses/{refused['id']}/input_items")
        assert input.json()["data"] == questions[2:]
        for item in listed:
            assert await api.call("GET", f"/{id}/items/{item['id']}") == item


async def test_a_copy_has_items_of_its_own() -> None:
    """A branch of a conversation has the same, under ids that mean it."""
    async with chatted() as chat:
        api = API(chat)
        _, first = await ask(api.driver, "tools")
        await ask(api.driver, "refuse", previous_response_id=first["id"])
        _, branch = await ask(api.driver, "refuse", previous_response_id=first["id"])
        one, two = first["conversation"]["id"], branch["conversation"]["id"]
        assert one != two
        both = [await api.items(id) for id in (one, two)]
        assert [brief(item) for item in both[0]] == [brief(item) for item in both[1]]
        assert not {item["id"] for item in both[0]} & {item["id"] for item in both[1]}


@pytest.mark.parametrize("order", ["asc", "desc", None])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages(order: str | None, limit: int) -> None:
    """Every item once, whatever the page; ``has_more`` is true exactly as long as there is more."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(said("user", "a"), REASONING, CALL, OUTPUT, said("assistant", "b"))
        await ask(api.driver, "tools", conversation=id)
        await api.add(id, said("user", "c"), said("user", "d"))
        whole = [item["id"] for item in await api.items(id)]
        wanted = whole if order == "asc" else whole[::-1]
        found: list[str] = []
        query = f"limit={limit}" + (f"&order={order}" if order else "")
        after = ""
        while True:
            page = await api.call("GET", f"/{id}/items?{query}{after}")
            ids = [item["id"] for item in page["data"]]
            assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
            assert len(ids) <= limit
            found += ids
            assert page["has_more"] is (len(found) < len(wanted))
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert found == wanted
        assert (await api.call("GET", f"/{id}/items?{query}&after={wanted[-1]}"))["data"] == []


async def test_pages_of_large_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends by bytes too, and says that there is more."""
    monkeypatch.setattr("legato.server.conversations.PAGE_BYTES", 4_000)
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(*(said("user", f"{n} " + "x" * 1_500) for n in range(7)))
        found: list[Any] = []
        after = ""
        pages = 0
        while True:
            page = await api.call("GET", f"/{id}/items?order=asc&limit=100{after}")
            found += page["data"]
            pages += 1
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert [item["content"][0]["text"][0] for item in found] == list("0123456")
        assert pages > 1


@pytest.mark.parametrize(("query", "param"), [
    ("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=msg_1", "after"),
    ("after=", "after"), ("include=everything", "include"), ("include[]=x", "include"),
])  # fmt: skip
async def test_pages_that_are_none(query: str, param: str) -> None:
    """400, with the name."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(said("user", "a"))
        assert (await api.call("GET", f"/{id}/items?{query}", status=400))["error"]["param"] == param


async def test_include() -> None:
    """What the SDKs can ask for is taken, in each of their spellings."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(said("user", "a"))
        for query in ("include=reasoning.encrypted_content", "include[]=message.output_text.logprobs"):
            assert len(await api.items(id, query)) == 1


DELETIONS: dict[str, tuple[int, list[Any]]] = {
    "the first": (
        0,
        [("assistant", "beta"), ("f", '{"a": 1}'), ("out", "42"), ("assistant", "gamma"), ("user", "delta")],
    ),
    "a text": (1, [("user", "alpha"), ("f", '{"a": 1}'), ("out", "42"), ("assistant", "gamma"), ("user", "delta")]),
    "a call": (2, [("user", "alpha"), ("assistant", "beta"), ("out", "42"), ("assistant", "gamma"), ("user", "delta")]),
    "an output": (
        3,
        [("user", "alpha"), ("assistant", "beta"), ("f", '{"a": 1}'), ("assistant", "gamma"), ("user", "delta")],
    ),
    "the last": (
        5,
        [("user", "alpha"), ("assistant", "beta"), ("f", '{"a": 1}'), ("out", "42"), ("assistant", "gamma")],
    ),
}


@pytest.mark.parametrize("name", DELETIONS)
async def test_an_item_that_was_added_is_deleted(name: str) -> None:
    """It is listed no more and told no more; the others keep their ids; a restart of nothing brings it back."""
    place, wanted = DELETIONS[name]
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(said("user", "alpha"), said("assistant", "beta"), CALL, OUTPUT,
                              said("assistant", "gamma"),
                              said("user", "delta"), metadata={"m": "1"})  # fmt: skip
        listed = await api.items(id)
        gone = listed.pop(place)
        made = await api.call("DELETE", f"/{id}/items/{gone['id']}")
        assert (made["object"], made["id"], made["metadata"]) == ("conversation", id, {"m": "1"})

        assert await api.items(id) == listed
        assert [brief(item) for item in listed] == wanted
        for method in ("GET", "DELETE"):
            error = await api.call(method, f"/{id}/items/{gone['id']}", status=404)
            assert error["error"]["code"] == "item_not_found"
        words = json.dumps(await api.told(id))
        text = gone.get("output") or gone.get("arguments") or gone["content"][0]["text"]
        assert json.dumps(text)[1:-1].replace("\\", "") not in words.replace("\\", "")


async def test_items_of_an_answer_are_deleted_one_by_one() -> None:
    """In any order: thinking, text, a call, and what was asked. What is left is what the model is told."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create()
        await ask(api.driver, "tools", conversation=id)
        left = await api.items(id)
        while left:
            gone = left.pop(len(left) // 2)
            await api.call("DELETE", f"/{id}/items/{gone['id']}")
            assert await api.items(id) == left
            told = await history_of(chat, id)
            assert ("It is there." in told) is any("It is there." in json.dumps(item) for item in left)
            # The output of a call that is gone is nobody's to be told.
            there = {item["type"] for item in left}
            assert ("seen" in told) is (there >= {"function_call", "function_call_output"} or "mcp_call" in there)
            assert ("Hm." in told) is any("Hm." in json.dumps(item) for item in left)
        assert [each["content"] for each in await api.told(id)] == ["now"]


async def history_of(chat: Chat, id: str) -> str:
    """The history as JSON, by the fold of the whole log; by that of the contents it is the same."""
    events = [event async for event in chat.app.sessions.all(NOBODY, id)]
    contents = Contents()
    for event in events:
        if not event.fact.delta:
            contents.take(event)
    by_entries = await chat.app.sessions.messages(NOBODY, id, contents.entries)
    assert by_entries == history(events)
    return json.dumps([part for message in by_entries for part in map(str, message.parts)])


async def test_one_of_several_items_of_a_question() -> None:
    """The rest of it stays, with its ids; the model is told the rest."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create()
        await ask(api.driver, [said("user", "one"), said("user", "two"), said("user", "three")], conversation=id)
        listed = await api.items(id)
        gone = next(item for item in listed if brief(item) == ("user", "two"))
        await api.call("DELETE", f"/{id}/items/{gone['id']}")
        listed.remove(gone)
        assert await api.items(id) == listed
        assert [each["content"] for each in await api.told(id) if each["role"] == "user"] == ["one", "three", "now"]


async def test_what_is_being_answered_is_not_deleted() -> None:
    """409, and it is there."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create()
        _, response = await ask(api.driver, "slow", "background", conversation=id, ended=False)
        (asked,) = await api.items(id)
        assert (await api.call("DELETE", f"/{id}/items/{asked['id']}", status=409))["error"]["code"] == "conflict"
        assert await api.items(id) == [asked]
        await api.driver.request("POST", f"/v1/responses/{response['id']}/cancel")
        await api.call("DELETE", f"/{id}/items/{asked['id']}")


async def test_a_retry_asks_what_is_left() -> None:
    """A message that was revised is put to the agent as it is now."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create()
        await ask(api.driver, [said("user", "one"), said("user", "two")], conversation=id)
        first = (await api.items(id))[0]
        await api.call("DELETE", f"/{id}/items/{first['id']}")
        (message,) = [m for m in await chat.app.sessions.history(NOBODY, id) if m.role == "user"]
        sent = await chat.app.sessions.retry(NOBODY, id, message.id)
        located = await chat.app.sessions.find(NOBODY, id, sent.run)
        assert located is not None
        await chat.app.sessions.until_ended(NOBODY, located)
        assert brief((await api.items(id))[0]) == ("user", "two")
        assert '"two"' in brief((await api.items(id))[1])[1]
        assert '"one"' not in brief((await api.items(id))[1])[1]


async def test_a_deleted_conversation() -> None:
    """Is gone, with its responses, over every dialect; its id is never anything again."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(said("user", "alpha"))
        _, response = await ask(api.driver, "refuse", conversation=id)
        item = (await api.items(id))[0]
        assert await api.call("DELETE", f"/{id}") == {"id": id, "object": "conversation.deleted", "deleted": True}
        for method, path, body in (
            ("GET", "", None), ("POST", "", {"metadata": {}}), ("DELETE", "", None), ("GET", "/items", None),
            ("POST", "/items", {"items": [said("user", "x")]}), ("GET", f"/items/{item['id']}", None),
            ("DELETE", f"/items/{item['id']}", None),
        ):  # fmt: skip
            assert (await api.call(method, f"/{id}{path}", body, 404))["error"]["code"] == "session_not_found"
        assert (await ask(api.driver, "x", conversation=id))[0] == 404
        assert (await api.driver.request("GET", f"/v1/responses/{response['id']}")).status == 404
        assert (await api.driver.request("GET", f"/api/sessions/{id}")).status == 404


@pytest.mark.parametrize("id", ["conv_none", "..%2f", "a%20b", "conv_" + "x" * 200])
async def test_a_conversation_that_never_was(id: str) -> None:
    """404."""
    async with chatted() as chat:
        await API(chat).call("GET", f"/{id}", status=404)
        await API(chat).call("GET", f"/{id}/items", status=404)


async def test_a_conversation_and_a_previous_response() -> None:
    """One of them."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create()
        _, response = await ask(api.driver, "refuse", conversation=id)
        status, error = await ask(api.driver, "x", conversation=id, previous_response_id=response["id"])
        assert (status, error["error"]["param"]) == (400, "previous_response_id")


async def test_keys() -> None:
    """The same key and request once; with another it is refused."""
    async with chatted() as chat:
        api = API(chat)
        key = {"idempotency-key": "k1"}
        one = await api.call("POST", "", {"items": [said("user", "alpha")], "metadata": {"m": "1"}}, **key)
        assert await api.call("POST", "", {"items": [said("user", "alpha")], "metadata": {"m": "1"}}, **key) == one
        await api.call("POST", "", {"items": [said("user", "alpha")], "metadata": {"m": "2"}}, 409, **key)
        path = f"/{one['id']}/items"
        added = await api.call("POST", path, {"items": [said("user", "b"), CALL]}, **key)
        assert await api.call("POST", path, {"items": [said("user", "b"), CALL]}, **key) == added
        await api.call("POST", path, {"items": [said("user", "c")]}, 409, **key)
        assert [item["type"] for item in await api.items(one["id"])] == ["message", "message", "function_call"]


async def test_each_verb_is_one_append() -> None:
    """At the head that it saw: what comes in between is looked at again."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(*(said("user", str(n)) for n in range(3)))
        appends: list[list[str]] = []
        store = chat.app.store
        append = store.append

        async def counted(session: str, drafts: Any, **options: Any) -> Any:
            appends.append([draft.type for draft in drafts])
            return await append(session, drafts, **options)

        store.append = counted  # type: ignore[method-assign]
        items = await api.items(id)
        await api.add(id, said("user", "alpha"), CALL, OUTPUT)
        await api.call("POST", f"/{id}", {"metadata": {"a": "b"}})
        await asyncio.gather(*(api.call("DELETE", f"/{id}/items/{item['id']}") for item in items))
        assert appends[:2] == [["message.created"] * 2, ["session.updated"]]
        assert {tuple(each) for each in appends[2:]} == {("message.revised",)}
        assert [item["type"] for item in await api.items(id)] == ["message", "function_call", "function_call_output"]


async def test_two_who_delete_of_one_message_at_once() -> None:
    """Neither brings back what the other took."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create(*(said("assistant", str(n)) for n in range(6)))
        listed = await api.items(id)
        await asyncio.gather(*(api.call("DELETE", f"/{id}/items/{item['id']}") for item in listed[:5]))
        assert await api.items(id) == listed[5:]


async def test_two_who_update_at_once() -> None:
    """The last one holds, and it is one of them."""
    async with chatted() as chat:
        api = API(chat)
        id = await api.create()
        await asyncio.gather(*(api.call("POST", f"/{id}", {"metadata": {"n": str(n)}}) for n in range(5)))
        assert (await api.call("GET", f"/{id}"))["metadata"]["n"] in "01234"
