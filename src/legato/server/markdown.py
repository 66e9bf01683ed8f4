"""Markdown of answers as HTML that a page may show: markdown-it-py reads it, Pygments colours code, latex2mathml makes
formulas, nh3 cleans all.

What an answer says becomes markup only here, and only through ``_CLEANER``: raw HTML stays text, images become links,
and links lead to http, https and mail addresses.

A text that still grows is rendered as if it ended well: markers that are not closed yet are closed or left out, so that
nobody sees ``**`` before it turns into bold.

Parsers and lexers of others take their time with some texts, more than in proportion to their length, and hold the
interpreter meanwhile. So a server loads nothing of this: it has it done by a ``Press``. What is ours takes time in
proportion to the text's length.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import msgspec
import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from . import formulas
from .colours import coloured, coloured_growing
from .flavour import flavoured
from .growth import SMALL, joined, taken_apart, together
from .typeset import FRESH


class Block(msgspec.Struct, frozen=True):
    """A paragraph, list, table ...: the line on which it begins, from 0, and its HTML."""

    line: int
    html: str


class Rendered(msgspec.Struct, frozen=True):
    """One text's blocks."""

    blocks: list[Block]


def render(text: str, *, colours: bool = True) -> Rendered:
    """A whole text; without ``colours``, code has no words marked."""
    return Rendered(_blocks(text, colours))


def render_growing(text: str, *, colours: bool = True) -> Rendered:
    """A text to which more will be added.

    The place where more can be shown until the next rendering is marked by an empty ``<span class="fresh">``. There is
    none after a line's end, or while the meaning of a marker is undecided.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (code := _code_alone(text, colours)) is not None:
        return code
    growth = taken_apart(text)
    pieces = [_piece(piece, colours) for piece in growth.pieces] if growth else []
    if growth is not None and together(growth, pieces):
        tail = _growing(growth.tail, colours)
        whole = joined(growth, pieces, tail.blocks[0].html) if tail.blocks else None
        if whole is not None:
            rest = (Block(block.line + growth.lines, block.html) for block in tail.blocks[1:])
            return Rendered([Block(0, whole), *rest])
    return _growing(text, colours)


@functools.lru_cache(256)
def _piece(text: str, colours: bool) -> list[str]:
    return [block.html for block in _blocks(text, colours)]


_FENCE = re.compile(r"(`{3,})([^`\n]*)\n|(~{3,})([^\n]*)\n")


def _code_alone(text: str, colours: bool) -> Rendered | None:
    """A text that is one block of code, and not closed: as if it were parsed, and without that; None if it is not."""
    fence = _FENCE.match(text)
    if fence is None or len(text) < SMALL:
        return None
    mark = fence[1] or fence[3]
    if re.compile(f"^ {{0,3}}{mark}{mark[0]}*[ \t]*$", re.MULTILINE).search(text, fence.end()):
        return None
    kept = _without_fence_begun(text)
    goes_on = kept == text and _CARET not in text
    code = kept[fence.end() :].replace("\0", "\ufffd")
    language = _language(fence[2] or fence[4] or "")
    pieces = coloured_growing(code, language) if colours else [html.escape(code)]
    begin, end, _ = _cleaned(_code_block(language, "")).partition("</code>")
    inner = "".join([*map(_cleaned, pieces), FRESH if goes_on else "" if code.endswith("\n") else "\n"])
    return Rendered([Block(0, f"{begin}{inner}{end}</pre>")])


def _growing(text: str, colours: bool) -> Rendered:
    kept, closers = mend(text)
    begun = text[text.rfind("\n") + 1 :] if "\n" in text else "x"
    in_line = begun.strip(" \t>") != "" or _ends_in_code(text, level=0)
    goes_on = kept == text and _CARET not in text and in_line and not _ends_in_formula(text)
    blocks = _blocks(kept + _CARET + closers if goes_on else kept + closers, colours)
    if blocks and blocks[-1].html.startswith("<p>|"):  # it may become a table
        return Rendered(blocks[:-1])
    return Rendered([Block(block.line, block.html.replace(_CARET, FRESH)) for block in blocks] if goes_on else blocks)


# Text that grows ------------------------------------------------------------------------------------------------------
# No expression here is searched for that can begin in many places and fail in each only at the end of the text.

_CARET = "\u2e2e"
"""Stands where text will go on, while it is parsed: punctuation, so that it changes no marker's meaning; and rare."""

_UNDECIDED = re.compile(
    r"[-*+=_#$]+|\d{1,9}[.)]?|[`~]+|(?:`{3,}+|~{3,}+)[^`]*+|"
    r"(?:[-*+]|\d{1,9}[.)])[ \t]+\[(?:[ xX]\]?)?|\[![a-zA-Z]*\]?|\[\^[\w-]*\]?|\\(?:[a-z]+(?:\{[a-z]*\*?)?)?|"
    r"\[\d*\]?|\[[^\]^][^\]]*\]:[ \t]*\S*(?:[ \t]+[\"'(].*)?|"
)
"""A line, without what is around it, of which nobody can say yet what it begins."""
_ALERT_BEGUN = re.compile(r"[ \t]*>[ \t>]*\[![a-zA-Z]+\][ \t]*")
"""A line that is the title of what follows it, if something does."""
_CELL = re.compile(r"\\.|\|")
"""An escape, or where a cell ends."""
_NOTE_BEGUN = re.compile(r"\[\^[\w-]{0,32}\]?\Z")
LONGEST_ADDRESS = 200
"""Characters of a link's address in which a parenthesis is looked for that belongs to it, and of one that is told."""
_ADDRESS_SIGNS = re.compile(r"[()\s]")
_ENTITY_BEGUN = re.compile(r"&#?\w{0,31}")
_MARKS = re.compile(r"(?<!\\)(?:\*\*\*|\*\*|\*|~~)")


def mend(text: str) -> tuple[str, str]:
    """``text`` as if its last paragraph ended well: without what is undecided, and what closes the open markers."""
    line = text.rfind("\n") + 1
    end = text[line:].lstrip(" \t>").rstrip(" \t")
    if _ends_in_code(text):
        return _without_fence_begun(text), ""
    if (formula := formulas.unfinished_block(text)) is not None:
        text = text[:formula]
    elif _UNDECIDED.fullmatch(end):
        text = text[:line]
        before = text[:-1].rpartition("\n")[2]
        if _ALERT_BEGUN.fullmatch(before):
            text = text[: -1 - len(before)]
    begin = _last_inline(text)
    if begin is None:
        return text, ""
    before, last = text[:begin], text[begin:]
    plain, formula = formulas.without_formulas(_without_code(last))
    if formula is not None:
        last, plain = last[:formula], plain[:formula]
    if "`" in plain:
        opened = plain.rindex("`") + 1
        start = len(plain[:opened].rstrip("`"))
        if last[opened:].strip():
            return text, plain[start:opened]
        last, plain = last[:start], plain[:start]
    if (note := _NOTE_BEGUN.search(plain)) is not None:
        last, plain = last[: note.start()], plain[: note.start()]
    for opener, keep in (("![", False), ("[", True)):
        if found := _unfinished_link(plain, opener):
            start, until = found
            label = slice(start + 1, until if keep else start + 1)
            last, plain = last[:start] + last[label], plain[:start] + plain[label]
    if (sign := _unfinished_sign(plain)) is not None:
        last, plain = last[:sign], plain[:sign]
    last, closers = _closed(last, plain)
    return before + last, closers


def _without_fence_begun(text: str) -> str:
    """A text that ends in code, without a last line that may be the code's end."""
    line = text.rfind("\n") + 1
    end = text[line:].strip(" \t>")
    return text[:line] if line and end and not end.strip("`~") else text


def _without_code(text: str) -> str:
    """The text with what is in code spans made harmless; of the same length."""
    runs = [run.span() for run in re.finditer("`+", text)]
    closing: dict[int, int] = {}  # of each run that has it, the next one of the same length
    following: dict[int, int] = {}
    for number, (begin, end) in reversed(list(enumerate(runs))):
        if end - begin in following:
            closing[number] = following[end - begin]
        following[end - begin] = number
    pieces, at, number = [], 0, 0
    while number < len(runs):
        if number in closing:
            begin, number = runs[number][0], closing[number]
            end = runs[number][1]
            pieces += [text[at:begin], "x" * (end - begin)]
            at = end
        number += 1
    return "".join([*pieces, text[at:]])


def _unfinished_link(text: str, opener: str) -> tuple[int, int] | None:
    """Where a link begins at the end of the text that is not closed, and where its label ends."""
    text = text.removesuffix("\n")
    line, length, address = text.rfind("\n") + 1, len(text), text.rfind(")")
    while line < length:
        end = text.find("]", line)
        begin = text.find(opener, line, length if end < 0 else end)
        if end < 0:
            return None if begin < 0 else (begin, length)
        if begin >= 0 and (end == length - 1 or (text[end + 1] == "(" and (address < end or _open(text, end + 1)))):
            return begin, end
        line = end + 1
    return None


def _open(text: str, begin: int) -> bool:
    """Whether the text may end within the address of a link, which begins there."""
    depth = 0
    for sign in _ADDRESS_SIGNS.finditer(text, begin, begin + LONGEST_ADDRESS):
        depth += {"(": 1, ")": -1}.get(sign[0], 0)
        if depth == 0 or sign[0].isspace():  # a title may follow, in which parentheses are as others
            return False
    return len(text) <= begin + LONGEST_ADDRESS


def _unfinished_sign(text: str) -> int | None:
    """Where something begins at the end of the text that may be a tag, an image or an escape."""
    text = text.removesuffix("\n")
    if not text or text[-1].isspace():
        return None
    word = text.rsplit(None, 1)[-1].rpartition(">")[2]
    if "<" in word:
        return len(text) - len(word) + word.index("<")
    if _ENTITY_BEGUN.fullmatch(word, entity := max(word.rfind("&"), 0)):
        return len(text) - len(word) + entity
    return len(text) - 1 if text[-1] in "!\\$" else None


def _closed(text: str, plain: str) -> tuple[str, str]:
    """What closes bold, emphasis and deletions; ``plain`` is the text with its code made harmless."""
    body = plain.removesuffix("\n")
    end = len(body.rstrip("*~"))
    bare = body[end:]  # opens nothing yet, or closes, perhaps by half
    closers = "".join(reversed(_opened(plain[:end] if bare else plain)))
    if bare and bare == closers:
        return text, ""
    if bare:
        text = text[:end]
    return (text.rstrip() if closers or bare else text), closers


def _opened(plain: str) -> list[str]:
    opened: list[str] = []
    first: dict[str, int] = {}  # where each kind of mark stands for the first time
    for mark in _MARKS.finditer(plain):
        kind = mark[0]
        after = plain[mark.end() : mark.end() + 1]
        before = plain[mark.start() - 1 : mark.start()] if mark.start() else ""
        if kind in first and before.strip():
            place = first[kind]
            del opened[place:]
            first = {each: at for each, at in first.items() if at < place}
        elif after.strip():
            first.setdefault(kind, len(opened))
            opened.append(kind)
    return opened


def _last_inline(text: str) -> int | None:
    """Where the last stretch of inline text begins, to its line or cell; None if it has ended, or is none."""
    token, holder = _last_held(text)
    if token is None or token.type != "inline" or token.map is None:
        return None
    *others, last = text.split("\n")
    blank = last.strip(" \t>") == ""
    if holder in ("td_open", "th_open"):
        cell = max((sign.end() for sign in _CELL.finditer(last) if sign[0] == "|"), default=0)
        return None if blank else len(text) - len(last) + cell
    if blank and others and (holder == "heading_open" or others[-1].strip(" \t>") == ""):
        return None
    return sum(len(each) + 1 for each in text.split("\n")[: token.map[0]])


def _last_leaf(text: str) -> Token | None:
    return _last_held(text)[0]


@functools.lru_cache(maxsize=2)  # of a text and its mended beginning, for all that is asked of their ends
def _last_held(text: str) -> tuple[Token | None, str]:
    """The last token that holds no others, and the type of the one before it, which holds it."""
    tokens = _BLOCKS_ALONE.parse(text)
    at = next((at for at in range(len(tokens) - 1, -1, -1) if tokens[at].nesting == 0), None)
    return (None, "") if at is None else (tokens[at], tokens[at - 1].type if at else "")


def _ends_in_code(text: str, level: int | None = None) -> bool:
    """Whether the text ends inside a fenced block (on that level), so that all of what follows is code, too."""
    token = _last_leaf(text)
    if token is None or token.type != "fence" or token.map is None or level not in (None, token.level):
        return False
    lines = text.split("\n")
    first, end = token.map
    if end < len(lines) - (lines[-1] == "") or first == len(lines) - 1:
        return False
    closing = lines[end - 1].lstrip(" \t>").rstrip(" \t")
    return first == end - 1 or len(closing) < len(token.markup) or closing.strip(token.markup[0]) != ""


def _ends_in_formula(text: str) -> bool:
    """Whether the text ends with a formula on lines of its own, which is none any more once something follows it."""
    token = _last_leaf(text)
    return token is not None and token.type == "formula_block" and not text.endswith("\n")


# Markup ---------------------------------------------------------------------------------------------------------------


def _blocks(text: str, colours: bool) -> list[Block]:
    """Each top-level block by itself, so that a page can keep those that are finished."""
    environment: MutableMapping[str, Any] = {"colours": colours}  # and link definitions, which hold for the whole text
    tokens = _PARSER.parse(text, environment)
    return [
        Block(line, _CLEANER.clean(_PARSER.renderer.render(group, _PARSER.options, environment)).strip())
        for line, group in _groups(tokens)
    ]


def _groups(tokens: Sequence[Token]) -> Iterator[tuple[int, list[Token]]]:
    group: list[Token] = []
    for token in tokens:
        group.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield (group[0].map or [0])[0], group
            group = []


def _as_we_show_it(state: StateCore) -> None:
    """The page's title is the heading of the first level, and images are not loaded."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        elif token.type == "inline" and token.children:
            token.children = list(_leading_out(_without_images(token.children)))


def _leading_out(tokens: Iterable[Token]) -> Iterator[Token]:
    """A link that leads nowhere from this page is its text, and behind it the address, unless that says nothing."""
    address: str | None = None
    for token in tokens:
        if token.type == "link_open" and not _LEADING.match(href := str(token.attrGet("href"))):
            silent = token.markup or href.startswith(("#", "data:"))  # it is told already, or here
            address = "" if silent else _PARSER.normalizeLinkText(href)
        elif token.type == "link_close" and address is not None:
            if address:
                shown = address if len(address) <= LONGEST_ADDRESS else f"{address[:LONGEST_ADDRESS]}…"
                yield Token("text", "", 0, content=f" ({shown})")
            address = None
        else:
            yield token


def _without_images(tokens: Sequence[Token]) -> Iterator[Token]:
    links = 0
    for token in tokens:
        links += {"link_open": 1, "link_close": -1}.get(token.type, 0)
        if token.type != "image":
            yield token
            continue
        source = str(token.attrGet("src"))
        if not links:
            yield Token("link_open", "a", 1, attrs={"href": source}, markup="" if token.content else "autolink")
        yield Token("text", "", 0, content=token.content or source)
        if not links:
            yield Token("link_close", "a", -1)


def _fence(
    renderer: object, tokens: Sequence[Token], at: int, options: object, environment: MutableMapping[str, Any]
) -> str:
    token = tokens[at]
    code, grows, rest = token.content.partition(_CARET)
    language = _language(token.info)
    if not environment["colours"]:
        shown = html.escape(code)
    else:
        shown = "".join(coloured_growing(code, language)) if grows else coloured(code, language)
    return _code_block(language, f"{shown}{grows}{rest}")


def _language(info: str) -> str:
    return (info.split(maxsplit=1) or [""])[0][:30]


def _code_block(language: str, shown: str) -> str:
    named = f' data-language="{html.escape(language)}"' if language else ""
    return f"<pre{named}><code>{shown}</code></pre>"


def _parser() -> MarkdownIt:
    parser = flavoured()
    parser.core.ruler.push("as_we_show_it", _as_we_show_it)
    parser.add_render_rule("fence", _fence)
    return parser


def _attribute(tag: str, name: str, value: str) -> str | None:
    allowed = _VALUES.get((tag, name)) or _VALUES.get(("", name))
    return value if allowed is None or allowed.fullmatch(value) else None


_VALUES = {
    ("span", "class"): re.compile(r"[a-z0-9]{1,3}"),
    ("", "class"): re.compile(r"footnote|markdown-alert( markdown-alert-[a-z]+)?|markdown-alert-title"),
    ("", "align"): re.compile(r"left|center|right"),
    ("input", "type"): re.compile(r"checkbox"),
}
"""Of a tag's attribute, or of one of each tag, what it may say, where that is bounded."""
_SCHEMES = ("http", "https", "mailto", "tel")
_LEADING = re.compile(f"(?:{'|'.join(_SCHEMES)}):", re.IGNORECASE)
_PARSER = _parser()
_BLOCKS_ALONE = _parser()
_BLOCKS_ALONE.core.ruler.enableOnly(["normalize", "block"])
_CLEANER = nh3.Cleaner(
    tags={
        *("p", "br", "hr", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li", "pre", "code", "span"),
        *("a", "em", "strong", "s", "table", "thead", "tbody", "tr", "th", "td", "sup", "div", "input"),
        *formulas.TAGS,
    },
    attributes={
        "a": {"href", "title"},
        "ol": {"start"},
        "pre": {"data-language"},
        **{tag: {"class"} for tag in ("span", "div", "p")},
        **{tag: {"align"} for tag in ("th", "td")},
        "input": {"type", "checked", "disabled"},
        **formulas.ATTRIBUTES,
    },
    attribute_filter=_attribute,
    set_tag_attribute_values={"a": {"target": "_blank"}},
    url_schemes=set(_SCHEMES),
    url_relative="deny",  # an answer knows nothing of this server's addresses
    link_rel="noopener noreferrer",
)
_cleaned = functools.lru_cache(512)(_CLEANER.clean)
