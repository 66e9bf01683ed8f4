"""The benchmark of many nodes runs, and counts what comes; and what is compared in rounds is compared within them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from valkeys import valkey_program

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_nodes_at_work(tmp_path: Path) -> None:
    """Two nodes, with readers of their own agents and of each other's: each token comes once, live and from the log."""
    if shutil.which("gcc") is None:
        pytest.skip("The load client needs a C compiler; on Debian: apt install gcc libc6-dev")
    valkey_program()
    command = [sys.executable, str(BENCHMARKS / "nodes.py"), "--quick", "--seconds", "0.5", "--markdown"]
    chosen = ["--only", "Valkey, 2 nodes", "--works", "logs", "--save", str(tmp_path)]
    done = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "nodes.json").read_text())["rows"]

    assert row["faults"] == 0, done.stdout
    assert min(row["whole"], row["tail"], row["all"], row["same_50"], row["other_50"]) > 0
    assert "| logs of 100 events | Valkey, 2 nodes |" in done.stdout


def test_rounds_are_compared_within_themselves() -> None:
    """What makes a whole round slow changes nothing of a ratio."""
    from support.pairs import Rounds  # type: ignore[import-not-found]

    rounds = Rounds("us", "first")
    for slow in (1.0, 7.0, 2.0, 5.0):
        rounds.add({"first": 10 * slow, "other": 11 * slow})
    *_, first, other = rounds.table()

    assert first == "| first | 35.00 |  |  |  |  |"
    assert other == "| other | 38.50 | +3.50 | +1.25 to +6.50 | 1.100 | 1.100 to 1.100 |"
