"""The Markdown that models write, where it is more than CommonMark: GitHub's, that of formulas, and that of CJK texts.

Tables, task lists, alerts (``> [!NOTE]``) and deleted text are markdown-it-py's own, footnotes are a plugin's. A
footnote stays where it is written: an answer is shown while it grows, and nothing in it may change its place.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from mdit_py_plugins.footnote import footnote_plugin

from .formulas import formulas

__all__ = ["flavoured"]


def flavoured() -> MarkdownIt:
    """A parser of it. Raw HTML stays text, but for line breaks."""
    parser = MarkdownIt("commonmark", {"html": False, "linkify": True, "tasklists": True, "alerts": True})
    parser.enable(["table", "strikethrough", "linkify"])
    assert parser.linkify is not None
    parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False})  # legato.py is a file, not a site in Paraguay
    parser.linkify.match_at_start = _up_to_wide_signs(parser.linkify.match_at_start)
    inline = _Inline()
    inline.ruler, inline.ruler2 = parser.inline.ruler, parser.inline.ruler2
    parser.inline = inline
    parser.inline.ruler.before("html_inline", "line_break", _line_break)
    parser.use(footnote_plugin, inline=False)
    parser.core.ruler.disable("footnote_tail")
    parser.inline.ruler.at("footnote_ref", _note)
    parser.core.ruler.push("attributes", _attributes)
    for name, rule in _RULES.items():
        parser.add_render_rule(name, rule)
    formulas(parser)
    return parser


# Emphasis -------------------------------------------------------------------------------------------------------------


class _Emphasis(StateInline):
    """Finds emphasis beside Chinese, Japanese and Korean, which put no blanks around their punctuation.

    CommonMark asks for a blank or a sign outside of ``**"so"**``; here, a letter of those scripts is as good. After
    https://github.com/tats-u/markdown-cjk-friendly, whose rules markdown-it and micromark have as plugins.
    """

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        end = start
        while end < self.posMax and self.src[end] == self.src[start]:
            end += 1
        before = self.src[start - 1] if start > 0 else " "
        after = self.src[end] if end < self.posMax else " "
        if not (_CJK.match(before) or _CJK.match(after)):
            return super().scanDelims(start, canSplitWord)
        left = not _blank(after) and (not _sign(after) or _beside(before))
        right = not _blank(before) and (not _sign(before) or _beside(after))
        return Scanned(
            left and (canSplitWord or not right or _punctuation(before)),
            right and (canSplitWord or not left or _punctuation(after)),
            end - start,
        )


_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u2fdf\u2ff0-\u303f\u3040-\u31ff\u3200-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\ufe30-\ufe4f\uff00-\uffef\U0001aff0-\U0001b16f\U0001f200-\U0001f2ff\U00020000-\U0003fffd]"
)


def _blank(character: str) -> bool:
    return isWhiteSpace(ord(character))


def _punctuation(character: str) -> bool:
    return isMdAsciiPunct(ord(character)) or isPunctChar(character)


def _sign(character: str) -> bool:
    return _punctuation(character) and not _CJK.match(character)


def _beside(character: str) -> bool:
    return _blank(character) or _punctuation(character) or _CJK.match(character) is not None


class _Inline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: MutableMapping[str, Any], tokens: list[Token]) -> list[Token]:
        state = _Emphasis(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


# Addresses, line breaks, notes ----------------------------------------------------------------------------------------

_ADDRESS = re.compile(
    "[^\\s\u2018\u2019\u201c\u201d\u3001\u3002\u3008-\u3011\u3014-\u301b\uff01\uff08\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\uff3b\uff3d\uff5b-\uff65]*"
)


def _up_to_wide_signs(find: Callable[[str], Any]) -> Callable[[str], Any]:
    """Ends an address before the punctuation of Chinese and Japanese, which put no blanks behind it."""

    def found(text: str) -> Any:
        address = _ADDRESS.match(text)
        return find(address[0] if address else "")

    return found


_BREAK = re.compile(r"<br\s{0,9}/?>", re.IGNORECASE)
_NOTE = re.compile(r"\[\^([\w-]{1,32})\]")


def _line_break(state: StateInline, silent: bool) -> bool:
    found = _BREAK.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos = found.end()
    return True


def _note(state: StateInline, silent: bool) -> bool:
    """A reference to a footnote: by a number always, by a word where the text has the note."""
    found = _NOTE.match(state.src, state.pos, state.posMax)
    if found is None or not (found[1].isdecimal() or f":{found[1]}" in state.env.get("footnotes", {}).get("refs", {})):
        return False
    if not silent:
        state.push("footnote_ref", "", 0).content = found[1]
    state.pos = found.end()
    return True


def _attributes(state: StateCore) -> None:
    """A cell says how it is aligned by an attribute, since styles are not let through; a task says what it is."""
    for token in state.tokens:
        if token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", None)):
            token.attrSet("align", str(style).removeprefix("text-align:"))


# What they look like --------------------------------------------------------------------------------------------------


def _footnote_ref(renderer: object, tokens: Sequence[Token], at: int, *_: object) -> str:
    return f"<sup>[{html.escape(tokens[at].content)}]</sup>"


def _note_open(renderer: object, tokens: Sequence[Token], at: int, *_: object) -> str:
    return f'<div class="footnote"><sup>[{html.escape(tokens[at].meta["label"])}]</sup> '


def _note_close(*_: object) -> str:
    return "</div>"


_RULES: dict[str, Callable[..., str]] = {
    "footnote_ref": _footnote_ref,
    "footnote_reference_open": _note_open,
    "footnote_reference_close": _note_close,
}
