"""The Responses API itself: raw events, kept responses, and streams that go on by themselves; on both faces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fake_server import FakeServer, Reply, Request, json_reply, stream_reply
from legato.client.resume import ReconnectBackoff
from legato.errors import InvalidInput
from legato.provider import (
    ArgumentsDeltaEvent,
    LifecycleEvent,
    OutputItemEvent,
    ReasoningDeltaEvent,
    ResponseCancelled,
    ResponseErrorEvent,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    StreamChunk,
    StreamInterrupted,
    StreamMalformed,
    TextDeltaEvent,
    ToolCall,
    ToolOutput,
)
from provider_streams import (
    CALLS,
    CREATED,
    ERROR_EVENTS,
    FACES,
    FAILED_EVENTS,
    INCOMPLETE_EVENTS,
    REASONING_EVENTS,
    RECORDINGS,
    TEXT,
    TEXT_EVENTS,
    TOOL_EVENTS,
    chat,
    cut_reply,
    delta,
    item,
    numbered,
    read,
    sse,
    state,
    use,
)

both = pytest.mark.parametrize("face", FACES)
STREAMS = {"text": TEXT_EVENTS, "reasoning": REASONING_EVENTS, "tools": TOOL_EVENTS}


def send(client: Any, **options: Any) -> Any:
    return read(client.send_message_stream("Hello", model="m", **options))


def raw(face: str, events: list[Any], **more: Any) -> Any:
    return use(face, "ResponsesClient", lambda _: stream_reply(sse(events, **more), None), send)


# Raw events ----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", STREAMS)
def test_every_event_comes_in_order_as_it_was_sent(face: str, name: str) -> None:
    """Raw events are all there, with all their fields, of whatever type."""
    seen = raw(face, STREAMS[name])

    assert None is seen.error
    assert STREAMS[name] == [event.raw for event in seen.items]
    assert [event["sequence_number"] for event in STREAMS[name]] == [event.sequence_number for event in seen.items]


@both
def test_events_are_typed(face: str) -> None:
    """Each known shape is a class of its own; what is not known is a plain event."""
    text, tools, thinking = (raw(face, STREAMS[name]).items for name in ("text", "tools", "reasoning"))

    assert [LifecycleEvent, OutputItemEvent, ResponseEvent, TextDeltaEvent] == [type(event) for event in text[:4]]
    assert ("Hel", 0) == (text[3].delta, text[3].output_index)
    assert ArgumentsDeltaEvent is type(tools[3])
    assert ReasoningDeltaEvent is type(thinking[2])


@both
def test_the_type_may_stand_in_the_frame_alone(face: str) -> None:
    """An event without a type field has the one of its frame."""
    fields = [{name: value for name, value in event.items() if name != "type"} for event in TEXT_EVENTS]
    frames = zip(TEXT_EVENTS, fields, strict=True)
    body = b"".join(b"event: %s\n" % event["type"].encode() + sse([json.dumps(rest)]) for event, rest in frames)

    seen = use(face, "ResponsesClient", lambda _: stream_reply(body, None), send)

    assert (None, TEXT) == (seen.error, seen.partial.text)


@both
def test_a_failure_is_raised_after_its_last_event(face: str) -> None:
    """The raw stream shows ``error`` and ``response.failed``, and then raises."""
    seen = raw(face, ERROR_EVENTS)

    assert ERROR_EVENTS == [event.raw for event in seen.items]
    assert ResponseErrorEvent is type(seen.items[2])
    assert (ResponseFailed, "quota", "server_error", "Too poor.", "Hel") == (
        type(seen.error),
        seen.error.code,
        seen.error.type,
        seen.error.message,
        seen.error.partial.text,
    )


@both
@pytest.mark.parametrize(
    "error",
    [
        {"type": "error", "code": "quota", "message": "Too poor.", "param": None},
        {"type": "error", "error": {"code": "quota", "message": "Too poor."}},
        {"type": "error", "code": "quota", "message": "Too poor.", "error": {"code": "quota"}},
    ],
)
def test_an_error_event_may_be_flat_or_nested(face: str, error: Any) -> None:
    """Both forms of an ``error`` event, also when nothing follows it, raise its code and message."""
    for client, act in (("ResponsesClient", send), ("ResponsesProvider", chat)):
        seen = use(face, client, lambda _: stream_reply(sse(numbered(CREATED, error)), None), act)

        assert (ResponseFailed, "quota", "Too poor.") == (type(seen.error), seen.error.code, seen.error.message)


@both
@pytest.mark.parametrize(
    ("events", "error"),
    [
        (FAILED_EVENTS, ResponseFailed),
        (INCOMPLETE_EVENTS, ResponseIncomplete),
        (numbered(CREATED, state("failed", status="cancelled")), ResponseCancelled),
        (numbered(CREATED, state("cancelled")), ResponseCancelled),
        (numbered({**CREATED, "response": "resp_1"}), StreamMalformed),
        (numbered(CREATED, {"type": "response.output_text.delta", "delta": 7}), StreamMalformed),
        (numbered(CREATED, delta(0, "function_call_arguments", "{}")), StreamMalformed),
        ([*TEXT_EVENTS[:4], "[DONE]"], StreamInterrupted),
        (TEXT_EVENTS[:4], StreamInterrupted),
    ],
)
def test_what_is_no_success_is_raised(face: str, events: Any, error: type[Exception]) -> None:
    """Failed, incomplete, cancelled, malformed or unfinished: on no stream is it a silent end."""
    for client, act in (("ResponsesClient", send), ("ResponsesProvider", chat)):
        seen = use(face, client, lambda _: stream_reply(sse(events), None), act)

        assert error is type(seen.error)


@both
@pytest.mark.parametrize("kind", ["reasoning_summary_text", "reasoning_text", "reasoning"])
def test_thinking_has_three_names(face: str, kind: str) -> None:
    """Whatever a provider calls its reasoning events, they are thinking."""
    events = numbered(CREATED, delta(0, kind, "Hm."), state("completed"))

    seen = use(face, "ResponsesProvider", lambda _: stream_reply(sse(events), None), chat)

    assert (None, "Hm.") == (seen.error, seen.partial.thinking)


@both
def test_items_without_deltas_are_not_lost(face: str) -> None:
    """Some servers send an item only when it is whole."""
    content = [{"type": "output_text", "text": "Hello"}, {"type": "refusal", "refusal": "No."}]
    events = numbered(
        CREATED,
        item(0, "done", type="reasoning", content=[{"type": "reasoning_text", "text": "Hm."}]),
        item(1, "done", type="message", content=content),
        item(2, "done", type="function_call", call_id="call_a", name="add", arguments='{"x":1}'),
        state("completed"),
    )

    seen = use(face, "ResponsesProvider", lambda _: stream_reply(sse(events), None), chat)

    assert ("Hm.", "Hello", "No.") == (seen.partial.thinking, seen.partial.text, seen.partial.refusal)
    assert (ToolCall("call_a", "add", '{"x":1}'),) == seen.partial.tool_calls


@both
def test_an_output_that_was_not_streamed_is_not_lost(face: str) -> None:
    """A server may send nothing but the terminal event."""
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}]
    events = numbered(CREATED, state("completed", output=output))

    seen = use(face, "ResponsesProvider", lambda _: stream_reply(sse(events), None), chat)

    assert (None, "Hello") == (seen.error, seen.partial.text)


@both
def test_a_refusal_is_a_text_of_its_own(face: str) -> None:
    """What a model says to decline is no answer."""
    events = numbered(CREATED, delta(0, "refusal", "No."), state("completed"))

    seen = use(face, "ResponsesProvider", lambda _: stream_reply(sse(events), None), chat)

    assert ("", "No.", "stop") == (seen.partial.text, seen.partial.refusal, seen.partial.finish_reason)


# Kept responses ------------------------------------------------------------------------------------------------------

KEPT = {"id": "resp_1", "model": "m-1", "status": "in_progress", "output": []}


@both
def test_a_message_is_sent_with_its_options(face: str) -> None:
    """Options go as they are; None is not sent."""
    seen: list[Request] = []

    def handler(request: Request) -> Reply:
        seen.append(request)
        return json_reply({**KEPT, "status": "completed"})

    options = {"model": "m", "store": False, "instructions": None}
    got = use(face, "ResponsesClient", handler, lambda c: c.send_message("Hello", **options))

    assert {"model": "m", "store": False, "input": "Hello", "stream": False} == seen[0].json
    assert ("resp_1", "m-1", "completed", "") == (got.id, got.model, got.status, got.text)


@both
@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda c: c.retrieve("resp/1"), ("GET", "/v1/responses/resp/1")),
        (lambda c: c.cancel("resp_1"), ("POST", "/v1/responses/resp_1/cancel")),
    ],
)
def test_a_kept_response_is_asked_for(face: str, act: Any, expected: tuple[str, str]) -> None:
    """``retrieve`` and ``cancel`` give the response as it is now."""
    seen: list[Request] = []

    def handler(request: Request) -> Reply:
        seen.append(request)
        return json_reply(KEPT)

    got = use(face, "ResponsesClient", handler, act)

    assert (expected, "in_progress") == ((seen[0].method, seen[0].path), got.status)


@both
@pytest.mark.parametrize("status", ["failed", "incomplete", "cancelled"])
def test_retrieve_tells_of_a_failure_and_send_raises_it(face: str, status: str) -> None:
    """Who asks what became of a response wants to know, not to fail."""
    reply = json_reply({**KEPT, "status": status})

    got = use(face, "ResponsesClient", lambda _: reply, lambda c: c.retrieve("resp_1"))
    with pytest.raises(type(got.failure)):
        use(face, "ResponsesClient", lambda _: reply, lambda c: c.send_message("Hello"))

    assert status == got.status


def test_ids_and_numbers_are_checked() -> None:
    """An empty id would ask for something else."""
    for act in (lambda c: c.retrieve(""), lambda c: c.cancel(""), lambda c: c.resume("r", starting_after=-1)):
        with pytest.raises(InvalidInput):
            use("sync", "ResponsesClient", lambda _: Reply(500), act)


# Streams that go on --------------------------------------------------------------------------------------------------


class Upstream:
    """A provider that keeps one response: it cuts the first connection after ``size`` bytes, and continues."""

    def __init__(self, events: list[Any], size: int, *, later: int | None = None, end: bool = False) -> None:
        self.events, self.size, self.later, self.end = events, size, later, end
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        after = int(request.query.get("starting_after", -1))
        body = sse([event for event in self.events if event["sequence_number"] > after])
        size = self.size if len(self.requests) == 1 else self.later
        if size is None or size >= len(body):
            return stream_reply(body, None)
        return stream_reply(body[:size], None) if self.end else cut_reply(body[:size])

    @property
    def asked(self) -> int:
        """How often a generation was paid for."""
        return [request.method for request in self.requests].count("POST")


@both
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("end", [False, True], ids=["cut", "ended"])
def test_a_background_stream_cut_at_any_byte_is_whole(face: str, name: str, end: bool) -> None:
    """After the first event, a background stream loses and repeats nothing, wherever its connection ends."""
    events = STREAMS[name]
    body = sse(events)
    known = body.index(b"\n\n") + 2
    upstream = Upstream(events, 0)

    def all_cuts(client: Any) -> Any:
        return _each(client, upstream, range(known, len(body), 3), end)

    for seen, asked in use(face, "ResponsesClient", upstream, all_cuts):
        assert (None, 1) == (seen.error, asked)
        assert events == [event.raw for event in seen.items]


def _each(client: Any, upstream: Upstream, cuts: Any, end: bool) -> Any:
    def begin(cut: int) -> Any:
        upstream.requests.clear()
        upstream.size, upstream.end = cut, end
        return send(client, background=True)

    if not hasattr(client, "__aenter__"):
        return [(begin(cut), upstream.asked) for cut in cuts]

    async def go() -> list[Any]:
        return [(await begin(cut), upstream.asked) for cut in cuts]

    return go()


@both
def test_a_background_stream_goes_on_after_many_cuts(face: str) -> None:
    """Each connection brings little, and none of it twice, as chunks too."""
    events = STREAMS["tools"]
    longest = max(len(sse([event])) for event in events)
    upstream = Upstream(events, longest, later=longest)

    seen = use(face, "ResponsesProvider", upstream, lambda c: chat(c, background=True))

    assert (None, CALLS, 1) == (seen.error, seen.partial.tool_calls, upstream.asked)
    assert RECORDINGS["tools"].result == seen.partial
    assert {"stream": "true", "starting_after": "0"} == upstream.requests[1].query
    assert "/v1/responses/resp_1" == upstream.requests[1].path


@both
def test_a_background_stream_goes_on_over_a_real_socket(face: str) -> None:
    """The same over a real connection that is cut."""
    upstream = Upstream(TEXT_EVENTS, 900)

    with FakeServer(upstream) as server:
        seen = use(face, "ResponsesProvider", server.url, lambda c: chat(c, background=True))

    assert (None, TEXT, 1) == (seen.error, seen.partial.text, upstream.asked)


@both
def test_a_stream_that_is_not_kept_is_interrupted(face: str) -> None:
    """Without ``background`` there is nothing to continue."""
    upstream = Upstream(TEXT_EVENTS, len(sse(TEXT_EVENTS[:4])))

    seen = use(face, "ResponsesProvider", upstream, chat)

    assert (StreamInterrupted, "Hel", 1) == (type(seen.error), seen.error.partial.text, len(upstream.requests))


@both
@pytest.mark.parametrize("numbers", ["none", "unknown id"])
def test_a_background_stream_without_a_place_is_interrupted(face: str, numbers: str) -> None:
    """A provider that does not number, or a cut before the id is known, leaves nothing to go on with."""
    events = [{name: value for name, value in event.items() if name != "sequence_number"} for event in TEXT_EVENTS]
    body = sse(events[:4]) if numbers == "none" else sse(TEXT_EVENTS)[:10]

    seen = use(face, "ResponsesProvider", lambda _: cut_reply(body), lambda c: chat(c, background=True))

    assert StreamInterrupted is type(seen.error)


def _begun_then(*replies: Reply) -> Any:
    left = iter([cut_reply(sse(TEXT_EVENTS[:4])), *replies])
    return lambda _: next(left)


@both
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (json_reply({"error": {"message": "Too old."}}, 400), StreamInterrupted),
        (Reply(404), StreamInterrupted),
        (json_reply({}, 429, **{"x-should-retry": "false"}), StreamInterrupted),
        (stream_reply(sse(TEXT_EVENTS[5:]), None), StreamInterrupted),
        (stream_reply(sse([{"type": "response.in_progress", "response": {}}]), None), StreamMalformed),
        (json_reply({}), StreamMalformed),
    ],
    ids=["too old", "gone", "never", "gap", "no numbers", "no stream"],
)
def test_a_stream_that_cannot_be_continued_is_an_error(face: str, reply: Reply, error: type[Exception]) -> None:
    """A provider that will not, or continues elsewhere, ends the stream with what came."""
    seen = use(face, "ResponsesProvider", _begun_then(reply), lambda c: chat(c, background=True))

    assert (error, "Hel") == (type(seen.error), seen.error.partial.text)


@both
def test_a_stream_is_continued_when_the_provider_is_back(face: str) -> None:
    """Errors that pass are waited out, as long as Retry-After and the stream's `retry` say, within the cap."""
    waits: list[float] = []
    replies = [
        Reply(503, headers={"retry-after": "9"}),
        Reply(die=True),
        cut_reply(b"retry: 1500\n\n"),
        stream_reply(sse(TEXT_EVENTS[4:]), None),
    ]

    seen = use(
        face,
        "ResponsesProvider",
        _begun_then(*replies),
        lambda c: chat(c, background=True),
        waits=waits,
        random=lambda: 1.0,
    )

    assert (None, TEXT) == (seen.error, seen.partial.text)
    assert [0.5, 10.0, 2.0, 10.0] == waits


@both
def test_what_comes_twice_is_given_once(face: str) -> None:
    """A provider that continues from further back repeats nothing to the caller."""
    seen = use(
        face,
        "ResponsesClient",
        _begun_then(stream_reply(sse(TEXT_EVENTS), None)),
        lambda c: send(c, background=True),
    )

    assert TEXT_EVENTS == [event.raw for event in seen.items]


@both
def test_continuing_is_given_up(face: str) -> None:
    """A provider that brings nothing new is not asked for ever."""
    backoff = ReconnectBackoff(give_up_after=-1.0)

    seen = use(
        face,
        "ResponsesProvider",
        lambda _: cut_reply(sse(TEXT_EVENTS[:4])),
        lambda c: chat(c, background=True),
        reconnect_backoff=backoff,
    )

    assert (StreamInterrupted, "Hel") == (type(seen.error), seen.error.partial.text)


@both
def test_continuing_can_be_turned_off(face: str) -> None:
    """Without a backoff the first cut is the end."""
    upstream = Upstream(TEXT_EVENTS, 900)

    seen = use(face, "ResponsesProvider", upstream, lambda c: chat(c, background=True), reconnect_backoff=None)

    assert (StreamInterrupted, 1) == (type(seen.error), len(upstream.requests))


@both
@pytest.mark.parametrize("after", [None, *range(len(TEXT_EVENTS) - 1)])
def test_resume_reads_behind_any_event(face: str, after: int | None) -> None:
    """``resume`` gives the events behind a number, and goes on by itself too."""
    rest = TEXT_EVENTS[0 if after is None else after + 1 :]
    upstream = Upstream(TEXT_EVENTS, 30)  # cut in the first event

    seen = use(face, "ResponsesClient", upstream, lambda c: read(c.resume("resp_1", starting_after=after)))

    assert (None, rest) == (seen.error, [event.raw for event in seen.items])


@both
@pytest.mark.parametrize("after", [None, *range(len(TOOL_EVENTS) - 1)])
def test_chat_resume_gives_the_chunks_that_were_missed(face: str, after: int | None) -> None:
    """After a crash, the rest comes as chunks that fit, and the result is that of the whole answer."""
    upstream = Upstream(TOOL_EVENTS, 1000)
    whole = use(face, "ResponsesProvider", lambda _: stream_reply(sse(TOOL_EVENTS), None), chat)
    missed = use(
        face,
        "ResponsesProvider",
        lambda _: stream_reply(sse(TOOL_EVENTS[: 0 if after is None else after + 1]), None),
        chat,
    )

    seen = use(face, "ResponsesProvider", upstream, lambda c: read(c.chat_resume("resp_1", starting_after=after)))

    assert (None, whole.partial) == (seen.error, seen.partial)
    assert whole.items == missed.items + seen.items


def test_a_stream_knows_how_far_its_caller_is() -> None:
    """``sequence_number`` is that of the last event of which the caller has all, so nothing is lost behind it."""

    def act(client: Any) -> list[tuple[str, int | None]]:
        stream = client.chat_stream(model="m", messages=[])
        return [(chunk.delta, stream.sequence_number) for chunk in stream]

    output = [{"type": "message", "content": [{"type": "output_text", "text": "!"}]}]
    two_in_one = numbered(CREATED, state("completed", output=output, usage={}))

    got = use("sync", "ResponsesProvider", lambda _: stream_reply(sse(TEXT_EVENTS), None), act)
    both_of_one = use("sync", "ResponsesProvider", lambda _: stream_reply(sse(two_in_one), None), act)

    assert [("Hel", 3), (TEXT[3:], 4), ("", 6)] == got
    assert [("!", 0), ("", 1)] == both_of_one


@both
def test_a_provider_can_cancel(face: str) -> None:
    """A background answer is ended by its id."""
    got = use(
        face,
        "ResponsesProvider",
        lambda _: json_reply({**KEPT, "status": "cancelled"}),
        lambda c: c.cancel("resp_1"),
    )

    assert ("cancelled", ResponseCancelled) == (got.status, type(got.failure))


@both
def test_chunks_that_come_twice_are_given_once(face: str) -> None:
    """As chunks too, a provider that continues from further back repeats nothing."""
    again = stream_reply(sse(TEXT_EVENTS), None)

    seen = use(face, "ResponsesProvider", _begun_then(again), lambda c: chat(c, background=True))

    assert RECORDINGS["text"].result == seen.partial


# What an agent that asks a model needs --------------------------------------------------------------------------------


@both
def test_the_id_of_a_background_answer_comes_first(face: str) -> None:
    """It is known before anything is said, to be kept first; an answer that cannot be continued has none."""

    def chunks(**options: Any) -> list[StreamChunk]:
        server = lambda _: stream_reply(sse(TEXT_EVENTS), None)  # noqa: E731
        return list(use(face, "ResponsesProvider", server, lambda c: chat(c, **options)).items)

    with_id, without = chunks(background=True), chunks()

    assert [StreamChunk(id="resp_1"), *without] == with_id
    assert None is without[0].id


@both
def test_a_call_that_the_provider_has_made(face: str) -> None:
    """What came of it is told, and it is not left to the caller."""
    made = {"type": "function_call_output", "call_id": "call_a", "output": "3"}
    events = numbered(
        CREATED,
        item(0, "added", type="function_call", call_id="call_a", name="add", arguments="{}"),
        item(1, "added", **made),
        item(1, "done", **made),
        item(2, "added", type="function_call_output", call_id="unknown", output="4"),
        state("completed"),
    )
    seen = use(face, "ResponsesProvider", lambda _: stream_reply(sse(events), None), chat)

    assert (None, "stop", (ToolCall("call_a", "add", "{}", "3"),)) == (
        seen.error,
        seen.partial.finish_reason,
        seen.partial.tool_calls,
    )
    assert [ToolOutput(0, "3")] == [chunk.tool_output for chunk in seen.items if chunk.tool_output]


@both
@pytest.mark.parametrize("wire", ["Responses", "ChatCompletions", "Anthropic"])
def test_headers_of_one_request(face: str, wire: str) -> None:
    """They are sent besides the client's own, and with this request only."""
    asked: list[Request] = []

    def server(request: Request) -> Reply:
        asked.append(request)
        return Reply(400)

    def act(client: Any) -> Any:
        return chat(client, headers={"idempotency-key": "k"})

    use(face, f"{wire}Provider", server, act)
    use(face, f"{wire}Provider", server, chat)

    assert ["k", None] == [request.headers.get("idempotency-key") for request in asked]
    assert "text/event-stream" in asked[0].headers["accept"]


@both
def test_a_background_answer_as_it_is_now(face: str) -> None:
    """A provider of chats can look at it, too."""
    whole = {"id": "resp_1", "status": "in_progress", "output": []}
    response = use(face, "ResponsesProvider", lambda _: json_reply(whole), lambda c: c.retrieve("resp_1"))

    assert ("in_progress", "resp_1", None) == (response.status, response.id, response.failure)
