"""Lists of who may see what others have: one list, in order, page by page, of each store; no more than ``may`` lets."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from databases import shared_postgres
from legato import Caller, Legato
from legato.event import Draft, SessionCreated, SessionDeleted, SessionUpdated
from legato.log import SessionInfo, Store
from legato.sharing import OWNERS, listed
from legato.store import open_store
from legato.store.memory import MemoryStore
from legato.testing import Driver
from valkeys import shared_valkey

SESSIONS = "/api/sessions"

_runs = itertools.count()


def url_of(kind: str, folder: Path) -> str:
    if kind == "postgres":
        return shared_postgres().url()
    return (
        shared_valkey().url("shared", "valkey")
        if kind == "valkey"
        else {"memory": "memory:"}.get(kind, f"sqlite:///{folder}/chat.db")
    )


@pytest.fixture(params=["memory", "sqlite", "postgres", "valkey"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = open_store(url_of(request.param, tmp_path))
    await made.open()
    for info in (await made.sessions(limit=1000)).infos:  # a database is that of all tests
        await made.append(info.session, [Draft(SessionDeleted())])
    yield made
    await made.close()


async def filled(store: Store, owners: Iterable[str], count: int, seed: int = 1) -> list[str]:
    """So many sessions of these owners; in the order of a list."""
    chance, names, run = random.Random(seed), list(owners), next(_runs)
    ids = [f"s{number}-{run}" for number in range(count)]
    for id in ids:
        await store.append(id, [Draft(SessionCreated(owner=chance.choice(names)))])
    return ids[::-1]


def number(id: str) -> int:
    return int(id[1:].partition("-")[0])


async def pages(
    store: Store, owners: Iterable[str], limit: int, shows: Callable[[SessionInfo], bool] = lambda info: True
) -> AsyncIterator[list[str]]:
    after: str | None = None
    while True:
        page = await listed(store, list(owners), shows, limit=limit, after=after)
        assert len(page.infos) <= limit
        yield [info.session for info in page.infos]
        after = page.next
        if after is None:
            return


async def test_a_list_of_several_is_one_list(store: Store) -> None:
    """Whatever the size of its pages; of some of the owners those; and without what is not shown."""
    ids = await filled(store, "abcde", 70)
    owner = {info.session: info.owner for info in (await store.sessions(limit=100)).infos}
    for owners, limit in (
        ("abcde", 1),
        ("abcde", 7),
        ("edbca", 23),
        ("ace", 3),
        ("ab", 100),
        ("b", 2),
        ("xyz", 5),
        ("", 5),
    ):
        wanted = [id for id in ids if owner[id] in owners]
        assert [id for page in [page async for page in pages(store, owners, limit)] for id in page] == wanted
        odd = [id for id in wanted if number(id) % 3]
        found = [page async for page in pages(store, owners, limit, lambda info: bool(number(info.session) % 3))]
        assert [id for page in found for id in page] == odd


async def test_what_is_written_to_meanwhile_moves_nobody_else(store: Store) -> None:
    """Sessions that are begun, deleted and written to between two pages: all others are on one page, once."""
    ids = await filled(store, "abc", 40)
    chance, touched, seen = random.Random(2), set[str](), list[str]()
    run, step = next(_runs), 0
    async for page in pages(store, "abc", 4):
        seen += page
        step += 1
        for id in chance.sample(ids, 2):
            if id not in touched:
                fact = SessionDeleted() if chance.random() < 0.5 else SessionUpdated({"x": 1})
                await store.append(id, [Draft(fact)])
                touched.add(id)
        await store.append(f"n{step}-{run}", [Draft(SessionCreated(owner=chance.choice("abc")))])
    others = [id for id in ids if id not in touched]
    assert [id for id in seen if id in others] == others
    assert not [id for id in seen if id.startswith("n")]


async def test_a_page_looks_at_so_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rule leaves out nearly all, pages are short, and lead on to the rest."""
    monkeypatch.setattr("legato.sharing.LOOKED", 10)
    ids = await filled(store, "ab", 50)
    found = [page async for page in pages(store, "ab", 5, lambda info: info.session == ids[-4])]
    assert [id for page in found for id in page] == [ids[-4]]
    assert len(found) in (5, 6)


# Over HTTP ------------------------------------------------------------------------------------------------------------


def by_header(request: Any) -> str | None:
    name: str | None = request.headers.get("x-user")
    return name


TEAM = {"ann": ["bob", "cid"], "bob": ["ann"]}


def may(caller: Caller, session: SessionInfo, action: str) -> bool:
    if session.owner == caller.subject:
        return True
    return action == "read" and (session.created.metadata or {}).get("sharedWith") != "nobody"


async def by_table(caller: Caller) -> list[str]:
    return TEAM.get(caller.subject, [])


async def agent(turn: Any) -> str:
    return "Well."


async def get(driver: Driver, who: str, target: str) -> Any:
    answer = await driver.request("GET", target, headers={"x-user": who})
    assert answer.status == 200, answer.text
    return answer.json(), dict(answer.headers).get("legato-next")


@pytest.mark.parametrize("shared", [by_table, lambda caller: TEAM.get(caller.subject, ())])
async def test_who_may_read_it_finds_it_in_their_lists(shared: Callable[[Caller], Awaitable[list[str]]]) -> None:
    """In all of them, under its owner's name; who may not does not; and a list of one's own is as it was."""
    app = Legato("memory:", agents=[agent], auth=by_header, may=may, shared=shared)
    app.drain_on_signal = False
    async with Driver(app) as driver:
        made = {}
        for who in ("ann", "bob", "cid", "dan"):
            for n in range(3):
                body = {"title": f"{who} {n}"}
                begun = await driver.request("POST", SESSIONS, json=body, headers={"x-user": who})
                made[begun.json()["id"]] = who
        ids = list(made)[::-1]
        for who, team in (("ann", "ann bob cid"), ("bob", "bob ann"), ("dan", "dan")):
            found, after = [], ""
            while after is not None:
                rows, after = await get(driver, who, f"{SESSIONS}?limit=2" + (f"&cursor={after}" if after else ""))
                found += rows
            assert [row["id"] for row in found] == [id for id in ids if made[id] in team.split()]
            assert [row.get("owner", who) for row in found] == [made[row["id"]] for row in found]
        text = {"content": "hello"}
        session = next(id for id in made if made[id] == "bob")
        sent = await driver.request("POST", f"/stream/{session}/message", json=text, headers={"x-user": "bob"})
        assert sent.status in (200, 201, 202), sent.text
        for who, there in (("ann", True), ("bob", True), ("cid", False), ("dan", False)):
            assert ("hello" in json.dumps((await get(driver, who, "/api/messages/history"))[0])) == there
        refused = await driver.request("GET", f"{SESSIONS}?cursor=WzEsW11d", headers={"x-user": "ann"})
        assert (refused.status, refused.json()["error"]["reason"]) == (400, "cursor_invalid")


WRONG: dict[str, Any] = {
    "a text": lambda caller: "bob",
    "None": lambda caller: None,
    "numbers": lambda caller: [1],
    "too many": lambda caller: [str(n) for n in range(OWNERS + 1)],
    "a fault": lambda caller: 1 / 0,
    "an exit": lambda caller: exit(1),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_mistake_of_shared_shows_nobody_anything(name: str) -> None:
    store = MemoryStore()
    app = Legato(store, agents=[agent], auth=by_header, may=lambda caller, session, action: True, shared=WRONG[name])
    app.drain_on_signal = False
    async with Driver(app) as driver:
        [id] = await filled(store, ["bob"], 1)
        answer = await driver.request("GET", SESSIONS, headers={"x-user": "ann"})
        assert answer.status == 500
        assert id not in answer.text
        assert (await driver.request("GET", f"{SESSIONS}/{id}", headers={"x-user": "ann"})).status == 200


async def test_what_is_nobodys_or_the_servers_own_is_shared_with_nobody() -> None:
    """Whatever subjects an application names."""
    store = MemoryStore()
    await store.append("s", [Draft(SessionCreated())])
    await store.append(".legato-keys", [Draft(SessionCreated(owner=".legato"))])
    shared = lambda caller: ["", ".legato"]  # noqa: E731
    app = Legato(store, agents=[agent], auth=by_header, may=lambda caller, session, action: True, shared=shared)
    app.drain_on_signal = False
    async with Driver(app) as driver:
        assert (await get(driver, "ann", SESSIONS))[0] == []
