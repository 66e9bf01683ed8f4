"""Text from elsewhere, made fit for a terminal.

The one rule: nothing that a server sent reaches a terminal without having passed through here. An escape sequence in
an answer could otherwise retitle the window, hide lines, or type for the user.
"""

from __future__ import annotations

import re
import unicodedata

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that reorder what stands around them: what is read would not be what is there."""
_UNSEEN = "\u180e\u200b\u2060-\u2064\ufeff\ufff9-\ufffb"
"""Characters that take no room: two names that look the same need not be. Those that join letters or emoji stay."""
_HOSTILE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}{_UNSEEN}\ud800-\udfff]")
_BREAKS = re.compile("[\u2028\u2029\x85]|\r\n")


def safe(text: str) -> str:
    """``text`` with its lines and tabs, and with every other control character made visible and harmless."""
    return _HOSTILE.sub(_shown, _BREAKS.sub("\n", text))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x0D:
        return ""
    if code < 0x20:
        return chr(0x2400 + code)  # the picture of the control character, such as a small ESC
    return "\u2421" if code == 0x7F else "\ufffd"


def line(text: str, width: int | None = 100) -> str:
    """``text`` made safe, on one line, cut to ``width`` cells (None for no limit)."""
    joined = " ".join(safe(text).split())
    return joined if width is None or cells(joined) <= width else _cut(joined, width)


def typed(text: str) -> str:
    """``text`` from the command line or the keyboard, with bytes that were no UTF-8 replaced: they cannot be sent."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def escaped(json: str) -> str:
    """JSON text that means the same, with nothing in it that a terminal would obey."""
    return _HOSTILE.sub(lambda match: f"\\u{ord(match[0]):04x}", json)


def cells(text: str) -> int:
    """How many columns a terminal needs for ``text``, about: wide characters take two."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, width: int) -> str:
    room = width - 1
    for place, character in enumerate(text):
        room -= _width(character)
        if room < 0:
            return text[:place] + "…"
    return text
