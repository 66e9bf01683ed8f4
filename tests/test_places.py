"""Places are shared out among parties, and what was taken waits for one as long as it takes.

The sharing is checked by itself (hypothesis), then runs that wait in a stage, then what callers and readers are told.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driving import chatting, named
from facts import draft
from held_store import quiet
from legato.agent import Turn
from legato.bounds import Limits
from legato.caller import NOBODY, Caller
from legato.errors import Draining, KeyReused, LegatoError, Overloaded, QueueFull, TooMany
from legato.places import SPARE, Places
from legato.questions import Question, Sent
from legato.run import Runner
from legato.server.adaptor import _with_address
from legato.sessions import Sessions
from running import NET, Node, Stage

ANN, BEN, EVE = (Caller(name) for name in ("ann", "ben", "eve"))


# The sharing ----------------------------------------------------------------------------------------------------------

parties = st.sampled_from(["a", "b", "c", "d"])
steps = st.one_of(
    st.tuples(st.just("take"), parties),
    st.tuples(st.just("queue"), parties, st.integers(0, 9)),
    st.tuples(st.just("turn")),
    st.tuples(st.just("give"), st.integers(0, 50)),
    st.tuples(st.just("leave"), parties, st.integers(0, 9)),
    st.tuples(st.just("unqueue"), parties, st.integers(0, 9)),
)


@settings(max_examples=300)
@given(st.integers(0, 25), st.lists(steps, max_size=120))
def test_places_are_shared_fairly(count: int, steps: list[tuple[Any, ...]]) -> None:
    places = Places(lambda: count, lambda: 1_000)
    given_out: list[str] = []
    waiting: dict[str, deque[str]] = {}
    for name, *about in steps:
        held = Counter(given_out)
        if name == "take":
            if places.take(about[0]):
                given_out.append(about[0])
            else:
                assert waiting or len(given_out) >= count
        elif name == "turn":
            turn = places.turn()
            if turn is None:
                assert not waiting or len(given_out) >= count
                continue
            session, party = turn
            assert held[party] == min(held[each] for each in waiting)
            assert session == waiting[party].popleft()
            waiting = {each: line for each, line in waiting.items() if line}
            given_out.append(party)
        elif name == "give" and given_out:
            places.give_back(given_out.pop(about[0] % len(given_out)))
        elif name == "queue":
            session = f"{about[0]}{about[1]}"
            if session not in waiting.get(about[0], ()):
                waiting.setdefault(about[0], deque()).append(session)
            places.queue(session, f"{session}~1", about[0])
            places.wait(session)
        elif name in ("leave", "unqueue"):
            session = f"{about[0]}{about[1]}"
            if name == "unqueue":
                places.unqueue(session, f"{session}~1")
            places.leave(session)
            if session in waiting.get(about[0], ()):
                waiting[about[0]].remove(session)
                waiting = {each: line for each, line in waiting.items() if line}
        assert places.taken == len(given_out) <= count + count // SPARE
        assert places.waiting == bool(waiting)
    for party in given_out:
        places.give_back(party)
    while count and waiting:  # all have their turn
        turn = places.turn()
        assert turn is not None
        waiting[turn[1]].remove(turn[0])
        waiting = {each: line for each, line in waiting.items() if line}
        places.give_back(turn[1])
    assert places.taken == 0
    assert not count or not places._levels


def test_nobody_has_all_places() -> None:
    """However long the runs of one are, there are some for those who have few."""
    places = Places(lambda: 100, lambda: 1_000)
    assert sum(places.take("eve") for _ in range(200)) == 100
    got = {name: sum(places.take(name) for _ in range(50)) for name in "abcde"}
    assert got["a"] > 1
    assert all(got.values())
    assert places.taken <= 110


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (Caller("ann"), Caller("ann", "1.2.3.4"), True),
        (Caller("ann"), Caller("ben"), False),
        (Caller("", "1.2.3.4"), Caller("", "1.2.3.4"), True),
        (Caller("", "1.2.3.4"), Caller("", "1.2.3.5"), False),
        (Caller("", "1.2.3.4"), Caller("", "::ffff:1.2.3.4"), True),
        (Caller("", "2001:db8:1:2:3::4"), Caller("", "2001:db8:1:2:ffff::1"), True),
        (Caller("", "2001:db8:1:2::4"), Caller("", "2001:db8:1:3::4"), False),
        (Caller("", "fe80::1%eth0"), Caller("", "fe80::1"), True),
        (Caller("1.2.3.4"), Caller("", "1.2.3.4"), False),
        (Caller("", "a:b:c"), Caller("", "a:b:d"), False),  # no address at all
    ],
)
def test_whose_a_place_is(one: Caller, two: Caller, same: bool) -> None:
    assert (one.party == two.party) is same


@pytest.mark.parametrize(
    ("caller", "client", "party"),
    [
        (NOBODY, ("10.0.0.1", 5), "address 10.0.0.1"),
        (NOBODY, None, ""),
        (Caller("ann"), ("10.0.0.1", 5), "subject ann"),
        (Caller("", "1.2.3.4"), ("10.0.0.1", 5), "address 1.2.3.4"),  # the application knows of its proxy
    ],
)
def test_the_address_of_a_request(caller: Caller, client: Any, party: str) -> None:
    assert _with_address(caller, {"type": "http", "client": client}).party == party


# Runs that wait -------------------------------------------------------------------------------------------------------


class Noted:
    """An agent that notes its messages and waits until each may go on."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.room = asyncio.Semaphore(0)
        self.changed = asyncio.Event()

    async def __call__(self, turn: Turn) -> str:
        self.begun.append(turn.message.text)
        self.changed.set()
        await self.room.acquire()
        return "ok"

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(NET):
            while len(self.begun) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.begun


async def sent(runner: Node, caller: Caller, text: str, session: str, key: str | None = None) -> Sent:
    sessions = Sessions(runner.store, runner, may=lambda *_: True)
    return await sessions.send(caller, session, Question(text, key=key))


async def test_who_sends_much_does_not_keep_others_waiting(stage: Stage) -> None:
    """The next free place is that of who has none, however many wait of who has some."""
    agent = Noted()
    runner = stage.runner(agent, limits=Limits(concurrent_runs=2))
    greedy = [await sent(runner, EVE, f"eve{n}", await stage.session()) for n in range(8)]
    await agent.until(2)
    others = [await sent(runner, who, who.subject, await stage.session()) for who in (ANN, BEN)]
    agent.room.release()
    assert (await agent.until(3))[2:] == ["ann"]
    agent.room.release()
    await agent.until(4)
    for _ in range(20):
        agent.room.release()
    for each in (*greedy, *others):
        assert (await stage.ended(each)).type == "run.completed"
    assert agent.begun.index("ben") == 3
    assert not runner.places.queued


@pytest.mark.parametrize("at_once", [1_000, 5], ids=["few", "many"])
async def test_what_waits_at_a_start_is_taken_in_fair_order(
    stage: Stage, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None fails, and a subject's one message does not wait behind another's many; the start waits only for few."""
    for module in ("run", "backlog"):
        monkeypatch.setattr(f"legato.{module}.AT_ONCE", at_once)
    before = stage.runner(Noted(), limits=Limits(concurrent_runs=0))
    sents = [await sent(before, EVE, f"eve{n}", await stage.session()) for n in range(40)]
    sents += [await sent(before, who, who.subject, await stage.session()) for who in (ANN, BEN)]
    await stage.crash()
    agent = Noted()
    runner = stage.runner(agent, limits=Limits(concurrent_runs=1))  # of two, either may begin first
    await runner.start()
    for _ in range(60):
        agent.room.release()
    for each in sents:
        assert (await stage.ended(each)).type == "run.completed"
    assert {"ann", "ben"} <= set(agent.begun[:5])
    assert [text for text in agent.begun if text.startswith("eve")] == [f"eve{n}" for n in range(40)]


async def test_what_is_being_stored_while_the_runner_looks_is_not_forgotten(stage: Stage) -> None:
    """It is known before it is in the store, where the look does not find it."""
    agent = Noted()
    runner = stage.runner(agent, limits=Limits(concurrent_runs=1), lease_ttl=3600.0)  # it will not look again by itself
    first = await sent(runner, EVE, "first", await stage.session())
    before = await sent(runner, EVE, "before", await stage.session())
    session, append = await stage.session(), stage.store.append
    storing, go = asyncio.Event(), asyncio.Event()

    async def slow(name: str, *args: Any, **options: Any) -> Any:
        if name == session:
            storing.set()
            await go.wait()
        return await append(name, *args, **options)

    stage.store.append = slow  # type: ignore[method-assign]
    sending = asyncio.create_task(sent(runner, ANN, "ann", session))
    async with asyncio.timeout(NET):
        await storing.wait()
        await runner.backlog.learn()
        go.set()
        last = await sending
    assert last.run in runner.places.queued
    agent.room.release()
    assert (await agent.until(2))[1] == "ann"
    for _ in range(5):
        agent.room.release()
    for each in (first, before, last):
        assert (await stage.ended(each)).type == "run.completed"


async def test_what_another_node_cannot_do_is_taken_by_who_is_short_itself(stage: Stage) -> None:
    """A node that always has something of its own waiting still learns what others left, and its turn comes."""
    agent = Noted()
    runner = stage.runner(agent, limits=Limits(concurrent_runs=1), lease_ttl=0.03)
    other = stage.runner(Noted(), limits=Limits(concurrent_runs=0))
    mine = [await sent(runner, EVE, f"eve{n}", await stage.session()) for n in range(5)]
    left = await sent(other, ANN, "ann", await stage.session())
    await other.stop()
    async with asyncio.timeout(NET):
        while left.run not in runner.places.queued:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0.001)
    agent.room.release()
    assert (await agent.until(2))[1] == "ann"
    for _ in range(9):
        agent.room.release()
    for each in (*mine, left):
        assert (await stage.ended(each)).type == "run.completed"


async def test_so_much_of_one_party_may_wait_and_no_more(stage: Stage) -> None:
    """Over all its sessions, however many come at once; what is refused has stored nothing, and others are let be."""
    agent = Noted()
    runner = stage.runner(agent, limits=Limits(concurrent_runs=1, waiting_messages=3), lease_ttl=0.03)
    first = await sent(runner, EVE, "first", await stage.session())
    sessions = [await stage.session() for _ in range(8)]
    tried = await asyncio.gather(*(sent(runner, EVE, "more", each) for each in sessions), return_exceptions=True)
    assert sum(isinstance(each, Sent) for each in tried) == 3
    assert {type(each) for each in tried} == {Sent, TooMany}
    behind = pytest.raises(TooMany)
    with behind:
        await sent(runner, EVE, "behind", first.session)
    ben = await sent(runner, BEN, "ben", await stage.session())
    waiting = [each for each in tried if isinstance(each, Sent)]
    await runner.cancel(waiting[0].session)
    await stage.ended(waiting[0])
    async with asyncio.timeout(NET):
        while waiting[0].run in runner.places.queued:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0.001)
    again = await sent(runner, EVE, "again", sessions[0])
    for _ in range(9):
        agent.room.release()
    for each in (first, ben, again, *waiting[1:]):
        assert (await stage.ended(each)).type == "run.completed"
    for session, each in zip(sessions, tried, strict=True):
        stored = [event.type for event in await stage.events(session)]
        assert ("message.created" in stored) is (isinstance(each, Sent) or session == again.session)


def draining(runner: Runner) -> None:
    runner.draining = True


def lagging(runner: Runner) -> None:
    runner.load.stop()
    runner.load.lag = 1.0


def full_session(runner: Runner) -> None:
    runner.limits = Limits(concurrent_runs=0, queued_messages=-1)


def full_party(runner: Runner) -> None:
    runner.limits = Limits(concurrent_runs=0, waiting_messages=0)


REFUSALS: list[tuple[Callable[[Runner], None], type[LegatoError]]] = [
    (draining, Draining),
    (lagging, Overloaded),
    (full_session, QueueFull),
    (full_party, TooMany),
]


@pytest.mark.parametrize(("trouble", "error"), REFUSALS)
@pytest.mark.parametrize("verb", ["send", "begin", "branch"])
async def test_what_came_before_is_found_whatever_is_refused_now(
    stage: Stage, trouble: Callable[[Runner], None], error: type[LegatoError], verb: str
) -> None:
    """A message that is sent again under its key is answered as what it is; another under that key, too; only what is
    new is refused."""

    async def ok(turn: Turn) -> str:
        return "ok"

    runner = stage.runner(ok)
    sessions = Sessions(runner.store, runner, may=lambda *_: True)
    session = await stage.session()
    first = await sessions.send(ANN, session, Question("first"))
    await stage.ended(first)
    if verb == "branch":  # from an answer that is not the last: in a copy
        await stage.ended(await sessions.send(ANN, session, Question("second")))
    await stage.idle(runner)

    async def ask(text: str, key: str) -> Sent:
        if verb == "begin":
            begin = draft("session.created", {}).fact
            return await sessions.send(ANN, f"new-{key}", Question(text, key=key), begin=begin)  # type: ignore[arg-type]
        if verb == "branch":
            return await sessions.branch(ANN, session, first.run, Question(text, key=key))
        return await sessions.send(ANN, session, Question(text, key=key))

    before = await ask("hello", "k")
    await stage.ended(before)
    await stage.idle(runner)
    trouble(runner)
    again = await ask("hello", "k")
    assert (again.run, again.message, again.repeated) == (before.run, before.message, True)
    with pytest.raises(KeyReused):
        await ask("something else", "k")
    if error in (Draining, Overloaded):
        with pytest.raises(error):
            await ask("hello", "new")


# What is told ---------------------------------------------------------------------------------------------------------


async def test_readers_are_told_what_a_run_waits_for() -> None:
    """In each dialect, in its own words; when there is a place, the answer follows."""
    agent = Noted()
    async with chatting(None, agent, limits=Limits(concurrent_runs=1)) as chat:
        await chat.send("holds the place")
        await agent.until(1)
        post = chat.driver.request

        async def raw(target: str, body: Any = None) -> bytes:
            extra = {"content-type": "application/json"}
            text = json.dumps(body or {}).encode()
            async with chat.driver.stream(target, method="POST", body=text, headers=extra) as stream:
                async for _ in stream:
                    pass
            return stream.body

        other = (await post("POST", "/api/sessions", json={})).json()["id"]
        told = (await post("POST", f"/api/sessions/{other}/messages", json={"text": "x"})).json()
        mix = await chat_of(chat, other).follow(told["cursor"], until=named("run_waiting"))
        assert json.loads(mix[-1].data) == {"type": "run_waiting", "for": "place", "runId": told["runId"]}
        thread = (await post("POST", "/api/sdk/chat", json={})).json()["id"]
        asked = (await post("POST", f"/api/sdk/chat/{thread}/messages", json={"text": "x"})).json()["id"]
        model = next(iter(chat.app.life.sessions.agents))
        streams = [
            asyncio.create_task(raw("/v1/responses", {"model": model, "input": "x", "stream": True})),
            asyncio.create_task(
                raw(
                    "/v1/chat/completions",
                    {"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}]},
                )
            ),
            asyncio.create_task(raw(f"/api/sdk/chat/{thread}/messages/{asked}/query/stream")),
        ]
        await quiet()
        for _ in range(9):
            agent.room.release()
        async with asyncio.timeout(NET):
            responses, completions, deva = await asyncio.gather(*streams)
        names = [line for line in responses.decode().split("\n") if line.startswith("event: ")]
        assert names[:3] == ["event: response.created", "event: response.queued", "event: response.in_progress"]
        assert names[-1] == "event: response.completed"
        assert b": waiting for a place\n\n" in completions
        assert completions.endswith(b"data: [DONE]\n\n")
        assert b": waiting for a place\n" in deva
        assert b"event: response_message" in deva


def chat_of(chat: Any, session: str) -> Any:
    return type(chat)(chat.app, chat.driver, session)


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/api/sessions/{id}/messages", {"text": "x"}),
        ("/api/sdk/chat/{id}/messages", {"text": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/responses", {"input": "x", "stream": True}),
        ("/v1/chat/completions", {"model": "Noted", "messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_who_is_refused_is_told_when_to_come_again(target: str, body: dict[str, Any]) -> None:
    agent = Noted()

    async def noted(turn: Turn) -> str:
        return await agent(turn)

    noted.__name__ = "Noted"
    limits = Limits(concurrent_runs=1, waiting_messages=0)
    async with chatting(None, noted, limits=limits) as chat:
        await chat.send("holds the place")
        await agent.until(1)
        answer = await chat.driver.request("POST", target.format(id=chat.session), json=body)
        assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        agent.room.release()
