"""The operations of signing in: a cookie for our own pages, who one is, tickets, and the keys of the store.

An application has them that has ``auth``.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ..auth.keys import APIKeys
from ..caller import Caller
from ..credentials import DEFAULT_SCOPES, APIKey
from ..dialect.common import rfc3339
from ..errors import Forbidden, ScopeMissing, Unauthorized
from .guard import OWN
from .operation import Operation, Param, session_id
from .reply import Body
from .request import Request
from .sign_in import COOKIE_SECONDS, TICKET_SECONDS, SignIn, cookie, with_token


class _Said(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=False):
    """camelCase on the wire."""


class SignInBody(_Said):
    """What signs in: a key, or another token that goes into ``Authorization``."""

    token: str


class SignedIn(_Said):
    """Who asks. ``scopes`` is null for all but ``admin``; ``expires_at`` is null where it does not by itself."""

    subject: str
    scopes: list[str] | None
    expires_at: str | None


class TicketBody(_Said):
    """Which session a ticket is for."""

    session_id: str


class Ticket(_Said):
    """For ``GET /stream?sessionId=...&ticket=...``, or ``GET /v1/responses/{id}?stream=true&ticket=...`` of a response
    of that session: once, within ``expires_in`` seconds."""

    ticket: str
    expires_in: float
    expires_at: str


class KeyBody(_Said):
    """A key that is to be made; ``expires_in`` is in seconds."""

    subject: str
    name: str = ""
    scopes: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_SCOPES))
    expires_in: float | None = None


class KeyData(_Said):
    """A key, without what makes it one."""

    id: str
    subject: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None


class NewKey(KeyData):
    """A key that was made now: ``key`` is told this once."""

    key: str


class SignInOperations:
    """The operations under ``/api/auth``, and ``/tickets``.

    Args:
        sign_in: the application's.
    """

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in
        self._keys = next((auth for auth in sign_in.auths if isinstance(auth, APIKeys)), None)

    async def sign_in(self, request: Request) -> Body:
        """Sign in a browser: the token is kept in a cookie that no script can read."""
        _check_own(request)
        body = await request.body(SignInBody)
        caller = await self._sign_in.known(with_token(request.scope, body.token)) if body.token.isascii() else None
        if caller is None:
            raise Unauthorized("That is no key or token of this server, or it is good no more.")
        seconds = COOKIE_SECONDS if caller.expires_at is None else caller.expires_at - time.time()
        kept = cookie(body.token, secure=_is_secure(request), path=request.prefix, seconds=seconds)
        return Body(200, _signed_in(caller), {"set-cookie": kept})

    async def sign_out(self, request: Request) -> Body:
        """Have a browser forget what it was signed in with; a key is good until it is revoked."""
        _check_own(request)
        forgotten = cookie("", secure=_is_secure(request), path=request.prefix, seconds=0)
        return Body(204, None, {"set-cookie": forgotten})

    async def whoami(self, request: Request) -> Body:
        """Who one is to this server."""
        return Body(200, _signed_in(request.caller))

    async def ticket(self, request: Request) -> Body:
        """A ticket for one stream of one session, for what cannot send headers."""
        body = await request.body(TicketBody)
        session = session_id(body.session_id)
        await request.sessions.info(request.caller, session, verb="read")
        ticket = await self._sign_in.tickets.issue(request.caller, session)
        expires_at = rfc3339(time.time() + TICKET_SECONDS)
        return Body(201, Ticket(ticket=ticket, expires_in=TICKET_SECONDS, expires_at=expires_at))

    async def list_keys(self, request: Request) -> Body:
        """The keys that are good."""
        _check_admin(request)
        assert self._keys is not None
        return Body(200, [KeyData(**_fields(key)) for key in self._keys.keys])

    async def add_key(self, request: Request) -> Body:
        """Make a key; it is told this once."""
        _check_admin(request)
        assert self._keys is not None
        body = await request.body(KeyBody)
        until = None if body.expires_in is None else time.time() + body.expires_in
        token, key = await self._keys.add(body.subject, name=body.name, scopes=body.scopes, expires_at=until)
        return Body(201, NewKey(key=token, **_fields(key)))

    async def revoke_key(self, request: Request) -> Body:
        """Let a key be good for nothing from now on, and end its streams."""
        _check_admin(request)
        assert self._keys is not None
        await self._keys.revoke(request.path["id"])
        return Body(204)

    def operations(self) -> list[Operation]:
        """All of them, as the router and the document need them."""
        made = [
            Operation("signIn", "POST", "/api/auth/sign-in", "auth", "Sign a browser in", self.sign_in,
                      {200: SignedIn}, body=SignInBody, public=True),
            Operation("signOut", "POST", "/api/auth/sign-out", "auth", "Sign a browser out", self.sign_out,
                      {204: None}, public=True),
            Operation("whoAmI", "GET", "/api/auth/whoami", "auth", "Who am I?", self.whoami, {200: SignedIn}),
            Operation("createTicket", "POST", "/tickets", "auth", "A ticket for a stream", self.ticket,
                      {201: Ticket}, body=TicketBody, errors=(404, 429)),
        ]  # fmt: skip
        if self._keys is None:
            return made
        id = Param("id", "path", "The key's id.", required=True)
        return [
            *made,
            Operation("listKeys", "GET", "/api/auth/keys", "auth", "List keys", self.list_keys, {200: list[KeyData]}),
            Operation("addKey", "POST", "/api/auth/keys", "auth", "Make a key", self.add_key, {201: NewKey},
                      body=KeyBody),
            Operation("revokeKey", "DELETE", "/api/auth/keys/{id}", "auth", "Revoke a key", self.revoke_key,
                      {204: None}, params=[id], errors=(404,)),
        ]  # fmt: skip


def _signed_in(caller: Caller) -> SignedIn:
    return SignedIn(
        subject=caller.subject,
        scopes=None if caller.scopes is None else sorted(caller.scopes),
        expires_at=None if caller.expires_at is None else rfc3339(caller.expires_at),
    )


def _fields(key: APIKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "subject": key.subject,
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": rfc3339(key.created_at),
        "expires_at": None if key.expires_at is None else rfc3339(key.expires_at),
    }


def _check_admin(request: Request) -> None:
    if not request.caller.has("admin"):
        raise ScopeMissing("admin")


def _check_own(request: Request) -> None:
    """Cookies are for our own pages; what is no browser has no use for one, and may try."""
    if "origin" in request.headers and not request.scope.get(OWN):
        raise Forbidden("Only this server's own pages sign in with a cookie; see docs/auth.md for others.")


def _is_secure(request: Request) -> bool:
    """Whether the browser has come by TLS, as far as it says so."""
    return request.scope.get("scheme") == "https" or request.headers.get("origin", "").startswith("https://")
