"""One noun, one meaning: the classes of the project and the words of docs/glossary.md hold each other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "legato"
CORE = [
    *("event", "part", "machine", "doorbell", "log", "caller", "run", "backlog", "attempt", "execution", "outbox"),
    *("desk", "agent", "transcript", "recorder", "tool", "history", "admission", "copies", "questions", "resolutions"),
    *("edits", "probe", "sessions", "sse"),
    *("dialect/fold", "dialect/trail"),
    *(f"server/{name}" for name in ("adaptor", "life", "memory", "operation", "pace", "pump", "reply", "stream")),
    *(f"store/{path.stem}" for path in sorted((SOURCE / "store").glob("*.py"))),
]
"""What Legato is made of: each public class of these files has a word in the glossary."""


def entries() -> list[tuple[str, str]]:
    """Each word of the glossary and what stands below it."""
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    found = [part.partition("\n") for part in text.split("\n## ")[1:]]
    return [(word.strip(), body.strip()) for word, _, body in found]


def after(label: str, body: str) -> list[str]:
    """The names in the sentence of an entry that begins with ``label``."""
    sentence = re.search(rf"{label}:((?:\s+`\w+`[,.])+)", body)
    return re.findall(r"`(\w+)`", sentence[1]) if sentence else []


NAMED = {name: word for word, body in entries() for name in after("In\\s+code", body)}
TWICE = {name: word for word, body in entries() for name in after("Declared twice", body)}


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]


CLASSES: dict[str, list[tuple[str, ast.ClassDef]]] = defaultdict(list)
for path in sorted(SOURCE.rglob("*.py")):
    for node in classes(path):
        CLASSES[node.name].append((str(path.relative_to(SOURCE)), node))


def lineage(name: str) -> set[str]:
    """The name of a class, and those of all that it derives from, as far as they are ours."""
    found: set[str] = set()
    new = {name}
    while new:
        found |= new
        bases = {
            ast.unparse(base).partition("[")[0] for each in new for _, node in CLASSES[each] for base in node.bases
        }
        new = {base for base in bases if base in CLASSES} - found
    return found


def test_no_two_classes_have_one_name() -> None:
    """But those that are one thing, and that the glossary lists as such."""
    twice = {name: [file for file, _ in places] for name, places in CLASSES.items() if len(places) > 1}

    assert sorted(twice) == sorted(TWICE)


@pytest.mark.parametrize("module", CORE)
def test_public_classes_have_a_word_in_the_glossary(module: str) -> None:
    """Their own, or that of what they derive from."""
    public = [node.name for node in classes(SOURCE / f"{module}.py") if not node.name.startswith("_")]

    assert [name for name in public if not lineage(name) & NAMED.keys()] == []


def test_the_glossary_names_what_there_is() -> None:
    """Each class that it names exists, and is named once."""
    names = [name for _, body in entries() for label in ("In\\s+code", "Declared twice") for name in after(label, body)]

    assert [name for name in names if name not in CLASSES] == []
    assert len(set(names)) == len(names)


def test_the_glossary_has_each_word_once() -> None:
    """And says something of it."""
    words = [word for word, _ in entries()]

    assert len({word.lower() for word in words}) == len(words)
    assert [word for word, body in entries() if not body.endswith(".")] == []
