"""The routes of the Deva dialect: threads, messages, and the stream that answers a message.

A request for the stream attaches to the message's run, however often it comes: the message was given its run when it
was sent, and only a person's explicit retry gives it another. So what a library repeats by itself costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..contents import window
from ..dialect import deva, deva_api
from ..dialect.common import idempotency_key
from ..errors import CursorInvalid, InvalidInput, NotFound
from ..event import MessageCreated, SessionCreated
from ..json import JsonObject
from ..questions import Question
from ..sessions import Located
from .operation import INCARNATION_PARAM, ONCE_PARAM, Dialect, Frames, Operation, Param, new_session_id
from .operation import session_id as thread_id
from .reply import Body, Follow, View, come_back
from .request import Request

# Threads --------------------------------------------------------------------------------------------------------------


async def create(request: Request) -> Body:
    """Begin a thread. The body may be left out."""
    body = await request.body(deva_api.CreateThread, default=deva_api.CreateThread())
    thread = new_session_id(body.id)
    info = await request.sessions.create(request.caller, thread, SessionCreated(body.title, body.username or None))
    location = {"location": f"{request.prefix}/api/sdk/chat/{thread}"}
    return Body(201, deva_api.thread(info, default=_default(request)), location)


async def get(request: Request) -> Body:
    """One thread."""
    info = await request.sessions.info(request.caller, thread_id(request.path["threadId"]))
    return Body(200, deva_api.thread(info, default=_default(request)))


def _default(request: Request) -> str:
    return next(iter(request.sessions.agents))


PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of messages, as they are stored, in one page at most; one message in any case."""

# Messages -------------------------------------------------------------------------------------------------------------


async def messages(request: Request) -> Body:
    """A page of a thread's messages, the newest first."""
    thread, iso = thread_id(request.path["threadId"]), _iso(request.query)
    limit = request.number("limit", default=20, least=1, most=100)
    info = await request.sessions.info(request.caller, thread)
    contents = await request.sessions.contents(request.caller, thread)
    entries = contents.entries[: deva_api.end([entry.id for entry in contents.entries], request.query.get("cursor"))]
    begin = window(entries, messages=limit, bytes=PAGE_BYTES, files=False)
    before = next((entry for entry in reversed(entries[:begin]) if entry.role == "user"), None)
    asked = [before] if before is not None and entries[begin].role != "user" else []  # what the first of them answers
    agents = {entry.run: contents.agents[entry.run] for entry in entries[begin:] if entry.run in contents.agents}
    said = await request.sessions.messages(request.caller, thread, [*asked, *entries[begin:]], files=False)
    found = deva_api.messages(thread, said, agents, default=info.created.agent or _default(request), iso=iso)
    return Body(200, deva_api.page(found[len(asked) :], more=begin > 0))


async def send(request: Request) -> Body:
    """Store a user's message; it is answered from now on, whether anybody opens its stream or not."""
    thread, iso = thread_id(request.path["threadId"]), _iso(request.query)
    await request.sessions.info(request.caller, thread)  # an unknown thread is 404 also with a body that does not fit
    body = await request.body(deva_api.CreateMessage)
    key = idempotency_key(body.client_id, "client_id")
    sent = await request.sessions.send(request.caller, thread, Question(body.text, key=key))
    stored = await _question(request, thread, sent.offset, iso=iso)
    return Body(201, stored, {"legato-repeated": "true"} if sent.repeated else {})


async def stop(request: Request) -> Body:
    """Ask the newest answer to a message to stop; with the id of a frame of an answer, only that one. Leaving its
    stream stops nothing."""
    thread = thread_id(request.path["threadId"])
    run = await _seen(request, thread)
    if run is None:
        run = (await request.sessions.asked(request.caller, thread, request.path["messageId"]))[-1].run
    stopped = run is not None and bool(await request.sessions.cancel(request.caller, thread, run))
    return Body(200, deva_api.Stopped(stopped=stopped))


async def retry(request: Request) -> Body:
    """Have the thread's last user message answered anew, under its id; open its stream again for the answer.

    With the id of the last frame of the old answer, or an `Idempotency-Key`, it is safe to ask again.
    """
    thread, iso = thread_id(request.path["threadId"]), _iso(request.query)
    run = await _seen(request, thread)
    sent = await request.sessions.retry(request.caller, thread, request.path["messageId"], run=run, key=request.key)
    stored = await _question(request, thread, sent.offset, iso=iso)
    return Body(202, stored, {"legato-repeated": "true"} if sent.repeated else {})


async def _seen(request: Request, thread: str) -> str | None:
    """The run whose answer whoever asks has seen a frame of, as far as they say so."""
    cursor = deva.parse_cursor(request.headers.get("last-event-id"))
    if cursor is None:
        return None
    asks = await request.sessions.asked(request.caller, thread, request.path["messageId"])
    run = await request.sessions.run_at(request.caller, thread, cursor[0])
    if run is None or run not in {ask.run for ask in asks}:
        raise CursorInvalid("Last-Event-ID is an id of an answer to this message, got one from elsewhere.")
    return run


async def _question(request: Request, thread: str, offset: int, *, iso: bool) -> deva_api.ThreadMessage:
    for event in await request.sessions.read(request.caller, thread, offset - 1, limit=1):
        if isinstance(event.fact, MessageCreated):
            return deva_api.question(thread, event.fact, event.at, iso=iso)
    raise NotFound("The thread was deleted meanwhile.")


# The stream -----------------------------------------------------------------------------------------------------------


async def stream(request: Request) -> Follow:
    """The answer to a message, from where the reader was. A body is not needed and not looked at."""
    thread, message = thread_id(request.path["threadId"]), request.path["messageId"]
    iso = _iso(request.query)
    cursor = deva.parse_cursor(request.headers.get("last-event-id"))
    if cursor is None:
        cursor = deva.parse_cursor(request.query.get("lastEventId"), "lastEventId")
    await request.sessions.info(request.caller, thread)
    request.reserve(thread)
    asks = [ask for ask in await request.sessions.asked(request.caller, thread, message) if ask.run is not None]
    run = None
    if cursor is not None and await request.holds(thread, cursor[0]):
        run = await request.sessions.run_at(request.caller, thread, cursor[0])
    after = (0, 0) if cursor is None else (cursor[0], cursor[1] + 1)
    if run is None or run not in {ask.run for ask in asks}:
        after = (0, 0)
        run = asks[-1].run if asks else (await request.sessions.answer(request.caller, thread, message)).run
    located = await request.sessions.find(request.caller, thread, run or "", withdrawn=True)
    if located is None:
        raise NotFound("The thread was deleted meanwhile.")
    exact = cursor is None or after != (0, 0)
    return request.life.follow_run(
        located, _VIEWS[iso], "deva", after=after, first=deva.opening(come_back()), exact=exact
    )


def _view_of(*, iso: bool) -> View:
    def fold(run: Located) -> deva.AnswerEncoder:
        return deva.AnswerEncoder(run.session, run.run, iso=iso)

    return View("deva/iso" if iso else "deva", fold=fold, joins=True)


_VIEWS = {iso: _view_of(iso=iso) for iso in (False, True)}


# Personas -------------------------------------------------------------------------------------------------------------


async def personas(request: Request) -> Body:
    """The agents, or those of the names asked for."""
    asked = {name for text in request.query.getlist("usernames") for name in text.split(",")}
    names = [name for name in request.sessions.agents if name in asked or "usernames" not in request.query]
    return Body(200, deva_api.PersonaPage(items=[deva_api.persona(name) for name in names]))


# The table ------------------------------------------------------------------------------------------------------------

_CREATED_AT = Param("created_at", "query", "How times are written: seconds since the epoch, or ISO 8601 text.",
                    {"type": "string", "enum": ["number", "iso"], "default": "number"})  # fmt: skip


_LAST = Param("Last-Event-ID", "header", "The id of the last frame you have of an answer to the message.",
              {"type": "string", "anyOf": [{"maxLength": 0}, {"pattern": deva.CURSOR_PATTERN}]})  # fmt: skip
_LAST_IN_QUERY = Param("lastEventId", "query", "The same, for clients that cannot set the header, which wins.",
                       _LAST.schema)  # fmt: skip


def _iso(query: Mapping[str, str]) -> bool:
    given = query.get("created_at", "number")
    if given not in ("number", "iso"):
        raise InvalidInput(f"created_at is 'number' or 'iso', got {given[:60]!r}.")
    return given == "iso"


_STREAM = (
    "Attaches to the message's newest answer, from its start, however often it is asked for: "
    "nothing is generated twice. Frames: `content` (a JSON string, to be added to the text), then `completion` "
    "and `response_message` (the whole `Message`), or `error` (`code`, `message`, `retryable`) in place of both. "
    "A stream that ends without one of these two was cut: come back with `Last-Event-ID`."
)

_FRAME: JsonObject = {
    "description": "One frame of the stream.",
    "type": "object",
    "properties": {
        "event": {"enum": ["content", "completion", "response_message", "error"]},
        "data": {"type": "string", "description": "One line of JSON.", "contentMediaType": "application/json"},
        "id": {"type": "string", "pattern": deva.CURSOR_PATTERN},
        "retry": {"type": "integer", "description": "Milliseconds; with the first frame of a connection."},
    },
    "required": ["event", "data", "id"],
}


def _operations() -> list[Operation]:
    thread = Param("threadId", "path", "The thread's id: a session's.", required=True)
    message = Param("messageId", "path", "The user message's id.", required=True)
    path, one = "/api/sdk/chat/{threadId}", "/api/sdk/chat/{threadId}/messages/{messageId}"
    limit = Param("limit", "query", "How many at most; 20 by default.",
                  {"type": "integer", "minimum": 1, "maximum": 100})  # fmt: skip
    cursor = Param("cursor", "query", "The next_cursor of the page before.", {"type": "string", "minLength": 1})
    usernames = Param("usernames", "query", "Names of agents, with commas between them.")
    return [
        Operation("streamAnswer", "POST", f"{one}/query/stream", "deva", "Read the answer to a message", stream, {},
                  params=[thread, Param("messageId", "path", "The id of the user message whose answer is to be read.",
                                        required=True), _CREATED_AT, _LAST, _LAST_IN_QUERY, INCARNATION_PARAM],
                  errors=(404, 409, 429),
                  description=_STREAM,
                  stream=Frames(frame=_FRAME, reset="when the cursor is none of this answer's, which then comes from "
                                "its start")),
        Operation("createThread", "POST", "/api/sdk/chat", "deva", "Begin a thread", create,
                  {201: deva_api.Thread}, body=deva_api.CreateThread, body_required=False, errors=(409,)),
        Operation("getThread", "GET", path, "deva", "Get a thread", get, {200: deva_api.Thread},
                  params=[thread], errors=(404,)),
        Operation("listThreadMessages", "GET", f"{path}/messages", "deva", "List a thread's messages",
                  messages, {200: deva_api.MessagePage}, params=[thread, limit, cursor, _CREATED_AT],
                  errors=(404,)),
        Operation("createThreadMessage", "POST", f"{path}/messages", "deva", "Send a message", send,
                  {201: deva_api.ThreadMessage}, params=[thread, _CREATED_AT], body=deva_api.CreateMessage,
                  errors=(404, 409)),
        Operation("stopAnswer", "POST", f"{one}/stop", "deva", "Stop an answer", stop,
                  {200: deva_api.Stopped}, params=[thread, message, _LAST], errors=(404,)),
        Operation("retryAnswer", "POST", f"{one}/retry", "deva", "Answer the last message anew", retry,
                  {202: deva_api.ThreadMessage}, params=[thread, message, _CREATED_AT, _LAST, ONCE_PARAM],
                  errors=(404, 409, 503)),
        Operation("listPersonas", "GET", "/api/sdk/persona/public", "deva", "List the agents", personas,
                  {200: deva_api.PersonaPage}, params=[usernames]),
    ]  # fmt: skip


DEVA = Dialect("deva", _operations(), view=lambda name: _VIEWS[False] if name == "deva" else None, views=("deva",))
