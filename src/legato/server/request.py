"""What a route gets: one request, with the caller who asks and the life that it asks in."""

from __future__ import annotations

import asyncio
import time
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from ..caller import Caller
from ..check import digits
from ..dialect.common import decode_json, idempotency_key
from ..errors import InvalidInput, TooLarge, UnsupportedEncoding, UnsupportedType
from ..event import Offset
from ..json import LARGE, decode_in_pieces
from .life import Life
from .stream import Reserved
from .traffic import RequestTimeout

TURN = 0.005
"""Seconds for which a loop goes on at most before it lets others."""

P = ParamSpec("P")
T = TypeVar("T")

CURSORS = ("starting_after", "lastEventId")
"""Parameters of the query that are a cursor; what is called otherwise is in the header ``Last-Event-ID``."""
INCARNATION = "legato-incarnation"
"""The header with the name of the store's life: of each stream's head, and of a request with a cursor from there."""


class Request:
    """One request to an operation.

    Attributes:
        life: what the application holds now: its sessions, its streams, its folds.
        caller: who asks.
        path, query, headers: as sent; header names in lower case.
        scope: of ASGI, for what is not here.
        prefix: under which the application is mounted, for links to itself; empty if it is not.
        size: of the body, in bytes, once it has been read.
        stored: what was sent is in the log; an error from now on says so (``LegatoError.stored``).
        incarnation: of the store, when it came, or when the cursor of its stream was found.
    """

    def __init__(self, http: HTTPRequest, life: Life, caller: Caller) -> None:
        self.life = life
        self.sessions = life.sessions
        self.caller = caller
        self.path: dict[str, str] = http.path_params
        self.query = http.query_params
        self.headers = http.headers
        self.scope = http.scope
        self.prefix: str = http.scope.get("root_path", "")
        self._http = http
        self.incarnation = life.sessions.incarnation
        self.reserved: Reserved | None = None
        self.stored = False
        self.size = 0
        self._went_on = 0.0

    def check_type(self) -> None:
        """Refuse a body that says that it is no JSON: a form of another site's page can send such, unasked. What says
        nothing is taken for JSON: from a page it has an ``Origin``, which has been looked at.

        Raises:
            UnsupportedType: it does.
        """
        given = ", ".join(self.headers.getlist("content-type"))
        kind = given.partition(";")[0].strip().lower()
        if kind not in ("", "application/json"):
            raise UnsupportedType(
                f"A request that changes something has Content-Type application/json, got {kind[:60]!r}."
            )

    @property
    def resumes(self) -> bool:
        """Whether it comes with a cursor."""
        return "last-event-id" in self.headers or any(name in self.query for name in CURSORS)

    @property
    def key(self) -> str | None:
        """The ``Idempotency-Key``; None if it comes without.

        Raises:
            InvalidInput: it is none.
        """
        return idempotency_key(self.headers.get("idempotency-key"))

    async def body(self, type: type[T], *, default: T | None = None) -> T:
        """The JSON body, checked; ``default`` when there is none.

        Raises:
            TooLarge, BudgetSpent, RequestTimeout: see ``raw_body``.
            InvalidInput: not JSON, or not of the type; the text names the place.
        """
        raw = await self.raw_body()
        if not raw and default is not None:
            return default
        try:
            if self.size > LARGE:
                return await self.aside(decode_in_pieces, raw, type)
            return decode_json(raw, type)
        except msgspec.ValidationError as exc:
            raise InvalidInput(f"The body does not fit: {exc}.") from exc
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
            raise InvalidInput(f"The body must be a JSON object: {exc}.") from exc

    async def raw_body(self) -> bytes:
        """The body's bytes, up to the bound.

        They are the handler's own from then on: what is bounded together is what has not come in full, see ``Budget``.

        Raises:
            TooLarge: over the bound; the rest is not read.
            UnsupportedEncoding: it is compressed.
            BudgetSpent: all bodies that are being read have what they may have.
            RequestTimeout: it came too slowly.
            InvalidInput: it ended before its end.
        """
        coding = self.headers.get("content-encoding", "").strip()
        if coding.lower() not in ("", "identity"):
            raise UnsupportedEncoding(f"A body is sent as it is, without Content-Encoding, got {coding[:60]!r}.")
        limit, traffic = self.life.settings.max_body, self.life.settings.traffic
        declared = self._declared()
        if declared > limit:
            raise TooLarge(f"A body may have {limit} bytes.", bound="max_body", limit=limit)
        raw = bytearray()  # not the pieces, of which each may be a byte
        size = 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        slack = min(0.5, traffic.body_seconds / 50)  # a timer for each byte would cost more than the byte
        try:
            async with asyncio.timeout(traffic.body_seconds) as patience:
                with self.life.bodies.hold(declared, lambda: patience.reschedule(loop.time())) as held:
                    async for chunk in self._http.stream():
                        raw += chunk
                        size = len(raw)
                        if size > limit:
                            raise TooLarge(f"A body may have {limit} bytes.", bound="max_body", limit=limit)
                        held.grow(size)
                        held.move(len(chunk))
                        due = began + traffic.body_seconds + size / traffic.body_rate
                        if due - (patience.when() or 0.0) > slack and self.life.bodies.holds(held):
                            patience.reschedule(due)
        except ClientDisconnect:
            raise InvalidInput("The connection ended in the middle of the body.") from None
        except TimeoutError:
            raise RequestTimeout(
                f"The body did not come in time: {size} bytes came in {loop.time() - began:.0f} s. It has "
                f"{traffic.body_seconds:g} s, or longer at {traffic.body_rate} bytes a second, and less while the "
                "server holds as much as it can.",
                bound="body_seconds",
            ) from None
        if size < declared:
            raise InvalidInput(f"The head promises a body of {declared} bytes; {size} came.")
        self.size = size
        return bytes(raw).removeprefix(BOM_UTF8)  # which some write, and JSON does not have

    def _declared(self) -> int:
        """How many bytes the head promises; 0 if nothing."""
        lengths = set(self.headers.getlist("content-length"))
        if not lengths:
            return 0
        length = lengths.pop()
        declared = digits(length, most=18)
        if declared is None or lengths:  # who stands before the server may have read it otherwise
            came = ", ".join(repr(each[:60]) for each in (length, *sorted(lengths)[:2]))
            raise InvalidInput(f"Content-Length is a number of bytes such as 42, got {came}.")
        return declared

    async def aside(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What ``work`` gives, which takes as long as the body is: beside the event loop, if that is large."""
        if self.size <= LARGE:
            return work(*args, **options)
        return await self.sessions.aside.do(self.size, work, *args, **options)

    async def pause(self) -> None:
        """Let others go on, if this has gone on for long. For loops over what may be many, and all in memory."""
        if time.monotonic() - self._went_on > TURN:
            await asyncio.sleep(0)
            self._went_on = time.monotonic()

    async def left(self) -> None:
        """Wait until whoever asked has gone. For when the body has been read."""
        while (await self._http.receive())["type"] != "http.disconnect":
            pass

    async def holds(self, session: str, offset: Offset) -> bool:
        """Whether the log has what whoever asks has had of it up to ``offset``, as far as they say where it is from: a
        store that was put back from a backup may have other events at the same offsets."""
        return await self.sessions.holds(self.headers.get(INCARNATION), session, offset)

    def reserve(self, session: str) -> None:
        """Take a place among the streams for this request, before anything is stored or awaited for it.

        It is given back with the request, or with the stream that the request becomes.

        Raises:
            TooMany: there is none.
        """
        self.reserved = self.life.streams.reserve(session, self.caller.party)

    def hand_over(self) -> Reserved:
        """The place, which from now on is the caller's to give back."""
        assert self.reserved is not None
        place, self.reserved = self.reserved, None
        return place

    def number(self, name: str, *, default: int, least: int, most: int) -> int:
        """A whole number from the query, from ``least`` to ``most``; ``default`` where there is none.

        Raises:
            InvalidInput: not a number, or out of bounds.
        """
        text = self.query.get(name)
        if text is None:
            return default
        number = digits(text)
        if number is None or not least <= number <= most:
            raise InvalidInput(f"{name} is a whole number from {least} to {most}, got {text[:60]!r}.")
        return number
