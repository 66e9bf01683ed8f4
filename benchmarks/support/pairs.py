"""Small differences on a machine that does other things too: many short rounds, in each of which everybody is measured.

What disturbs a round disturbs all who are in it, so figures are compared within rounds: of the differences, and of the
ratios, there are the median and the middle half. One is measured twice, under two names: what these two differ by is
how exactly anything is known here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

AGAIN = "the same again"


class Rounds:
    """Figures of some, round by round.

    Args:
        title: of the table; with the unit of the figures.
        first: with whom the others are compared.
    """

    def __init__(self, title: str, first: str) -> None:
        self._title, self._first = title, first
        self._rounds: list[Mapping[str, float]] = []

    def add(self, figures: Mapping[str, float]) -> None:
        """One round; all have figures in it."""
        self._rounds.append(figures)

    def table(self) -> list[str]:
        """The lines of a Markdown table: medians, and by how much each is more than the first, with the middle half."""
        lines = [
            f"{self._title}, {len(self._rounds)} rounds",
            "",
            f"| | median | more than {self._first} | half of all rounds | ratio | half of all rounds |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name in self._rounds[0]:
            pairs = [(each[name], each[self._first]) for each in self._rounds]
            cells = [f"{statistics.median(this for this, _ in pairs):.2f}"]
            if name != self._first:
                cells += _spread([this - first for this, first in pairs], "+.2f")
                cells += _spread([this / first for this, first in pairs if first], ".3f")
            else:
                cells += [""] * 4
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return lines


def _spread(values: Sequence[float], form: str) -> list[str]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return [format(middle, form), f"{low:{form}} to {high:{form}}"]
