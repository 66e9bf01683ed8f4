"""A long answer on the chat page, in three engines: the longest time for which it holds the page, after a reload, or
live.

The page beats by timers, and the longest time between two beats is told, with how many were longer than 0.2 s. Measure
on a quiet machine, with two cores or more: the browser draws without a graphics card, and the server makes the HTML.

    python benchmarks/long_answer.py [--live] [--size 1000000] [--engines chromium firefox webkit] [--kinds list ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests")]

import engines  # noqa: E402
from browser import serving  # noqa: E402

AGENT = """
import asyncio

WORDS = "Some words of an answer, as they come: nothing in them is a marker. "
PROSE = "## A part\\n\\n" + "Some **words** with `code`, and more.\\n\\n" * 12 + "- an item\\n" * 20
ONES = {
    "prose": ("", PROSE + "\\n```python\\nx = 1\\n```\\n\\n| a | b |\\n|--|--|\\n| 1 | 2 |\\n\\n"),
    "list": ("", "- an item of **many** with `code` and words\\n"),
    "table": ("| a | b | c |\\n|--|:-:|--:|\\n", "| a cell | some **words** | `code` |\\n"),
    "code": ("```python\\n", "value = function('text', 1)  # a note\\n"),
    "paragraph": ("", WORDS),
    "word": ("", "a"),
    "quote": ("", "> Some **words** of `others`.\\n>\\n"),
    "nested": ("", "- an item\\n" + "  1. and one of **many** in it\\n" * 20),
    "formulas": ("", "The formula $x_1^2 + \\\\frac{a}{b}$, and what it says.\\n\\n"),
    "formula table": ("| a | b |\\n|---|---|\\n", "| a cell | $x_1^2 + \\\\frac{a}{b}$ |\\n"),
    "chinese": ("", "\\u8fd9\\u662f\\u4e00\\u4e2a\\u5f88\\u957f\\u7684\\u56de\\u7b54\\uff0c" * 40 + "\\n\\n"),
    "arabic": ("", "\\u0645\\u0631\\u062d\\u0628\\u0627 \\u0628\\u0643\\u0645 \\u0641\\u064a " * 40 + "\\n\\n"),
    "emoji": ("", "\\U0001f600\\U0001f44d\\U0001f3fd " * 40 + "\\n\\n"),
}

async def agent(turn):
    kind, size, piece = turn.message.text.split(",")
    begin, one = ONES[kind]
    text = begin + one * (int(size) // len(one))
    for at in range(0, len(text), int(piece)):
        yield text[at : at + int(piece)]
        await asyncio.sleep(0.01)
"""
KINDS = ["prose", "list", "table", "code", "paragraph", "word", "quote", "nested"]
KINDS += ["formulas", "formula table", "chinese", "arabic", "emoji"]
PIECE = 4_000
"""Characters of a piece of an answer that is watched, of which there are up to a hundred in a second."""
BEAT = """
window.gaps = [];
let last = performance.now();
const beat = () => {
  const now = performance.now();
  window.gaps.push(now - last);
  last = now;
  setTimeout(beat);
};
beat();
"""
INSIDE = "const inside = document.querySelector('legato-chat').shadowRoot;"
ENDED = (
    "return inside.querySelector('.turn time') !== null && inside.querySelector('.prose[aria-busy=false]') !== null;"
)
LONG = 200.0
"""Milliseconds."""
PATIENCE = 120.0


def measure(engine: engines.Engine, url: str, kind: str, size: int, live: bool) -> str:
    """What one answer does to the page."""
    with httpx2.Client(base_url=url, timeout=60) as http:
        session = http.post("/api/sessions", json={"title": kind}).json()["id"]
        message = {"text": f"{kind},{size},{PIECE if live else size}"}
        if live:
            engine.open(f"{url}/?session={session}")
            time.sleep(1)
            engine.run(f"{BEAT} document.querySelector('legato-chat').send({message['text']!r});")
        else:
            http.post(f"/api/sessions/{session}/messages", json=message).raise_for_status()
            while http.get(f"/api/sessions/{session}").json()["running"]:
                time.sleep(0.05)
            engine.open(f"{url}/")
            time.sleep(1)
            engine.run(f"{BEAT} document.querySelector('legato-chat').session = {session!r};")
    begun = time.monotonic()
    while not engine.run(INSIDE + ENDED):
        if time.monotonic() - begun > PATIENCE:
            return "not shown in time"
        time.sleep(0.5)
    time.sleep(1)
    gaps = sorted(engine.run("return window.gaps;"))
    return f"{gaps[-1]:5.0f} ms, {sum(gap > LONG for gap in gaps):3} over {LONG:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", action="store_true", help="watch the answer as it comes")
    parser.add_argument("--size", type=int, default=1_000_000, help="characters")
    parser.add_argument("--engines", nargs="+", default=["chromium", "firefox", "webkit"])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "spoken.py"
        target.write_text(AGENT)
        with serving(Path(folder), target=target) as server:
            for name in options.engines:
                try:
                    with getattr(engines, name)() as engine:
                        for kind in options.kinds:
                            print(
                                f"{name:9} {kind:14} {measure(engine, server.url, kind, options.size, options.live)}",
                                flush=True,
                            )
                except pytest.skip.Exception as missing:
                    print(f"{name:9} {missing}")


if __name__ == "__main__":
    main()
