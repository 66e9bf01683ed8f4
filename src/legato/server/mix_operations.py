"""The table of the Mix dialect."""

from __future__ import annotations

from typing import Any

from ..dialect import mix, mix_api
from ..dialect.common import KEY_PATTERN, OFFSET_MOST, SESSION_PATTERN
from ..json import JsonObject
from . import mix as routes
from .health import operations as health_operations
from .operation import INCARNATION_PARAM, ONCE_PARAM, Dialect, Frames, Operation, Param
from .reply import View

_SESSION: JsonObject = {"type": "string", "pattern": SESSION_PATTERN}
_CLIENT: JsonObject = {"type": "string", "pattern": f"^(?:{mix.CLIENT_PATTERN})?$"}

_OFFSET: JsonObject = {"type": "string", "pattern": "^(?:[0-9]{1,15})?$"}

STREAM_PARAMS = [
    Param("sessionId", "query", "The session to follow.", _SESSION, required=True),
    Param("from", "query", "Where a reader without a cursor begins: `start`, `tail`, or an offset. Without it, at the "
          "running turn, or at the tail if nothing runs.",
          {"type": "string", "pattern": "^(?:start|tail|[0-9]{1,15})?$"}),
    Param("client", "query", "Which client's event names to use, instead of what User-Agent tells: `legato`, "
          "`python-0.8.1`, `typescript-0.11.4` ...", _CLIENT),
    Param("Last-Event-ID", "header", "The id of the last event you have; the stream goes on exactly after it.",
          _OFFSET),
    Param("lastEventId", "query", "The same, for clients that cannot set the header, which wins over it.", _OFFSET),
    INCARNATION_PARAM,
    ONCE_PARAM,
]  # fmt: skip


_FRAME: JsonObject = {
    "type": "object",
    "required": ["event", "data", "id"],
    "properties": {
        "event": {"type": "string", "enum": sorted(mix.LEGATO.events)},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}},
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "retry": {"type": "integer", "description": "Milliseconds, in the first frame."},
    },
}


def _number(most: int) -> JsonObject:
    return {"type": "integer", "minimum": 0, "maximum": most}


def _limit(most: int) -> Param:
    return Param("limit", "query", "How many at most.", {"type": "integer", "minimum": 1, "maximum": most})


def _ask(kind: str) -> Param:
    return Param("id", "path", f"The {kind} event's data.id.", required=True)


def _operations() -> list[Operation]:
    session = Param("id", "path", "The session's id.", required=True)
    key = Param("Idempotency-Key", "header", "The same key and message, the same run: safe to send again.",
                {"type": "string", "pattern": KEY_PATTERN})  # fmt: skip
    client = Param("client", "query", "Which client's names to use, instead of what User-Agent tells.", _CLIENT)
    before = Param("before", "query", "Only sessions last written to before this RFC 3339 time; for old clients.",
                   {"type": "string", "anyOf": [{"maxLength": 0}, {"format": "date-time"}]})  # fmt: skip
    cursor = Param("cursor", "query", "The `Legato-Next` of the page before.", {"type": "string", "minLength": 1})
    after = Param("after", "query", "Events after this offset.", _number(OFFSET_MOST))
    data, errors = mix_api.SessionData, (404,)
    return [
        Operation("streamEvents", "GET", "/stream", "streaming", "Follow a session", routes.stream, {},
                  params=STREAM_PARAMS, errors=(404, 429),
                  stream=Frames(frame=_FRAME, reset="when the cursor lies beyond the log's end"),
                  description=f"{routes.stream.__doc__} Names: {', '.join(sorted(mix.LEGATO.events))}."),
        Operation("createSession", "POST", "/api/sessions", "sessions", "Begin a session", routes.create,
                  {201: data}, body=mix_api.CreateSession, errors=(409,)),
        Operation("listSessions", "GET", "/api/sessions", "sessions", "List sessions", routes.index,
                  {200: list[mix_api.SessionData]}, params=[_limit(1000), cursor, before]),
        Operation("getSession", "GET", "/api/sessions/{id}", "sessions", "Get a session", routes.get,
                  {200: data}, params=[session], errors=errors),
        Operation("deleteSession", "DELETE", "/api/sessions/{id}", "sessions", "Delete a session", routes.delete,
                  {204: None}, params=[session], errors=errors),
        Operation("rewindSession", "POST", "/api/sessions/{id}/rewind", "sessions", "Rewind a session",
                  routes.rewind, {200: data}, params=[session, ONCE_PARAM], body=mix_api.Rewind, errors=(404, 409)),
        Operation("forkSession", "POST", "/api/sessions/{id}/fork", "sessions", "Fork a session", routes.fork,
                  {201: data}, params=[session], body=mix_api.Fork, errors=errors),
        Operation("exportSession", "GET", "/api/sessions/{id}/export", "sessions", "Export a session",
                  routes.export, {200: mix_api.ExportSession}, params=[session], errors=(404, 413)),
        Operation("listEvents", "GET", "/api/sessions/{id}/events", "sessions", "Read the canonical log",
                  routes.events, {200: mix_api.EventPage},
                  params=[session, after, _limit(1000)], errors=errors),
        Operation("getBlob", "GET", "/api/sessions/{id}/blobs/{hash}", "sessions", "Read a file of a message",
                  routes.blob, {200: bytes, 304: None}, errors=errors,
                  params=[session, Param("hash", "path", "SHA-256 of its bytes, in hexadecimal.", required=True)]),
        Operation("sendStreamingMessage", "POST", "/stream/{id}/message", "streaming",
                  "Send a message; the answer comes on the stream", routes.send_streaming,
                  {200: mix_api.Broadcasted}, params=[session, key], body=mix_api.StreamMessage,
                  errors=(404, 409)),
        Operation("sendMessage", "POST", "/api/sessions/{id}/messages", "messages", "Send a message", routes.send,
                  {202: mix_api.Processing, 200: mix_api.BackendMessage}, params=[session, key, client],
                  body=mix_api.SendMessage, errors=(404, 409),
                  description="Clients before Python 0.6.5 and TypeScript 0.7.4 get 200 when the turn is over."),
        Operation("listMessages", "GET", "/api/sessions/{id}/messages", "messages", "List a session's messages",
                  routes.messages, {200: list[mix_api.BackendMessage]},
                  params=[session, _limit(routes.MOST_MESSAGES), cursor], errors=errors),
        Operation("retryMessage", "POST", "/api/sessions/{id}/messages/{messageId}/retry", "messages",
                  "Answer the last message anew", routes.retry, {202: mix_api.Processing},
                  params=[session, ONCE_PARAM,
                          Param("messageId", "path", "The last user message's id.", required=True)],
                  body=mix_api.Retry, body_required=False, errors=(404, 409)),
        Operation("messageHistory", "GET", "/api/messages/history", "messages",
                  "Messages of all sessions, newest first", routes.history,
                  {200: list[mix_api.BackendMessage]},
                  params=[_limit(1000), Param("offset", "query", "How many to skip.", _number(routes.SKIPPED))]),
        Operation("cancelSession", "POST", "/api/sessions/{id}/cancel", "sessions", "Stop what runs",
                  routes.cancel, {200: mix_api.Cancelled}, params=[session, ONCE_PARAM], body=mix_api.Cancel,
                  body_required=False, errors=errors),
        Operation("grantPermission", "POST", "/api/permissions/{id}/grant", "permissions", "Grant a permission",
                  routes.grant, {200: mix_api.Granted}, params=[_ask("permission")], errors=errors),
        Operation("denyPermission", "POST", "/api/permissions/{id}/deny", "permissions", "Deny a permission",
                  routes.deny, {200: mix_api.Denied}, params=[_ask("permission")], errors=errors),
        Operation("respondToNotification", "POST", "/api/notifications/{id}/respond", "notifications",
                  "Answer a notification", routes.answer_notification, {204: None},
                  params=[_ask("notification")], body=mix_api.RespondBody, errors=errors),
        Operation("getHealth", "GET", "/health", "system", "Is the server up?", routes.health,
                  {200: mix_api.Health}, without_life=lambda absence: routes.healthy(absence.agents)),
        Operation("getReady", "GET", "/ready", "system", "Does the server take messages?", routes.ready,
                  {200: mix_api.Ready, 503: mix_api.Ready}, without_life=routes.ready_without_life, probe=True),
        *health_operations(),
        Operation("storeApiKey", "POST", "/api/auth/api-key", "system", "Accepted for Mix clients; keeps nothing",
                  routes.api_key, {200: mix_api.ApiKeyAnswer}, body=mix_api.ApiKey),
        Operation("getSystemInfo", "GET", "/api/system/info", "system", "Answered for Mix clients",
                  routes.system_info, {200: mix_api.SystemInfo}),
        Operation("listCommands", "GET", "/api/commands", "system", "Answered for Mix clients: none", routes.nothing,
                  {200: list[Any]}),
        Operation("listMcpServers", "GET", "/api/mcp", "system", "Answered for Mix clients: none", routes.nothing,
                  {200: list[Any]}),
    ]  # fmt: skip


def _view(name: str) -> View | None:
    kind, _, client = name.partition("/")
    if kind != "mix":
        return None
    profile = mix.profile(client)
    return View(profile.name, event=lambda event, session: mix.frame(event, session, profile))


MIX = Dialect("mix", _operations(), view=_view, views=("mix/CLIENT",))
