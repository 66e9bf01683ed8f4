"""What is stored is stored by one door: whole or not at all, and only on what its author has seen.

Each race here is built: an append is held, the other side acts, and the append goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asking import FORMS, Listener, ask, items, texts
from driving import Chat, chatting
from held_store import HeldStore, anything, having, quiet
from legato.bounds import Limits
from legato.testing import ASGIResponse
from raw_log import canonical, heads

MESSAGE = having("message.created")

# Branches -------------------------------------------------------------------------------------------------------------


async def crossing(hold: Any, *requests: Any) -> list[Any]:
    """The requests' answers: each one but the last is begun and held; when all have done what they can, it is let go.

    The first is held before the others begin.
    """
    tasks = [asyncio.create_task(requests[0])]
    await hold.reached(*tasks)
    tasks += [asyncio.create_task(request) for request in requests[1:]]
    await quiet()
    hold.let_go()
    async with asyncio.timeout(30):
        return list(await asyncio.gather(*tasks))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("held", [1, 2, 3])
async def test_answers_to_one_response_do_not_hear_each_other(form: str, held: int) -> None:
    """Each of three questions to one response at the same time is told what led to it, and not the other questions."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        _, root = await ask(chat.driver, "root")
        hold = store.hold(MESSAGE, times=held)
        answers = await crossing(
            hold, *[ask(chat.driver, text, form, previous_response_id=root["id"]) for text in ("a", "b", "c")]
        )

        assert [status for status, _ in answers] == [200, 200, 200]
        assert listener.told == {"root": [], **{text: ["root", "re root"] for text in "abc"}}
        assert len({answer["conversation"]["id"] for _, answer in answers}) == 3
        assert [answer["output"][0]["content"][0]["text"] for _, answer in answers] == ["re a", "re b", "re c"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("skip", [0, 1])
async def test_branches_with_items_of_their_own_do_not_hear_each_other(form: str, skip: int) -> None:
    """What a request brings along belongs to its own branch only, whichever of its appends the other one crosses."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        _, root = await ask(chat.driver, "root")
        hold = store.hold(MESSAGE, skip=skip)
        answers = await crossing(
            hold,
            ask(chat.driver, items("a1", "a2", "a3"), form, previous_response_id=root["id"]),
            ask(chat.driver, items("b1", "b2", "b3"), form, previous_response_id=root["id"]),
        )

        assert [status for status, _ in answers] == [200, 200]
        assert listener.told["a3"] == ["root", "re root", "a1", "a2"]
        assert listener.told["b3"] == ["root", "re root", "b1", "b2"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_branch_does_not_hear_what_the_chat_page_sends(form: str) -> None:
    """A message that the session itself gets meanwhile is no part of what goes on from a response."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        _, root = await ask(chat.driver, "root")
        chat.session = root["conversation"]["id"]
        hold = store.hold(MESSAGE)
        (_, answer), sent = await crossing(
            hold, ask(chat.driver, "branch", form, previous_response_id=root["id"]), chat.send("page")
        )

        await quiet()

        assert sent.status == 202
        assert listener.told["branch"] == ["root", "re root"]
        # It is in the session only if it was stored first; then it is what the page's message comes after.
        assert ("branch" in listener.told["page"]) == (answer["conversation"]["id"] == chat.session)


async def test_answers_to_a_response_that_is_still_running_do_not_hear_each_other() -> None:
    """Each either waits for that answer and is told nothing else, or is refused."""
    store, listener = HeldStore(), Listener()
    go = listener.hold("root")
    async with chatting(None, listener, store=store) as chat:
        _, root = await ask(chat.driver, "root", "background", ended=False)
        hold = store.hold(MESSAGE)
        answers = await crossing(
            hold,
            *[
                ask(chat.driver, text, "background", ended=False, previous_response_id=root["id"])
                for text in ("a", "b")
            ],
        )
        go.set()
        for status, answer in answers:
            if status == 200:
                await chat.driver.request("GET", f"/v1/responses/{answer['id']}?stream=true")

        assert 200 in [status for status, _ in answers]
        assert {answer["error"]["code"] for status, answer in answers if status != 200} <= {
            "previous_response_in_progress"
        }
        listener.told.pop("root")
        assert set(map(tuple, listener.told.values())) == {("root", "re root")}


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("form", FORMS)
async def test_in_one_conversation_nobody_stands_between_items_and_their_question(form: str, skip: int) -> None:
    """Two requests that bring items into one conversation stand there one after the other, each whole."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        hold = store.hold(MESSAGE, skip=skip)
        answers = await crossing(
            hold,
            ask(chat.driver, items("a1", "a2", "a3"), form, conversation=chat.session),
            ask(chat.driver, items("b1", "b2", "b3"), form, conversation=chat.session),
        )

        assert [status for status, _ in answers] == [200, 200]
        asked = [text for text in await texts(chat.driver, chat.session) if not text.startswith("re ")]
        assert asked in (["a1", "a2", "a3", "b1", "b2", "b3"], ["b1", "b2", "b3", "a1", "a2", "a3"])
        for text, own in (("a3", ["a1", "a2"]), ("b3", ["b1", "b2"])):
            told = [each for each in listener.told[text] if not each.startswith("re ")]
            assert told[-2:] == own
            assert len(told) in (2, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("input", ["again", items("x", "y", "again")], ids=["text", "items"])
@pytest.mark.parametrize("place", ["nowhere", "conversation", "last", "not last", "overtaken"])
async def test_a_key_that_comes_twice_at_once_makes_one_run(form: str, input: Any, place: str) -> None:
    """Wherever the request belongs, and also if another one has gone on from there between the two."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        _, root = await ask(chat.driver, "root")
        if place == "not last":
            await ask(chat.driver, "other", previous_response_id=root["id"])
        where = {
            "nowhere": {},
            "conversation": {"conversation": chat.session},
        }.get(place, {"previous_response_id": root["id"]})
        hold = store.hold(MESSAGE)
        one = asyncio.create_task(ask(chat.driver, input, form, key="k", **where))
        await hold.reached()
        others = []
        if place == "overtaken":
            others.append(asyncio.create_task(ask(chat.driver, "other", **where)))
            await quiet()
        others.append(asyncio.create_task(ask(chat.driver, input, form, key="k", **where)))
        await quiet()
        hold.let_go()
        async with asyncio.timeout(30):
            (status, first), *_, (again, second) = await asyncio.gather(one, *others)

        assert (status, again) == (200, 200)
        assert first["id"] == second["id"]
        assert listener.calls.count("again") == 1
        told = [] if place in ("nowhere", "conversation") else ["root", "re root"]
        assert listener.told["again"] == told + ([] if input == "again" else ["x", "y"])


async def test_a_key_leads_to_its_response_after_others_went_on_from_there() -> None:
    """A request is repeated when its own branch has grown and its predecessor has other followers."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        _, root = await ask(chat.driver, "root")
        _, first = await ask(chat.driver, "a", key="k", previous_response_id=root["id"])
        _, second = await ask(chat.driver, "b", key="l", previous_response_id=root["id"])
        await ask(chat.driver, "a2", previous_response_id=first["id"])
        await ask(chat.driver, "b2", previous_response_id=second["id"])

        for text, key, before in (("a", "k", first), ("b", "l", second)):
            status, again = await ask(chat.driver, text, key=key, previous_response_id=root["id"])
            assert (status, again["id"]) == (200, before["id"])
        assert listener.calls == ["root", "a", "b", "a2", "b2"]


async def gone_by_delete(chat: Chat, id: str) -> int:
    """Delete the response."""
    return (await chat.driver.request("DELETE", f"/v1/responses/{id}")).status


async def gone_with_its_session(chat: Chat, id: str) -> int:
    """Delete all of its conversation."""
    return (await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")).status


async def gone_by_rewind(chat: Chat, id: str) -> int:
    """Take the conversation back to the message before it."""
    first = (await chat.get("/messages")).json()[0]["id"]
    return (await chat.post("/rewind", {"messageId": first})).status


async def gone_by_retry(chat: Chat, id: str) -> int:
    """Have its message answered anew, by another response."""
    asked = [each for each in (await chat.get("/messages")).json() if each["role"] == "user"]
    return (await chat.post(f"/messages/{asked[-1]['id']}/retry")).status


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("input", ["more", items("x", "y", "more")], ids=["text", "items"])
@pytest.mark.parametrize("gone", [gone_by_delete, gone_with_its_session, gone_by_rewind, gone_by_retry])
async def test_nothing_goes_on_from_a_response_that_went_meanwhile(
    gone: Callable[[Chat, str], Awaitable[int]], input: Any, form: str
) -> None:
    """It was there when the request came and is not when it is to be stored: the request is refused, nothing stored."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        _, root = await ask(chat.driver, "root")
        chat.session = root["conversation"]["id"]
        _, second = await ask(chat.driver, "second", previous_response_id=root["id"])
        hold = store.hold(MESSAGE)
        asking = asyncio.create_task(ask(chat.driver, input, form, previous_response_id=second["id"]))
        await hold.reached()
        going = asyncio.create_task(gone(chat, second["id"]))
        await quiet()
        before = await heads(chat.driver)
        hold.let_go()
        async with asyncio.timeout(30):
            (status, answer), went = await asyncio.gather(asking, going)

        assert went in (200, 202, 204)
        assert status == 400
        assert answer["error"]["code"] == "previous_response_not_found"
        assert "more" not in listener.calls
        if gone is not gone_by_retry:  # whose own answer may go on being stored
            assert await heads(chat.driver) == before


# Rewinds --------------------------------------------------------------------------------------------------------------


async def talked(chat: Chat, *said: str) -> list[str]:
    """Say each, and wait for its answer; the ids of the user's messages."""
    return [(await chat.said(text)).json()["messageId"] for text in said]


SENDS: dict[str, Callable[[Chat], Awaitable[ASGIResponse]]] = {
    "mix": lambda chat: chat.send("new"),
    "mix stream": lambda chat: chat.driver.request("POST", f"/stream/{chat.session}/message", json={"content": "new"}),
    "deva": lambda chat: chat.driver.request("POST", f"/api/sdk/chat/{chat.session}/messages", json={"text": "new"}),
    "responses": lambda chat: chat.driver.request(
        "POST", "/v1/responses", json={"input": "new", "conversation": chat.session, "background": True}
    ),
    "responses with items": lambda chat: chat.driver.request(
        "POST",
        "/v1/responses",
        json={"input": items("x", "y", "new"), "conversation": chat.session, "background": True},
    ),
}
"""Ways to send a message into a session."""


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("running", [True, False])
async def test_a_rewind_takes_nothing_back_that_it_has_not_seen(send: str, running: bool) -> None:
    """A message that was accepted while a rewind was under way stands in the history, or the rewind is refused."""
    store, listener = HeldStore(), Listener()
    go = listener.hold("new")
    async with chatting(None, listener, store=store) as chat:
        first, _ = await talked(chat, "one", "two")
        hold = store.hold(having("session.rewound"))
        rewinding = asyncio.create_task(chat.post("/rewind", {"messageId": first}))
        await hold.reached(rewinding)
        if not running:
            go.set()
        sending = asyncio.create_task(SENDS[send](chat))
        await quiet()
        hold.let_go()
        async with asyncio.timeout(30):
            rewound, sent = await asyncio.gather(rewinding, sending)
        go.set()
        await quiet()

        assert sent.status in (200, 201, 202)
        assert rewound.status in (200, 409)
        after = await texts(chat.driver, chat.session)
        assert after[-2:] == ["new", "re new"]
        assert after[0] == "one"
        assert ("two" in after) == (rewound.status == 409)
        types = [event["type"] for event in await canonical(chat.driver, chat.session)]
        assert types.count("session.rewound") == (rewound.status == 200)
        assert "run.failed" not in types
        if "items" in send:
            assert after[-4:-2] == ["x", "y"]


async def test_a_rewind_to_what_another_one_took_back_is_refused() -> None:
    """Of two rewinds at once, the later one finds the history that the earlier one left."""
    store = HeldStore()
    async with chatting(None, Listener(), store=store) as chat:
        first, _, third = await talked(chat, "one", "two", "three")
        hold = store.hold(having("session.rewound"))
        slow, quick = await crossing(
            hold, chat.post("/rewind", {"messageId": third}), chat.post("/rewind", {"messageId": first})
        )

        rewinds = [each for each in await canonical(chat.driver, chat.session) if each["type"] == "session.rewound"]
        assert await texts(chat.driver, chat.session) == ["one"]
        assert quick.status == 200
        # In whichever order they are stored: a rewind to what is there no more is not, and is not said to be done.
        assert [each["data"]["to"] for each in rewinds] == ([third, first] if slow.status == 200 else [first])
        assert slow.status in (200, 404, 409)


async def test_a_rewind_further_back_holds_whoever_comes_first() -> None:
    """A rewind to the first message that was overtaken by one to the second still ends at the first."""
    store = HeldStore()
    async with chatting(None, Listener(), store=store) as chat:
        first, second, _ = await talked(chat, "one", "two", "three")
        hold = store.hold(having("session.rewound"))
        slow, quick = await crossing(
            hold, chat.post("/rewind", {"messageId": first}), chat.post("/rewind", {"messageId": second})
        )

        assert quick.status == 200 or slow.status == 200
        kept = ["one"] if slow.status == 200 else ["one", "re one", "two"]
        assert await texts(chat.driver, chat.session) == kept


async def retried(chat: Chat, message: str) -> ASGIResponse:
    return await chat.post(f"/messages/{message}/retry")


async def retried_by_deva(chat: Chat, message: str) -> ASGIResponse:
    return await chat.driver.request("POST", f"/api/sdk/chat/{chat.session}/messages/{message}/retry")


RETRIES = [retried, retried_by_deva]


@pytest.mark.parametrize("retry", RETRIES)
async def test_a_message_that_was_taken_back_meanwhile_is_not_answered_anew(
    retry: Callable[[Chat, str], Awaitable[ASGIResponse]],
) -> None:
    """A retry that a rewind has overtaken does not bring back what the rewind took."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        first, _, third = await talked(chat, "one", "two", "three")
        hold = store.hold(MESSAGE)
        again, rewound = await crossing(hold, retry(chat, third), chat.post("/rewind", {"messageId": first}))
        await quiet()

        # Or the retry was stored first: then an answer is being given, and the rewind is what is refused.
        assert (again.status, rewound.status) in [(404, 200), (409, 200), (202, 409)]
        said = ["one"] if rewound.status == 200 else ["one", "re one", "two", "re two", "three", "re three"]
        assert await texts(chat.driver, chat.session) == said
        assert listener.calls.count("three") == (1 if rewound.status == 200 else 2)


@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("send", SENDS)
async def test_a_retry_takes_no_message_back_that_crosses_it(
    retry: Callable[[Chat, str], Awaitable[ASGIResponse]], send: str
) -> None:
    """The message and its answer stay, and so does the message that was to be answered anew, answered once."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        _, second = await talked(chat, "one", "two")
        hold = store.hold(having("session.rewound"))
        again, sent = await crossing(hold, retry(chat, second), SENDS[send](chat))
        await quiet()

        assert sent.status in (200, 201, 202)
        assert again.status in (202, 409)
        said = [text for text in await texts(chat.driver, chat.session) if text not in ("x", "y")]
        assert sorted(said) == sorted(["one", "re one", "two", "re two", "new", "re new"])
        assert listener.calls.count("two") == (2 if again.status == 202 else 1)
        assert listener.calls.count("new") == 1
        if "items" in send:
            told = [text for text in await texts(chat.driver, chat.session) if text in ("x", "y", "new")]
            assert told == ["x", "y", "new"]


@pytest.mark.parametrize("one", RETRIES)
@pytest.mark.parametrize("other", RETRIES)
async def test_two_retries_at_once_are_one(
    one: Callable[[Chat, str], Awaitable[ASGIResponse]], other: Callable[[Chat, str], Awaitable[ASGIResponse]]
) -> None:
    """Two people who press the button in the same moment pay for one answer."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        [message] = await talked(chat, "one")
        hold = store.hold(having("session.rewound"), times=2)
        answers = await crossing(hold, one(chat, message), other(chat, message))
        await quiet()

        assert [answer.status for answer in answers] == [202, 202]
        assert sorted("legato-repeated" in answer.headers for answer in answers) == [False, True]
        assert listener.calls == ["one", "one"]


async def test_a_fork_is_of_one_moment() -> None:
    """A fork that a message and its answer have overtaken is a copy of what was there when it was asked for."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        await talked(chat, "one")
        hold = store.hold(having("session.created"))
        forked, sent = await crossing(hold, chat.post("/fork", {"messageIndex": 1}), chat.send("new"))
        await quiet()

        assert (forked.status, sent.status) == (201, 202)
        assert await texts(chat.driver, forked.json()["id"]) == ["one", "re one"]
        assert await texts(chat.driver, chat.session) == ["one", "re one", "new", "re new"]


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
async def test_a_session_that_is_deleted_while_it_is_forked_is_gone_or_copied(skip: int) -> None:
    """The fork is 404, or has what was asked for; never is the caller told that its index was wrong."""
    store = HeldStore()
    async with chatting(None, Listener(), store=store) as chat:
        await talked(chat, "one")
        hold = store.hold_reads(skip=skip, times=1)
        forking = asyncio.create_task(chat.post("/fork", {"messageIndex": 1}))
        await hold.reached(forking)
        deleted = await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")
        hold.let_go()
        forked = await forking

        assert deleted.status == 204
        assert forked.status in (201, 404)
        if forked.status == 201:
            assert await texts(chat.driver, forked.json()["id"]) == ["one", "re one"]


@pytest.mark.parametrize("terminal", ["run.completed", "run.cancelled"])
async def test_a_cancel_that_crosses_the_end_is_told_the_truth(terminal: str) -> None:
    """Whichever of the two is stored first, the run ends once, and ``cancelled`` says whether anything was running."""
    store, listener = HeldStore(), Listener()
    go = listener.hold("one")
    async with chatting(None, listener, store=store) as chat:
        run = (await chat.send("one")).json()["runId"]
        await quiet()
        hold = store.hold(having("run.cancel_requested" if terminal == "run.completed" else "run.completed"))
        if terminal == "run.completed":
            cancelling = asyncio.create_task(chat.post("/cancel", {"runId": run}))
            await hold.reached()
            go.set()
            await quiet()
            hold.let_go()
        else:
            go.set()
            await hold.reached()
            cancelling = asyncio.create_task(chat.post("/cancel", {"runId": run}))
            await quiet()
            hold.let_go()
        answer = await cancelling
        await quiet()

        types = [event["type"] for event in await canonical(chat.driver, chat.session)]
        ends = [type for type in types if type in ("run.completed", "run.failed", "run.cancelled")]
        assert len(ends) == 1
        assert answer.json() == {"cancelled": "run.cancel_requested" in types}


# Refusals -------------------------------------------------------------------------------------------------------------

HISTORY = items("x", "y")


async def post(chat: Chat, target: str, body: dict[str, Any], key: str | None = None) -> ASGIResponse:
    return await chat.driver.request(
        "POST", target, body=json.dumps(body).encode(), headers={} if key is None else {"idempotency-key": key}
    )


LONG = "long " * 10
TOO_LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "responses": ("/v1/responses", {"input": LONG}),
    "responses with items": ("/v1/responses", {"input": [*HISTORY, *items(LONG)]}),
    "responses, background": ("/v1/responses", {"input": LONG, "background": True}),
    "responses, stream": ("/v1/responses", {"input": LONG, "stream": True}),
    "conversation": ("/v1/responses", {"input": LONG, "conversation": "CONVERSATION"}),
    "conversation with items": ("/v1/responses", {"input": [*HISTORY, *items(LONG)], "conversation": "CONVERSATION"}),
    "last": ("/v1/responses", {"input": LONG, "previous_response_id": "LAST"}),
    "last with items": ("/v1/responses", {"input": [*HISTORY, *items(LONG)], "previous_response_id": "LAST"}),
    "not last": ("/v1/responses", {"input": LONG, "previous_response_id": "FIRST"}),
    "not last with items": ("/v1/responses", {"input": [*HISTORY, *items(LONG)], "previous_response_id": "FIRST"}),
    "chat": ("/v1/chat/completions", {"model": "Listener", "messages": items(LONG)}),
    "chat with history": ("/v1/chat/completions", {"model": "Listener", "messages": [*HISTORY, *items(LONG)]}),
    "chat, stream": ("/v1/chat/completions", {"model": "Listener", "messages": items(LONG), "stream": True}),
    "mix": ("/api/sessions/CONVERSATION/messages", {"text": LONG}),
    "mix stream": ("/stream/CONVERSATION/message", {"content": LONG}),
    "deva": ("/api/sdk/chat/CONVERSATION/messages", {"text": LONG}),
}
"""Requests whose message is too long: a path, and a body in which names stand for what is there."""


def placed(value: Any, names: dict[str, str]) -> Any:
    """``value`` with what is there in place of the names."""
    text = json.dumps(value)
    for name, id in names.items():
        text = text.replace(name, id)
    return json.loads(text)


async def prepared(chat: Chat) -> dict[str, str]:
    """Two responses, one after the other, in one conversation."""
    _, first = await ask(chat.driver, "1")
    _, last = await ask(chat.driver, "2", previous_response_id=first["id"])
    return {"CONVERSATION": first["conversation"]["id"], "LAST": last["id"], "FIRST": first["id"]}


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("case", TOO_LONG)
async def test_a_message_that_is_too_long_leaves_nothing_behind(case: str, key: str | None) -> None:
    """However often it comes: no session, no earlier items, and the key is free for another message."""
    async with chatting(None, Listener(), limits=Limits(message_characters=40)) as chat:
        target, body = placed(TOO_LONG[case], await prepared(chat))
        before = await heads(chat.driver)
        for _ in range(3):
            assert (await post(chat, target, body, key)).status == 413
            assert await heads(chat.driver) == before

        short = placed(body, {LONG: "short"})
        assert (await post(chat, target, short, key)).status in (200, 201, 202)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["conversation", "last"])
@pytest.mark.parametrize("key", [None, "k"])
async def test_items_do_not_pile_up_before_a_full_queue(form: str, place: str, key: str | None) -> None:
    """A request with earlier items that finds the queue full is refused three times, and the history is unchanged."""
    listener = Listener()
    go = listener.hold("1")
    async with chatting(None, listener, limits=Limits(queued_messages=0)) as chat:
        _, running = await ask(chat.driver, "1", "background", ended=False)
        session = running["conversation"]["id"]
        where = {"conversation": session} if place == "conversation" else {"previous_response_id": running["id"]}
        said, before = await texts(chat.driver, session), await heads(chat.driver)
        for _ in range(3):
            status, answer = await ask(chat.driver, [*HISTORY, *items("2")], form, key=key, **where)
            assert (status, answer["error"]["code"]) == (409, "queue_full")
        assert (await texts(chat.driver, session), await heads(chat.driver)) == (said, before)

        go.set()
        await quiet()
        status, _ = await ask(chat.driver, [*HISTORY, *items("2")], form, key=key, **where)
        assert status == 200
        assert listener.told["2"] == ["1", "re 1", "x", "y"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "b"),
        ("a", items("x", "y", "b")),
        ("a", items("x", "y", "a")),
        (items("x", "y", "a"), items("x", "y", "b")),
        (items("x", "y", "a"), items("v", "w", "a")),
        (items("x", "y", "a"), "a"),
    ],
    ids=["text", "items after none", "only items differ", "text after items", "other items", "none after items"],
)
@pytest.mark.parametrize("place", ["nowhere", "conversation", "last", "not last"])
async def test_a_key_with_another_request_leaves_nothing_behind(place: str, first: Any, second: Any, form: str) -> None:
    """It is refused, and the log of the first one and all others are as before."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        names = await prepared(chat)
        where: dict[str, str] = {
            "nowhere": {},
            "conversation": {"conversation": names["CONVERSATION"]},
            "last": {"previous_response_id": names["LAST"]},
            "not last": {"previous_response_id": names["FIRST"]},
        }[place]
        status, _ = await ask(chat.driver, first, form, key="k", **where)
        assert status == 200
        before = await heads(chat.driver)
        for _ in range(2):
            status, answer = await ask(chat.driver, second, form, key="k", **where)
            assert (status, answer["error"]["code"]) == (409, "idempotency_key_reused")
            assert await heads(chat.driver) == before
        assert listener.calls.count("a") == 1
        assert "b" not in listener.calls


RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
BAD: dict[str, tuple[int, str, dict[str, Any]]] = {
    "unknown model after a response": (400, RESPONSES, {"model": "?", "previous_response_id": "LAST"}),
    "unknown model after an old one": (400, RESPONSES, {"model": "?", "previous_response_id": "FIRST"}),
    "unknown model in a conversation": (400, RESPONSES, {"model": "?", "conversation": "CONVERSATION"}),
    "unknown model": (400, RESPONSES, {"model": "?"}),
    "unknown model of a chat": (404, CHAT, {"model": "?", "messages": [*HISTORY, *items("1")]}),
    "two places": (400, RESPONSES, {"previous_response_id": "LAST", "conversation": "CONVERSATION"}),
    "no such conversation": (404, RESPONSES, {"conversation": "s_none"}),
    "no such response": (400, RESPONSES, {"previous_response_id": "resp_s_none~1"}),
    "nothing to answer": (400, RESPONSES, {"input": HISTORY[1:2], "conversation": "CONVERSATION"}),
    "blanks after a response": (400, RESPONSES, {"input": [*HISTORY, *items(" ")], "previous_response_id": "LAST"}),
    "blanks after an old one": (400, RESPONSES, {"input": [*HISTORY, *items(" ")], "previous_response_id": "FIRST"}),
    "half a pair": (400, RESPONSES, {"input": [*HISTORY, *items("\ud800")], "conversation": "CONVERSATION"}),
    "half a pair earlier": (400, RESPONSES, {"input": items("\ud800", "y", "1"), "conversation": "CONVERSATION"}),
    "half a pair in a new one": (400, RESPONSES, {"input": "\ud800"}),
    "half a pair of a chat": (400, CHAT, {"model": "Listener", "messages": [*HISTORY, *items("\udfff")]}),
    "bad setting": (400, RESPONSES, {"conversation": "CONVERSATION", "temperature": 99}),
}
"""Requests that cannot be used as they are, for one reason each."""


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("form", FORMS)
async def test_a_request_that_cannot_be_used_leaves_nothing_behind(case: str, form: str) -> None:
    """Also if that shows only after its place has been found."""
    async with chatting(None, Listener()) as chat:
        status, target, body = BAD[case]
        filled = placed({"input": [*HISTORY, *items("1")], **FORMS[form], **body}, await prepared(chat))
        if "messages" in filled:
            del filled["input"]
        before = await heads(chat.driver)
        assert (await post(chat, target, filled)).status == status
        assert await heads(chat.driver) == before


ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "new": ("/v1/responses", {"input": "1"}),
    "new with items": ("/v1/responses", {"input": [*HISTORY, *items("1")]}),
    "conversation with items": ("/v1/responses", {"input": [*HISTORY, *items("1")], "conversation": "CONVERSATION"}),
    "last with items": ("/v1/responses", {"input": [*HISTORY, *items("1")], "previous_response_id": "LAST"}),
    "not last": ("/v1/responses", {"input": "1", "previous_response_id": "FIRST"}),
    "not last with items": ("/v1/responses", {"input": [*HISTORY, *items("1")], "previous_response_id": "FIRST"}),
    "chat": ("/v1/chat/completions", {"model": "Listener", "messages": items("1")}),
    "chat with history": ("/v1/chat/completions", {"model": "Listener", "messages": [*HISTORY, *items("1")]}),
}
"""Requests that are accepted, unless something else is in the way."""


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("key", [None, "k"])
async def test_a_store_that_fails_has_stored_all_of_a_request_or_nothing(case: str, skip: int, key: str | None) -> None:
    """Whichever append fails: a request that got an error has left nothing behind, and can be sent again."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        target, body = placed(ACCEPTED[case], await prepared(chat))
        before, asked = await heads(chat.driver), len(listener.calls)
        store.fail(lambda drafts: {"session.created", "message.created"} & {draft.type for draft in drafts}, skip=skip)
        failed = await post(chat, target, body, key)
        store.mend()
        if failed.status != 200:
            assert failed.status == 500
            assert await heads(chat.driver) == before
        assert (await post(chat, target, body, key)).status == 200
        assert len(listener.calls) == asked + (2 if failed.status == 200 and key is None else 1)


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("form", ["whole", "stream", "background"])
async def test_a_request_that_meets_the_shutdown_is_stored_whole_or_not_at_all(case: str, form: str) -> None:
    """Draining begins while its first append is under way: 503 and nothing stored, or its message is in the log."""
    store, listener = HeldStore(), Listener()
    async with chatting(None, listener, store=store) as chat:
        target, body = placed(ACCEPTED[case], await prepared(chat))
        if "messages" not in body:
            body |= FORMS[form]
        elif form == "stream":
            body["stream"] = True
        before = await heads(chat.driver)
        hold = store.hold(anything)
        asking = asyncio.create_task(post(chat, target, body))
        await hold.reached()
        stopping = asyncio.create_task(chat.app.runner.stop(20.0))
        await quiet()
        hold.let_go()
        async with asyncio.timeout(30):
            await stopping
            chat.app.streams.drain()  # as the application's own stop does when its runs have ended
            answer = await asking

        after = await heads(chat.driver)
        if answer.status == 503 and "x-should-retry" not in answer.headers:
            assert after == before
        else:
            [session] = [session for session, head in after.items() if head != before.get(session)]
            logged = await canonical(chat.driver, session)
            asked = [event["data"]["text"] for event in logged if event["type"] == "message.created" and event["run"]]
            assert asked[-1] == "1"
