"""The clients of both worlds: streams that come back, requests that are repeated only when that is safe."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx2
import pytest
import stamina

from client_faces import FACES, drain, stream, use
from fake_server import (
    ANSWER,
    FakeServer,
    FakeTransport,
    Reply,
    Request,
    error_reply,
    frame,
    json_reply,
    stream_reply,
)
from legato.client import (
    UNSET,
    APIError,
    AsyncClient,
    BackoffStrategy,
    Client,
    ConnectedEvent,
    ConnectionFailed,
    ConnectionLost,
    ContentEvent,
    ErrorResponse,
    ForeignResponse,
    HeartbeatEvent,
    ReconnectBackoff,
    ResponseInvalid,
    RetryConfig,
    SessionDeletedEvent,
)
from legato.client.resume import CONTROL
from legato.errors import InvalidInput
from legato.sse import HEARTBEAT


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that takes a face runs on both."""
    if "face" in metafunc.fixturenames:
        metafunc.parametrize("face", FACES)


UNREACHABLE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Requests are tried at most four times, without a pause."""
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


def replay(request: Request) -> Reply:
    """A server that goes on behind the cursor."""
    return stream_reply(ANSWER.after(request.headers.get("last-event-id")))


def facts(events: list[Any]) -> list[tuple[str, Any]]:
    return [(event.id, event.data) for event in events if event.event not in CONTROL]


# Streams -------------------------------------------------------------------------------------------------------------


def test_cut_anywhere_is_the_uncut_stream(face: str) -> None:
    """The first connection is cut after each number of bytes; nothing is lost or doubled."""
    uncut = facts(stream(face, replay))
    body = ANSWER.after(None)

    for size in range(len(body)):
        cuts = [size]

        def cut_once(request: Request, cuts: list[int] = cuts) -> Reply:
            reply = replay(request)
            if cuts:
                reply.body, reply.cut = reply.body[: cuts.pop()], True
            return reply

        assert uncut == facts(stream(face, cut_once))
    assert len(ANSWER.frames) == len(uncut)


def test_cut_on_a_real_connection_is_the_uncut_stream(face: str) -> None:
    """The same over sockets, with a cut at every 25th byte."""
    uncut = facts(stream(face, replay))
    sizes: list[int] = []

    def cut_once(request: Request) -> Reply:
        reply = replay(request)
        if sizes:
            reply.body, reply.cut = reply.body[: sizes.pop()], True
        return reply

    with FakeServer(cut_once) as server:
        for size in range(0, len(ANSWER.after(None)), 25):
            sizes.append(size)

            assert uncut == facts(stream(face, server.url))


def test_a_clean_end_of_the_connection_is_not_the_end_of_the_stream(face: str) -> None:
    """A server that drains closes properly; the reader comes back behind the last event."""
    cursors = []

    def one_by_one(request: Request) -> Reply:
        cursor = request.headers.get("last-event-id")
        cursors.append(cursor)
        return stream_reply(ANSWER.frames[int(cursor or 0)])

    events = stream(face, one_by_one)

    assert [None, "1", "2", "3", "4", "5"] == cursors
    assert ["1", "2", "3", "4", "5", "6"] == [event.id for event in events]


def test_without_reconnect_a_clean_end_ends_the_iteration(face: str) -> None:
    """One connection is one loop."""
    events = stream(face, lambda _: stream_reply(ANSWER.frames[0]), reconnect=False)

    assert ["1"] == [event.id for event in events]


def test_without_reconnect_a_cut_is_raised(face: str) -> None:
    """A cut that nobody mends is not to be taken for the end."""
    with pytest.raises(ConnectionLost):
        stream(face, lambda _: stream_reply(ANSWER.frames[0], cut=True), reconnect=False)


def test_a_silent_connection_is_left_for_a_new_one(face: str) -> None:
    """A half-open connection says nothing for ever; the watchdog notices."""
    errors: list[Any] = []

    def silent_once(request: Request) -> Reply:
        if "last-event-id" not in request.headers:
            return stream_reply(b"".join(ANSWER.frames[:2]), silent=True)
        return replay(request)

    with FakeServer(silent_once) as server:
        events = stream(
            face,
            server.url,
            settings={"heartbeat_timeout": 0.05},
            quiet=True,
            on_reconnect=lambda attempt, wait, error: errors.append(error),
        )

    assert ["1", "2", "3", "4", "5", "6"] == [event.id for event in events]
    assert [True] == [error.detail["silent"] for error in errors]


def test_a_stream_waits_as_the_server_asked_and_says_so(face: str) -> None:
    """``on_reconnect`` hears of each wait before it; the waits follow ``retry:`` and Retry-After, with jitter."""
    replies = iter(
        [
            stream_reply(frame("connected", 0, retry=2000), cut=True),
            error_reply(503, "draining", **{"retry-after": "7"}),
            Reply(502, b"<html>"),
            replay(Request("GET", "/stream", {}, {}, b"")),
        ]
    )
    heard: list[tuple[int, float, type]] = []
    waits: list[float] = []
    stream(
        face,
        lambda _: next(replies),
        settings={"random": lambda: 0.5, "waits": waits},
        on_reconnect=lambda attempt, wait, error: heard.append((attempt, wait, type(error))),
    )

    assert [(1, 2.0, ConnectionLost), (2, 10.0, ErrorResponse), (3, 6.0, ForeignResponse)] == heard
    assert [2.0, 10.0, 6.0] == waits


def test_a_session_that_is_gone_ends_a_reconnect_with_its_error(face: str) -> None:
    """404 on the way back is final, and is raised, not swallowed."""
    replies = iter([stream_reply(ANSWER.frames[0], cut=True), error_reply(404, "session_not_found")])

    with pytest.raises(ErrorResponse) as caught:
        stream(face, lambda _: next(replies))

    assert "session_not_found" == caught.value.code


def test_no_content_on_the_way_back_ends_the_stream(face: str) -> None:
    """204 is how an event stream is told not to come back."""
    replies = iter([stream_reply(ANSWER.frames[0]), Reply(204)])
    events = stream(face, lambda _: next(replies))

    assert ["1"] == [event.id for event in events]


def test_a_stream_gives_up_when_nobody_answers_for_long(face: str) -> None:
    """In the end the loss is raised."""
    replies = iter([stream_reply(ANSWER.frames[0])])

    def gone(_: Request) -> Reply:
        return next(replies, Reply(die=True))

    with pytest.raises(ConnectionLost):
        stream(face, gone, settings={"reconnect_backoff": ReconnectBackoff(give_up_after=0.0)})


def test_a_deleted_session_ends_the_iteration(face: str) -> None:
    """``session_deleted`` is the last event, and there is no reconnect after it."""
    requests = []

    def deleted(request: Request) -> Reply:
        requests.append(request)
        return replay(request)

    events = stream(face, deleted)

    assert isinstance(events[-1], SessionDeletedEvent)
    assert 1 == len(requests)


def test_events_are_typed(face: str) -> None:
    """Names are snake_case, and isinstance tells the kinds apart."""
    content = [event for event in stream(face, replay) if isinstance(event, ContentEvent)]

    assert [("Hel", 0, 0), ("lo \U0001f3bb", 0, 3)] == [(e.data.content, e.data.part, e.data.start) for e in content]
    assert {"r1~a1"} == {event.data.assistant_message_id for event in content}


def test_greeting_and_heartbeats_are_events_too(face: str) -> None:
    """As in the Mix SDK; ``quiet`` leaves them out."""
    body = frame("connected", 0, sessionId="s", cursor="exact") + frame("heartbeat", 0) + ANSWER.frames[5]

    assert [ConnectedEvent, HeartbeatEvent, SessionDeletedEvent] == [
        type(event) for event in stream(face, lambda _: stream_reply(body))
    ]
    assert [SessionDeletedEvent] == [type(event) for event in stream(face, lambda _: stream_reply(body), quiet=True)]


def test_unknown_events_and_comments_are_passed_over(face: str) -> None:
    """A newer server breaks nobody; an unknown event still moves the cursor."""
    cursors = []

    def newer(request: Request) -> Reply:
        cursors.append(request.headers.get("last-event-id"))
        if len(cursors) == 1:
            body = HEARTBEAT + b": proxy\n\n" + frame("from_the_future", 1, x=1) + b"data: bare\n\n"
            return stream_reply(body)
        return stream_reply(ANSWER.frames[5])

    events = stream(face, newer)

    assert [None, "1"] == cursors
    assert [SessionDeletedEvent] == [type(event) for event in events]


def test_unknown_fields_and_numbers_in_quotes_are_taken(face: str) -> None:
    """Schema and wire differ in life."""
    body = frame("content", 1, content="a", start="4", surprise={"a": None}) + ANSWER.frames[5]
    event = stream(face, lambda _: stream_reply(body))[0]

    assert isinstance(event, ContentEvent)
    assert 4 == event.data.start


def test_an_event_that_is_not_as_documented_is_an_error_once(face: str) -> None:
    """It is raised as ResponseInvalid, and the next step goes on behind it."""
    body = b"event: content\ndata: {nonsense\nid: 1\n\n" + ANSWER.frames[2] + ANSWER.frames[5]

    def sync(client: Client) -> list[str]:
        with client.streaming.stream_events(session_id="s") as events:
            with pytest.raises(ResponseInvalid):
                next(events)
            return [event.id for event in events]

    async def later(client: AsyncClient) -> list[str]:
        async with client.streaming.stream_events(session_id="s") as events:
            with pytest.raises(ResponseInvalid):
                await anext(events)
            return [event.id async for event in events]

    act: Any = sync if face == "sync" else later
    assert ["3", "6"] == use(face, lambda _: stream_reply(body), act)


def test_a_reset_is_handed_to_the_caller(face: str) -> None:
    """A cursor beyond the log: the greeting says so even to a quiet reader, and smaller ids are new events."""
    head = frame("connected", 0, sessionId="s", cursor="reset", earliest=1, latest=6)
    body = head + b"".join(ANSWER.frames)
    events = stream(face, lambda _: stream_reply(body, cursor="reset"), last_event_id="900", quiet=True)

    assert isinstance(events[0], ConnectedEvent)
    assert (True, 1, 6) == (events[0].data.reset, events[0].data.earliest, events[0].data.latest)
    assert ["0", "1", "2", "3", "4", "5", "6"] == [event.id for event in events]


def test_a_stream_asks_for_what_only_this_sdk_knows(face: str) -> None:
    """Query, cursor, no compression, and the name of the SDK."""
    seen = []

    def note(request: Request) -> Reply:
        seen.append(request)
        return replay(request)

    stream(face, note, last_event_id="4")
    stream(face, note, from_="start")
    first, second = seen

    assert ("/stream", {"sessionId": "s", "client": "legato"}) == (first.path, first.query)
    assert ("4", "identity", "text/event-stream") == tuple(
        first.headers[name] for name in ("last-event-id", "accept-encoding", "accept")
    )
    assert first.headers["user-agent"].startswith("legato-python/")
    assert "start" == second.query["from"]
    assert "last-event-id" not in second.headers


def test_where_to_start_is_asked_once(face: str) -> None:
    """After a cut the cursor counts, not ``from_``."""
    seen = []

    def note(request: Request) -> Reply:
        seen.append(request.query.get("from"))
        reply = replay(request)
        if len(seen) == 1:
            reply.body, reply.cut = ANSWER.after(None)[:-5], True
        return reply

    stream(face, note, from_="start")

    assert ["start", None] == seen


def test_a_stream_has_headers_and_result(face: str) -> None:
    """As in the Mix SDK: headers are lists, and ``result`` is the stream."""

    def sync(client: Client) -> tuple[Any, bool]:
        res = client.streaming.stream_events(session_id="s")
        with res.result as events:
            return res.headers["legato-cursor"], events is res

    async def later(client: AsyncClient) -> tuple[Any, bool]:
        res = await client.streaming.stream_events(session_id="s")
        async with res.result as events:
            return res.headers["legato-cursor"], events is res

    act: Any = sync if face == "sync" else later
    assert (["exact"], True) == use(face, replay, act)


def test_last_event_id_is_that_of_the_last_event_handed_out(face: str) -> None:
    """Not of what was read ahead: a reader that stops after an event goes on behind it later."""

    def sync(client: Client) -> str | None:
        with client.streaming.stream_events(session_id="s", quiet=True) as events:
            next(events)
            next(events)
        return events.last_event_id

    async def later(client: AsyncClient) -> str | None:
        async with client.streaming.stream_events(session_id="s", quiet=True) as events:
            await anext(events)
            await anext(events)
        return events.last_event_id

    act: Any = sync if face == "sync" else later
    assert "2" == use(face, replay, act)


def test_a_closed_stream_ends(face: str) -> None:
    """No further event comes, and no connection is made."""

    def sync(client: Client) -> list[Any]:
        events = client.streaming.stream_events(session_id="s")
        events.close()
        return list(events)

    async def later(client: AsyncClient) -> list[Any]:
        events = await client.streaming.stream_events(session_id="s")
        await events.aclose()
        return [event async for event in events]

    act: Any = sync if face == "sync" else later
    assert [] == use(face, replay, act)


def test_close_wakes_a_stream_that_waits_to_reconnect(face: str) -> None:
    """Closing does not have to wait for the end of a backoff."""
    with FakeServer(lambda _: stream_reply(ANSWER.frames[0])) as server:
        waiting = threading.Event()

        def sync() -> list[Any]:
            with Client(server.url, random=lambda: 1.0, reconnect_backoff=ReconnectBackoff(base=30.0)) as client:
                events = client.streaming.stream_events(session_id="s", on_reconnect=lambda *_: waiting.set())
                closer = threading.Thread(target=lambda: (waiting.wait(30), events.close()))
                closer.start()
                seen = list(events)
                closer.join()
                return seen

        async def later() -> list[Any]:
            backoff = ReconnectBackoff(base=30.0)
            async with asyncio.timeout(20), AsyncClient(server.url, random=lambda: 1.0, reconnect_backoff=backoff) as c:
                wake = asyncio.Event()
                events = await c.streaming.stream_events(session_id="s", on_reconnect=lambda *_: wake.set())

                async def close() -> None:
                    await wake.wait()
                    await events.aclose()

                closer = asyncio.create_task(close())
                seen = [event async for event in events]
                await closer
                return seen

        assert 1 == len(sync() if face == "sync" else asyncio.run(later()))


def test_an_unknown_session_is_raised_by_the_call_at_once(face: str) -> None:
    """404 is not retried, and comes before any event."""
    requests = []

    def unknown(request: Request) -> Reply:
        requests.append(request)
        return error_reply(404, "session_not_found")

    with pytest.raises(ErrorResponse) as caught:
        use(face, unknown, lambda c: c.streaming.stream_events(session_id="s"))

    error = caught.value
    assert 1 == len(requests)
    assert (404, "session_not_found", 404) == (error.status_code, error.code, error.data.error.code)
    assert ("It is session_not_found.", "bad_request") == (error.data.error.message, error.data.error.type)
    assert "application/json" == error.headers["content-type"]
    assert error.body == json.dumps(
        {
            "error": dict(
                zip(
                    ("code", "message", "type", "reason"),
                    (404, "It is session_not_found.", "bad_request", "session_not_found"),
                    strict=True,
                )
            )
        }
    )


def test_the_opening_of_a_stream_is_retried(face: str) -> None:
    """A server that is about to come back is waited for."""
    replies = iter([error_reply(503, "draining"), Reply(die=True), Reply(502), replay(Request("GET", "", {}, {}, b""))])

    assert len(ANSWER.frames) == len(stream(face, lambda _: next(replies), quiet=True))


def test_retries_none_turns_the_retry_of_the_opening_off(face: str) -> None:
    """The first failure is raised."""
    requests = []

    def broken(request: Request) -> Reply:
        requests.append(request)
        return Reply(500)

    with pytest.raises(APIError):
        stream(face, broken, retries=None)

    assert 1 == len(requests)


def test_a_page_instead_of_a_stream_is_an_error(face: str) -> None:
    """200 with another content type is somebody else's server."""
    with pytest.raises(ResponseInvalid):
        stream(face, lambda _: Reply(200, b"<html>", {"content-type": "text/html"}))


def test_an_endless_line_ends_the_stream_with_an_error(face: str) -> None:
    """Memory is bounded, whatever the server sends; asking again would bring the same."""
    with pytest.raises(ResponseInvalid):
        stream(face, lambda _: stream_reply(b"data: " + b"x" * (17 * 1024 * 1024)))


def test_a_compressed_stream_is_read(face: str) -> None:
    """It was not asked for, but some proxies compress whatever they are told."""
    import gzip

    reply = stream_reply(gzip.compress(ANSWER.after(None)))
    reply.headers["content-encoding"] = "gzip"

    assert len(ANSWER.frames) == len(stream(face, lambda _: reply, quiet=True))


# Plain requests ------------------------------------------------------------------------------------------------------

SENT = {"status": "processing", "sessionId": "s", "runId": "r1", "messageId": "m1", "cursor": "7"}
SESSION = {"id": "s", "title": "T", "createdAt": "2026-01-01T00:00:00Z", "cost": 0, "surprise": 1}


def test_a_send_whose_answer_was_lost_is_repeated_with_the_same_key(face: str) -> None:
    """The connection dies after the request; the server recognises the repetition by its key."""
    keys = []

    def die_once(request: Request) -> Reply:
        keys.append(request.headers["idempotency-key"])
        return Reply(die=True) if len(keys) == 1 else json_reply(SENT, 202)

    with FakeServer(die_once) as server:
        sent = use(face, server.url, lambda c: c.messages.send("s", text="hi"))

    assert ("r1", "7") == (sent.run_id, sent.cursor)
    assert 2 == len(keys)
    assert 1 == len(set(keys))


def test_a_send_whose_answer_was_cut_is_repeated_with_the_same_key(face: str) -> None:
    """Half an answer is none."""
    keys = []

    def cut_once(request: Request) -> Reply:
        keys.append(request.headers["idempotency-key"])
        reply = json_reply(SENT, 202)
        if len(keys) == 1:
            reply.body, reply.cut = reply.body[:20], True
        return reply

    with FakeServer(cut_once) as server:
        sent = use(face, server.url, lambda c: c.streaming.send_streaming_message(id="s", content="hi"))

    assert "r1" == sent.run_id
    assert 1 == len(set(keys))


def test_two_sends_have_two_keys(face: str) -> None:
    """A key stands for one wish of the caller, not for one text."""
    keys = []

    def note(request: Request) -> Reply:
        keys.append(request.headers["idempotency-key"])
        return json_reply(SENT)

    for _ in range(2):
        use(face, note, lambda c: c.messages.send("s", text="hi"))

    assert 2 == len(set(keys))


def test_a_key_of_the_caller_is_used(face: str) -> None:
    """So that another process can repeat the send."""
    keys = []

    def note(request: Request) -> Reply:
        keys.append(request.headers["idempotency-key"])
        return json_reply(SENT)

    use(face, note, lambda c: c.messages.send("s", text="hi", idempotency_key="mine"))

    assert ["mine"] == keys


@pytest.mark.parametrize("key", ["", "a b", "a\r\nb", "é", "x" * 256])
def test_a_key_that_cannot_be_a_header_is_refused(face: str, key: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidInput):
        use(face, lambda _: json_reply(SENT), lambda c: c.messages.send("s", text="hi", idempotency_key=key))


def test_a_body_has_only_what_was_given(face: str) -> None:
    """None is left out; metadata are fields of the body."""
    bodies = []

    def note(request: Request) -> Reply:
        bodies.append((request.method, request.path, request.json))
        return json_reply(SENT)

    use(face, note, lambda c: c.messages.send("s/1", text="hi", metadata={"mood": "good"}))

    assert [("POST", "/api/sessions/s/1/messages", {"text": "hi", "mood": "good"})] == bodies


@pytest.mark.parametrize("id", ["", ".", ".."])
def test_an_id_that_leads_elsewhere_is_refused(face: str, id: str) -> None:
    """DELETE /api/sessions/ is not what anybody meant."""
    with pytest.raises(InvalidInput):
        use(face, lambda _: Reply(204), lambda c: c.sessions.delete(id))


def test_a_created_session_whose_answer_was_lost_is_found(face: str) -> None:
    """The id is made by the client, so ``session_exists`` on the repetition means success."""
    seen = []

    def server(request: Request) -> Reply:
        seen.append((request.method, request.path, request.json.get("id") if request.body else None))
        if request.method == "GET":
            return json_reply({**SESSION, "id": request.path.rpartition("/")[2]})
        return Reply(die=True) if len(seen) == 1 else error_reply(409, "session_exists")

    session = use(face, server, lambda c: c.sessions.create(title="T"))

    own = seen[0][2]
    assert [
        ("POST", "/api/sessions", own),
        ("POST", "/api/sessions", own),
        ("GET", f"/api/sessions/{own}", None),
    ] == seen
    assert own == session.id


def test_a_session_that_exists_at_the_first_attempt_is_an_error(face: str) -> None:
    """Then it is somebody else's."""
    with pytest.raises(ErrorResponse) as caught:
        use(face, lambda _: error_reply(409, "session_exists"), lambda c: c.sessions.create(id="mine"))

    assert "session_exists" == caught.value.code


def test_a_session_of_the_callers_own_id_is_never_guessed_to_be_new(face: str) -> None:
    """Even on a repetition: it may have existed before."""
    replies = iter([Reply(die=True), error_reply(409, "session_exists")])

    with pytest.raises(ErrorResponse):
        use(face, lambda _: next(replies), lambda c: c.sessions.create(id="mine"))


def test_a_deletion_whose_answer_was_lost_is_a_success(face: str) -> None:
    """On the repetition the session is gone, as it was meant to be."""
    replies = iter([Reply(die=True), error_reply(404, "session_not_found")])

    assert use(face, lambda _: next(replies), lambda c: c.sessions.delete("s")) is None


def test_the_deletion_of_an_unknown_session_is_an_error(face: str) -> None:
    """At the first attempt it was not us."""
    with pytest.raises(ErrorResponse):
        use(face, lambda _: error_reply(404, "session_not_found"), lambda c: c.sessions.delete("s"))


@pytest.mark.parametrize("reply", [Reply(die=True), Reply(500), Reply(502)])
def test_a_post_without_a_key_is_not_repeated_when_it_may_have_worked(face: str, reply: Reply) -> None:
    """A fork that was made and whose answer was lost would be made twice."""
    requests = []

    def note(request: Request) -> Reply:
        requests.append(request)
        return reply

    with pytest.raises((ConnectionLost, APIError)):
        use(face, note, lambda c: c.sessions.fork("s", message_index=1))

    assert 1 == len(requests)


@pytest.mark.parametrize("refusal", [error_reply(503, "draining"), error_reply(429, "too_many")])
def test_a_post_without_a_key_is_repeated_when_it_was_refused(face: str, refusal: Reply) -> None:
    """Then nothing was done."""
    replies = iter([refusal, json_reply(SESSION, 201)])

    assert "s" == use(face, lambda _: next(replies), lambda c: c.sessions.fork("s", message_index=1)).id


def test_a_server_that_nobody_reaches_is_an_error_after_the_retries(face: str) -> None:
    """ConnectionFailed: nothing was sent."""
    with pytest.raises(ConnectionFailed):
        use(face, UNREACHABLE, lambda c: c.system.get_health())


def test_connection_errors_need_not_be_retried(face: str) -> None:
    """The last field of RetryConfig says whether they are."""
    requests = []

    def note(request: Request) -> Reply:
        requests.append(request)
        return Reply(die=True)

    config = RetryConfig("backoff", BackoffStrategy(1, 1, 1.5, 1000), False)
    with pytest.raises(ConnectionLost):
        use(face, note, lambda c: c.sessions.list(), retry_config=config)

    assert 1 == len(requests)


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413])
def test_what_the_caller_caused_is_not_retried(face: str, status: int) -> None:
    """4xx will not change."""
    requests = []

    def note(request: Request) -> Reply:
        requests.append(request)
        return error_reply(status, "some_reason")

    with pytest.raises(ErrorResponse) as caught:
        use(face, note, lambda c: c.sessions.get("s"))

    assert 1 == len(requests)
    assert (status, "some_reason") == (caught.value.status_code, caught.value.code)


def test_the_last_error_is_raised_in_the_end(face: str) -> None:
    """A server that stays broken is an APIError with its status."""
    with pytest.raises(APIError) as caught:
        use(face, lambda _: Reply(502, b"<html>"), lambda c: c.sessions.get("s"))

    assert not isinstance(caught.value, ErrorResponse)
    assert 502 == caught.value.status_code


def test_a_success_of_another_form_is_an_error(face: str) -> None:
    """Some login page, for example."""
    with pytest.raises(ResponseInvalid):
        use(face, lambda _: Reply(200, b"<html>"), lambda c: c.sessions.get("s"))


def test_headers_of_client_and_call_are_sent(face: str) -> None:
    """The call's win."""
    seen = []

    def note(request: Request) -> Reply:
        seen.append((request.headers["authorization"], request.headers["x-a"]))
        return json_reply(SESSION)

    use(
        face,
        note,
        lambda c: c.sessions.get("s", http_headers={"X-A": "call"}),
        headers={"Authorization": "Bearer t", "X-A": "client"},
    )

    assert [("Bearer t", "call")] == seen


def test_a_header_that_would_forge_another_is_refused(face: str) -> None:
    """It is the caller's fault, and is not retried as a network error."""
    with FakeServer(lambda _: json_reply(SESSION)) as server, pytest.raises(InvalidInput):
        use(face, server.url, lambda c: c.sessions.get("s", http_headers={"x-a": "1\r\nx-b: 2"}))


@pytest.mark.parametrize(
    "url", ["localhost:8088", "http://", "http://h:65536", "http://h:0", "http://h:x", "http://[::1"]
)
def test_no_address_of_a_server_is_refused(face: str, url: str) -> None:
    """Without a scheme, which everybody forgets once, without a host, or with what is no port."""
    with pytest.raises(InvalidInput, match="A server's address"):
        use(face, url, lambda c: c.system.get_health())


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("url", [None, 8088])
def test_what_is_no_text_is_no_address(client: Any, url: Any) -> None:
    """Such as that of an environment variable that is not set."""
    with pytest.raises(InvalidInput, match=f"A server's address starts with http.*unlike '{url}'"):
        client(url)


@pytest.mark.parametrize("question", [None, 42, b"hi"])
def test_a_question_is_text(question: Any) -> None:
    """What is no text is told from text before anything is sent, by both faces."""
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidInput, match="question must be text, got"):
        client.ask(question)
    with pytest.raises(InvalidInput, match="question must be text, got"):
        AsyncClient("http://127.0.0.1:9").ask(question)


def test_every_operation_reaches_its_path(face: str) -> None:
    """The table of the surface: method, path, query and body."""
    seen = []
    page = {"events": [{"offset": 1, "type": "session.created", "at": 1.5, "data": {}}], "head": 1, "next": None}
    answers: dict[str, Any] = {
        "events": page,
        "export": {"id": "s", "title": "T", "messages": [{"id": "m", "role": "user", "content": "hi"}]},
        "cancel": {"cancelled": True},
        "grant": {"granted": True},
        "deny": {"denied": True},
        "health": {"status": "ok", "timestamp": "now", "version": "1"},
        "history": [],
        "messages": [{"id": "m", "sessionId": "s", "role": "user", "userInput": "hi"}],
        "sessions": [SESSION],
    }

    def server(request: Request) -> Reply:
        seen.append((request.method, request.path, request.query, request.json if request.body else None))
        last = request.path.rpartition("/")[2]
        return Reply(204) if request.method == "DELETE" or last == "respond" else json_reply(answers.get(last, SESSION))

    def each(client: Any) -> list[Any]:
        return [
            client.sessions.list(limit=5, include_subagents=True),
            client.sessions.get("s"),
            client.sessions.delete("s"),
            client.sessions.rewind("s", message_id="m"),
            client.sessions.export("s"),
            client.sessions.cancel_processing("s"),
            client.sessions.cancel(id="s", run_id="r"),
            client.sessions.messages("s"),
            client.sessions.events("s", after=3),
            client.messages.list("s"),
            client.messages.history(limit=2, offset=4),
            client.permissions.grant(id="p"),
            client.permissions.deny(id="p"),
            client.notifications.respond(id="n", type="text", value="yes"),
            client.system.get_health(),
        ]

    def act(client: Any) -> Any:
        async def all_of_them() -> list[Any]:
            return [await answer for answer in each(client)]

        return each(client) if face == "sync" else all_of_them()

    values = use(face, server, act)

    assert [
        ("GET", "/api/sessions", {"limit": "5", "includeSubagents": "true"}, None),
        ("GET", "/api/sessions/s", {}, None),
        ("DELETE", "/api/sessions/s", {}, None),
        ("POST", "/api/sessions/s/rewind", {}, {"messageId": "m", "cleanupMedia": True}),
        ("GET", "/api/sessions/s/export", {}, None),
        ("POST", "/api/sessions/s/cancel", {}, None),
        ("POST", "/api/sessions/s/cancel", {}, {"runId": "r"}),
        ("GET", "/api/sessions/s/messages", {}, None),
        ("GET", "/api/sessions/s/events", {"after": "3", "limit": "500"}, None),
        ("GET", "/api/sessions/s/messages", {}, None),
        ("GET", "/api/messages/history", {"limit": "2", "offset": "4"}, None),
        ("POST", "/api/permissions/p/grant", {}, None),
        ("POST", "/api/permissions/p/deny", {}, None),
        ("POST", "/api/notifications/n/respond", {}, {"type": "text", "value": "yes"}),
        ("GET", "/health", {}, None),
    ] == seen
    assert ("T", True, "hi", 1, True, "ok") == (
        values[1].title,
        values[5].cancelled,
        values[7][0].user_input,
        values[8].head,
        values[11].granted,
        values[14].status,
    )


def test_a_file_is_what_its_hash_says(face: str) -> None:
    """As bytes; what has another SHA-256, as a page to sign in, is none."""
    seen = []

    def server(request: Request) -> Reply:
        seen.append((request.method, request.path))
        return Reply(200, b"\xff\x00", {"content-type": "image/png"})

    data, other = sha256(b"\xff\x00").hexdigest(), sha256(b"").hexdigest()
    assert use(face, server, lambda c: c.sessions.blob("s/1", data)) == b"\xff\x00"
    assert seen == [("GET", f"/api/sessions/s/1/blobs/{data}")]
    with pytest.raises(ResponseInvalid, match="expected bytes whose SHA-256 is"):
        use(face, server, lambda c: c.sessions.blob("s", other, retries=None))
    for hash in ("", "..", "."):
        with pytest.raises(InvalidInput):
            use(face, server, lambda c, hash=hash: c.sessions.blob("s", hash))


def test_a_client_of_ones_own_is_not_closed(face: str) -> None:
    """Who made it closes it."""
    transport = FakeTransport(lambda _: json_reply(SESSION))

    async def later() -> bool:
        http = httpx2.AsyncClient(transport=transport)
        async with AsyncClient("http://test", http_client=http) as client:
            await client.sessions.get("s")
        return http.is_closed

    def sync() -> bool:
        http = httpx2.Client(transport=transport)
        with Client("http://test", http_client=http) as client:
            client.sessions.get("s")
        return http.is_closed

    assert not (sync() if face == "sync" else asyncio.run(later()))


def test_unset_stands_for_the_clients_own_retries(face: str) -> None:
    """``retries=UNSET`` is the same as not giving it."""
    replies = iter([Reply(500), json_reply(SESSION)])

    assert "s" == use(face, lambda _: next(replies), lambda c: c.sessions.get("s", retries=UNSET)).id


# Answers -------------------------------------------------------------------------------------------------------------


def talk(request: Request) -> Reply:
    """A server with one session ``s`` whose answer is ``ANSWER``, among the events of another run."""
    if request.path == "/api/sessions":
        return json_reply({**SESSION, "id": "s"}, 201)
    if request.path.endswith("/messages"):
        return json_reply({**SENT, "cursor": "0"}, 202)
    if request.path.endswith("/cancel"):
        return json_reply({"cancelled": True})
    return replay(request)


def test_ask_gives_the_events_of_one_answer_to_its_end(face: str) -> None:
    """From the question to ``complete``; the session's later events are not the answer's."""
    events = use(face, talk, lambda c: drain(c.ask("hi")))

    assert ["user_message_created", "run_started", "content", "content", "complete"] == [e.event for e in events]


def test_ask_knows_its_session_and_run_and_text(face: str) -> None:
    """For the next question, for a cancel, and for a page that shows the text so far."""

    def sync(client: Client) -> Any:
        answer = client.ask("hi")
        texts = [answer.text for _ in answer]
        return answer.session_id, answer.run_id, texts, answer.outcome

    async def later(client: AsyncClient) -> Any:
        answer = await client.ask("hi")
        texts = [answer.text async for _ in answer]
        return answer.session_id, answer.run_id, texts, answer.outcome

    session, run, texts, outcome = use(face, talk, sync if face == "sync" else later)  # type: ignore[arg-type]

    assert ("s", "r1") == (session, run)
    assert ["", "", "Hel", "Hello \U0001f3bb", "Hello \U0001f3bb"] == texts
    assert "complete" == outcome.event


def test_read_gives_the_whole_text(face: str) -> None:
    """The shortest way to an answer."""

    async def later(client: AsyncClient) -> str:
        return await (await client.ask("hi")).read()

    act: Any = (lambda c: c.ask("hi").read()) if face == "sync" else later
    assert "Hello \U0001f3bb" == use(face, talk, act)


def test_a_loop_that_is_left_early_closes_the_connection_and_cancels_nothing(face: str) -> None:
    """The answer goes on being written."""
    seen = []

    def note(request: Request) -> Reply:
        seen.append(request.path)
        return talk(request)

    def sync(client: Client) -> bool:
        answer = client.ask("hi", session_id="s")
        for _ in answer:
            break
        return next(iter(answer.stream), None) is None

    async def later(client: AsyncClient) -> bool:
        async with client.ask("hi", session_id="s") as answer:
            async for _ in answer:
                break
        return await anext(answer.stream, None) is None

    assert use(face, note, sync if face == "sync" else later)  # type: ignore[arg-type]
    assert ["/api/sessions/s/messages", "/stream"] == seen


def test_cancel_names_the_run(face: str) -> None:
    """So that it never ends somebody else's answer."""
    bodies = []

    def note(request: Request) -> Reply:
        if request.path.endswith("/cancel"):
            bodies.append(request.json)
        return talk(request)

    async def later(client: AsyncClient) -> None:
        async with client.ask("hi", session_id="s") as answer:
            await answer.cancel()

    def sync(client: Client) -> None:
        with client.ask("hi", session_id="s") as answer:
            answer.cancel()

    use(face, note, sync if face == "sync" else later)  # type: ignore[arg-type]

    assert [{"runId": "r1"}] == bodies


def test_an_opening_is_awaited_entered_or_iterated_over() -> None:
    """The three ways of the async client; nothing is sent before."""
    requests = []

    def note(request: Request) -> Reply:
        requests.append(request)
        return talk(request)

    async def go(client: AsyncClient) -> list[int]:
        answer = client.ask("hi", session_id="s")
        assert [] == requests
        counts = [len([event async for event in answer])]
        async with client.ask("hi", session_id="s") as opened:
            counts.append(len([event async for event in opened]))
        counts.append(len([event async for event in await client.ask("hi", session_id="s")]))
        return counts

    assert [5, 5, 5] == use("async", note, go)


def test_a_cancelled_wait_loses_nothing() -> None:
    """A timeout around the next event ends the wait, not the stream."""

    def silent_first(request: Request) -> Reply:
        reply = replay(request)
        if "last-event-id" not in request.headers:
            reply.body, reply.silent = ANSWER.after(None)[:-10], True
        return reply

    async def go(client: AsyncClient) -> list[str]:
        seen: list[str] = []
        async with client.streaming.stream_events(session_id="s", quiet=True) as events:
            while len(seen) < 5:
                seen.append((await anext(events)).id)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(events)
            return seen + [event.id async for event in events]

    with FakeServer(silent_first) as server:
        assert ["1", "2", "3", "4", "5", "6"] == use("async", server.url, go)


def test_help_tells_what_a_method_takes_and_returns(face: str) -> None:
    """Though it is written once, as an operation."""

    def signatures(client: Any) -> str:
        return f"{inspect.signature(client.sessions.get)} {inspect.signature(client.streaming.stream_events)}"

    text = use(face, replay, signatures)

    assert text.startswith("(id: 'str', **options: 'Unpack[Options]') -> 'SessionData' (*, session_id: 'str'")
    assert text.endswith("-> 'EventStream'" if face == "sync" else "-> 'Opening[AsyncEventStream]'")


# As in the documents of the Mix SDK ----------------------------------------------------------------------------------


def test_the_documented_loop_runs() -> None:
    """``with res as event_stream`` as the documents write it, and ``with res.result`` as it really had to be."""
    seen = []
    with FakeServer(replay) as server:
        for spelling in ("res", "res.result"):
            code = (
                "with Mix() as mix:\n"
                "    res = mix.streaming.stream_events(session_id='s')\n"
                f"    with {spelling} as event_stream:\n"
                "        for event in event_stream:\n"
                "            seen.append(event.event)\n"
            )
            exec(code, {"Mix": lambda: Client(server_url=server.url), "seen": seen})

    assert 2 * (1 + len(ANSWER.frames)) == len(seen)


def test_the_documented_send_runs() -> None:
    """One call, whose answer can be printed."""
    with FakeServer(lambda _: json_reply({"status": "broadcasted", "sessionId": "s"})) as server:
        with Client(server_url=server.url) as mix:
            res = mix.streaming.send_streaming_message(id="s", content="hi")

        assert "broadcasted" in repr(res)


def test_without_arguments_the_server_is_the_local_one() -> None:
    """As it was up to Mix SDK 0.7."""
    with Client() as client:
        assert "http://localhost:8088" == client.settings.base_url


PROXIES = {
    "ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks5h://user:secret@127.0.0.1:9",
    "HTTP_PROXY": "socks4://127.0.0.1:9", "https_proxy": "gopher://127.0.0.1", "HTTPS_PROXY": "http://[::1",
    "http_proxy": "http://127.0.0.1:port",
}  # fmt: skip


@pytest.mark.parametrize("without", [{}, {"NO_PROXY": "127.0.0.1,localhost"}])
@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_proxy_that_cannot_be_used_is_named(
    make: Any, name: str, without: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variable of the environment; a secret of it is not told."""
    if name.startswith(("ALL", "all")):
        monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is not installed
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    for variable, value in {name: PROXIES[name], **without}.items():
        monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidInput, match=f"^{name.upper()} names a proxy that cannot be used: ") as caught:
        make(UNREACHABLE)

    assert "secret" not in caught.value.message
