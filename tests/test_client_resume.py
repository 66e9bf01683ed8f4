"""When the client comes back, and from where: bytes and numbers in, messages and waits out."""

from __future__ import annotations

import pytest

from fake_server import ANSWER, FakeLog, frame
from legato.client.resume import CONTROL, MAX_RETRY_AFTER, ReconnectBackoff, Resume
from legato.errors import InvalidInput
from legato.sse import HEARTBEAT, Message

DELTAS = FakeLog(*(("content", {"content": letter}) for letter in "abcdefghij"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def most() -> float:
    """The highest roll of the dice."""
    return 1.0


def facts(messages: list[Message]) -> list[tuple[str, str]]:
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
    seen: list[Message] = []
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


def test_comments_are_nothing() -> None:
    """Heartbeat lines and comments of proxies give no message."""
    resume = Resume()
    resume.connect()

    assert [] == resume.receive(HEARTBEAT + b": keep-alive\n\n" + HEARTBEAT)


def test_waits_grow_up_to_the_cap() -> None:
    """Each attempt without progress doubles the ceiling of the wait."""
    resume = Resume(random=most)

    assert [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] == [resume.lost() for _ in range(7)]


def test_waits_are_spread_over_the_whole_range() -> None:
    """Full jitter: clients that were cut together do not come back together."""
    rolls = iter([0.0, 0.5])
    resume = Resume(random=lambda: next(rolls))

    assert [0.0, 1.0] == [resume.lost(), resume.lost()]


def test_a_very_long_outage_does_not_overflow() -> None:
    """Thousands of attempts are still the cap."""
    resume = Resume(backoff=ReconnectBackoff(give_up_after=None), random=most)
    waits = {resume.lost() for _ in range(3000)}

    assert 30.0 == max(wait for wait in waits if wait is not None)


def test_the_servers_retry_is_the_base() -> None:
    """What the server asks for takes the place of the default; later connections keep it."""
    resume = Resume(random=most)
    resume.connect()
    resume.receive(b"retry: 2500\n\n")

    assert [2.5, 5.0] == [resume.lost(), resume.lost()]


@pytest.mark.parametrize(("retry", "wait"), [(0, 0.1), (10**14, 30.0)])
def test_a_senseless_retry_is_bounded(retry: int, wait: float) -> None:
    """Neither a hot loop nor a wait of years."""
    resume = Resume(random=most)
    resume.connect()
    resume.receive(b"retry: %d\n\n" % retry)

    assert wait == resume.lost()


def test_an_event_resets_the_attempts() -> None:
    """Progress means that the next cut is a first one."""
    resume = Resume(random=most)
    resume.lost()
    resume.lost()
    resume.connect()
    resume.opened("exact")
    resume.receive(frame("content", 1, content="a"))

    assert 1.0 == resume.lost()


def test_a_greeting_alone_is_no_progress() -> None:
    """A server that greets and hangs up is asked less and less often."""
    resume = Resume(random=most)
    waits = []
    for _ in range(3):
        resume.connect()
        resume.opened("exact")
        resume.receive(frame("connected", 1))
        waits.append(resume.lost())

    assert [1.0, 2.0, 4.0] == waits


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410])
def test_a_final_status_is_the_end(status: int) -> None:
    """These answers will not change."""
    assert Resume().lost(status=status) is None


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_status_is_not_the_end(status: int) -> None:
    """These may be better next time."""
    assert 1.0 == Resume(random=most).lost(status=status)


@pytest.mark.parametrize(("asked", "waited"), [(5.0, 6.0), (0.0, 1.0), (86_400.0, MAX_RETRY_AFTER + 1.0)])
def test_retry_after_is_honoured_within_bounds(asked: float, waited: float) -> None:
    """The server's wish, with jitter on top, but not for a day."""
    assert waited == Resume(random=most).lost(status=503, retry_after=asked)


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
    resume.receive(frame("heartbeat", 0))
    clock.now = 601.0

    assert resume.lost() is not None
