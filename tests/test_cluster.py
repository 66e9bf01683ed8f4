"""``legato torture --cluster``: that it finds what must not be, and that this version passes a small one.

``LEGATO_CLUSTER_SECONDS`` (5 by default), ``LEGATO_CLUSTER_NODES`` and ``LEGATO_CLUSTER_SESSIONS`` make it larger.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from legato.errors import InvalidInput
from legato.sse import SSEMessage
from legato.store import open_store
from legato.torture.cluster import (
    KINDS,
    Cluster,
    ClusterLoad,
    ClusterPlan,
    _targets,
    _through,
    _write,
    torture_cluster,
)  # fmt: skip
from legato.torture.listeners import ChatListener, DevaListener, MixListener, ResponsesListener, RunListener
from legato.torture.relay import Relay
from legato.torture.verdict import NodeLife, Spoken, Verdict, _judge, differences, lost_takes

NET = 30.0
"""Seconds; a safety net."""

# What the verdict finds -----------------------------------------------------------------------------------------------


def log(*attempts: int, end: str = "run.completed", code: str = "interrupted") -> list[dict[str, Any]]:
    """A run whose agent counts to three, each attempt but the last up to so many."""
    events: list[dict[str, Any]] = [{"type": "session.created", "data": {}}, {"type": "message.created", "data": {}}]
    for number, count in enumerate(attempts, 1):
        events.append({"type": "run.started", "data": {"attempt": number}})
        events += [{"type": "text.delta", "data": {"text": f"{n}.{number}.80@5 "}} for n in range(count)]
    events.append({"type": end, "data": {"code": code}})
    return [{"offset": n, "at": n / 10, "run": "s~1" if n > 1 else None, **event} for n, event in enumerate(events, 1)]


def heard(text: str, *, dialect: type[RunListener] = MixListener) -> RunListener:
    listener = dialect(0, "s", "s~1", "m", "1", random.Random(0))
    listener.text, listener.ended = text, True
    return listener


def judge(
    *logs: list[dict[str, Any]],
    agent: str = "retries",
    listener: RunListener | None = None,
    takes: dict[str, list[tuple[float, float]]] | None = None,
) -> list[str]:
    verdict = Verdict()
    spoken = Spoken("s", "s~1", agent, 3, 10.0, listeners=[] if listener is None else [listener])
    _judge(verdict, "s", [spoken], logs, 6.0, takes or {})
    return verdict.faults


@pytest.mark.parametrize(("taken", "faults"), [(0, 1), (1, 0)])
def test_who_has_seen_nothing_says_so(taken: int, faults: int) -> None:
    """As where the only node was away all the time: nothing was lost, but nothing was there to lose."""
    load = ClusterLoad(made := Cluster([], 0, ClusterPlan("redis:", nodes=1, seconds=5.0)))
    load.spoken = [Spoken("s", "s~1", "fails", 3, 10.0)] * taken
    _write(made, load, Verdict())

    assert len(made.chart.faults) == faults
    assert not faults or "nothing has been seen" in made.chart.faults[0]


def test_what_is_right_is_no_fault() -> None:
    """Also what was taken over, and what a node's death has ended."""
    assert judge(log(3), log(3), listener=heard("0.1.80@5 1.1.80@5 2.1.80@5 ")) == []
    assert judge(log(2, 0, 3)) == []
    assert judge(log(2, end="run.failed"), agent="fails") == []


Change = Callable[[list[dict[str, Any]]], Any]
WRONG: dict[str, Change] = {
    "a piece is lost": lambda events: events.pop(4),
    "a piece is doubled": lambda events: events.insert(4, events[4]),
    "two pieces change places": lambda events: events.insert(3, events.pop(4)),
    "the last piece is lost": lambda events: events.pop(5),
    "there are two ends": lambda events: events.append(copy.deepcopy(events[-1])),
    "there is no end": lambda events: events.pop(),
    "something comes after the end": lambda events: events.append(copy.deepcopy(events[4])),
    "an old attempt goes on": lambda events: events[4]["data"].update(text="1.0.80@5 "),
    "it stands still": lambda events: [event.update(at=event["at"] + 60) for event in events[4:]],
    "it has failed": lambda events: events[-1].update(type="run.failed", data={"code": "agent_error"}),
    "nobody has cancelled it": lambda events: events[-1].update(type="run.cancelled"),
    "its message is not there": lambda events: events.pop(1),
    "its message is there twice": lambda events: events.insert(1, events[1]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_a_fault(wrong: str) -> None:
    """Each kind, with offsets that are dense: a store that loses something gives its offset again."""
    events = copy.deepcopy(log(3))
    WRONG[wrong](events)
    events = [{**event, "offset": n} for n, event in enumerate(events, 1)]

    assert judge(events)


def test_offsets_that_are_left_out_are_a_fault() -> None:
    assert any("dense" in fault for fault in judge([*log(3)[:-1], {**log(3)[-1], "offset": 9}]))


def test_nodes_that_say_otherwise_are_a_fault() -> None:
    other = copy.deepcopy(log(3))
    other[4]["at"] += 0.001

    assert any("different" in fault for fault in judge(log(3), other))


@pytest.mark.parametrize(("takes", "hit", "faults"), [([], 9.0, 1), ([5.6], 6.0, 0), ([5.6], 20.0, 1), ([0.1], 6.0, 1)])
def test_who_takes_a_run_and_is_hit_has_shown_that_it_was_taken(takes: list[float], hit: float, faults: int) -> None:
    """A silence of 11 s, in which another node took the run: it is two short ones if that one was hit then."""
    events = log(2, 3)
    events = [{**event, "at": event["at"] + 11.0 * (event["offset"] > 5)} for event in events]
    lives = [NodeLife([hit], [("s~1", at) for at in takes])]

    assert len(judge(events, takes=lost_takes(lives))) == faults


def test_what_nodes_tell_otherwise_is_found() -> None:
    one: dict[str, bytes | None] = {"messages": b"[1]", "stream": b"x"}
    assert differences([one, dict(one)]) == []
    assert differences([one, {**one, "stream": b"y"}]) == ["nodes give different bytes of the stream"]
    assert differences([one, {**one, "stream": None}]) == ["a node does not give the stream"]
    assert differences([one, {"messages": b"[1]"}]) == ["a node does not give the stream"]


@pytest.mark.parametrize(
    "text", ["", "0.1.80@5 2.1.80@5 ", "0.1.80@5 1.1.80@5 1.1.80@5 2.1.80@5 ", "1.1.80@5 0.1.80@5 2.1.80@5"]
)
def test_a_reader_who_has_something_else_is_a_fault(text: str) -> None:
    assert any("reader has" in fault for fault in judge(log(3), listener=heard(text)))


def test_what_nobody_was_told_of_has_to_end_too() -> None:
    """A message whose sender had no answer."""
    events = log(3)
    events += [{"offset": 8, "at": 0.8, "run": "s~2", "type": "message.created", "data": {}}]

    assert any(fault.startswith("s~2") for fault in judge(events))


def message(event: str, data: str, id: str = "") -> SSEMessage:
    return SSEMessage(event=event, data=data, id=id, retry=None)


def test_readers_notice_what_is_wrong_with_their_streams() -> None:
    """An id that goes back, a number that is left out, a text that is another when it is read again."""
    mix = heard("", dialect=MixListener)
    for id in ("5", "5"):
        mix.take(message("cancel_requested", "{}", id))
    responses = heard("", dialect=ResponsesListener)
    for number in (0, 2):
        responses.take(message("x", f'{{"type": "x", "sequence_number": {number}}}'))
    chat = ChatListener(0, "agent", "text", "key", random.Random(0))
    for text in ("one", "two"):
        chat.begin()
        chat.take(message("", f'{{"id": "chatcmpl-s~1", "choices": [{{"delta": {{"content": "{text}"}}}}]}}'))
    chat.take(message("", "[DONE]"))

    assert [len(each.faults) for each in (mix, responses, chat)] == [1, 1, 1]
    assert DevaListener.dialect == "deva"


# What a relay does ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def echoing(name: bytes) -> AsyncIterator[int]:
    """A server that says its name, and then what it is told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name)
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def relayed(*names: bytes) -> AsyncIterator[Relay]:
    async with (
        asyncio.timeout(NET),
        echoing(names[0]) as first,
        echoing(names[-1]) as last,
        Relay([("127.0.0.1", port) for port in (first, last)[: len(names)]]) as relay,
    ):
        yield relay


async def told(relay: Relay, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(data)
    return reader, writer


async def is_over(reader: asyncio.StreamReader) -> bool:
    """Whether a connection has ended without a word, however it did."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_a_relay_passes_everything_on() -> None:
    """Much of it, in both directions, and the end of one direction."""
    async with relayed(b"a") as relay:
        reader, writer = await told(relay, b"x" * 3_000_000)
        writer.write_eof()
        assert await reader.read() == b"a" + b"x" * 3_000_000


async def test_a_link_that_is_cut_resets_what_there_is_and_what_comes() -> None:
    """Until it is mended."""
    async with relayed(b"a") as relay:
        reader, writer = await told(relay, b"b")
        assert await reader.readexactly(2) == b"ab"
        relay.cut()
        assert await is_over(reader)
        reader, writer = await told(relay)
        assert await is_over(reader)
        relay.mend()
        reader, writer = await told(relay, b"c")
        assert await reader.readexactly(2) == b"ac"
        writer.close()


@pytest.mark.parametrize("ways", [(), ("up",), ("down",)])
async def test_what_is_sent_on_a_silent_link_comes_late(ways: Any) -> None:
    """And nobody is told, as of a connection whose packets are lost."""
    async with relayed(b"a") as relay:
        reader, writer = await told(relay)
        assert await reader.readexactly(1) == b"a"
        relay.silence(*ways)
        writer.write(b"late")
        answer = asyncio.create_task(reader.readexactly(4))
        done, _ = await asyncio.wait({answer}, timeout=0.1)
        assert not done
        relay.mend()
        assert await answer == b"late"
        writer.close()


async def test_a_balancer_remembers_nobody_and_leaves_out_who_is_not_there() -> None:
    """One connection after another goes to the next target."""
    async with relayed(b"a", b"b") as relay:
        relay.targets.append(("127.0.0.1", 1))
        names = []
        for _ in range(6):
            reader, writer = await told(relay)
            names.append(await reader.readexactly(1))
            writer.close()
        assert {*names} == {b"a", b"b"}


# All of it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "store",
    [
        "sqlite:///x.db",
        "memory:",
        "postgresql:///only-a-name",
        "postgresql://one,two/name",
        "redis+sentinel://one/name",  # which name the server's own address
    ],
)
async def test_a_store_that_nodes_cannot_share_is_refused(store: str) -> None:
    with pytest.raises(InvalidInput, match="several processes"):
        await torture_cluster(ClusterPlan(store))


@pytest.mark.parametrize(
    "store", ["postgresql://db/x?hostaddr=10.0.0.1", "postgresql://db/x?service=s", "rediss://db?reach=db:1=db:2"]
)
async def test_a_store_whose_address_is_elsewhere_is_refused(store: str) -> None:
    with pytest.raises(InvalidInput, match="in its place"):
        await torture_cluster(ClusterPlan(store))


@pytest.mark.parametrize(
    ("store", "by_the_link"),
    [
        ("redis://me:pw@db:7000/5?prefix=p", "redis://me:pw@127.0.0.1:1/5?prefix=p"),
        ("rediss://me:pw@db/5?ca=f", "rediss://me:pw@db/5?ca=f&reach=db:6379=127.0.0.1:1"),
        (
            "postgresql://me:pw@db/x?sslmode=verify-full",
            "postgresql://me:pw@db:1/x?sslmode=verify-full&hostaddr=127.0.0.1",
        ),
        ("postgresql://[::2]:7000/x", "postgresql://[::2]:1/x?hostaddr=127.0.0.1"),
    ],
)
async def test_a_store_is_reached_by_a_link_under_the_name_that_its_certificate_has(
    store: str, by_the_link: str
) -> None:
    (target,) = await _targets(store)
    link = Relay([target])
    link.port = 1
    assert _through(store, {target: link}) == by_the_link
    open_store(by_the_link)


async def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidInput, match="kill"):
        await torture_cluster(ClusterPlan("postgresql:", kinds=("tickle",)))


@pytest.mark.parametrize("store", ["postgresql:", "redis:"])
async def test_a_small_cluster_holds(store: str) -> None:
    """Two nodes that are killed, stopped and cut off. (The large one is ``legato torture --cluster``.)"""
    seconds = float(os.environ.get("LEGATO_CLUSTER_SECONDS", "5"))
    plan = ClusterPlan(
        store,
        nodes=int(os.environ.get("LEGATO_CLUSTER_NODES", "2")),
        sessions=int(os.environ.get("LEGATO_CLUSTER_SESSIONS", "6")),
        seconds=seconds,
        lease_ttl=1.0,
        every=1.0,
    )
    try:
        chart = await torture_cluster(plan)
    except InvalidInput as exc:
        pytest.skip(exc.message)

    assert chart.faults == []
    assert any(kind in str(chart.figures["done to nodes"]) for kind in KINDS)
    assert int(chart.figures["messages taken"]) > plan.sessions
