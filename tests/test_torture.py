"""``legato torture``: that it finds what must not be, and that this version passes a small one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from legato import Legato
from legato.cli.group import group
from legato.torture.honest import Measured, honest_load
from legato.torture.served import State
from legato.torture.simulate import Simulated, WorldPlan
from legato.torture.soak import MEGABYTES, Plan, Report, ServerFailed, serving
from live_server import serving as served_here
from processes import LAST_WORDS, LONG, PATIENCE, bounded, finished

IDLE = State(rss=100_000_000, descriptors=30, threads=5, tasks=4, streams=0, runs=0)


def report(held: State = IDLE, **loads: Measured) -> Report:
    measured = {"alone": Measured(), "beside": Measured(), "after": Measured(), **loads}
    states = {"before": IDLE, "most": IDLE, "after": held}
    return Report(Plan(), **measured, states=states, memory=[], hostile={}, said=[])


def test_a_server_that_let_go_has_passed() -> None:
    assert report().faults == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("descriptors", 80), ("threads", 300), ("tasks", 60), ("streams", 1), ("runs", 1),
     ("rss", IDLE.rss + MEGABYTES * 1_000_000 + 1)],
)  # fmt: skip
def test_what_is_held_is_a_fault(field: str, value: int) -> None:
    """More of anything than before, by more than what caches and pools may keep."""
    (fault,) = report(msgspec.structs.replace(IDLE, **{field: value})).faults

    assert "holds" in fault


def test_what_was_said_wrongly_is_a_fault() -> None:
    """In each of the three phases."""
    for phase in ("alone", "beside", "after"):
        assert report(**{phase: Measured(faults=["lost"])}).faults == ["lost"]


async def loses(turn: Any) -> AsyncIterator[str]:
    for number in range(40):
        if number != 7:
            yield f"{number}@1 "


async def doubles(turn: Any) -> AsyncIterator[str]:
    for number in range(40):
        yield f"{number}@1 "
        if number == 7:
            yield f"{number}@1 "


async def fails(turn: Any) -> AsyncIterator[str]:
    for number in range(40):
        yield f"{number}@1 "
    raise ValueError


async def stays_silent(turn: Any) -> AsyncIterator[str]:
    return
    yield ""


@pytest.mark.parametrize("agent", [loses, doubles, fails, stays_silent])
async def test_the_honest_notice(agent: Any) -> None:
    """A server whose answers are not what they should be has faults, and no answer of it counts."""
    app = Legato("memory:", agents=[agent])
    app.agents["honest"] = app.agents[agent.__name__]
    with served_here(app) as url:
        load = await honest_load(url, people=1, seconds=1.0, seed=3)

    assert load.faults
    assert load.answers == 0


async def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerFailed, match="did not start"):
        async with asyncio.timeout(LONG), serving("sqlite:////nowhere/at/all.db"):
            pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "say what to do"),
        ("--soak --cluster", "say what to do"),
        ("--cluster", "wants --store"),
        ("--cluster --store redis: --do tickle", "--do is one of kill"),
        ("--cluster --store sqlite:///x.db", "several processes"),
        ("--cluster --store redis://u:pw@[::1", "names a host"),
        ("--cluster --store postgresql://u:pw@[::1", "names a host"),
        ("--simulate --store sqlite:///x.db", "leave out --store"),
        ("--simulate --store nothing:", "A store is"),
        ("--simulate --nodes 3", "--nodes is for --cluster, not for --simulate"),
        ("--soak --store redis:", "--store is for --cluster and --simulate, not for --soak"),
        ("--cluster --people 3", "--people is for --soak"),
        ("--soak --seconds nan", "no number of seconds"),
        ("--cluster --store redis: --lease-ttl nan", "no number of seconds"),
        ("--soak --report x.html", "A report is a .json file"),
        ("--cluster --store redis: --report nowhere/x.html", "no folder 'nowhere'"),
        ("--simulate --report x.pdf", ".svg or .html file"),
        ("--simulate --seeds 0", "not in the range"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = click.testing.CliRunner().invoke(group, ["torture", *arguments.split()])

    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["--cluster", "--simulate"])
@pytest.mark.parametrize("store", ["redis://127.0.0.1:1", "postgresql://127.0.0.1:1/x"])
def test_a_database_that_is_not_there_is_no_fault_of_ours(kind: str, store: str) -> None:
    """Nobody has begun anything: it is said in one line that names it."""
    done = click.testing.CliRunner().invoke(group, ["torture", kind, "--store", store])

    assert done.exit_code == 1
    assert "cannot be reached" in done.output
    assert "127.0.0.1:1" in done.output
    assert "seed" not in done.output
    assert "node 1" not in done.output


def test_a_simulation_that_is_stopped_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a status that is not that of a fault."""

    def until_the_third(plan: WorldPlan) -> Simulated:
        if plan.seed == 7:
            raise KeyboardInterrupt
        return Simulated(plan, counts={"kill": 2})

    monkeypatch.setattr("legato.torture.simulate.grounds", lambda url: {"memory": until_the_third})
    done = click.testing.CliRunner().invoke(group, ["torture", "--simulate", "--seed", "5"])

    assert done.exit_code == 130
    assert "memory: seeds 5 to 6 of 150 steps" in done.output
    assert "4 kill" in done.output
    assert "Nothing was lost" not in done.output


@pytest.mark.parametrize(
    ("how", "number", "said"),
    [
        ("--soak", signal.SIGTERM, "whole answers"),
        ("--cluster --store redis: --nodes 1 --sessions 3 --front relay", signal.SIGINT, "no log was compared"),
    ],
)
def test_what_is_stopped_tells_what_there_is_and_leaves_nothing(
    tmp_path: Path, how: str, number: signal.Signals, said: str
) -> None:
    """By Ctrl-C, which a terminal sends to all processes of its group, or told by whoever ends services."""
    # What a shell begins with & does not hear of a Ctrl-C.
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if number == signal.SIGTERM else []
    process = subprocess.Popen(
        [*shell, sys.executable, "-m", "legato", "torture", *how.split(), "--report", str(tmp_path / "report.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stderr is not None
    with bounded(process, "line of what is begun", seconds=LONG):
        lines = [process.stderr.readline() for _ in range(1 if "soak" in how else 2)]
    skip_without_a_database(lines)
    os.killpg(process.pid, number)
    with bounded(process, "end of it", seconds=LONG):
        told, errors = process.communicate(timeout=LONG + LAST_WORDS)

    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], errors
    assert said in told
    assert errors == "legato: stopped before its end\n"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    until_gone(tmp_path)


@pytest.mark.parametrize("how", ["--cluster --store redis: --nodes 1 --sessions 1 --front relay", "--soak"])
def test_what_is_killed_leaves_nothing(tmp_path: Path, how: str) -> None:
    """By kill -9, while a node is stopped, which then hears of nothing: no process, and no file."""
    process = subprocess.Popen(
        [sys.executable, "-m", "legato", "torture", *how.split()], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        with bounded(process, "line of what is begun", seconds=LONG):
            lines = [process.stderr.readline() for _ in range(1 if "soak" in how else 2)]
        try:
            skip_without_a_database(lines)
            begun = mentioned(str(tmp_path))
            servers = [each for each in begun if re.search(r"torture\.(node|served)", command(each))]
            os.kill(int(servers[0]), signal.SIGSTOP)
        finally:
            process.kill()

    until_gone(tmp_path)
    assert len(begun) > len(servers) > 0
    assert list(tmp_path.iterdir()) == []


def skip_without_a_database(lines: list[str]) -> None:
    """Skip the test if this is what a torture says that has no Valkey or Redis to start."""
    for line in lines:
        if "There is no" in line:
            pytest.skip(line)


def until_gone(folder: Path) -> None:
    """Wait until no process is left that was begun for this folder: one that was killed may take a moment."""
    until = time.monotonic() + 60
    while left := mentioned(str(folder)):
        assert time.monotonic() < until, [command(each) for each in left]
        time.sleep(0.02)


def command(process: str) -> str:
    """What a process was begun with; nothing if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text("utf-8", "replace").replace("\0", " ")
    return ""


def mentioned(text: str) -> list[str]:
    """The processes in whose environment, or working folder, this stands: Redis writes its title over the former."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in os.readlink(path / "cwd") or text in (path / "environ").read_text("utf-8", "replace"):
                found.append(path.name)
    return found


def test_a_small_soak_passes(tmp_path: Path) -> None:
    """All kinds of what is hostile, and the figures side by side. (The large one is ``legato torture --soak``.)"""
    file = tmp_path / "soak.json"

    done = finished(
        *("legato", "torture", "--soak", "--seconds", "15", "--people", "3", "--report", str(file)),
        patience=8 * PATIENCE,  # half a minute is its load, and the server may rest for three
    )

    assert done.returncode == 0, done.stdout
    assert "a piece, yield to reader, p99, ms" in done.stdout
    found = json.loads(file.read_text("utf-8"))
    assert all(each["done"] or each["answers"] for each in found["hostile"].values())
    assert found["beside"]["answers"] > 0
