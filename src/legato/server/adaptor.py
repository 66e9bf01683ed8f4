"""The adaptor: the one place where operations become HTTP. It finds the route, lets its handler reply, and makes of the
reply, or of the error in its place, what ASGI sends; for every dialect in that dialect's own form.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .. import bounds
from ..about import ABOUT
from ..caller import NOBODY, Caller
from ..credentials import is_reserved, without_keys
from ..errors import Draining, InvalidInput, LegatoError, Overloaded, ScopeMissing, StoreError, StoreLost, Unauthorized
from ..fault import contained
from ..sse import HEARTBEAT
from .crowd import Line
from .life import Life, Opens
from .operation import Absence, Dialect, NoSuchRoute, Operation, WrongMethod, path_within, refuse, retry_after
from .pump import ASGISink, Pump
from .reply import Body, Follow, Later, Reply
from .request import INCARNATION, Request
from .traffic import SMALL, BudgetSpent, Held, Traffic

logger = logging.getLogger("legato")


LINE = "legato.line"
"""Among a scope's extensions: a ``Line`` to the reader, where the server is our own."""
PEER = "legato.peer"
"""There, too: the address of the connection, whatever a header says of it. Only our own server has it."""
PIECE_BYTES = 32_768
"""Of an answer that is no stream, handed over at a time."""
SEND_BODY = "legato.send"
"""In a scope: the ``send`` that the application was given, before anything of its own looked at the head."""


FORWARDED = ("x-forwarded-for", "forwarded", "via")
"""Fields of a request that has come by way of a proxy."""
LONG = 0.05
"""Seconds after which it is looked whether who asked to read something is still there."""


class Internal(LegatoError):
    """The server failed; what happened is in its log."""

    code = "internal"

    def __init__(self) -> None:
        super().__init__("The server failed; its log has the details.")


class ApplicationStopped(Draining):
    """The application has been stopped, and may be started again."""

    def __init__(self) -> None:
        super().__init__("The server has been stopped; try again.")


class StoreAwaited(Draining):
    """The application waits for its store, which another process has open, as one that is about to stop has."""

    def __init__(self) -> None:
        super().__init__("The server is starting: it waits for its store. Try again.")


class Routes:
    """The operations of all dialects, found by their paths."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._roots = {root: dialect for dialect in dialects for root in dialect.roots}
        self._first: dict[str, Dialect] = {}
        self._routes: dict[tuple[str, ...], list[tuple[list[str], Operation, Dialect]]] = {}
        for dialect in dialects:
            for operation in dialect.operations:
                pattern = _segments(operation.path)
                self._first.setdefault(pattern[0], dialect)
                key = (str(len(pattern)), pattern[0])
                self._routes.setdefault(key, []).append((pattern, operation, dialect))

    def find(self, scope: Scope) -> tuple[Operation, Dialect, dict[str, str]] | None:
        """The operation for a request, and what its path names; None where no dialect has anything to say.

        Raises:
            _Refused: the path, or its method, is not there; it has the dialect in whose form that is said.
        """
        method, segments = scope["method"], _segments(path_within(scope))
        allowed: dict[str, Dialect] = {}
        for pattern, operation, dialect in self._routes.get((str(len(segments)), segments[0]), ()):
            names = _names(pattern, segments)
            if names is None:
                continue
            if operation.method == method or (operation.method == "GET" and method == "HEAD"):
                return operation, dialect, names
            if not _fits(operation, names):
                continue  # a word that another API has in the place of an id
            allowed[operation.method] = dialect
        if allowed:
            if "GET" in allowed:
                allowed["HEAD"] = allowed["GET"]
            raise _Refused(WrongMethod(scope, ", ".join(allowed)), next(iter(allowed.values())))
        if segments[0] in self._roots:
            raise _Refused(NoSuchRoute(scope), self._roots[segments[0]])
        return None

    def dialect(self, scope: Scope) -> Dialect | None:
        """Whose a path is by its first segment."""
        first = _segments(path_within(scope))[0]
        return self._roots.get(first) or self._first.get(first)


class _Refused(Exception):
    def __init__(self, error: LegatoError, dialect: Dialect) -> None:
        super().__init__(error.message)
        self.error = error
        self.dialect = dialect


class Adaptor:
    """An ASGI application of the operations of some dialects.

    Args:
        dialects: the table.
        life: of the application; or why there is none.
    """

    def __init__(self, dialects: Sequence[Dialect], life: Life | Absence) -> None:
        self._routes = Routes(dialects)
        self._life = life

    def speaks(self, scope: Scope) -> bool:
        """Whether a path is a dialect's, if only by its first segment."""
        return self.dialect(scope) is not None

    def dialect(self, scope: Scope) -> Dialect | None:
        """Whose a path is, if only by its first segment."""
        return self._routes.dialect(scope)

    async def refuse(self, error: LegatoError, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request before it is looked at, in the form that its path has errors in."""
        dialect = self._routes.dialect(scope)
        await send_body((dialect.refuse if dialect else refuse)(error), error, scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request; False, and nothing done, if it is for no dialect."""
        try:
            found = self._routes.find(scope)
        except _Refused as exc:
            await send_body(exc.dialect.refuse(exc.error), exc.error, scope, receive, send)
            return True
        if found is None:
            return False
        operation, dialect, names = found
        life = self._life
        if isinstance(life, Absence) or life.over:
            why = life.why if isinstance(life, Absence) else ApplicationStopped()
            if isinstance(life, Absence) and operation.without_life is not None:
                await respond(operation.without_life(life))(scope, receive, send)
            elif _comes_back(operation, scope):
                await _have_come_back(ASGISink(receive, send))
            else:
                await send_body(dialect.refuse(why), why, scope, receive, send)
            return True
        http = HTTPRequest({**scope, "path_params": names}, receive)
        await self._carry_out(life, operation, dialect, http, receive, send)
        return True

    async def _carry_out(
        self, life: Life, operation: Operation, dialect: Dialect, http: HTTPRequest, receive: Receive, send: Send
    ) -> None:
        scope = http.scope
        request: Request | None = None
        error: LegatoError | None = None
        figures, began = life.figures, time.monotonic()
        try:
            try:
                public = operation.public or (operation.probe and isinstance(life.settings.identify, Opens))
                caller = NOBODY if public else await _identified(life, scope)
                ABOUT.set(ABOUT.get()._replace(owner=caller.subject))
                request = Request(http, life, _with_address(caller, scope))
                if operation.method != "GET":
                    request.check_type()
                made = await self._made(operation, request)
            except LegatoError as exc:
                error = ApplicationStopped() if isinstance(exc, StoreError) and life.over else exc
                bounds.count(life.refused, error)
                if isinstance(error, StoreError):
                    life.tell_failed(scope["method"], without_keys(scope["path"]), error)
                told = as_told(error)
                told.stored = request is not None and request.stored
                made = dialect.refuse(told)
                del told
            except Exception:
                internal = Internal()
                internal.stored = request is not None and request.stored
                figures.answers.add(operation.id, "500")
                await send_body(dialect.refuse(internal), None, scope, receive, send)
                raise  # for the server's log
            figures.answers.add(operation.id, str(made.status) if isinstance(made, Body) else "200")
            if isinstance(made, Body):
                figures.requests.add(time.monotonic() - began)
                if made.status == 503 and _comes_back(operation, scope):
                    await _have_come_back(ASGISink(receive, send))
                    return
                response = _response(made, error, scope)
                del made  # the text stands for it from here on
                error = None  # by its traceback it knows this frame, and what there was of a body
                await self._write(life, response, dialect, scope, receive, send)
                return
            if isinstance(made, _Overdue):
                await self._write_late(life, made, dialect, scope, receive, send)
                return
            assert request is not None
            await self._stream(request, *made, ASGISink(receive, send, scope.get(SEND_BODY)))
        finally:
            if request is not None and request.reserved is not None:
                request.reserved.give_back()

    async def _stream(self, request: Request, pump: Pump, head: list[tuple[bytes, bytes]], sink: ASGISink) -> None:
        """Begin a stream. Under our own server it goes on without the request's task."""
        scope, streams = request.scope, request.life.streams
        if scope["method"] == "HEAD":
            await sink.start(head)
            await sink.finish()
        elif (line := _line(scope)) is not None:
            await sink.start(head)
            streams.follow(pump, line, request.hand_over())
        else:
            await streams.run(pump, sink, head)

    async def _made(
        self, operation: Operation, request: Request
    ) -> Body | _Overdue | tuple[Pump, list[tuple[bytes, bytes]]]:
        reply = await (_while_there(operation, request) if operation.method == "GET" else operation.handler(request))
        if isinstance(reply, Later):
            return await _begun(reply, request.life.settings.heartbeat)
        return await self._pump(reply, request) if isinstance(reply, Follow) else reply

    async def _write(
        self, life: Life, response: WholeResponse, dialect: Dialect, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Write an answer that is no stream, counted among those that are being written if it is large."""
        response.seconds, response.refused = life.settings.traffic.write_seconds, life.refused
        if len(response.body) <= SMALL:
            await response(scope, receive, send)
            return
        try:
            held = life.answers.hold(len(response.body), response.let_go)
        except BudgetSpent as exc:
            bounds.count(life.refused, exc)
            # Who merely looks can look again. What was done is answered: that has cost its caller a message.
            if scope["method"] in ("GET", "HEAD"):
                response = _response(dialect.refuse(exc), exc, scope)
            await response(scope, receive, send)
            return
        try:
            with held:
                response.held = held
                await response(scope, receive, send)
        finally:
            response.held = None  # they know each other; it need not wait for the collector

    async def _write_late(
        self, life: Life, late: _Overdue, dialect: Dialect, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Write the head of an answer that is not there yet, blanks as long as it is not, and then the answer."""

        async def send_rest(message: Message) -> None:
            if message["type"] != "http.response.start":
                await send(message)

        head = _response(Body(200, ""), None, scope).raw_headers
        head = [field for field in head if field[0] != b"content-length"] + [(b"x-accel-buffering", b"no")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": head})
            while not late.task.done():
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
                await asyncio.wait({late.task}, timeout=life.settings.heartbeat)
            try:
                body = late.task.result()
            except LegatoError as exc:
                exc.stored = True
                body = dialect.refuse(as_told(exc))
            except Exception:
                logger.exception("%s %s: failed behind its head", scope["method"], without_keys(scope["path"]))
                body = dialect.refuse(Internal())
            if body.status >= 400:
                body = Body(200, late.told(body))
            await self._write(life, _response(body, None, scope), dialect, scope, receive, send_rest)
        finally:
            late.task.cancel()

    async def _pump(self, reply: Follow, request: Request) -> tuple[Pump, list[tuple[bytes, bytes]]]:
        """What writes a stream, its place reserved, and the head's own fields."""
        if request.reserved is None:
            request.reserve(reply.session)
        elif request.reserved.session != reply.session:
            request.reserved.move(reply.session)
        subscription = await request.sessions.follow(
            request.caller, reply.session, reply.after, heartbeat=request.life.settings.heartbeat
        )
        forwarded = any(name in request.headers for name in FORWARDED)
        pump = Pump(
            subscription,
            reply.session,
            reply.encoder,
            # Some proxies hold a head without a body.
            first=reply.first or (HEARTBEAT if forwarded else b""),
            preparation=reply.preparation,
            share=reply.share,
            resets=reply.resets,
            dialect=reply.name,
            pace=request.life.pace,
            pages=None if reply.joins is None else request.life.pages,
            joins=reply.joins or 0,
            caller=request.caller,
        )
        start = "reset" if reply.exact is False else "resumed" if request.resumes else "new"
        request.life.figures.streams.add(reply.name.partition("/")[0], start)
        if request.sessions.incarnation != request.incarnation:
            # Readers were cut off meanwhile, and this one was none yet; its cursor was looked up in what is gone.
            raise StoreLost("The store has lost something, or was started again, while this was asked; ask again.")
        head = [] if reply.exact is None else [(b"legato-cursor", b"exact" if reply.exact else b"reset")]
        if incarnation := request.sessions.incarnation:
            head.append((INCARNATION.encode(), incarnation.encode()))
        if forwarded:
            # Caddy before 2.6.3 does not know no-transform, and holds to its end what it compresses: what has more than
            # 512 bytes when it first looks. No first write is so small that another may not be behind it by then. What
            # has an encoding, be it none, is compressed by nobody; HTTP would rather have no such field.
            head.append((b"content-encoding", b"identity"))
        return pump, head


def _comes_back(operation: Operation, scope: Scope) -> bool:
    """Whether who asks may be a browser's ``EventSource``, which gives up for good at any status but 200, and comes
    back to a stream that has ended. Where a stream's end is taken for an answer's, nobody is told of one."""
    if operation.method != "GET" or operation.stream is None or not operation.stream.reset:
        return False
    return scope["method"] == "GET" and (b"accept", b"text/event-stream") in scope["headers"]


async def _have_come_back(sink: ASGISink) -> None:
    await sink.start(())
    await sink.write(HEARTBEAT)  # a retry by itself would be an event to some SDKs
    await sink.finish()


class _Overdue(NamedTuple):
    """An answer that was not there in time."""

    task: asyncio.Task[Body]
    told: Callable[[Body], Any]


async def _begun(reply: Later, heartbeat: float) -> Body | _Overdue:
    """The body, if it comes within a heartbeat."""
    task = asyncio.create_task(reply.body)
    try:
        await asyncio.wait({task}, timeout=heartbeat)
        return task.result() if task.done() else _Overdue(task, reply.told)
    except BaseException:
        task.cancel()
        raise


class WholeResponse(Response):
    """An answer that is no stream, written piece by piece as who asked takes it, so that it does not wait in the
    server's buffers as well. Who takes nothing for ``seconds`` is cut off.

    Attributes:
        held: its bytes, where they are counted.
        refused: counts who is cut off, see ``bounds``.
    """

    seconds = Traffic().write_seconds
    held: Held | None = None
    refused: Counter[str] | None = None
    _patience: asyncio.Timeout | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        size = len(self.body)
        if size <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        view = memoryview(self.body)
        try:
            async with asyncio.timeout(self.seconds) as self._patience:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for start in range(0, size, PIECE_BYTES):
                    piece, more = bytes(view[start : start + PIECE_BYTES]), start + PIECE_BYTES < size
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
                    if self.held is not None:
                        self.held.move(len(piece))
                    self._patience.reschedule(loop.time() + self.seconds)
        except TimeoutError:
            logger.info("%s %s: cut off, for the answer was not read", scope["method"], without_keys(scope["path"]))
            if self.refused is not None:
                self.refused["write_seconds"] += 1
            if (line := (scope.get("extensions") or {}).get(LINE)) is not None:
                line.abort()  # to close the connection would be to wait for who does not read

    def let_go(self) -> None:
        """Cut it off now."""
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time())


async def _identified(life: Life, scope: Scope) -> Caller:
    """Who asks, as the application says. A mistake of its is nobody's permission: the request fails."""
    with contained("identify"):
        caller = life.settings.identify(scope)
        if inspect.isawaitable(caller):
            caller = await caller
    if not isinstance(caller, Caller) or not isinstance(caller.subject, str):
        raise TypeError(f"identify must give a Caller whose subject is text, got {caller!r:.200}")
    if is_reserved(caller.subject):  # a name that somebody has chosen for themselves
        raise Unauthorized
    return caller


async def send_body(body: Body, error: LegatoError | None, scope: Scope, receive: Receive, send: Send) -> None:
    """A body as a response; it says when to try again where that may help."""
    await _response(body, error, scope)(scope, receive, send)


def _response(body: Body, error: LegatoError | None, scope: Scope) -> WholeResponse:
    headers = dict(body.headers)
    if error is not None:
        if isinstance(error, WrongMethod):
            headers["allow"] = error.allowed
        if error.status == 401:
            headers.setdefault("www-authenticate", "Bearer")
        if isinstance(error, ScopeMissing):
            scope_missing = f'Bearer error="insufficient_scope", scope="{error.detail["scope"]}"'
            headers.setdefault("www-authenticate", scope_missing)
        if (after := retry_after(error)) is not None:
            headers.setdefault("retry-after", after)
        # Those are said for all at once.
        if error.status >= 500 and not isinstance(error, Overloaded | Draining | StoreError):
            logger.error("%s %s: %s", scope["method"], without_keys(scope["path"]), error)
    return respond(msgspec.structs.replace(body, headers=headers))


def as_told(error: LegatoError) -> LegatoError:
    """The error as callers get it: what a store says names files, and is for the server's log."""
    if not isinstance(error, StoreError):
        return error
    told = type(error).__new__(type(error))  # a store's own errors may be made otherwise
    LegatoError.__init__(told, error.told)
    return told


def respond(body: Body) -> WholeResponse:
    """``body`` as a response."""
    if body.body is None:
        return WholeResponse(status_code=body.status, headers=dict(body.headers))
    if isinstance(body.body, bytes):
        return WholeResponse(body.body, status_code=body.status, headers=dict(body.headers))
    content = msgspec.json.encode(body.body)
    headers = {"cache-control": "no-store", **body.headers}
    return WholeResponse(content, status_code=body.status, headers=headers, media_type="application/json")


def respond_error(error: LegatoError) -> Response:
    """An error as a response, where it is no dialect's."""
    body = refuse(as_told(error))
    after = {} if (seconds := retry_after(error)) is None else {"retry-after": seconds}
    return respond(msgspec.structs.replace(body, headers={**body.headers, **after}))


def _with_address(caller: Caller, scope: Scope) -> Caller:
    """The caller, with where the request came from if that is all that is known of who asks."""
    client = scope.get("client")
    if caller.subject or caller.address or not client:
        return caller
    return msgspec.structs.replace(caller, address=client[0])


async def _while_there(operation: Operation, request: Request) -> Reply:
    """What only reads is worked on while somebody waits for it: with who asked, the work ends where it waits.

    Raises:
        InvalidInput: whoever asked has left.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    watcher: asyncio.Task[None] | None = None
    over = left = False

    def leave(watcher: asyncio.Task[None]) -> None:
        nonlocal left
        if not over and not watcher.cancelled() and watcher.exception() is None:
            left = True
            task.cancel()

    def watch() -> None:
        nonlocal watcher
        watcher = loop.create_task(request.left())
        watcher.add_done_callback(leave)

    timer = loop.call_later(LONG, watch)  # most have their answer sooner
    try:
        return await operation.handler(request)
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise InvalidInput("The connection ended before the answer.") from None
    finally:
        over = True
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


def _line(scope: Scope) -> Line | None:
    """The line to the reader, if the server has one and nobody between it and the application wants to see the body."""
    line: Line | None = (scope.get("extensions") or {}).get(LINE)
    return None if line is None or line.send != scope.get(SEND_BODY) else line


def _segments(path: str) -> list[str]:
    # One slash at the end more or less is the same; an empty segment names nothing.
    return path.removeprefix("/").removesuffix("/").split("/")


def _fits(operation: Operation, names: dict[str, str]) -> bool:
    """Whether what a path names can be what the operation knows by these names."""
    patterns = {param.name: param.schema["pattern"] for param in operation.params if "pattern" in param.schema}
    return all(re.search(patterns[name], value) for name, value in names.items() if name in patterns)


def _names(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    """The path's parameters, if it has the form of ``pattern``."""
    names: dict[str, str] = {}
    for part, segment in zip(pattern, segments, strict=True):
        if part[:1] == "{" and segment:
            names[part[1:-1]] = segment
        elif part[:1] == "{" or part != segment:
            return None
    return names
