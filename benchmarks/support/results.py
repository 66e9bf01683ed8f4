"""Rounds in turn, tables, plots, and files of results, for benchmarks with contenders."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from .sides import in_turn, sides
from .sides import parser as parser_of_sides

PACKAGES = ["uvicorn", "uvloop", "httptools", "starlette", "apsw", "msgspec", "fastapi", "sse-starlette", "redis"]
PROGRAMS = {"nginx": ["nginx", "-v"], "redis-server": ["redis-server", "--version"]}
THIS = "Legato"
"""Whose ratio to the others is shown."""
COLOURS = {
    "Legato": "#2f81f7",
    "Legato, base": "#2f81f7",
    "Legato, memory": "#56b4e9",
    "Legato, memory, base": "#56b4e9",
    "raw ASGI": "#d29922",
    "sse-starlette": "#db6d28",
    "Redis Streams": "#da3633",
    "nchan": "#3fb950",
}
INK = "#808890"
"""Of text and lines in plots: readable on white and on black."""


class Column(NamedTuple):
    """A figure of a table: its key, what stands above it, and its form; ``most`` if the worst round counts."""

    key: str
    title: str
    form: str = ".1f"
    most: bool = False

    @property
    def width(self) -> int:
        """Of it, in text."""
        return max(14, len(self.title) + 2)

    def of(self, row: Mapping[str, Any]) -> str:
        """The figure of a row; "" if it has none."""
        return format(row[self.key], self.form) if self.key in row else ""


TOKENS = [
    Column("us", "CPU us/token"),
    Column("us_event", "us/event"),
    Column("p50", "p50 ms", ".2f"),
    Column("p99", "p99 ms", ".1f"),
    Column("kept", "rate kept", ".2f"),
    Column("bytes", "bytes/token", ".0f"),
    Column("faults", "faults", ".0f", most=True),
]
"""The columns of ``sseload.per_token``."""

Figures = dict[str, float]


class _Contender(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_Contender)


def parser(description: str | None, *, rounds: int = 3, seconds: float = 4.0) -> argparse.ArgumentParser:
    """The options of every benchmark with contenders."""
    made = parser_of_sides(description)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--seconds", type=float, default=seconds, help="of each measurement")
    made.add_argument("--only", action="append", metavar="WORD", help="contenders with this in their names; repeatable")
    made.add_argument("--works", action="append", metavar="WORD", help="works with this in their names; repeatable")
    made.add_argument("--quick", action="store_true", help="little of everything")
    return made


def machine() -> dict[str, str]:
    """What the figures depend on, and nothing that names the machine."""
    cpu = "unknown processor"
    memory = 0
    with open("/proc/cpuinfo") as lines:
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    with open("/proc/meminfo") as lines:
        memory = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    for name, command in PROGRAMS.items():
        if shutil.which(name):
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            words = (said.stdout + said.stderr).replace("/", " ").replace("v=", "").split()
            versions.append(f"{name} {next(word for word in words if word[0].isdigit())}")
    return {
        "machine": f"{os.cpu_count()} CPUs ({cpu}), {memory / 1e6:.0f} GB, shared; load {os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.release()}, {platform.python_implementation()} "
        f"{platform.python_version()}",
        "versions": ", ".join(versions),
        "date": time.strftime("%Y-%m-%d"),
    }


class Results:
    """Figures of works and contenders, round by round.

    Args:
        name: of the benchmark; its files are called so.
        options: as ``parser`` made them.
        columns: what is shown.
        ratio: the figure by which contenders are compared with this revision; "" for none.
    """

    def __init__(self, name: str, options: argparse.Namespace, columns: Sequence[Column], *, ratio: str = "us") -> None:
        self._name = name
        self._options = options
        self._columns = columns
        self._ratio = ratio
        self._about = machine()
        self._about["revisions"] = "; ".join(f"{side.name}: {side.revision}" for side in sides(options))
        self._lines: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._tables: dict[str, Sequence[Column]] = {}
        for line in self._about.values():
            self._line(line)

    def run(
        self,
        work: str,
        who: Sequence[Named],
        measure: Callable[[Named], Figures],
        *,
        columns: Sequence[Column] = (),
        beside: Mapping[str, str] | None = None,
    ) -> None:
        """Measure everybody in turn, round by round, and show the table of ``work``.

        Args:
            work: what is done.
            who: who is measured.
            measure: measures one of them, once.
            columns: others than those of all works.
            beside: by contender, by whose figure its own is divided, instead of this revision's by each other one's.
        """
        if self._options.works and not any(word in work for word in self._options.works):
            return
        self._tables[work] = columns or self._columns
        rounds: dict[str, list[Figures]] = {each.name: [] for each in who}
        for number in range(self._options.rounds):
            for each in in_turn(who, number):
                rounds[each.name].append(measure(each))
        for name, found in rounds.items():
            summary = self._summary(self._tables[work], found)
            pair = (rounds.get(THIS), found) if beside is None else (found, rounds.get(beside.get(name, "")))
            if self._ratio in summary and pair[0] and pair[1]:
                both = zip(*pair, strict=True)
                ratios = [one[self._ratio] / other[self._ratio] for one, other in both if other[self._ratio]]
                summary["ratio"] = statistics.median(ratios) if ratios else None
            self._rows.append({"work": work, "contender": name, **summary})
        self._show(work, "Legato by it" if beside is None else "by its peer")

    def _summary(self, columns: Sequence[Column], rounds: list[Figures]) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        for column in columns:
            # What cannot be measured of one, such as another node where there is one, it has no figure for.
            values = [each[column.key] for each in rounds if column.key in each]
            if values:
                summary[column.key] = max(values) if column.most else statistics.median(values)
        return summary

    def _show(self, work: str, ratio: str) -> None:
        rows, columns = [row for row in self._rows if row["work"] == work], self._tables[work]
        self._line(f"\n{work}, median of {self._options.rounds}\n")
        last = f"{ratio:>14}" if any("ratio" in row for row in rows) else ""
        self._line(f"{'':<32}" + "".join(f"{column.title:>{column.width}}" for column in columns) + last)
        for row in rows:
            cells = "".join(f"{column.of(row):>{column.width}}" for column in columns)
            last = f"{row['ratio']:>14.2f}" if row.get("ratio") is not None else ""
            self._line(f"{row['contender']:<32}{cells}{last}")

    def _line(self, text: str) -> None:
        print(text, flush=True)
        self._lines.append(text)

    @property
    def found(self) -> dict[str, Any]:
        """What the file for programs says."""
        tables = {work: [column._asdict() for column in columns] for work, columns in self._tables.items()}
        return {**self._about, "rows": self._rows, "tables": tables}

    def save(self, plot: str = "", unit: str = "") -> None:
        """Write the tables, the figures, and a plot of the figure ``plot``, unless nothing is to be saved."""
        folder = self._options.save
        if folder is None:
            return
        (folder / f"{self._name}.txt").write_text("\n".join(self._lines) + "\n")
        (folder / f"{self._name}.json").write_text(json.dumps(self.found, indent=1) + "\n")
        if plot:
            draw(folder / f"{self._name}.svg", self._rows, plot, unit)


def draw(file: Path, rows: list[dict[str, Any]], key: str, unit: str) -> None:
    """A panel for each work, a bar for each contender, and its figure beside it."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "legato", "svg.fonttype": "none", "font.size": 10})
    mpl.rcParams.update(dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color"], INK))
    from matplotlib import pyplot

    works = list(dict.fromkeys(row["work"] for row in rows))
    panels = {work: [row for row in rows if row["work"] == work] for work in works}
    heights = [len(panel) + 1.4 for panel in panels.values()]
    figure, axes = pyplot.subplots(
        len(works), figsize=(8, 0.26 * sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axis, (work, panel) in zip(axes[:, 0], panels.items(), strict=True):
        names = [row["contender"] for row in panel]
        values = [row[key] for row in panel]
        # A bar that would make the others short ends at the edge; its figure is beside it all the same.
        edge = min(max(values), 4 * statistics.median(values)) or 1
        bars = axis.barh(
            names, [min(value, edge) for value in values], color=[COLOURS.get(name, INK) for name in names], height=0.72
        )
        for bar, name in zip(bars, names, strict=True):
            bar.set_alpha(0.45 if name.endswith("base") else 1)
        axis.bar_label(bars, [f"{value:.1f}" if value <= edge else f"… {value:.1f}" for value in values], padding=4)
        axis.set_title(f"{work}: {unit}", loc="left", fontsize=10)
        axis.invert_yaxis()
        axis.set_xlim(0, edge * 1.12)
        axis.xaxis.set_visible(False)
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.savefig(file, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
