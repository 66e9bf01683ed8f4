"""Every limit has a default, a setting, a counter and a test; and holds before anything is stored or begun."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from held_store import quiet
from legato.agent import Agent
from legato.bounds import BESIDE, BOUNDS, NAMES, Limits, Rate
from legato.caller import Caller
from legato.cli.failure import Misuse
from legato.cli.serve import settings
from legato.errors import Conflict, QuotaSpent, StoreFull, TooFast, TooMany
from legato.part import Usage
from legato.places import Places
from legato.server.app import Legato
from legato.server.connections import Connections
from legato.server.limits import NO_LIMIT, NOTHING, UnknownLimit, arguments, defaults
from legato.server.stream import Streams
from legato.server.traffic import Traffic
from legato.spending import Accounts, Spent, holder, spent
from legato.store.memory import MemoryStore
from legato.testing import ASGIResponse, Driver
from legato.yields import ToolCall

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "limits.md"


def by_header(scope: Any) -> Caller:
    """Who asks, from a header; nobody in particular without."""
    names = [value.decode() for name, value in scope["headers"] if name == b"x-user"]
    return Caller(names[0] if names else "")


class Talker:
    """An agent that does what the message says; it notes who asked what."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, turn: Any) -> AsyncIterator[Any]:
        text = turn.message.text
        self.asked.append(text)
        if text == "wait":
            await self.go.wait()
        if text == "sleep":
            await asyncio.sleep(60)
        if text == "many":
            for number in range(500):
                yield f"{number} "
                await turn.stored()
        if text == "large":
            yield "x" * 100_000
        if text == "tool":
            yield ToolCall("c", "t", '"' + "x" * 100_000 + '"')
        yield f"re {text}"
        yield Usage(input_tokens=60, output_tokens=40, cost=0.5)


class Served:
    """An application in this process, and who asks it."""

    def __init__(self, app: Legato, driver: Driver, agent: Talker) -> None:
        self.app, self.driver, self.agent = app, driver, agent

    def refused(self) -> dict[str, int]:
        """What limits have refused, without those that have refused nothing."""
        return {name: count for name, count in self.app.refused.items() if count}

    async def create(self, user: str = "ann") -> ASGIResponse:
        return await self.driver.request("POST", "/api/sessions", json={}, headers={"x-user": user})

    async def session(self, user: str = "ann") -> str:
        answer = await self.create(user)
        assert answer.status == 201, answer.text
        return str(answer.json()["id"])

    async def say(self, session: str, text: str = "hi", user: str = "ann", **headers: str) -> ASGIResponse:
        target = f"/api/sessions/{session}/messages"
        return await self.driver.request("POST", target, json={"text": text}, headers={"x-user": user, **headers})

    async def said(self, session: str, text: str = "hi", user: str = "ann") -> dict[str, Any]:
        """Say it, and give the end of its run."""
        answer = await self.say(session, text, user)
        assert answer.status == 202, answer.text
        return await self.end(session, answer.json()["runId"])

    async def end(self, session: str, run: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                events = [event async for event in self.app.sessions.all(Caller("ann"), session)]
                for event in events:
                    if event.run == run and event.fact.terminal:
                        return {"type": event.type, **msgspec.json.decode(event.json)}
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(store: Any = None, **options: Any) -> AsyncIterator[Served]:
    agent = Talker()
    options.setdefault("identify", by_header)
    options.setdefault("may", lambda caller, verb, owner: True)
    app = Legato(MemoryStore() if store is None else store, agents=[Agent(agent, name="talker")], **options)
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        yield Served(app, driver, agent)


def told(answer: ASGIResponse) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["reason"]


# The table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", BOUNDS, ids=NAMES)
def test_each_limit_has_a_default_a_setting_a_counter_and_a_test(bound: Any) -> None:
    """A row without one of them is no limit."""
    if bound.name != "quota":
        kind, default = defaults()[bound.name]
        assert (kind, default) == (bound.kind, default)
        assert default >= 0
        made = arguments({bound.name: str(int(default) + 1)})
        holder = {"Limits": "limits", "Traffic": "traffic"}.get(kind)
        value = made[bound.name] if holder is None else getattr(made[holder], bound.name)
        assert value == int(default) + 1
    assert Legato("memory:", agents=[Talker()]).refused[bound.name] == 0
    sources = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    assert bound.tests
    for test in bound.tests:
        assert re.search(rf"def {test}\(", sources), f"{bound.name} names a test that there is not: {test}"


def test_every_setting_is_in_the_table() -> None:
    """Whoever adds a field says what becomes of who passes it."""
    fields = {field.name for kind in (Limits, Traffic) for field in msgspec.structs.fields(kind)}
    named = {bound.name for bound in BOUNDS if bound.kind != "Legato"}
    assert fields == named | set(BESIDE)


def test_the_page_has_each_limit_as_it_is() -> None:
    """docs/limits.md, against the table and the code."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", PAGE.read_text(), re.M)
    listed = {name: (of.strip(), default.strip(), answer.strip()) for name, of, default, answer in rows}
    wanted = {}
    for bound in BOUNDS:
        default = "none" if bound.name == "quota" else f"{defaults()[bound.name][1]:,g}".replace("e+", "e")
        if bound.name != "quota":
            value = defaults()[bound.name][1]
            default = f"{value:,}" if isinstance(value, int) else f"{value:,g}"
        wanted[bound.name] = (bound.of, default, bound.answer)
    assert {name: listed.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"owner_sendz": "1"}, "do you mean owner_sends"),
        ({"nothing": "1"}, "docs/limits.md"),
        ({"run_events": "1.5"}, "a whole number"),
        ({"run_events": "-1"}, "from 0 on"),
        ({"run_seconds": "nan"}, "a number"),
        ({"run_seconds": "inf"}, "a number"),
        ({"max_streams": "many"}, "a whole number"),
        ({"owner_cost": ""}, "a number"),
        ({"connections": "0"}, "a whole number above 0"),
        ({"body_rate": "0"}, "a whole number above 0"),
        ({"head_seconds": "0"}, "a number above 0"),
        ({"concurrent_runs": "0"}, "a whole number above 0"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(given: dict[str, str], words: str) -> None:
    """With what was expected and what came."""
    with pytest.raises(UnknownLimit, match=words):
        arguments(given)
    name, value = next(iter(given.items()))
    with pytest.raises(Misuse, match=words):
        settings([f"{name}={value}"])


def test_a_limit_of_none_is_one_that_may_be() -> None:
    """0 is no limit where the page says so, and else nothing at all; never the end of all service."""
    known = defaults()
    may = {name for name in known if name.startswith("owner_")}.union(NO_LIMIT, NOTHING)
    for name in may:
        arguments({name: "0"})
    for name in known.keys() - may:
        with pytest.raises(UnknownLimit, match="with 0 nothing would be"):
            arguments({name: "0"})
    text = " ".join(PAGE.read_text().split())
    named = re.search(r"0 is no limit for those that begin with `owner_`, for (.*?);", text)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == set(NO_LIMIT)


def test_streams_of_one_may_be_without_limit() -> None:
    """Of an owner and of an address."""
    streams = Streams(total=9, per_owner=0, per_address=0)
    assert [streams.reserve("", party).session for party in ["subject a", "address b"] * 4] == [""] * 8


def test_a_limit_is_given_on_the_command_line() -> None:
    """Each by its name, wherever it is set."""
    made = settings(["owner_sends=60", "max_streams = 5", "connections=7"])
    assert (made["limits"].owner_sends, made["max_streams"], made["traffic"].connections) == (60, 5, 7)
    with pytest.raises(Misuse, match="NAME=VALUE"):
        settings(["owner_sends"])


# Requests -------------------------------------------------------------------------------------------------------------


async def test_a_body_is_bounded() -> None:
    """By its head, or as it comes."""
    async with serving(max_body=1000) as served:
        answers = [
            await served.driver.request("POST", "/api/sessions", body=b" " * 1001),
            await served.driver.request("POST", "/api/sessions", body=[b" " * 600, b" " * 600]),
        ]
        assert [told(answer) for answer in answers] == [(413, "too_large")] * 2
        assert served.refused() == {"max_body": 2}


async def test_a_message_is_bounded() -> None:
    """In characters, whatever its bytes."""
    async with serving(limits=Limits(message_characters=10)) as served:
        session = await served.session()
        assert told(await served.say(session, "ä" * 11)) == (413, "too_large")
        assert (await served.said(session, "ä" * 10))["type"] == "run.completed"
        assert served.refused() == {"message_characters": 1}


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text", "code"),
    [
        ("run_seconds", 0.05, "sleep", "timeout"),
        ("run_events", 20, "many", "too_many_events"),
        ("run_characters", 50_000, "large", "too_large"),
        ("run_bytes", 50_000, "large", "too_many_bytes"),
        ("event_bytes", 50_000, "tool", "too_large"),
    ],
)
async def test_a_run_is_bounded(name: str, value: float, text: str, code: str) -> None:
    """It ends, says why, and is counted."""
    limits: Any = {name: value, "cancel_grace": 0.0}
    async with serving(limits=Limits(**limits)) as served:
        end = await served.said(await served.session(), text)
        assert (end["type"], end["code"]) == ("run.failed", code)
        assert served.refused() == {name: 1}


# Sessions -------------------------------------------------------------------------------------------------------------


async def test_a_queue_is_bounded() -> None:
    """Before the message is stored."""
    async with serving(limits=Limits(queued_messages=1)) as served:
        session = await served.session()
        assert [(await served.say(session, "wait")).status for _ in range(2)] == [202, 202]
        assert told(await served.say(session)) == (409, "queue_full")
        assert served.refused() == {"queued_messages": 1}
        served.agent.go.set()


@pytest.mark.parametrize(("name", "value"), [("session_events", 12), ("session_bytes", 3_000), ("session_runs", 2)])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_session_is_bounded(name: str, value: int, kind: str, tmp_path: Path) -> None:
    """In what it holds; also after a restart, and also against messages that are not to be answered."""
    limits: Any = {name: value}
    store: Any = MemoryStore() if kind == "memory" else f"sqlite:///{tmp_path}/a.db"
    async with serving(store, limits=Limits(**limits)) as served:
        session, other = await served.session(), await served.session()
        async with asyncio.timeout(30):
            while (answer := await served.say(session, "x" * 400)).status == 202:
                await served.end(session, answer.json()["runId"])
        assert told(answer) == (409, "session_full")
        assert served.refused()[name] == 1
        assert (await served.say(other)).status == 202
        head = (await served.app.store.info(session)).head
        assert name != "session_events" or head <= value + 2  # what ends a run is stored in any case
    async with serving(store, limits=Limits(**limits)) as served:
        assert told(await served.say(session)) == (409, "session_full")
        begin = {"items": [{"role": "user", "content": "x"}]}
        added = await served.driver.request("POST", f"/v1/conversations/{session}/items", json=begin)
        assert added.status == 409
        assert (await served.app.store.info(session)).head == head


async def test_a_run_has_no_more_room_than_its_session() -> None:
    """So a session is not passed by as much as one run may store."""
    async with serving(limits=Limits(session_events=60)) as served:
        session = await served.session()
        end = await served.said(session, "many")
        assert end["code"] == "too_many_events"
        assert (await served.app.store.info(session)).head <= 63


# Owners ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_sessions_of_an_owner_are_bounded(kind: str, tmp_path: Path) -> None:
    """However many are begun at once, and by whichever verb; who deletes one has room again."""
    store: Any = MemoryStore() if kind == "memory" else f"sqlite:///{tmp_path}/a.db"
    async with serving(store, limits=Limits(owner_sessions=3)) as served:
        kept = await served.session()
        answers = await asyncio.gather(*(served.create() for _ in range(10)))
        assert sorted(answer.status for answer in answers) == [201] * 2 + [429] * 8
        headers = {"x-user": "ann"}
        ways = [
            ("/v1/responses", {"input": "hi"}),
            ("/v1/conversations", {}),
            (f"/api/sessions/{kept}/fork", {"messageIndex": 0}),
        ]
        assert (await served.said(kept))["type"] == "run.completed"
        for path, body in ways:
            answer = await served.driver.request("POST", path, json=body, headers=headers)
            assert answer.status == 429, path
            assert "retry-after" in answer.headers
        assert served.refused() == {"owner_sessions": 11}
        assert (await served.create("bob")).status == 201
        assert (await served.driver.request("DELETE", f"/api/sessions/{kept}", headers=headers)).status < 300
        assert (await served.create()).status == 201
        assert (await served.create()).status == 429
        assert (await served.create("")).status == 201  # nobody in particular owns nothing


def test_an_owner_has_so_many_runs_at_once() -> None:
    """The others wait, and others' runs do not wait for them."""
    places = Places(lambda: 10, lambda: 100, most=lambda: 2)
    assert [places.take("ann") for _ in range(3)] == [True, True, False]
    places.queue("s", "r", "ann")
    places.wait("s")
    assert places.turn() is None
    assert [places.take("bob") for _ in range(3)] == [True, True, False]
    places.give_back("ann")
    assert places.turn() == ("s", "ann")


async def test_what_waits_of_one_owner_is_bounded() -> None:
    """Over all their sessions."""
    async with serving(limits=Limits(concurrent_runs=0, waiting_messages=2)) as served:
        sessions = [await served.session() for _ in range(3)]
        assert [(await served.say(each)).status for each in sessions] == [202, 202, 429]
        assert served.refused() == {"waiting_messages": 1}
        other = await served.session("bob")
        assert (await served.say(other, user="bob")).status == 202


async def test_messages_have_a_rate() -> None:
    """For each caller by themselves; what was sent before is found all the same."""
    async with serving(limits=Limits(owner_sends=2)) as served:
        session = await served.session()
        first = await served.say(session, **{"idempotency-key": "k"})
        assert (await served.say(session)).status == 202
        refused = await served.say(session)
        assert told(refused) == (429, "too_fast")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        again = await served.say(session, **{"idempotency-key": "k"})
        assert again.json()["runId"] == first.json()["runId"]
        assert (await served.say(session, user="bob")).status == 202
        for path, body in [("/v1/responses", {"input": "hi"}), (f"/stream/{session}/message", {"content": "hi"})]:
            answer = await served.driver.request("POST", path, json=body, headers={"x-user": "ann"})
            assert (answer.status, "retry-after" in answer.headers) == (429, True)
        assert served.refused() == {"owner_sends": 3}
        assert len(served.agent.asked) <= 3


def test_a_rate_is_as_many_at_once_and_then_one_after_another() -> None:
    """By a clock that stands; who comes too fast loses nothing by it, and who is done is forgotten."""
    now = 0.0
    waits: list[float] = []
    rate = Rate(lambda: 6, lambda: now, most=3)

    def taken(party: str, times: int) -> int:
        count = 0
        for _ in range(times):
            try:
                rate.take(party, "owner_sends")
            except TooFast as exc:
                waits.append(exc.retry_after or 0.0)
            else:
                count += 1
        return count

    assert taken("ann", 20) == 6
    now = 9.9
    assert taken("ann", 3) == 0
    now = 10.0
    assert taken("ann", 3) == 1
    assert taken("bob", 20) == 6
    now = 200.0
    assert taken("cat", 1) == 1
    assert len(rate._worn_off) == 1
    for party in "defgh":
        assert taken(party, 1) == 1
    assert len(rate._worn_off) == 3
    assert taken("", 20) == 20
    assert all(0 < wait <= 10 for wait in waits)


SPENDING = [
    ("owner_runs", 2, 2), ("owner_events", 1, 1), ("owner_bytes", 10, 1), ("owner_tokens", 150, 2),
    ("owner_cost", 1.0, 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "runs"), SPENDING)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_an_owner_spends_is_bounded(name: str, value: float, runs: int, kind: str, tmp_path: Path) -> None:
    """In a window of time; it outlives the process and the sessions, and is nobody else's."""
    limits: Any = Limits(**{name: value})  # type: ignore[arg-type]
    store: Any = MemoryStore() if kind == "memory" else f"sqlite:///{tmp_path}/a.db"
    async with serving(store, limits=limits) as served:
        session = await served.session()
        for _ in range(runs):
            await served.said(session)
            await quiet()
        answer = await served.say(session)
        assert told(answer) == (429, "quota_spent")
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
        assert served.refused() == {name: 1}
        await served.driver.request("DELETE", f"/api/sessions/{session}", headers={"x-user": "ann"})
    async with serving(store, limits=limits) as served:
        mine, other = await served.session(), await served.session("bob")
        assert told(await served.say(mine)) == (429, "quota_spent")
        assert (await served.say(other, user="bob")).status == 202
        listed = (await served.driver.request("GET", "/api/sessions", headers={"x-user": "ann"})).json()
        assert {each["id"] for each in listed} == {mine, other}  # and no account
        accounts = (await served.app.store.sessions(owner=holder("ann"))).infos
        assert len(accounts) == 1
        for path in (f"/api/sessions/{accounts[0].session}", f"/stream?sessionId={accounts[0].session}"):
            assert (await served.driver.request("GET", path, headers={"x-user": "ann"})).status == 404


async def test_accounts_of_two_nodes_are_one_count() -> None:
    """Whoever writes first, and however many at once; a new window begins at nothing, and nothing is lost."""
    store, now = MemoryStore(), 86_400.0 * 5 + 10
    limits = Limits(owner_tokens=100_000)
    nodes = [Accounts(store, lambda: limits, lambda: now) for _ in range(2)]
    for node in nodes:
        await node.check("ann")
    for number in range(50):
        nodes[number % 2].add("ann", spent(3, 10, Usage(input_tokens=1, output_tokens=2, cost=0.25)))
        if number % 7 == 0:
            await asyncio.sleep(0)
    for node in nodes:
        await node.close()
    for node in nodes:
        has = await node.spent("ann")
        assert (has.runs, has.events, has.bytes, has.tokens, has.cost) == (50, 150, 500, 150, 12.5)
    limits = Limits(owner_runs=50)
    for node in nodes:
        with pytest.raises(QuotaSpent) as caught:
            await node.check("ann")
        assert caught.value.retry_after == 86_390
    now += 86_400
    assert await nodes[0].spent("ann") == Spent(since=86_400 * 6)
    nodes[1].add("ann", spent(1, 1, None))
    await nodes[1].close()
    assert (await nodes[0].spent("ann")).runs == 1


async def test_an_account_that_cannot_begin_is_begun_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a line for each owner who asks while nothing can be stored; what was spent and is lost is told."""
    store = MemoryStore()
    accounts = Accounts(store, lambda: Limits(owner_runs=5))
    monkeypatch.setattr("legato.spending.RETRIES", (0.0,))

    async def refuse(*_: Any, **__: Any) -> None:
        raise StoreFull("full")

    with monkeypatch.context() as full:
        full.setattr(store, "append", refuse)
        await accounts.check("ann")
        await accounts.close()
        assert caplog.records == []
        await accounts.check("ann")
        accounts.add("ann", spent(1, 1, None))
        await accounts.close()
        assert ["cannot be counted" in record.message for record in caplog.records] == [True]
    await accounts.check("ann")
    accounts.add("ann", spent(1, 1, None))
    await accounts.close()
    assert (await accounts.spent("ann")).runs == 1


async def test_the_applications_rule_can_refuse() -> None:
    """Before anything is stored, in each dialect; with a reason, or by an error of its own; one that fails lets nobody
    in."""
    asked: list[tuple[str, str]] = []
    say: Any = None

    async def quota(caller: Caller, verb: str, session: str) -> str | None:
        asked.append((caller.subject, verb))
        if isinstance(say, Exception):
            raise say
        return say

    async with serving(quota=quota) as served:
        session = await served.session()
        await served.said(session)
        assert asked == [("ann", "create"), ("ann", "send")]
        before = (await served.app.store.info(session)).head
        ways: list[tuple[str, Any]] = [
            (f"/api/sessions/{session}/messages", {"text": "x"}),
            (f"/stream/{session}/message", {"content": "x"}),
            (f"/api/sessions/{session}/fork", {"messageIndex": 0}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/responses", {"input": "x", "conversation": session}),
            ("/v1/chat/completions", {"model": "talker", "messages": [{"role": "user", "content": "x"}]}),
            ("/v1/conversations", {}),
            (f"/v1/conversations/{session}/items", {"items": [{"role": "user", "content": "x"}]}),
            (f"/api/sdk/chat/{session}/messages", {"text": "x"}),
            ("/api/sdk/chat", {}),
        ]
        for say, status in (("Pay first.", 429), (Conflict("mine"), 409), (RuntimeError("broken"), 500), (17, 500)):
            for path, body in ways:
                answer = await served.driver.request("POST", path, json=body, headers={"x-user": "ann"})
                assert answer.status == status, (path, say, answer.text)
                assert not isinstance(say, str) or say in answer.text
        assert served.refused() == {"quota": len(ways)}
        assert (await served.app.store.info(session)).head == before
        assert len((await served.app.store.sessions()).infos) == 1


# Connections ----------------------------------------------------------------------------------------------------------


async def test_streams_are_bounded_before_they_begin() -> None:
    """Of a session, an owner, an address and all; the answer is no stream, and says when to come again."""
    options: Any = {
        "max_streams": 6, "max_streams_per_session": 4, "max_streams_per_owner": 3, "max_streams_per_address": 2,
    }  # fmt: skip
    async with serving(**options) as served:
        sessions = [await served.session() for _ in range(3)]
        open_: list[Any] = []

        async def follow(session: str, user: str, *, status: int) -> None:
            stream = served.driver.stream(f"/stream?sessionId={session}", headers={"x-user": user} if user else {})
            await stream.__aenter__()
            open_.append(stream)
            assert stream.status == status
            assert status == 200 or (stream.headers["content-type"], "retry-after" in stream.headers) == (
                "application/json",
                True,
            )

        for status in (200, 200, 200, 429):
            await follow(sessions[0], "ann", status=status)
        for status in (200, 429):
            await follow(sessions[0], "bob", status=status)
        for status in (200, 200, 429):
            await follow(sessions[1], "cat", status=status)
        assert served.refused() == {"max_streams_per_owner": 1, "max_streams_per_session": 1, "max_streams": 1}
        for stream in open_:
            await stream.__aexit__(None, None, None)
        await quiet()
        assert not served.app.streams.parties
        assert served.app.streams._places == 0


@pytest.mark.parametrize(("party", "name"), [("subject ann", "owner"), ("address 10.0.0.1", "address")])
def test_streams_of_one_party_are_bounded(party: str, name: str) -> None:
    """And given back."""
    streams = Streams(per_owner=2, per_address=2)
    places = [streams.reserve("s", party) for _ in range(2)]
    with pytest.raises(TooMany) as caught:
        streams.reserve("t", party)
    assert (caught.value.bound, caught.value.detail) == (f"max_streams_per_{name}", {"limit": 2})
    streams.reserve("t", f"{party}0")
    streams.reserve("t")
    places[0].give_back()
    places[0].give_back()
    streams.reserve("t", party)


def test_connections_of_one_address_are_bounded() -> None:
    """Of IPv6, of a household's."""
    connections = Connections(Traffic(connections_per_address=2))
    assert [connections.count_in("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert connections.count_in("10.0.0.2")
    connections.count_out("10.0.0.1")
    assert connections.count_in("10.0.0.1")
    assert [connections.count_in(f"2001:db8::{n}") for n in range(3)] == [True, True, False]
    for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2", "2001:db8::9", "2001:db8::9"):
        connections.count_out(address)
    assert not connections._addresses


async def test_a_stream_has_an_age() -> None:
    """Where its clients come back from an end; they miss nothing, and not all end at once."""
    async with serving(traffic=Traffic(stream_seconds=0.1)) as served:
        session = await served.session()
        said: list[str] = []
        last: str | None = None
        await served.say(session, "wait")
        ends = 0
        async with asyncio.timeout(60):
            while not any("re wait" in each for each in said):
                headers = {"x-user": "ann"} if last is None else {"x-user": "ann", "last-event-id": last}
                async with served.driver.stream(f"/stream?sessionId={session}", headers=headers) as stream:
                    assert stream.status == 200
                    async for message in stream.messages():
                        last = message.id or last
                        if message.event == "content":
                            said.append(message.data)
                    await stream.finished()
                    assert stream.error is None
                ends += 1
                if ends == 3:
                    served.agent.go.set()
        assert served.refused()["stream_seconds"] >= 3
        assert len(said) == 1  # not doubled


async def test_a_stream_that_may_not_end_has_no_age() -> None:
    """The end of a connection is the end of the answer to some clients."""
    async with serving(traffic=Traffic(stream_seconds=0.05)) as served:
        body = b'{"input": "wait", "stream": true}'
        headers = {"content-type": "application/json", "x-user": "ann"}
        async with served.driver.stream("/v1/responses", method="POST", body=body, headers=headers) as stream:
            await asyncio.sleep(0.3)
            served.agent.go.set()
            async with asyncio.timeout(30):
                types = [message.event async for message in stream.messages()]
        assert "response.completed" in types
        assert served.refused() == {}


async def test_a_reader_that_does_not_read_is_cut_off() -> None:
    """And counted."""
    async with serving(traffic=Traffic(stalled_seconds=0.1)) as served:
        session = await served.session()
        headers = {"x-user": "ann"}
        async with served.driver.stream(f"/stream?sessionId={session}", headers=headers, buffer=0):
            await served.say(session, "large")
            async with asyncio.timeout(30):
                while not served.refused():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert served.refused() == {"stalled_seconds": 1}


async def test_a_late_process_takes_no_messages() -> None:
    """By its loop, or by its store."""
    async with serving() as served:
        session = await served.session()
        served.app.runner.load.stop()
        served.app.runner.load.lag = 1.0
        assert told(await served.say(session)) == (503, "overloaded")
        served.app.runner.load.lag = 0.0
        served.app.runner.limits = Limits(wait_seconds=-1)
        assert told(await served.say(session)) == (503, "overloaded")
        assert served.refused() == {"lag_seconds": 1, "wait_seconds": 1}
