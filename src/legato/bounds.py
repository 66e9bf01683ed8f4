"""Limits of runs, sessions and owners; the table of all limits; what counts those that are not counted where they hold.

A limit is a field of ``Limits`` (what runs, sessions and owners may), of ``Traffic`` (what connections may) or an
argument of ``Legato``; its name there is its name everywhere: in ``legato serve --limit NAME=VALUE``, in the counter of
what it has refused, and in the table of docs/limits.md, which a test compares with this one.

Pure: no store, nothing to await.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from .errors import LegatoError, TooFast


class Limits(msgspec.Struct, frozen=True):
    """Bounds of what a run may do. Beyond one, the run fails with a code that names it.

    Attributes:
        run_seconds: length of a run (code ``timeout``).
        run_events: events in a run (``too_many_events``).
        run_characters: of the whole message (``too_large``).
        run_bytes: of all that a run stores before its end: checkpoints, questions, notifications and names as well
            (``too_many_bytes``); of text as UTF-8, of all else as JSON. Its end says the message once more.
        event_bytes: of one event that cannot be split, such as a tool's output (``too_large``).
        message_characters: of a user's message.
        blob_bytes: of a file in a message.
        history_messages, history_bytes: of the messages before, as JSON, that an agent is given (``Turn.history``).
        concurrent_runs: that run at once in this process, and a tenth more of those who have few; more wait.
        queued_messages: that may wait in one session.
        waiting_messages: of one caller that may wait, over all sessions; see ``places``.
        session_events, session_bytes, session_runs: that one session may hold; of bytes, all that is no delta. A
            message beyond is refused, and the run that comes to it ends there.
        owner_sessions: of one signed-in caller; see ``spending``. 0 for as many as there are, as in all that follow.
        owner_running: runs of one caller at once in this process; more wait.
        owner_sends: messages a minute of one caller, as many at once; over all nodes within a second.
        owner_runs, owner_events, owner_bytes, owner_tokens, owner_cost: that one signed-in caller may spend in a window
            of ``usage_seconds``; windows begin at multiples of it since the epoch, so one of a day is a day in UTC.
            What has begun is finished.
        attempts: of a run whose process dies again and again, for agents with ``on_crash``.
        cancel_grace: seconds that a cancelled agent has for its last word.
        lag_seconds: by which the event loop may be late; beyond, new messages are refused (``overloaded``, 503).
        wait_seconds: for which a message may wait to be stored; as long as one does for longer, be it that the loop is
            late or that the disk is slow, new ones are refused in the same way.
        gather_seconds: for which a run's deltas gather before they are stored, so that many tokens make one event.
            By itself the server does that only while its event loop is late.
    """

    run_seconds: float = 3600.0
    run_events: int = 100_000
    run_characters: int = 4_194_304
    run_bytes: int = 33_554_432
    event_bytes: int = 262_144
    message_characters: int = 1_000_000
    blob_bytes: int = 33_554_432
    history_messages: int = 200
    history_bytes: int = 1_048_576
    concurrent_runs: int = 1_000
    queued_messages: int = 100
    waiting_messages: int = 1_000
    session_events: int = 10_000_000
    session_bytes: int = 1_073_741_824
    session_runs: int = 100_000
    owner_sessions: int = 100_000
    owner_running: int = 0
    owner_sends: float = 6_000.0
    owner_runs: int = 0
    owner_events: int = 0
    owner_bytes: int = 0
    owner_tokens: int = 0
    owner_cost: float = 0.0
    usage_seconds: float = 86_400.0
    attempts: int = 3
    cancel_grace: float = 0.5
    lag_seconds: float = 0.25
    wait_seconds: float = 0.5
    gather_seconds: float = 0.0


Kind = Literal["Limits", "Traffic", "Legato"]


class Bound(msgspec.Struct, frozen=True):
    """One limit.

    Attributes:
        name: of the setting, and of the counter.
        kind: where the setting is.
        of: what it bounds: ``request``, ``run``, ``session``, ``owner`` (a signed-in subject, or where nobody is signed
            in, an address), ``address``, ``connection`` or ``process``.
        answer: what becomes of what passes it: a status with the error's code, or in words.
        what: it bounds, in words.
        tests: names of tests that pass it.
    """

    name: str
    kind: Kind
    of: str
    answer: str
    what: str
    tests: tuple[str, ...]


def _rows(*rows: tuple[str, Kind, str, str, str, str]) -> tuple[Bound, ...]:
    return tuple(Bound(*row[:5], tests=tuple(row[5].split())) for row in rows)


BOUNDS = _rows(
    # What a request may be.
    ("max_body", "Legato", "request", "413 `too_large`", "bytes of a body", "test_a_body_is_bounded"),
    ("message_characters", "Limits", "request", "413 `too_large`", "characters of a message",
     "test_a_message_is_bounded"),
    ("blob_bytes", "Limits", "request", "413 `too_large`", "bytes of a file in a message", "test_a_file_is_bounded"),
    # What a run may do; it ends as failed.
    ("run_seconds", "Limits", "run", "the run fails: `timeout`", "seconds", "test_a_run_is_bounded"),
    ("run_events", "Limits", "run", "the run fails: `too_many_events`", "events", "test_a_run_is_bounded"),
    ("run_characters", "Limits", "run", "the run fails: `too_large`", "characters of the whole message",
     "test_a_run_is_bounded"),
    ("run_bytes", "Limits", "run", "the run fails: `too_many_bytes`", "bytes of all that it stores",
     "test_a_run_is_bounded"),
    ("event_bytes", "Limits", "run", "the run fails: `too_large`", "bytes of one event", "test_a_run_is_bounded"),
    # What a session may hold.
    ("queued_messages", "Limits", "session", "409 `queue_full`", "messages that wait", "test_a_queue_is_bounded"),
    ("session_events", "Limits", "session", "409 `session_full`", "events", "test_a_session_is_bounded"),
    ("session_bytes", "Limits", "session", "409 `session_full`", "bytes of all that is no delta",
     "test_a_session_is_bounded"),
    ("session_runs", "Limits", "session", "409 `session_full`", "messages that were put to an agent",
     "test_a_session_is_bounded"),
    ("max_streams_per_session", "Legato", "session", "429 `too_many`", "open streams",
     "test_streams_are_bounded_before_they_begin"),
    # What an owner may have.
    ("owner_sessions", "Limits", "owner", "429 `too_many`", "sessions", "test_sessions_of_an_owner_are_bounded"),
    ("owner_running", "Limits", "owner", "more wait", "runs at once, in one process",
     "test_an_owner_has_so_many_runs_at_once"),
    ("waiting_messages", "Limits", "owner", "429 `too_many`", "messages that wait, over all sessions",
     "test_what_waits_of_one_owner_is_bounded"),
    ("owner_sends", "Limits", "owner", "429 `too_fast`", "messages a minute", "test_messages_have_a_rate"),
    ("owner_runs", "Limits", "owner", "429 `quota_spent`", "runs in a window of `usage_seconds`",
     "test_what_an_owner_spends_is_bounded"),
    ("owner_events", "Limits", "owner", "429 `quota_spent`", "events of runs in a window",
     "test_what_an_owner_spends_is_bounded"),
    ("owner_bytes", "Limits", "owner", "429 `quota_spent`", "bytes of messages and runs in a window",
     "test_what_an_owner_spends_is_bounded"),
    ("owner_tokens", "Limits", "owner", "429 `quota_spent`", "input and output tokens in a window",
     "test_what_an_owner_spends_is_bounded"),
    ("owner_cost", "Limits", "owner", "429 `quota_spent`", "cost in a window, in the unit of `Usage.cost`",
     "test_what_an_owner_spends_is_bounded"),
    ("max_streams_per_owner", "Legato", "owner", "429 `too_many`", "open streams of one signed-in subject",
     "test_streams_are_bounded_before_they_begin"),
    ("max_streams_per_address", "Legato", "address", "429 `too_many`", "open streams where nobody is signed in",
     "test_streams_are_bounded_before_they_begin"),
    ("connections_per_address", "Traffic", "address", "429 `too_many`", "connections",
     "test_connections_of_one_address_are_bounded"),
    # What a connection may take.
    ("head_seconds", "Traffic", "connection", "408 `request_timeout`, or the connection is closed",
     "seconds until a request's head is there", "test_what_does_not_come_in_time_ends_the_connection"),
    ("body_seconds", "Traffic", "connection", "408 `request_timeout`",
     "seconds for a body, longer at `body_rate` bytes a second", "test_what_does_not_come_in_time_ends_the_connection"),
    ("write_seconds", "Traffic", "connection", "the connection is cut off",
     "seconds for which nothing of an answer is taken", "test_who_takes_nothing_of_an_answer_is_let_go"),
    ("stalled_seconds", "Traffic", "connection", "the stream is cut off",
     "seconds for which nothing of a stream is taken", "test_a_reader_that_does_not_read_is_cut_off"),
    ("stream_seconds", "Traffic", "connection", "the stream ends, and its reader comes back",
     "seconds that a stream lasts, a random 80 to 100 % of it", "test_a_stream_has_an_age"),
    # What a process may hold.
    ("max_streams", "Legato", "process", "429 `too_many`", "open streams",
     "test_streams_are_bounded_before_they_begin"),
    ("concurrent_runs", "Limits", "process", "more wait", "runs at once", "test_nobody_has_all_places"),
    ("connections", "Traffic", "process", "the idlest is closed, or 503 `too_many_connections`", "connections",
     "test_of_more_connections_than_may_be_the_idle_make_room_and_then_the_new_are_refused"),
    ("head_bytes", "Traffic", "process", "503 `too_much_in_flight`",
     "bytes of all heads that have come in part, and of what waits behind an answer",
     "test_what_waits_behind_answers_is_bounded_together test_heads_that_do_not_end_are_bounded_together"),
    ("body_bytes", "Traffic", "process", "503 `too_much_in_flight`", "bytes of all bodies that are being read",
     "test_unfinished_bodies_are_bounded_together"),
    ("answer_bytes", "Traffic", "process", "503 `too_much_in_flight`", "bytes of all answers that are being written",
     "test_answers_that_are_not_taken_are_bounded_together"),
    ("lag_seconds", "Limits", "process", "503 `overloaded`", "seconds by which the event loop may be late",
     "test_a_late_process_takes_no_messages"),
    ("wait_seconds", "Limits", "process", "503 `overloaded`", "seconds for which a message may wait to be stored",
     "test_a_late_process_takes_no_messages"),
    ("quota", "Legato", "owner", "429 `quota_refused`", "whatever the application's own rule says",
     "test_the_applications_rule_can_refuse"),
)  # fmt: skip
"""All limits that refuse, cut off or hold up."""

NAMES = tuple(bound.name for bound in BOUNDS)
BESIDE = (
    "history_messages", "history_bytes", "attempts", "cancel_grace", "gather_seconds", "usage_seconds", "body_rate",
    "idle_seconds",
)  # fmt: skip
"""Fields of ``Limits`` and ``Traffic`` that refuse nothing by themselves."""


def tally() -> Counter[str]:
    """A count of what each limit has refused, all at 0. Who counts adds 1 to ``[name]``; nobody takes away."""
    return Counter(dict.fromkeys(NAMES, 0))


def count(refused: Counter[str], error: LegatoError) -> None:
    """Count ``error``, if it is a limit's."""
    if error.bound:
        refused[error.bound] += 1


class Rate:
    """So many things a minute of each party: as many at once, and from then on one after another.

    What it knows of a party is one number, when all that it has had will be worn off; who had nothing for a minute is
    forgotten. (Packages for this, such as ``limits``, keep what they count in a store of their own, and lock; here it
    is one line on one event loop.)

    Args:
        a_minute: how many; 0 for as many as there are.
        clock: in seconds.
        most: parties that are known; who was seen longest ago is forgotten.
    """

    def __init__(
        self, a_minute: Callable[[], float], clock: Callable[[], float] = time.monotonic, *, most: int = 100_000
    ) -> None:
        self._a_minute = a_minute
        self._clock = clock
        self._most = most
        self._worn_off: OrderedDict[str, float] = OrderedDict()
        self.taken: Counter[str] = Counter()  # by those of them who took it here, since they are known

    def take(self, party: str, bound: str) -> None:
        """Count one more.

        Raises:
            TooFast: it is one too many, and was not counted.
        """
        a_minute = self._a_minute()
        if a_minute <= 0 or not party:  # nobody is known, as inside a process
            return
        now = self._clock()
        until = max(self._worn_off.get(party, now), now) + 60.0 / a_minute
        if until > now + 60.0 + 1e-6:
            raise TooFast(
                f"{a_minute:g} messages a minute are taken of one caller; try again later.",
                after=until - now - 60.0,
                bound=bound,
                limit=a_minute,
            )
        self.taken[party] += 1
        self._know(party, until, now)

    def count_elsewhere(self, parties: Mapping[str, int]) -> None:
        """Count what parties had at other nodes meanwhile."""
        a_minute, now = self._a_minute(), self._clock()
        for party, count in parties.items() if a_minute > 0 else ():
            until = max(self._worn_off.get(party, now), now) + 60.0 / a_minute * count
            self._know(party, min(until, now + 60.0), now)

    def _know(self, party: str, until: float, now: float) -> None:
        self._worn_off[party] = until
        self._worn_off.move_to_end(party)
        while len(self._worn_off) > self._most or next(iter(self._worn_off.values())) <= now:
            self.taken.pop(self._worn_off.popitem(last=False)[0], None)
