"""The routes of the Mix dialect: what is asked of the log and the runner, and what is answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

import msgspec

from ..dialect import mix, mix_api
from ..errors import Conflict, InvalidInput, NotFound, SessionNotFound
from ..event import TERMINAL, Draft, Event, Message
from ..log import Log, SessionInfo, Store, Subscription
from ..run import Runner, Sent
from ..transcript import history
from .operation import RETRY_AFTER, Answer, Operation, Param, Request, new_session, session_id

logger = logging.getLogger("legato")

SUMMARIES = 10_000
"""Session summaries kept; each is made anew when its log has grown."""

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class MixRoutes:
    """The operations of the Mix dialect but for ``GET /stream``.

    Args:
        store, runner: of the application.
        default: the profile for clients that do not tell their version.
    """

    def __init__(self, store: Store, runner: Runner, default: mix.Profile) -> None:
        self._store = store
        self._runner = runner
        self._default = default
        self._summaries: OrderedDict[str, tuple[int, mix_api.SessionData]] = OrderedDict()

    # Sessions ---------------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Answer:
        """Begin a session."""
        body = await request.body(mix_api.CreateSession)
        self._runner.check_agent(body.agent)
        session = new_session(body.id)
        await self._store.append(session, [mix_api.created(body)])
        return Answer(201, await self._summary(session), {"location": f"{request.prefix}/api/sessions/{session}"})

    async def index(self, request: Request) -> Answer:
        """Sessions, those last written to first."""
        limit = request.number("limit", default=1000, least=1, most=1000)
        before = request.query.get("before")
        infos = await self._store.sessions(limit=limit, before=_seconds(before) if before else None)
        return Answer(200, [await self._data(info) for info in infos])

    async def get(self, request: Request) -> Answer:
        """One session."""
        return Answer(200, await self._summary(_session(request)))

    async def delete(self, request: Request) -> Answer:
        """Delete a session, its log and whatever runs in it."""
        session = _session(request)
        await self._store.append(session, [Draft(type="session.deleted", data={})])
        return Answer(204)

    async def rewind(self, request: Request) -> Answer:
        """Make history end at a message. The log keeps what it has; offsets go on."""
        session = _session(request)
        body = await request.body(mix_api.Rewind)
        messages = await self._messages(session)
        info = await self._store.info(session)
        if info.open_runs:
            raise Conflict("A session cannot be rewound while an answer is being given; cancel it first.")
        if all(message.id != body.message_id for message in messages):
            raise NotFound(f"The session has no message {body.message_id[:200]!r}.")
        await self._store.append(session, [Draft(type="session.rewound", data={"to": body.message_id})])
        return Answer(200, await self._summary(session))

    async def fork(self, request: Request) -> Answer:
        """Begin a session with a copy of another's first messages."""
        source = await self._store.info(_session(request))
        body = await request.body(mix_api.Fork)
        session = new_session(body.id)
        await self._store.append(session, mix_api.forked(body, source, await self._messages(source.session)))
        return Answer(201, await self._summary(session))

    async def export(self, request: Request) -> Answer:
        """A session with all its messages, as a file."""
        session = _session(request)
        data = mix_api.export(await self._summary(session), await self._messages(session))
        return Answer(200, data, {"content-disposition": f'attachment; filename="{session}.json"'})

    async def events(self, request: Request) -> Answer:
        """A page of the canonical log."""
        info = await self._store.info(_session(request))
        after = request.number("after", default=0, least=0, most=10**15 - 1)
        limit = request.number("limit", default=500, least=1, most=1000)
        events = await self._store.read(info.session, after, limit=limit)
        return Answer(200, mix_api.event_page(events, info.head))

    async def _summary(self, session: str) -> mix_api.SessionData:
        return await self._data(await self._store.info(session))

    async def _data(self, info: SessionInfo) -> mix_api.SessionData:
        known = self._summaries.get(info.session)
        if known is not None and known[0] == info.head:
            return known[1]
        data = mix_api.session_data(info, await self._events(info.session))
        self._summaries[info.session] = (info.head, data)
        self._summaries.move_to_end(info.session)
        if len(self._summaries) > SUMMARIES:
            self._summaries.popitem(last=False)
        return data

    async def _events(self, session: str) -> list[Event]:
        return [event async for event in Log(self._store, session).all(deltas=False)]

    async def _messages(self, session: str) -> list[Message]:
        return history(await self._events(session))

    # Messages ---------------------------------------------------------------------------------------------------------

    async def send_streaming(self, request: Request) -> Answer:
        """Store a message and have it answered; the answer comes on the stream."""
        session = _session(request)
        await self._store.info(session)  # an unknown session is 404 also with a body that does not fit
        body = await request.body(mix_api.StreamMessage)
        text, metadata = mix_api.stream_message(body)
        sent = await self._send(request, session, text, metadata.pop("agent", None), metadata)
        return Answer(200, mix_api.Broadcasted(status="broadcasted", **_fields(sent)), _repeated(sent))

    async def send(self, request: Request) -> Answer:
        """Store a message and have it answered; old clients are answered when the turn is over."""
        session = _session(request)
        await self._store.info(session)
        profile = self._profile(request)  # before anything is stored: a bad ``client`` is 400
        raw = await request.body(dict[str, Any])
        body = _convert(raw, mix_api.SendMessage)
        metadata = {name: value for name, value in raw.items() if name not in ("text", "agent")}
        sent = await self._send(request, session, body.text, body.agent, metadata)
        if profile.answer_at_once:
            return Answer(202, mix_api.Processing(status="processing", **_fields(sent)), _repeated(sent))
        return Answer(200, await self._answered(request, sent), _repeated(sent))

    async def _send(self, request: Request, session: str, text: str, agent: Any, metadata: dict[str, Any]) -> Sent:
        if agent is not None and not isinstance(agent, str):
            raise InvalidInput("agent is the name of an agent.")
        key = mix_api.idempotency_key(request.headers.get("idempotency-key"))
        return await self._runner.send(session, text, agent=agent, metadata=metadata, key=key)

    def _profile(self, request: Request) -> mix.Profile:
        return mix.negotiate(request.headers.get("user-agent", ""), request.query.get("client"), self._default)

    async def _answered(self, request: Request, sent: Sent) -> mix_api.BackendMessage:
        with Subscription(self._store, sent.session, sent.offset, deltas=False, heartbeat=1.0) as subscription:
            watcher = asyncio.create_task(request.left())
            watcher.add_done_callback(lambda _: subscription.stop())
            try:
                while True:
                    events = await subscription.next()
                    for event in events:
                        if event.type == "session.deleted":
                            raise SessionNotFound(sent.session)
                        if event.run == sent.run and event.type in TERMINAL:
                            answer = next(m for m in await self._messages(sent.session) if m.offset == event.offset)
                            return mix_api.backend_message(sent.session, answer)
                    if not events and subscription.stopped:  # the run goes on; only nobody waits here any more
                        raise InvalidInput("The connection ended before the answer.")
                    if not events and self._runner.draining and not self._runner.running:
                        # Not a 5xx: whoever gets one sends the message again, and it has been stored.
                        raise Conflict("The server is stopping; the message is stored and answered at the next start.")
            finally:
                watcher.cancel()

    async def retry(self, request: Request) -> Answer:
        """Have the last user message answered anew, under its id, by a new run; the answer so far is taken back.

        The body may be left out.
        """
        body = await request.body(mix_api.Retry, default=mix_api.Retry())
        sent = await self._runner.retry(_session(request), request.path["messageId"], run=body.run_id)
        return Answer(202, mix_api.Processing(status="processing", **_fields(sent)), _repeated(sent))

    async def messages(self, request: Request) -> Answer:
        """A session's messages, oldest first."""
        session = _session(request)
        await self._store.info(session)
        return Answer(200, [mix_api.backend_message(session, m) for m in await self._messages(session)])

    async def history(self, request: Request) -> Answer:
        """Messages of all sessions, newest first."""
        limit = request.number("limit", default=50, least=1, most=1000)
        skip = request.number("offset", default=0, least=0, most=100_000)
        newest: list[tuple[Message, str]] = []
        before: float | None = None
        # Sessions come by their last event, so once enough messages are younger than a session, it and all that
        # follow have nothing to add.
        while infos := await self._store.sessions(limit=100, before=before):
            for info in infos:
                if len(newest) >= skip + limit and newest[skip + limit - 1][0].at >= info.updated_at:
                    infos = []
                    break
                mine = [(message, info.session) for message in await self._messages(info.session)]
                newest = sorted([*newest, *mine], key=lambda pair: pair[0].at, reverse=True)[: skip + limit]
            if not infos:
                break
            before = infos[-1].updated_at
        return Answer(200, [mix_api.backend_message(session, m) for m, session in newest[skip : skip + limit]])

    async def cancel(self, request: Request) -> Answer:
        """Ask one run, or all that is running or waiting in the session, to stop. The body may be left out."""
        session = _session(request)
        body = await request.body(mix_api.Cancel, default=mix_api.Cancel())
        return Answer(200, mix_api.Cancelled(cancelled=bool(await self._runner.cancel(session, body.run_id))))

    # Questions --------------------------------------------------------------------------------------------------------

    async def grant(self, request: Request) -> Answer:
        """Allow what a permission event asks for."""
        return Answer(200, mix_api.Granted(granted=await self._runner.resolve_permission(request.path["id"], True)))

    async def deny(self, request: Request) -> Answer:
        """Refuse what a permission event asks for."""
        granted = await self._runner.resolve_permission(request.path["id"], False)
        return Answer(200, mix_api.Denied(denied=not granted))

    async def answer_notification(self, request: Request) -> Answer:
        """Answer a notification event."""
        body = await request.body(mix_api.Respond)
        await self._runner.resolve_notification(request.path["id"], body.type, body.value)
        return Answer(204)

    # The server -------------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Answer:
        """Whether the server is up."""
        now, agents = mix_api.rfc3339(time.time()), list(self._runner.agents)
        return Answer(200, mix_api.Health(status="ok", timestamp=now, version=version("legato"), agents=agents))

    async def ready(self, request: Request) -> Answer:
        """Whether the server takes new messages."""
        status: Literal["ready", "draining"] = "draining" if self._runner.draining else "ready"
        if status == "draining":
            return Answer(503, mix_api.Ready(status=status), {"retry-after": RETRY_AFTER[503]})
        return Answer(200, mix_api.Ready(status=status))

    async def api_key(self, request: Request) -> Answer:
        """The examples of Mix begin with this call. Legato's agents hold their own keys, so nothing is kept."""
        body = await request.body(mix_api.ApiKey)
        message = "Not stored: the agents of this server hold their own keys."
        return Answer(200, mix_api.ApiKeyAnswer(status="ignored", provider=body.provider, message=message))

    async def system_info(self, request: Request) -> Answer:
        """The examples of Mix ask for this. Legato tells nobody where its files are."""
        return Answer(200, mix_api.SystemInfo(storage_base_path=""))

    async def nothing(self, request: Request) -> Answer:
        """Slash commands and MCP servers belong to agents here, not to the server."""
        return Answer(200, [])

    def operations(self) -> list[Operation]:
        """All of them, as the router and the document need them."""
        session = Param("id", "path", "The session's id.", required=True)
        key = Param("Idempotency-Key", "header", "The same key and message, the same run: safe to send again.")
        client = Param("client", "query", "Which client's names to use, instead of what User-Agent tells.")
        before = Param("before", "query", "Only sessions last written to before this RFC 3339 time.")
        data, errors = mix_api.SessionData, (404,)
        return [
            Operation("createSession", "POST", "/api/sessions", "sessions", "Begin a session", self.create,
                      {201: data}, body=mix_api.CreateSession, errors=(409,)),
            Operation("listSessions", "GET", "/api/sessions", "sessions", "List sessions", self.index,
                      {200: list[mix_api.SessionData]}, params=[_limit(1000), before]),
            Operation("getSession", "GET", "/api/sessions/{id}", "sessions", "Get a session", self.get,
                      {200: data}, params=[session], errors=errors),
            Operation("deleteSession", "DELETE", "/api/sessions/{id}", "sessions", "Delete a session", self.delete,
                      {204: None}, params=[session], errors=errors),
            Operation("rewindSession", "POST", "/api/sessions/{id}/rewind", "sessions", "Rewind a session",
                      self.rewind, {200: data}, params=[session], body=mix_api.Rewind, errors=(404, 409)),
            Operation("forkSession", "POST", "/api/sessions/{id}/fork", "sessions", "Fork a session", self.fork,
                      {201: data}, params=[session], body=mix_api.Fork, errors=errors),
            Operation("exportSession", "GET", "/api/sessions/{id}/export", "sessions", "Export a session",
                      self.export, {200: mix_api.ExportSession}, params=[session], errors=errors),
            Operation("listEvents", "GET", "/api/sessions/{id}/events", "sessions", "Read the canonical log",
                      self.events, {200: mix_api.EventPage},
                      params=[session, Param("after", "query", "Events after this offset.", _INTEGER), _limit(1000)],
                      errors=errors),
            Operation("sendStreamingMessage", "POST", "/stream/{id}/message", "streaming",
                      "Send a message; the answer comes on the stream", self.send_streaming,
                      {200: mix_api.Broadcasted}, params=[session, key], body=mix_api.StreamMessage,
                      errors=(404, 409)),
            Operation("sendMessage", "POST", "/api/sessions/{id}/messages", "messages", "Send a message", self.send,
                      {202: mix_api.Processing, 200: mix_api.BackendMessage}, params=[session, key, client],
                      body=mix_api.SendMessage, errors=(404, 409),
                      description="Clients before Python 0.6.5 and TypeScript 0.7.4 get 200 when the turn is over."),
            Operation("listMessages", "GET", "/api/sessions/{id}/messages", "messages", "List a session's messages",
                      self.messages, {200: list[mix_api.BackendMessage]}, params=[session], errors=errors),
            Operation("retryMessage", "POST", "/api/sessions/{id}/messages/{messageId}/retry", "messages",
                      "Answer the last message anew", self.retry, {202: mix_api.Processing},
                      params=[session, Param("messageId", "path", "The last user message's id.", required=True)],
                      body=mix_api.Retry, body_required=False, errors=(404, 409)),
            Operation("messageHistory", "GET", "/api/messages/history", "messages",
                      "Messages of all sessions, newest first", self.history,
                      {200: list[mix_api.BackendMessage]},
                      params=[_limit(1000), Param("offset", "query", "How many to skip.", _INTEGER)]),
            Operation("cancelSession", "POST", "/api/sessions/{id}/cancel", "sessions", "Stop what runs",
                      self.cancel, {200: mix_api.Cancelled}, params=[session], body=mix_api.Cancel,
                      body_required=False, errors=errors),
            Operation("grantPermission", "POST", "/api/permissions/{id}/grant", "permissions", "Grant a permission",
                      self.grant, {200: mix_api.Granted}, params=[_ask("permission")], errors=errors),
            Operation("denyPermission", "POST", "/api/permissions/{id}/deny", "permissions", "Deny a permission",
                      self.deny, {200: mix_api.Denied}, params=[_ask("permission")], errors=errors),
            Operation("respondToNotification", "POST", "/api/notifications/{id}/respond", "notifications",
                      "Answer a notification", self.answer_notification, {204: None},
                      params=[_ask("notification")], body=mix_api.Respond, errors=errors),
            Operation("getHealth", "GET", "/health", "system", "Is the server up?", self.health,
                      {200: mix_api.Health}),
            Operation("getReady", "GET", "/ready", "system", "Does the server take messages?", self.ready,
                      {200: mix_api.Ready, 503: mix_api.Ready}),
            Operation("storeApiKey", "POST", "/api/auth/api-key", "system", "Accepted for Mix clients; keeps nothing",
                      self.api_key, {200: mix_api.ApiKeyAnswer}, body=mix_api.ApiKey),
            Operation("getSystemInfo", "GET", "/api/system/info", "system", "Answered for Mix clients",
                      self.system_info, {200: mix_api.SystemInfo}),
            Operation("listCommands", "GET", "/api/commands", "system", "Answered for Mix clients: none", self.nothing,
                      {200: list[Any]}),
            Operation("listMcpServers", "GET", "/api/mcp", "system", "Answered for Mix clients: none", self.nothing,
                      {200: list[Any]}),
        ]  # fmt: skip


_INTEGER: dict[str, Any] = {"type": "integer", "minimum": 0}


def _limit(most: int) -> Param:
    return Param("limit", "query", "How many at most.", {"type": "integer", "minimum": 1, "maximum": most})


def _ask(kind: str) -> Param:
    return Param("id", "path", f"The {kind} event's data.id.", required=True)


def _session(request: Request) -> str:
    return session_id(request.path["id"])


def _convert(raw: dict[str, Any], type: Any) -> Any:
    try:
        return msgspec.convert(raw, type)
    except msgspec.ValidationError as exc:
        raise InvalidInput(f"The body does not fit: {exc}.") from exc


def _seconds(text: str) -> float:
    try:
        return msgspec.convert(text, _Moment).timestamp()
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise InvalidInput(f"before is a time such as 2026-11-21T12:00:00Z, got {text[:60]!r}.") from None


def _fields(sent: Sent) -> dict[str, Any]:
    cursor = str(sent.offset - 1)
    return {"session_id": sent.session, "run_id": sent.run, "message_id": sent.message, "cursor": cursor}


def _repeated(sent: Sent) -> dict[str, str]:
    return {"legato-repeated": "true"} if sent.repeated else {}
