"""The Deva dialect: the fold from a run's events to the frames of an answer, its messages, and its routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest

from driving import Chat, Gate, chatting, decoded, reason
from facts import draft, stored
from legato.agent import Turn
from legato.dialect import deva, deva_api
from legato.dialect.deva import AnswerEncoder, parse_cursor
from legato.errors import AgentError, CursorInvalid
from legato.event import EVENTS, Event
from legato.history import history
from legato.part import Usage
from legato.recorder import Recorder
from legato.server.app import Legato
from legato.sse import SSEMessage
from legato.testing import ASGIResponse, ASGIStream, check_dialect
from legato.yields import Finish, Text, Thinking, ToolCall, ToolResult
from live_server import serving

SESSION, RUN = "s_1", "s_1~0a"
NO_MESSAGE = (404, "not_found", "not_found")
ENDINGS: dict[str, dict[str, Any]] = {
    "run.completed": {"finish_reason": "stop"},
    "run.failed": {"code": "no", "message": "No."},
    "run.cancelled": {},
}


def recorded(*items: Any, end: str = "run.completed", **fields: Any) -> list[Event]:
    """The log of a run whose agent yields ``items`` (``"restart"``: its process dies); ``fields`` are of its end."""
    recorder = Recorder(RUN)
    asked = {"id": f"{RUN}~u", "role": "user", "text": "hi", "agent": "b"}
    drafts = [draft("message.created", asked, RUN), draft("run.started", {"agent": "a", "attempt": 1}, RUN)]
    for item in items:
        if item == "restart":
            drafts.append(draft("run.started", {"agent": "a", "attempt": 2}, RUN))
            recorder = Recorder(RUN, earlier=recorder.transcript)
        else:
            drafts += recorder.record(item)
    whole = {"message" if end == "run.completed" else "partial": recorder.transcript.message(RUN)}
    drafts.append(draft(end, {**ENDINGS[end], **whole, **fields}, RUN))
    return [Event(d.fact, place, 1000.5 + place, d.run) for place, d in enumerate(drafts, 1)]


THOROUGH = (
    Thinking("Hm"),
    "Look: ",
    ToolCall("a", "Read", "{}"),
    ToolResult("a", output="é"),
    Thinking("So"),
    "Do",
    Thinking("?"),
    "ne\r\n\r\ndata: x\u2028\x00🎵",
)
LOGS = {
    "text": recorded("a", "b"),
    "thorough": recorded(*THOROUGH),
    "failed": recorded("a", end="run.failed"),
    "cancelled": recorded("a", end="run.cancelled"),
    "restarted": recorded("a", "restart", "b"),
    "tools first": recorded(ToolCall("a", "Read", "{}"), ToolResult("a"), "b"),
    "nothing": recorded(),
    "deleted": [*recorded("a")[:-1], stored("session.deleted", {}, 5, 1005.0)],
}


def told(events: Sequence[Event], **options: Any) -> list[SSEMessage]:
    encoder = AnswerEncoder(SESSION, RUN, **options)
    return decoded(b"".join(encoder.encode(event) for event in events))


def text(messages: Sequence[SSEMessage]) -> str:
    return "".join(json.loads(message.data) for message in messages if message.event == "content")


def last(messages: Sequence[SSEMessage]) -> Any:
    return json.loads(messages[-1].data)


# The fold -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_the_rules_of_frames_are_kept(log: list[Event]) -> None:
    """For all kinds of events: pure, LF only, one line of data, the id last and never twice."""
    others = [stored(type, {}, 100 + place, 0.0, "other") for place, type in enumerate(EVENTS)]
    check_dialect(lambda: AnswerEncoder(SESSION, RUN).encode, [*others[:-1], *log, *others[:-1]])


SAID = {
    "text": "ab",
    "restarted": "a\n\nb",
    "tools first": "b",
    "thorough": "Look: \n\nDone\r\n\r\ndata: x\u2028\x00🎵",
    "nothing": "",
}


@pytest.mark.parametrize(("log", "said"), SAID.items(), ids=SAID)
def test_the_pieces_are_the_whole(log: str, said: str) -> None:
    """The text of all steps, without thinking and tools, is what the last frame repeats."""
    messages = told(LOGS[log])
    assert [message.event for message in messages][-2:] == ["completion", "response_message"]
    assert (text(messages), last(messages)["text"]) == (said, said)


def test_a_refusal_is_what_the_answer_says() -> None:
    """Among text of the same step, in order."""
    asked, started, end = recorded()
    about = {"part": 0, "step": 1, "start": 0}
    said = stored("text.delta", {**about, "text": "I "}, 3, 0.0, RUN)
    refused = stored("refusal.delta", {**about, "part": 1, "text": "will not."}, 4, 0.0, RUN)
    parts = [{"type": "text", "step": 1, "text": "I "}, {"type": "refusal", "step": 1, "text": "will not."}]
    whole = {**end.data, "message": {**end.data["message"], "parts": parts}}
    messages = told([asked, started, said, refused, stored(end.type, whole, 5, 0.0, RUN)])
    assert text(messages) == last(messages)["text"] == "I will not."


def test_a_delta_that_comes_twice_is_told_once() -> None:
    """It names its place."""
    log = recorded("ab", "cd")
    again = [*log[:4], log[2], log[3], *log[4:]]
    assert text(told(again)) == "abcd"


def test_the_last_message_has_every_field_of_all_of_deva_pages() -> None:
    """The seed's, with its number for a time, and those of the type's own page."""
    asked = {
        "id": f"{RUN}~u", "text": "hi", "persona_id": "user", "thread_id": SESSION, "created_at": 1001,
        "author_type": "USER", "in_reply_to": None,
        "persona": {"id": "user", "username": "user", "display_name": "User", "avatar": None},
    }  # fmt: skip
    messages = told(recorded("a", Usage(input_tokens=3), Finish("length"), finish_reason="length", usage={"x": 1}))
    assert json.loads(messages[-2].data) == {"finish_reason": "length", "usage": {"x": 1}}
    assert last(messages) == {
        "id": f"{RUN}~a1", "text": "a", "persona_id": "a", "thread_id": SESSION, "created_at": 1004,
        "author_type": "BOT", "in_reply_to": asked, "status": "completed",
        "persona": {"id": "a", "username": "a", "display_name": "a", "avatar": None},
    }  # fmt: skip
    iso = last(told(LOGS["text"], iso=True))
    assert (iso["created_at"], iso["in_reply_to"]["created_at"]) == (
        "1970-01-01T00:16:45.500Z",
        "1970-01-01T00:16:41.500Z",
    )


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (LOGS["failed"], ("no", "No.", True)),
        (LOGS["cancelled"], ("cancelled", "The answer was stopped.", True)),
        (LOGS["deleted"], ("session_not_found", "The thread has been deleted.", False)),
        (recorded("a", end="run.failed", code="rewound"), ("rewound", "No.", False)),
        (recorded("a", end="run.failed", detail={"retryable": False}), ("no", "No.", False)),
    ],
)
def test_an_answer_that_fails_keeps_its_text_and_ends_with_an_error(
    log: list[Event], expected: tuple[Any, ...]
) -> None:
    """One error in place of the last two frames, in a form for programs."""
    messages = told(log)
    assert [message.event for message in messages] == ["content", "error"]
    assert last(messages) == dict(zip(("code", "message", "retryable"), expected, strict=True))


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_a_reader_can_come_back_after_every_frame(log: list[Event]) -> None:
    """Also between the two frames of one event; and gets nothing after the last."""
    whole = told(log)
    for place, message in enumerate(whole, 1):
        after = parse_cursor(message.id)
        assert after is not None
        assert told(log, after=after) == whole[place:]


def test_nothing_follows_the_end() -> None:
    """Whatever else is in the log."""
    encoder = AnswerEncoder(SESSION, RUN)
    for event in LOGS["text"]:
        assert not encoder.over
        encoder.encode(event)
    assert encoder.over
    assert [encoder.encode(event) for event in LOGS["deleted"]] == [b""] * len(LOGS["deleted"])


@pytest.mark.parametrize(
    "cursor", ["42", "42.", ".0", "42.2", "42.00", "-1.0", "1.0 ", "a.0", "٤.0", "1" * 16 + ".0", "4,0"]
)
def test_a_cursor_of_another_form_is_refused(cursor: str) -> None:
    """And so is every cursor that was cut off."""
    with pytest.raises(CursorInvalid):
        parse_cursor(cursor)


def test_no_cursor_is_no_cursor() -> None:
    """An empty one is what a client sends that was cut before the first id."""
    assert (parse_cursor(None), parse_cursor(""), parse_cursor("42.1")) == (None, None, (42, 1))


# The stream -----------------------------------------------------------------------------------------------------------


class Thread:
    """One thread of the application, as Deva's clients use it."""

    def __init__(self, chat: Chat, id: str) -> None:
        self.chat = chat
        self.id = id

    async def post(self, path: str, json: Any = None, **headers: str) -> ASGIResponse:
        options = {} if json is None else {"json": json}
        return await self.chat.driver.request("POST", f"/api/sdk/chat/{self.id}{path}", headers=headers, **options)

    async def get(self, path: str = "") -> ASGIResponse:
        return await self.chat.driver.request("GET", f"/api/sdk/chat/{self.id}{path}")

    async def send(self, text: str = "hello", **fields: Any) -> str:
        answer = await self.post("/messages", {"text": text, **fields})
        assert answer.status == 201
        return str(answer.json()["id"])

    def open(self, message: str, last: str | None = None, query: str = "", **options: Any) -> ASGIStream:
        headers = {"content-type": "application/json", "accept": "text/event-stream, text/event-stream"}
        headers |= {} if last is None else {"last-event-id": last}
        target = f"/api/sdk/chat/{self.id}/messages/{message}/query/stream{query}"
        return self.chat.driver.stream(target, method="POST", headers=headers, **options)

    async def read(self, message: str, last: str | None = None, query: str = "") -> list[SSEMessage]:
        """All frames to the end of the answer."""
        async with asyncio.timeout(30), self.open(message, last, query) as stream:
            assert stream.status == 200
            return [each async for each in stream.messages()]

    async def runs(self) -> int:
        """How many runs the session has had."""
        events = (await self.chat.driver.request("GET", f"/api/sessions/{self.id}/events")).json()["events"]
        return len({event["run"] for event in events if event["run"]})


def thread(chat: Chat) -> Thread:
    return Thread(chat, chat.session)


async def scripted(turn: Turn) -> AsyncIterator[Any]:
    """Plays what the message asks for."""
    yield "One "
    await turn.stored()  # else what comes in the same round is one piece
    if turn.message.text == "fail":
        raise AgentError("No.", code="no")
    if turn.message.text == "wait":
        await asyncio.Event().wait()
    yield "two"


async def test_a_cursor_may_stand_in_the_query() -> None:
    """Where libraries put it that cannot set a header; the header wins, and another form is refused."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        message = await one.send()
        frames = await one.read(message)
        first, last = frames[0].id, frames[-2].id
        assert [each.id for each in await one.read(message, None, f"?lastEventId={first}")] == [
            each.id for each in frames[1:]
        ]
        assert len(await one.read(message, last, f"?lastEventId={first}")) == 1
        assert len(await one.read(message, None, "?lastEventId=")) == len(frames)
        async with one.open(message, None, "?lastEventId=x") as stream:
            assert stream.status == 400


async def test_a_message_is_sent_and_its_answer_read() -> None:
    """A thread, a message, and the answer's frames from a POST with an empty body."""
    async with chatting(None, scripted) as chat:
        made = await chat.driver.request("POST", "/api/sdk/chat", headers={"content-type": "application/json"})
        assert (made.status, made.headers["location"]) == (201, f"/api/sdk/chat/{made.json()['id']}")
        one = Thread(chat, made.json()["id"])
        assert (await one.get()).json() == made.json()
        assert [member["username"] for member in made.json()["members"]] == ["user", "scripted"]
        message = await one.send()
        frames = await one.read(message)
        assert [frame.event for frame in frames] == ["content", "content", "completion", "response_message"]
        assert (text(frames), last(frames)["in_reply_to"]["id"]) == ("One two", message)
        iso = last(await one.read(message, query="?created_at=iso"))
        assert iso["created_at"].endswith("Z")


async def test_the_head_of_a_stream() -> None:
    """An event stream, its first byte at once, and a time to wait that belongs to no event."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        message = await thread(chat).send()
        async with asyncio.timeout(30), thread(chat).open(message) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["legato-cursor"] == "exact"
            first = await stream.read()
            assert first.startswith(b":\nretry: ")
            assert decoded(first) == []
            gate.let("a")
            frame = decoded(first + await stream.read())[0]
            assert 1000 <= (frame.retry or 0) <= 3000
            gate.close()


async def test_a_silence_is_one_line() -> None:
    """Which reaches no handler of any client."""
    async with chatting(None, Gate(), heartbeat=0.01) as chat:
        message = await thread(chat).send()
        async with asyncio.timeout(30), thread(chat).open(message) as stream:
            await stream.read()
            assert [await stream.read() for _ in range(2)] == [b":\n", b":\n"]


async def test_readers_attach_to_the_one_run() -> None:
    """Any number, at once and later, from the start: nothing is generated twice."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        one = thread(chat)
        message = await one.send()
        readers = [asyncio.create_task(one.read(message)) for _ in range(3)]
        gate.let("a", "b")
        gate.close()
        first, *others = [await reader for reader in readers]
        assert [without_retry(other) for other in others] == [without_retry(first)] * 2
        assert without_retry(await one.read(message)) == without_retry(first)
        assert await one.runs() == 1


def without_retry(messages: Sequence[SSEMessage]) -> list[tuple[str, str, str]]:
    return [(message.id, message.event, message.data) for message in messages]


async def test_a_reader_that_leaves_ends_nothing() -> None:
    """It comes back to the rest, and with everything it has, to an empty stream that ends."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        one = thread(chat)
        message = await one.send()
        gate.let("a")
        async with asyncio.timeout(30), one.open(message) as stream:
            frame = await anext(stream.messages())
        gate.let("b")
        gate.close()
        rest = await one.read(message, frame.id)
        assert [each.event for each in rest] == ["content", "completion", "response_message"]
        assert (text([frame, *rest]), await one.runs()) == ("ab", 1)
        async with asyncio.timeout(30), one.open(message, rest[-1].id) as stream:
            assert (stream.status, [each async for each in stream.messages()]) == (200, [])
            assert not stream.cut


@pytest.mark.parametrize("cursor", ["999999.0", "1.0", "0.0"])
async def test_a_cursor_from_elsewhere_is_told(cursor: str) -> None:
    """Beyond the end, or of an event that is not the answer's: in the head, and the answer comes from its start."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        message = await one.send()
        whole = await one.read(message)
        async with asyncio.timeout(30), one.open(message, cursor) as stream:
            assert stream.headers["legato-cursor"] == "reset"
            assert without_retry([each async for each in stream.messages()]) == without_retry(whole)


async def test_what_waits_behind_another_answer_is_told_only_its_own() -> None:
    """The frames of the message that was asked for, though both are in one log."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        one = thread(chat)
        first, second = await one.send("1"), await one.send("2")
        readers = [asyncio.create_task(one.read(message)) for message in (first, second)]
        gate.let("a")
        gate.close()
        gate.let("b")
        gate.close()
        assert [text(await reader) for reader in readers] == ["a", "b"]


# Stop and retry -------------------------------------------------------------------------------------------------------


async def test_a_failed_answer_is_replayed_and_given_anew_only_by_a_retry() -> None:
    """POST gives the same failure as often as it comes; after the explicit request, the new answer."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        message = await one.send("fail")
        failed = [await one.read(message) for _ in range(3)]
        assert {tuple(without_retry(each)) for each in failed} == {tuple(without_retry(failed[0]))}
        assert (text(failed[0]), last(failed[0])) == ("One ", {"code": "no", "message": "No.", "retryable": True})
        assert await one.runs() == 1
        retried = await one.post(f"/messages/{message}/retry")
        assert (retried.status, retried.json()["id"]) == (202, message)
        assert [frame.event for frame in await one.read(message)] == ["content", "error"]
        assert await one.runs() == 2


async def test_a_reader_of_the_old_answer_is_not_given_the_new_one() -> None:
    """Its text would be doubled. Without a cursor, it is the new one that is read."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        message = await one.send("fail")
        old = await one.read(message)
        await one.post(f"/messages/{message}/retry")
        new = await one.read(message)
        assert without_retry(await one.read(message, old[0].id)) == without_retry(old[1:])
        assert {each.id for each in new}.isdisjoint(each.id for each in old)


async def test_a_retry_that_says_what_it_saw_is_safe_to_repeat() -> None:
    """With the last id of the old answer it leads to the same new one, also when that is over."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        message = await one.send("fail")
        path, old = f"/messages/{message}/retry", (await one.read(message))[-1].id
        for repeated in (None, "true", "true"):
            answer = await one.post(path, **{"last-event-id": old})
            assert (answer.status, answer.headers.get("legato-repeated")) == (202, repeated)
            new = (await one.read(message))[-1].id
        assert await one.runs() == 2
        assert (await one.post(path, **{"last-event-id": new})).headers.get("legato-repeated") is None
        assert await one.runs() == 3
        for elsewhere in ("1.0", "0.0", "999.0", "nope"):
            answer = await one.post(path, **{"last-event-id": elsewhere})
            assert reason(answer) == (400, "bad_request", "cursor_invalid")


async def test_an_answer_is_stopped() -> None:
    """By its own request, which says whether there was anything to stop; every reader is told."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        message = await one.send("wait")
        reader = asyncio.create_task(one.read(message))
        assert (await one.post(f"/messages/{message}/stop")).json() == {"stopped": True}
        assert last(await reader)["code"] == "cancelled"
        assert (await one.post(f"/messages/{message}/stop")).json() == {"stopped": False}
        assert reason(await one.post("/messages/nope/stop")) == NO_MESSAGE


async def test_a_copied_message_is_answered_when_its_stream_is_opened() -> None:
    """A fork's messages never had a run: the first POST begins one, the others attach to it."""
    async with chatting(None, scripted) as chat:
        asked = await thread(chat).send()
        await thread(chat).read(asked)
        fork = (await chat.post("/fork", {"messageIndex": 0})).json()["id"]
        one = Thread(chat, fork)
        assert (await one.post(f"/messages/{asked}/stop")).json() == {"stopped": False}
        answers = await asyncio.gather(*(one.read(asked) for _ in range(3)))
        assert [text(answer) for answer in answers] == ["One two"] * 3
        assert await one.runs() == 1
        assert [item["text"] for item in (await one.get("/messages")).json()["items"]] == ["One two", "hello"]


async def test_a_copied_message_that_is_not_the_last_has_no_answer_to_read() -> None:
    """409: a new answer would stand after what followed it."""
    async with chatting(None, scripted) as chat:
        asked = await thread(chat).send()
        await thread(chat).read(asked)
        later = await thread(chat).send()
        await thread(chat).read(later)
        one = Thread(chat, (await chat.post("/fork", {"messageIndex": 3})).json()["id"])
        async with one.open(asked) as stream:
            await stream.read()
            assert stream.status == 409


async def test_a_thread_that_is_deleted_while_it_is_read() -> None:
    """An error, and the end; afterwards there is no such thread."""
    async with chatting(None, Gate()) as chat:
        one = thread(chat)
        message = await one.send()
        async with asyncio.timeout(30), one.open(message) as stream:
            await stream.read()
            await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")
            assert [json.loads(each.data)["code"] async for each in stream.messages()] == ["session_not_found"]
        for answer in (await one.get(), await one.post(f"/messages/{message}/query/stream")):
            assert reason(answer) == (404, "not_found", "session_not_found")


# Messages -------------------------------------------------------------------------------------------------------------


async def test_the_same_client_id_is_the_same_message() -> None:
    """Sent again, it is answered as before; with another text it is refused."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        first = await one.post("/messages", {"text": "a", "client_id": "c"})
        again = await one.post("/messages", {"text": "a", "client_id": "c"})
        other = await one.post("/messages", {"text": "b", "client_id": "c"})
        assert (first.json(), first.headers.get("legato-repeated")) == (again.json(), None)
        assert again.headers["legato-repeated"] == "true"
        assert reason(other) == (409, "bad_request", "idempotency_key_reused")
        await one.read(first.json()["id"])
        assert await one.runs() == 1


async def test_messages_come_in_pages_from_the_newest_back() -> None:
    """Each once, also while new ones are added; failed answers as far as they came."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        for number in range(3):
            await one.read(await one.send("fail" if number == 1 else f"m{number}"))
        whole = (await one.get("/messages")).json()
        assert whole["next_cursor"] is None
        said = [(item["text"], item["author_type"], item.get("status")) for item in whole["items"]]
        assert said == [
            ("One two", "BOT", "completed"), ("m2", "USER", None), ("One ", "BOT", "failed"), ("fail", "USER", None),
            ("One two", "BOT", "completed"), ("m0", "USER", None),
        ]  # fmt: skip
        page = (await one.get("/messages?limit=4")).json()
        await one.read(await one.send("new"))
        rest = (await one.get(f"/messages?limit=4&cursor={page['next_cursor']}")).json()
        assert (page["items"] + rest["items"], rest["next_cursor"]) == (whole["items"], None)
        assert reason(await one.get("/messages?cursor=nope")) == (400, "bad_request", "cursor_invalid")


async def test_the_list_has_what_the_stream_ended_with() -> None:
    """The very message."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        answer = last(await one.read(await one.send()))
        assert (await one.get("/messages")).json()["items"][0] == answer
        iso = (await one.get("/messages?created_at=iso")).json()["items"]
        assert all(item["created_at"].endswith("Z") for item in iso)


async def test_agents_are_personas() -> None:
    """All, or those asked for; a thread's own one answers in it."""
    async with chatting(None, scripted, Gate()) as chat:

        async def names(query: str) -> list[str]:
            page = await chat.driver.request("GET", f"/api/sdk/persona/public{query}")
            return [item["username"] for item in page.json()["items"]]

        assert (await names(""), await names("?usernames=Gate,nobody"), await names("?usernames=")) == (
            ["scripted", "Gate"], ["Gate"], [],
        )  # fmt: skip
        made = await chat.driver.request("POST", "/api/sdk/chat", json={"username": "scripted", "title": "T"})
        one = Thread(chat, made.json()["id"])
        assert last(await one.read(await one.send()))["persona"]["username"] == "scripted"


def test_messages_that_are_no_runs_have_a_persona() -> None:
    """A fork's answers say nothing of who gave them."""
    data = [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}]
    events = [stored("message.created", {"id": str(n), **each}, n, 0.0) for n, each in enumerate(data, 2)]
    found = deva_api.messages("s", history(events), {}, default="g")
    assert [(message.persona_id, message.text) for message in found] == [("user", "q"), ("g", "a")]


# Other dialects -------------------------------------------------------------------------------------------------------


async def test_an_answer_is_seen_in_every_dialect() -> None:
    """Begun here and read on /stream and as a response; begun there and read here."""
    async with chatting(None, scripted) as chat:
        one = thread(chat)
        here = await one.send()
        seen = await chat.follow("0", until=lambda message: message.event == "complete")
        run = next(json.loads(each.data)["runId"] for each in seen if each.event == "user_message_created")
        response = (await chat.driver.request("GET", f"/v1/responses/resp_{run}")).json()
        assert response["output"][0]["content"][0]["text"] == text(await one.read(here)) == "One two"

        there = (await chat.said("there")).json()["messageId"]
        ask = {"model": "scripted", "input": "elsewhere", "conversation": chat.session}
        await chat.driver.request("POST", "/v1/responses", json=ask)
        elsewhere = (await one.get("/messages?limit=2")).json()["items"][1]["id"]
        assert [text(await one.read(message)) for message in (there, elsewhere)] == ["One two"] * 2


async def test_an_answer_begun_here_is_stopped_there() -> None:
    """A cancel is a record in the log, whoever writes it."""
    async with chatting(None, scripted) as chat:
        message = await thread(chat).send("wait")
        reader = asyncio.create_task(thread(chat).read(message))
        assert (await chat.post("/cancel")).json() == {"cancelled": True}
        assert last(await reader)["code"] == "cancelled"


# The server -----------------------------------------------------------------------------------------------------------


def test_a_stream_that_the_server_ends_early_has_no_clean_end() -> None:
    """To the library, a clean end is the end of the answer; without one it comes back."""
    app = Legato("memory:", agents=[Gate()], grace=0.0)
    with serving(app) as url, httpx2.Client(base_url=url, trust_env=False) as client:
        at = f"/api/sdk/chat/{client.post('/api/sdk/chat').json()['id']}/messages"
        message = client.post(at, json={"text": "hello"}).json()["id"]
        with client.stream("POST", f"{at}/{message}/query/stream") as answer:
            chunks = answer.iter_bytes()
            assert next(chunks).startswith(b":\n")
            app.streams.drain()
            with pytest.raises(httpx2.RemoteProtocolError):
                next(chunks)


async def test_what_the_library_asks_the_browser_for_is_allowed() -> None:
    """The preflight from another origin, with the cursor's header; and the answer names that origin."""
    async with chatting(cors="https://app.test") as chat:
        target = f"/api/sdk/chat/{chat.session}/messages/m/query/stream"
        asks = {"origin": "https://app.test", "access-control-request-method": "POST"}
        asks["access-control-request-headers"] = "authorization,content-type,last-event-id"
        answer = await chat.driver.request("OPTIONS", target, headers=asks)
        allowed = {name.strip() for name in answer.headers["access-control-allow-headers"].lower().split(",")}
        assert answer.status == 200
        assert {"authorization", "content-type", "last-event-id"} <= allowed
        refused = await chat.driver.request("POST", target, headers={"origin": "https://app.test"})
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (404, "https://app.test")


async def test_streams_are_bounded_before_anything_is_begun() -> None:
    """429 as JSON."""
    async with chatting(None, Gate(), max_streams_per_session=1) as chat:
        one = thread(chat)
        message = await one.send()
        async with asyncio.timeout(30), one.open(message) as stream:
            await stream.read()
            assert reason(await one.post(f"/messages/{message}/query/stream")) == (429, "bad_request", "too_many")


def test_the_text_is_told_in_utf8() -> None:
    """No frame has half of a surrogate pair, wherever an agent cuts its text."""
    frames = [AnswerEncoder(SESSION, RUN).encode(event) for event in recorded("\ud83c", "\udfb5", Text("\ud800"))]
    assert "\\ud" not in b"".join(frames).decode()
    assert deva.AnswerEncoder("s", RUN).heartbeat(0) == b":\n"
