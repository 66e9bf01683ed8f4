"""Makes the faces for threads from those for asyncio: each ``sync.py`` from the ``aio.py`` beside it.

    python tools/faces.py           writes them
    python tools/faces.py --check   says which are not what this would write

What differs by more than its name stands in a module for each world (``client/tasks.py``, ``client/threads.py``), so
that what is left is renaming, and some words of docstrings.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FACES = [ROOT / "src" / "legato" / folder / "aio.py" for folder in ("http", "client", "provider")]

HEAD = "# Made from aio.py by tools/faces.py. Change that one, and run: make faces\n"

# One type within brackets, which may have brackets of its own.
_INNER = r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]"

# In this order: a pattern, and what takes its place.
CODE = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\ba(close|read)\b", r"\1"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (rf"\b(?:Awaitable|Coro|Opening){_INNER}", r"\1"),
    (r', "Opening"\]', "]"),
    (r"\bhttp\.aio\b", "http.sync"),
    (r"\.tasks\b", ".threads"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bimport asyncio\b", "import time"),
    (r"\b(_?)Async(?=[A-Z])", r"\1"),
]

WORDS = [
    ("Requests on asyncio", "Requests with threads"),
    ("The SDK on asyncio", "The SDK with threads"),
    ("Models on asyncio", "Models for programs with threads"),
    (" on asyncio;", ", for programs with threads;"),
    ("``sync`` is its twin", "``aio`` is its twin"),
    ("Tasks may share", "Threads may share"),
    ("an async context manager and iterator", "a context manager and an iterator"),
    ("an async context manager and iterable", "a context manager and an iterable"),
    ("an async iterator of", "an iterator of"),
    ("\n\n        Nothing is sent before it is awaited, entered or iterated over.", ""),
    (
        """Cancelling a wait for the next event (``asyncio.timeout``, ``wait_for``) loses
    nothing: the next one goes on behind the last event.""",
        "``close()`` from another thread takes effect with the next event or heartbeat.",
    ),
]


def made(source: Path) -> str:
    """The text of the face that is made from this one."""
    text = source.read_text("utf-8")
    for words, others in WORDS:
        text = text.replace(words, others)
    for pattern, other in CODE:
        text = re.sub(pattern, other, text)
    # Names that are left over go, imports are sorted, lines are broken where they have to be now.
    fixes = ["check", "--quiet", "--fix", "--unsafe-fixes", "--select", "F401,I,UP028"]
    for command in (fixes, ["format", "--quiet"]):
        text = _ruff([*command, "--stdin-filename", str(target(source)), "-"], text)
    return HEAD + text


def target(source: Path) -> Path:
    """Where it belongs."""
    return source.with_name("sync.py")


def _ruff(arguments: list[str], text: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments]
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def stale() -> dict[Path, str]:
    """The files that are not what would be written, with what that is."""
    texts = {target(source): made(source) for source in FACES}
    return {path: text for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text}


def main(arguments: list[str]) -> int:
    """Write the faces, or with ``--check`` only look at them."""
    old = stale()
    if "--check" not in arguments:
        for path, text in old.items():
            path.write_text(text, "utf-8")
        return 0
    for path in old:
        print(f"{path.relative_to(ROOT)} is not what aio.py beside it makes. Change aio.py, and run: make faces")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
