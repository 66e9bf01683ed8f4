"""The documents hold together: links lead somewhere, code is code, and every page can be found."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What may stand behind ``#``: each heading as GitHub writes it."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link is a file of the project, and the place behind ``#`` a heading in it."""
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_documents_is_python(page: Path) -> None:
    """Each snippet can be parsed, and imports only names that Legato has."""
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            tree = compile(code, name_of(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "legato":
                    module = __import__(str(node.module), fromlist=["_"])
                    assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_page_can_be_found() -> None:
    """Whoever begins at the README can click through to each page."""
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        links = {(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose(page))}
        new |= {link for link in links if link.suffix == ".md" and link.exists()} - found

    assert [name_of(page) for page in PAGES if page not in found] == []
