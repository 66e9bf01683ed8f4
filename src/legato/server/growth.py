"""A long list or table that grows: what of it is finished is made once, so that it costs what is added to it.

Such a text is one block to its end, and would be read from its beginning at each look. Its items and rows do not change
one another, so they are made in pieces; a piece that is finished is kept. Where that could differ from the whole (a
list of which only some items are set apart, notes and addresses that hold for other pieces), the whole is made.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

SMALL = 3_000
"""Characters of a text that is not worth it."""
ITEMS = 16
"""Items, or rows, in a piece."""
LARGE = 8_000
"""Characters of a piece that is not worth keeping."""

_ITEM = re.compile(r"([-*+])[ \t]|\d{1,9}([.)])[ \t]")
_DELIMITERS = re.compile(r"[ \t]{0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")
_SHARED = re.compile(r"^[ \t]*\[[^\]\n]+\]:", re.MULTILINE)
_LOOSE = re.compile(r"<[uo]l[^>]*>\s*<li>\s*<p>")
_BLANK_END = re.compile(r"\n[ \t]*\n\Z")


class Growth(NamedTuple):
    """A text that was taken apart.

    Attributes:
        pieces: what is finished, each a text of its own.
        tail: the rest, a text of its own.
        lines: how many lines of the text stand before what the tail has of it.
        shell: the elements around items, or rows.
    """

    pieces: list[str]
    tail: str
    lines: int
    shell: tuple[str, ...]


def taken_apart(text: str) -> Growth | None:
    """The pieces of a text that begins with a long list or table; None if it does not."""
    if len(text) < SMALL or _SHARED.search(text):
        return None
    lines = text.splitlines(keepends=True)
    kind = _ITEM.match(lines[0])
    if kind is not None:
        return _list(lines, kind.group(1) or kind.group(2))
    if len(lines) > 2 and "|" in lines[0] and _DELIMITERS.fullmatch(lines[1].rstrip("\r\n")):
        return _table(lines)
    return None


def _list(lines: list[str], kind: str) -> Growth | None:
    starts = []
    for number, line in enumerate(lines):
        if line[0] in " \t\r\n":
            continue
        item = _ITEM.match(line)
        if item is None or kind not in item.groups():
            break  # from here on it may be something else, which the tail has
        starts.append(number)
    many = max(len(starts) - 2, 0) // ITEMS  # the last two may still be changed by what follows
    cuts = [starts[each * ITEMS] for each in range(many + 1)]
    pieces = ["".join(lines[begin:end]) for begin, end in itertools.pairwise(cuts)]
    return _worth(pieces, "".join(lines[cuts[-1] :]), cuts[-1], ("ul", "ol"))


def _table(lines: list[str]) -> Growth | None:
    head = "".join(lines[:2])
    many = max(len(lines) - 4, 0) // ITEMS
    cuts = [2 + each * ITEMS for each in range(many + 1)]
    pieces = [head + "".join(lines[begin:end]) for begin, end in itertools.pairwise(cuts)]
    return _worth(pieces, head + "".join(lines[cuts[-1] :]), cuts[-1] - 2, ("tbody",))


def _worth(pieces: list[str], tail: str, lines: int, shell: tuple[str, ...]) -> Growth | None:
    return Growth(pieces, tail, lines, shell) if pieces and max(map(len, pieces)) < LARGE else None


def together(growth: Growth, pieces: list[list[str]]) -> bool:
    """Whether what was made of the pieces, as the HTML of their blocks, is what the whole would have."""
    if any(len(blocks) != 1 for blocks in pieces):
        return False
    loose = {_LOOSE.match(html) is not None for (html,) in pieces}
    if "tbody" in growth.shell:
        return True
    # Of a list either all items are set apart or none, and apart is what a blank line between any two of them makes.
    return loose == {True} or (loose == {False} and not any(_BLANK_END.search(piece) for piece in growth.pieces))


def joined(growth: Growth, pieces: list[list[str]], tail: str) -> str | None:
    """The HTML of the whole list or table; None if it cannot be told from its pieces.

    Args:
        growth: what they were made of.
        pieces: the HTML of the blocks of each piece, which are ``together``.
        tail: the HTML of the first block of the tail.
    """
    made = [*(blocks[0] for blocks in pieces), tail]
    if (_LOOSE.match(tail) is None) != (_LOOSE.match(made[0]) is None):
        return None
    inner = []
    for html in made:
        begin = re.search(f'<({"|".join(growth.shell)})(?: start="[0-9]+")?>\n?', html)
        if begin is None or (begin.start() and "tbody" not in growth.shell):
            return None
        inner.append((begin.end(), html.rindex(f"</{begin[1]}>")))
    middle = "".join(html[begin:end] for html, (begin, end) in zip(made, inner, strict=True))
    return made[0][: inner[0][0]] + middle + tail[inner[-1][1] :]
