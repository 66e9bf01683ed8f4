"""What was done to whom, when, and who saw what of it: as JSON, as text, and as a picture that needs no other program.

A chart has *lanes*: a node, the database, a reader. In a lane lie *spans* (it was up, paused, cut off), *marks* (it was
killed here) and *levels* (how far a reader, or the log, had come). Times are seconds from the chart's beginning.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ..errors import InvalidInput, LegatoError

COLUMNS = 96
"""Characters of a lane as text."""
MARKS = 400
"""Marks that a text lists at most; a picture and JSON have all."""
WIDTH, LABEL, ROW, HEAD = 1200, 150, 34, 30
"""Of the picture, in its units: all of it, the names, a lane, the axis."""
TICKS = 10
"""On the axis, at most."""
ENTRY = 86
"""Of the legend, what one kind takes."""

SPANS = {
    "up": "#4c9f70",
    "down": "#b9bec7",
    "paused": "#e0a030",
    "cut": "#8d6cc9",
    "slow": "#5b8fd6",
    "reading": "#9ac7e0",
    "lost": "#a0527a",
    "unheard": "#c9a227",
}
"""Colours of kinds of spans; others are grey."""
MARKED = {"kill": "#c8303c", "power": "#7a0d18", "stop": "#c2185b", "drain": "#c2185b", "pause": "#b87800",
          "cut": "#6b46b8", "slow": "#2f5fb3", "unheard": "#8a6d00", "clock": "#00838a", "lost": "#a0527a",
          "start": "#2a7a4b", "resume": "#2a7a4b", "heal": "#2a7a4b", "seen": "#7f8794", "end": "#2f5fb3",
          "fault": "#e0002a"}  # fmt: skip
"""Colours of kinds of marks; others are dark."""
SIGNS = {"kill": "X", "power": "Z", "stop": "S", "drain": "S", "pause": "P", "cut": "/", "slow": "L", "unheard": "U",
         "clock": "@", "lost": "?", "fault": "!", "end": "#", "start": "^", "resume": "^", "heal": "^"}  # fmt: skip
"""Kinds of marks in a text; others are ``*``."""
FILLS = {"up": "=", "down": " ", "paused": "-", "cut": "~", "slow": ":", "lost": "?", "unheard": ","}
"""Kinds of spans in a text; others are ``.``."""


class ChartSpan(msgspec.Struct, frozen=True):
    """A lane was so from ``start`` to ``end``, in seconds."""

    lane: str
    start: float
    end: float
    kind: str
    text: str = ""


class ChartMark(msgspec.Struct, frozen=True):
    """Something happened to a lane, or in it."""

    lane: str
    at: float
    kind: str
    text: str = ""


class ChartLevel(msgspec.Struct, frozen=True):
    """A lane had come so far, such as to an offset. Levels of one ``scale`` are drawn to one height."""

    lane: str
    at: float
    value: float
    scale: str = ""


class Chart(msgspec.Struct):
    """See the module's head.

    Attributes:
        title: what was done, in a line.
        lanes: their names, from above; a span, mark or level adds its lane where it is missing.
        figures: what was measured, by name.
        faults: what must not be. Empty: all held.
    """

    title: str
    lanes: list[str] = []
    spans: list[ChartSpan] = []
    marks: list[ChartMark] = []
    levels: list[ChartLevel] = []
    figures: dict[str, str | int | float] = {}
    faults: list[str] = []

    def lane(self, name: str) -> None:
        """Have a lane of this name. Idempotent."""
        if name not in self.lanes:
            self.lanes.append(name)

    def span(self, lane: str, start: float, end: float, kind: str, text: str = "") -> None:
        """``lane`` was ``kind`` from ``start`` to ``end``."""
        self.lane(lane)
        self.spans.append(ChartSpan(lane, start, max(start, end), kind, text))

    def mark(self, lane: str, at: float, kind: str, text: str = "") -> None:
        """``kind`` happened in ``lane``."""
        self.lane(lane)
        self.marks.append(ChartMark(lane, at, kind, text))

    def level(self, lane: str, at: float, value: float, scale: str = "") -> None:
        """``lane`` had come to ``value``."""
        self.lane(lane)
        self.levels.append(ChartLevel(lane, at, value, scale))

    def _longest_first(self) -> list[ChartSpan]:
        """The spans, those that were within another after it."""
        return sorted(self.spans, key=lambda span: span.start - span.end)

    @property
    def end(self) -> float:
        """When the last of it was, in seconds; at least a moment."""
        ends = [span.end for span in self.spans], [mark.at for mark in self.marks], [level.at for level in self.levels]
        return max([0.001, *(at for each in ends for at in each)])

    def lines(self) -> list[str]:
        """All of it as text: the figures, a row for each lane, the marks in order, and what must not be."""
        width = max([4, *map(len, self.lanes)])
        used = {mark.kind for mark in self.marks} & SIGNS.keys()
        legend = ", ".join(f"{SIGNS[kind]} {kind}" for kind in sorted(used))
        filled = {span.kind for span in self.spans} & FILLS.keys()
        fills = ", ".join(f"{FILLS[kind]} {kind}" for kind in sorted(filled) if FILLS[kind] != " ")
        marks = sorted((mark for mark in self.marks if mark.kind != "seen"), key=lambda mark: mark.at)
        return [
            self.title,
            *(f"  {name}: {value:g}" if isinstance(value, float) else f"  {name}: {value}" for name, value in
              self.figures.items()),
            "",
            *(f"{lane:<{width}} |{self._row(lane)}|" for lane in self.lanes),
            f"{'':<{width}} 0{self.end:>{COLUMNS}.3f} s",
            *(f"{'':<{width}} {each}" for each in (fills, legend) if each),
            "",
            *(f"{mark.at:10.3f} s  {mark.lane:<{width}}  {_what(mark)}" for mark in marks[:MARKS]),
            *([f"... and {len(marks) - MARKS} more"] if len(marks) > MARKS else []),
            *([""] if marks else []),
            *(f"MUST NOT BE: {fault}" for fault in self.faults),
        ]  # fmt: skip

    def _row(self, lane: str) -> str:
        cells = [" "] * COLUMNS
        scale = (COLUMNS - 1) / self.end
        for span in self._longest_first():
            if span.lane == lane:
                for column in range(int(span.start * scale), int(span.end * scale) + 1):
                    cells[column] = FILLS.get(span.kind, ".")
        for level in self.levels:
            if level.lane == lane and cells[int(level.at * scale)] == " ":
                cells[int(level.at * scale)] = "."
        for mark in self.marks:
            if mark.lane == lane:
                cells[int(mark.at * scale)] = SIGNS.get(mark.kind, "*" if mark.kind != "seen" else ".")
        return "".join(cells)

    def svg(self) -> str:
        """The picture. It names nothing outside of itself, and is dark where the reader's system is."""
        right = WIDTH - 20
        place = _scale(LABEL, right, self.end)
        legend = [(kind, SPANS.get(kind, "#9aa0a8"), False) for kind in _kinds(self.spans)]
        legend += [(kind, MARKED.get(kind, "#30343a"), True) for kind in _kinds(self.marks)]
        foot, columns = HEAD + ROW * len(self.lanes) + 4, (right - LABEL) // ENTRY
        height = foot + 34 + 20 * -(-len(legend) // columns)
        tops = {lane: HEAD + ROW * number for number, lane in enumerate(self.lanes)}
        highest = {level.scale: 1.0 for level in self.levels}
        for level in self.levels:
            highest[level.scale] = max(highest[level.scale], level.value)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="100%" role="img" '
            f'font-family="ui-sans-serif, system-ui, sans-serif" font-size="12">',
            f"<title>{_text(self.title)}</title>",
            "<style>.p{fill:#fff}.t{fill:#22262d}.g{stroke:#d8dbe0}.l{stroke:#1d4f91}"
            "@media(prefers-color-scheme:dark){.p{fill:#17191d}.t{fill:#e6e8ec}.g{stroke:#3a3f47}.l{stroke:#8fbcff}}"
            "</style>",
            f'<rect class="p" width="{WIDTH}" height="{height}"/>',
        ]
        for at in _ticks(self.end):
            parts += [
                f'<line class="g" x1="{place(at)}" x2="{place(at)}" y1="{HEAD - 6}" y2="{foot + 2}"/>',
                f'<text class="t" x="{place(at)}" y="{HEAD - 12}" text-anchor="middle">{at:g} s</text>',
            ]
        for lane, top in tops.items():
            parts.append(f'<text class="t" x="8" y="{top + 20}">{_text(lane[:22])}</text>')
            parts.append(f'<line class="g" x1="{LABEL}" x2="{right}" y1="{top + ROW - 3}" y2="{top + ROW - 3}"/>')
        for span in self._longest_first():
            width = max(place(span.end) - place(span.start), 1.0)
            hint = _hint(span.lane, span.kind, span.text, span.start, span.end)
            colour = SPANS.get(span.kind, "#9aa0a8")
            parts.append(_bar(place(span.start), tops[span.lane] + 4, width, ROW - 12, colour, hint))
        for lane in self.lanes:
            levels = sorted((level for level in self.levels if level.lane == lane), key=lambda level: level.at)
            if levels:
                path = _steps(levels, tops[lane], place, highest)
                parts.append(f'<path class="l" fill="none" stroke-width="1.4" d="{path}"/>')
        for mark in self.marks:
            hint, colour = _hint(mark.lane, mark.kind, mark.text, mark.at), MARKED.get(mark.kind, "#30343a")
            parts.append(_shape(mark.kind, place(mark.at), tops[mark.lane], colour, hint))
        for number, (kind, colour, marked) in enumerate(legend):
            x, y = LABEL + ENTRY * (number % columns), foot + 14 + 20 * (number // columns)
            shape = _shape(kind, x + 5.0, y - 10.0, colour, "") if marked else _bar(x, y, 10, 10, colour, "")
            parts += [shape, f'<text class="t" x="{x + 15}" y="{y + 9}">{_text(kind)}</text>']
        verdict = f"{len(self.faults)} thing(s) must not be: {self.faults[0][:150]}" if self.faults else "all held"
        parts.append(f'<text class="t" x="8" y="{height - 8}">{_text(f"{self.title}: {verdict}"[:180])}</text>')
        return "\n".join([*parts, "</svg>", ""])

    def page(self) -> str:
        """The picture and the text, as one page that loads nothing."""
        listed = _text("\n".join(self.lines()))
        return (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{_text(self.title)}</title>'
            "<style>:root{color-scheme:light dark}body{font:14px system-ui,sans-serif;margin:1.5rem}"
            f"pre{{overflow:auto}}</style>\n<h1>{_text(self.title)}</h1>\n{self.svg()}<pre>{listed}</pre>\n</html>\n"
        )


def _what(mark: ChartMark) -> str:
    return mark.kind if mark.text in ("", mark.kind) else f"{mark.kind} {mark.text}"


def _kinds(things: Iterable[ChartSpan | ChartMark]) -> dict[str, None]:
    return dict.fromkeys(each.kind for each in things)


def _scale(left: float, right: float, end: float) -> Callable[[float], float]:
    return lambda at: round(left + (right - left) * min(max(at / end, 0.0), 1.0), 1)


def _text(text: str) -> str:
    """``text`` for XML, which has no control characters."""
    return html.escape("".join(each if each >= " " or each == "\n" else "\ufffd" for each in text))


def _hint(lane: str, kind: str, text: str, start: float, end: float | None = None) -> str:
    until = "" if end is None else f" to {end:.3f}"
    return f"<title>{_text(f'{lane}, {start:.3f}{until} s, {kind}: {text}')}</title>"


def _steps(levels: list[ChartLevel], top: float, place: Callable[[float], float], highest: dict[str, float]) -> str:
    """The path of a line that goes up and down in steps."""
    path: list[str] = []
    for level in levels:
        y = round(top + ROW - 6 - (ROW - 12) * level.value / highest[level.scale], 1)
        path.append(f"H{place(level.at)}V{y}" if path else f"M{place(level.at)} {y}")
    return "".join(path)


def _bar(x: float, y: float, width: float, height: float, colour: str, hint: str) -> str:
    """A span, or what stands for its kind."""
    return (
        f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" rx="2" fill="{colour}" fill-opacity="0.6">'
        f"{hint}</rect>"
    )


def _shape(kind: str, x: float, top: float, colour: str, hint: str) -> str:
    """A mark, in a lane that begins at ``top``."""
    if kind == "seen":
        return f'<circle cx="{x}" cy="{top + 15}" r="1.6" fill="{colour}">{hint}</circle>'
    if kind in ("kill", "power", "fault"):
        across = f"M{x - 5} {top + 10}l10 10m0 -10l-10 10"
        return f'<path d="{across}" stroke="{colour}" stroke-width="2.5" fill="none">{hint}</path>'
    return f'<path d="M{x} {top + 8}l5 7l-5 7l-5 -7z" fill="{colour}">{hint}</path>'


def _ticks(end: float) -> list[float]:
    """Round numbers from 0 to ``end``, ``TICKS`` and one at most."""
    whole = 10.0 ** math.floor(math.log10(end / TICKS))
    step = next(whole * share for share in (1, 2, 5, 10) if end / (whole * share) <= TICKS)
    return [number * step for number in range(int(end / step) + 1)]


FORMS: dict[str, Callable[[Chart], str]] = {
    ".json": lambda chart: msgspec.json.format(msgspec.json.encode(chart)).decode(),
    ".txt": lambda chart: "\n".join([*chart.lines(), ""]),
    ".svg": Chart.svg,
    ".html": Chart.page,
}
"""What a file is, by the end of its name."""


class ReportFailed(LegatoError):
    """A report could not be written."""

    code = "report_failed"


def check_name(path: Path, forms: Iterable[str] = FORMS) -> None:
    """See that a report can be written to a file of this name, before there is one.

    Raises:
        InvalidInput: it ends with none of ``forms``, or there is no folder for it in which one may write.
    """
    if path.suffix.lower() not in forms:
        *others, last = forms
        listed = f"{', '.join(others)} or {last}" if others else last
        raise InvalidInput(f"A report is a {listed} file, got {path.name!r}.")
    if not path.parent.is_dir():
        raise InvalidInput(f"There is no folder {str(path.parent)!r} for the report.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidInput(f"The report cannot be written to {str(path)!r}.")


def write_chart(chart: Chart, path: Path) -> None:
    """Write a chart to a file, as what the end of its name says.

    Raises:
        InvalidInput: see ``check_name``.
        ReportFailed: it cannot be written.
    """
    check_name(path)
    write_report(path, FORMS[path.suffix.lower()](chart).encode("utf-8", "replace"))


def write_report(path: Path, report: bytes) -> None:
    """Write a report, whatever its form.

    Raises:
        ReportFailed: it cannot be written.
    """
    try:
        path.write_bytes(report)
    except OSError as exc:
        raise ReportFailed(f"The report cannot be written to {str(path)!r}: {exc.strerror}.") from exc
