"""The contents of a log are what folding all of it would give, however it grew and whoever looked when; and what a
message costs does not grow with its session."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driving import chatting
from facts import draft
from legato.agent import Agent, Turn
from legato.bounds import Limits
from legato.caller import NOBODY
from legato.contents import Catalogue, Contents, Entry, window
from legato.errors import SessionNotFound
from legato.event import (
    Draft,
    Event,
    MessageCreated,
    NotificationCreated,
    PermissionRequested,
    PermissionResolved,
    RunStarted,
    RunWithdrawn,
)
from legato.history import askings, history
from legato.log import Log
from legato.questions import Question
from legato.store.memory import MemoryStore
from running import Node, Stage

# The running fold against the whole one -------------------------------------------------------------------------------

SUBJECTS = ["", "ann"]
numbers = st.integers(0, 7)
operation = st.one_of(
    st.tuples(st.just("ask"), numbers, st.sampled_from(SUBJECTS), st.booleans()),
    st.tuples(st.just("end"), st.sampled_from(["completed", "failed", "cancelled"])),
    st.tuples(st.just("rewind"), st.integers(-1, 9), st.one_of(st.none(), st.integers(0, 30))),
    st.tuples(st.just("retry"), numbers),
    st.tuples(st.just("withdraw"), numbers),
    st.tuples(st.just("permission"), numbers, st.booleans(), st.booleans()),
    st.tuples(st.just("notify"), numbers),
    st.tuples(st.just("earlier"), st.sampled_from(["user", "assistant"])),
    st.tuples(st.just("start")),
    st.tuples(st.just("speak"), st.integers(1, 3)),
    st.tuples(st.just("look"), st.booleans()),
)


class Story:
    """A log made of random operations, those that cannot be among them left out."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.catalogue = Catalogue(self.store, kept=20)
        self.count = itertools.count(1)

    async def begin(self) -> None:
        await self.store.open()
        await self.append(draft("session.created", {"agent": "a"}))

    async def append(self, *drafts: Draft) -> None:
        await self.store.append("s", drafts)

    async def events(self) -> list[Event]:
        return [event async for event in Log(self.store, "s").all(deltas=False)]

    async def open_run(self) -> str | None:
        runs = (await self.store.info("s")).open_runs
        return runs[0].run if runs else None

    async def ask(self, number: int, subject: str, keyed: bool) -> None:
        fact = {"id": f"u{number}", "role": "user", "text": "hello", "caller": subject or None}
        await self.append(
            draft("message.created", {**fact, "key": f"k{number}" if keyed else None}, f"s~{next(self.count)}")
        )

    async def retry(self, number: int) -> None:
        asked = askings(await self.events(), f"u{number}")
        if asked:
            messages = history(await self.events())
            place = next((n for n, message in enumerate(messages) if message.id == f"u{number}"), 0)
            back = {"to": messages[place - 1].id if place else "", "until": (await self.store.info("s")).head}
            again = {"id": f"u{number}", "role": "user", "text": "again", "retries": asked[-1].run}
            await self.append(draft("session.rewound", back), draft("message.created", again, f"s~{next(self.count)}"))

    async def end(self, how: str) -> None:
        run = await self.open_run()
        if run is None:
            return
        said = {"id": f"{run}~a1", "text": "so"}
        about: dict[str, Any] = {"finish_reason": "stop", "message": said}
        if how != "completed":
            about = {"partial": said, "code": "c", "message": "m"}
        if how == "cancelled":
            about = {"partial": said}
            await self.append(draft("run.cancel_requested", {}, run))
        elif how == "completed":
            await self.append(draft("run.started", {"agent": "a", "attempt": 1}, run))
        await self.append(draft(f"run.{how}", about, run))

    async def start(self) -> None:
        if (run := await self.open_run()) is not None:
            await self.append(draft("run.started", {"agent": "a", "attempt": 1}, run))

    async def rewind(self, to: int, until: int | None) -> None:
        messages = history(await self.events())
        id = "" if to < 0 else messages[to].id if to < len(messages) else "unknown"
        await self.append(draft("session.rewound", {"to": id, "until": until}))

    async def withdraw(self, number: int) -> None:
        await self.append(draft("session.run_withdrawn", {"run": f"s~{number}"}))

    async def permission(self, number: int, granted: bool, answered: bool) -> None:
        run = await self.open_run()
        if run is None:
            return
        asked = {"id": f"{run}~p{number}", "tool": "t", "description": "d", "action": "a"}
        await self.append(draft("permission.requested", asked, run))
        if answered:
            await self.append(draft("permission.resolved", {"id": asked["id"], "granted": granted, "by": "user"}, run))

    async def notify(self, number: int) -> None:
        about = {"kind": "info", "title": "t", "message": "m", "response": "text", "timeout": 1.0, "created_at": 0.0}
        await self.append(draft("notification.created", {"id": f"n{number}", **about}, await self.open_run()))

    async def earlier(self, role: str) -> None:
        await self.append(draft("message.created", {"id": f"h{next(self.count)}", "role": role, "text": "before"}))

    async def speak(self, count: int) -> None:
        run = await self.open_run()
        for start in range(count if run else 0):
            await self.append(draft("text.delta", {"part": 0, "step": 1, "start": start, "text": "x"}, run))

    async def look(self, other: bool) -> None:
        """Whoever looks now; at the same time as somebody else, and before the session is let go, if ``other``."""
        info = await self.store.info("s")
        await asyncio.gather(*(self.catalogue.of("s", info.head) for _ in range(1 + other)))
        if other:
            await self.store.append(f"o{next(self.count)}", [draft("session.created", {})])
            for session in [name for name in self.store._logs if name != "s"]:
                await self.catalogue.of(session, 1)

    async def check(self) -> None:
        events = await self.events()
        contents = await self.catalogue.of("s", (await self.store.info("s")).head)
        messages = history(events)
        assert await self.catalogue.messages("s", contents.entries) == messages
        assert [entry.size for entry in contents.entries] == [len(events_at(events, m.offset).json) for m in messages]
        for number in range(8):
            asked = askings(events, f"u{number}")
            found = contents.asked.get(f"u{number}", [])
            assert [(each.run, each.offset, each.fact.retries) for each in asked] == [
                (entry.run, entry.offset, entry.retries) for entry in found
            ]
        withdrawn = {event.fact.run for event in events if isinstance(event.fact, RunWithdrawn)}
        created = [event for event in events if isinstance(event.fact, MessageCreated)]
        runs = {event.run: event.offset for event in created if event.run is not None}
        assert contents.withdrawn == withdrawn
        assert contents.left == runs.keys() - withdrawn
        assert {run: entry.offset for run, entry in contents.runs.items()} == runs
        assert contents.last == (created[-1].run if created else None)
        assert contents.keys.keys() == {
            (fact.caller or "", fact.key)
            for event in created
            if isinstance(fact := event.fact, MessageCreated) and fact.key is not None
        }
        first: dict[tuple[str, str], tuple[str | None, int]] = {}
        granted: dict[str, bool] = {}
        for event in events:
            if isinstance(event.fact, PermissionRequested | NotificationCreated):
                first.setdefault((event.type, event.fact.id), (event.run, event.offset))
            if isinstance(event.fact, PermissionResolved):
                granted.setdefault(event.fact.id, event.fact.granted)
        assert (contents.asks, contents.granted) == (first, granted)
        for run, offset in runs.items():
            own = [event.offset for event in events if event.run == run and event.type != "message.created"]
            before = contents.before(run)
            assert offset - 1 <= before < min(own, default=sys.maxsize)
            foreign = [event for event in events if before < event.offset <= max(own, default=0) and event.run != run]
            assert not any(event.fact.terminal and event.offset < min(own) for event in foreign)
        for run in runs:
            place = next((n for n, m in enumerate(messages) if m.run == run and m.offset == runs[run]), None)
            assert contents.place(run) == place


def events_at(events: Sequence[Event], offset: int) -> Event:
    return next(event for event in events if event.offset == offset)


@settings(max_examples=150)
@given(st.lists(operation, max_size=40))
def test_the_running_fold_is_the_whole_fold(operations: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        story = Story()
        await story.begin()
        for name, *arguments in operations:
            await getattr(story, name)(*arguments)
        await story.check()

    asyncio.run(play())


async def test_events_are_taken_once() -> None:
    """Two who look at the same time read the same pages, and one of them is behind the other."""
    story = Story()
    await story.begin()
    await story.ask(1, "", True)
    events = await story.events()
    contents = Contents()
    for event in [*events, *events]:
        contents.take(event)
    assert len(contents.entries) == 1


async def test_the_contents_of_what_was_deleted() -> None:
    story = Story()
    await story.begin()
    await story.ask(1, "", True)
    await story.look(False)
    await story.append(draft("session.deleted", {}))
    with pytest.raises(SessionNotFound):
        await story.catalogue.of("s", 3)
    with pytest.raises(SessionNotFound):
        await story.catalogue.messages("s", [Entry("u1", "user", "s~1", 2, 10)])


async def test_what_was_not_looked_at_for_longest_is_let_go() -> None:
    store = MemoryStore()
    catalogue = Catalogue(store, kept=20)
    for number in range(10):
        asked = [draft("message.created", {"id": f"u{n}", "role": "user", "text": "x"}) for n in range(5)]
        await store.append(f"s{number}", [draft("session.created", {}), *asked])
        await catalogue.of(f"s{number}", 6)
    assert list(catalogue._known) == ["s6", "s7", "s8", "s9"]
    assert catalogue._held == 20


@pytest.mark.parametrize(
    ("sizes", "messages", "bytes", "kept"),
    [
        ([], 3, 100, 0),
        ([1, 1, 1, 1], 3, 100, 3),
        ([1, 1, 1, 1], 9, 2, 2),
        ([1, 1, 9, 1], 9, 5, 1),
        ([1, 1, 1, 9], 9, 5, 1),  # the last one in any case
        ([1, 1], 0, 100, 0),
    ],
)
def test_the_window(sizes: list[int], messages: int, bytes: int, kept: int) -> None:
    entries = [Entry(str(n), "user", None, n + 1, size) for n, size in enumerate(sizes)]
    assert len(entries) - window(entries, messages=messages, bytes=bytes) == kept


# What an agent is given -----------------------------------------------------------------------------------------------


async def test_an_agent_is_given_the_last_messages_and_can_ask_for_more(stage: Stage) -> None:
    turns: list[tuple[int, list[str], list[str], list[str]]] = []

    async def echo(turn: Turn) -> str:
        texts = [[m.text for m in each] for each in (turn.history, await turn.earlier(1), await turn.earlier())]
        turns.append((turn.omitted, texts[0], texts[1], texts[2]))
        return f"to {turn.message.text}"

    runner = stage.runner(echo, limits=Limits(history_messages=3))
    session = await stage.session()
    for number in range(3):
        await stage.ended(await runner.send(session, str(number)))
        await stage.idle(runner)
    assert turns == [
        (0, [], [], []),
        (0, ["0", "to 0"], [], []),
        (1, ["to 0", "1", "to 1"], ["0"], ["0"]),
    ]


# What a message costs -------------------------------------------------------------------------------------------------


class Counted:
    """A store that counts the events that it gives out, pages and answers of ``once`` keys alike."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.events = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def read(self, *args: Any, **options: Any) -> list[Event]:
        events = await self.inner.read(*args, **options)
        self.events += len(events)
        return events


async def test_a_message_costs_the_same_however_long_its_session_is() -> None:
    """Counted as events that are read for it: everything that a verb or a run asks of the log is among them."""
    store = Counted(MemoryStore())
    await store.inner.open()

    async def echo(turn: Turn) -> str:
        await turn.notify("t", "m", response="acknowledge")
        return "ok"

    runner = Node(store, {"echo": Agent(echo, name="echo")}, limits=Limits(history_messages=10))
    sessions, session = runner.sessions, "s"
    await store.append(session, [draft("session.created", {})])

    async def ended(session: str, run: str) -> None:
        found = await sessions.find(NOBODY, session, run)
        assert found is not None
        await sessions.until_ended(NOBODY, found)
        while runner._drives:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0)

    async def message(number: int) -> int:
        """Send, find, stop, answer what was asked, go on from the answer, answer anew: what it all reads."""
        before = store.events
        sent = await sessions.send(NOBODY, session, Question("hello", key=f"a{number}"))
        await ended(session, sent.run)
        await sessions.cancel(NOBODY, session, sent.run)
        await sessions.resolve_notification(NOBODY, f"{sent.run}~n1", "acknowledge")
        await sessions.asked(NOBODY, session, sent.message)
        again = await sessions.retry(NOBODY, session, sent.message, run=sent.run)
        await ended(session, again.run)
        following = await sessions.branch(NOBODY, session, again.run, Question("more", key=f"b{number}"))
        await ended(session, following.run)
        await sessions.withdraw(NOBODY, session, sent.run)
        return store.events - before

    costs = [await message(number) for number in range(60)]
    await runner.stop()
    assert max(costs[40:]) <= max(costs[10:20])


async def test_a_message_through_each_dialect_reads_no_more_the_longer_its_session_is() -> None:
    """Mix, an old client that waits for its answer, Responses that go on from one another, and Deva."""

    async def echo(turn: Turn) -> str:
        return "ok"

    store = Counted(MemoryStore())
    async with chatting(None, echo, store=store, limits=Limits(history_messages=4)) as chat:
        costs: list[int] = []
        last = None
        for _ in range(40):
            before = store.events
            await chat.said()
            old = await chat.driver.request(
                "POST", f"/api/sessions/{chat.session}/messages?client=python-0.5.0", json={"text": "old"}
            )
            assert old.status == 200
            body: dict[str, Any] = {"model": "echo", "input": "hello"}
            body |= {"previous_response_id": last} if last else {"conversation": chat.session}
            answer = (await chat.driver.request("POST", "/v1/responses", json=body)).json()
            assert answer["conversation"]["id"] == chat.session or last is not None
            last = answer["id"]
            thread = f"/api/sdk/chat/{chat.session}/messages"
            asked = (await chat.driver.request("POST", thread, json={"text": "hello"})).json()["id"]
            async with chat.driver.stream(f"{thread}/{asked}/query/stream", method="POST") as stream:
                async for _ in stream.messages():
                    pass
            costs.append(store.events - before)
        assert max(costs[30:]) <= max(costs[5:15])


def test_who_answers_a_run_is_known() -> None:
    """The agent of a run that has begun, by its name; of one that began again, the last."""
    contents = Contents()
    for offset, name in enumerate(["a", "b"], 1):
        contents.take(Event(RunStarted(name, offset), offset, 0.0, "r"))

    assert {"r": "b"} == contents.agents
