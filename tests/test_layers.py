"""A file imports only from the layers of docs/design.md at or below its own, and layers below never import upwards."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from legato.store import SCHEMES

SOURCE = Path(__file__).parent.parent / "src" / "legato"

DESIGN = SOURCE.parent.parent / "docs" / "design.md"

# The first prefix that fits decides. A file may import from lower layers, and from its own one.
LAYERS: list[tuple[str, int]] = [
    ("errors", 0),
    ("addresses", 0),
    ("check", 0),
    ("part", 0),
    ("event", 0),
    ("machine", 0),
    ("yields", 0),
    ("caller", 0),
    ("json", 0),
    ("items", 0),
    ("sse", 0),
    ("transcript", 0),
    ("recorder", 0),
    ("history", 0),
    ("taken", 0),
    ("late", 0),
    ("fault", 0),
    ("figures", 0),
    ("about", 0),
    ("logs", 0),
    ("doorbell", 1),
    ("log", 1),
    ("thin", 1),
    ("dialect", 1),
    ("http", 2),  # which is further confined below, as its users are
    ("client", 2),
    ("store", 2),
    ("agent", 2),
    ("aside", 2),
    ("tool", 2),
    ("load", 2),
    ("traces", 2),
    ("blobs", 2),
    ("outside", 2),
    ("contents", 2),
    ("bounds", 2),
    ("spending", 2),
    ("credentials", 2),
    ("sharing", 2),
    ("retention", 2),
    ("archive", 2),
    ("places", 2),
    ("tally", 2),
    ("asks", 2),
    ("ending", 2),
    ("outbox", 2),
    ("desk", 2),
    ("execution", 2),
    ("attempt", 2),
    ("backlog", 2),
    ("run", 2),
    ("admission", 2),
    ("copies", 2),
    ("edits", 2),
    ("questions", 2),
    ("resolutions", 2),
    ("probe", 2),
    ("sessions", 2),
    ("provider", 2),
    ("agents", 3),
    ("auth", 3),
    ("server", 3),
    ("testing", 4),
    ("torture", 4),
    ("cli", 4),
    ("__main__", 4),
]
# Pairs that the layers alone would allow.
FORBIDDEN = [("dialect", "store"), ("dialect", "run"), ("store", "dialect"), ("client", "log"), ("client", "store"),
             ("client", "run"), ("client", "agent"), ("client", "dialect"), ("server", "client"), ("provider", "log"),
             ("store", "run"), ("http", "client"), ("http", "provider"), ("http", "log"), ("http", "store"),
             ("http", "run"), ("http", "agent"), ("http", "dialect"), ("provider", "client"),
             ("client", "provider")]  # fmt: skip

# The package's own __init__ names everything; test_exports.py checks that it loads nothing.
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def top(name: str) -> str:
    return name.split(".")[0]


def layer(name: str) -> int:
    head = top(name).partition("_")[0] if top(name) not in dict(LAYERS) else top(name)
    return dict(LAYERS)[head]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> set[str]:
    """The modules of legato that a file imports, for types alone included, as dotted names below it."""
    name = name_of(path)
    package = name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree(path)):
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


def test_no_imports_in_circles() -> None:
    """Whatever is needed for a module can be read before it, imports for types alone included."""
    needs = {name_of(path): imports(path) for path in FILES}
    left = set(needs)
    while free := {name for name in left if not (needs[name] - {name}) & left}:
        left -= free

    assert left == set()


APART = {
    "cli.backup": {"sqlite_backup"},
    "cli.gc": {"sqlite_gc"},
    "torture.power": {"sqlite", "sqlite_file", "sqlite_requests", "sqlite_troubles", "sqlite_writer"},
    "torture.ground": {"memory"},
    "torture.cluster": {"redis_server"},
}
"""Which files of stores somebody else may know: two commands that are about a file, and what does stores harm."""


def test_nobody_knows_which_store_it_has() -> None:
    """Above ``store/`` no file of a store is imported, and none of its URLs is looked at: ``store`` is asked."""
    stores = {f"store.{each.stem}" for each in (SOURCE / "store").glob("*.py")} - {"store.__init__", "store.moving"}
    above = [path for path in FILES if top(name_of(path)) != "store"]
    named = {name_of(path): {other.removeprefix("store.") for other in imports(path) & stores} for path in above}
    looks = [path for path in above if top(name_of(path)) != "torture"]  # which starts databases

    assert {name: known for name, known in named.items() if known} == APART
    assert [(name_of(path), scheme) for path in looks for scheme in compared(path) if scheme in SCHEMES] == []


def compared(path: Path) -> Iterator[str]:
    """The beginnings of texts that something is compared with, or that it may begin with."""
    for node in ast.walk(tree(path)):
        begins = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith"
        if begins or isinstance(node, ast.Compare | ast.MatchValue):
            for each in ast.walk(node):
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.value.partition(":")[0].lower()


DOOR = [
    *("server.mix", "server.mix_operations", "server.deva", "server.responses", "server.responses_operations"),
    "server.dialects",
]


@pytest.mark.parametrize("name", DOOR)
def test_routes_hold_sessions_and_no_store(name: str) -> None:
    """What a dialect's routes ask for they ask of ``Sessions``: they know no store, no log and no runner."""
    tree = ast.parse((SOURCE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    read = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    assert {"Store", "Log", "Subscription", "Runner"} & named == set()
    assert {"life.store", "request.life.store", "life.runner", "request.life.runner"} & read == set()


def rows() -> list[tuple[str, list[str]]]:
    """The second table of the house in docs/design.md: for each row its folder and its files."""
    house = DESIGN.read_text("utf-8").partition("## The house")[2].partition("\n## ")[0]
    found, folder = [], ""
    for line in house.rpartition("| in | files |")[2].splitlines():
        if line.startswith("| ") and "---" not in line:
            place, files = line.split("|")[1:3]
            folder = place.strip(" `/") or folder
            found.append((folder, re.findall(r"`([\w-]+)`", files)))
    return found


def test_the_house_has_every_file() -> None:
    """The table names each file of each folder, once, and none that is gone."""
    named = sorted((folder, name) for folder, names in rows() for name in names)
    files = [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".js") and not path.stem.startswith("__")]
    places = [(path.parent.name if path.parent != SOURCE else f"L{layer(path.stem)}", path.stem) for path in files]

    assert sorted(places) == named


def test_the_house_has_every_package() -> None:
    """The first table names each package, once, in its layer."""
    house = DESIGN.read_text("utf-8").partition("## The house")[2]
    named = re.findall(r"`(\w+)/`", house.partition("\nA file imports")[0])
    layers = [
        (int(number), re.findall(r"`(\w+)/`", row)) for number, row in re.findall(r"^\| L(\d) (.*)$", house, re.M)
    ]

    assert sorted(named) == sorted({path.parent.name for path in FILES} - {SOURCE.name})
    assert [name for number, names in layers for name in names if layer(name) != number] == []


def test_imports_of_the_browser_modules_go_up_the_table() -> None:
    """No browser module imports from a row below its own."""
    place = {name: row for row, (folder, names) in enumerate(rows()) if folder == "web" for name in names}
    wrong = [
        (path.stem, other)
        for path in (SOURCE / "web").glob("*.js")
        for other in re.findall(r'^(?:import|export)\b[^"]*"\./([\w-]+)\.js"', path.read_text("utf-8"), re.MULTILINE)
        if place[other] > place[path.stem]
    ]

    assert wrong == []
