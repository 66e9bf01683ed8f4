"""Code with its words marked, by Pygments; what of growing code is finished is read once, so it costs what is added.

A lexer reads from the beginning. Growing code is cut where one that begins there reads the same, and each piece is read
by itself. That can be wrong (a word may be of a comment that has begun far above), but changes no letter, and code that
is finished is read as a whole.
"""

from __future__ import annotations

import bisect
import functools
import html
import itertools
from collections.abc import Sequence

from pygments import format
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import _TokenType

LARGEST = 20_000
"""Characters of a block of code up to which its words are marked."""
PIECE = 1_000
"""Characters after which growing code is cut, where it can be."""
TRIES = 4
"""Places at which it is tried."""

_Tokens = Sequence[tuple[_TokenType, str]]


def coloured(code: str, language: str) -> str:
    """The code as HTML, its words marked by classes where its language is known; always all of it."""
    return _marked(code, _read(code, language))


def coloured_growing(code: str, language: str) -> list[str]:
    """Code that is not finished, in pieces: of those before the last two, what was made is kept.

    What cannot be cut is read again when it has grown by a quarter, and is not marked beyond that.
    """
    if not language or len(code) > LARGEST:
        return [html.escape(code)]
    pieces, begin, window, marked = [], 0, 2 * PIECE, 0
    while len(code) - begin > window:
        seen = code[begin : begin + window]
        if cut := _cut(seen, language):
            pieces.append(_piece(seen[:cut], language))
            begin, window, marked = begin + cut, 2 * PIECE, 0
        else:
            marked, window = seen.rfind("\n") + 1, window * 5 // 4
    rest = code[begin:]
    if marked:
        return [*pieces, _piece(rest[:marked], language), html.escape(rest[marked:])]
    return [*pieces, coloured(rest, language)]


def _read(code: str, language: str) -> _Tokens:
    """What a lexer makes of the code; nothing where there is none for the language, or it takes it for other text."""
    if not language or len(code) > LARGEST:
        return []
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
        tokens = [token for token in lexer.get_tokens(code) if token[1]]
    except Exception:  # no such language; or a lexer of others, at code that is not its own
        return []
    return tokens if "".join(text for _, text in tokens) in (code, f"{code}\n") else []


def _marked(code: str, tokens: _Tokens) -> str:
    if not tokens:
        return html.escape(code)
    shown: str = format(tokens, _FORMATTER)  # which ends the last line
    ended = code.endswith("\n") and sum(len(text) for _, text in tokens) == len(code)
    return shown if ended else shown.removesuffix("\n")


@functools.lru_cache(512)
def _piece(code: str, language: str) -> str:
    return coloured(code, language)


@functools.lru_cache(512)
def _cut(code: str, language: str) -> int:
    """Where a piece can end; 0 if none can end here."""
    tokens = _read(code, language)
    begins = list(itertools.accumulate((len(text) for _, text in tokens), initial=0))
    for place in _places(code) if tokens else ():
        number = bisect.bisect_right(begins, place) - 1
        kind, text = tokens[number]
        split = place - begins[number]
        if not split or text.isspace():  # blanks may begin on the line before
            rest = [(kind, text[split:]), *tokens[number + 1 :]]
            if list(_read(code[place:], language)) == rest:
                return place
    return 0


def _places(code: str) -> list[int]:
    """Where lines begin that are moved in the least, of those in the middle; what was looked at before is no more."""
    first, last = len(code) * 4 // 10, len(code) * 8 // 10
    places = []
    at = code.find("\n", first) + 1
    while 0 < at <= last:
        line = code[at : at + 80]
        if line.strip():
            places.append((len(line) - len(line.lstrip()), at))
        at = code.find("\n", at) + 1
    return [at for _, at in sorted(places)[:TRIES]]


_FORMATTER = HtmlFormatter(nowrap=True)
