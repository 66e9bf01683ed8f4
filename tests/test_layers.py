"""A file imports only from the layers of docs/design.md at or below its own, and layers below never import upwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "legato"

# The first prefix that fits decides. A file may import from lower layers, and from its own one.
LAYERS: list[tuple[str, int]] = [
    ("errors", 0),
    ("event", 0),
    ("sse", 0),
    ("transcript", 0),
    ("log", 1),
    ("dialect", 1),
    ("client", 2),  # which is further confined below
    ("store", 2),
    ("agent", 2),
    ("tool", 2),
    ("execution", 2),
    ("run", 2),
    ("provider", 2),
    ("agents", 3),
    ("server", 3),
    ("testing", 4),
    ("terminal", 4),
    ("cli", 4),
    ("__main__", 4),
]
# Pairs that the layers alone would allow.
FORBIDDEN = [("dialect", "store"), ("dialect", "run"), ("store", "dialect"), ("client", "log"), ("client", "store"),
             ("client", "run"), ("client", "agent"), ("client", "dialect"), ("server", "client"), ("provider", "log"),
             ("store", "run")]  # fmt: skip

# The package's own __init__ names everything; test_exports.py checks that it loads nothing.
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def top(name: str) -> str:
    return name.split(".")[0]


def layer(name: str) -> int:
    head = top(name).partition("_")[0] if top(name) not in dict(LAYERS) else top(name)
    return dict(LAYERS)[head]


def imports(path: Path) -> set[str]:
    """The modules of legato that a file imports outside of ``if TYPE_CHECKING``, as dotted names below it."""
    name = name_of(path)
    package = name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = [*base, *(node.module or "").split(".")] if node.module else base
                found |= {".".join([*module, alias.name] if not node.module else module) for alias in node.names}
            elif (node.module or "").startswith("legato."):
                found.add((node.module or "").removeprefix("legato."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("legato.") for a in node.names if a.name.startswith("legato.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    """No module imports from a higher layer, or from one it must not know."""
    name = name_of(path)
    wrong = {
        other
        for other in imports(path)
        if layer(other) > layer(name) or any((top(name), top(other)) == pair for pair in FORBIDDEN)
    }

    assert wrong == set()
