"""From an HTTP message to the agent's first word, stored and at the client: commits, reads and time, with SQLite.

One message at a time, to an agent that says one word. Two kinds of server for each side: one that notes each statement
of SQLite and each commit, for the counts, and one that does not, for the times. A commit is a wait for the disk, and
the commits between the message and the stored word stand one behind another; a read is a turn on a reader's thread.
What the reader's own stream asks for meanwhile counts, too, so the median of many messages is shown.

- Mix: ``POST /api/sessions/{id}/messages`` in one of 30 sessions, whose stream is open.
- Responses: ``POST /v1/responses`` with ``stream``, a new conversation each time. Chat: the same, by its own route.
- Deva: ``POST .../messages`` in one of 30 threads, and ``POST .../query/stream`` once that is answered.

With ``--busy`` the servers are then given so many sessions in which an agent says 30 tokens a second, each with a
reader, and the times are taken again.

Times are from the first byte of the message to the word at the client, and within the server, from the request to the
moment at which the agent knows that its word is stored. Both sides run all the time and take turns, by the message.

    python benchmarks/first_word.py [--base CHECKOUT] [--messages 300] [--busy 100] [--statements] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections import Counter
from typing import Any, NamedTuple

import uvloop
from support.chats import crowd
from support.load import Post, Reader, Server, request, serving
from support.sides import Report, in_turn, parser, sides

WORD = b'"word"'
PLACES = 30
"""Sessions that the messages of Mix and Deva go to, in turn: an old one, but no endless one."""
COUNTED = 30
PATIENCE = 30.0
REST = 0.003
"""Seconds between two messages, in which the last run is put away."""


class Talk:
    """One dialect's way to send one message and wait for its word and its end."""

    name = ""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._number = 0

    async def open(self) -> None:
        """What is there before the first message."""

    async def say(self) -> float:
        """Send a message; the seconds until its first word."""
        raise NotImplementedError

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _read(self, asked: bytes, begun: float | None = None) -> float:
        reader = await self._server.connect(Reader(WORD))
        begun = begun or time.perf_counter()
        reader.send(asked)
        at = await asyncio.wait_for(reader.marked, PATIENCE)
        await asyncio.wait_for(reader.over, PATIENCE)
        return at - begun


class Mix(Talk):
    name = "mix"

    async def open(self) -> None:
        self._post: Post = await self._server.post()
        made = [await self._server.ask("POST", "/api/sessions", {"title": "bench"}) for _ in range(PLACES)]
        self._places = [(each["id"], Follower()) for each in made]
        for session, follower in self._places:
            await self._server.connect(follower)
            follower.send(request("GET", f"/stream?sessionId={session}"))
        await asyncio.sleep(0.2)

    async def say(self) -> float:
        number = self._next()
        session, follower = self._places[number % PLACES]
        word, end = follower.expect()
        begun = time.perf_counter()
        await self._post.send(request("POST", f"/api/sessions/{session}/messages", {"text": f"word {number}"}))
        at = await asyncio.wait_for(word, PATIENCE)
        await asyncio.wait_for(end, PATIENCE)
        return at - begun


class Follower(Reader):
    """A reader of a session, answer after answer."""

    def __init__(self) -> None:
        super().__init__(WORD)
        self._tail = b""
        self._word = self._end = None

    def expect(self) -> tuple[asyncio.Future[float], asyncio.Future[None]]:
        """The next answer's first word, and its end."""
        loop = asyncio.get_running_loop()
        self._tail = b""
        self._word, self._end = loop.create_future(), loop.create_future()
        return self._word, self._end

    def data_received(self, data: bytes) -> None:
        self._tail += data
        if self._word is None or self._end is None:
            return
        # The user's own message has the word in it, too, but not as all of a text.
        if not self._word.done() and WORD in self._tail:
            self._word.set_result(time.perf_counter())
        if not self._end.done() and b"event: complete" in self._tail and self._tail.endswith(b"\n\n\r\n"):
            self._end.set_result(None)


class Responses(Talk):
    name = "responses"

    async def say(self) -> float:
        asked = {"model": "speaker", "stream": True, "input": f"word {self._next()}"}
        return await self._read(request("POST", "/v1/responses", asked))


class Chat(Talk):
    name = "chat"

    async def say(self) -> float:
        asked = {"role": "user", "content": f"word {self._next()}"}
        body = {"model": "speaker", "stream": True, "messages": [asked]}
        return await self._read(request("POST", "/v1/chat/completions", body))


class Deva(Talk):
    name = "deva"

    async def open(self) -> None:
        self._post: Post = await self._server.post()
        made = [await self._server.ask("POST", "/api/sdk/chat", {}) for _ in range(PLACES)]
        self._threads = [each["id"] for each in made]

    async def say(self) -> float:
        number = self._next()
        path = f"/api/sdk/chat/{self._threads[number % PLACES]}/messages"
        reader = await self._server.connect(Reader(WORD))
        begun = time.perf_counter()
        message = await self._post.send(request("POST", path, {"text": f"word {number}"}))
        reader.send(request("POST", f"{path}/{message['id']}/query/stream"))
        at = await asyncio.wait_for(reader.marked, PATIENCE)
        await asyncio.wait_for(reader.over, PATIENCE)
        return at - begun


TALKS: list[type[Talk]] = [Mix, Responses, Chat, Deva]


class Count(NamedTuple):
    """What one message took of SQLite: before its word was stored, and in all. ``steps`` are those before."""

    commits: int
    reads: int
    all_commits: int
    all_reads: int
    steps: tuple[str, ...]


class Times(NamedTuple):
    """Milliseconds of each message, and CPU milliseconds of the server for one."""

    word: list[float]
    stored: list[float]
    cpu: float


async def count(server: Server, talk: Talk) -> list[Count]:
    """The statements of some messages, after some that warm up."""
    found = []
    for number in range(2 * COUNTED):
        await asyncio.sleep(REST)
        await server.bench("reset")
        await talk.say()
        await asyncio.sleep(REST)
        if number >= COUNTED:
            found.append(_count([tuple(note) for note in await server.bench("trace")]))
    return found


def _count(notes: list[Any]) -> Count:
    kinds = [kind for kind, _ in notes]
    begin, stored = kinds.index("request"), kinds.index("stored")
    # SQLite's statement that writes comes with its commit, so it is no step of its own.
    steps = tuple(f"{kind:8}{text}" for kind, text in notes[begin + 1 : stored] if kind != "write")
    before, whole = Counter(kinds[begin:stored]), Counter(kinds[begin:])
    return Count(before["commit"], before["read"], whole["commit"], whole["read"], steps)


async def times(servers: dict[str, Server], kind: type[Talk], messages: int) -> dict[str, Times]:
    """Both sides, a message of each in turn."""
    talks = {name: kind(server) for name, server in servers.items()}
    words: dict[str, list[float]] = {name: [] for name in servers}
    before: dict[str, float] = {}
    for name, talk in talks.items():
        await talk.open()
        for _ in range(messages // 10):
            await talk.say()
        await servers[name].bench("times/reset")
        before[name] = await servers[name].bench("cpu")
    for number in range(messages):
        for name in in_turn(list(talks), number):
            await asyncio.sleep(REST)
            words[name].append(await talks[name].say() * 1e3)
    found = {}
    for name, server in servers.items():
        spent = await server.bench("cpu") - before[name]
        stored = [each * 1e3 for each in await server.bench("times")]
        found[name] = Times(words[name], stored, spent / messages * 1e3)
    return found


def share(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--messages", type=int, default=300)
    options_of.add_argument("--busy", type=int, default=0, metavar="SESSIONS", help="measure beside these, too")
    options_of.add_argument("--statements", action="store_true", help="show what SQLite is asked, step by step")
    options: argparse.Namespace = options_of.parse_args()
    both = sides(options)
    names = [side.name for side in both]
    report = Report("first_word", both)

    with contextlib.ExitStack() as stack:
        traced = {side.name: stack.enter_context(serving(side, "--trace")) for side in both}
        timed = {side.name: stack.enter_context(serving(side)) for side in both}

        async def measure(kind: type[Talk]) -> tuple[dict[str, list[Count]], dict[str, Times]]:
            counts = {}
            for name, server in traced.items():
                talk = kind(server)
                await talk.open()
                counts[name] = await count(server, talk)
            return counts, await times(timed, kind, options.messages)

        async def measure_busy(kind: type[Talk]) -> dict[str, Times]:
            async with contextlib.AsyncExitStack() as crowds:
                for server in timed.values():
                    await crowds.enter_async_context(crowd(server, options.busy, f"{kind.name}-"))
                return await times(timed, kind, options.messages)

        def show(found: dict[str, Times]) -> None:
            report.row("stored after, p50 ms", [share(found[name].stored, 0.5) for name in names])
            report.row("stored after, p99 ms", [share(found[name].stored, 0.99) for name in names])
            report.row("at the client after, p50 ms", [share(found[name].word, 0.5) for name in names])
            report.row("at the client after, p99 ms", [share(found[name].word, 0.99) for name in names])
            report.row("CPU of the server, ms", [found[name].cpu for name in names])

        for kind in TALKS:
            counts, found = uvloop.run(measure(kind))
            report.head(f"{kind.name}, {options.messages} messages")
            for label, field in (
                ("commits before the word is stored", "commits"),
                ("reads before the word is stored", "reads"),
                ("commits of the whole answer", "all_commits"),
                ("reads of the whole answer", "all_reads"),
            ):
                values = [share([getattr(each, field) for each in counts[name]], 0.5) for name in names]
                report.row(label, values, form=".0f")
            show(found)
            if options.statements:
                for name in names:
                    steps, often = Counter(each.steps for each in counts[name]).most_common(1)[0]
                    report.line(f"\n  {name}, in {often} of {len(counts[name])}:")
                    for step in steps:
                        report.line(f"    {step[:160]}")
        for kind in TALKS if options.busy else ():
            report.head(f"{kind.name}, {options.messages} messages, beside {options.busy} sessions x 30/s")
            show(uvloop.run(measure_busy(kind)))
    if options.save:
        report.save(options.save)


if __name__ == "__main__":
    main()
