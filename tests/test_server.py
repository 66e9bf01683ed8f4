"""The server in this process: every operation of the Mix dialect, and the rules of its streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from driving import Chat, Gate, chatting, data, decoded, echo, ends, logged, named, reason
from legato.agent import Turn
from legato.bounds import Limits
from legato.caller import Caller
from legato.errors import AgentError, InvalidInput, StoreBusy, StoreFull
from legato.part import Usage
from legato.server.app import Legato
from legato.sse import HEARTBEAT, SSEMessage
from legato.store.memory import MemoryStore
from legato.testing import Driver
from legato.yields import Text, Thinking, ToolCall, ToolResult

OLD = {"user-agent": "speakeasy-sdk/python 0.6.4 2.730.0 1.0.0 mix-python-sdk"}
LOST = (404, "not_found", "session_not_found")


async def thorough(turn: Turn) -> AsyncIterator[Any]:
    """Thinks, calls a tool, answers."""
    yield Thinking("Hm")
    yield ToolCall("c", "Bash", "{}")
    yield ToolResult("c", output={"files": 1})
    yield Text("Done.")
    yield Usage(input_tokens=3, output_tokens=4, cost=0.5, model="m")


async def asking(turn: Turn) -> AsyncIterator[str]:
    """Asks for whatever the message names."""
    if turn.message.text == "permission":
        yield str(await turn.ask_permission("Bash", "Lists."))
    else:
        answer = await turn.notify("T", "M", kind="question", response="choice", choices=["a", "b"], wait=True)
        yield str(answer.value if answer else None)


async def failing(turn: Turn) -> AsyncIterator[str]:
    """Fails with a reason that users may see."""
    yield "I"
    raise AgentError("No.", code="no")


# Sessions -------------------------------------------------------------------------------------------------------------


async def test_a_session_is_created_with_what_the_clients_demand() -> None:
    """201, its place, and every field that strict clients require."""
    async with chatting() as chat:
        created = await chat.driver.request("POST", "/api/sessions", json={"title": "T", "promptMode": "default"})
        body = created.json()
        assert created.status == 201
        assert created.headers["location"] == f"/api/sessions/{body['id']}"
        assert (await chat.driver.request("GET", f"/api/sessions/{body['id']}")).json() == body
        assert {name: body[name] for name in ("title", "userMessageCount", "cost", "sessionType", "running")} == {
            "title": "T", "userMessageCount": 0, "cost": 0.0, "sessionType": "main", "running": False,
        }  # fmt: skip
        assert body["createdAt"].endswith("Z")
        assert None not in body.values()


async def test_an_own_id_can_be_used_once() -> None:
    """Also not after the session was deleted."""
    async with chatting() as chat:
        create = {"id": "my.own-id_1"}
        assert (await chat.driver.request("POST", "/api/sessions", json=create)).json()["id"] == "my.own-id_1"
        again = await chat.driver.request("POST", "/api/sessions", json=create)
        assert (await chat.driver.request("DELETE", "/api/sessions/my.own-id_1")).status == 204
        after = await chat.driver.request("POST", "/api/sessions", json=create)
        assert [reason(again)[2], reason(after)[2]] == ["session_exists", "session_exists"]


async def test_a_session_counts_what_was_said() -> None:
    """Messages, tool calls, tokens and cost, from the log."""
    async with chatting(None, thorough) as chat:
        await chat.said("first")
        body = (await chat.get()).json()
        counted = ("userMessageCount", "assistantMessageCount", "toolCallCount", "promptTokens", "completionTokens")
        assert [body[name] for name in counted] == [1, 1, 1, 3, 4]
        assert (body["cost"], body["firstUserMessage"]) == (0.5, "first")


async def test_sessions_are_listed_by_what_was_last_said() -> None:
    """Newest first, in pages that begin before a time."""
    async with chatting() as chat:
        other = (await chat.driver.request("POST", "/api/sessions", json={})).json()["id"]
        await chat.said()
        listed = (await chat.driver.request("GET", "/api/sessions")).json()
        assert [session["id"] for session in listed] == [chat.session, other]
        assert len((await chat.driver.request("GET", "/api/sessions?limit=1")).json()) == 1
        before = (await chat.driver.request("GET", f"/api/sessions?before={listed[0]['createdAt']}")).json()
        assert chat.session not in [session["id"] for session in before]


async def test_pages_of_sessions_lose_none_and_show_none_twice() -> None:
    """Each begins before the last session's ``updatedAt``, also when all were written to in the same millisecond."""
    async with chatting(None, store=MemoryStore(clock=lambda: 1_767_225_600.1234567)) as chat:
        ids = [(await chat.driver.request("POST", "/api/sessions", json={})).json()["id"] for _ in range(6)]
        seen: list[str] = []
        query = "limit=2"
        while page := (await chat.driver.request("GET", f"/api/sessions?{query}")).json():
            seen += [session["id"] for session in page]
            query = f"limit=2&before={page[-1]['updatedAt']}"
        assert seen == [*reversed(ids), chat.session]


async def test_a_session_says_whether_it_is_running() -> None:
    """True from the send to the end of the answer."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        run = (await chat.send()).json()["runId"]
        assert (await chat.get()).json()["running"]
        gate.close()
        await chat.follow("0", until=ends(run))
        assert not (await chat.get()).json()["running"]


async def test_a_deleted_session_is_gone_and_its_streams_end() -> None:
    """204, then 404 everywhere; an open stream ends with the news."""
    async with chatting() as chat:
        await chat.said()
        async with asyncio.timeout(30), chat.stream("from=start") as stream:
            reading = asyncio.create_task(collect(stream))
            assert (await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")).status == 204
            seen = await reading
            assert not stream.cut
        assert seen[-1].event == "session_deleted"
        assert reason(await chat.get()) == LOST
        assert reason(await chat.send()) == LOST
        assert reason(await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")) == LOST
        assert reason(await chat.driver.request("GET", f"/stream?sessionId={chat.session}")) == LOST


async def collect(stream: Any) -> list[SSEMessage]:
    return [message async for message in stream.messages()]


async def test_deleting_ends_what_runs() -> None:
    """The agent is told to stop, and the stream ends with the deletion."""
    stopped = asyncio.Event()

    async def endless(turn: Turn) -> AsyncIterator[str]:
        try:
            yield "on"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with chatting(None, endless) as chat:
        await chat.send()
        await chat.follow("0", until=named("content"))
        assert (await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")).status == 204
        async with asyncio.timeout(30):
            await stopped.wait()


async def test_a_rewound_session_forgets_what_follows() -> None:
    """Its messages end at the one named; a message that it does not have is 404."""
    async with chatting() as chat:
        first, _ = await chat.said("one"), await chat.said("two")
        answer = await chat.post("/rewind", {"messageId": first.json()["messageId"], "cleanupMedia": True})
        assert (answer.status, answer.json()["userMessageCount"]) == (200, 1)
        assert [message["userInput"] for message in (await chat.get("/messages")).json()] == ["one"]
        assert reason(await chat.post("/rewind", {"messageId": "nope"}))[0] == 404


async def test_a_session_is_not_rewound_while_it_answers() -> None:
    """409; the answer goes on."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        sent = (await chat.send()).json()
        assert reason(await chat.post("/rewind", {"messageId": sent["messageId"]})) == (409, "bad_request", "conflict")
        gate.close()
        await chat.follow(sent["cursor"], until=named("complete"))


async def test_a_fork_begins_with_a_copy() -> None:
    """Up to and with the message asked for; it then goes on by itself."""
    async with chatting(None, thorough) as chat:
        await chat.said("one")
        await chat.said("two")
        forked = await chat.post("/fork", {"messageIndex": 1, "title": "Copy"})
        assert (forked.status, forked.json()["parentSessionId"]) == (201, chat.session)
        copy = Chat(chat.app, chat.driver, forked.json()["id"])
        original = (await chat.get("/messages")).json()[:2]
        copied = (await copy.get("/messages")).json()
        for name in ("role", "userInput", "toolCalls", "reasoning"):
            assert [message.get(name) for message in original] == [message.get(name) for message in copied]
        await copy.said("three")
        assert len((await copy.get("/messages")).json()) == 4
        assert len((await chat.get("/messages")).json()) == 4


async def test_an_export_is_a_file_with_all_messages() -> None:
    """Each with the fields that the clients require."""
    async with chatting(None, thorough) as chat:
        await chat.said("one")
        exported = await chat.get("/export")
        assert exported.headers["content-disposition"] == f'attachment; filename="{chat.session}.json"'
        messages = exported.json()["messages"]
        assert [(message["role"], message["content"]) for message in messages] == [
            ("user", "one"),
            ("assistant", "Done."),
        ]
        assert all(message["createdAt"] == message["updatedAt"] for message in messages)
        assert messages[1]["toolCalls"][0]["result"] == '{"files":1}'


async def test_the_log_is_read_in_pages() -> None:
    """Each page says where the next begins; the last one, that it is the last."""
    async with chatting(None, thorough) as chat:
        await chat.said()
        whole = (await chat.get("/events")).json()
        assert whole["next"] is None
        assert [event["offset"] for event in whole["events"]] == list(range(1, whole["head"] + 1))
        events, after = [], 0
        while after is not None:
            page = (await chat.get(f"/events?after={after}&limit=2")).json()
            events += page["events"]
            after = page["next"]
        assert whole["events"] == events


async def test_messages_have_the_fields_of_both_roles() -> None:
    """The text is in userInput whatever the role; an answer has its tool calls, reasoning and tokens."""
    async with chatting(None, thorough) as chat:
        await chat.said("one")
        question, answer = (await chat.get("/messages")).json()
        assert (question["role"], question["userInput"]) == ("user", "one")
        assert (answer["userInput"], answer["assistantResponse"], answer["reasoning"]) == ("Done.", "Done.", "Hm")
        assert answer["toolCalls"] == [
            {"id": "c", "name": "Bash", "input": "{}", "type": "function", "finished": True, "result": '{"files":1}',
             "isError": False}
        ]  # fmt: skip
        assert (answer["inputTokens"], answer["outputTokens"], answer["model"]) == (3, 4, "m")


async def test_history_is_the_messages_of_all_sessions() -> None:
    """Newest first, in pages."""
    async with chatting() as chat:
        other = (await chat.driver.request("POST", "/api/sessions", json={})).json()["id"]
        await chat.said("one")
        await Chat(chat.app, chat.driver, other).said("two")
        await chat.said("three")
        newest = (await chat.driver.request("GET", "/api/messages/history")).json()
        assert [m["userInput"] for m in newest if m["role"] == "user"] == ["three", "two", "one"]
        assert [m["userInput"] for m in newest if m["role"] == "assistant"] == [
            "You said: three", "You said: two", "You said: one",
        ]  # fmt: skip
        pages = [
            (await chat.driver.request("GET", f"/api/messages/history?limit=2&offset={n}")).json() for n in (0, 2, 4, 6)
        ]
        assert newest == [message for page in pages for message in page]


# Sending --------------------------------------------------------------------------------------------------------------


async def test_a_message_is_taken_at_once() -> None:
    """202 with the ids, and the cursor from which the stream has the turn from its start."""
    async with chatting() as chat:
        answer = await chat.send("hello")
        body = answer.json()
        assert (answer.status, body["status"], body["sessionId"]) == (202, "processing", chat.session)
        seen = await chat.follow(body["cursor"], until=ends(body["runId"]))
        assert [message.event for message in seen[:2]] == ["connected", "user_message_created"]
        assert data(seen[1])["messageId"] == body["messageId"]
        assert data(seen[-1])["content"] == "You said: hello"


async def test_a_message_by_the_stream_route_is_broadcast() -> None:
    """200 with the one word that its clients take."""
    async with chatting() as chat:
        answer = await chat.driver.request("POST", f"/stream/{chat.session}/message", json={"content": "hello"})
        assert (answer.status, answer.json()["status"]) == (200, "broadcasted")
        seen = await chat.follow(answer.json()["cursor"], until=named("complete"))
        assert data(seen[-1])["content"] == "You said: hello"


@pytest.mark.parametrize(
    ("content", "text", "metadata"),
    [
        ("plain", "plain", {}),
        ('{"text": "in JSON", "plan_mode": true}', "in JSON", {"plan_mode": True}),
        (' {"text": "a"}', "a", {}),
        ('{"text": 1}', '{"text": 1}', {}),
        ('{"no": "text"}', '{"no": "text"}', {}),
        ('{"half', '{"half', {}),
        ('["text"]', '["text"]', {}),
        ("!ls", "!ls", {}),
    ],
)
async def test_stream_content_is_plain_or_json_text(content: str, text: str, metadata: dict[str, Any]) -> None:
    """What is no JSON object with a text is the text itself."""
    turns: list[Turn] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        turns.append(turn)
        yield "ok"

    async with chatting(None, agent) as chat:
        answer = await chat.driver.request("POST", f"/stream/{chat.session}/message", json={"content": content})
        await chat.follow(answer.json()["cursor"], until=named("complete"))
    assert (turns[0].message.text, turns[0].message.metadata) == (text, metadata)


async def test_unknown_fields_of_a_message_reach_the_agent() -> None:
    """As metadata; newer clients are not refused for what they add."""
    turns: list[Turn] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        turns.append(turn)
        yield "ok"

    async with chatting(None, agent) as chat:
        await chat.said("a", plan_mode=False, thinking_level="medium")
    assert turns[0].message.metadata == {"plan_mode": False, "thinking_level": "medium"}


async def test_the_same_key_attaches_to_the_same_run() -> None:
    """On both routes; another message under it is refused; no key, another run."""
    key = {"idempotency-key": "k-1"}
    async with chatting() as chat:
        first, again = await chat.send("a", headers=key), await chat.send("a", headers=key)
        assert first.json() == again.json()
        assert ("legato-repeated" in first.headers, again.headers.get("legato-repeated")) == (False, "true")
        assert reason(await chat.send("b", headers=key)) == (409, "bad_request", "idempotency_key_reused")
        target = f"/stream/{chat.session}/message"
        other = await chat.driver.request("POST", target, json={"content": "a"}, headers=key)
        assert other.json()["runId"] == first.json()["runId"]
        assert (await chat.send("a")).json()["runId"] != first.json()["runId"]
        await chat.said()
        assert (
            len([event for event in (await chat.get("/events")).json()["events"] if event["type"] == "run.started"])
            == 3
        )


async def test_many_equal_sends_at_once_are_one_run() -> None:
    """Whoever comes first stores it; all get the same answer."""
    async with chatting() as chat:
        key = {"idempotency-key": "k"}
        answers = await asyncio.gather(*(chat.send("a", headers=key) for _ in range(20)))
        assert len({answer.body for answer in answers}) == 1
        assert sorted("legato-repeated" in answer.headers for answer in answers) == [False] + [True] * 19


async def test_an_old_client_is_answered_when_the_turn_is_over() -> None:
    """200 with the whole message, by its User-Agent or by the query."""
    async with chatting() as chat:
        answer = await chat.send("hello", headers=OLD)
        assert (answer.status, answer.json()["assistantResponse"]) == (200, "You said: hello")
        target = f"/api/sessions/{chat.session}/messages?client=typescript-0.7.3"
        answer = await chat.driver.request("POST", target, json={"text": "again"})
        assert (answer.status, answer.json()["role"]) == (200, "assistant")


async def test_an_old_client_is_answered_also_when_the_agent_fails() -> None:
    """With what came; the status tells."""
    async with chatting(None, failing) as chat:
        answer = await chat.send("hello", headers=OLD)
        assert (answer.status, answer.json()["assistantResponse"], answer.json()["status"]) == (200, "I", "failed")


async def test_messages_wait_for_their_turn() -> None:
    """One run after the other in a session, in the order of their messages."""
    async with chatting() as chat:
        runs = [(await chat.send(text)).json()["runId"] for text in ("one", "two", "three")]
        seen = await chat.follow("0", until=ends(runs[-1]))
        order = [data(message)["runId"] for message in seen if message.event in ("run_started", "complete")]
        assert order == [run for run in runs for _ in range(2)]


async def test_a_full_queue_is_refused() -> None:
    """409 with its limit; a repeated send still attaches to its run."""
    gate = Gate()
    async with chatting(None, gate, limits=Limits(queued_messages=1)) as chat:
        first = await chat.send("0", headers={"idempotency-key": "k"})
        await chat.send("1")
        assert reason(await chat.send("2")) == (409, "bad_request", "queue_full")
        assert (await chat.send("0", headers={"idempotency-key": "k"})).json() == first.json()


async def test_the_agent_is_the_messages_or_the_sessions_or_the_first() -> None:
    """In that order."""

    async def other(turn: Turn) -> AsyncIterator[str]:
        yield "other"

    async def answer_of(chat: Chat, **fields: Any) -> str:
        sent = await chat.said(**fields)
        events = (await chat.get("/events")).json()["events"]
        started = [event for event in events if event["run"] == sent.json()["runId"] and event["type"] == "run.started"]
        return str(started[0]["data"]["agent"])

    async with chatting(None, echo, other) as chat:
        created = await chat.driver.request("POST", "/api/sessions", json={"agent": "other"})
        theirs = Chat(chat.app, chat.driver, created.json()["id"])
        assert created.json()["agent"] == "other"
        assert [await answer_of(chat), await answer_of(chat, agent="other")] == ["echo", "other"]
        assert [await answer_of(theirs), await answer_of(theirs, agent="echo")] == ["other", "echo"]


# Cancelling and answering ---------------------------------------------------------------------------------------------


async def test_a_cancel_stops_what_runs_and_what_waits() -> None:
    """Each ends once, as cancelled; when nothing runs there is nothing to cancel."""
    gate = Gate()
    gate.let("on")
    async with chatting(None, gate) as chat:
        runs = [(await chat.send()).json()["runId"] for _ in range(2)]
        await chat.follow("0", until=named("content"))
        assert (await chat.post("/cancel")).json() == {"cancelled": True}
        seen = await chat.follow("0", until=ends(runs[0]))  # what waits ends before it
        done = [data(message) for message in seen if message.event == "complete"]
        ended = {end["runId"]: (end["finishReason"], end["content"]) for end in done}
        assert ended == {runs[0]: ("cancelled", "on"), runs[1]: ("cancelled", "")}
        assert (await chat.post("/cancel")).json() == {"cancelled": False}


async def test_one_run_can_be_cancelled() -> None:
    """The one that is named; what waits behind it goes on. One that is not open is not cancelled."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        runs = [(await chat.send()).json()["runId"] for _ in range(2)]
        await chat.follow("0", until=named("run_started"))
        assert (await chat.post("/cancel", {"runId": "nope"})).json() == {"cancelled": False}
        assert (await chat.post("/cancel", {"runId": runs[0]})).json() == {"cancelled": True}
        await chat.follow("0", until=ends(runs[0]))
        gate.close()
        seen = await chat.follow("0", until=ends(runs[1]))
        done = [data(message)["finishReason"] for message in seen if message.event == "complete"]
        assert done == ["cancelled", "stop"]


@pytest.mark.parametrize(
    ("first", "second", "said", "later"),
    [("grant", "deny", "True", {"denied": False}), ("deny", "grant", "False", {"granted": False})],
)
async def test_the_first_answer_to_a_permission_wins(
    first: str, second: str, said: str, later: dict[str, bool]
) -> None:
    """The same answer again is the same; another one is told what holds."""
    async with chatting(None, asking) as chat:
        sent = (await chat.send("permission")).json()
        asked = data((await chat.follow(sent["cursor"], until=named("permission")))[-1])["id"]
        word = {"grant": "granted", "deny": "denied"}[first]
        for _ in range(2):
            answer = await chat.driver.request("POST", f"/api/permissions/{asked}/{first}")
            assert (answer.status, answer.json()) == (200, {word: True})
        assert (await chat.driver.request("POST", f"/api/permissions/{asked}/{second}")).json() == later
        seen = await chat.follow(sent["cursor"], until=named("complete"))
        assert data(seen[-1])["content"] == said


async def test_a_notification_is_answered_once() -> None:
    """204; then 404. An answer of another kind, or none of the choices, is refused and changes nothing."""
    async with chatting(None, asking) as chat:
        sent = (await chat.send("notification")).json()
        asked = data((await chat.follow(sent["cursor"], until=named("notification")))[-1])["id"]

        async def answer(**body: str) -> int:
            return (await chat.driver.request("POST", f"/api/notifications/{asked}/respond", json=body)).status

        assert [await answer(type="acknowledge"), await answer(type="choice", value="c")] == [400, 400]
        assert [await answer(type="choice", value="b"), await answer(type="choice", value="b")] == [204, 404]
        seen = await chat.follow(sent["cursor"], until=named("complete"))
        assert data(seen[-1])["content"] == "b"


# Streams --------------------------------------------------------------------------------------------------------------


async def test_a_stream_says_at_once_that_it_is_there() -> None:
    """Head and first frame go out before anything happens, with everything that proxies need."""
    async with chatting() as chat, asyncio.timeout(30), chat.stream() as stream:
        [first] = decoded(await stream.read())
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert stream.headers["cache-control"] == "no-cache, no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["legato-cursor"] == "exact"
        assert {"connection", "content-length", "transfer-encoding", "content-encoding"}.isdisjoint(stream.headers)
        assert (first.event, first.id, data(first)) == (
            "connected",
            "1",
            {"sessionId": chat.session, "cursor": "exact"},
        )
        assert first.retry is not None
        assert 1000 <= first.retry <= 3000


async def test_each_reader_is_told_another_delay() -> None:
    """So that they do not all come back at once."""
    async with chatting() as chat:
        delays = {(await chat.follow(until=named("connected")))[0].retry for _ in range(20)}
    assert len(delays) > 1


async def test_silence_is_broken_by_heartbeats_with_the_readers_own_cursor() -> None:
    """They move nobody forward, also when the log went on with something that has no frame for this reader."""
    async with chatting(heartbeat=0.01) as chat:
        seen = await chat.follow(until=named("heartbeat"))
        assert [(message.event, message.id) for message in seen] == [("connected", "1"), ("heartbeat", "1")]
        assert seen[-1].data == '{"type":"ping"}'
        sent = (await chat.said()).json()
        seen = await chat.follow(sent["cursor"], "client=python-0.8.1", until=named("heartbeat"))
        assert seen[-2].event == "complete"
        assert seen[-1].id == seen[-2].id


async def test_a_fresh_stream_does_not_replay_finished_turns() -> None:
    """Its first `complete` is the one that its reader waits for."""
    async with chatting() as chat:
        await chat.said("old")
        async with asyncio.timeout(30), chat.stream() as stream:
            await stream.read()
            run = (await chat.send("new")).json()["runId"]
            async for message in stream.messages():
                if message.event == "complete":
                    break
        assert data(message)["runId"] == run


async def test_a_fresh_stream_has_the_running_turn_from_its_start() -> None:
    """Whoever sends first and then opens loses nothing."""
    gate = Gate()
    gate.let("a", "b")
    async with chatting(None, gate) as chat:
        sent = (await chat.send()).json()
        await chat.follow(
            "0", until=lambda message: message.event == "content" and data(message)["content"].endswith("b")
        )
        fresh = asyncio.create_task(chat.follow(until=ends(sent["runId"])))
        exact = asyncio.create_task(chat.follow(sent["cursor"], until=ends(sent["runId"])))
        while len(chat.app.streams) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        gate.close()
        assert logged(await exact) == logged(await fresh)


async def test_a_fresh_stream_begins_at_the_turn_that_runs_and_not_at_one_that_waits() -> None:
    """The first of the open ones, from its message on; `from` says otherwise."""
    gate = Gate()
    gate.let("a")
    async with chatting(None, gate) as chat:
        sent = [(await chat.send(text)).json() for text in ("one", "two")]
        await chat.follow("0", until=named("content"))
        seen = await chat.follow(until=named("content"))
        assert (seen[0].id, data(seen[1])["runId"]) == (sent[0]["cursor"], sent[0]["runId"])
        head = (await chat.get("/events")).json()["head"]
        for query, cursor in (("from=start", "0"), ("from=tail", str(head)), ("from=2", "2")):
            assert (await chat.follow(None, query, until=named("connected")))[0].id == cursor


def run_of(message: SSEMessage) -> str:
    said = data(message)
    return str(said.get("runId") or said["assistantMessageId"].rpartition("~")[0])


@pytest.mark.parametrize("case", ["running", "a queued one was cancelled meanwhile", "waits for a place", "reset"])
async def test_a_fresh_stream_has_nothing_of_the_answer_before(case: str) -> None:
    """Also where the message was sent while that was given: its own words first, then all of its answer; and the id of
    those words leads on from there."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        one, two, three = [(await chat.send(text)).json() for text in ("one", "two", "three")]
        runner = chat.app.life.runner
        gate.let("first")
        await chat.follow(one["cursor"], until=named("content"))
        if case == "waits for a place":
            runner.limits = Limits(concurrent_runs=0)
        gate.close()
        await chat.follow(one["cursor"], until=ends(one["runId"]))
        if case != "waits for a place":
            gate.let("second")
            await chat.follow("0", until=lambda m: m.event == "content" and run_of(m) == two["runId"])
        if case == "a queued one was cancelled meanwhile":
            assert (await chat.post("/cancel", {"runId": three["runId"]})).json() == {"cancelled": True}
        last = "999999" if case == "reset" else None
        first = await chat.follow(last, until=named("user_message_created"))
        assert [message.event for message in first] == ["connected", "user_message_created"]
        assert (run_of(first[1]), first[1].id) == (two["runId"], first[0].id)
        runner.limits = Limits()
        runner.wake(chat.session)
        gate.let("more")
        gate.close()
        whole = logged(await chat.follow(first[1].id, until=ends(two["runId"])))
        assert {run_of(message) for message in whole} <= {two["runId"], three["runId"]}
        assert "".join(data(m)["content"] for m in whole if m.event == "content") == data(whole[-1])["content"]
        gate.close()


async def test_a_cursor_is_continued_exactly() -> None:
    """Every id of the stream gives what follows it, and nothing else."""
    async with chatting(None, thorough) as chat:
        await chat.said()
        run = (await chat.said()).json()["runId"]
        whole = logged(await chat.follow("0", until=ends(run)))
        for place, message in enumerate(whole[:-1], start=1):
            rest = await chat.follow(message.id, until=ends(run))
            assert rest[0].id == message.id
            assert rest[1:] == whole[place:]


async def test_a_cursor_beyond_the_end_is_reset() -> None:
    """In the head and in the stream: the reader then gets what a fresh one gets, not silence."""
    async with chatting() as chat, asyncio.timeout(30):
        await chat.said()
        head = (await chat.get("/events")).json()["head"]
        async with chat.stream(last=str(head + 1)) as stream:
            [first] = decoded(await stream.read())
            assert stream.headers["legato-cursor"] == "reset"
            assert first.id == str(head)
            assert data(first) == {"sessionId": chat.session, "cursor": "reset", "earliest": 1, "latest": head}
        async with chat.stream(last=str(head)) as stream:
            assert stream.headers["legato-cursor"] == "exact"


async def test_a_stream_shows_nothing_of_another_session() -> None:
    """Every cursor of the one, offered to the other: not a byte."""
    async with chatting() as chat:
        other = Chat(chat.app, chat.driver, (await chat.driver.request("POST", "/api/sessions", json={})).json()["id"])
        sent = (await chat.said("secret")).json()
        run = (await other.said("mine")).json()["runId"]
        for cursor in range(int(sent["cursor"]) + 5):
            async with asyncio.timeout(30), other.stream("from=start", last=str(cursor)) as stream:
                async for message in stream.messages():
                    if message.id >= "5" or message.event == "complete":
                        break
                assert b"secret" not in stream.body
                assert chat.session.encode() not in stream.body
        assert run


async def test_readers_see_identical_bytes() -> None:
    """Also one who comes later; but for the delay that each is told."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        early = chat.stream("from=start")
        async with asyncio.timeout(30), early, chat.stream("from=start") as beside:
            await chat.send()
            for word in ("a", "b"):
                gate.let(word)
            gate.close()
            for stream in (early, beside):
                while b"event: complete" not in stream.body:
                    await stream.read()
            async with chat.stream("from=start") as late:
                while b"event: complete" not in late.body:
                    await late.read()
        bodies = {stream.body.partition(b"id: 0\n\n")[2] for stream in (early, beside, late)}
        assert len(bodies) == 1


async def test_a_disconnect_ends_the_stream_and_not_the_run() -> None:
    """The agent speaks on to nobody, and the log has it all."""
    gate = Gate()
    gate.let("a")
    async with chatting(None, gate) as chat:
        run = (await chat.send()).json()["runId"]
        await chat.follow(until=named("content"))
        assert len(chat.app.streams) == 0
        gate.let("b")
        gate.close()
        seen = await chat.follow("0", until=ends(run))
        assert (data(seen[-1])["content"], data(seen[-1])["finishReason"]) == ("ab", "stop")


async def test_a_stalled_reader_stops_nobody() -> None:
    """A reader that takes nothing costs a cursor; others and the agent go on."""
    async with chatting() as chat, asyncio.timeout(30), chat.stream("from=start", buffer=0):  # never read
        await chat.said()
        await chat.said()
        assert len(chat.app.streams) == 1


async def test_streams_are_bounded() -> None:
    """429 with a time to come back, for one session and for all; a reader that leaves makes room."""
    async with chatting(max_streams=3, max_streams_per_session=2) as chat, asyncio.timeout(30):
        other = Chat(chat.app, chat.driver, (await chat.driver.request("POST", "/api/sessions", json={})).json()["id"])
        async with chat.stream():
            async with chat.stream():
                refused = await chat.driver.request("GET", f"/stream?sessionId={chat.session}")
                assert (reason(refused), refused.headers["retry-after"]) == ((429, "bad_request", "too_many"), "5")
                async with other.stream() as allowed:
                    assert allowed.status == 200
                    refused = await chat.driver.request("GET", f"/stream?sessionId={other.session}")
                    assert reason(refused)[0] == 429
            async with chat.stream() as again:
                assert again.status == 200


async def test_head_answers_with_the_head_and_ends() -> None:
    """A probe does not hold a stream open."""
    async with chatting() as chat, asyncio.timeout(30):
        answer = await chat.driver.request("HEAD", f"/stream?sessionId={chat.session}")
        assert (answer.status, answer.headers["legato-cursor"]) == (200, "exact")
        assert len(chat.app.streams) == 0
        assert (await chat.driver.request("HEAD", "/health")).status == 200


# Who may call ---------------------------------------------------------------------------------------------------------


async def preflight(chat: Chat, origin: str, header: str = "Last-Event-ID") -> Any:
    headers = {"origin": origin, "access-control-request-method": "GET", "access-control-request-headers": header}
    return await chat.driver.request("OPTIONS", f"/stream?sessionId={chat.session}", headers=headers)


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:5173", "https://app.example"])
async def test_a_page_that_may_call_may_resume(origin: str) -> None:
    """Its preflight allows Last-Event-ID, and it sees the headers that tell it where it is."""
    async with chatting(cors=["https://app.example"]) as chat, asyncio.timeout(30):
        wanted = "last-event-id, content-type, idempotency-key, authorization, x-stainless-retry-count"
        allowed = await preflight(chat, origin, wanted)
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, origin)
        assert allowed.headers["access-control-allow-headers"].lower() == wanted
        async with chat.stream(headers={"origin": origin}) as stream:
            assert stream.headers["access-control-allow-origin"] == origin
            assert "Legato-Cursor" in stream.headers["access-control-expose-headers"]
            assert "Origin" in stream.headers["vary"]


async def test_one_origin_or_host_may_be_given_as_a_string() -> None:
    """A single name need not be put into a list."""
    async with chatting(cors="https://app.example", hosts="localhost") as chat:
        headers = {"origin": "https://app.example"}
        assert (await chat.driver.request("GET", "/health", headers=headers)).status == 200
        assert (await chat.driver.request("GET", "/health", headers={"host": "c"})).status == 421


@pytest.mark.parametrize(
    "origin", ["https://evil.test", "http://localhost.evil.test", "https://app.example.evil.test", "null"]
)
async def test_a_foreign_page_may_not_call(origin: str) -> None:
    """Neither its preflight nor the request itself is answered with what it wants."""
    async with chatting(cors=["https://app.example"]) as chat:
        refused = await preflight(chat, origin)
        assert refused.status >= 400
        assert "access-control-allow-origin" not in refused.headers
        answer = await chat.driver.request("GET", f"/stream?sessionId={chat.session}", headers={"origin": origin})
        assert reason(answer) == (403, "bad_request", "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers
        sent = await chat.send("hello", headers={"origin": origin})
        assert sent.status == 403
        assert (await chat.get("/messages")).json() == []


async def test_the_servers_own_page_may_call() -> None:
    """Under the name by which it was reached, also behind a proxy that tells it."""
    async with chatting(hosts=["chat.example", "10.0.0.1"]) as chat:
        for headers in (
            {"host": "chat.example", "origin": "https://chat.example"},
            {"host": "10.0.0.1:8088", "origin": "https://chat.example", "x-forwarded-host": "chat.example"},
        ):
            assert (await chat.driver.request("GET", "/api/sessions", headers=headers)).status == 200


async def test_all_origins_may_be_let_in() -> None:
    """By `cors="*"`, as the backend of this dialect has it."""
    async with chatting(cors=["*"]) as chat:
        assert (await preflight(chat, "https://any.test")).status == 200
        answer = await chat.driver.request("GET", "/api/sessions", headers={"origin": "https://any.test"})
        assert answer.status == 200


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:8088", 200), ("LOCALHOST", 200), ("[::1]:80", 200), ("evil.test", 421)]
)
async def test_a_rebound_name_is_not_answered(host: str, status: int) -> None:
    """With a list of hosts, on every route."""
    async with chatting(hosts=["localhost", "[::1]"]) as chat:
        for target in ("/health", "/api/sessions", "/openapi.json", "/"):
            assert (await chat.driver.request("GET", target, headers={"host": host})).status == status


# Health, draining and failures ----------------------------------------------------------------------------------------


async def test_the_server_says_how_it_is() -> None:
    """Alive with its version, and ready."""
    async with chatting() as chat:
        health = (await chat.driver.request("GET", "/health")).json()
        assert health["status"] == "ok"
        assert health["timestamp"].endswith("Z")
        assert (await chat.driver.request("GET", "/ready")).json() == {"status": "ready"}


async def test_what_the_examples_of_mix_call_first_is_answered() -> None:
    """Nothing is kept of a key."""
    async with chatting() as chat:
        key = {"provider": "x", "api_key": "secret"}
        answer = await chat.driver.request("POST", "/api/auth/api-key", json=key)
        assert answer.status == 200
        assert b"secret" not in answer.body
        for target in ("/api/system/info", "/api/commands", "/api/mcp"):
            assert (await chat.driver.request("GET", target)).status == 200


async def test_a_draining_server_takes_no_messages_and_goes_on_answering() -> None:
    """503 with a time to come back; what runs finishes, and its reader sees the end."""
    gate = Gate()
    async with chatting(None, gate) as chat, asyncio.timeout(30):
        sent = (await chat.send()).json()
        async with chat.stream(last=sent["cursor"]) as stream:
            stopping = asyncio.create_task(chat.app.runner.stop(20.0))
            await asyncio.sleep(0)
            ready = await chat.driver.request("GET", "/ready")
            assert (ready.status, "retry-after" in ready.headers, chat.app.runner.draining) == (503, True, True)
            refused = await chat.send("more")
            assert (reason(refused), "retry-after" in refused.headers) == ((503, "internal_error", "draining"), True)
            assert (await chat.get("/messages")).status == 200
            gate.let("all of it")
            gate.close()
            await stopping
            reading = asyncio.create_task(collect(stream))
            await chat.app.streams.close()
            seen = await reading
            assert not stream.cut
        assert (seen[-1].event, data(seen[-1])["content"]) == ("complete", "all of it")


async def test_a_stream_opened_while_draining_ends_after_what_there_is() -> None:
    """Without an error: its reader comes back, to another server."""
    async with chatting() as chat, asyncio.timeout(30):
        run = (await chat.said()).json()["runId"]
        chat.app.streams.drain()
        answer = await chat.driver.request("GET", f"/stream?sessionId={chat.session}&from=start")
        assert ends(run)(decoded(answer.body)[-1])


class Broken(MemoryStore):
    """A store that fails as it is told to."""

    failure: Exception | None = None

    async def append(self, *args: Any, **options: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        return await super().append(*args, **options)

    async def info(self, session: str) -> Any:
        if isinstance(self.failure, RuntimeError):
            raise self.failure
        return await super().info(session)


async def test_a_full_disk_is_said_so() -> None:
    """507 in the usual form; the next message, with room again, is taken."""
    store = Broken()
    async with chatting(None, store=store) as chat:
        store.failure = StoreFull("The disk is full.")
        refused = await chat.send()
        assert (reason(refused), "retry-after" in refused.headers) == ((507, "internal_error", "store_full"), True)
        store.failure = None
        assert (await chat.said()).status == 202


async def test_an_unexpected_failure_tells_its_text_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """500 in the usual form, on every kind of route; the text is for the server's log."""
    store = Broken()
    async with chatting(None, store=store) as chat:
        store.failure = RuntimeError("the password is 1234")
        with caplog.at_level(logging.ERROR):
            driver, answers = chat.driver, f"/api/sdk/chat/{chat.session}/messages/m/query/stream"
            streams = driver.request("GET", f"/stream?sessionId={chat.session}"), driver.request("POST", answers)
            for request in (chat.get(), chat.send(), *streams):
                answer = await request
                assert reason(answer) == (500, "internal_error", "internal")
                assert b"1234" not in answer.body
        store.failure = None


async def test_a_failed_agent_is_an_error_event_and_the_session_goes_on() -> None:
    """What it said is kept; users see its own code and words only if it meant them to."""

    async def crashing(turn: Turn) -> AsyncIterator[str]:
        yield "I"
        raise RuntimeError("the password is 1234")

    async with chatting(None, failing, crashing) as chat:
        for agent, expected in (("failing", ("no", "No.")), ("crashing", ("agent_error", None))):
            sent = (await chat.send(agent=agent)).json()
            [error] = [
                message
                for message in await chat.follow(sent["cursor"], until=ends(sent["runId"]))
                if message.event == "error"
            ]
            assert data(error)["type"] == expected[0]
            assert expected[1] in (None, data(error)["error"])
            assert "1234" not in error.data
        assert [message["userInput"] for message in (await chat.get("/messages")).json()] == ["hello", "I"] * 2


# The application ------------------------------------------------------------------------------------------------------


async def test_an_application_that_was_not_started_says_how() -> None:
    """The one mistake that everybody makes who mounts it."""
    with pytest.raises(InvalidInput, match=r"lifespan=app\.lifespan"):
        await Driver(Legato("memory:", agents=[echo]), lifespan=False).request("GET", "/health")


async def test_an_application_without_agents_does_not_start() -> None:
    """And says what is missing."""
    with pytest.raises(RuntimeError, match=r"@app\.agent"):
        async with Driver(Legato("memory:")):
            pass


def test_two_agents_of_one_name_are_refused() -> None:
    """With the name."""
    with pytest.raises(InvalidInput, match="'echo'"):
        Legato("memory:", agents=[echo, echo])


def test_agents_are_registered_by_decorator() -> None:
    """With and without arguments; the function stays what it was."""
    app = Legato("memory:")
    assert app.agent(echo) is echo
    assert app.agent(name="other", on_crash="retry")(echo) is echo
    assert [(name, agent.on_crash) for name, agent in app.agents.items()] == [("echo", "fail"), ("other", "retry")]


async def test_starting_and_stopping_twice_does_no_harm() -> None:
    """An application is mounted and served in many ways."""
    app = Legato("memory:", agents=[echo])
    app.drain_on_signal = False
    await app.start()
    life = app.life
    await app.start()
    assert app.life is life
    await app.stop()
    await app.stop()
    assert life.over


async def test_a_websocket_is_refused() -> None:
    """As the caller's doing: closed before it is accepted, which servers answer with 403."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Legato("memory:", agents=[echo])({"type": "websocket"}, None, send)  # type: ignore[arg-type]
    assert [{"type": "websocket.close"}] == sent


async def test_whoever_waits_for_the_end_of_a_turn_may_leave() -> None:
    """Nothing is left of the request, and the turn goes on."""
    gate = Gate()
    async with chatting(None, gate) as chat, asyncio.timeout(30):
        target = f"/api/sessions/{chat.session}/messages?client=python-0.5.7"
        waiting = chat.driver.stream(target, method="POST", body=b'{"text": "hello"}')
        asking = asyncio.create_task(waiting.__aenter__())
        while not (runs := (await chat.app.store.info(chat.session)).open_runs):  # noqa: ASYNC110
            await asyncio.sleep(0)
        waiting.disconnect()
        await asking
        await waiting.finished()
        gate.let("still here")
        gate.close()
        assert data((await chat.follow("1", until=ends(runs[0].run)))[-1])["content"] == "still here"


async def test_a_message_that_waits_when_the_server_stops_is_no_5xx() -> None:
    """It is stored; a client that got a 5xx would send it a second time."""
    gate = Gate()
    async with chatting(None, gate) as chat, asyncio.timeout(30):
        await chat.send("first")
        target = f"/api/sessions/{chat.session}/messages?client=python-0.5.7"
        asking = asyncio.create_task(chat.driver.request("POST", target, json={"text": "second"}))
        while len((await chat.app.store.info(chat.session)).open_runs) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        stopping = asyncio.create_task(chat.app.runner.stop(20.0))
        gate.close()
        await stopping
        assert reason(await asking) == (409, "bad_request", "conflict")


# A browser's EventSource ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "accept", "method", "comes_back"),
    [
        ("/stream?sessionId={s}", "text/event-stream", "GET", True),
        ("/stream?sessionId={s}&client=legato&from=start", "text/event-stream", "GET", True),
        ("/stream?sessionId={s}", "*/*", "GET", False),
        ("/stream?sessionId={s}", "text/event-stream, */*", "GET", False),
        ("/stream?sessionId={s}", "application/json", "GET", False),
        ("/stream?sessionId={s}", "text/event-stream", "HEAD", False),
        ("/api/sessions", "text/event-stream", "GET", False),
        ("/v1/responses/r?stream=true", "text/event-stream", "GET", False),
        ("/v1/responses", "text/event-stream", "POST", False),
        ("/stream/{s}/message", "text/event-stream", "POST", False),
    ],
)
@pytest.mark.parametrize("trouble", ["stopped", "busy"])
async def test_an_eventsource_is_not_told_what_it_would_give_up_at(
    target: str, accept: str, method: str, comes_back: bool, trouble: str
) -> None:
    """It gives up for good at any status but 200. All others hear what is the matter, and when to come back."""
    troubled = False

    def identify(scope: Any) -> Caller:
        if troubled:
            raise StoreBusy("Another program has the file.")
        return Caller("")

    async with chatting(identify=identify) as chat:
        target = target.replace("{s}", chat.session)
        if trouble == "stopped":
            await chat.app.stop()
        troubled = True
        body = b'{"input": "a", "content": "a"}' if method == "POST" else b""
        answer = await chat.driver.request(method, target, headers={"accept": accept}, body=body)
        if comes_back:
            assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert answer.body == HEARTBEAT  # and no retry, which some SDKs would take for an event
        else:
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
