"""What is kept and for how long: sessions end after their time, and an owner's go out, come back, and are erased."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from databases import shared_postgres
from legato import archive, spending
from legato.archive import ArchiveCount, erase, export, sessions_in, take
from legato.auth.keys import add_key, new_key, read_keys, revoke_key
from legato.bounds import Limits
from legato.caller import Caller
from legato.cli.group import group
from legato.credentials import KEYS, key_holder
from legato.errors import InvalidInput, SessionExists, SessionNotFound
from legato.event import Draft, SessionCreated, SessionDeleted, SessionUpdated
from legato.log import Log, Store
from legato.questions import Question
from legato.retention import LEAST_SECONDS, TICK_CHANGES, Keeper, Retention, seconds_of
from legato.run import Runner
from legato.server.sign_in import Tickets
from legato.sessions import Sessions
from legato.spending import holder, spent
from legato.store import open_store
from legato.store.memory import MemoryStore
from legato.testing import FakeClock
from test_limits import serving
from valkeys import shared_valkey

KINDS = ["memory", "sqlite"]
DAY = 86_400.0


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = open_store("memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/data.db")
    await made.open()
    yield made
    await made.close()


async def agent(turn: Any) -> AsyncIterator[Any]:
    from legato.yields import ToolCall, ToolResult

    yield "Let me see. "
    yield ToolCall("c", "look", json.dumps({"at": turn.message.text}))
    yield ToolResult("c", "seen")
    for word in turn.message.text.split():
        yield f"{word} "


async def talk(store: Store, owner: str, *sessions: str) -> None:
    """Have a conversation in each of these sessions of an owner."""
    from legato.agent import Agent

    runner = Runner(store, {"agent": Agent(agent, name="agent")})
    await runner.start()
    verbs = Sessions(store, runner)
    caller = Caller(owner)
    for session in sessions:
        for text in ("one two three", 'quotes "and"   é 😀'):
            sent = await verbs.send(
                caller,
                session,
                Question(text, key=text[:3]),
                begin=None if text[0] == "q" else SessionCreated(title="t"),
            )
            found = await verbs.find(caller, session, sent.run)
            assert found is not None
            await verbs.until_ended(caller, found)
    await runner.stop(5)
    await runner.accounts.close()


async def facts(store: Store, session: str) -> list[tuple[Any, ...]]:
    return [(event.offset, event.type, event.run, event.data) async for event in Log(store, session).all()]


async def lines(store: Store, **options: Any) -> list[bytes]:
    """An export's lines."""
    return b"".join([each async for each in export(store, **options)]).splitlines(keepends=True)


# Export and import ----------------------------------------------------------------------------------------------------


async def test_what_an_owner_has_goes_out_and_comes_back(store: Store) -> None:
    """All of theirs, and nothing else; every event, at its place, as it was."""
    await talk(store, "ann", "a1", "a2")
    await talk(store, "bob", "b1")
    out = await lines(store, owner="ann")
    assert json.loads(out[0]) == {"legato": 1, "owner": "ann"}
    assert {json.loads(line)["session"] for line in out if b'"created_at"' in line} == {"a1", "a2"}
    assert not any(b"bob" in line for line in out)
    other = MemoryStore()
    events = sum([len(await facts(store, session)) for session in ("a1", "a2")])
    assert await take(other, out) == ArchiveCount(2, events)
    for session in ("a1", "a2"):
        assert await facts(other, session) == await facts(store, session)
        assert (await other.info(session)).owner == "ann"
        assert (await other.info(session)).updated_at == (await store.info(session)).updated_at
        assert [event.at async for event in Log(other, session).all()] == [
            event.at async for event in Log(store, session).all()
        ]
    again = await take(other, out)
    assert (again.sessions, sorted(again.left)) == (0, ["a1", "a2"])


async def test_one_session_goes_out(store: Store) -> None:
    """By its id, whoever has it."""
    await talk(store, "ann", "a1", "a2")
    found = list(sessions_in(await lines(store, session="a1")))
    assert [begun.session for begun, _ in found] == ["a1"]
    assert [event.offset for event in found[0][1]] == list(range(1, found[0][0].head + 1))
    with pytest.raises(SessionNotFound):
        await lines(store, session="none")
    for options in ({}, {"session": "a1", "owner": "ann"}):
        with pytest.raises(InvalidInput):
            await lines(store, **options)


async def test_a_run_that_had_not_ended_ends(store: Store) -> None:
    """Nobody drives it where it comes to."""
    from legato.event import MessageCreated

    asked = Draft(MessageCreated("m", "user", "hi"), "s~1")
    await store.append("s", [Draft(SessionCreated(owner="ann")), asked])
    out = await lines(store, owner="ann")
    other = MemoryStore()
    await take(other, out)
    assert [each[1] for each in await facts(other, "s")] == ["session.created", "message.created", "run.failed"]
    assert (await other.info("s")).open_runs == []


async def whole() -> list[bytes]:
    store = MemoryStore()
    await store.append("s", [Draft(SessionCreated(title="t"))])
    await store.append("r", [Draft(SessionCreated())])
    return await lines(store, owner="")


CUTS = {
    "nothing": lambda out: [],
    "no head": lambda out: out[1:],
    "two heads": lambda out: [out[0], *out],
    "no end": lambda out: out[:-1],
    "half a line": lambda out: [*out[:-1], out[-1][:-5]],
    "an event less": lambda out: [*out[:2], *out[3:]],
    "an event twice": lambda out: [*out[:3], out[2], *out[3:]],
    "no end of a session": lambda out: [*out[:3], *out[4:]],
    "no JSON": lambda out: [out[0], b"words\n", *out[1:]],
    "no line of ours": lambda out: [out[0], b'{"x": 1}\n', *out[1:]],
    "something behind it": lambda out: [*out, out[1]],
    "another total": lambda out: [*out[:-1], b'{"total":9,"events":9}\n'],
    "of a later version": lambda out: [b'{"legato":99}\n', *out[1:]],
    "an id of ours": lambda out: [line.replace(b'"s"', b'".spent.x"').replace(b'"r"', b'".x"') for line in out],
    "an id that no client can name": lambda out: [line.replace(b'"s"', b'"a/b"') for line in out],
    "no time": lambda out: [re.sub(rb'"at":[^,]+', b'"at":1e300', line) for line in out],
    "a time before all others": lambda out: [re.sub(rb'"at":[^,]+', b'"at":-1', line) for line in out],
    "another type": lambda out: [line.replace(b"session.created", b"session.other") for line in out],
    "a deep one": lambda out: [*out[:2], out[2].replace(b'"data":', b'"data":' + b"[" * 9000), *out[3:]],
}


@pytest.mark.parametrize("name", CUTS)
async def test_what_is_no_export_is_refused(name: str) -> None:
    """With the line, and no session is there in part."""
    out = await whole()
    other = MemoryStore()
    with pytest.raises((InvalidInput, SessionNotFound)) as caught:
        await take(other, CUTS[name](out))
    assert caught.value.message
    for info in (await other.sessions()).infos:
        assert await facts(other, info.session)


# Erasure --------------------------------------------------------------------------------------------------------------


async def test_what_an_owner_has_is_erased(store: Store) -> None:
    """All of it, durably, with what was counted; others keep theirs, and the ids are nobody's again."""
    from legato.spending import Accounts

    await talk(store, "ann", "a1", "a2")
    await talk(store, "bob", "b1")
    accounts = Accounts(store, lambda: Limits(owner_runs=5))
    await accounts.check("ann")
    accounts.add("ann", spent(1, 1, None))
    await accounts.close()
    assert (await accounts.spent("ann")).runs == 1
    found = await erase(store, "ann")
    assert found.sessions == 2
    assert (await store.sessions(owner="ann")).infos == []
    assert (await store.sessions(owner=holder("ann"))).infos == []
    assert [info.session for info in (await store.sessions()).infos] == ["b1"]
    for session in ("a1", "a2"):
        [tombstone] = [event async for event in Log(store, session).all()]
        assert (tombstone.type, tombstone.run, tombstone.data) == ("session.deleted", None, {})
        with pytest.raises(SessionExists):
            await store.append(session, [Draft(SessionCreated())])
    assert await erase(store, "ann") == ArchiveCount()
    assert (await accounts.spent("ann")).runs == 0
    await accounts.check("ann")  # who comes back begins anew
    accounts.add("ann", spent(1, 1, None))
    await accounts.close()
    assert (await accounts.spent("ann")).runs == 1
    with pytest.raises(InvalidInput):
        await erase(store, "")


@pytest.mark.parametrize("way", ["erase", "export"])
async def test_an_owner_is_whole_who_writes_meanwhile(store: Store, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was on a later page moves to one that was looked at, and something is begun, after each page."""
    monkeypatch.setattr(archive, "PAGE", 2)
    for number in range(7):
        await store.append(f"s{number}", [Draft(SessionCreated(owner="ann"))])
    listed, begun = store.sessions, 0

    async def moving(**options: Any) -> Any:
        nonlocal begun
        page = await listed(**options)
        if options["owner"] == "ann" and page.next is not None and begun < 5:
            begun += 1
            later = (await listed(limit=100, after=page.next, owner="ann")).infos
            await store.append(later[-1].session, [Draft(SessionUpdated({"title": "x"}))])
            await store.append(f"new{begun}", [Draft(SessionCreated(owner="ann"))])
        return page

    monkeypatch.setattr(store, "sessions", moving)
    if way == "export":
        found = [info.session for info, _ in sessions_in(await lines(store, owner="ann"))]
        assert sorted(found) == sorted([*(f"s{number}" for number in range(7)), *(f"new{n + 1}" for n in range(begun))])
    else:
        assert (await erase(store, "ann")).sessions == 7 + begun
    assert begun > 2
    assert len((await listed(owner="ann")).infos) == (0 if way == "erase" else 7 + begun)


async def test_nobody_looks_for_ever_after_who_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner who begins something with each look ends up with all that was there when it began exported, and more."""
    await store.append("s", [Draft(SessionCreated(owner="ann"))])
    listed, begun = store.sessions, 0

    async def moving(**options: Any) -> Any:
        nonlocal begun
        begun += 1
        await store.append(f"new{begun}", [Draft(SessionCreated(owner="ann"))])
        return await listed(**options)

    monkeypatch.setattr(store, "sessions", moving)
    found = [info.session for info, _ in sessions_in(await lines(store, owner="ann"))]
    assert "s" in found
    assert begun == archive.PASSES


async def test_whoever_has_the_name_of_an_account_is_none(store: Store) -> None:
    """As earlier versions let them: what they say counts for nobody, and stays when another is erased."""
    from legato.spending import Accounts

    told = Draft(SessionUpdated({"runs": 10**6, "since": int(time.time()) // 86_400 * 86_400}))
    await store.append("s", [Draft(SessionCreated(owner=holder("ann"))), told])
    accounts = Accounts(store, lambda: Limits(owner_runs=5))
    await accounts.check("ann")
    await accounts.close()
    assert (await accounts.spent("ann")).runs == 0
    await erase(store, "ann")
    assert [info.session for info in (await store.sessions()).infos] == ["s"]


async def test_what_is_ours_is_found_behind_all_that_such_a_one_has(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account is counted and erased, however many sessions stand before it in the order of the store."""
    from legato.spending import ACCOUNTS, Accounts

    for module in (archive, spending):
        monkeypatch.setattr(module, "PAGE", 4)
    accounts = Accounts(store, lambda: Limits(owner_runs=5))
    await accounts.check("ann")
    accounts.add("ann", spent(1, 1, None))
    await accounts.close()
    theirs = [f"s{number}" for number in range(ACCOUNTS + 1)]
    for session in theirs:
        await store.append(session, [Draft(SessionCreated(owner=holder("ann")))])
    assert (await accounts.spent("ann")).runs == 1
    await erase(store, "ann")
    assert {info.session for info in (await store.sessions()).infos} == set(theirs)


async def test_whoever_has_the_name_of_keys_has_none(store: Store) -> None:
    """As earlier versions let them: no session of theirs is taken for a key of whoever is erased."""
    _, key = new_key("ann")
    await add_key(store, key)
    await store.append("s", [Draft(SessionCreated(owner=key_holder("ann")))])
    for keys in (1, 0):
        assert (await erase(store, "ann")).keys == keys
    said = [event.fact.metadata async for event in Log(store, KEYS).all() if isinstance(event.fact, SessionUpdated)]
    assert said == [{"add": key.id}, {"revoke": key.id}]
    assert {info.session for info in (await store.sessions()).infos} == {KEYS, "s"}


async def test_who_is_erased_while_answered_stays_so(store: Store) -> None:
    """The run ends, and what it has cost is counted nowhere."""
    from legato.agent import Agent

    speaks, left = asyncio.Event(), asyncio.Event()

    async def agent(turn: Any) -> AsyncIterator[Any]:
        yield "a"
        speaks.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    runner = Runner(store, {"agent": Agent(agent, name="agent")}, limits=Limits(owner_runs=5))
    await runner.start()
    verbs = Sessions(store, runner)
    await verbs.send(Caller("ann"), "a1", Question("hello", key="k"), begin=SessionCreated(title="t"))
    async with asyncio.timeout(60):
        await speaks.wait()
        await runner.accounts.close()  # what is to be stored is
        await erase(store, "ann")
        await left.wait()
    await runner.stop(5)
    await runner.accounts.close()
    assert (await store.sessions(owner=holder("ann"))).infos == []
    assert (await store.sessions(owner="ann")).infos == []


async def test_nothing_of_an_owner_is_left_in_the_files(tmp_path: Path) -> None:
    """Neither words nor the name, also of what was deleted before."""
    store = open_store(f"sqlite:///{tmp_path}/data.db")
    await store.open()
    await talk(store, "ann-the-owner", "a1", "a2")
    await talk(store, "bob", "b1")
    await store.append("a2", [Draft(SessionDeleted())])
    await sign_in(store, "ann-the-owner")
    await erase(store, "ann-the-owner")
    await store.close()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # noqa: ASYNC240
    assert b"bob" in held
    assert b"ann-the-owner" not in held


async def sign_in(store: Store, owner: str) -> None:
    """Leave what signing in leaves: a key that is good, one that was revoked, and a ticket that was never used."""
    (_, key), (_, revoked) = (new_key(owner, name=f"{name} of {owner}") for name in ("laptop", "phone"))
    for each in (key, revoked):
        await add_key(store, each)
    await revoke_key(store, revoked.id)
    tickets = Tickets()
    tickets.store = store
    await tickets.issue(key.caller(), "s")


def left_in_postgres() -> tuple[str, Callable[[], bytes]]:
    """The URL of a store, and what gives all that stands in its database."""
    psycopg = pytest.importorskip("psycopg", reason="needs legato[postgres]")

    url = shared_postgres().url()

    def held() -> bytes:
        with psycopg.connect(url) as connection:
            tables = [
                connection.execute(f"SELECT t::text FROM legato.{name} t") for name in ("session", "event", "once")
            ]
            return repr([table.fetchall() for table in tables]).encode()

    return url, held


def left_in_valkey() -> tuple[str, Callable[[], bytes]]:
    redis = pytest.importorskip("redis", reason="needs legato[redis]")

    url = shared_valkey().url("data", "valkey")
    client = redis.Redis(port=shared_valkey().port)
    client.config_set("rdbcompression", "no")  # else what is given is not in plain words
    return url, lambda: b"".join(key + (client.dump(key) or b"") for key in client.scan_iter())  # type: ignore[union-attr]


@pytest.mark.parametrize("database", [left_in_postgres, left_in_valkey])
async def test_no_database_says_whose_a_deleted_session_was(
    database: Callable[[], tuple[str, Callable[[], bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what was said in it, be it so long that it is taken away later."""
    url, held = database()
    store = open_store(url)
    await store.open()
    monkeypatch.setattr("legato.store.postgres_sql.SWEPT_EVENTS", 0)
    for owner in ("ann-the-owner", "bob-the-other"):
        begun = Draft(SessionCreated(owner=owner, title=f"title of {owner}"))
        await store.append(f"s-of-{owner[:3]}", [begun], once=f"key of {owner}")
        await sign_in(store, owner)
    assert b"laptop of ann-the-owner" in held()
    found = await erase(store, "ann-the-owner")
    assert (found.sessions, found.keys) == (1, 1)
    assert b"title of ann-the-owner" not in held()
    assert [key.subject for key in await read_keys(store)] == ["bob-the-other"]
    await store.close()
    assert b"bob-the-other" in held()
    assert b"ann-the-owner" not in held()


# From the command line ------------------------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path) -> None:
    """Out, in again elsewhere, and gone."""
    source, target = f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/two.db"

    async def fill() -> None:
        store = open_store(source)
        await store.open()
        await talk(store, "ann", "a1", "a2")
        await store.close()

    asyncio.run(fill())
    file = tmp_path / "ann.jsonl"

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(group, [*arguments], catch_exceptions=False)
        return result.exit_code, result.output

    assert run("export", "--owner", "ann", "-o", str(file), "--store", source)[0] == 0
    assert file.stat().st_mode & 0o077 == 0
    status, said = run("export", "a1", "--store", source)
    assert (status, json.loads(said.splitlines()[0])) == (0, {"legato": 1})
    assert run("export", "--owner", "ann", "-o", str(file), "--store", source)[0] == 2  # it is there
    status, said = run("import", str(file), "--store", target)
    assert (status, said.split()[0]) == (0, "2")
    status, said = run("import", str(file), "--store", target)
    assert status == 1
    assert "a1" in said
    second = tmp_path / "again.jsonl"
    status, said = run("erase", "--owner", "ann", "--export", str(second), "--yes", "--store", target)
    assert (status, said.split()[0]) == (0, "2")
    assert len(second.read_bytes().splitlines()) == len(file.read_bytes().splitlines())
    assert run("export", "a1", "--store", target)[0] == 1
    for wrong in (
        ["export", "--store", source],
        ["export", "a1", "--owner", "ann", "--store", source],
        ["export", "a1", "--store", f"sqlite:///{tmp_path}/none.db"],
        ["export", "a1", "--store", "memory:"],
        ["import", str(tmp_path / "none"), "--store", target],
        ["erase", "--store", target],
    ):
        assert run(*wrong)[0] == 2, wrong
    assert not (tmp_path / "none.db").exists()


def test_what_is_asked_before_has_no_password() -> None:
    """Nor anything that a terminal would obey."""
    store = "postgresql://ida:sesame@db/legato"
    result = CliRunner().invoke(group, ["erase", "--owner", "ann\x1b]0;x\x07", "--store", store], input="n\n")
    assert result.exit_code == 1
    assert "postgresql://ida:***@db/legato" in result.output
    assert re.findall("sesame|[\x1b\x07]", result.output) == []


@pytest.mark.parametrize(
    "store",
    [
        *("postgresql://ida:sesame/db", "postgresql://ida@db:sesame/x", "postgresql//ida:sesame@db/x"),
        *("redis:ida:sesame@db", "host=db password=sesame", "mysql://db?secret_key=sesame"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [["gc"], ["backup", "new.db"], ["export", "a1"], ["erase", "--owner", "ida"], ["erase", "--owner", "ida", "--yes"]],
    ids=" ".join,
)
def test_no_error_has_the_password_of_a_store(command: list[str], store: str) -> None:
    """However its address is written."""
    result = CliRunner().invoke(group, [*command, "--store", store], input="n\n", prog_name="legato")
    assert result.exit_code in (1, 2)
    assert result.output
    assert "sesame" not in result.output


@pytest.mark.parametrize(
    "owner", ["ann  x", " ann", "ann\tx", "ann\xa0x", "ann\u200bx", "ann\u2028x", "'ann'", "ann\\tx"]
)
def test_whose_data_are_to_go_is_asked_to_the_letter(owner: str) -> None:
    """Who has a blank more, or another one, is somebody else; so is another file."""
    command = ["erase", "--owner", owner, "--store", "sqlite:///a  b.db"]
    asked = CliRunner().invoke(group, command, input="n\n").output
    found = re.fullmatch(r"Delete all that (.*) has in (.*), for ever\? \[y/N\]: n\nAborted!\n", asked)
    assert found is not None
    assert ast.literal_eval(found[1]) == owner
    assert re.search(r"[\xa0\u200b\u2028\t]", found[1]) is None
    assert ast.literal_eval(found[2]) == "sqlite:///a  b.db"


# Retention ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_sessions_end_after_their_time(kind: str, tmp_path: Path) -> None:
    """Since something was last stored in them, by owner; not while a run is open."""
    from legato.event import MessageCreated
    from legato.store.sqlite import SQLiteStore

    clock = FakeClock(1_000_000.0)
    store: Any = MemoryStore(clock=clock) if kind == "memory" else SQLiteStore(tmp_path / "k.db", clock=clock)
    await store.open()
    for session, owner in (("old", "ann"), ("kept", "bob"), ("short", "cat"), ("written", "ann"), ("open", "ann")):
        await store.append(session, [Draft(SessionCreated(owner=owner))])
    await store.append("open", [Draft(MessageCreated("m", "user", "hi"), "open~1")])
    rules = {"bob": Retention(), "cat": Retention(sessions=DAY)}
    keeper = Keeper(store, Retention(sessions=10 * DAY, of=rules.get), clock)

    async def left() -> set[str]:
        async with asyncio.timeout(30):
            while not await keeper.tick():
                pass
        return {info.session for info in (await store.sessions()).infos}

    everything = {"old", "kept", "short", "written", "open"}
    assert await left() == everything
    clock.now += 2 * DAY
    assert await left() == everything - {"short"}
    clock.now += 7 * DAY
    await store.append("written", [Draft(MessageCreated("w", "user", "hi"))])
    clock.now += 2 * DAY
    assert await left() == {"kept", "written", "open"}
    assert keeper.deleted == 2
    await store.close()


async def test_a_tick_changes_no_more_than_it_may() -> None:
    """Others are to store something in between; in the end all are gone."""
    clock = FakeClock(1_000_000.0)
    store = MemoryStore(clock=clock)
    for number in range(2 * TICK_CHANGES + 10):
        await store.append(f"s{number}", [Draft(SessionCreated())])
    keeper = Keeper(store, Retention(sessions=DAY), clock)
    clock.now += 2 * DAY
    counts = []
    while not await keeper.tick():
        counts.append(keeper.deleted)
    assert counts == [TICK_CHANGES, 2 * TICK_CHANGES]
    assert keeper.deleted == 2 * TICK_CHANGES + 10


async def test_who_writes_at_that_moment_keeps_the_session() -> None:
    """It is deleted at the head that was seen, or not at all."""
    from legato.event import MessageCreated

    clock = FakeClock(1_000_000.0)

    class Busy(MemoryStore):
        def append(self, session: str, drafts: Any, **options: Any) -> Any:
            if isinstance(drafts[0].fact, SessionDeleted):
                super().append(session, [Draft(MessageCreated("m", "user", "hi"))])
            return super().append(session, drafts, **options)

    store = Busy(clock=clock)
    await store.append("s", [Draft(SessionCreated())])
    clock.now += 2 * DAY
    keeper = Keeper(store, Retention(sessions=DAY), clock)
    assert await keeper.tick()
    assert ((await store.info("s")).head, keeper.deleted) == (2, 0)


async def test_an_application_keeps_what_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its life does the passes; a reader is told of the end; and a rule that fails deletes nothing."""
    import legato.retention

    monkeypatch.setattr(legato.retention, "TICK_SECONDS", 0.01)
    fails, asked = True, 0

    def rule(owner: str) -> Retention | None:
        nonlocal asked
        asked += 1
        if fails:
            raise RuntimeError("a mistake")
        return None

    clock = FakeClock(1_000_000.0)
    async with serving(MemoryStore(clock=clock), retention=Retention(sessions=DAY, of=rule)) as served:
        session = await served.session()
        served.app.life.keeper._clock = clock
        clock.now += 2 * DAY
        async with served.driver.stream(f"/stream?sessionId={session}", headers={"x-user": "ann"}) as stream:
            async with asyncio.timeout(30):
                while asked < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                assert (await served.app.store.info(session)).head == 1
                fails = False
                async for _ in stream:
                    pass
        assert (await served.driver.request("GET", f"/api/sessions/{session}")).status == 404


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 90 * DAY), ("1.5h", 5400), ("30m", 1800), ("0", 0), ("2 w", 14 * DAY)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    """With a unit, or as seconds."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "1y", "1e9", "inf", "\u0661d", "1d1h", "9" * 12])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="90d"):
        seconds_of(text)


@pytest.mark.parametrize("seconds", [1.0, LEAST_SECONDS - 1, float("inf"), float("nan"), -1.0])
def test_a_time_that_is_too_short_to_be_meant_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="at least"):
        Retention(sessions=seconds).check()
