"""A soak: an honest load alone, then the same beside a hostile one, then rest, and the honest alone once more.

The server, and what is hostile, are processes of their own; what is honest is measured here. What must hold: every
honest answer is whole and in order; and when the hostile have gone, the server holds what it held before. How much
longer honest people waited is a figure, and no verdict: a busy machine makes them wait as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from ..client import AsyncClient
from ..errors import LegatoError
from ..http.packages import httpx2
from .honest import Measured, honest_load
from .leash import scratch, started
from .report import write_report
from .served import State

PATIENCE = 120.0
"""Seconds that the last honest answers may take; a server that is slower than that has failed."""
REST = 90.0
"""Seconds within which the server is to have let go of what the hostile left."""
SLACK = {"descriptors": 12, "threads": 48, "tasks": 12, "streams": 0, "runs": 0}
"""By how much more there may be at the end than before: kept connections, threads of pools that grew."""
MEMORY = 1.25
"""How much larger its memory may be after the hostile load than after the honest one."""
MEGABYTES = 512
"""How much more memory may be anything, in megabytes: caches that have been filled for the first time, processes that
render texts, and what the C library keeps between what is in use. Whether it grows is said by the quarters."""


class ServerFailed(LegatoError):
    """The tortured server has ended by itself, or answers nobody any more."""

    code = "server_failed"


class Plan(msgspec.Struct, frozen=True):
    """What a soak is to do.

    Attributes:
        seconds: of the hostile load; the honest load is measured alone for a quarter of it, before and after.
        people: who talk honestly at once.
        seed: of what is random.
    """

    seconds: float = 600.0
    people: int = 10
    seed: int = 0


class Report(msgspec.Struct):
    """What came of it. What was not done, since it was stopped before, is empty.

    Attributes:
        plan: what was done.
        alone, beside, after: the honest load before, beside and after the hostile one.
        states: what the server held, by when: ``"before"``, ``"after"``, and ``"most"`` while it was tortured.
        memory: bytes that it held at the end of each quarter of the hostile load: whether it grows.
        hostile: by kind, how often it was done, and which statuses answered it.
        said: what the server wrote to its log: its last lines.
        stopped: it was, before its end.
    """

    plan: Plan
    alone: Measured = msgspec.field(default_factory=Measured)
    beside: Measured = msgspec.field(default_factory=Measured)
    after: Measured = msgspec.field(default_factory=Measured)
    states: dict[str, State] = {}
    memory: list[int] = []
    hostile: dict[str, Any] = {}
    said: list[str] = []
    stopped: bool = False

    @property
    def faults(self) -> list[str]:
        """What must not be. Empty: the server has passed."""
        found = [fault for load in (self.alone, self.beside, self.after) for fault in load.faults]
        return found if self.stopped else [*found, *kept(self.states["before"], self.states["after"])]

    def lines(self) -> list[str]:
        """The figures side by side, for people."""
        loads = (self.alone, self.beside, self.after)
        rows: list[tuple[str, ...]] = [("", "alone", "beside", "ratio", "after")]
        for name, label in (("piece", "a piece, yield to reader"), ("taken", "message taken"), ("health", "/health")):
            for share, suffix in ((0.5, "p50"), (0.99, "p99"), (1.0, "longest")):
                alone, beside, after = (load.quantile(name, share) * 1e3 for load in loads)
                ratio = f"{beside / alone:.2f}" if alone and beside else ""
                rows.append((f"{label}, {suffix}, ms", f"{alone:.1f}", f"{beside:.1f}", ratio, f"{after:.1f}"))
        rows.append(_row("whole answers", *(load.answers for load in loads)))
        rows.append(_row("refused or failed", *(sum(load.refused.values()) for load in loads)))
        rows.append(("", "before", "most", "", "after"))
        states = [self.states.get(name) for name in ("before", "most", "after")]
        rows.append(_row("memory, MB", *(None if state is None else state.rss // 1_000_000 for state in states)))
        rows += [_row(name, *(None if state is None else getattr(state, name) for state in states)) for name in SLACK]
        quarters = ", ".join(str(each // 1_000_000) for each in self.memory)
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        figures = [
            f"{name:<{widths[0]}}"
            + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            for name, *cells in rows
        ]
        told = [f"{kind}: {each['done']} x {_statuses(each['answers'])}" for kind, each in self.hostile.items()]
        return [
            *figures,
            "",
            f"memory after each quarter of the hostile load, MB: {quarters}",
            "",
            "hostile",
            *(f"  {each}" for each in told),
        ]


def kept(before: State, after: State) -> list[str]:
    """What a server has not let go of."""
    found = []
    for name, slack in SLACK.items():
        had, has = getattr(before, name), getattr(after, name)
        if has > had + slack:
            found.append(f"the server held {had} {name} before, and holds {has}")
    if after.rss > max(before.rss * MEMORY, before.rss + MEGABYTES * 1e6):
        found.append(f"the server held {before.rss / 1e6:.0f} MB before, and holds {after.rss / 1e6:.0f} MB")
    return found


def _row(name: str, *figures: int | None) -> tuple[str, ...]:
    one, other, last = ("" if figure is None else str(figure) for figure in figures)
    return name, one, other, "", last


def _statuses(answers: dict[str, int]) -> str:
    return ", ".join(f"{status} ({count})" for status, count in sorted(answers.items()))


async def soak(
    plan: Plan,
    progress: Callable[[str], None] = lambda text: None,
    stopped: Callable[[Report], None] = lambda found: None,
) -> Report:
    """Torture a server of our own, on a store of its own that is thrown away.

    Args:
        plan: for how long, and how.
        progress: is told what is done now.
        stopped: is given what there is, where it is cancelled.

    Raises:
        ServerFailed: it has ended; the error says what it wrote last.
    """
    found = Report(plan)
    with scratch("torture") as folder:
        async with serving(f"sqlite:///{folder}/torture.db") as server:
            try:
                await _soaked(server, found, progress)
            except asyncio.CancelledError:
                found.stopped, found.said = True, server.said[-50:]
                stopped(found)
                raise
            found.said = server.said[-50:]
    return found


async def _soaked(server: ServedProcess, found: Report, progress: Callable[[str], None]) -> None:
    plan, quarter = found.plan, max(found.plan.seconds / 4, 5.0)
    progress(f"an honest load alone, {quarter:.0f} s")
    await server.bear(plan, 5.0, 0, Measured())  # what is loaded at its first use is loaded
    await server.bear(plan, quarter, 1, found.alone)
    found.states["before"] = before = await server.state()
    progress(f"the same beside a hostile load, {plan.seconds:.0f} s")
    async with _attacking(server.port, plan.seed) as attackers, server.watched() as most:
        try:
            await server.bear(plan, plan.seconds, 2, found.beside)
            found.hostile = await attackers()
        except asyncio.CancelledError:
            found.hostile = await attackers()
            raise
        finally:
            found.states["most"] = _largest(most)
            found.memory = [most[len(most) * quarter // 4 - 1].rss for quarter in (1, 2, 3, 4)]
    progress("rest, until the server has let go")
    await server.rested(before)
    progress(f"the honest load alone again, {quarter:.0f} s")
    await server.bear(plan, quarter, 3, found.after)
    found.states["after"] = await server.rested(before)


def _largest(states: list[State]) -> State:
    return State(**{name: max(getattr(each, name) for each in states) for name in State.__struct_fields__})


class ServedProcess:
    """A server in a process of its own.

    Attributes:
        port, url: where it answers.
        said: the last lines of its log.
    """

    def __init__(self, process: Process, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.said: list[str] = []
        self._process = process
        self._client = AsyncClient(self.url)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.said = [*self.said[-499:], line.decode("utf-8", "replace").rstrip()]

    async def state(self) -> State:
        """What it holds now."""
        answer = await self._client.http.get(f"{self.url}/torture/state", timeout=60)
        return msgspec.json.decode(answer.content, type=State)

    async def rested(self, before: State) -> State:
        """What it holds once it holds no more than before; or still, after ``REST``."""
        until = asyncio.get_running_loop().time() + REST
        while True:
            now = await self.state()
            if not kept(before, now) or asyncio.get_running_loop().time() > until:
                return now
            await asyncio.sleep(1.0)

    async def bear(self, plan: Plan, seconds: float, seed: int, found: Measured) -> None:
        """Carry the honest load of a plan for so long; ``found`` is what is measured.

        Raises:
            ServerFailed: the server has ended meanwhile, or some of the load is not answered.
        """
        load = asyncio.create_task(honest_load(self.url, plan.people, seconds, plan.seed + seed, found))
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait([load, ended], timeout=seconds + PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if load.done():
                load.result()
                return
        finally:
            ended.cancel()
            load.cancel()
        what = f"has ended with status {self._process.returncode}"
        if self._process.returncode is None:
            what = f"has not answered all within {PATIENCE:.0f} s"
            self._process.send_signal(signal.SIGABRT)  # it says where it stands
            await self._process.wait()
        await self._reading
        raise ServerFailed("\n".join([f"The server {what}. It wrote last:", *self.said[-100:]]))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[list[State]]:
        """What it holds, once a second."""
        states = [await self.state()]

        async def watch() -> None:
            while True:
                await asyncio.sleep(1.0)
                with contextlib.suppress(httpx2.HTTPError):  # who bears the load says what is wrong
                    states.append(await self.state())

        watching = asyncio.create_task(watch())
        try:
            yield states
        finally:
            watching.cancel()

    async def aclose(self) -> None:
        """Stop looking at it."""
        await self._client.aclose()
        self._reading.cancel()


@asynccontextmanager
async def serving(store: str) -> AsyncIterator[ServedProcess]:
    """A server on that store, from when it answers until it is killed.

    Raises:
        ServerFailed: it did not start.
    """
    process = await _start("served", store, stderr=PIPE)
    try:
        assert process.stdout is not None
        port = await process.stdout.readline()
        if not re.fullmatch(rb"\d+\n", port):
            assert process.stderr is not None
            raise ServerFailed(f"The server did not start: {(await process.stderr.read()).decode('utf-8', 'replace')}")
        server = ServedProcess(process, int(port))
        try:
            yield server
        finally:
            await server.aclose()
    finally:
        await _end(process)


@asynccontextmanager
async def _attacking(port: int, seed: int) -> AsyncIterator[Callable[[], Any]]:
    """What gives the report of the attackers, once they have been told to stop."""
    process = await _start("hostile", str(port), str(seed))

    async def stop() -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        report = await process.stdout.read()
        if not report:
            raise LegatoError("The hostile load ended without a report; its error is above.")
        return json.loads(report)

    try:
        yield stop
    finally:
        await _end(process)


async def _start(module: str, *arguments: str, stderr: int | None = None) -> Process:
    command = (sys.executable, "-m", f"{__package__}.{module}", *arguments)
    return await started(*command, stdin=PIPE, stdout=PIPE, stderr=stderr)


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def written(report: Report, path: Path) -> None:
    """Write all of a report to a file, as JSON.

    Raises:
        ReportFailed: it cannot be written.
    """
    write_report(path, msgspec.json.format(msgspec.json.encode(report)))
