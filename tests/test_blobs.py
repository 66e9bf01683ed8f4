"""Blobs: files that come in messages stand beside the log, come back as they were, are nobody else's and go with it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bucket import bucket
from databases import shared_postgres
from legato import history
from legato.agent import Agent, Turn
from legato.archive import erase, export, take
from legato.blobs import HOLDER, INSIDE, PIECE, WAITING_SECONDS, Blobs, name_of
from legato.bounds import Limits
from legato.caller import NOBODY, Caller
from legato.errors import (
    BlobLost,
    BlobNotFound,
    BlobsAway,
    InvalidInput,
    KeyReused,
    SessionFull,
    SessionNotFound,
    StoreError,
    TooLarge,
)
from legato.event import Draft, Event, MessageCreated, MessageRevised, SessionCreated, SessionDeleted
from legato.history import attached
from legato.log import Log, Store
from legato.outside import ABOVE, BlobFolder, open_outside
from legato.part import CallPart, OtherPart, TextPart, convert
from legato.questions import Question, Sent
from legato.retention import LEAST_SECONDS, Keeper, Retention
from legato.run import Runner
from legato.server import deva, mix
from legato.server.app import Legato
from legato.sessions import Sessions
from legato.store import open_store
from legato.store.memory import MemoryStore
from legato.store.moving import move
from legato.taken import LEAST, bare, refilled, taken
from legato.testing import Driver, FakeClock
from valkeys import shared_valkey

DATA = bytes(range(256)) * 40  # 10 KB
BIG = bytes(range(251)) * 2000  # 502 KB: three events, or outside
BEGIN = SessionCreated(title="t")


def url(data: bytes = DATA, type: str = "image/png") -> str:
    return f"data:{type};base64,{base64.b64encode(data).decode()}"


def items(*urls: str) -> list[Any]:
    content: list[Any] = [{"type": "input_text", "text": "What is this?"}]
    return [{"role": "user", "content": [*content, *({"type": "input_image", "image_url": each} for each in urls)]}]


def question(*urls: str, **options: Any) -> Question:
    return Question("What is this?", metadata={"input": items(*urls)}, **options)


class Stage:
    """Sessions of a store, and what the agent was given of each message."""

    def __init__(self, store: Store, outside: Any = None, limits: Limits | None = None) -> None:
        self.turns: list[Turn] = []
        self.store = store
        self.blobs = Blobs(store, outside)
        self.runner = Runner(store, {"a": Agent(self.agent, name="a")}, blobs=self.blobs, limits=limits)
        self.verbs = Sessions(store, self.runner)

    async def agent(self, turn: Turn) -> AsyncIterator[str]:
        self.turns.append(turn)
        yield "A picture."

    async def send(self, session: str, asked: Question, *, begin: bool = False, caller: Caller = NOBODY) -> Sent:
        sent = await self.verbs.send(caller, session, asked, begin=BEGIN if begin else None)
        found = await self.verbs.find(caller, session, sent.run)
        assert found is not None
        await asyncio.wait_for(self.verbs.until_ended(caller, found), 30)
        return sent

    async def raw(self, session: str) -> str:
        """All that the session's log says."""
        return "".join([event.json.decode() async for event in Log(self.store, session).all()])

    async def left(self) -> list[str]:
        """The sessions that have blobs."""
        return [info.session for info in (await self.store.sessions(owner=HOLDER)).infos]


@contextlib.asynccontextmanager
async def stage(store: Store, outside: Any = None, limits: Limits | None = None) -> AsyncIterator[Stage]:
    made = Stage(store, outside, limits)
    await made.runner.start()
    try:
        yield made
    finally:
        await made.runner.stop(5)
        await made.runner.accounts.close()
        made.verbs.aside.close()


def address(kind: str, folder: Path) -> str:
    if kind == "postgres":
        return shared_postgres().url()
    if kind == "valkey":
        return shared_valkey().url("blobs", "valkey")
    return "memory:" if kind == "memory" else f"sqlite:///{folder}/blobs.db"


@pytest.fixture
async def memory() -> AsyncIterator[Stage]:
    async with stage(MemoryStore()) as made:
        yield made


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(MemoryStore(), BlobFolder(tmp_path / "files")) as made:
        yield made


def files(path: Path) -> list[Path]:
    return [each for each in (path / "files").rglob("*") if each.is_file()]


# Out of a message, and into it again ----------------------------------------------------------------------------------

CODE = base64.b64encode(DATA).decode()
TEXTS: dict[str, tuple[str, bool]] = {
    "a data URL": (url(), True),
    "in capitals": (f"DATA:IMAGE/PNG;BASE64,{CODE}", True),
    "with parameters": (f"data:text/plain;charset=utf-8;name=a.txt;base64,{CODE}", True),
    "without a type": (f"data:;base64,{CODE}", True),
    "base64 alone": (CODE, True),
    "one byte more": (url(DATA + b"a"), True),
    "two bytes more": (url(DATA + b"ab"), True),
    "with line ends": (f"data:image/png;base64,{CODE[:76]}\r\n{CODE[76:]}", True),
    "without padding": (url(DATA + b"a").rstrip("="), True),
    "of another alphabet": (url().replace("/", "_").replace("+", "-"), True),
    "with bits that say nothing": (url(DATA + b"a")[:-3] + "R==", True),
    "percent-encoded": ("data:image/svg+xml," + "%3Csvg%2F%3E" * 500, True),
    "not ASCII": ("data:text/plain," + "é" * LEAST, True),
    "an unpadded text": ("A" * (LEAST + 1), False),
    "a small one": (url(b"abc"), False),
    "words": ("What is this? " * 1000, False),
    "an address": ("https://example.com/" + "x" * LEAST, False),
    "half of a letter": ("data:image/png;base64," + "\ud800" * LEAST, False),
    "nothing behind the comma": ("data:image/png;base64," + " " * LEAST, True),
}


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_comes_back_as_it_was(name: str) -> None:
    """To the letter, however it was written, and wherever it stands; what is no file stays where it is."""
    text, is_file = TEXTS[name]
    metadata: Any = {"input": [{"content": [{"type": "x", "a": {"b": text}}, text, 1, None]}, "short"], "c": text}
    parts: Any = [
        TextPart(1, text),
        CallPart(1, "c", "f", "{}", True, {"image": text}),
        OtherPart({"type": "i", "u": text}),
    ]
    for fact in (
        MessageCreated("m", "user", text, parts, metadata=metadata),
        MessageRevised("m", text="", parts=parts, metadata=metadata),
    ):
        found = taken([fact])
        [out] = found.facts
        assert len(out.blobs or ()) == (5 if is_file else 0)
        assert len(found.blobs) == is_file
        assert refilled(out, found.blobs) == fact
        assert out.text == fact.text
        assert taken([out]).facts == [out], "twice is once"
        assert bare(out) == bare(fact)
        if is_file:
            ref = (out.blobs or [])[0]
            assert sum(each.characters for each in out.blobs or ()) >= 5 * (len(text) - 50)
            assert len(str(out.metadata)) < 1000
            assert found.blobs[ref.hash] in (DATA, DATA + b"a", DATA + b"ab", text.encode())
    assert metadata["c"] == text, "what was given is as it was"


@pytest.mark.parametrize("field", ["text", "arguments", "encrypted_content"])
def test_words_are_no_file(field: str) -> None:
    """Even where they look like one."""
    fact = MessageCreated("m", "user", "t", metadata={"input": [{field: CODE}]})
    assert taken([fact]).facts == [fact]


def test_a_message_that_is_damaged_is_read_as_far_as_it_goes() -> None:
    """Ways that lead nowhere, as of a log that somebody has changed."""
    _, [out], blobs = taken([MessageCreated("m", "user", "t", metadata={"input": items(url())})])
    for at in (
        ["metadata", "other", 0],
        ["metadata", "input", 7, "content"],
        ["id", 0],
        ["metadata", "input", "content"],
    ):
        [ref] = out.blobs or []
        damaged = msgspec.structs.replace(out, blobs=[msgspec.structs.replace(ref, at=at)])
        assert refilled(damaged, blobs).text == "t"


# In every store -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres", "valkey"])
async def test_a_file_stands_beside_the_log_and_goes_with_it(kind: str, tmp_path: Path) -> None:
    """The agent has it as it came, now and in what came before; the log has not; another node has it; a move to another
    store takes it along; and a deletion leaves nothing."""
    store = open_store(address(kind, tmp_path))
    await store.open()
    name = f"s-{kind}-{os.urandom(4).hex()}"
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        on = await stack.enter_async_context(stage(store))
        await on.send(name, question(url(), url(BIG, "application/pdf")), begin=True)
        await on.send(name, question(url()))
        assert [turn.message.metadata["input"] for turn in on.turns] == [
            items(url(), url(BIG, "application/pdf")),
            items(url()),
        ]
        assert on.turns[1].history[0].metadata["input"] == items(url(), url(BIG, "application/pdf"))
        assert len(await on.raw(name)) < 5000
        assert [message.metadata.get("input") for message in await on.verbs.history(NOBODY, name)][::2] == [
            items(url(), url(BIG, "application/pdf")), items(url())
        ]  # fmt: skip
        contents = await on.verbs.contents(NOBODY, name)
        assert sorted(ref.size for ref in contents.blobs.values()) == [len(DATA), len(BIG)]
        assert (await store.info(f"{INSIDE}{name}")).head == 1 + 1 + -(-len(BIG) // PIECE), (
            "the second time is the first"
        )
        there = stack.enter_context(contextlib.nullcontext(store))
        if kind in ("postgres", "valkey"):
            there = open_store(address(kind, tmp_path))
            await there.open()
            stack.push_async_callback(there.close)
        other = await stack.enter_async_context(stage(there)) if there is not store else on
        for ref in contents.blobs.values():
            assert await other.verbs.blob_bytes(NOBODY, name, await other.verbs.blob(NOBODY, name, ref.hash)) in (
                DATA,
                BIG,
            )
        moved = MemoryStore()
        if kind in ("memory", "sqlite"):
            await move(store, moved)  # type: ignore[arg-type]
            assert await Stage(moved).verbs.history(NOBODY, name) == await on.verbs.history(NOBODY, name)
        await other.verbs.delete(NOBODY, name)
        assert await on.left() == []
        assert len(await other.raw(f"{INSIDE}{name}")) < 100
        with pytest.raises(SessionNotFound):
            await on.verbs.blob(NOBODY, name, next(iter(contents.blobs)))


async def test_what_is_not_the_sessions_own_is_no_reference(memory: Stage) -> None:
    """Neither what looks like one in a message, nor a hash that another session has."""
    await memory.send("s1", question(url()), begin=True)
    [hash] = (await memory.verbs.contents(NOBODY, "s1")).blobs
    ref = {"at": ["metadata", "x"], "hash": hash, "size": len(DATA), "place": 2}
    forged: Any = {"x": "", "blobs": [ref], "input": [{"role": "user", "content": "hi", "blobs": [ref]}]}
    await memory.send("s2", Question("hi", metadata=forged), begin=True)
    earlier = convert({"id": "", "role": "user", "text": "x", "metadata": {"x": ""}, "blobs": [ref]}, MessageCreated)
    await memory.send("s3", Question("hi", earlier=[earlier]), begin=True)
    await memory.verbs.edits.add(NOBODY, "s3", [earlier])
    assert memory.turns[1].message.metadata == forged
    for session in ("s2", "s3"):
        with pytest.raises(BlobNotFound):
            await memory.verbs.blob(NOBODY, session, hash)
    lines = b"".join([each async for each in export(memory.store, session="s2")]).splitlines(keepends=True)
    said = b'"text":"hi","blobs":[' + json.dumps(ref).encode() + b"]"
    with pytest.raises(InvalidInput, match="not in it"):
        await take(MemoryStore(), [line.replace(b'"text":"hi"', said, 1) for line in lines])


async def test_two_sessions_have_one_each(memory: Stage) -> None:
    """Of the same bytes, put at the same time: one is deleted, and the other has its own."""
    await asyncio.gather(*(memory.send(f"s{n}", question(url(BIG)), begin=True) for n in range(4)))
    for n in range(3):
        await memory.verbs.delete(NOBODY, f"s{n}")
    [hash] = (await memory.verbs.contents(NOBODY, "s3")).blobs
    assert await memory.verbs.blob_bytes(NOBODY, "s3", await memory.verbs.blob(NOBODY, "s3", hash)) == BIG
    assert await memory.left() == [f"{INSIDE}s3"]


async def test_what_is_sent_again_is_there_once(memory: Stage) -> None:
    """Under its key, by many at once; with other bytes it is another message. An old log has the bytes in it."""
    sent = await asyncio.gather(
        *(memory.verbs.send(NOBODY, "s", question(url(), key="k"), begin=BEGIN) for _ in range(5))
    )
    assert len({each.run for each in sent}) == 1
    with pytest.raises(KeyReused):
        await memory.verbs.send(NOBODY, "s", question(url(BIG), key="k"))
    old = MessageCreated("old~u", "user", "What is this?", metadata={"input": items(url())}, key="o")
    await memory.store.append("old", [Draft(BEGIN), Draft(old, "old~r")], once="send:o")
    assert (await memory.verbs.send(NOBODY, "old", question(url(), key="o"))).run == "old~r"
    added = [MessageCreated("", "user", "x", metadata={"input": items(url())})]
    first = await memory.verbs.edits.add(NOBODY, "s", added, key="a")
    assert first == await memory.verbs.edits.add(NOBODY, "s", added, key="a")
    assert first[0].metadata == {"input": items(url())}
    with pytest.raises(KeyReused):
        await memory.verbs.edits.add(
            NOBODY, "s", [MessageCreated("", "user", "x", metadata={"input": items(url(BIG))})], key="a"
        )


async def test_who_would_begin_what_is_there_goes_on_in_it(memory: Stage) -> None:
    """With its file in the session that it has found, and not where nothing was put."""
    await memory.send("s", question(url()), begin=True)
    await memory.send("s", question(url(BIG), key="new"), begin=True)
    assert memory.turns[1].message.metadata["input"] == items(url(BIG))


async def test_copies_have_their_own(memory: Stage) -> None:
    """A fork, a branch, a fork that is made in pieces; the source goes, and they stay."""
    first = await memory.send("s", question(url()), begin=True)
    await memory.send("s", question(url(BIG)))
    for _ in range(3):
        await memory.verbs.edits.add(
            NOBODY, "s", [MessageCreated("", "user", "x", metadata={"input": items(url(BIG))})]
        )
    await memory.verbs.fork(NOBODY, "s", "f", last=6)
    branched = await memory.verbs.branch(NOBODY, "s", first.run, question(url(), key="b"))
    assert branched.session != "s"
    before = await memory.verbs.history(NOBODY, "s")
    await memory.verbs.delete(NOBODY, "s")
    copied = await memory.verbs.history(NOBODY, "f")
    assert [(m.text, m.metadata, m.parts) for m in copied] == [(m.text, m.metadata, m.parts) for m in before]
    assert len(await memory.raw("f")) < 10_000
    assert (await memory.store.info(f"{INSIDE}f")).head == 1 + 1 + -(-len(BIG) // PIECE), "each once"
    assert (await memory.verbs.history(NOBODY, branched.session))[0].metadata["input"] == items(url())


async def test_what_is_changed_and_asked_anew_keeps_its_files(memory: Stage) -> None:
    """A retry, a revision, and a retry of what was revised."""
    sent = await memory.send("s", question(url(), url(BIG)), begin=True)
    retried = await memory.verbs.retry(NOBODY, "s", sent.message)
    found = await memory.verbs.find(NOBODY, "s", retried.run)
    assert found is not None
    await memory.verbs.until_ended(NOBODY, found)
    assert memory.turns[1].message.metadata["input"] == items(url(), url(BIG))

    def change(first: Any, last: Any) -> MessageRevised:
        return MessageRevised(
            first.id, text="Now?", metadata={"input": items(first.metadata["input"][0]["content"][2]["image_url"])}
        )

    await memory.verbs.edits.revise(NOBODY, "s", sent.message, change)
    assert (await memory.verbs.history(NOBODY, "s"))[0].metadata["input"] == items(url(BIG))
    again = await memory.verbs.retry(NOBODY, "s", sent.message)
    found = await memory.verbs.find(NOBODY, "s", again.run)
    assert found is not None
    await memory.verbs.until_ended(NOBODY, found)
    assert memory.turns[2].message.metadata["input"] == items(url(BIG))
    assert (await memory.verbs.question(NOBODY, found)).metadata == {"input": items(url(BIG))}
    assert (await memory.store.info(f"{INSIDE}s")).head == 1 + 1 + -(-len(BIG) // PIECE)


# What is left, and what is not ----------------------------------------------------------------------------------------


class Held(MemoryStore):
    """A store that tells before each append of more than a beginning."""

    before: Callable[[str, list[str]], Any] | None = None

    async def append(self, session: str, drafts: Any, **options: Any) -> Any:  # type: ignore[override]
        if self.before is not None:
            await self.before(session, [draft.type for draft in drafts])
        return await super().append(session, drafts, **options)


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("at", ["put", "append"])
async def test_a_deletion_that_meets_a_message_leaves_nothing(where: str, at: str, tmp_path: Path) -> None:
    """The session is deleted after its file was put and before its message is stored, or while it is put."""
    store = Held()
    outside = BlobFolder(tmp_path / "files") if where == "outside" else None
    async with stage(store, outside) as on:
        await on.send("s", Question("hi"), begin=True)
        deleted = False

        async def delete() -> None:
            nonlocal deleted
            if not deleted:
                deleted = True
                await Sessions(store, on.runner).delete(NOBODY, "s")

        async def before(session: str, types: list[str]) -> None:
            if session == "s" and "message.created" in types and at == "append":
                await delete()

        store.before = before
        if at == "put":
            put = on.blobs.put

            async def putting(session: str, blobs: Any) -> Any:
                places = await put(session, blobs)
                await delete()
                return places

            on.blobs.put = putting  # type: ignore[method-assign]
        with pytest.raises(SessionNotFound):
            await on.verbs.send(NOBODY, "s", question(url(BIG)))
        assert deleted
        assert await on.left() == []
        assert files(tmp_path) == []


async def test_bytes_that_are_put_outside_after_the_deletion_are_deleted(tmp_path: Path) -> None:
    """By who puts them: the log that names them is gone by then."""
    folder = BlobFolder(tmp_path / "files")
    blobs = Blobs(MemoryStore(), folder)
    put = folder.put

    async def late(name: str, data: bytes) -> None:
        await blobs.forget("s")
        await put(name, data)

    folder.put = late  # type: ignore[method-assign]
    [found] = [taken([MessageCreated("m", "user", "t", metadata={"a": url(BIG)})])]
    with pytest.raises(SessionNotFound):
        await blobs.put("s", found.blobs)
    assert files(tmp_path) == []


KILLED = """
import asyncio, os, signal, sys
from legato.agent import Agent
from legato.caller import NOBODY
from legato.event import SessionCreated
from legato.outside import BlobFolder
from legato.blobs import Blobs
from legato.questions import Question
from legato.run import Runner
from legato.sessions import Sessions
from legato.store import open_store

async def main(path, folder, url):
    store = open_store(path)
    await store.open()
    append = store.append
    def appending(session, drafts, **options):
        if session == "s" and any(draft.type == "message.created" for draft in drafts):
            os.kill(os.getpid(), signal.SIGKILL)
        return append(session, drafts, **options)
    store.append = appending
    runner = Runner(store, {"a": Agent(lambda turn: "", name="a")}, blobs=Blobs(store, BlobFolder(folder)))
    await Sessions(store, runner).send(NOBODY, "s", Question("x", metadata={"a": url}), begin=SessionCreated())

from pathlib import Path
asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.stdin.read()))
"""


@pytest.mark.parametrize("size", [len(DATA), len(BIG)])
def test_what_a_kill_leaves_is_swept_when_it_is_old(size: int, tmp_path: Path) -> None:
    """Killed between the file and its message, a real process. What nobody sends again goes after its time; who sends
    again then is served all the same."""
    store, data = f"sqlite:///{tmp_path}/log.db", BIG[:size]
    arguments = [sys.executable, "-c", KILLED, store, str(tmp_path / "files")]
    done = subprocess.run(arguments, input=url(data), text=True, env=os.environ, timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    async def look() -> None:
        opened = open_store(store)
        await opened.open()
        blobs = Blobs(opened, BlobFolder(tmp_path / "files"))
        try:
            [info] = (await opened.sessions(owner=HOLDER)).infos
            assert bool(files(tmp_path)) == (size > ABOVE)
            assert await blobs.sweep(info.updated_at + WAITING_SECONDS - 1) == (None, 0)
            assert await blobs.sweep(info.updated_at + WAITING_SECONDS + 1) == (None, 1)
            assert (await opened.sessions(owner=HOLDER)).infos == []
            assert files(tmp_path) == []
            async with stage(opened, blobs.outside) as on:  # with its bytes in the log, if it must be
                await on.send("s", question(url(data)), begin=True)
                assert on.turns[0].message.metadata["input"] == items(url(data))
        finally:
            await opened.close()

    asyncio.run(look())


async def test_a_sweep_leaves_what_is_still_put(memory: Stage) -> None:
    """What a session waits for grows while it is looked at, and so it stays; what is deleted goes at once."""
    store, now = Held(), 1e12
    blobs = Blobs(store)
    data = taken([MessageCreated("m", "user", "t", metadata={"a": url()})]).blobs
    await blobs.put("s", data)

    async def before(session: str, types: list[str]) -> None:
        if types == ["session.deleted"]:
            store.before = None
            await blobs.put("s", data)

    store.before = before
    await blobs.sweep(now)
    assert (await store.info(f"{INSIDE}s")).head == 3
    await store.append("s", [Draft(BEGIN)])
    assert await blobs.sweep(now) == (None, 0)
    await store.append("s", [Draft(SessionDeleted())])  # and killed before its blobs went
    assert await blobs.sweep(0.0) == (None, 1)
    assert (await store.sessions(owner=HOLDER)).infos == []


async def test_whatever_ends_a_session_ends_its_files(tmp_path: Path) -> None:
    """Its time, its last response, its owner's erasure; and the keeper's pass finds what a crash has left."""
    clock = FakeClock(1_000_000.0)
    store = MemoryStore(clock=clock)
    ann = Caller("ann")
    async with stage(store, BlobFolder(tmp_path / "files")) as on:
        sent = await on.send("withdrawn", question(url(), url(BIG)), begin=True)
        await on.verbs.withdraw(NOBODY, "withdrawn", sent.run)
        for session in ("a1", "a2"):
            await on.send(session, question(url(), url(BIG)), begin=True, caller=ann)
        await erase(store, "ann", on.blobs)
        assert await on.left() == []
        assert files(tmp_path) == []
        await on.send("old", question(url(), url(BIG)), begin=True)
        await on.send("crashed", question(url(), url(BIG)), begin=True)
        await store.append("crashed", [Draft(SessionDeleted())])
        keeper = Keeper(store, Retention(sessions=LEAST_SECONDS), clock, blobs=on.blobs)
        await keeper.sweep()
        assert keeper.swept == 2
        clock.advance(2 * LEAST_SECONDS)
        await keeper.tick()
        assert keeper.deleted == 1
        assert await on.left() == []
        assert files(tmp_path) == []


async def test_what_cannot_be_reached_is_not_said_to_be_deleted(folder: Stage, tmp_path: Path) -> None:
    """A process that was not told of the folder deletes nothing of it, and says so before it deletes the rest."""
    await folder.send("s", question(url(BIG)), begin=True)
    async with stage(folder.store) as blind:
        for attempt in (
            blind.verbs.delete(NOBODY, "s"),
            blind.verbs.withdraw(NOBODY, "s", folder.turns[0].run),
        ):
            with pytest.raises(BlobsAway):
                await attempt
        with pytest.raises(BlobsAway):
            await b"".join([each async for each in export(folder.store, session="s")])  # type: ignore[misc]
    clock = FakeClock((await folder.store.info("s")).updated_at + 2 * LEAST_SECONDS)
    await folder.send("other", Question("hi"), begin=True)
    keeper = Keeper(folder.store, Retention(sessions=LEAST_SECONDS), clock)
    clock.advance(10 * LEAST_SECONDS)
    assert await keeper.tick()
    assert keeper.deleted == 1, "the one that it can"
    assert (await folder.store.info("s")).head > 0
    assert len(files(tmp_path)) == 1
    await folder.verbs.delete(NOBODY, "s")
    assert files(tmp_path) == []


# Outside --------------------------------------------------------------------------------------------------------------


async def test_a_folder_has_what_is_large(folder: Stage, tmp_path: Path) -> None:
    """And the store what is not; who sends it again puts back what was lost."""
    await folder.send("s", question(url(), url(BIG)), begin=True)
    [file] = files(tmp_path)
    assert file.read_bytes() == BIG
    assert file.stat().st_mode & 0o777 == 0o600
    assert "s" not in file.parent.name.split("/"), "no name tells whose it is"
    file.unlink()
    await folder.send("s", question(url(BIG)))
    assert file.read_bytes() == BIG
    assert folder.turns[1].history[0].metadata["input"] == items(url(), url(BIG))


@pytest.mark.parametrize("how", ["lost", "changed", "cut"])
async def test_what_is_lost_is_said_to_be(how: str, folder: Stage, tmp_path: Path, caplog: Any) -> None:
    """The agent reads a text in its place, the other files are there, and so is the log."""
    await folder.send("s", question(url(), url(BIG)), begin=True)
    [file] = files(tmp_path)
    [hash] = [ref.hash for ref in (await folder.verbs.contents(NOBODY, "s")).blobs.values() if ref.outside]
    if how == "lost":
        file.unlink()
    else:
        file.write_bytes(BIG[:-1] if how == "cut" else BIG[::-1])
    with caplog.at_level(logging.ERROR, "legato"):
        await folder.send("s", Question("and?"))
    content = folder.turns[1].history[0].metadata["input"][0]["content"]
    assert content[:2] == items(url())[0]["content"]
    assert content[2] == {"type": "input_text", "text": "[This input_image is lost: the server has its bytes no more.]"}
    assert hash in caplog.text
    with pytest.raises(BlobLost):
        await folder.verbs.blob_bytes(NOBODY, "s", await folder.verbs.blob(NOBODY, "s", hash))
    lines = b"".join([each async for each in export(folder.store, session="s", blobs=folder.blobs)])
    assert b"is lost" in lines


async def test_what_is_in_the_store_is_looked_at_too(memory: Stage) -> None:
    """A log of blobs that is not what it was."""
    await memory.send("s", question(url(BIG)), begin=True)
    [ref] = (await memory.verbs.contents(NOBODY, "s")).blobs.values()
    for damaged in (
        msgspec.structs.replace(ref, place=ref.place + 1),
        msgspec.structs.replace(ref, hash="0" * 64),
        msgspec.structs.replace(ref, place=99),
    ):
        with pytest.raises(BlobLost):
            await memory.blobs.get("s", damaged)


async def test_a_folder_that_is_away_is_waited_for(folder: Stage, tmp_path: Path) -> None:
    """Nothing is lost by a folder that is not mounted, or cannot be written: it is an error of the store's kind."""
    await folder.send("s", question(url(BIG)), begin=True)
    (tmp_path / "files").rename(tmp_path / "away")
    with pytest.raises(BlobsAway):
        await folder.verbs.history(NOBODY, "s")
    assert issubclass(BlobsAway, StoreError)
    (tmp_path / "files").write_text("no folder")
    with pytest.raises(BlobsAway):
        await folder.verbs.send(NOBODY, "s", question(url(BIG)))
    (tmp_path / "files").unlink()
    (tmp_path / "away").rename(tmp_path / "files")
    assert (await folder.verbs.history(NOBODY, "s"))[0].metadata["input"] == items(url(BIG))


async def test_a_deletion_that_the_folder_does_not_take_is_made_up_for(folder: Stage, tmp_path: Path) -> None:
    """The session is gone, who deleted it is told that not all is, and the next sweep deletes the rest."""
    await folder.send("s", question(url(BIG)), begin=True)
    delete, folder.blobs.outside.delete = folder.blobs.outside.delete, broken  # type: ignore[union-attr,method-assign]
    with pytest.raises(BlobsAway):
        await folder.verbs.delete(NOBODY, "s")
    with pytest.raises(SessionNotFound):
        await folder.verbs.info(NOBODY, "s")
    folder.blobs.outside.delete = delete  # type: ignore[union-attr,method-assign]
    assert len(files(tmp_path)) == 1
    assert (await folder.blobs.sweep(0.0))[1] == 1
    assert files(tmp_path) == []


async def broken(name: str) -> None:
    raise BlobsAway("no")


async def test_half_a_file_goes_with_the_whole(tmp_path: Path) -> None:
    """What a kill in the middle of a write has left beside its place."""
    folder = BlobFolder(tmp_path / "files")
    await folder.put("ab/cd", b"1")
    (tmp_path / "files" / "ab" / ".cd.12345678").write_bytes(b"")
    assert await folder.get("ab/cd") == b"1"
    await folder.delete("ab/cd")
    await folder.delete("ab/cd")
    assert files(tmp_path) == []
    assert await folder.get("ab/cd") is None


@pytest.mark.parametrize(
    "given",
    ["", "blobs", "file:relative", "file://host/x", "file:///", "file:///x?above=-1", "file:///x?region=a", "ftp://a/b",
     "s3://", "sqlite:///x.db", "s3://[::1", "file:///x%00"],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(given: str) -> None:
    """With what it should be."""
    with pytest.raises(InvalidInput):
        open_outside(given)


def test_a_place_has_its_bound(tmp_path: Path) -> None:
    """Above which it is asked."""
    assert open_outside(f"file://{tmp_path}").above == ABOVE
    assert open_outside(f"file://{tmp_path}?above=0").above == 0
    assert name_of("s", "h") != name_of("t", "h")


# Out and in -----------------------------------------------------------------------------------------------------------


async def test_an_export_has_files_as_they_came(folder: Stage) -> None:
    """It needs nothing beside it; and where it is imported, they stand beside the log again."""
    await folder.send("s", question(url(), url(BIG)), begin=True)
    await folder.send("s", question(url()))
    out = b"".join([each async for each in export(folder.store, session="s", blobs=folder.blobs)])
    assert out.count(url().encode()) == 2
    assert out.count(url(BIG).encode()) == 1
    assert b'"blobs"' not in out
    async with stage(MemoryStore()) as other:
        assert (await take(other.store, out.splitlines(keepends=True), other.blobs)).sessions == 1
        assert await other.verbs.history(NOBODY, "s") == await folder.verbs.history(NOBODY, "s")
        assert len(await other.raw("s")) < 10_000
        assert b"".join([each async for each in export(other.store, session="s")]) == out
        assert (await take(other.store, out.splitlines(keepends=True), other.blobs)).left == ("s",)


# Limits ---------------------------------------------------------------------------------------------------------------


async def test_a_file_is_bounded() -> None:
    """Each by itself; and with what else its session holds."""
    async with stage(MemoryStore(), limits=Limits(blob_bytes=len(DATA))) as on:
        await on.send("s", question(url()), begin=True)
        for verb in (
            on.verbs.send(NOBODY, "s", question(url(DATA + b"x"))),
            on.verbs.edits.add(
                NOBODY, "s", [MessageCreated("", "user", "x", metadata={"input": items(url(DATA + b"x"))})]
            ),
        ):
            with pytest.raises(TooLarge) as refused:
                await verb
            assert refused.value.bound == "blob_bytes"
        assert len((await on.verbs.contents(NOBODY, "s")).entries) == 2
    async with stage(MemoryStore(), limits=Limits(session_bytes=2 * len(BIG), run_bytes=1000)) as on:
        await on.send("s", question(url(BIG)), begin=True)
        await on.send("s", question(url(BIG)))
        await on.send("s", question(url(BIG[1:])))
        with pytest.raises(SessionFull):
            await on.send("s", Question("more"))


async def test_files_count_in_what_an_agent_is_given() -> None:
    """As they did in the log: a history of pictures is not longer for standing elsewhere."""
    async with stage(MemoryStore(), limits=Limits(history_bytes=2 * len(BIG))) as on:
        for n in range(4):
            await on.send("s", question(url(BIG)), begin=n == 0)
        assert [len(turn.history) for turn in on.turns] == [0, 2, 3, 3]
        assert len(await on.turns[3].earlier()) == 3


async def test_lists_are_as_long_as_they_may_be(memory: Stage) -> None:
    """However many logs of blobs lie between sessions."""
    for n in range(6):
        await memory.send(f"s{n}", question(url()), begin=True)
    page = await memory.verbs.index(NOBODY, limit=4)
    assert [info.session for info in page.infos] == ["s5", "s4", "s3", "s2"]
    assert [info.session for info in (await memory.verbs.index(NOBODY, limit=4, after=page.next)).infos] == ["s1", "s0"]


# Over HTTP ------------------------------------------------------------------------------------------------------------


async def heard(turn: Any) -> AsyncIterator[str]:
    yield json.dumps(turn.message.metadata.get("input"))


@pytest.mark.parametrize(
    ("type", "shown"),
    [("image/png", True), ("image/svg+xml", False), ("text/html", False), ("application/pdf", False), ("", False)],
)
async def test_a_file_can_be_read(type: str, shown: bool) -> None:
    """By who may read its session, once; and as nothing that a browser would run."""
    app = Legato("memory:", agents=[heard], page=False, max_body=10_000_000)
    async with Driver(app) as driver:
        body = {"input": items(url(BIG, type)), "stream": False}
        made = (await driver.request("POST", "/v1/responses", json=body)).json()
        assert json.loads(made["output"][0]["content"][0]["text"]) == items(url(BIG, type))
        listed = (await driver.request("GET", f"/v1/responses/{made['id']}/input_items")).json()
        assert listed["data"][0]["content"] == items(url(BIG, type))[0]["content"]
        [session] = (await driver.request("GET", "/api/sessions")).json()
        log = (await driver.request("GET", f"/api/sessions/{session['id']}/events")).json()
        [ref] = [ref for event in log["events"] for ref in event["data"].get("blobs", ())]
        path = f"/api/sessions/{session['id']}/blobs/{ref['hash']}"
        [row, _] = (await driver.request("GET", f"/api/sessions/{session['id']}/messages")).json()
        assert row["files"] == [{**({"type": type} if type else {}), "bytes": len(BIG), "hash": ref["hash"]}]
        answer = await driver.request("GET", path)
        assert (answer.status, answer.body) == (200, BIG)
        assert answer.headers["content-type"] == (type if shown else "application/octet-stream")
        assert answer.headers["content-disposition"].startswith("inline" if shown else "attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "private" in answer.headers["cache-control"]
        again = await driver.request("GET", path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
        for other in (path[:-1] + "x", path.replace(session["id"], "other"), f"/api/sessions/{INSIDE}{session['id']}"):
            assert (await driver.request("GET", other)).status == 404
        assert (await driver.request("DELETE", f"/v1/responses/{made['id']}")).status == 200
        assert (await driver.request("GET", path)).status == 404


ANSWER = {"role": "assistant", "content": "A picture."}


def asking(*parts: Any, **more: Any) -> MessageCreated:
    return MessageCreated("m", "user", "What?", metadata={"input": [{"role": "user", "content": [*parts]}], **more})


@pytest.mark.parametrize(
    ("fact", "files"),
    [
        (asking({"type": "input_image", "image_url": url()}), [("image/png", "", len(DATA), True)]),
        (asking({"type": "image_url", "image_url": {"url": url(b"small")}}), [("image/png", "", 0, url(b"small"))]),
        (
            asking({"filename": "a.pdf", "file_data": url(DATA, "application/pdf")}),
            [("application/pdf", "a.pdf", len(DATA), True)],
        ),
        (
            asking({"source": {"media_type": "image/jpeg", "data": url().partition(",")[2]}}),
            [("image/jpeg", "", len(DATA), True)],
        ),
        (asking({"type": "input_image", "image_url": "https://x.test/a.png"}), [("", "", 0, "https://x.test/a.png")]),
        (asking({"type": "image_url", "image_url": {"url": "HTTP://x.test"}}), [("", "", 0, "HTTP://x.test")]),
        (asking({"type": "input_image", "image_url": "javascript:alert(1)"}), []),
        (asking({"type": "input_text", "text": url(b"words")[5:]}, homepage="https://x.test/"), []),
        (asking({"type": "input_image", "image_url": "data:text/html,<b>"}), []),
        (asking(url(), name="of something else"), [("image/png", "", len(DATA), True)]),
        (asking({"source": {"media_type": "Image/PNG", "data": url()[22:]}}), [("image/png", "", len(DATA), True)]),
        (asking({"image_url": url(b"a").replace("data", "DATA")}), [("image/png", "", 0, url(b"a"))]),
        (
            MessageCreated("m", "user", "x", metadata={"input": [*items(url()), ANSWER, *items("https://x.test/")]}),
            [("", "", 0, "https://x.test/")],
        ),
        (
            MessageCreated("m", "user", "x", metadata={"input": [url(b"a"), ANSWER]}),
            [("image/png", "", 0, url(b"a"))],
        ),
        (asking(*[{"image_url": "https://x.test/"}] * 1000), [("", "", 0, "https://x.test/")] * 100),
    ],
)
def test_what_a_message_says_of_its_files(fact: MessageCreated, files: list[Any]) -> None:
    """What a page needs to show them, whatever dialect they came in; no text, and no address that is a program."""
    [stored] = taken([fact]).facts
    hashes = {hashlib.sha256(DATA).hexdigest()}
    found = attached(stored)
    assert {each.hash for each in found if each.hash} <= hashes
    assert files == [(each.type, each.name, each.bytes, each.url or bool(each.hash)) for each in found]


class Counting(MemoryStore):
    """A store that counts how often something of a file is read."""

    reads = 0

    async def read(self, session: str, *args: Any, **options: Any) -> list[Event]:
        self.reads += session.startswith(INSIDE)
        return await super().read(session, *args, **options)


@pytest.mark.parametrize(
    "path", ["/api/sessions/s/messages", "/api/messages/history", "/api/sdk/chat/s/messages", "/api/sessions/s/export"]
)
async def test_a_history_is_read_without_its_files(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows none of their bytes, so they are not fetched, and a page has as many messages as if there were none."""
    for module in (mix, deva):
        monkeypatch.setattr(module, "PAGE_BYTES", 3 * len(BIG))
    monkeypatch.setattr(mix, "EXPORT_BYTES", 3 * len(BIG))
    app = Legato(store := Counting(), agents=[heard], page=False, max_body=10_000_000)
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        for n in range(3):
            sent = {"text": str(n), "picture": url(BIG + bytes([n]))}
            await driver.request("POST", "/api/sessions/s/messages?client=python-0.6.4", json=sent)
        before = store.reads
        answer = await driver.request("GET", path)
        assert (answer.status, answer.headers.get("legato-next"), store.reads) == (200, None, before)
        found = answer.json()
        rows = found if isinstance(found, list) else found.get("items") or found["messages"]
        assert len(rows) == 6
        if "sessions/s/messages" in path:
            assert [len(row.get("files", [])) for row in rows] == [1, 0, 1, 0, 1, 0]


def test_files_are_found_in_a_message_of_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """In few of them, since that is done for each reader; but what is kept beside the log is told of in any case."""
    looked, inside = 0, history._inside

    def counting(*asked: Any) -> Any:
        nonlocal looked
        looked += 1
        return inside(*asked)

    monkeypatch.setattr(history, "_inside", counting)
    image = {"filename": "a.png", "image_url": {"url": url()}}
    [stored] = taken([asking(*[[0] * 1000] * 100, image)]).facts
    assert [(each.name, each.bytes) for each in attached(stored)] == [("a.png", len(DATA))]
    assert looked <= history.LOOKED_AT + 10


async def test_a_stranger_is_told_of_no_file() -> None:
    """Nor of whether they have it already."""

    def who(request: Any) -> str | None:
        return request.headers.get("x-user")

    app = Legato("memory:", agents=[heard], page=False, auth=who)
    async with Driver(app) as driver:
        sent = {"x-user": "ann"}
        made = await driver.request(
            "POST", "/v1/responses", json={"input": items(url()), "stream": False}, headers=sent
        )
        assert made.status == 200
        [session] = (await driver.request("GET", "/api/sessions", headers=sent)).json()
        log = (await driver.request("GET", f"/api/sessions/{session['id']}/events", headers=sent)).json()
        [ref] = [ref for event in log["events"] for ref in event["data"].get("blobs", ())]
        path = f"/api/sessions/{session['id']}/blobs/{ref['hash']}"
        tag = {"if-none-match": f'"{ref["hash"]}"'}
        answers = [
            (await driver.request("GET", path, headers={**tag, **({"x-user": user} if user else {})})).status
            for user in ("ann", "bob", ".blobs", "")
        ]
        assert answers == [304, 404, 404, 401]
        assert (await driver.request("GET", "/api/sessions", headers={"x-user": ".blobs"})).json() == []


# A bucket -------------------------------------------------------------------------------------------------------------


async def test_a_bucket_has_what_is_large(caplog: Any) -> None:
    """Under the prefix, until the session goes. One that lets nobody in is away; what it has lost is said to be."""
    pytest.importorskip("obstore", reason="Buckets need obstore: pip install 'legato[buckets]'.")
    with bucket() as there:
        async with stage(MemoryStore(), open_outside(there.url + "1000")) as on:
            await on.send("s", question(url(), url(BIG)), begin=True)
            assert sorted(there.objects.values(), key=len) == [DATA, BIG]
            assert all(path.startswith("/bucket/chat/") for path in there.objects)
            assert (await on.verbs.history(NOBODY, "s"))[0].metadata["input"] == items(url(), url(BIG))
            there.broken = True
            with pytest.raises(BlobsAway):
                await on.verbs.history(NOBODY, "s")
            with pytest.raises(BlobsAway):
                await on.verbs.send(NOBODY, "s", question(url(BIG[1:])))
            there.broken = False
            await on.send("s", question(url(BIG)))
            there.objects.clear()
            [hash] = [ref.hash for ref in (await on.verbs.contents(NOBODY, "s")).blobs.values() if ref.size == len(BIG)]
            with pytest.raises(BlobLost):
                await on.verbs.blob_bytes(NOBODY, "s", await on.verbs.blob(NOBODY, "s", hash))
            await on.send("s", question(url(BIG)))
            assert [*there.objects.values()] == [BIG]
            await on.verbs.delete(NOBODY, "s")
            assert there.objects == {}
            assert await on.left() == []
    with pytest.raises(InvalidInput):
        open_outside("s3://bucket/x?no_such_option=1")
