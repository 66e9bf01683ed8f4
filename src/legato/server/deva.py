"""The routes of the Deva dialect: threads, messages, and the stream that answers a message.

A request for the stream attaches to the message's run, however often it comes: the message was given its run when it
was sent, and only a person's explicit retry gives it another. So what a library repeats by itself costs nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Container, Mapping
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ..dialect import deva, deva_api, mix_api
from ..errors import CursorInvalid, InvalidInput, LegatoError, NotFound
from ..event import Event
from ..log import Log, Store
from ..run import Runner
from ..transcript import asks as asks_of
from .operation import Answer, Operation, Param, Request, error_answer, new_session, path_within, respond_error
from .operation import session_id as thread_id
from .stream import Pump, Streams, unless_cut

logger = logging.getLogger("legato")

STREAM_PATH = "/api/sdk/chat/{threadId}/messages/{messageId}/query/stream"


class DevaRoutes:
    """The operations of the Deva dialect but for the stream.

    Args:
        store, runner: of the application.
    """

    def __init__(self, store: Store, runner: Runner) -> None:
        self._store = store
        self._runner = runner

    # Threads ----------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Answer:
        """Begin a thread. The body may be left out."""
        body = await request.body(deva_api.CreateThread, default=deva_api.CreateThread())
        self._runner.check_agent(body.username)
        thread = new_session(body.id)
        begun = mix_api.created(mix_api.CreateSession(title=body.title, agent=body.username))
        await self._store.append(thread, [begun])
        return Answer(201, await self._thread(thread), {"location": f"{request.prefix}/api/sdk/chat/{thread}"})

    async def get(self, request: Request) -> Answer:
        """One thread."""
        return Answer(200, await self._thread(thread_id(request.path["threadId"])))

    async def _thread(self, thread: str) -> deva_api.Thread:
        return deva_api.thread(await self._store.info(thread), default=self._default)

    @property
    def _default(self) -> str:
        return next(iter(self._runner.agents))

    # Messages ---------------------------------------------------------------------------------------------------------

    async def messages(self, request: Request) -> Answer:
        """A page of a thread's messages, the newest first."""
        thread, iso = thread_id(request.path["threadId"]), _iso(request.query)
        await self._store.info(thread)
        limit = request.number("limit", default=20, least=1, most=100)
        found = deva_api.messages(thread, await self._events(thread), default=self._default, iso=iso)
        return Answer(200, deva_api.page(found, limit=limit, cursor=request.query.get("cursor")))

    async def send(self, request: Request) -> Answer:
        """Store a user's message; it is answered from now on, whether anybody opens its stream or not."""
        thread, iso = thread_id(request.path["threadId"]), _iso(request.query)
        await self._store.info(thread)  # an unknown thread is 404 also with a body that does not fit
        body = await request.body(deva_api.CreateMessage)
        key = mix_api.idempotency_key(body.client_id, "client_id")
        sent = await self._runner.send(thread, body.text, key=key)
        stored = await self._question(thread, sent.offset, iso=iso)
        return Answer(201, stored, {"legato-repeated": "true"} if sent.repeated else {})

    async def stop(self, request: Request) -> Answer:
        """Ask the answer to a message to stop. Leaving its stream does not."""
        thread = thread_id(request.path["threadId"])
        last = (await self._asks(thread, request.path["messageId"]))[-1]
        stopped = last.run is not None and bool(await self._runner.cancel(thread, last.run))
        return Answer(200, deva_api.Stopped(stopped=stopped))

    async def retry(self, request: Request) -> Answer:
        """Have the thread's last user message answered anew, under its id; open its stream again for the answer.

        With the id of the last frame of the old answer, it is safe to ask again.
        """
        thread, iso = thread_id(request.path["threadId"]), _iso(request.query)
        cursor = deva.parse_cursor(request.headers.get("last-event-id"))
        run = None
        if cursor is not None:
            asks = await self._asks(thread, request.path["messageId"])
            run = await _run_at(self._store, thread, cursor, {ask.run for ask in asks})
            if run is None:
                raise CursorInvalid("Last-Event-ID is an id of an answer to this message, got one from elsewhere.")
        sent = await self._runner.retry(thread, request.path["messageId"], run=run)
        stored = await self._question(thread, sent.offset, iso=iso)
        return Answer(202, stored, {"legato-repeated": "true"} if sent.repeated else {})

    async def _question(self, thread: str, offset: int, *, iso: bool) -> deva_api.Message:
        events = await self._store.read(thread, offset - 1, limit=1)
        if not events or events[0].type != "message.created":
            raise NotFound("The thread was deleted meanwhile.")
        return deva_api.question(thread, events[0].data, events[0].at, iso=iso)

    async def _events(self, thread: str) -> list[Event]:
        return [event async for event in Log(self._store, thread).all(deltas=False)]

    async def _asks(self, thread: str, message: str) -> list[Event]:
        await self._store.info(thread)
        found = asks_of(await self._events(thread), message)
        if not found:
            raise NotFound(f"The thread has no message {message[:200]!r} of a user.")
        return found

    # Personas ---------------------------------------------------------------------------------------------------------

    async def personas(self, request: Request) -> Answer:
        """The agents, or those of the names asked for."""
        asked = {name for text in request.query.getlist("usernames") for name in text.split(",")}
        names = [name for name in self._runner.agents if name in asked or "usernames" not in request.query]
        return Answer(200, deva_api.PersonaPage(items=[deva_api.persona(name) for name in names]))

    def operations(self) -> list[Operation]:
        """All of them, as the router and the document need them."""
        thread = Param("threadId", "path", "The thread's id: a session's.", required=True)
        message = Param("messageId", "path", "The user message's id.", required=True)
        path, one = "/api/sdk/chat/{threadId}", "/api/sdk/chat/{threadId}/messages/{messageId}"
        limit = Param("limit", "query", "How many at most; 20 by default.",
                      {"type": "integer", "minimum": 1, "maximum": 100})  # fmt: skip
        cursor = Param("cursor", "query", "The next_cursor of the page before.")
        usernames = Param("usernames", "query", "Names of agents, with commas between them.")
        return [
            Operation("createThread", "POST", "/api/sdk/chat", "deva", "Begin a thread", self.create,
                      {201: deva_api.Thread}, body=deva_api.CreateThread, body_required=False, errors=(409,)),
            Operation("getThread", "GET", path, "deva", "Get a thread", self.get, {200: deva_api.Thread},
                      params=[thread], errors=(404,)),
            Operation("listThreadMessages", "GET", f"{path}/messages", "deva", "List a thread's messages",
                      self.messages, {200: deva_api.MessagePage}, params=[thread, limit, cursor, _CREATED_AT],
                      errors=(404,)),
            Operation("createThreadMessage", "POST", f"{path}/messages", "deva", "Send a message", self.send,
                      {201: deva_api.Message}, params=[thread, _CREATED_AT], body=deva_api.CreateMessage,
                      errors=(404, 409)),
            Operation("stopAnswer", "POST", f"{one}/stop", "deva", "Stop an answer", self.stop,
                      {200: deva_api.Stopped}, params=[thread, message], errors=(404,)),
            Operation("retryAnswer", "POST", f"{one}/retry", "deva", "Answer the last message anew", self.retry,
                      {202: deva_api.Message}, params=[thread, message, _CREATED_AT, _LAST], errors=(404, 409, 503)),
            Operation("listPersonas", "GET", "/api/sdk/persona/public", "deva", "List the agents", self.personas,
                      {200: deva_api.PersonaPage}, params=[usernames]),
        ]  # fmt: skip


_CREATED_AT = Param("created_at", "query", "How times are written: seconds since the epoch, or ISO 8601 text.",
                    {"type": "string", "enum": ["number", "iso"], "default": "number"})  # fmt: skip


_LAST = Param("Last-Event-ID", "header", "The id of the last frame you have of an answer to the message.",
              {"type": "string", "anyOf": [{"maxLength": 0}, {"pattern": deva.CURSOR_PATTERN}]})  # fmt: skip


def _iso(query: Mapping[str, str]) -> bool:
    given = query.get("created_at", "number")
    if given not in ("number", "iso"):
        raise InvalidInput(f"created_at is 'number' or 'iso', got {given[:60]!r}.")
    return given == "iso"


STREAM_PARAMS = [
    Param("threadId", "path", "The thread's id: a session's.", required=True),
    Param("messageId", "path", "The id of the user message whose answer is to be read.", required=True),
    _CREATED_AT,
    _LAST,
]  # fmt: skip


class Place(msgspec.Struct, frozen=True):
    """Where a reader's answer stands in the log.

    Attributes:
        before: the offset after which the run's events begin.
        after: the last frame that the reader has.
        exact: whether its cursor could be continued.
    """

    run: str
    before: int
    after: deva.Cursor
    exact: bool


class DevaStream:
    """An ASGI application for the paths that ``serves`` names: the streams of answers.

    Args:
        store, runner, streams: of the application.
        heartbeat: seconds of silence in a stream before a comment.
    """

    def __init__(self, store: Store, runner: Runner, streams: Streams, *, heartbeat: float) -> None:
        self._store = store
        self._runner = runner
        self._streams = streams
        self._heartbeat = heartbeat

    def serves(self, path: str) -> bool:
        """Whether ``path``, within the application, is that of a stream."""
        return _names(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A body is not needed and not looked at; nor is ``Accept``, which one library doubles."""
        try:
            if scope["method"] != "POST":
                body = mix_api.error_response(405, "Use POST here.", "method_not_allowed")
                refusal = error_answer(405, body)
                refusal.headers["allow"] = "POST"
                await refusal(scope, receive, send)
                return
            pump, encoder, exact = await self._open(scope)
        except LegatoError as exc:
            if exc.status >= 500:
                logger.error("%s %s: %s", scope["method"], scope["path"], exc)
            await respond_error(exc)(scope, receive, send)
            return
        except Exception:
            body = mix_api.error_response(500, "The server failed; its log has the details.", "internal")
            await error_answer(500, body)(scope, receive, send)
            raise  # for the server's log
        # A delay of its own for each reader, so that after a restart they do not all come back at once.
        first = deva.opening(random.randint(1000, 3000))  # noqa: S311
        head = [(b"legato-cursor", b"exact" if exact else b"reset")]
        await self._streams.run(pump, first, head, receive, unless_cut(send, lambda: encoder.over))

    async def _open(self, scope: Scope) -> tuple[Pump, deva.AnswerEncoder, bool]:
        names = _names(path_within(scope))
        assert names is not None
        thread, message = thread_id(names[0]), names[1]
        iso = _iso(dict(parse_qsl(scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)))
        cursor = deva.parse_cursor(Headers(scope=scope).get("last-event-id"))
        await self._store.info(thread)
        self._streams.admit(thread)
        place = await self._place(thread, message, cursor)
        encoder = deva.AnswerEncoder(thread, place.run, after=place.after, iso=iso)
        pump = Pump(
            self._store,
            thread,
            place.before,
            encode=encoder.encode,
            heartbeat=deva.heartbeat,
            interval=self._heartbeat,
            over=lambda event: encoder.over,
            dialect="deva",
        )
        return pump, encoder, place.exact

    async def _place(self, thread: str, message: str, cursor: deva.Cursor | None) -> Place:
        """The run that the cursor comes from; without one, the message's newest run, begun if it never had any."""
        events = Log(self._store, thread).all(deltas=False)
        runs = {ask.run: ask.offset - 1 for ask in asks_of([event async for event in events], message) if ask.run}
        if cursor is not None and (run := await _run_at(self._store, thread, cursor, runs)):
            return Place(run=run, before=runs[run], after=cursor, exact=True)
        if runs:
            run, before = list(runs.items())[-1]
            return Place(run=run, before=before, after=deva.START, exact=cursor is None)
        sent = await self._runner.answer(thread, message)
        return Place(run=sent.run, before=sent.offset - 1, after=deva.START, exact=cursor is None)


async def _run_at(store: Store, thread: str, cursor: deva.Cursor, runs: Container[str | None]) -> str | None:
    """The run, one of ``runs``, whose event the cursor names; None if it names none of theirs."""
    read = await store.read(thread, max(cursor[0] - 1, 0), limit=1)
    return read[0].run if read and read[0].offset == cursor[0] and read[0].run in runs else None


def _names(path: str) -> tuple[str, str] | None:
    """The thread and the message in the path of a stream; None for another path."""
    match path.split("/"):
        case ["", "api", "sdk", "chat", thread, "messages", message, "query", "stream"]:
            return thread, message
    return None
