"""Measures: the figures of an application under the names by which operators know them, as they are at this moment.

It only reads. What is read is kept by those who do something (``figures.py``), or is their state; the table of names is
here, for Prometheus, the inspector and the documents. A label's values are few: no session, caller or address is one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import legato

from ..errors import LegatoError
from ..figures import Counts, Spread, StoreFigures
from .connections import Connections
from .life import Life
from .pump import Pump

STALLED = 2.0
"""Seconds that a write may wait before its reader is told to be stalled."""
HEADS = 200
"""Logs whose heads are looked up, to see how far behind their readers are; readers of others count as behind."""

Samples = Sequence[tuple[Mapping[str, str], float | Spread]]


class Measure(NamedTuple):
    """One of them.

    Attributes:
        name: by the conventions of Prometheus: the unit at its end, ``_total`` of what only grows.
        help: one sentence.
        samples: labels and values; a ``Spread`` is a histogram.
    """

    name: str
    help: str
    samples: Samples

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        """What Prometheus calls it."""
        if self.name.endswith("_total"):
            return "counter"
        return "histogram" if any(isinstance(value, Spread) for _, value in self.samples) else "gauge"


def _one(value: float | Spread, **labels: str) -> Samples:
    return [(labels, value)]


def _each(tally: Counts, *names: str) -> Samples:
    return [(dict(zip(names, key, strict=True)), count) for key, count in list(tally.counts.items())]


def _by(label: str, **values: float) -> Samples:
    return [({label: name}, value) for name, value in values.items()]


async def measures(life: Life, connections: Connections | None = None) -> list[Measure]:
    """All of them.

    Args:
        life: of the application.
        connections: of the process, where the server is our own.
    """
    readers = await _readers(life)
    return [*_of_runs(life), *_of_readers(life, readers), *_of_store(life), *_of_server(life, connections)]


def _of_runs(life: Life) -> Iterator[Measure]:
    figures, runner = life.figures, life.runner
    asking = runner.asking
    yield Measure(
        "legato_runs",
        "Runs of this process by state: driven, waiting for somebody's answer, or for a place or an earlier run.",
        _by("state", running=runner.running - asking, asking=asking, waiting=runner.places.waiting_runs),
    )
    yield Measure("legato_run_places", "Runs that this process may drive at once.", _one(runner.limits.concurrent_runs))
    yield Measure(
        "legato_run_wait_seconds", "From a message to the beginning of its run, of first attempts.", _one(figures.waits)
    )
    yield Measure(
        "legato_first_token_seconds", "From a message to the first piece of its answer.", _one(figures.first_words)
    )
    yield Measure("legato_run_seconds", "How long runs were driven.", _one(figures.runs))
    yield Measure(
        "legato_runs_ended_total",
        "Runs that ended, by outcome (completed, failed, cancelled) and the code of an error.",
        _each(figures.ended, "outcome", "code"),
    )
    yield Measure(
        "legato_runs_taken_over_total",
        "Runs that were begun by another process, or an earlier life of this one.",
        _one(figures.taken_over),
    )
    yield Measure("legato_leases_lost_total", "Runs that another process took from this one.", _one(figures.lost))
    yield Measure(
        "legato_tokens_total",
        "Tokens by agent and kind; cached ones are part of the input, reasoning of the output.",
        _each(figures.tokens, "agent", "kind"),
    )
    yield Measure("legato_cost_total", "Cost by agent, as agents say it.", _each(figures.cost, "agent"))
    providers = {name: agent.figures for name, agent in runner.agents.items() if agent.figures is not None}
    yield Measure(
        "legato_provider_requests_total",
        "Requests to models' providers, repeated ones included.",
        [({"agent": name}, each.requests) for name, each in providers.items()],
    )
    yield Measure(
        "legato_provider_retries_total",
        "Of those, the repeated ones.",
        [({"agent": name}, max(each.requests - each.asked, 0)) for name, each in providers.items()],
    )
    yield Measure(
        "legato_provider_errors_total",
        "What asking a model failed with in the end, by class and HTTP status.",
        [
            ({"agent": name, **labels}, value)
            for name, each in providers.items()
            for labels, value in _each(each.errors, "error", "status")
        ],
    )


def _of_readers(life: Life, readers: _Readers) -> Iterator[Measure]:
    figures, streams = life.figures, life.streams
    yield Measure(
        "legato_readers",
        "Open streams by state: at the head of their log, behind it, or taking nothing for two seconds.",
        _by("state", live=readers.live, behind=readers.behind, stalled=readers.stalled),
    )
    yield Measure("legato_readers_limit", "Streams that may be open at once.", _one(streams.total))
    yield Measure("legato_readers_behind_events", "Events that the last of all readers is behind.", _one(readers.most))
    yield Measure(
        "legato_streams_total",
        "Streams that were opened, by dialect and beginning: new, resumed, or reset, for a cursor beyond the log.",
        _each(figures.streams, "dialect", "start"),
    )
    yield Measure("legato_stream_bytes_total", "Bytes of streams that were handed to connections.", _one(streams.sent))
    yield Measure(
        "legato_delivery_seconds",
        "From an event's time in the store to its being handed to connections: a sample.",
        _one(figures.delivery),
    )


def _of_store(life: Life) -> Iterator[Measure]:
    trouble = life.sessions.trouble
    yield Measure("legato_store_up", "1 while something can be stored.", _one(float(trouble is None)))
    found = getattr(life.store, "figures", None)
    if isinstance(found, StoreFigures):
        yield Measure(
            "legato_store_commit_seconds", "How long commits took, their syncs included.", _one(found.seconds)
        )
        yield Measure("legato_store_commit_requests", "Appends and leases in one commit.", _one(found.sizes))
        yield Measure("legato_store_failures_total", "Commits that failed.", _one(found.failed))


def _of_server(life: Life, connections: Connections | None) -> Iterator[Measure]:
    figures, load, press = life.figures, life.runner.load, life.press
    yield Measure(
        "legato_info", "What runs here.", _one(1, version=legato.__version__, store=type(life.store).__name__)
    )
    yield Measure(
        "legato_draining", "1 while no new messages are taken, before a stop.", _one(float(life.runner.draining))
    )
    yield Measure("legato_event_loop_lag_seconds", "How late the event loop's timer was.", _one(figures.lag))
    yield Measure("legato_gather_seconds", "For which runs gather what they say, now.", _one(load.gather))
    yield Measure(
        "legato_answers_total", "Answers by operation and status.", _each(figures.answers, "operation", "status")
    )
    yield Measure(
        "legato_refused_total",
        "What limits have refused, by the limit.",
        [({"limit": name}, count) for name, count in list(life.refused.items())],
    )
    yield Measure("legato_answer_seconds", "From a request to an answer that is no stream.", _one(figures.requests))
    yield Measure(
        "legato_in_flight_bytes",
        "Bytes of bodies that are being read, and of answers that are being written.",
        _by("kind", bodies=life.bodies.used, answers=life.answers.used),
    )
    yield Measure(
        "legato_in_flight_limit_bytes",
        "How many there may be.",
        _by("kind", bodies=life.bodies.total, answers=life.answers.total),
    )
    yield Measure(
        "legato_rendered_total",
        "Texts that were made HTML, or shown as they are because that took too long.",
        _by("outcome", made=press.made, given_up=press.given_up),
    )
    yield Measure("legato_renderer_processes", "Processes that render.", _one(press.processes))
    yield Measure("legato_renderer_waiting_characters", "Characters of texts that wait for one.", _one(press.waiting))
    if connections is not None:
        yield Measure(
            "legato_connections",
            "Open connections, in use or idle.",
            _by("state", used=connections.open - connections.unused, idle=connections.unused),
        )
        yield Measure("legato_connections_limit", "How many there may be.", _one(connections.bound))
        yield Measure(
            "legato_connections_accepted_total", "Connections that were accepted.", _one(connections.accepted)
        )


# How far readers are --------------------------------------------------------------------------------------------------


class _Readers(NamedTuple):
    live: int
    behind: int
    stalled: int
    most: int


async def _readers(life: Life) -> _Readers:
    pumps = life.streams.readers()
    now = time.monotonic()
    stalled = [pump for pump in pumps if pump.stalled(STALLED, now)]
    alone = [pump for pump in pumps if pump.crowd is None]  # who is in a crowd stands where that does: at the head
    heads = await _heads(life, (pump.session for pump in alone))
    gaps = [_gap(pump, heads) for pump in alone]
    behind = sum(gap > 0 for pump, gap in zip(alone, gaps, strict=True) if not pump.stalled(STALLED, now))
    return _Readers(len(pumps) - len(stalled) - behind, behind, len(stalled), max(gaps, default=0))


def _gap(pump: Pump, heads: Mapping[str, int]) -> int:
    """Events that a reader is behind; 1 if that is not known."""
    head = heads.get(pump.session)
    return 1 if head is None else max(head - pump.cursor, 0)


async def _heads(life: Life, sessions: Iterable[str]) -> dict[str, int]:
    heads: dict[str, int] = {}
    for session in dict.fromkeys(sessions):
        if len(heads) == HEADS:
            break
        try:
            heads[session] = (await life.store.info(session)).head
        except LegatoError:  # it has been deleted meanwhile, or the store does not answer
            heads[session] = 0
    return heads
