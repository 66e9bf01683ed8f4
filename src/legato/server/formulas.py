r"""Formulas in answers: TeX between ``$``, ``$$``, ``\( \)``, ``\[ \]`` or ``\begin \end`` as MathML, by latex2mathml.

What cannot be read as a formula stays as it was written. A formula has no empty line in it. One that stands on lines of
its own is a block. A single dollar is one only where it looks like it: ``$x$``, not ``$5 or $6`` and ``$HOME/a:$PATH``.
"""

from __future__ import annotations

import html
import re
from collections.abc import MutableMapping, Sequence
from typing import Any
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

__all__ = ["ATTRIBUTES", "TAGS", "formulas", "unfinished_block", "without_formulas"]

TAGS = {
    *("math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "msup", "msub", "msubsup", "munder", "mover"),
    *("munderover", "mmultiscripts", "mprescripts", "none", "mfrac", "msqrt", "mroot", "mstyle", "mpadded", "mphantom"),
    *("mtable", "mtr", "mtd", "menclose"),
}
"""Of MathML, what a formula may consist of."""
ATTRIBUTES = {
    "math": {"display", "alttext"},
    "mo": {
        "stretchy",
        "fence",
        "form",
        "separator",
        "movablelimits",
        "largeop",
        "minsize",
        "maxsize",
        "lspace",
        "rspace",
    },
    "mi": {"mathvariant"},
    "mn": {"mathvariant"},
    "mspace": {"width"},
    "mfrac": {"linethickness"},
    "mover": {"accent"},
    "munder": {"accentunder"},
    "mstyle": {"displaystyle", "scriptlevel", "mathcolor"},
    "mtable": {"columnalign", "rowspacing", "columnspacing", "columnlines", "rowlines"},
    "mtd": {"columnalign"},
    "menclose": {"notation"},
}
"""Of those, what they may have."""
LONGEST = 5_000
"""Characters of a formula; what is longer stays as it is."""

_INLINE = {
    "\\(": re.compile(r"\\\(((?:[^\\]|\\[^)])+)\\\)", re.DOTALL),
    "\\[": re.compile(r"\\\[((?:[^\\]|\\[^]])+)\\\](?!\()", re.DOTALL),  # not `\[an escaped\](link)`
    "$$": re.compile(r"\$\$((?:[^\\$]|\\.|\$(?!\$))+)\$\$", re.DOTALL),
    "$": re.compile(r"\$((?![\s$])(?:[^\\$]|\\.)*?(?<!\s))\$(?![\w$])", re.DOTALL),
}
_ENVIRONMENTS = (
    *("equation", "align", "alignat", "gather", "multline", "eqnarray", "flalign", "cases", "split", "aligned"),
    *("array", "matrix", "pmatrix", "bmatrix", "vmatrix", "Vmatrix", "Bmatrix"),
)
_BLOCK = re.compile(rf"\$\$|\\\[|\\begin\{{((?:{'|'.join(_ENVIRONMENTS)})\*?)\}}")
_UNNUMBERED = re.compile(r"(\\(?:begin|end)\{(?:equation|align|gather|multline|eqnarray|flalign))\}")
_NUMBERS = re.compile(r"\\(?:label|tag)\{[^{}]*\}|\\(?:notag|nonumber)\b")
_COMMAND = re.compile(r"\\[a-zA-Z]")


def formulas(parser: MarkdownIt) -> None:
    """Let ``parser`` know formulas. Its output has to be cleaned: only ``TAGS`` and ``ATTRIBUTES`` are meant."""
    parser.inline.ruler.before("escape", "formula", _inline)
    interrupts = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "formula_block", _block, {"alt": interrupts})
    parser.add_render_rule("formula", _rendered)
    parser.add_render_rule("formula_block", _rendered)


def mathml(tex: str, *, block: bool) -> str | None:
    """The formula; None if it is none that can be shown whole."""
    if not tex.strip() or len(tex) > LONGEST:
        return None
    plain = _UNNUMBERED.sub(r"\1*}", _NUMBERS.sub("", tex)).strip()
    if block and "\\\\" in plain and "\\begin" not in plain:
        plain = f"\\begin{{array}}{{c}}{plain}\\end{{array}}"  # else its lines became one
    from latex2mathml.converter import convert  # when there is a formula: it takes as long as all the rest

    try:
        made = str(convert(plain, display="block" if block else "inline"))
        root = ElementTree.fromstring(made)  # noqa: S314 - begun by a library's own tag: nothing is declared in it
    except Exception:  # of many kinds, RecursionError among them
        return None
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name not in TAGS or "href" in element.attrib or _COMMAND.match((element.text or "").strip()):
            return None  # raw markup, a link, or a command that is not known
    return made.replace("<math ", f'<math alttext="{html.escape(tex.strip())}" ', 1)


def without_formulas(text: str) -> tuple[str, int | None]:
    """The text with its formulas made harmless, of the same length; and where one begins that is not closed."""
    pieces, at, place = [], 0, 0
    while (found := _OPENER.search(text, place)) is not None:
        opener, place = found[0], found.end()
        if opener not in _INLINE:  # an escape
            continue
        formula = _read(text, found.start(), opener)
        if formula is not None:
            pieces += [text[at : found.start()], "x" * (formula.end() - found.start())]
            at = place = formula.end()
        elif opener != "$" or _begun(text, found.start()):
            return "".join([*pieces, text[at:]]), found.start()
    return "".join([*pieces, text[at:]]), None


_OPENER = re.compile(r"\\.|\$\$?", re.DOTALL)
_BEGUN = re.compile(r"\$-?[a-zA-Z(\\{|][^\n$`]{0,80}")


def _begun(text: str, at: int) -> bool:
    """Whether it looks like a formula that is not closed yet: not like an amount, and not for long."""
    return _after_nothing(text, at) and _BEGUN.fullmatch(text, at) is not None


def _after_nothing(text: str, at: int) -> bool:
    return at == 0 or not (text[at - 1].isalnum() or text[at - 1] in "\\$")


def unfinished_block(text: str) -> int | None:
    """Where a line begins that begins a formula which is not closed at the end of the text."""
    begin = max((blank.end() for blank in _BLANK.finditer(text)), default=0)
    opened, closer = None, ""
    for line in text[begin:].splitlines(keepends=True):
        inner = _AROUND.sub("", line, count=1)
        start = 0
        if opened is None and (found := _BLOCK.match(inner)):
            opened, closer, start = begin, _closer(found), found.end()
        if opened is not None and closer in inner[start:]:
            opened = None
        begin += len(line)
    return opened


_BLANK = re.compile(r"^[ \t>]*\n", re.MULTILINE)
_AROUND = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*")


def _closer(opener: re.Match[str]) -> str:
    return {"$$": "$$", "\\[": "\\]"}.get(opener[0]) or f"\\end{{{opener[1]}}}"


def _read(text: str, at: int, opener: str) -> re.Match[str] | None:
    if opener == "$" and not _after_nothing(text, at):
        return None
    found = _INLINE[opener].match(text, at)
    return found if found is not None and found[1].strip() else None


def _inline(state: StateInline, silent: bool) -> bool:
    opener = next((each for each in _INLINE if state.src.startswith(each, state.pos)), None)
    # What is not closed once is not closed further on either: else many of them took their time squared.
    failed = state.env.setdefault("not_closed", {})
    if opener is None or failed.get(opener) is state.src:
        return False
    found = _read(state.src, state.pos, opener)
    if found is None or found.end() > state.posMax:
        if opener != "$":
            failed[opener] = state.src
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup, token.meta = found[1], found[0], {"block": opener in ("\\[", "$$")}
    state.pos = found.end()
    return True


def _block(state: StateBlock, begin: int, end: int, silent: bool) -> bool:
    if state.sCount[begin] - state.blkIndent >= 4:
        return False
    start = state.bMarks[begin] + state.tShift[begin]
    opener = _BLOCK.match(state.src, start, state.eMarks[begin])
    failed: dict[str, int] = state.env.setdefault("not_closed_lines", {})
    if opener is None or begin < failed.get(closer := _closer(opener), 0):
        return False
    line = begin
    while True:
        from_here = opener.end() if line == begin else state.bMarks[line] + state.tShift[line]
        place = state.src.find(closer, from_here, state.eMarks[line])
        if place >= 0:
            break
        line += 1
        if line >= end or state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            failed[closer] = line
            return False
    if state.src[place + len(closer) : state.eMarks[line]].strip(" \t.,;"):
        return False
    if silent:
        return True
    token = state.push("formula_block", "math", 0)
    token.block, token.map, token.meta = True, [begin, line + 1], {"block": True}
    whole = state.getLines(begin, line + 1, state.blkIndent, False).strip()
    token.markup = whole
    inner = whole.rstrip(" \t.,;")
    token.content = inner if opener[1] else inner[2 : len(inner) - 2]
    token.info = whole[len(inner) :]  # a sentence may end with it
    state.line = line + 1
    return True


def _rendered(
    renderer: object, tokens: Sequence[Token], at: int, options: object, environment: MutableMapping[str, Any]
) -> str:
    token = tokens[at]
    made = mathml(token.content, block=token.meta["block"])
    if made is None:
        made = html.escape(token.markup)
    elif token.block:
        made += token.info
    return f"<p>{made}</p>" if token.block else made
