"""The simulator of faults: this version holds, and each of many breakages of it is found.

``LEGATO_SEEDS`` is how many seeds are tried on each store, 20 if it is not set.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import click.testing
import pytest

from breakages import BREAKAGES, Breakage, broken
from legato.cli.torture import torture
from legato.errors import InvalidInput
from legato.store.memory import MemoryStore
from legato.testing import simulate
from legato.torture.power import PowerDisk
from legato.torture.simulate import Simulated, WorldPlan, grounds, simulate_memory, simulate_sqlite
from legato.torture.virtual import NothingHappens, run_virtually
from test_toys import SIMPLE

SEEDS = int(os.environ.get("LEGATO_SEEDS", "20"))
FOUND_WITHIN = 40
"""Seeds within which a breakage is found."""


def simulate_forgetful(plan: WorldPlan) -> Simulated:
    """A cut of the power may take what was acknowledged; who comes back is told."""
    return simulate_sqlite(plan, durability="normal")


STORES: dict[str, Callable[[WorldPlan], Simulated]] = {"memory": simulate_memory, "sqlite": simulate_sqlite}
FAILED: list[tuple[Callable[[WorldPlan], Simulated], int]] = [
    (simulate_sqlite, 31),  # a session that was deleted when all its deltas were packed
    *((simulate_forgetful, seed) for seed in range(4)),
]
"""Seeds that have failed once, and those of what is seldom used."""


def check(found: Simulated) -> None:
    assert not found.faults, found.told()


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("store", STORES)
def test_a_seed_holds(store: str, seed: int) -> None:
    check(STORES[store](WorldPlan(seed)))


@pytest.mark.parametrize(("simulated", "seed"), FAILED)
def test_a_seed_that_has_failed_holds(simulated: Callable[[WorldPlan], Simulated], seed: int) -> None:
    check(simulated(WorldPlan(seed)))


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_a_breakage_is_found(breakage: Breakage) -> None:
    """Within few seeds; so what the simulator does not find is not there for want of looking."""
    with broken(breakage):
        seeds = range(breakage.first, breakage.first + FOUND_WITHIN)
        simulated = {**STORES, "forgetful": simulate_forgetful}[breakage.store]
        assert any(simulated(WorldPlan(seed, calm=breakage.calm)).faults for seed in seeds)


@pytest.mark.parametrize("store", STORES)
def test_a_seed_is_the_same_each_time(store: str) -> None:
    """In another process, too, where hashes are others."""
    code = f"from legato.torture.simulate import *; print(simulate_{store}(WorldPlan(7, steps=60)).digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)

    assert STORES[store](WorldPlan(7, steps=60)).digest == other.stdout.strip()


def test_a_store_of_ones_own(tmp_path: Path) -> None:
    """One that a process has for itself, and one object that many nodes share."""
    simulate(
        lambda name, clock: SIMPLE.SimpleStore(str(tmp_path / f"{name}.db"), clock=clock), seeds=range(2), steps=80
    )
    stores: dict[str, MemoryStore] = {}

    def shared(name: str, clock: Callable[[], float]) -> MemoryStore:
        return stores.setdefault(name, MemoryStore(clock=clock))

    simulate(shared, seeds=range(2), steps=80, shared=True)


def test_a_store_in_real_time() -> None:
    """As what is reached over a network: the loop waits, and the database is as empty afterwards as before."""
    store = MemoryStore()
    simulate(lambda name, clock: store, seeds=[1], steps=25, shared=True, real_time=True)

    assert all(log.state.deleted for log in store._logs.values())


def test_a_seed_that_fails_says_what_led_there() -> None:
    with broken(BREAKAGES[3]), pytest.raises(AssertionError, match=r"(?s)^seed \d+, 150 steps:\n.*send .*\nR6 key"):
        simulate(lambda name, clock: MemoryStore(clock=clock), seeds=range(FOUND_WITHIN))


class TestCommand:
    """``legato torture --simulate``."""

    def invoke(self, *arguments: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(torture, [*arguments], catch_exceptions=False, standalone_mode=False)

    def test_it_says_what_it_did(self, tmp_path: Path) -> None:
        done = self.invoke("--simulate", "--seeds", "2", "--steps", "30", "--report", str(tmp_path / "report.svg"))

        assert "memory: seeds 0 to 1 of 30 steps" in done.output
        assert "sqlite: seeds 0 to 1 of 30 steps" in done.output
        assert "node 1" in (tmp_path / "report.svg").read_text("utf-8")

    def test_a_seed_that_fails_fails_the_command(self) -> None:
        with broken(BREAKAGES[3]), pytest.raises(click.ClickException, match="memory 3 seed"):
            self.invoke("--simulate", "--seeds", str(FOUND_WITHIN))

    @pytest.mark.parametrize("url", ["sqlite:///x.db", "nothing:"])
    def test_what_cannot_be_simulated_on(self, url: str) -> None:
        with pytest.raises(InvalidInput):
            grounds(url)


# What it stands on ----------------------------------------------------------------------------------------------------


def test_waiting_takes_no_time() -> None:
    async def wait() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*[asyncio.sleep(seconds) for seconds in (86_400, 3_600)])
        assert await asyncio.to_thread(lambda: 1) == 1
        return asyncio.get_running_loop().time() - began

    assert run_virtually(wait()) == pytest.approx(86_400)


def test_waiting_for_nobody_is_an_error() -> None:
    with pytest.raises(NothingHappens):
        run_virtually(asyncio.Event().wait())


@pytest.mark.parametrize("synchronous", ["full", "off"])
def test_a_disk_without_power_has_what_was_synced(tmp_path: Path, synchronous: str) -> None:
    """And no more than that is sure; a database is whole all the same, unless nothing was synced."""
    path, lost = str(tmp_path / "a.db"), 0
    for seed in range(10):
        with PowerDisk() as disk:
            connection = apsw.Connection(path)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", synchronous)
            connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
            before = connection.execute("SELECT count(*) FROM t").get
            for number in range(5):
                connection.execute("INSERT INTO t VALUES (?)", (number,))
            images = disk.images(path, random.Random(seed))
            connection.close()
            disk.put_back(path, images)
            try:
                connection = apsw.Connection(path)
                lost += before + 5 - connection.execute("SELECT count(*) FROM t").get
            except apsw.Error:
                lost += 1
                disk.put_back(path, {})
            connection.close()

    assert bool(lost) == (synchronous == "off")
