"""``legato migrate`` from a file to a database and back: the same digest on both sides, each way."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from databases import shared_postgres
from driving import Chat, data, echo
from legato.cli.group import group
from legato.server.app import Legato
from legato.store import open_store
from legato.store.moving import move, portable
from legato.testing import Driver
from opening import opened
from processes import finished
from test_deploy import block
from test_migrate import SESSIONS, digests, everything, fill
from test_sqlite import begin
from valkeys import shared_valkey


def _postgresql(name: str) -> str:
    pytest.importorskip("psycopg", reason="needs legato[postgres]")
    return f"{shared_postgres().url()}?schema={name}"


def _valkey(name: str) -> str:
    pytest.importorskip("redis", reason="needs legato[redis]")
    return shared_valkey().url(name, "valkey")


DATABASES: dict[str, Callable[[str], str]] = {"postgresql": _postgresql, "valkey": _valkey}
"""The URL of a store for many processes in a place of that name, which is empty at first."""


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store of this kind."""
    kind, test = request.param, request.node.originalname
    return DATABASES[kind](f"t_{test}"[:40])


async def test_there_and_back(database: str, tmp_path: Path) -> None:
    """As docs/deploy.md has the command. What a run may append afterwards goes on where it was."""
    async with opened(tmp_path / "chat.db") as store:
        await fill(store)
        before = await everything(store)
    command = block("sh", "legato migrate").replace("postgresql://legato@db.internal/legato", f"'{database}'")
    command = command.replace("legato migrate", f"{sys.executable} -m legato migrate")
    there = await asyncio.to_thread(
        subprocess.run, ["sh", "-ec", command], capture_output=True, text=True, cwd=tmp_path
    )
    assert there.returncode == 0, there.stderr
    store = portable(open_store(database))
    await store.open()
    assert await everything(store) == before
    last = (await store.info("long")).head
    await store.close()
    back = finished("legato", "migrate", database, "sqlite:///back.db", cwd=tmp_path)
    assert back.returncode == 0, back.stdout
    assert len({*digests(there.stdout), *digests(back.stdout)}) == 1
    again = finished("legato", "migrate", "sqlite:///back.db", database, cwd=tmp_path)
    assert re.search(rf"; {SESSIONS} of the sessions were there before", again.stdout)
    async with opened(tmp_path / "back.db") as copy:
        assert await everything(copy) == before
        assert (await copy.info("long")).head == last


def test_a_store_is_not_taken_to_itself(database: str) -> None:
    """By whichever names it is called. One that is empty may be called by a wrong one, and is told of."""
    other = database.replace("127.0.0.1", "localhost").replace("valkey:", "redis:").replace("postgresql:", "postgres:")
    done = CliRunner().invoke(group, ["migrate", database, other])
    assert done.exit_code == 2, done.output
    assert "are the same store" in done.output

    done = CliRunner().invoke(group, ["migrate", database, f"{other}x"])
    assert done.exit_code == 0, done.output
    assert "There is nothing in SOURCE" in done.output
    assert ":secret@" not in done.output


COPY = """
    for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':*')) do
        redis.call('COPY', key, ARGV[2] .. string.sub(key, #ARGV[1] + 1), 'DB', ARGV[3])
    end
"""

REMOVE = """
    redis.call('SELECT', ARGV[1])
    for _, key in ipairs(redis.call('KEYS', 't_cop*')) do redis.call('DEL', key) end
"""


@pytest.fixture(params=["postgresql", "valkey, another number", "valkey, another prefix"])
def copies(request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[[], str]]]:
    """The URL of a store, and what copies it on the same server, when nobody has it open; that gives the copy's."""
    if request.param == "postgresql":
        psycopg = pytest.importorskip("psycopg", reason="needs legato[postgres]")
        server = shared_postgres()

        def copy() -> str:
            conn.execute("CREATE DATABASE t_copy TEMPLATE t_copied")
            return server.url("t_copy")

        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("CREATE DATABASE t_copied")
            yield server.url("t_copied"), copy
            conn.execute("DROP DATABASE IF EXISTS t_copy WITH (FORCE)")
            conn.execute("DROP DATABASE t_copied WITH (FORCE)")
        return
    number, prefix = (1, "t_copied") if "number" in request.param else (0, "t_copy")
    url = _valkey("t_copied")

    def copy_keys() -> str:
        assert not shared_valkey().ask("EVAL", COPY, 0, "t_copied", prefix, number).startswith(b"-")
        return url.replace("/?", f"/{number}?").replace("t_copied", prefix)

    yield url, copy_keys
    for database in (0, 1):
        shared_valkey().ask("EVAL", REMOVE, 0, database)


def test_a_copy_on_the_same_server_is_another_store(copies: tuple[str, Callable[[], str]]) -> None:
    """It has all that the original has, the name of its life too, and is brought to the original's state."""
    source, copy = copies

    async def say(session: str) -> str:
        store = open_store(source)
        await store.open()
        try:
            await begin(store, session)
            return str(getattr(store, "incarnation", ""))
        finally:
            await store.close()

    life = asyncio.run(say("before"))
    target = copy()
    assert asyncio.run(say("after")) == life  # so a look at that alone would take the two for one
    done = CliRunner().invoke(group, ["migrate", source, target])
    assert done.exit_code == 0, done.output
    assert "1 of the sessions were there before" in done.output
    again = CliRunner().invoke(group, ["migrate", source, target])
    assert "2 of the sessions were there before" in again.output
    option = "&durability=everysec" if "?" in target else "?durability=normal"
    itself = CliRunner().invoke(group, ["migrate", target, target + option])
    assert itself.exit_code == 2, itself.output


KILLED = """
import asyncio, os, signal, sys
from legato.store import open_store
from legato.store.moving import move

async def main():
    source, target = open_store("sqlite:///chat.db"), open_store(sys.argv[1])
    await source.open()
    await target.open()
    await move(source, target, told=lambda moved: moved.target.sessions < 10 or os.kill(os.getpid(), signal.SIGKILL))

asyncio.run(main())
"""


async def test_a_kill_on_the_way_is_made_good(database: str, tmp_path: Path) -> None:
    """What is in the database then is whole, and the same command brings the rest."""
    async with opened(tmp_path / "chat.db") as source:
        await fill(source)
        before = await everything(source)
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KILLED, database], cwd=tmp_path)
    assert killed.returncode == -9
    done = await asyncio.to_thread(finished, "legato", "migrate", "sqlite:///chat.db", database, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    store = portable(open_store(database))
    await store.open()
    try:
        assert await everything(store) == before
    finally:
        await store.close()


@pytest.mark.parametrize("names", [True, False])
async def test_a_cursor_from_before_is_continued_or_refused_and_never_wrong(
    database: str, tmp_path: Path, names: bool
) -> None:
    """Whoever names the old store's life is told to begin anew, there and back; whoever does not goes on where they
    were, as all offsets are the same."""
    session = cursor = life = before = ""
    for url in (f"sqlite:///{tmp_path}/one.db", database, f"sqlite:///{tmp_path}/two.db"):
        if before:
            source, target = portable(open_store(before)), portable(open_store(url))
            await source.open()
            await target.open()
            await move(source, target, merge=True)
            await target.close()
            await source.close()
        app = Legato(url, agents=[echo])
        app.drain_on_signal = False
        async with Driver(app) as driver:
            session = session or (await driver.request("POST", "/api/sessions", json={})).json()["id"]
            chat = Chat(app, driver, session)
            await chat.said("Hello.")
            if before:
                headers = {"legato-incarnation": life} if names else {}
                async with chat.stream("client=legato", last=cursor, headers=headers) as stream:
                    seen = aiter(stream.messages())
                    told, following = await anext(seen), None if names else await anext(seen)
                    assert dict(stream.headers)["legato-cursor"] == ("reset" if names else "exact")
                    assert data(told)["cursor"] == ("reset" if names else "exact")
                    assert following is None or int(following.id) == int(cursor) + 1
            async with chat.stream("client=legato&from=start") as stream:
                life = dict(stream.headers)["legato-incarnation"]
                async for message in stream.messages():
                    cursor = message.id
                    if cursor == str((await chat.get("/events")).json()["head"]):
                        break
        before = url
