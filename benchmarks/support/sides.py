"""This checkout, and with ``--base`` another one: the same program run by each in turn, and a table of both.

A side is a folder with Legato's sources in ``src``. Both are run by the Python that runs the benchmark, so they have
the same packages; ``PYTHONPATH`` decides whose sources are imported, and the program checks that it did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

HERE = Path(__file__).resolve().parent.parent
"""The folder of the benchmarks."""
CHECKOUT = "LEGATO_BENCH_CHECKOUT"

T = TypeVar("T")


class Side(NamedTuple):
    name: str
    path: Path
    revision: str

    def start(self, program: Path, *arguments: str) -> subprocess.Popen[str]:
        """Run ``program`` with this side's sources; its standard output can be read."""
        environment = {**os.environ, "PYTHONPATH": str(self.path / "src"), CHECKOUT: str(self.path)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the other checkout is not ours to write to
        command = [sys.executable, str(program), *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def check_sources() -> None:
    """Raise unless the sources imported here are those of the side that was asked for."""
    import legato

    wanted = Path(os.environ[CHECKOUT]).resolve() / "src"
    if not Path(legato.__file__).resolve().is_relative_to(wanted):
        raise RuntimeError(f"legato was imported from {legato.__file__}, not from {wanted}")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every such benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--base", type=Path, metavar="PATH", help="another checkout, to run in turn with this one")
    made.add_argument(
        "--save", type=Path, nargs="?", const=HERE / "results", metavar="FOLDER",
        help="write the results to this folder, too (benchmarks/results)",
    )  # fmt: skip
    return made


def sides(options: argparse.Namespace) -> list[Side]:
    """The one or two sides that were asked for."""
    paths = {"this": HERE.parent}
    if options.base is not None:
        if not (options.base / "src" / "legato").is_dir():
            raise SystemExit(f"{options.base} has no src/legato, so it is no checkout of Legato.")
        paths["base"] = options.base.resolve()
    return [Side(name, path, _revision(path)) for name, path in paths.items()]


def in_turn(sides: Sequence[T], number: int) -> Sequence[T]:
    """The order in a round: who was last is first in the next one, so that nobody always comes after the other."""
    return sides[::-1] if number % 2 else sides


def _revision(path: Path) -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(path), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # Only the sources count: whoever works on a benchmark has not changed what it measures.
    return (git("log", "-1", "--format=%h", "--", "src") or "?") + ("+" if git("status", "--short", "src") else "")


class Report:
    """Prints, and keeps what was printed for the file of results."""

    def __init__(self, name: str, sides: Sequence[Side]) -> None:
        self._name = name
        self._sides = sides
        self._lines: list[str] = []
        self._table = ""
        self._rows: list[dict[str, Any]] = []
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        python = f"{platform.python_implementation()} {platform.python_version()}"
        self.line(f"{python}, {os.cpu_count()} CPUs, shared machine{load}")
        self.line("; ".join(f"{side.name}: sources of {side.revision}" for side in sides))

    def line(self, text: str = "") -> None:
        print(text, flush=True)
        self._lines.append(text)

    def head(self, title: str, *, width: int = 40, last: str = "") -> None:
        """The first lines of a table."""
        columns = "".join(f"{side.name:>14}" for side in self._sides)
        ratio = f"{'ratio':>8}" if len(self._sides) > 1 else ""
        self._table = title
        self.line(f"\n{title}\n\n{'':{width}}{columns}{ratio}{'   ' + last if last else ''}".rstrip())

    def row(
        self, label: str, values: Sequence[float | str], *, form: str = ".2f", width: int = 40, last: str = ""
    ) -> None:
        """One figure of each side, and the first by the second."""
        names = [side.name for side in self._sides]
        self._rows.append({"table": self._table, "row": label.strip(), **dict(zip(names, values, strict=True))})
        cells = "".join(f"{value if isinstance(value, str) else format(value, form):>14}" for value in values)
        ratio = ""
        if len(values) > 1:
            this, base = values[:2]
            known = not isinstance(this, str) and not isinstance(base, str) and base
            ratio = f"{this / base:8.2f}" if known else " " * 8  # type: ignore[operator]
        self.line(f"{label:<{width}}{cells}{ratio}{'   ' + last if last else ''}".rstrip())

    def save(self, folder: Path) -> None:
        """Write what was printed, and the figures for programs."""
        (folder / f"{self._name}.txt").write_text("\n".join(self._lines) + "\n")
        (folder / f"{self._name}.json").write_text(json.dumps({"rows": self._rows}, indent=1) + "\n")


def median(rounds: Sequence[Any], figure: Callable[[Any], float]) -> float:
    return statistics.median(figure(each) for each in rounds)
