"""A long answer on the chat page, in three engines: the longest time for which it holds the page, after a reload.

The page beats by timers, and the longest time between two beats is told, with how many were longer than 0.2 s. Measure
on a quiet machine, with two cores or more: the browser draws without a graphics card, and the server makes the HTML.

    python benchmarks/long_answer.py [--size 1000000] [--engines chromium firefox webkit] [--kinds prose list ...]
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
WORDS = "Some words of an answer, as they come: nothing in them is a marker. "
PROSE = "## A part\\n\\n" + "Some **words** with `code`, and more.\\n\\n" * 12 + "- an item\\n" * 20
ONES = {
    "prose": ("", PROSE + "\\n```python\\nx = 1\\n```\\n\\n| a | b |\\n|--|--|\\n| 1 | 2 |\\n\\n"),
    "list": ("", "- an item of **many** with `code` and words\\n"),
    "table": ("| a | b | c |\\n|--|:-:|--:|\\n", "| a cell | some **words** | `code` |\\n"),
    "code": ("```python\\n", "value = function('text', 1)  # a note\\n"),
    "paragraph": ("", WORDS),
    "word": ("", "a"),
}

async def agent(turn):
    kind, size = turn.message.text.split()
    begin, one = ONES[kind]
    yield begin + one * (int(size) // len(one))
"""
KINDS = ["prose", "list", "table", "code", "paragraph", "word"]
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


def measure(engine: engines.Engine, url: str, kind: str, size: int) -> str:
    """What one answer does to the page."""
    with httpx2.Client(base_url=url, timeout=60) as http:
        session = http.post("/api/sessions", json={"title": kind}).json()["id"]
        http.post(f"/api/sessions/{session}/messages", json={"text": f"{kind} {size}"}).raise_for_status()
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
                            print(f"{name:9} {kind:10} {measure(engine, server.url, kind, options.size)}", flush=True)
                except pytest.skip.Exception as missing:
                    print(f"{name:9} {missing}")


if __name__ == "__main__":
    main()
