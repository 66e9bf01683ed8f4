"""URLs as they may be shown: without the passwords and keys in them, also where they are written wrong.

What is no URL at all may have been meant as one, and then nobody knows where its password ends. So more is hidden than
has to be, rather than less.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_SCHEME = r"(?:https?|sqlite|postgres(?:ql)?|(?:redis|valkey)s?(?:\+\w+)?):"
_BEGINS = rf"(?:[^:/@]*:?/+|{_SCHEME})"
"""What stands before a user or a host, with its colon or slashes forgotten, too."""
_QUERY = re.compile(
    r"((?<=[?&;'\s])(?:listen|[^=&\s]*(?:secret|password|token|key)[^=&\s]*)|\A\w*password)=[^&]*", re.IGNORECASE
)
_ALONE = re.compile(r"\A(https?:?/+)[^/:]+@", re.IGNORECASE)
"""What stands before a host of HTTP, and may be a token."""
_USER = re.compile(rf"\A((?:{_BEGINS}|(?![^:/@]*://))[^:/]*):.*@", re.IGNORECASE | re.DOTALL)
_HOST = r"(?:\[[^]/?]*\]|(?!\[[^]/?]*\])[^/?:,]*)"
_NO_PORT = re.compile(
    rf"\A((?:[^:/@]*(?:://?|//)(?!/)|{_SCHEME})(?:[^/]*@|(?![^/]*@))(?:{_HOST}(?::\d{{0,5}})?,)*{_HOST})"
    r":(?!\d{0,5}(?:[/?#,]|\Z)).*",
    re.IGNORECASE | re.DOTALL,
)
"""A password where a host was forgotten behind it."""
_INNER = re.compile(r"([?&][^=&\s]*=[a-z][a-z0-9+.-]*:/+)[^&]*@", re.IGNORECASE)
"""A URL as a value in another one."""
_IN_TEXT = re.compile(
    r"(?:[a-z][a-z0-9+.-]{0,20}://|[?&](?=[\w-]+=))[^\s<>\"`\u2000-\u206f\u3000-\u303f\uff00-\uffef]+", re.IGNORECASE
)
_MARKS = ".,;:!?'*)]}"
"""What stands behind a URL in a sentence."""
_SERVER = re.compile(r"([^:/@?#]*://)?([^/?#\s]*)(.*)", re.DOTALL)


def shown(url: str) -> str:
    """A URL, or what was meant as one, without passwords."""
    told = _ALONE.sub(rf"\1{HIDDEN}@", _QUERY.sub(rf"\1={HIDDEN}", url))
    told = _NO_PORT.sub(rf"\1:{HIDDEN}", _USER.sub(rf"\1:{HIDDEN}@", told))
    return _INNER.sub(rf"\1{HIDDEN}@", told)


def shown_in(text: str) -> str:
    """A text of people's, without the passwords of the URLs in it."""

    def told(found: re.Match[str]) -> str:
        url = found[0].rstrip(_MARKS)
        return shown(url) + found[0][len(url) :]

    return _IN_TEXT.sub(told, text)


def server_of(url: str) -> str:
    """The scheme and the host of a URL, without its user, port, path and query; the host is hidden where an ``@``
    behind it, or a ``%`` in it, leaves open what is a password."""
    found = _SERVER.fullmatch(url)
    assert found is not None
    scheme, place, rest = found[1] or "", found[2].rpartition("@")[2], found[3]
    host = re.match(r"\[[^]]*\]?|[^:]*", place)
    assert host is not None
    return f"{scheme}{HIDDEN if '@' in rest or '%' in place else host[0]}"[:128]
