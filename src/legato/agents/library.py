"""A library: a folder of documents, and a full-text search over their passages.

It cuts documents at their headings, and long sections at their paragraphs; a passage is always verbatim, so it can be
quoted. The search is SQLite's FTS5, in memory. It knows nothing of agents.

The one rule: nothing outside the folder is read, and nothing in it without a bound.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InvalidInput

if TYPE_CHECKING:
    from apsw import Connection

logger = logging.getLogger("legato")

MAX_FILES = 2_000
"""Documents in a library; further ones are left out, with a warning in the log."""
MAX_FILE_BYTES = 1_048_576
"""A larger document is left out, with a warning in the log."""
MAX_BYTES = 67_108_864
"""All documents together; what is beyond is left out, with a warning in the log."""
PASSAGE_CHARACTERS = 700
"""A passage grows by whole paragraphs until it is about this long. A code block is never cut for it."""
SHORT_CHARACTERS = 150
"""A passage no longer than this takes the next paragraph in any case."""
MAX_PASSAGE_CHARACTERS = 4_000
"""A single paragraph or code block beyond this is cut, at the end of a line where there is one."""
MAX_TERMS = 24
"""Words of a question that are searched for."""
MAX_QUESTION_CHARACTERS = 4_000
"""Of a longer question only the beginning is looked at."""

MAX_CONSIDERED = 200
"""Passages that a search ranks by their headings, too."""

_STEM = 5  # words that begin with the same letters are taken for forms of one word
_SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst"})
_SKIPPED_FOLDERS = frozenset({"node_modules", "site-packages", "__pycache__"})
_BELOW = " > "  # between a heading and the one below it


class Passage(NamedTuple):
    """A stretch of a document, verbatim.

    Attributes:
        place: its number in the library.
        file: relative to the folder, with slashes.
        headings: from the document's title down to its own.
        text: as it stands in the file.
    """

    place: int
    file: str
    headings: tuple[str, ...]
    text: str

    @property
    def heading(self) -> str:
        """The path of headings that leads to it, as one line."""
        return _BELOW.join(self.headings)


class Hit(NamedTuple):
    """A passage that was found; a higher score is a better one."""

    passage: Passage
    score: float


class SearchResult(NamedTuple):
    """Hits, best first; ``near`` if none holds a word of the question, only words that begin like it."""

    hits: list[Hit]
    near: bool = False


class Library:
    """The documents of a folder, to search. Read once, at the first use; can be used from any thread.

    Hidden files and folders are left out, and so is a symbolic link that leads out of the folder.

    Args:
        folder: of Markdown, ``.txt`` and ``.rst`` files, at any depth.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InvalidInput(f"The guide needs a folder of documents; {str(folder)!r} is none.")
        self.folder = folder.resolve()
        self._lock = threading.Lock()  # apsw refuses to be used by two threads at the same time
        self._connection: Connection | None = None
        self._passages: list[Passage] = []

    def passages(self) -> list[Passage]:
        """All passages, by file name and in the order of their document."""
        with self._lock:
            self._read()
        return self._passages

    def titles(self) -> dict[str, str]:
        """The first heading of each document, by file name."""
        titles: dict[str, str] = {}
        for passage in self.passages():
            titles.setdefault(passage.file, passage.headings[0])
        return titles

    def search(self, terms: Iterable[str], limit: int = 12) -> SearchResult:
        """Up to ``limit`` passages that hold any of ``terms``, best first, headings counting more than text.

        One whose own heading is just what was asked for counts up to twice.

        Only if none does: those with a word that begins as one of them (``recon`` finds *reconnect*).
        """
        terms = list(terms)
        asked = _beginnings(terms)
        phrases = [_phrase(term) for term in terms]
        with self._lock:
            connection = self._read()
            for attempt, query in enumerate(_queries([phrase for phrase in phrases if phrase])):
                if hits := self._match(connection, query, asked)[:limit]:
                    return SearchResult(hits, near=attempt > 0)
        return SearchResult([])

    def _match(self, connection: Connection, query: str, asked: set[str]) -> list[Hit]:
        rows = connection.execute(
            "SELECT rowid, bm25(passage, 2.0, 1.0, 5.0, 1.0) AS rank FROM passage WHERE passage MATCH ? "
            "ORDER BY rank, rowid LIMIT ?",
            (query, MAX_CONSIDERED),
        )
        found = [(-rank * (1 + _likeness(asked, self._passages[rowid])), self._passages[rowid]) for rowid, rank in rows]
        found.sort(key=lambda hit: (-hit[0], hit[1].place))
        return [Hit(passage, round(score, 3)) for score, passage in found]

    def _read(self) -> Connection:
        if self._connection is not None:
            return self._connection
        found = (stretch for path in _documents(self.folder) for stretch in _split(self.folder, path))
        passages = [Passage(place, *stretch) for place, stretch in enumerate(found)]
        connection: Connection = load_apsw().Connection(":memory:")
        connection.execute(
            "CREATE VIRTUAL TABLE passage USING fts5"
            "(file, above, heading, body, content='', tokenize='porter unicode61 remove_diacritics 2')"
        )
        with connection:
            connection.executemany(
                "INSERT INTO passage (rowid, file, above, heading, body) VALUES (?, ?, ?, ?, ?)",
                ((p.place, p.file, *map(_spaced, (*_parted(p.headings), p.text))) for p in passages),
            )
        self._passages, self._connection = passages, connection
        return connection


def _likeness(asked: set[str], passage: Passage) -> float:
    """From 0 to 1: how much of the question is in the passage's own heading, and nothing else."""
    held = _beginnings(terms(passage.headings[-1]))
    return len(asked & held) / len(asked | held) if asked else 0.0


def _beginnings(words: Iterable[str]) -> set[str]:
    return {word[:_STEM] if len(word) > _STEM else word.removesuffix("s") for word in words}


def _parted(headings: tuple[str, ...]) -> tuple[str, str]:
    # Apart, so that a passage that is *about* a word comes before those that stand somewhere below it.
    return " ".join(headings[:-1]), headings[-1]


def _documents(folder: Path) -> Iterator[Path]:
    """The documents in ``folder``, in a fixed order."""
    count = size = 0
    for path in _candidates(folder):
        bytes_ = _readable_bytes(folder, path)
        if bytes_ is None:
            continue
        count, size = count + 1, size + bytes_
        if count > MAX_FILES or size > MAX_BYTES:
            logger.warning("%s holds more documents than the library reads; from %s on they are left out", folder, path)
            return
        yield path


def _candidates(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):  # does not follow links to folders, so it cannot go in circles
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES:
                yield Path(place, name)


def _readable_bytes(folder: Path, path: Path) -> int | None:
    """The size of a document that may be read, or None."""
    try:
        real = path.resolve(strict=True)
        size = real.stat().st_size
    except OSError as exc:
        logger.warning("the library cannot read %s: %s", path, exc)
        return None
    if not real.is_relative_to(folder):
        logger.warning("the library leaves out %s: it leads out of the folder", path)
        return None
    if size > MAX_FILE_BYTES:
        logger.warning("the library leaves out %s: it is larger than %d bytes", path, MAX_FILE_BYTES)
        return None
    return size if real.is_file() else None


def _split(folder: Path, path: Path) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The passages of one document: by its headings, and a long section by its paragraphs."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as exc:
        logger.warning("the library cannot read %s: %s", path, exc)
        return
    file = path.relative_to(folder).as_posix()
    for headings, blocks in _sections(text, path.suffix.lower()):
        for passage in _passages(blocks):
            yield file, tuple(headings) or (path.stem,), passage


_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)")
_UNDERLINE = re.compile(r"([=\-~^\"'+*#])\1{2,}[ \t]*$")


def _sections(text: str, suffix: str) -> Iterator[tuple[list[str], list[str]]]:
    """The sections of a document: the path of headings, and the blocks (paragraphs, code blocks) below it."""
    path: list[tuple[int, str]] = []
    blocks: list[str] = []
    underlines: list[str] = []  # of .rst, in the order of their first use: that is their level
    for block in _blocks(_without_front_matter(text.split("\n")), markdown=suffix.startswith(".m")):
        heading = None if suffix == ".txt" else _heading(block, suffix, underlines)
        if heading is None:
            blocks.append("\n".join(block))
            continue
        if blocks:
            yield [name for _, name in path], blocks
            blocks = []
        level, name, rest = heading
        path = [*[(other, above) for other, above in path if other < level], (level, name)]
        if rest:
            blocks.append("\n".join(rest))
    if blocks:
        yield [name for _, name in path], blocks


def _without_front_matter(lines: list[str]) -> list[str]:
    if lines and lines[0].rstrip() == "---" and "---" in (rest := [line.rstrip() for line in lines[1:]]):
        return lines[rest.index("---") + 2 :]
    return lines


def _blocks(lines: list[str], *, markdown: bool) -> Iterator[list[str]]:
    """``lines`` cut at blank lines; in Markdown also around headings, but never inside a fenced code block."""
    block: list[str] = []
    fence = ""
    for line in lines:
        opened = _FENCE.match(line) if markdown else None
        if fence:
            block.append(line)
            if opened and opened[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
            continue
        if opened:
            fence = opened[1]
        elif not line.strip() or (markdown and _ATX.match(line)):
            if block:
                yield block
            block = []
            if line.strip():
                yield [line]
            continue
        block.append(line)
    if block:
        yield block


def _heading(block: list[str], suffix: str, underlines: list[str]) -> tuple[int, str, list[str]] | None:
    """The level and name of the heading that ``block`` begins with, and the lines after it."""
    if suffix != ".rst" and (atx := _ATX.match(block[0])):
        return len(atx[1]), atx[2].rstrip(" \t").rstrip("#").rstrip(" \t"), block[1:]
    if len(block) > 2 and _UNDERLINE.match(block[0]) and block[2].rstrip() == block[0].rstrip():
        block = block[1:]  # .rst may put a line above a title, too
    if len(block) < 2 or not (line := _UNDERLINE.match(block[1])) or block[0][:1] in "|->*":
        return None
    if suffix != ".rst":
        return (("=", "-").index(line[1]) + 1, block[0].strip(), block[2:]) if line[1] in "=-" else None
    if line[1] not in underlines:
        underlines.append(line[1])
    return underlines.index(line[1]) + 1, block[0].strip(), block[2:]


def _passages(blocks: list[str]) -> Iterator[str]:
    passage = ""
    for block in blocks:
        for piece in _cut(block):
            # A short introduction stays with what it introduces, often a code block.
            if len(passage) > SHORT_CHARACTERS and len(passage) + len(piece) > PASSAGE_CHARACTERS:
                yield passage
                passage = ""
            passage = f"{passage}\n\n{piece}" if passage else piece
    if passage:
        yield passage


def _cut(block: str) -> Iterator[str]:
    while len(block) > MAX_PASSAGE_CHARACTERS:
        end = block.rfind("\n", 1, MAX_PASSAGE_CHARACTERS)
        if end < 0:
            end = block.rfind(" ", 1, MAX_PASSAGE_CHARACTERS)
        if end < 0:
            end = MAX_PASSAGE_CHARACTERS
        yield block[:end]
        block = block[end:].lstrip("\n")
    if block.strip():
        yield block


def load_apsw() -> ModuleType:
    """The module ``apsw``, or an error that says how to install it."""
    try:
        import apsw
    except ImportError as exc:
        raise ImportError("The guide searches with apsw: pip install 'legato[server]'") from exc
    return apsw


# Questions to queries -------------------------------------------------------------------------------------------------

_STOP_WORDS = """
a about after all also am an and any are as at be been but by can could did do does doing for from get give got had
has have having he her here him his how i if in into is it its just know let like many may me might more most much
must my no not of off on one or other our out over please put say see shall she should show so some such tell than
that the their them then there these they this those to too under up use used us very want was way we were what when
where which while who whom whose why will with work works would yes you your don doesn didn isn aren won couldn
explain ll ve re
"""
_IGNORED = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"\w+(?:[-_./]\w+)*")
# Scripts without blanks between words: the tokenizer would take a whole sentence for one word.
# ``re`` compiles it at its first use, which takes 3 ms.
_DENSE = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"


def terms(question: str) -> list[str]:
    """The words of ``question`` that are worth searching for, in order, each once, at most ``MAX_TERMS``.

    A compound (``Last-Event-ID``) stands as a whole and then in its parts.
    """
    found: dict[str, None] = {}
    for word in _WORD.findall(question[:MAX_QUESTION_CHARACTERS].lower()):
        parts = re.split(r"[-_./]", word)
        for part in [word, *parts] if len(parts) > 1 else parts:
            if re.search(_DENSE, part):
                found.update(dict.fromkeys(_pairs(part)))
            elif part not in _IGNORED and (len(part) > 1 or part.isdigit()):
                found[part[:64]] = None
        if len(found) >= MAX_TERMS:
            break
    return list(found)[:MAX_TERMS]


def _pairs(word: str) -> list[str]:
    return [word[place : place + 2] for place in range(len(word) - 1)] or [word]


def _spaced(text: str) -> str:
    return re.sub(_DENSE, r" \g<0> ", unicodedata.normalize("NFC", text))


def _phrase(term: str) -> str:
    """``term`` as words and blanks only: whatever else it holds can mean nothing to FTS5, nor to the tokenizer."""
    return " ".join(re.findall(r"[^\W_]+", _spaced(term)))


def _queries(phrases: list[str]) -> Iterator[str]:
    """FTS5 queries to try in turn: the words (stemmed), words that begin so, and words that begin nearly so."""
    long = [phrase for phrase in phrases if len(phrase) > 2]
    words = [[f'"{phrase}"' for phrase in phrases], [f'"{phrase}" *' for phrase in long]]
    words.append([f'"{phrase[:5]}" *' for phrase in long if len(phrase) > 5 and " " not in phrase])
    yield from (" OR ".join(alternatives) for alternatives in words if alternatives)
