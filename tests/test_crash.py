"""``kill -9``, again and again, of a real server on one file; and then everything that anybody saw is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import httpx2

from facts import stored
from legato import sse
from legato.dialect import mix
from legato.event import TERMINAL, Event
from running import check_log

SERVER = Path(__file__).parent / "crash" / "server.py"
AGENTS = ["quick", "slow", "retry", "resume"]
SESSIONS = 6
READERS = 3
"""For each session."""
NET = 300.0
"""Seconds after which the test is given up."""


class Server:
    """The server process, which has many lives.

    Attributes:
        up: set while a process is meant to be there; readers wait for it.
        url: of the present life.
    """

    def __init__(self, folder: Path, durability: str) -> None:
        self.up = asyncio.Event()
        self.url = ""
        self._arguments = (str(SERVER), str(folder / "chat.db"), durability)
        self._log = folder / "server.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._arguments, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        self.url = (await self._process.stdout.readline()).decode().strip()
        assert self.url, self._log.read_text()
        self.up.set()

    async def kill(self) -> None:
        """``kill -9``. Idempotent."""
        self.up.clear()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class Progress:
    """Counts what readers have seen, so that the moment of a kill can be chosen by it."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def one_more(self) -> None:
        self.count += 1
        self._changed.set()

    async def reach(self, count: int) -> None:
        while self.count < count:
            self._changed.clear()
            await self._changed.wait()


class Reader:
    """Follows a session over all lives of the server, as a client does: with the last id that it has seen.

    Attributes:
        seen: all events, in the order in which they came.
        ended: the runs that it saw end.
    """

    def __init__(self, session: str, progress: Progress) -> None:
        self.session = session
        self.seen: list[sse.SSEMessage] = []
        self.ended: set[str] = set()
        self.cursor = "0"
        self._progress = progress

    async def follow(self, server: Server, client: httpx2.AsyncClient) -> None:
        while True:
            await server.up.wait()
            with contextlib.suppress(httpx2.TransportError):
                await self._connect(f"{server.url}/stream?client=legato&sessionId={self.session}", client)
            await asyncio.sleep(0.005)  # the connection is refused until the next life

    async def _connect(self, url: str, client: httpx2.AsyncClient) -> None:
        decoder = sse.Decoder()
        async with client.stream("GET", url, headers={"last-event-id": self.cursor}) as response:
            assert (response.status_code, response.headers["legato-cursor"]) == (200, "exact")
            async for chunk in response.aiter_raw():
                for message in decoder.feed(chunk):
                    self._take(message)

    def _take(self, message: sse.SSEMessage) -> None:
        if message.event in ("connected", "heartbeat"):
            assert message.id == self.cursor
            return
        assert int(message.id) > int(self.cursor)
        self.cursor = message.id
        self.seen.append(message)
        if message.event in ("complete", "error"):
            self.ended.add(json.loads(message.data)["runId"])
        self._progress.one_more()

    def texts(self) -> dict[str, str]:
        """The text of each assistant message, put together from its pieces; each must begin where the last ended."""
        pieces: dict[tuple[str, int], str] = {}
        for message in self.seen:
            if message.event == "content":
                data = json.loads(message.data)
                place = (data["assistantMessageId"], data["part"])
                assert data["start"] == len(pieces.get(place, ""))
                pieces[place] = pieces.get(place, "") + data["content"]
        texts: dict[str, str] = {}
        for (id, _), text in pieces.items():
            texts[id] = texts.get(id, "") + text
        return texts


class Sender:
    """Sends messages with keys until each is acknowledged.

    Attributes:
        acknowledged: the run of each key that was answered with 202.
    """

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.acknowledged: dict[tuple[str, str], str] = {}
        self.owing: list[tuple[str, str, str]] = []
        self._client = client

    async def send(self, server: Server, session: str, agent: str, key: str, *, copies: int = 1) -> None:
        """Send, ``copies`` at once; what is not acknowledged is owed."""
        posts = (self._post(server.url, session, agent, key) for _ in range(copies))
        if not any(await asyncio.gather(*posts)):
            self.owing.append((session, agent, key))

    async def repay(self, server: Server) -> None:
        """Send what is owed again, with the same keys."""
        owing, self.owing = self.owing, []
        await asyncio.gather(*(self.send(server, *message) for message in owing))

    async def _post(self, url: str, session: str, agent: str, key: str) -> bool:
        try:
            response = await self._client.post(
                f"{url}/api/sessions/{session}/messages?client=legato",
                json={"text": key, "agent": agent},
                headers={"idempotency-key": key},
            )
        except httpx2.TransportError:
            return False
        assert response.status_code == 202, response.text
        run = response.json()["runId"]
        assert self.acknowledged.setdefault((session, key), run) == run
        return True


async def read_log(client: httpx2.AsyncClient, url: str, session: str) -> list[Event]:
    """The whole canonical log."""
    events: list[Event] = []
    after: int | None = 0
    while after is not None:
        response = await client.get(f"{url}/api/sessions/{session}/events", params={"after": after})
        page = response.json()
        events += [
            stored(type=each["type"], data=each["data"], offset=each["offset"], at=each["at"], run=each.get("run"))
            for each in page["events"]
        ]
        after = page.get("next")
    return events


@dataclasses.dataclass
class Found:
    """Everything that was sent and seen while a server was killed, and the logs after its last start."""

    rounds: int
    logs: dict[str, list[Event]]
    readers: list[Reader]
    acknowledged: dict[tuple[str, str], str]


async def kill_often(folder: Path, durability: str, rounds: int) -> Found:
    """Send and read while a server is killed ``rounds`` times; then let all runs end."""
    server, progress = Server(folder, durability), Progress()
    settings = {"timeout": httpx2.Timeout(NET), "limits": httpx2.Limits(max_connections=None)}
    try:
        async with asyncio.timeout(NET), httpx2.AsyncClient(**settings) as client, asyncio.TaskGroup() as group:
            await server.start()
            sessions = [f"s{number}" for number in range(SESSIONS)]
            for session in sessions:
                (await client.post(f"{server.url}/api/sessions", json={"id": session})).raise_for_status()
            readers = [Reader(session, progress) for session in sessions for _ in range(READERS)]
            following = [group.create_task(reader.follow(server, client)) for reader in readers]
            sender = Sender(client)
            for round in range(rounds):
                await live(server, sender, progress, sessions, round)
            await server.start()
            await sender.repay(server)
            assert sender.owing == []
            for reader in readers:
                runs = {run for (session, _), run in sender.acknowledged.items() if session == reader.session}
                while not reader.ended >= runs:
                    await progress.reach(progress.count + 1)
            logs = {session: await read_log(client, server.url, session) for session in sessions}
            for task in following:
                task.cancel()
        return Found(rounds, logs, readers, sender.acknowledged)
    finally:
        await server.kill()


async def live(server: Server, sender: Sender, progress: Progress, sessions: list[str], round: int) -> None:
    """One life of the server: it is sent a message for each session, and killed at a moment that differs by round."""
    if round:
        await server.start()
    await sender.repay(server)
    begin = progress.count
    sending = []
    for number, session in enumerate(sessions):
        agent, key = AGENTS[(number + round) % len(AGENTS)], f"m{round}.{number}"
        sending.append(asyncio.create_task(sender.send(server, session, agent, key, copies=1 + number % 2)))
    if round % 5 == 4:
        await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)  # one is acknowledged, others are on their way
    else:
        await progress.reach(begin + 1 + round * 37 % 300)
    await server.kill()
    await asyncio.gather(*sending)


def check_all(found: Found) -> None:
    """Nothing lost, doubled or out of order; every run ended once."""
    assert len(found.acknowledged) == found.rounds * SESSIONS
    for session, events in found.logs.items():
        check_log(events)
        messages = [event for event in events if event.type == "message.created"]
        assert {(session, event.data["key"]): event.run for event in messages} == {
            place: run for place, run in found.acknowledged.items() if place[0] == session
        }
        assert len(messages) == found.rounds
        ends = Counter(event.run for event in events if event.type in TERMINAL)
        assert ends == Counter(event.run for event in messages)
    for reader in found.readers:
        log = found.logs[reader.session]
        expected = [message for event in log for message in mix.messages(event, reader.session, mix.LEGATO)]
        assert [(m.id, m.event, m.data) for m in reader.seen] == [(m.id, m.event, m.data) for m in expected]
        texts = reader.texts()
        for event in log:
            if event.type in TERMINAL:
                said = event.data["message" if event.type == "run.completed" else "partial"]
                assert texts.get(said["id"], "") == said["text"]


def check_answers(logs: dict[str, list[Event]]) -> None:
    """What was answered is what the agents say: a resumed text has no seam, a retried one is whole."""
    numbers = {"quick": 3, "slow": 60, "retry": 30, "resume": 40}
    endings: Counter[tuple[str, str]] = Counter()
    attempts = sum(event.data.get("attempt", 1) > 1 for events in logs.values() for event in events)
    for events in logs.values():
        asked = {event.run: event.data for event in events if event.type == "message.created"}
        for event in events:
            if event.type not in TERMINAL:
                continue
            question = asked[event.run]
            endings[question["agent"], event.type] += 1
            whole = "".join(f"{question['text']}:{word} " for word in range(numbers[question["agent"]]))
            if event.type == "run.completed":
                assert event.data["message"]["text"] == whole
            else:
                assert event.data["code"] == "interrupted"
                assert whole.startswith(event.data["partial"]["text"])
    # The kills did hit runs in the middle, and all that can go on did.
    assert endings["slow", "run.failed"] > 0
    assert endings["retry", "run.failed"] == endings["resume", "run.failed"] == 0
    assert attempts > len(logs)


async def test_kill_dash_nine(tmp_path: Path) -> None:
    """25 kills of a server with several runs and readers at once; each time it goes on as if nothing had been."""
    found = await kill_often(tmp_path, "full", 25)
    check_all(found)
    check_answers(found.logs)


async def test_kill_dash_nine_with_normal_durability(tmp_path: Path) -> None:
    """A process's death costs nothing under ``durability="normal"`` either: that is about the loss of power."""
    check_all(await kill_often(tmp_path, "normal", 3))
