"""Markdown of answers as HTML that a page may show: markdown-it-py reads it, Pygments colours code, nh3 cleans all.

The chat page asks for it beside the stream, never on its path: text is shown as it comes, and its looks follow. What an
answer says becomes markup only here, and only through ``_CLEANER``: raw HTML stays text, images become links, and links
lead to http, https and mail addresses.

A text that still grows is rendered as if it ended well: markers that are not closed yet are closed or left out, so that
nobody sees ``**`` before it turns into bold.
"""

from __future__ import annotations

import asyncio
import functools
import html
import re
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from ..errors import TooLarge

MAX_TEXTS = 256
MAX_CHARACTERS = 200_000
"""Of all texts of one request together; a page shows what is longer as it is."""
HIGHLIGHTED = 20_000
"""Characters of a code block up to which its words are marked; lexers are regular expressions, slow on some input."""
CACHED = 512
CACHED_CHARACTERS = 20_000

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="legato-markdown")  # one: the parser's linkifier keeps state


class RenderRequest(msgspec.Struct, frozen=True):
    """What a page wants to show.

    Attributes:
        texts: Markdown, each on its own.
        growing: whether more is to come at their ends.
    """

    texts: list[str]
    growing: bool = False


class Block(msgspec.Struct, frozen=True):
    """A paragraph, list, table ...: the line on which it begins, from 0, and its HTML."""

    line: int
    html: str


class Rendered(msgspec.Struct, frozen=True):
    """One text's blocks."""

    blocks: list[Block]


class RenderAnswer(msgspec.Struct, frozen=True):
    """The texts in the order in which they were sent."""

    rendered: list[Rendered]


async def answer(request: RenderRequest) -> RenderAnswer:
    """All texts of a request, beside the event loop.

    Raises:
        TooLarge: more than ``MAX_TEXTS`` or ``MAX_CHARACTERS``.
    """
    if len(request.texts) > MAX_TEXTS or sum(map(len, request.texts)) > MAX_CHARACTERS:
        raise TooLarge(
            f"A request may have {MAX_TEXTS} texts with {MAX_CHARACTERS} characters together.", limit=MAX_CHARACTERS
        )
    one = render_growing if request.growing else render
    work: Callable[[], list[Rendered]] = functools.partial(list, map(one, request.texts))
    return RenderAnswer(await asyncio.get_running_loop().run_in_executor(_THREAD, work))


def render(text: str) -> Rendered:
    """A whole text."""
    return _render_short(text) if len(text) <= CACHED_CHARACTERS else Rendered(_blocks(text))


@functools.lru_cache(CACHED)
def _render_short(text: str) -> Rendered:
    return Rendered(_blocks(text))


def render_growing(text: str) -> Rendered:
    """A text to which more will be added.

    The place where more can be shown until the next rendering is marked by an empty ``<span class="fresh">``. There is
    none after a line's end, or while the meaning of a marker is undecided.
    """
    text = re.sub(r"\r\n?", "\n", text)
    kept, closers = mend(text)
    goes_on = kept == text and _CARET not in text and (not _LINE_BEGINS.search(text) or _ends_in_code(text, level=0))
    blocks = _blocks(kept + _CARET + closers if goes_on else kept + closers)
    if blocks and blocks[-1].html.startswith("<p>|"):  # it may become a table
        return Rendered(blocks[:-1])
    return Rendered([Block(block.line, block.html.replace(_CARET, _FRESH)) for block in blocks] if goes_on else blocks)


# Text that grows ------------------------------------------------------------------------------------------------------

_CARET = "\u2e2e"
"""Stands where text will go on, while it is parsed: punctuation, so that it changes no marker's meaning; and rare."""
_FRESH = '<span class="fresh"></span>'

_UNDECIDED = re.compile(r"[ \t>]*(?:[-*+=_#]+|\d{1,9}[.)]?|[`~]+|(?:`{3,}|~{3,})[^`]*)?[ \t]*")
"""A line of which nobody can say yet what it begins."""

_UNFINISHED = (
    (re.compile(r"!\[[^\]\n]*(?:\](?:\([^)\n]*)?)?$"), ""),
    (re.compile(r"\[([^\]\n]*)(?:\](?:\([^)\n]*)?)?$"), r"\1"),
    (re.compile(r"(?:<[^>\s]*|!|\\)$"), ""),
)
_LINE_BEGINS = re.compile(r"\n[ \t>]*$")
_PARTIAL_FENCE = re.compile(r"\n[ \t>]*[`~]+[ \t]*$")
_CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_MARKS = re.compile(r"(?<!\\)(?:\*\*\*|\*\*|\*|~~)")


def mend(text: str) -> tuple[str, str]:
    """``text`` as if its last paragraph ended well: without what is undecided, and what closes the open markers."""
    if _ends_in_code(text):
        return _PARTIAL_FENCE.sub("\n", text), ""
    line = text.rfind("\n") + 1
    if _UNDECIDED.fullmatch(text, line):
        text = text[:line]
    begin = _last_inline(text)
    if begin is None:
        return text, ""
    before, last = text[:begin], text[begin:]
    plain = _CODE_SPAN.sub(_harmless, last)
    if opened := re.search(r"(`+)[^`]*$", plain):
        if last[opened.end(1) :].strip():
            return text, opened[1]
        last, plain = last[: opened.start()], plain[: opened.start()]
    for unfinished, instead in _UNFINISHED:
        if found := unfinished.search(plain):
            last = last[: found.start()] + found.expand(instead)
            plain = plain[: found.start()] + found.expand(instead)
    last, closers = _closed(last, plain)
    return before + last, closers


def _harmless(code: re.Match[str]) -> str:
    return "x" * len(code[0])


def _closed(text: str, plain: str) -> tuple[str, str]:
    """What closes bold, emphasis and deletions; ``plain`` is the text with its code made harmless."""
    bare = re.search(r"[*~]+$", plain)  # opens nothing yet, or closes, perhaps by half
    end = bare.start() if bare else len(plain)
    closers = "".join(reversed(_opened(plain[:end])))
    if bare and bare[0] == closers:
        return text, ""
    return (text[:end].rstrip() if closers or bare else text), closers


def _opened(plain: str) -> list[str]:
    opened: list[str] = []
    for mark in _MARKS.finditer(plain):
        after = plain[mark.end() : mark.end() + 1]
        before = plain[mark.start() - 1 : mark.start()] if mark.start() else ""
        if mark[0] in opened and before.strip():
            del opened[opened.index(mark[0]) :]
        elif after.strip():
            opened.append(mark[0])
    return opened


def _last_inline(text: str) -> int | None:
    """Where the last stretch of inline text begins, to its line; None if the text ends with something else."""
    token = _last_leaf(text)
    if token is None or token.type != "inline":
        return None
    line = token.map[0] if token.map else text.rstrip("\n").count("\n")
    return sum(len(each) + 1 for each in text.split("\n")[:line])


def _last_leaf(text: str) -> Token | None:
    return next((token for token in reversed(_PARSER.parse(text)) if token.nesting == 0), None)


def _ends_in_code(text: str, level: int | None = None) -> bool:
    """Whether the text ends inside a fenced block (on that level), so that all of what follows is code, too."""
    token = _last_leaf(text)
    if token is None or token.type != "fence" or token.map is None or level not in (None, token.level):
        return False
    lines = text.split("\n")
    first, end = token.map
    if end < len(lines) - (lines[-1] == "") or first == len(lines) - 1:
        return False
    closing = re.fullmatch(rf"[ \t>]*{re.escape(token.markup)}+[ \t]*", lines[end - 1])
    return first == end - 1 or closing is None


# Markup ---------------------------------------------------------------------------------------------------------------


def _blocks(text: str) -> list[Block]:
    """Each top-level block by itself, so that a page can keep those that are finished."""
    environment: MutableMapping[str, Any] = {}  # link definitions, which hold for the whole text
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


def _highlighted(code: str, language: str) -> str:
    """The code with its words marked by classes where its language is known, else as it is."""
    if language and len(code) <= HIGHLIGHTED:
        try:
            lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
        except ClassNotFound:
            return html.escape(code)
        return str(highlight(code, lexer, _FORMATTER))
    return html.escape(code)


def _as_we_show_it(state: StateCore) -> None:
    """The page's title is the heading of the first level, and images are not loaded."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        elif token.type == "inline" and token.children:
            token.children = list(_without_images(token.children))


def _without_images(tokens: Sequence[Token]) -> Iterator[Token]:
    links = 0
    for token in tokens:
        links += {"link_open": 1, "link_close": -1}.get(token.type, 0)
        if token.type != "image":
            yield token
            continue
        source = str(token.attrGet("src"))
        if not links:
            yield Token("link_open", "a", 1, attrs={"href": source})
        yield Token("text", "", 0, content=token.content or source)
        if not links:
            yield Token("link_close", "a", -1)


def _fence(renderer: object, tokens: Sequence[Token], at: int, options: object, environment: object) -> str:
    token = tokens[at]
    language = (token.info.split(maxsplit=1) or [""])[0][:30]
    code, grows, rest = token.content.partition(_CARET)
    named = f' data-language="{html.escape(language)}"' if language else ""
    return f"<pre{named}><code>{_highlighted(code, language)}{grows}{rest}</code></pre>"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": True}).enable(["table", "strikethrough", "linkify"])
    assert parser.linkify is not None
    parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False})  # legato.py is a file, not a site in Paraguay
    parser.core.ruler.push("as_we_show_it", _as_we_show_it)
    parser.add_render_rule("fence", _fence)
    return parser


def _attribute(tag: str, name: str, value: str) -> str | None:
    return value if name != "class" or re.fullmatch(r"[a-z0-9]{1,3}", value) else None


_FORMATTER = HtmlFormatter(nowrap=True)
_PARSER = _parser()
_CLEANER = nh3.Cleaner(
    tags={
        *("p", "br", "hr", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li", "pre", "code", "span"),
        *("a", "em", "strong", "s", "table", "thead", "tbody", "tr", "th", "td"),
    },
    attributes={"a": {"href", "title"}, "ol": {"start"}, "pre": {"data-language"}, "span": {"class"}},
    attribute_filter=_attribute,
    set_tag_attribute_values={"a": {"target": "_blank"}},
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",  # an answer knows nothing of this server's addresses
    link_rel="noopener noreferrer",
)
