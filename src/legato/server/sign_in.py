"""Who asks: what ``Legato(auth=...)`` says of a request, a cookie in the place of a header, and tickets.

``auth`` is a function of the request, or several of them: the first that knows who asks has its word. What it raises
is nobody's permission: 401, as if it had said None. What a browser's own ``EventSource`` cannot send in a header comes
in a cookie that no script can read, and that counts only for our own pages; or in a *ticket*, which opens one stream,
once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.types import Scope

from ..auth.bearer import ASKED
from ..bounds import Rate
from ..caller import Caller, Revoked
from ..credentials import ID_LETTERS, TICKETS, hashed, is_reserved, key_holder, without_keys
from ..errors import (
    Forbidden,
    HeadMoved,
    InvalidInput,
    LegatoError,
    Overloaded,
    SessionExists,
    SessionNotFound,
    TooMany,
    Unauthorized,
)
from ..event import Draft, SessionCreated, SessionDeleted, SessionUpdated
from ..fault import contained
from ..log import RESERVED, Store
from ..spending import holder, own_of
from .guard import OWN
from .life import Opens
from .operation import path_within

logger = logging.getLogger("legato")

SUBJECT_CHARACTERS = 500
"""Of a subject at most."""
COOKIE = "legato"
"""The cookie's name; with TLS it has the prefix ``__Host-``, so that no other host and no plain HTTP can set it."""
COOKIE_SECONDS = 30 * 86_400
"""For which a browser keeps it, if what is in it is good for as long."""
COOKIE_CHARACTERS = 3_800
"""Of what is in it; browsers keep 4 KB."""
TICKET_SECONDS = 30.0
"""For which a ticket is good."""
TICKETS_A_MINUTE = 600.0
"""That one caller is given at one node: each is kept for an hour or two."""
TOLD = 100
"""Places in ``auth`` of which it is told that they fail."""
FOUND = 20
"""Sign-ins that functions of ``auth`` ask, and that are begun for them; not those of who makes one for each request."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)
_RESPONSE = re.compile(r"(?:/v1)?/responses/resp_([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})~[0-9a-f]{1,64}/?", re.ASCII)
_TICKET = re.compile(r"(\d{9}-[a-z2-7]{8})\.([A-Za-z0-9_-]{43})", re.ASCII)

Auth = Callable[[HTTPRequest], Any]
"""Gives a subject, a ``Caller``, None, or an awaitable of one."""


class SignIn:
    """The ``identify`` of an application that has ``auth``.

    Args:
        auth: one function of a request, or several.

    Raises:
        InvalidInput: none of it can be called.
    """

    def __init__(self, auth: Auth | Sequence[Auth]) -> None:
        self.auths: tuple[Auth, ...] = (auth,) if callable(auth) else tuple(auth)
        if not self.auths or not all(callable(each) for each in self.auths):
            raise InvalidInput(
                "auth is a function of a request that says who asks, or a list of such; see docs/auth.md."
            )
        self.tickets = Tickets()
        self._told: set[str] = set()
        self._opened: list[Opens] = []
        self._opening = asyncio.Lock()
        self._begin: Callable[[Opens], Awaitable[None]] | None = None  # while it is open

    async def open(self, store: Store, revoked: Revoked) -> None:
        """Begin with the application."""
        self.tickets.store = store
        self._opening = asyncio.Lock()  # of this event loop
        access = logging.getLogger("uvicorn.access")
        if not any(isinstance(each, RedactTickets) for each in access.filters):
            access.addFilter(RedactTickets())
        self._begin = lambda auth: auth.open(store, revoked)
        for auth in self.auths:
            if isinstance(auth, Opens):
                self._opened.append(auth)
                await auth.open(store, revoked)

    async def close(self) -> None:
        """End with it. Idempotent."""
        async with self._opening:
            self._begin = None
            while self._opened:
                await self._opened.pop().close()

    async def __call__(self, scope: Scope) -> Caller:
        """Who asks.

        Raises:
            Unauthorized: nobody knows.
        """
        caller = await self.known(with_cookie(scope))
        if caller is None:
            caller = await self.tickets.used(scope)
        if caller is None:
            raise Unauthorized
        return caller

    async def known(self, scope: Scope) -> Caller | None:
        """Who asks, as ``auth`` has it; None if it does not know."""
        request = HTTPRequest(scope)
        for auth in self.auths:
            caller = await self._known_to(auth, request)
            if caller is not None:
                return caller
        return None

    async def _known_to(self, auth: Auth, request: HTTPRequest) -> Caller | None:
        """Who asks, as one of ``auth`` has it; asked again if what it has asked may have known nobody yet."""
        asked: list[tuple[object, Caller | None]] = []
        begun, caller = list(self._opened), None
        said: LegatoError | None = None
        try:
            caller = await self._asked(auth, request, asked)
        except (Forbidden, TooMany, Overloaded) as exc:
            said = exc
        if await self._begun([each for each, _ in asked], begun):
            return await self._asked(auth, request, asked)
        if said is not None:
            raise said
        return caller

    async def _begun(self, asked: Iterable[object], before: Sequence[Opens]) -> bool:
        """Begin what a function of ``auth`` has asked and nobody has begun; whether any was begun, by whomever, that
        was not among those of ``before``.

        Raises:
            StoreError: one could not be; the next request tries it again.
        """
        some = False
        for auth in asked:
            if any(auth is each for each in before) or not isinstance(auth, Opens):
                continue
            async with self._opening:
                if self._begin is not None and not self._is_begun(auth) and len(self._opened) < FOUND:
                    try:
                        await self._begin(auth)
                    except BaseException:
                        await auth.close()
                        raise
                    self._opened.append(auth)
            some = some or self._is_begun(auth)
        return some

    def _is_begun(self, auth: object) -> bool:
        return any(auth is each for each in self._opened)

    async def _asked(
        self, auth: Auth, request: HTTPRequest, asked: list[tuple[object, Caller | None]]
    ) -> Caller | None:
        asked.clear()
        before = ASKED.set(asked)
        try:
            with contained("auth"):
                found = auth(request)
                if inspect.isawaitable(found):
                    found = await found
            return None if found is None else _as_known(_checked(found), found, asked)
        except (Unauthorized, HTTPException):
            return None
        except (Forbidden, TooMany, Overloaded):  # which are meant
            raise
        except Exception as exc:
            self._tell(exc)
            return None
        finally:
            ASKED.reset(before)

    def _tell(self, exc: Exception) -> None:
        """Tell of what ``auth`` raised, once for each place: without its text, and without values, since a token may be
        in them."""
        at = exc.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = "" if at is None else f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
        said = f"{type(exc).__name__}{where}{f': {exc}' if isinstance(exc, NotACaller) else ''}"
        if said not in self._told and len(self._told) < TOLD:
            self._told.add(said)
            logger.warning("auth failed with %s; the request is refused, as others will be without a word", said)


class NotACaller(LegatoError):
    """What ``auth`` gives cannot be whose a session is."""

    code = "not_a_caller"


def _checked(found: object) -> Caller | None:
    caller = Caller(found) if isinstance(found, str) else found
    if not isinstance(caller, Caller):
        raise NotACaller(f"auth gives a subject as text, a Caller or None, got {type(found).__name__}")
    subject: object = caller.subject
    if not isinstance(subject, str) or not subject:
        raise NotACaller("auth gave a caller without a subject; who is nobody in particular is not signed in")
    if len(subject) > SUBJECT_CHARACTERS or not _is_text(subject):
        raise NotACaller(f"a subject is text of up to {SUBJECT_CHARACTERS} characters, without NUL")
    if is_reserved(subject):  # a name that somebody has chosen for themselves
        raise NotACaller(
            f"a subject is not {RESERVED!r}, and does not begin with {holder('')!r} or {key_holder('')!r}: under those "
            "Legato has what is its own"
        )
    if caller.expires_at is not None and not caller.expires_at > time.time():
        return None
    scopes: Any = caller.scopes
    if scopes is not None and not isinstance(scopes, frozenset):
        scopes = frozenset(scopes.split() if isinstance(scopes, str) else scopes)
        caller = msgspec.structs.replace(caller, scopes=scopes)
    return caller


def _as_known(caller: Caller | None, found: object, asked: Iterable[tuple[object, Caller | None]]) -> Caller | None:
    """The caller whom a function of ``auth`` has found: where it has asked who it is, their sign-in ends with that one,
    or before. Of whom it gives the subject alone, they have no more scopes than they were known with."""
    known = next((each for _, each in asked if each is not None), None)
    if caller is None or known is None or found is known:
        return caller
    scopes = caller.scopes
    if isinstance(found, str) and known.scopes is not None:
        scopes = known.scopes - {"admin"}
    expires_at = min((at for at in (known.expires_at, caller.expires_at) if at is not None), default=None)
    return msgspec.structs.replace(
        caller, scopes=scopes, expires_at=expires_at, credential=known.credential or caller.credential
    )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


# Cookies --------------------------------------------------------------------------------------------------------------


def with_cookie(scope: Scope) -> Scope:
    """The scope of a request with the token of our cookie in its ``Authorization``, if there is none and it counts."""
    if not scope.get(OWN) or any(name == b"authorization" for name, _ in scope["headers"]):
        return scope
    token = _cookie(scope)
    return scope if token is None else with_token(scope, token)


def with_token(scope: Scope, token: str) -> Scope:
    """The scope of a request as if it had brought this token, and no other."""
    kept = [field for field in scope["headers"] if field[0] != b"authorization"]
    return {**scope, "headers": [*kept, (b"authorization", f"Bearer {token}".encode())]}


def _cookie(scope: Scope) -> str | None:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name == b"cookie":
            for each in value.decode("latin-1").split(";"):
                key, _, text = each.strip().partition("=")
                found.setdefault(key, text)
    token = found.get(f"__Host-{COOKIE}") or found.get(COOKIE)
    return token if token and _TOKEN.fullmatch(token) else None


def cookie(token: str, *, secure: bool, path: str, seconds: float) -> str:
    """The value of a ``Set-Cookie`` that signs in with ``token`` for so many seconds; with "" it signs out.

    Raises:
        InvalidInput: the token cannot stand in a cookie.
    """
    if token and (len(token) > COOKIE_CHARACTERS or not _TOKEN.fullmatch(token)):
        raise InvalidInput(
            f"A token that is kept in a cookie has up to {COOKIE_CHARACTERS} letters, digits and ._~+/=-"
        )
    age = max(0, int(min(seconds, COOKIE_SECONDS))) if token else 0
    fields = [f"Max-Age={age}", f"Path={'/' if secure else path or '/'}", "HttpOnly", "SameSite=Lax"]
    if secure:
        return "; ".join([f"__Host-{COOKIE}={token}", *fields, "Secure"])
    return "; ".join([f"{COOKIE}={token}", *fields])


# Tickets --------------------------------------------------------------------------------------------------------------


class Tickets:
    """Tickets for streams, in logs of the store, a new one each hour: whoever serves from it can take them, once.

    What is kept of a ticket is its hash, and who it is for. A log goes when its hour is long over, or when somebody's
    data is erased: then a new one is begun.

    Attributes:
        store: of the application.
    """

    store: Store

    def __init__(self) -> None:
        self._rate = Rate(lambda: TICKETS_A_MINUTE)
        self._log = ""

    async def issue(self, caller: Caller, session: str) -> str:
        """A ticket for a stream of this session; it reads, no longer than the caller's own sign-in.

        Raises:
            TooMany: they have had as many as there are in a minute.
        """
        try:
            self._rate.take(caller.party, "tickets")
        except TooMany:
            raise TooMany(f"{TICKETS_A_MINUTE:g} tickets a minute are given to one caller; try again later.") from None
        now = time.time()
        nonce = secrets.token_urlsafe(32)
        kept: dict[str, Any] = {
            "subject": caller.subject,
            "scopes": sorted({"read"} & caller.scopes) if caller.scopes is not None else ["read"],
            "expiresAt": caller.expires_at,
            "credential": caller.credential,
            "session": session,
            "until": now + TICKET_SECONDS,
        }
        draft, key = Draft(SessionUpdated(kept)), f"issued:{hashed(nonce)}"
        hour, missing = int(now // 3600), ""
        while True:
            if not self._log.startswith(_name(hour)):
                self._log = f"{_name(hour)}{''.join(secrets.choice(ID_LETTERS) for _ in range(8))}"
            log = self._log
            try:
                await self.store.append(TICKETS + log, [draft], once=key)
            except SessionNotFound:
                if log == missing:  # it was there, and has been let go
                    self._log = "" if self._log == log else self._log
                    continue
                missing = log
                with suppress(SessionExists):
                    await self.store.append(TICKETS + log, [Draft(SessionCreated(title="Tickets", owner=RESERVED))])
                    await self._let_go(hour)
            else:
                return f"{log}.{nonce}"

    async def used(self, scope: Scope) -> Caller | None:
        """Who asks by a ticket for the stream of this request; None if there is none, or it is good no more."""
        if scope["method"] != "GET" or b"ticket=" not in scope["query_string"]:
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        match, session = _TICKET.fullmatch(query.get("ticket", [""])[0]), _followed(path_within(scope), query)
        if match is None or session is None:
            return None
        log, name = TICKETS + match[1], hashed(match[2])
        try:
            # What was stored under this key before is given back; and nothing is stored, since the log is beyond 0.
            issued = await self.store.append(log, [Draft(SessionUpdated({}))], once=f"issued:{name}", head=0)
            fact = issued.events[0].fact
            kept: Mapping[str, Any] = fact.metadata if isinstance(fact, SessionUpdated) else {}
            if kept.get("session") != session or not kept.get("until", 0) > time.time():
                return None
            used = await self.store.append(log, [Draft(SessionUpdated({"used": True}))], once=f"used:{name}")
        except (SessionNotFound, HeadMoved):
            return None
        if used.repeated:
            return None
        scopes, expires_at = frozenset(kept["scopes"]), kept["expiresAt"]
        try:
            return _checked(Caller(kept["subject"], "", scopes, expires_at, kept["credential"] or ""))
        except NotACaller:  # a node of another version has let them in
            return None

    async def _let_go(self, hour: int) -> None:
        async for info in own_of(self.store, RESERVED, TICKETS):
            if info.session < TICKETS + _name(hour - 1):
                with suppress(SessionNotFound):
                    await self.store.append(info.session, [Draft(SessionDeleted())])


def _followed(path: str, query: Mapping[str, list[str]]) -> str | None:
    """The session that a GET follows as a stream; None if it is no stream, or nobody knows of which."""
    if path.rstrip("/") == "/stream":
        sessions = query.get("sessionId", [])
        return sessions[0] if len(sessions) == 1 else None
    response = _RESPONSE.fullmatch(path)
    return response[1] if response is not None and query.get("stream") == ["true"] else None


def _name(hour: int) -> str:
    return f"{hour:09}-"


class RedactTickets(logging.Filter):
    """Of an access log: what stands for a ticket in a query. Of no use any more, it is nobody's all the same."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, without tickets."""
        if isinstance(record.args, tuple):
            record.args = tuple(redacted(each) if isinstance(each, str) else each for each in record.args)
        return True


def redacted(text: str) -> str:
    """A target without the tickets and keys in it."""
    return without_keys(_IN_QUERY.sub(r"\1...", text))


_IN_QUERY = re.compile(r"([?&]ticket=)[^&\s\"]+")
