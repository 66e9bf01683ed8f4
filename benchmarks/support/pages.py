"""The tables of the README and of ``docs/performance.md``, and the README's plot, out of the files of results.

A page says where a table belongs, and what is between these two lines is replaced:

    <!-- bench: NAME -->
    <!-- /bench -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .results import THIS, Column, draw
from .sides import HERE

RESULTS = HERE / "results"
PAGES = [HERE.parent / "README.md", *(HERE.parent / "docs" / f"{name}.md" for name in ("performance", "many-nodes"))]
PLOT = HERE.parent / "docs" / "images" / "how-fast.svg"
MARKED = re.compile(r"(<!-- bench: (\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
IN_SHORT = [("fan_out", "1,000 readers x 20/s"), ("chat", "400 sessions x 30/s")]
"""What the README shows."""

Row = dict[str, Any]


def results(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def about(*keys: str) -> str:
    """The machine of the results, and what else is named."""
    return machine(results("fan_out"), *keys)


def machine(found: dict[str, Any], *keys: str) -> str:
    """That of these results, and what else is named."""
    text = "; ".join(found[key] for key in ("machine", "system", *keys, "date", "revisions")) + ".\n"
    return re.sub(r" @ [\d.]+GHz", "", text)


def across(name: str, cell: Callable[[Row], str]) -> str:
    """A line for each work, a column for each contender."""
    rows: list[Row] = results(name)["rows"]
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    cells = {(row["work"], row["contender"]): cell(row) for row in rows}
    lines = [
        [work, *(cells.get((work, contender), "") for contender in contenders)]
        for work in dict.fromkeys(row["work"] for row in rows)
    ]
    return table(["", *contenders], lines)


def down(found: dict[str, Any]) -> str:
    """A line for each work and contender, a column for each figure; a table for all works with the same figures."""
    made: dict[tuple[str, ...], list[list[str]]] = {}
    for row in found["rows"]:
        columns = [Column(**column) for column in found["tables"][row["work"]]]
        head = (*(column.title for column in columns), "by its peer")
        last = f"{row['ratio']:.2f}" if row.get("ratio") is not None else ""
        made.setdefault(head, []).append([row["work"], row["contender"], *(each.of(row) for each in columns), last])
    tables = []
    for head, rows in made.items():
        used = [n for n, title in enumerate(("", "", *head)) if title == "" or any(row[n] for row in rows)]
        names = [("", "", *head)[n] for n in used]
        tables.append(table(names, [[row[n] for n in used] for row in rows]))
    return "\n".join(tables)


def figure(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def carried(row: Row) -> str:
    """CPU, both latencies, and the share of the rate that was kept, if it was not."""
    kept = f", rate {row['kept']:.2f}" if row["kept"] < 0.97 else ""
    return f"**{row['us']:.1f}** ({figure(row['p50'])} / {figure(row['p99'])}{kept})"


def ratio(row: Row) -> str:
    return f"{row['ratio']:.2f}" if row.get("ratio") and row["contender"] != THIS else ""


def overload(row: Row) -> str:
    lost = f", **{row['missing']:,.0f} lost**" if row["missing"] else ""
    refused = f", {row['refused']:.0f} refused" if row["refused"] else ""
    post = f"POST {row['post_p50']:.0f} / {row['post_p99']:.0f}{refused}"
    return f"**{row['us']:.1f}**, {row['late']:.1f} s late; {post}{lost}"


def first_word() -> str:
    """p50 and p99 at the client, of each dialect, alone and beside other sessions."""
    rows = [row for row in results("first_word")["rows"] if row["row"].startswith("at the client after")]
    sides = [side for side in ("this", "base") if side in rows[0]]
    lines = []
    for name in dict.fromkeys(row["table"] for row in rows):
        p50, p99 = (row for row in rows if row["table"] == name)
        lines.append([name, *(f"{p50[side]:.1f} / {p99[side]:.1f}" for side in sides)])
    return table(["p50 / p99 ms", *sides], lines)


def in_short() -> str:
    """The README's: a few works, a line for each contender."""
    rows = []
    for name, work in IN_SHORT:
        found = [row for row in results(name)["rows"] if row["work"] == work]
        this = next(row for row in found if row["contender"] == THIS)
        for row in found:
            first = f"**{work}**" if row is this else ""
            each = [f"{row['us']:.1f}", f"{row['p50']:.1f}", f"{row['p99']:.1f}", f"{row['kept']:.2f}"]
            rows.append([first, row["contender"], *each])
    head = ["", "", "CPU µs per token and reader", "p50 ms", "p99 ms", "rate kept"]
    return table(head, rows) + f"\n{about()}"


TABLES: dict[str, Callable[[], str]] = {
    "in_short": in_short,
    "machine": lambda: about("versions"),
    "fan_out": lambda: across("fan_out", carried),
    "chat": lambda: across("chat", carried),
    "fan_out_ratios": lambda: across("fan_out", ratio),
    "chat_ratios": lambda: across("chat", ratio),
    "written": lambda: across("chat", lambda row: figure(row["written"])),
    "overload": lambda: across("overload", overload),
    "first_word": first_word,
    "nodes": lambda: f"{down(found := results('nodes'))}\n{machine(found)}",
    "memory": lambda: across("memory", lambda row: figure(row["kb"])),
    "catch_up": lambda: across("catch_up", lambda row: f"{figure(row['cpu_ms'])} ms, {figure(row['kb'])} KB"),
    "stalled": lambda: across(
        "stalled", lambda row: f"{figure(row['p50'])} / {figure(row['p99'])}, {row['kb']:.0f} KB"
    ),
}


def write_pages() -> None:
    """Fill all marked places, and draw the plot."""
    for page in PAGES:
        text = page.read_text()
        page.write_text(MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text))
    rows = [row for name, work in IN_SHORT for row in results(name)["rows"] if row["work"] == work]
    draw(PLOT, rows, "us", "CPU µs of the server for each token and reader")
