"""``legato torture``: that it finds what must not be, and that this version passes a small one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from legato import Legato
from legato.torture.honest import Measured, honest_load
from legato.torture.served import State
from legato.torture.soak import MEGABYTES, Plan, Report, ServerFailed, serving
from live_server import serving as served_here
from processes import finished

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
        async with serving("sqlite:////nowhere/at/all.db"):
            pass


def test_a_small_soak_passes(tmp_path: Path) -> None:
    """All kinds of what is hostile, and the figures side by side. (The large one is ``legato torture --soak``.)"""
    file = tmp_path / "soak.json"

    done = finished("legato", "torture", "--soak", "--seconds", "15", "--people", "3", "--report", str(file))

    assert done.returncode == 0, done.stdout
    assert "a piece, yield to reader, p99, ms" in done.stdout
    found = json.loads(file.read_text("utf-8"))
    assert all(each["done"] or each["answers"] for each in found["hostile"].values())
    assert found["beside"]["answers"] > 0
