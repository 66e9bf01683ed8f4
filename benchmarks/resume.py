"""What it costs when many readers come back at once to an answer that is still being given, in each dialect.

A run says N pieces of text and waits. Then many readers ask for its stream in the same moment: 3 events before its
end, or from its start. When all have what there is, the run says 3 more and ends. In case D it has ended, and the
server has been started anew, so nothing of it is in memory.

Reported, once for the coming back and once for the end: for how long the server's event loop was held at a time
(*held*: by the clock; *busy*: the most that its thread computed meanwhile; the difference is what other threads and the
machine took), the CPU seconds of the server process, and the time until the last reader had everything. Every reader's
bytes are compared with those of one that was there from the beginning.

The connections are made before the clock starts, and each measurement has a server of its own, with SQLite and full
durability. Chat Completions has no cursor: its readers send the same request again, and get the answer from its start.
By default all requests are written at once, which is harder than life: Mix, whose readers cost nothing but their
requests, is the floor. With ``--spread`` they come over so many seconds, as those do whose delay ``retry:`` set.

    python benchmarks/resume.py [--base CHECKOUT] [--cases ABCD] [--rounds 1] [--dialects mix,deva] [--spread 0]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Coroutine
from typing import NamedTuple

import uvloop
from support.load import DIALECTS, Dialect, Reader, Server, serving
from support.sides import Report, Side, in_turn, median, parser, sides

HELD = 20.0
"""Milliseconds for which the loop may be held at a time."""
TIMES_MIX = 3.0
CPU = 1.0
"""Seconds of CPU for case B."""
PATIENCE = 120.0
CHEAP, OFTENER = 0.5, 3
"""What takes less than so many seconds of CPU is measured so many times as often: it is blurred the most."""


class Case(NamedTuple):
    """Who comes to what: ``left`` is how many events before the quiet they come back; None for the start."""

    readers: int
    deltas: int
    left: int | None
    restarted: bool = False

    def __str__(self) -> str:
        come = "come from the start" if self.left is None else f"come back {self.left} events before the end"
        what = f"{'a' if self.restarted else 'an open'} run of {self.deltas:,} pieces"
        return f"{self.readers} readers {come} of {what}{', after a restart' if self.restarted else ''}"


CASES = {
    "A": Case(200, 2_000, 3),
    "B": Case(50, 20_000, 3),
    "C": Case(200, 2_000, None),
    "D": Case(200, 2_000, 3, restarted=True),
}


class Phase(NamedTuple):
    """What the server spent on one thing: milliseconds, but for ``cpu`` and ``took`` in seconds."""

    held: float
    busy: float
    long: int
    cpu: float
    took: float


class Result(NamedTuple):
    back: Phase
    end: Phase | None
    right: int
    size: int
    memory: float


class Scene(NamedTuple):
    """A run that says no more for now: its name, who has seen it all, and what a reader asks that has ``at`` bytes."""

    name: str
    witness: Reader
    again: bytes
    at: int


_names = itertools.count(1)


async def prepare(server: Server, dialect: Dialect, case: Case) -> Scene:
    name = f"n{next(_names)}"
    await dialect.begin(server, f"deltas {case.deltas} {name}")
    witness = await server.connect(dialect.reader())
    witness.send(dialect.first)
    await asyncio.wait_for(witness.marked, PATIENCE)
    await asyncio.sleep(0.2)  # until the rest of the frame is there, and the server rests
    known = dialect.plain(witness.body)
    if (frames := known.count(b"\n\n")) < case.deltas:
        raise RuntimeError(f"The run of {case.deltas} pieces has {frames} frames.")
    again, at = (dialect.first, 0) if case.left is None else dialect.resume(known, case.left)
    return Scene(name, witness, again, at)


async def crowd(server: Server, dialect: Dialect, case: Case) -> list[Reader]:
    return [await server.connect(dialect.reader()) for _ in range(case.readers)]


async def come(readers: list[Reader], request: bytes, spread: float) -> None:
    for reader in readers:
        reader.send(request)
        if spread:
            await asyncio.sleep(spread / len(readers))


async def to_open_run(server: Server, dialect: Dialect, case: Case, spread: float) -> Result:
    name, witness, again, at = await prepare(server, dialect, case)
    readers = await crowd(server, dialect, case)
    before = await memory(server)

    async def back() -> None:
        await come(readers, again, spread)
        await asyncio.gather(*(reader.marked for reader in readers))

    async def end() -> None:
        await server.bench(f"go/{name}")
        await asyncio.gather(witness.over, *(reader.over for reader in readers))

    phases = await phase(server, back()), await phase(server, end())
    expected = dialect.plain(witness.body)[at:]
    return Result(*phases, right(dialect, readers, expected), len(expected), await memory(server) - before)


async def run_to_end(server: Server, dialect: Dialect, case: Case) -> tuple[bytes, bytes]:
    """The request that is made after the restart, and the bytes that answer it."""
    name, witness, again, at = await prepare(server, dialect, case)
    await server.bench(f"go/{name}")
    await asyncio.wait_for(witness.over, PATIENCE)
    return again, dialect.plain(witness.body)[at:]


async def to_ended_run(
    server: Server, dialect: Dialect, case: Case, spread: float, again: bytes, expected: bytes
) -> Result:
    readers = await crowd(server, dialect, case)
    before = await memory(server)

    async def back() -> None:
        await come(readers, again, spread)
        await asyncio.gather(*(reader.over for reader in readers))

    spent = await phase(server, back())
    return Result(spent, None, right(dialect, readers, expected), len(expected), await memory(server) - before)


def right(dialect: Dialect, readers: list[Reader], expected: bytes) -> int:
    return sum(dialect.plain(reader.body) == expected for reader in readers)


async def memory(server: Server) -> float:
    return float((await server.bench("figures"))["memory"])


async def phase(server: Server, doing: Coroutine[None, None, None]) -> Phase:
    await server.bench("reset")
    await asyncio.sleep(0.02)
    begun = time.perf_counter()
    await asyncio.wait_for(doing, PATIENCE)
    took = time.perf_counter() - begun
    await asyncio.sleep(0.02)  # so that the heart has beaten after the last hold
    figures = await server.bench("figures")
    return Phase(figures["held"] * 1e3, figures["busy"] * 1e3, figures["long"], figures["cpu"], took)


def one_round(side: Side, dialect: Dialect, case: Case, spread: float) -> Result:
    if not case.restarted:
        with serving(side) as server:
            return uvloop.run(to_open_run(server, dialect, case, spread))
    with tempfile.TemporaryDirectory(prefix="legato-bench-") as folder:
        with serving(side, folder=folder) as server:
            again, expected = uvloop.run(run_to_end(server, dialect, case))
        with serving(side, folder=folder) as server:
            return uvloop.run(to_ended_run(server, dialect, case, spread, again, expected))


Results = dict[tuple[str, str], list[Result]]


def show(report: Report, sides: list[Side], case: str, results: Results, dialects: list[type[Dialect]]) -> None:
    report.head(f"case {case}: {CASES[case]}", last="target")
    for dialect in dialects:
        rounds = [results[dialect.name, side.name] for side in sides]
        mix = [results.get(("mix", side.name)) for side in sides]
        # What begins anew cannot cost as little as what goes on; its measure is the readers who are all new (case C).
        anew = dialect.name == "chat" and CASES[case].left is not None
        report.line(f"{dialect.name}{', from the start: it has no cursor' if anew else ''}")

        def row(label: str, values: list[float], form: str, target: float | None = None) -> None:
            verdict = "" if target is None else f"<= {target:g}, {'kept' if values[0] <= target else 'MISSED'}"
            report.row(f"  {label}", values, form=form, last=verdict)  # called here alone

        row("held, ms", [median(each, lambda r: r.back.held) for each in rounds], ".1f", HELD)
        row("  of it busy, ms", [median(each, lambda r: r.back.busy) for each in rounds], ".1f", HELD)
        row(f"  times over {HELD:g} ms", [median(each, lambda r: r.back.long) for each in rounds], ".0f")
        cpu = [median(each, lambda r: r.back.cpu) for each in rounds]
        row("CPU, s", cpu, ".3f", CPU if case == "B" else None)
        if all(mix):
            base = [median(each, lambda r: r.back.cpu) for each in mix if each]
            row("CPU, times Mix", [a / b for a, b in zip(cpu, base, strict=True)], ".2f", None if anew else TIMES_MIX)
        row("all have the tail after, s", [median(each, lambda r: r.back.took) for each in rounds], ".3f")
        if not CASES[case].restarted:
            row("at the end: held, ms", [median(each, lambda r: r.end.held) for each in rounds], ".1f", HELD)
            row("at the end: CPU, s", [median(each, lambda r: r.end.cpu) for each in rounds], ".3f")
        row("memory grew at most, MB", [max(r.memory for r in each) for each in rounds], ".0f")
        row("KB for each reader", [rounds_of[0].size / 1e3 for rounds_of in rounds], ".1f")
        texts = [f"{sum(r.right for r in each)} of {CASES[case].readers * len(each)}" for each in rounds]
        report.row("  readers with the right bytes", texts)


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--cases", default="".join(CASES), help="which of A, B, C and D")
    options_of.add_argument(
        "--rounds", type=int, default=1, help="of what is expensive; three times as many of all else"
    )
    options_of.add_argument("--dialects", default=",".join(dialect.name for dialect in DIALECTS))
    options_of.add_argument("--spread", type=float, default=0.0, help="seconds over which the readers come")
    options: argparse.Namespace = options_of.parse_args()
    both = sides(options)
    dialects = [dialect for dialect in DIALECTS if dialect.name in options.dialects.split(",")]
    report = Report("resume", both)
    spread = f" over {options.spread:g} s" if options.spread else " at once"
    report.line(
        f"median of {options.rounds}, of what is cheap {options.rounds * OFTENER}; the readers' requests come{spread}"
    )
    for case in options.cases:
        results: Results = {}
        for dialect in dialects:
            for number in range(options.rounds * OFTENER):
                for side in in_turn(both, number):
                    rounds = results.setdefault((dialect.name, side.name), [])
                    if number < options.rounds or median(rounds, lambda r: r.back.cpu) < CHEAP:
                        rounds.append(one_round(side, dialect(), CASES[case], options.spread))
        show(report, both, case, results, dialects)
    if options.save:
        report.save(options.save)


if __name__ == "__main__":
    main()
