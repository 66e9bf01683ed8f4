"""What belongs to one dialect stays there: a session that was begun over one shows nothing of another's fields."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asking import ask, items
from driving import Chat, chatting, echo
from legato.part import to_builtins
from legato.testing import ASGIResponse
from raw_log import canonical

MIX_FIELDS = ("promptMode", "sessionType", "browserMode", "customSystemPrompt", "prompt_mode", "session_type",
              "browser_mode", "custom_system_prompt")  # fmt: skip
DEFAULTS = {"sessionType": "main", "browserMode": "electron-embedded-browser"}
CHOSEN = {
    "title": "A title",
    "promptMode": "replace",
    "customSystemPrompt": "Be brief, secretly.",
    "sessionType": "subagent",
    "browserMode": "remote-cdp-websocket",
}
"""Everything that a client of Mix can say of a session."""


async def by_deva(chat: Chat) -> str:
    """Begun over Deva."""
    body = {"title": "A thread", "username": "echo"}
    return str((await chat.driver.request("POST", "/api/sdk/chat", json=body)).json()["id"])


async def by_deva_without_a_body(chat: Chat) -> str:
    """Begun over Deva, with nothing said of it."""
    return str((await chat.driver.request("POST", "/api/sdk/chat")).json()["id"])


async def by_responses(chat: Chat) -> str:
    """Begun by a request for a response."""
    return str((await ask(chat.driver, "hello"))[1]["conversation"]["id"])


async def by_responses_with_items(chat: Chat) -> str:
    """Begun by a request with a history of its own."""
    return str((await ask(chat.driver, items("x", "y", "hello")))[1]["conversation"]["id"])


async def by_a_branch(chat: Chat) -> str:
    """Begun by going on from a response that is not the last one."""
    _, root = await ask(chat.driver, "root")
    await ask(chat.driver, "other", previous_response_id=root["id"])
    return str((await ask(chat.driver, "hello", previous_response_id=root["id"]))[1]["conversation"]["id"])


async def by_chat(chat: Chat) -> str:
    """Begun by a chat completion."""
    body = {"model": "echo", "messages": items("hello")}
    answer = await chat.driver.request("POST", "/v1/chat/completions", json=body)
    return str(answer.json()["id"].removeprefix("chatcmpl-").partition("~")[0])


async def by_a_fork_of_deva(chat: Chat) -> str:
    """A copy of a thread."""
    thread = await by_deva(chat)
    await chat.driver.request("POST", f"/api/sdk/chat/{thread}/messages", json={"text": "hello"})
    copy = await chat.driver.request("POST", f"/api/sessions/{thread}/fork", json={"messageIndex": 0})
    return str(copy.json()["id"])


OTHERS = [by_deva, by_deva_without_a_body, by_responses, by_responses_with_items, by_a_branch, by_chat,
          by_a_fork_of_deva]  # fmt: skip
Begin = Callable[[Chat], Awaitable[str]]


def fields_in(value: Any) -> set[str]:
    """The names of Mix's fields anywhere in a JSON value."""
    text = json.dumps(value)
    return {name for name in MIX_FIELDS if f'"{name}"' in text}


@pytest.mark.parametrize("begin", OTHERS)
async def test_a_session_of_another_dialect_stores_nothing_of_mix(begin: Begin) -> None:
    """Neither its first event nor any other has Mix's fields, on the canonical page or in what it shows of the log."""
    async with chatting(None, echo) as chat:
        session = await begin(chat)
        assert fields_in(await canonical(chat.driver, session)) == set()
        first = (await canonical(chat.driver, session))[0]
        assert first["type"] == "session.created"
        assert fields_in(to_builtins((await chat.app.store.info(session)).created)) == set()
        wire = await chat.driver.request("GET", f"/api/inspect/sessions/{session}/wire?dialects=mix/legato,deva")
        assert fields_in([row["data"] for row in wire.json()["rows"]]) == set()


@pytest.mark.parametrize("begin", OTHERS)
async def test_lists_of_mix_show_their_defaults_for_sessions_of_other_dialects(begin: Begin) -> None:
    """A strict client finds every field that it wants, in the list, the session and its export."""
    async with chatting(None, echo) as chat:
        session = await begin(chat)
        listed = (await chat.driver.request("GET", "/api/sessions")).json()
        shown = [
            next(each for each in listed if each["id"] == session),
            (await chat.driver.request("GET", f"/api/sessions/{session}")).json(),
            (await chat.driver.request("GET", f"/api/sessions/{session}/export")).json(),
        ]
        ours = (await chat.get()).json()  # of a session of Mix
        for each in shown:
            assert {name: each[name] for name in DEFAULTS} == DEFAULTS
            assert isinstance(each["title"], str)
            assert set(ours) - {"agent"} <= set(each)


async def mix_session(chat: Chat, **fields: Any) -> str:
    created = await chat.driver.request("POST", "/api/sessions", json=fields)
    assert created.status == 201
    return str(created.json()["id"])


async def answers(chat: Chat, session: str) -> dict[str, Any]:
    """What the other dialects say of a session: each kind of their answers."""
    driver = chat.driver
    told: dict[str, Any] = {}

    def keep(name: str, answer: ASGIResponse) -> Any:
        assert answer.status < 300, name
        told[name] = answer.text
        return answer.json() if answer.headers["content-type"].startswith("application/json") else None

    keep("thread", await driver.request("GET", f"/api/sdk/chat/{session}"))
    sent = keep("sent", await driver.request("POST", f"/api/sdk/chat/{session}/messages", json={"text": "hello"}))
    target = f"/api/sdk/chat/{session}/messages/{sent['id']}/query/stream"
    keep("deva stream", await driver.request("POST", target))
    keep("page", await driver.request("GET", f"/api/sdk/chat/{session}/messages"))
    response = keep(
        "response", await driver.request("POST", "/v1/responses", json={"input": "more", "conversation": session})
    )
    keep("retrieved", await driver.request("GET", f"/v1/responses/{response['id']}"))
    keep("response stream", await driver.request("GET", f"/v1/responses/{response['id']}?stream=true"))
    keep("items", await driver.request("GET", f"/v1/responses/{response['id']}/input_items"))
    keep(
        "next",
        await driver.request("POST", "/v1/responses", json={"input": "m", "previous_response_id": response["id"]}),
    )
    return told


async def test_what_mix_says_of_a_session_does_not_leak_into_other_dialects() -> None:
    """Their answers are those of a session of which nothing was said; only Deva, which has titles, shows the title."""
    async with chatting(None, echo) as chat:
        session = await mix_session(chat, **CHOSEN)
        told = await answers(chat, session)
        for name, text in told.items():
            assert fields_in(text) == set(), name
            for word in ("secretly", "subagent", "remote-cdp-websocket"):
                assert word not in text, name
            if name not in ("thread",):
                assert "A title" not in text, name
        assert json.loads(told["thread"])["title"] == "A title"
        assert json.loads(told["response"])["instructions"] is None


async def test_what_mix_says_of_a_session_is_kept_and_given_back_by_mix() -> None:
    """In lists, in the session and in its copies, also after the other dialects have used it."""
    async with chatting(None, echo) as chat:
        session = await mix_session(chat, **CHOSEN)
        await answers(chat, session)
        fork = await chat.driver.request("POST", f"/api/sessions/{session}/fork", json={"messageIndex": 1})
        assert fork.status == 201
        for id in (session, fork.json()["id"]):
            shown = (await chat.driver.request("GET", f"/api/sessions/{id}")).json()
            assert (shown["sessionType"], shown["browserMode"]) == ("subagent", "remote-cdp-websocket")


async def test_a_branch_of_a_mix_session_shows_nothing_of_mix_to_its_client() -> None:
    """The copy that a response goes on in answers as any other conversation."""
    async with chatting(None, echo) as chat:
        session = await mix_session(chat, **CHOSEN)
        _, first = await ask(chat.driver, "one", conversation=session)
        await ask(chat.driver, "two", conversation=session)
        _, branch = await ask(chat.driver, "other", previous_response_id=first["id"])
        assert branch["conversation"]["id"] != session
        assert fields_in(branch) == set()
        assert "secretly" not in json.dumps(branch)
        told = await answers(chat, branch["conversation"]["id"])
        assert {name: fields_in(text) for name, text in told.items()} == {name: set() for name in told}


async def test_a_message_of_mix_is_no_request_for_a_response() -> None:
    """A field of it that only sounds like a setting, and is of another type, is not shown as one."""
    async with chatting(None, echo) as chat:
        run = (await chat.said("hello", temperature="hot", tools=7)).json()["runId"]
        shown = await chat.driver.request("GET", f"/v1/responses/resp_{run}")
        assert (shown.status, shown.json()["temperature"], shown.json()["tools"]) == (200, 1.0, [])
        status, _ = await ask(chat.driver, "more", previous_response_id=f"resp_{run}")
        assert status == 200
