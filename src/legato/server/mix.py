"""The routes of the Mix dialect: what is asked of sessions, and what is answered."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET

import legato

from ..caller import ACTIONS
from ..contents import Entry, window
from ..dialect import mix, mix_api
from ..dialect.common import OFFSET_MOST, rfc3339
from ..errors import (
    Conflict,
    CursorInvalid,
    Draining,
    InvalidInput,
    LegatoError,
    SessionNotFound,
    StoreCorrupt,
    TooLarge,
)
from ..event import Event, Offset, SessionDeleted
from ..history import told
from ..json import LARGE, JsonObject
from ..log import MICRO, SessionInfo
from ..part import Message, check_depth
from ..questions import Question, Sent
from .operation import (
    RETRY_AFTER,
    Absence,
    new_session_id,
    session_id,
)
from .reply import Body, Follow, come_back
from .request import Request

logger = logging.getLogger("legato")

PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of messages, as they are stored, in one page at most; one message in any case."""
EXPORT_BYTES = 64 * 1024 * 1024
"""The same of an export, which has no pages."""
MOST_MESSAGES = 10_000
"""Messages in one page at most."""
SKIPPED = 100_000
"""Messages that a page of all sessions' may leave out."""
SUMMARIES = 10_000
"""Session summaries kept; each is made anew when its log has grown."""

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
T = TypeVar("T")


class Summaries:
    """What lists show of sessions, kept as long as nothing comes to their logs."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Offset, mix_api.SessionData]] = OrderedDict()

    async def of(self, request: Request, info: SessionInfo) -> mix_api.SessionData:
        """The summary of a session."""
        known = self._known.get(info.session)
        if known is not None and known[0] == info.head:
            return known[1]
        briefs: list[Message] = []
        try:
            async for event in request.sessions.all(request.caller, info.session, deltas=False, verb="info"):
                mix_api.take_brief(briefs, event)
            data = mix_api.session_data(info, briefs)
        except Exception as exc:
            if not _is_damage(exc):
                raise
            logger.error("session %s is damaged, and shown so: %s", info.session, exc, exc_info=exc)
            data = mix_api.damaged_session(info)
        self._known[info.session] = (info.head, data)
        self._known.move_to_end(info.session)
        if len(self._known) > SUMMARIES:
            self._known.popitem(last=False)
        return data


def _is_damage(exc: Exception) -> bool:
    """Whether it comes from what one log holds. It is no reason not to show all others."""
    return isinstance(exc, StoreCorrupt) or not isinstance(exc, LegatoError)


async def _summary(request: Request, info: SessionInfo) -> mix_api.SessionData:
    data = await request.life.kept(Summaries).of(request, info)
    others = info.owner and info.owner != request.caller.subject
    allowed = request.sessions.allowed(request.caller, info)
    if not others and len(allowed) == len(ACTIONS):
        return data
    return msgspec.structs.replace(data, owner=info.owner if others else UNSET, may=allowed)


async def _summaries(request: Request, infos: Sequence[SessionInfo]) -> list[mix_api.SessionData]:
    """Of those that are still there."""
    found = []
    for info in infos:
        await request.pause()
        with suppress(SessionNotFound):
            found.append(await _summary(request, info))
    return found


class MixEncoder:
    """One reader of a session.

    Args:
        session: its id.
        profile: what the reader understands.
    """

    def __init__(self, session: str, profile: mix.Profile) -> None:
        self.over = False
        self._session = session
        self._profile = profile

    def encode(self, event: Event) -> bytes:
        """See ``Encoder``."""
        if type(event.fact) is SessionDeleted:
            self.over = True
        return mix.frame(event, self._session, self._profile)

    def heartbeat(self, cursor: Offset) -> bytes:
        """See ``Encoder``."""
        return mix.heartbeat(cursor)


async def stream(request: Request) -> Follow:
    """Stays open over many messages. Each frame has `event`, one line of JSON as `data`, and as `id` the cursor to come
    back with. Starts with `connected`; `heartbeat` comes after silence. The end of the connection is not the end of the
    stream: come back with `Last-Event-ID`."""
    opening = mix.open_stream(request.query, request.headers.get("last-event-id"))
    profile = _profile(request)
    info = await request.sessions.info(request.caller, opening.session)
    if opening.cursor is not None and not await request.holds(opening.session, opening.cursor):
        opening = msgspec.structs.replace(opening, cursor=info.head + 1)  # no better than one beyond the end
    fresh = opening.start == "turn" and (opening.cursor is None or opening.cursor > info.head)
    turn = await request.sessions.going_on(info) if fresh else None
    after, exact = mix.position(opening, info, None if turn is None else turn[0])
    first = mix.connected(opening.session, after, exact=exact, info=info, retry=come_back())
    if turn is not None and turn[1].offset <= after:
        first += mix.asked(turn[1], opening.session, profile, after)
    encoder = MixEncoder(opening.session, profile)
    name = f"mix/{profile.name}"
    return Follow(opening.session, after, encoder, name, first, exact, share=profile.name, joins=after)


# Sessions -------------------------------------------------------------------------------------------------------------


async def create(request: Request) -> Body:
    """Begin a session."""
    body = await request.body(mix_api.CreateSession)
    session = new_session_id(body.id)
    info = await request.sessions.create(request.caller, session, mix_api.created(body))
    return Body(201, await _summary(request, info), {"location": f"{request.prefix}/api/sessions/{session}"})


async def index(request: Request) -> Body:
    """Sessions, those last written to first. The header `Legato-Next` leads to more, if there are more."""
    limit = request.number("limit", default=1000, least=1, most=1000)
    before, cursor = request.query.get("before"), request.query.get("cursor")
    if before and cursor is None:
        infos, next = await _written_before(request, _seconds(before), limit), None
    else:
        infos, next = await request.sessions.index(request.caller, limit=limit, after=cursor)
    return Body(200, await _summaries(request, infos), {"legato-next": next} if next else {})


async def _written_before(request: Request, moment: float, limit: int) -> list[SessionInfo]:
    """For clients that page by times: what was last written to before one."""
    found: list[SessionInfo] = []
    page = await request.sessions.index(request.caller, limit=1000)
    while True:
        await request.pause()
        found += [info for info in page.infos if round(info.updated_at * MICRO) < round(moment * MICRO)]
        if len(found) >= limit or page.next is None:
            return found[:limit]
        page = await request.sessions.index(request.caller, limit=1000, after=page.next)


async def get(request: Request) -> Body:
    """One session."""
    data = await _summary(request, await _info(request))
    return Body(200, msgspec.structs.replace(data, you=request.caller.subject or UNSET))


async def delete(request: Request) -> Body:
    """Delete a session, its log and whatever runs in it."""
    await request.sessions.delete(request.caller, _session(request))
    return Body(204)


async def rewind(request: Request) -> Body:
    """Make history end at a message. The log keeps what it has; offsets go on."""
    session = _session(request)
    body = await request.body(mix_api.Rewind)
    await request.sessions.rewind(request.caller, session, body.message_id, key=request.key)
    return Body(200, await _summary(request, await _info(request)))


async def fork(request: Request) -> Body:
    """Begin a session with a copy of another's first messages."""
    source = await _info(request)
    body = await request.body(mix_api.Fork)
    session = new_session_id(body.id)
    info = await request.sessions.fork(
        request.caller, source.session, session, last=body.message_index, title=body.title
    )
    return Body(201, await _summary(request, info))


async def export(request: Request) -> Body:
    """A session with all its messages, as a file."""
    info = await _info(request)
    entries = list((await request.sessions.contents(request.caller, info.session)).entries)
    if (size := sum(entry.size - entry.files for entry in entries)) > EXPORT_BYTES:
        raise TooLarge(
            f"The session's messages have {size} bytes, and an export at most {EXPORT_BYTES}; read them page by page.",
            limit=EXPORT_BYTES,
        )
    messages = await request.sessions.messages(request.caller, info.session, entries, files=False)
    disposition = f'attachment; filename="{info.session}.json"'
    return Body(200, mix_api.export(await _summary(request, info), messages), {"content-disposition": disposition})


async def events(request: Request) -> Body:
    """A page of the canonical log."""
    info = await _info(request)
    after = request.number("after", default=0, least=0, most=OFFSET_MOST)
    limit = request.number("limit", default=500, least=1, most=1000)
    page = await request.sessions.read(request.caller, info.session, after, limit=limit)
    return Body(200, mix_api.event_page(page, info.head))


SHOWN = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "audio/mpeg", "audio/wav", "audio/ogg",
     "audio/webm", "audio/mp4", "video/mp4", "video/webm", "text/plain"}
)  # fmt: skip
"""What a browser shows or plays and never runs. All else is a file to be kept."""


async def blob(request: Request) -> Body:
    """A file that came in a message: its bytes, under their SHA-256, which the message has in the canonical log. They
    never change, so whoever has them need not ask again."""
    hash = request.path["hash"]
    ref = await request.sessions.blob(request.caller, _session(request), hash)
    kept = {"etag": f'"{hash}"', "cache-control": "private, max-age=31536000, immutable"}
    if f'"{hash}"' in request.headers.get("if-none-match", ""):
        return Body(304, None, kept)
    shown = ref.type in SHOWN
    headers = {
        **kept,
        "content-type": ref.type if shown else "application/octet-stream",
        "content-disposition": "inline" if shown else f'attachment; filename="{hash[:16]}"',
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    }
    return Body(200, await request.sessions.blob_bytes(request.caller, _session(request), ref), headers)


# Messages -------------------------------------------------------------------------------------------------------------


async def send_streaming(request: Request) -> Body:
    """Store a message and have it answered; the answer comes on the stream."""
    session = (await _info(request)).session  # an unknown session is 404 also with a body that does not fit
    body = await request.body(mix_api.StreamMessage)
    text, metadata = await request.aside(mix_api.stream_message, body)
    sent = await _send(request, session, text, metadata.pop("agent", None), metadata)
    return Body(200, mix_api.Broadcasted(status="broadcasted", **_fields(sent)), _repeated(sent))


async def send(request: Request) -> Body:
    """Store a message and have it answered; old clients are answered when the turn is over."""
    session = (await _info(request)).session
    profile = _profile(request)  # before anything is stored: a bad ``client`` is 400
    raw = await request.body(JsonObject)
    body = _convert(raw, mix_api.SendMessage)
    metadata = {name: value for name, value in raw.items() if name not in ("text", "agent")}
    sent = await _send(request, session, body.text, body.agent, metadata)
    if profile.answer_at_once:
        return Body(202, mix_api.Processing(status="processing", **_fields(sent)), _repeated(sent))
    return Body(200, await _answered(request, sent), _repeated(sent))


async def _send(request: Request, session: str, text: str, agent: object, metadata: JsonObject) -> Sent:
    if agent is not None and not isinstance(agent, str):
        raise InvalidInput("agent is the name of an agent.")
    key = request.key
    if request.size > LARGE:
        await request.aside(check_depth, "metadata", metadata)
    question = Question(text, agent, metadata, key, size=request.size)
    return await request.sessions.send(request.caller, session, question)


def _profile(request: Request) -> mix.Profile:
    default = mix.profile(request.life.settings.client)
    return mix.negotiate(request.headers.get("user-agent", ""), request.query.get("client"), default)


async def _answered(request: Request, sent: Sent) -> mix_api.BackendMessage:
    sessions, caller = request.sessions, request.caller
    subscription = await sessions.follow(caller, sent.session, sent.offset, deltas=False, heartbeat=1.0)
    with subscription:
        watcher = asyncio.create_task(request.left())
        watcher.add_done_callback(lambda _: subscription.stop())
        try:
            while True:
                events = await subscription.next()
                for event in events:
                    if isinstance(event.fact, SessionDeleted):
                        raise SessionNotFound(sent.session)
                    if event.run == sent.run and event.fact.terminal:
                        return mix_api.backend_message(sent.session, told(event))
                if not events and subscription.stopped:  # the run goes on; only nobody waits here any more
                    raise InvalidInput("The connection ended before the answer.")
                if not events and sessions.draining and not sessions.running:
                    # Not a 5xx: whoever gets one sends the message again, and it has been stored.
                    raise Conflict("The server is stopping; the message is stored and answered at the next start.")
        finally:
            watcher.cancel()


async def retry(request: Request) -> Body:
    """Have the last user message answered anew, under its id, by a new run; the answer so far is taken back.

    The body may be left out.
    """
    body = await request.body(mix_api.Retry, default=mix_api.Retry())
    session, message = _session(request), request.path["messageId"]
    sent = await request.sessions.retry(request.caller, session, message, run=body.run_id, key=request.key)
    return Body(202, mix_api.Processing(status="processing", **_fields(sent)), _repeated(sent))


async def messages(request: Request) -> Body:
    """A session's messages, oldest first: the newest, as many as fit into some megabytes. If there are older ones, the
    header `Legato-Next` leads to them."""
    session, cursor = _session(request), request.query.get("cursor")
    limit = request.number("limit", default=MOST_MESSAGES, least=1, most=MOST_MESSAGES)
    entries = (await request.sessions.contents(request.caller, session)).entries
    if cursor is not None:
        entries = entries[: _place(entries, cursor)]
    begin = window(entries, messages=limit, bytes=PAGE_BYTES, files=False)
    found = await request.sessions.messages(request.caller, session, entries[begin:], files=False)
    headers = {"legato-next": str(entries[begin].offset)} if begin else {}
    return Body(200, [mix_api.backend_message(session, message) for message in found], headers)


def _place(entries: Sequence[Entry], cursor: str) -> int:
    """The place of the message that a page began with."""
    place = next((n for n, entry in enumerate(entries) if str(entry.offset) == cursor), None)
    if place is None:
        raise CursorInvalid("cursor is the Legato-Next of a page of this session; begin again without it.")
    return place


def _newest(messages: list[tuple[Entry, str]], wanted: int) -> list[tuple[Entry, str]]:
    return sorted(messages, key=lambda pair: pair[0].at, reverse=True)[:wanted]


async def _youngest(request: Request, wanted: int) -> list[tuple[Entry, str]]:
    """So many messages of all sessions, each with its session, newest first; what they say is not read."""
    sessions, caller = request.sessions, request.caller
    most = wanted
    newest: list[tuple[Entry, str]] = []
    least = -math.inf  # so many messages are younger, or as young
    after: str | None = None
    while True:
        page = await sessions.index(caller, limit=100, after=after)
        for info in page.infos:
            await request.pause()
            # Sessions come by their last event, so once enough messages are younger than one, it adds nothing.
            if least < info.updated_at:
                newest += [(entry, info.session) for entry in await _entries(request, info) if entry.at > least]
                if len(newest) >= most:  # not for each session, since that costs what there is already
                    newest = _newest(newest, wanted)
                    least, most = newest[-1][0].at, wanted + wanted // 4 + 1
        after = page.next
        if after is None or (page.infos and least >= page.infos[-1].updated_at):
            return _newest(newest, wanted)


async def _entries(request: Request, info: SessionInfo) -> Sequence[Entry]:
    """The messages of a session; none of one that is damaged, or has been deleted meanwhile."""
    try:
        return (await request.sessions.contents(request.caller, info.session)).entries
    except SessionNotFound:
        return ()
    except Exception as exc:
        if not _is_damage(exc):
            raise
        await _summary(request, info)  # which tells it, once
        return ()


async def history(request: Request) -> Body:
    """Messages of all sessions, newest first. A page ends early where they are large; the next one begins behind it."""
    limit = request.number("limit", default=50, least=1, most=1000)
    skip = request.number("offset", default=0, least=0, most=SKIPPED)
    newest = await _youngest(request, skip + limit)
    room = PAGE_BYTES
    found: list[mix_api.BackendMessage] = []
    for entry, session in newest[skip:]:
        await request.pause()
        room -= entry.size - entry.files
        if room < 0 and found:
            break
        try:
            [message] = await request.sessions.messages(request.caller, session, [entry], files=False)
            found.append(mix_api.backend_message(session, message))
        except SessionNotFound:
            pass
        except Exception as exc:
            if not _is_damage(exc):
                raise
            logger.error("session %s: message %s is damaged, and left out: %s", session, entry.id, exc)
    return Body(200, found)


async def cancel(request: Request) -> Body:
    """Ask one run, or all that is running or waiting in the session, to stop. The body may be left out; then it is safe
    to ask again under an `Idempotency-Key`."""
    session = _session(request)
    body = await request.body(mix_api.Cancel, default=mix_api.Cancel())
    cancelled = await request.sessions.cancel(request.caller, session, body.run_id, key=request.key)
    return Body(200, mix_api.Cancelled(cancelled=bool(cancelled)))


# Questions ------------------------------------------------------------------------------------------------------------


async def grant(request: Request) -> Body:
    """Allow what a permission event asks for."""
    granted = await request.sessions.resolve_permission(request.caller, request.path["id"], True)
    return Body(200, mix_api.Granted(granted=granted))


async def deny(request: Request) -> Body:
    """Refuse what a permission event asks for."""
    granted = await request.sessions.resolve_permission(request.caller, request.path["id"], False)
    return Body(200, mix_api.Denied(denied=not granted))


async def answer_notification(request: Request) -> Body:
    """Answer a notification event."""
    body = await request.body(mix_api.Respond)
    await request.sessions.resolve_notification(request.caller, request.path["id"], body.type, body.value)
    return Body(204)


# The server -----------------------------------------------------------------------------------------------------------


async def health(request: Request) -> Body:
    """Whether the server is up."""
    return healthy(request.sessions.agents)


def healthy(agents: Iterable[str]) -> Body:
    """The same, also where there is no life."""
    now = rfc3339(time.time())
    return Body(200, mix_api.Health(status="ok", timestamp=now, version=legato.__version__, agents=list(agents)))


async def ready(request: Request) -> Body:
    """Whether the server takes new messages."""
    if request.sessions.draining:
        return _unready("draining", Draining.code)
    if (trouble := request.sessions.trouble) is not None:
        return _unready("store", trouble.code)
    return Body(200, mix_api.Ready(status="ready"))


def _unready(status: Literal["starting", "draining", "store"], reason: str) -> Body:
    return Body(503, mix_api.Ready(status=status, reason=reason), {"retry-after": RETRY_AFTER[503]})


def ready_without_life(absence: Absence) -> Body:
    """Why it takes none yet, or any more."""
    return _unready("starting" if absence.starting else "draining", absence.why.code)


async def api_key(request: Request) -> Body:
    """The examples of Mix begin with this call. Legato's agents hold their own keys, so nothing is kept."""
    body = await request.body(mix_api.ApiKey)
    message = "Not stored: the agents of this server hold their own keys."
    return Body(200, mix_api.ApiKeyAnswer(status="ignored", provider=body.provider, message=message))


async def system_info(request: Request) -> Body:
    """The examples of Mix ask for this. Legato tells nobody where its files are."""
    return Body(200, mix_api.SystemInfo(storage_base_path=""))


async def nothing(request: Request) -> Body:
    """Slash commands and MCP servers belong to agents here, not to the server."""
    return Body(200, [])


# What requests say ----------------------------------------------------------------------------------------------------


def _session(request: Request) -> str:
    return session_id(request.path["id"])


async def _info(request: Request) -> SessionInfo:
    return await request.sessions.info(request.caller, _session(request))


def _convert(raw: JsonObject, type: type[T]) -> T:
    try:
        return msgspec.convert(raw, type)
    except msgspec.ValidationError as exc:
        raise InvalidInput(f"The body does not fit: {exc}.") from exc


def _seconds(text: str) -> float:
    try:
        return msgspec.convert(text, _Moment).timestamp()
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise InvalidInput(f"before is a time such as 2026-11-21T12:00:00Z, got {text[:60]!r}.") from None


def _fields(sent: Sent) -> dict[str, str]:
    cursor = str(sent.offset - 1)
    return {"session_id": sent.session, "run_id": sent.run, "message_id": sent.message, "cursor": cursor}


def _repeated(sent: Sent) -> dict[str, str]:
    return {"legato-repeated": "true"} if sent.repeated else {}
