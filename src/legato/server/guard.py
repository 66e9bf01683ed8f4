"""The guard: refuses what another site's page, or a name that was rebound to this machine, asks for.

A browser says of each request which name it was sent to (``Host``) and, of most, which page sent it (``Origin``,
``Sec-Fetch-Site``). No page can forge these. What is no browser can leave them out, and is not kept away by them.

- *Host.* A page of ``evil.test`` may have that name lead here, and read as if it were ours. So only names that are ours
  are answered: those of loopback, ``hosts``, and the address that the request came to, since no address can be rebound.
- *Origin.* Our own pages, those on this machine and those of ``cors`` may call.
- *Sec-Fetch-Site.* An image's or a link's request has no ``Origin``. What comes from elsewhere gets pages and what
  they load, and nothing of a dialect: there it could begin work, though it could not read the answer.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Sequence
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..about import ABOUT, About
from ..check import PORTS
from ..credentials import without_keys
from ..errors import InvalidInput, LegatoError
from ..logs import ACCESS
from .adaptor import Adaptor

access = logging.getLogger(ACCESS)

REQUEST_ID = b"x-request-id"
_TRACE = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
LOCAL_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
"""Browser origins that may use the API by default, besides its own: pages on this machine."""
OWN = "legato.own"
"""In a scope: no other site's page asks, as far as the guard knows. Only then a cookie counts."""
HEAD: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),  # CORS, by which all that may be elsewhere is asked, is free
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),  # a page says what it needs
]
"""On each answer, unless it says otherwise itself."""
CREDENTIALS = (b"access-control-allow-credentials", b"true")
"""Besides, on each answer to a site that ``cors`` names: its pages may send cookies (``credentials: "include"``)."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,255})(?::(\d{0,5}))?", re.ASCII)
_AUTHORITY_LENGTH = 262


def authority(text: str) -> tuple[str, int | None] | None:
    """Name and port of a ``Host`` field, so that what is the same is equal; None if it has not that form.

    Case, a dot at the end and the ways to write an address make no difference. An IPv6 address is without brackets.
    """
    return _authority(text) if len(text) <= _AUTHORITY_LENGTH else None


@functools.lru_cache(256)  # a server is asked by few names, and reading an address takes some 8 µs
def _authority(text: str) -> tuple[str, int | None] | None:
    match = _AUTHORITY.fullmatch(text.lower())
    if match is None or (match[2] and int(match[2]) > 65_535):
        return None
    name = match[1].removesuffix(".")
    ip = _ip(name.strip("[]"))
    if ip is None and (not name or name.startswith("[")):
        return None
    return str(ip or name), int(match[2]) if match[2] else None


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def host_names(given: Sequence[str]) -> frozenset[str]:
    """Names of ``hosts``, as ``authority`` has them.

    Raises:
        InvalidInput: one has not the form of a name.
    """
    return frozenset(text if text == "*" else _host_name(text) for text in given)


def _host_name(text: str) -> str:
    try:
        found = authority(text if text.isascii() else text.encode("idna").decode()) or authority(f"[{text}]")
    except UnicodeError:
        found = None
    if found is None or found[1] is not None:
        raise InvalidInput(f"A host is a name alone, such as chat.example.com, or '*' for all; got {text[:200]!r}.")
    return found[0]


def _split(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, name and port of an origin; the port is there also where it is the scheme's own."""
    scheme, _, rest = origin.lower().partition("://")
    found = authority(rest)
    return None if found is None else (scheme, found[0], found[1] or PORTS.get(scheme))


def origin_as_sent(text: str) -> str:
    """An origin as browsers write it: in lower case, without a slash at the end or the port that its scheme has."""
    split = _split(text.removesuffix("/"))
    if split is None:
        return text
    scheme, name, port = split
    shown = f"[{name}]" if ":" in name else name
    return f"{scheme}://{shown}" if port == PORTS.get(scheme) else f"{scheme}://{shown}:{port}"


def _about(scope: Scope) -> tuple[bytes, bytes]:
    """The id that a request came with, from who asks or a proxy, if it is one, else a new one; and its span."""
    id = trace = b""
    for name, value in scope["headers"]:
        if name == REQUEST_ID and _ID.fullmatch(value):
            id = value
        elif name == b"traceparent" and _TRACE.fullmatch(value):
            trace = value
    return id or f"req_{secrets.token_hex(16)}".encode(), trace


def _tell(scope: Scope, status: int, seconds: float) -> None:
    """Log an answer: the path without its query, in which some put what they sign in with, and without keys, as who
    revokes one by the whole of it puts there; of a stream, its head."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    path = without_keys(raw.partition(b"?")[0].decode("latin-1")[:500])
    said = {"method": scope["method"], "path": path, "status": status, "ms": round(seconds * 1000, 1)}
    access.info("%s %s %d in %.1f ms", *said.values(), extra=said)


class Guard:
    """Stands before an application of dialects and pages; also says in each answer's head what browsers make of it.

    Args:
        app: what is guarded.
        adaptor: of its dialects.
        origins: of other sites' pages that may call, as ``origin_as_sent``; ``"*"`` for all.
        hosts: names that are ours besides those of loopback; ``"*"`` for all.
        cookies: whether ``app`` wants to know where a cookie counts, see ``OWN``.

    Raises:
        InvalidInput: one of ``hosts`` has not the form of a name.
    """

    def __init__(
        self, app: ASGIApp, adaptor: Adaptor, origins: Sequence[str], hosts: Sequence[str], *, cookies: bool = False
    ) -> None:
        self._app = app
        self._adaptor = adaptor
        self._origins = frozenset(origins)
        self._hosts = host_names(hosts).union(_LOOPBACK)
        self._cookies = cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        dialect = self._adaptor.dialect(scope)
        began, status = time.monotonic(), 0
        id, trace = (b"", b"") if dialect is None else _about(scope)
        if id:
            ABOUT.set(About(request=id.decode(), trace=trace.decode()))
        named = "*" not in self._origins and Headers(scope=scope).get("origin") in self._origins

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                said = {name.lower() for name, _ in message["headers"]}
                marks = [mark for mark in HEAD if mark[0] not in said]
                if named:
                    marks.append(CREDENTIALS)
                if id:
                    marks.append((b"x-request-id", id))
                message = {**message, "headers": [*message["headers"], *marks]}
            await send(message)

        refusal = self._refusal(scope)
        try:
            if refusal is None:
                if self._cookies:
                    scope = {**scope, OWN: self._is_own(scope)}
                await self._app(scope, receive, send_marked)
            else:
                await self._adaptor.refuse(refusal, scope, receive, send_marked)
        finally:
            if access.isEnabledFor(logging.INFO):
                _tell(scope, status, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> LegatoError | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) > 1:  # who stands before the server may have looked at the other one
            return HostRepeated(hosts)
        host = hosts[0] if hosts else ""
        found = authority(host)
        old = not hosts and scope.get("http_version") == "1.0"  # of which no browser is
        if "*" not in self._hosts and not old and (found is None or not self._is_ours(found[0], scope)):
            return HostRefused(host)
        site = headers.get("sec-fetch-site", "")
        if site == "same-origin":  # the browser knows where it sent the request, whatever proxies made of its address
            return None
        origin = headers.get("origin")
        if (
            len(origins := headers.getlist("origin")) > 1
        ):  # no browser does that, so who passed it on may have looked at one
            return OriginRefused(", ".join(origins))
        if origin is not None:
            may = self._may_call(origin, found, headers) or self._may_have_lost_its_port(origin, found, scope)
            return None if may else OriginRefused(origin)
        if site not in ("cross-site", "same-site") or "*" in self._origins:
            return None
        guarded = scope["method"] not in ("GET", "HEAD") or self._adaptor.speaks(scope)
        return SiteRefused(site) if guarded else None

    def _is_own(self, scope: Scope) -> bool:
        """Whether our own page asks, or one of a site that ``cors`` names, so that a cookie counts. A page on this
        machine may call, but by no cookie."""
        headers = Headers(scope=scope)
        site, origin = headers.get("sec-fetch-site", ""), headers.get("origin")
        if site == "same-origin" or origin in self._origins:
            return True
        if origin is not None:
            return self._is_own_origin(origin, authority(headers.get("host", "")), headers)
        if site in ("cross-site", "same-site"):  # a link: what it leads to is shown, and not told
            return scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return scope["method"] in ("GET", "HEAD")

    def _is_ours(self, name: str, scope: Scope) -> bool:
        if name in self._hosts:
            return True
        ip = _ip(name)
        if ip is not None and ip.is_loopback:
            return True
        server, client = scope.get("server"), scope.get("client")
        if not server or name != str(_ip(server[0]) or server[0]).lower():
            return False
        # Servers may have that from Host, so a name counts only in a process that calls itself, as tests do.
        return ip is not None or (client is not None and _ip(client[0]) is None)

    def _may_call(self, origin: str, host: tuple[str, int | None] | None, headers: Headers) -> bool:
        if "*" in self._origins or origin in self._origins or re.fullmatch(LOCAL_ORIGINS, origin):
            return True
        return self._is_own_origin(origin, host, headers)

    def _is_own_origin(self, origin: str, host: tuple[str, int | None] | None, headers: Headers) -> bool:
        split = _split(origin)
        if split is None:
            return False
        scheme, name, port = split
        # The first of each list is what the browser asked for. A proxy may tell the port apart from the name.
        told = authority(headers.get("x-forwarded-host", "").partition(",")[0].strip())
        apart = headers.get("x-forwarded-port", "").partition(",")[0].strip()
        return any(
            own is not None
            and name == own[0]
            and (port == (own[1] or PORTS.get(scheme)) or (own[1] is None and apart == str(port)))
            for own in (host, told)
        )

    def _may_have_lost_its_port(self, origin: str, host: tuple[str, int | None] | None, scope: Scope) -> bool:
        """Whether it may be our own page, at ``http://name:8080``, of which a proxy has passed on only the name.

        Browsers say nothing more without TLS, so it may be another server's on that machine. That one is not let do
        what a browser asks about first: the answer to that is ``cors``'s, to which it is foreign.
        """
        headers = Headers(scope=scope)
        split = _split(origin)
        if split is None or split[0] != "http" or host is None or host != (split[1], None):
            return False
        if "sec-fetch-site" in headers:
            return False
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # A simple request is a GET whose answer is not read, or has one of three types.
        return scope["method"] not in ("POST", "OPTIONS") or kind == "application/json"


class HostRepeated(InvalidInput):
    """A request has more than one Host."""

    code = "host_repeated"

    def __init__(self, hosts: Sequence[str]) -> None:
        came = ", ".join(repr(host[:100]) for host in hosts[:3])
        super().__init__(f"A request has one Host; got {len(hosts)}: {came}.")


class HostRefused(LegatoError):
    """The request is for a name that this server does not go by."""

    code = "host_not_allowed"
    status = 421

    def __init__(self, host: str) -> None:
        super().__init__(
            f"This server does not go by the name {host[:200]!r}. If it is to, start it with --allow-host, or give "
            "the name to Legato(hosts=[...])."
        )


class OriginRefused(LegatoError):
    """The request is of another site's page."""

    code = "origin_not_allowed"
    status = 403

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"Pages of {origin[:200]!r} may not use this server; see cors. If they are its own, the proxy before it is "
            "to pass Host on as it came, with the port."
        )


class SiteRefused(LegatoError):
    """The request comes from another site, and not in the way in which those that may call do it."""

    code = "site_not_allowed"
    status = 403

    def __init__(self, site: str) -> None:
        super().__init__(
            f"This is not for links, images or frames of other sites (Sec-Fetch-Site: {site}); pages that may use this "
            "server, see cors, ask by fetch."
        )
