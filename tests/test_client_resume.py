"""When the client comes back, and from where: bytes and numbers in, messages and waits out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fake_server import ANSWER, FakeLog, frame
from legato.client.reader import EventReader, stream_events
from legato.client.resume import CONTROL, ReconnectBackoff, Resume
from legato.errors import InvalidInput
from legato.http.call import request
from legato.sse import HEARTBEAT, SSEMessage

LAW = json.loads((Path(__file__).parent / "vectors" / "waits.json").read_text())
CURSORS = json.loads((Path(__file__).parent / "vectors" / "cursors.json").read_text())["cases"]
DELTAS = FakeLog(*(("content", {"content": letter}) for letter in "abcdefghij"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def most() -> float:
    """The highest roll of the dice."""
    return 1.0


def facts(messages: list[SSEMessage]) -> list[tuple[str, str]]:
    return [(message.id, message.data) for message in messages if message.event not in CONTROL]


@pytest.mark.parametrize("log", [ANSWER, DELTAS])
def test_a_stream_cut_at_any_byte_and_resumed_is_the_uncut_stream(log: FakeLog) -> None:
    """Wherever the body is cut, the resumed stream adds what is missing and nothing else."""
    whole = Resume()
    whole.connect()
    whole.opened("exact")
    body = log.after(None)
    uncut = facts(whole.receive(body))

    for cut in range(len(body) + 1):
        resume = Resume()
        resume.connect()
        resume.opened("exact")
        seen = resume.receive(body[:cut])
        assert resume.lost() is not None
        cursor = resume.connect().get("last-event-id")
        resume.opened("exact")
        seen += resume.receive(log.after(cursor))

        assert uncut == facts(seen)


def test_a_stream_cut_after_each_byte_in_turn_is_the_uncut_stream() -> None:
    """A connection that always breaks, each time one byte later, still brings the whole stream."""
    resume = Resume()
    seen: list[SSEMessage] = []
    size = 0
    while len(facts(seen)) < len(DELTAS.frames):
        size += 1
        cursor = resume.connect().get("last-event-id")
        resume.opened("exact")
        seen += resume.receive(DELTAS.after(cursor)[:size])
        resume.lost()

    assert [str(n) for n in range(1, 11)] == [id for id, _ in facts(seen)]


def test_the_first_request_of_a_new_reader_has_no_cursor() -> None:
    """Without a cursor there is no header."""
    assert {} == Resume().connect()


def test_a_given_cursor_is_sent() -> None:
    """A reader of an earlier session goes on where that one was."""
    assert {"last-event-id": "7"} == Resume("7").connect()


@pytest.mark.parametrize("cursor", ["7\r\nx: y", "7\n", "é", "\0"])
def test_a_cursor_that_cannot_be_a_header_is_refused(cursor: str) -> None:
    """What would forge or break a header never gets that far."""
    with pytest.raises(InvalidInput):
        Resume(cursor)


def test_an_unfinished_event_does_not_move_the_cursor() -> None:
    """The id of an event without its blank line does not count."""
    resume = Resume()
    resume.connect()
    resume.opened("exact")
    resume.receive(frame("content", 1, content="a") + frame("content", 2, content="b")[:-1])

    assert {"last-event-id": "1"} == resume.connect()


def test_repeated_messages_are_dropped() -> None:
    """A server that repeats what was read does no harm."""
    resume = Resume("1")
    resume.connect()
    resume.opened("exact")
    messages = resume.receive(b"".join(frame("content", n, content=str(n)) for n in (1, 2, 2, 1, 3)))

    assert ["2", "3"] == [message.id for message in messages]


def test_greeting_and_heartbeat_are_never_dropped_and_never_move_the_cursor_back() -> None:
    """Their ids repeat where the reader stands; an older one changes nothing."""
    resume = Resume("5")
    resume.connect()
    resume.opened("exact")
    messages = resume.receive(frame("connected", 3) + frame("heartbeat", 4) + frame("heartbeat", 4))

    assert ["3", "4", "4"] == [message.id for message in messages]
    assert "5" == resume.cursor


def test_the_greeting_gives_a_new_reader_its_cursor() -> None:
    """A reader at the tail that is cut before any event comes back to that tail."""
    resume = Resume()
    resume.connect()
    resume.opened("exact")
    resume.receive(frame("connected", 42))

    assert {"last-event-id": "42"} == resume.connect()


def test_ids_of_another_server_are_taken_as_they_are() -> None:
    """Without the Legato-Cursor header ids need not be numbers, nor grow."""
    resume = Resume("9")
    resume.connect()
    resume.opened(None)
    messages = resume.receive(frame("content", 1, content="a") + frame("content", "x-1", content="b"))

    assert ["1", "x-1"] == [message.id for message in messages]
    assert "x-1" == resume.cursor


def test_after_a_reset_smaller_ids_are_new() -> None:
    """A log that was restored starts again; nothing of it is a repetition."""
    resume = Resume("900")
    resume.connect()
    resume.opened("reset")
    messages = resume.receive(frame("connected", 0) + frame("content", 1, content="a"))

    assert resume.reset
    assert ["0", "1"] == [message.id for message in messages]
    assert "1" == resume.cursor


def test_a_reset_is_announced_again_when_the_connection_dies_before_its_greeting() -> None:
    """The old cursor is offered until somebody has been told that it is gone."""
    resume = Resume("900")
    resume.connect()
    resume.opened("reset")
    resume.receive(frame("connected", 0)[:-1])
    resume.lost()

    assert {"last-event-id": "900"} == resume.connect()


@pytest.mark.parametrize("case", CURSORS, ids=lambda case: case["name"])
@pytest.mark.parametrize("cut", [1, 1_000])
def test_what_becomes_of_the_cursor_is_as_in_browsers(case: dict[str, Any], cut: int) -> None:
    """The table holds for the browser's client, too. However the bodies are cut into chunks."""
    resume = Resume(case.get("given"))
    sent = []
    for body in [*case["bodies"], ""]:
        sent.append(resume.connect().get("last-event-id"))
        resume.opened()
        for begin in range(0, len(body), cut):
            resume.receive(body[begin : begin + cut].encode())
    assert sent == case["sent"]


def test_an_id_of_any_text_is_sent_back_in_utf_8() -> None:
    """As browsers do it; so is any header that a caller gives."""
    reader = EventReader(stream_events(session_id="s"))
    reader.connect()
    reader.opened(httpx2.Response(200, headers={"content-type": "text/event-stream"}))
    reader.receive('event: content\ndata: {"content": "a"}\nid: 日本 é\n\n'.encode())
    arguments = request(reader.connect(), "http://localhost", {}, httpx2.Timeout(1))
    sent = httpx2.Client().build_request(**arguments)
    assert (b"last-event-id", "日本 é".encode()) in sent.headers.raw


@pytest.mark.parametrize("taken", [b"id:\n\n", b"id\nevent: content\ndata: b\n\n"])
def test_a_legato_server_may_take_a_cursor_away_too(taken: bytes) -> None:
    """By the same rule; the next id is one, however small."""
    resume = Resume()
    resume.connect()
    resume.opened("exact")
    resume.receive(b"event: content\ndata: a\nid: 7\n\n" + taken)
    assert resume.connect() == {}
    resume.opened("exact")
    assert facts(resume.receive(b"event: content\ndata: c\nid: 3\n\n")) == [("3", "c")]
    assert resume.connect() == {"last-event-id": "3"}


def test_comments_are_nothing() -> None:
    """Heartbeat lines and comments of proxies give no message."""
    resume = Resume()
    resume.connect()

    assert [] == resume.receive(HEARTBEAT + b": keep-alive\n\n" + HEARTBEAT)


@pytest.mark.parametrize("case", LAW["waits"], ids=lambda case: "-".join(map(str, case.values())))
def test_waits_are_those_of_the_law(case: dict[str, Any]) -> None:
    """The table holds for the browser's client, too."""
    resume = Resume(backoff=ReconnectBackoff(give_up_after=None), random=lambda: case["random"])
    resume.connect()
    if case["retry"] is not None:
        resume.receive(b"retry: %d\n\n" % case["retry"])
    for _ in range(case["attempt"]):
        resume.lost()
    resume.connect()  # a later connection keeps the server's wish
    retry_after = case["retry_after"]

    assert case["wait"] == pytest.approx(
        1000 * (resume.lost(status=503, retry_after=None if retry_after is None else retry_after / 1000) or 0)
    )


def test_a_patience_of_ones_own_keeps_the_law() -> None:
    """Base, factor and cap are the caller's; the server's wish is bounded by the same cap."""
    backoff = ReconnectBackoff(base=0.5, factor=3.0, cap=4.0)

    assert [0.5, 1.5, 4.0] == [backoff.wait(attempt, 1.0) for attempt in range(3)]
    assert [0.25, 0.75, 2.0] == [backoff.wait(attempt, 0.0) for attempt in range(3)]
    assert [4.0, 2.0] == [backoff.wait(attempt, 0.0, retry=9.0) for attempt in range(2)]


def test_an_event_resets_the_attempts() -> None:
    """Progress means that the next cut is a first one."""
    resume = Resume(random=most)
    resume.lost()
    resume.lost()
    resume.connect()
    resume.opened("exact")
    resume.receive(frame("content", 1, content="a"))

    assert 1.0 == resume.lost()


@pytest.mark.parametrize("name", ["connected", "heartbeat"])
def test_a_greeting_or_a_heartbeat_alone_is_no_progress(name: str) -> None:
    """A server that greets and hangs up is asked less and less often."""
    resume = Resume(random=most)
    waits = []
    for _ in range(3):
        resume.connect()
        resume.opened("exact")
        resume.receive(frame(name, 1))
        waits.append(resume.lost())

    assert [1.0, 2.0, 4.0] == waits


@pytest.mark.parametrize(("seconds", "wait"), [(30.0, 4.0), (30.5, 1.0)])
def test_a_connection_that_is_still_heard_after_half_a_minute_is_progress(seconds: float, wait: float) -> None:
    """Proxies that cut a silent stream each minute are no server in trouble."""
    clock = Clock()
    resume = Resume(random=most, clock=clock)
    resume.lost()
    resume.lost()
    resume.connect()
    clock.now = 100.0
    resume.opened("exact")
    clock.now += seconds
    resume.receive(HEARTBEAT)

    assert wait == resume.lost()


@pytest.mark.parametrize("status", LAW["final"])
def test_a_final_status_is_the_end(status: int) -> None:
    """These answers will not change."""
    assert Resume().lost(status=status) is None


@pytest.mark.parametrize("status", LAW["passing"])
def test_a_passing_status_is_not_the_end(status: int) -> None:
    """These may be better next time."""
    assert 1.0 == Resume(random=most).lost(status=status)


def test_it_gives_up_after_a_time_without_progress() -> None:
    """Ten minutes of nothing are enough, when the caller says so."""
    clock = Clock()
    resume = Resume(clock=clock, backoff=ReconnectBackoff(give_up_after=600))
    assert resume.lost() is not None
    clock.now = 600.0
    assert resume.lost() is not None
    clock.now = 601.0

    assert resume.lost() is None


def test_progress_starts_that_time_anew() -> None:
    """What counts is the time since something was heard."""
    clock = Clock()
    resume = Resume(clock=clock, backoff=ReconnectBackoff(give_up_after=600))
    resume.lost()
    resume.connect()
    resume.opened("exact")
    resume.receive(frame("content", 1, content="a"))
    clock.now = 601.0

    assert resume.lost() is not None
