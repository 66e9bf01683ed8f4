"""Everything that can be asked of the server, each thing once: its arguments, its request, the form of its answer.

Each function makes a ``HttpCall``; a client's methods and the functions of ``funcs`` are made from them, so their
signatures and their words are these.

The one rule: nothing is repeated that could be carried out twice. Sends, and what could meet something that has come
since, carry an ``Idempotency-Key``; a session gets its id here; and what is marked ``repeatable=False`` is repeated
only when the server said that it did nothing.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Literal, Unpack
from urllib.parse import quote

from ..errors import InvalidInput
from ..http.call import HttpCall, Options
from .models import (
    BackendMessage,
    CancelResult,
    EventPage,
    ExportSession,
    Health,
    PermissionResult,
    SendResult,
    SessionData,
)

__all__ = [
    "cancel_session",
    "create_session",
    "delete_session",
    "deny_permission",
    "export_session",
    "fork_session",
    "get_blob",
    "get_health",
    "get_session",
    "grant_permission",
    "list_history",
    "list_messages",
    "list_session_events",
    "list_sessions",
    "respond_notification",
    "rewind_session",
    "send_message",
    "send_streaming_message",
]


def _at(template: str, id: str) -> str:
    """The path with an id in it, which must not lead elsewhere: DELETE /api/sessions/ is not what was meant."""
    if not id or id in (".", ".."):
        raise InvalidInput(f"An id is expected, not {id!r}.")
    return template.format(quote(id, safe=""))


def _key(idempotency_key: str | None) -> dict[str, str]:
    """The header that makes a send repeatable."""
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    if not (0 < len(key) < 256 and key.isascii() and key.isprintable() and " " not in key):
        raise InvalidInput("An idempotency key is 1 to 255 visible ASCII characters.", key=key[:255])
    return {"idempotency-key": key}


# Sessions ------------------------------------------------------------------------------------------------------------


def create_session(
    *,
    title: str = "",
    agent: str | None = None,
    id: str | None = None,
    prompt_mode: str = "default",
    custom_system_prompt: str | None = None,
    session_type: str | None = None,
    browser_mode: str | None = None,
    cdp_url: str | None = None,
    callbacks: Sequence[Mapping[str, object]] | None = None,
    subagent_type: str | None = None,
    model_id: str | None = None,
    provider: str | None = None,
    **options: Unpack[Options],
) -> HttpCall[SessionData]:
    """Create a session.

    Args:
        title: for people.
        agent: the name of the agent that answers in it; None is the server's default.
        id: letters, digits and ``._-``, at most 128; None makes one. With an id of your own, ``session_exists`` (409)
            may also mean that an attempt whose answer was lost has created it.
        prompt_mode: ``default``, ``append`` or ``replace``: what ``custom_system_prompt`` does.
        session_type: kept with the session, as the following ones are; a Mix server knows what to do with them.
    """
    made = id is None
    own_id = f"s_{secrets.token_urlsafe(16)}" if id is None else id
    return HttpCall(
        "POST",
        "/api/sessions",
        SessionData,
        body={
            "id": own_id,
            "title": title,
            "agent": agent,
            "promptMode": prompt_mode,
            "customSystemPrompt": custom_system_prompt,
            "sessionType": session_type,
            "browserMode": browser_mode,
            "cdpUrl": cdp_url,
            "callbacks": callbacks,
            "subagentType": subagent_type,
            "modelId": model_id,
            "provider": provider,
        },
        # An id made here is nobody else's: if it exists, an attempt whose answer was lost has created it.
        already="session_exists" if made else None,
        instead=get_session(own_id, **options) if made else None,
        options=options,
    )


def list_sessions(
    *,
    limit: int | None = None,
    before: str | None = None,
    include_subagents: bool | None = None,
    **options: Unpack[Options],
) -> HttpCall[list[SessionData]]:
    """List up to ``limit`` sessions (None: as many as the server gives at once), those last written to first;
    ``before`` is an RFC 3339 time, for the ones before it."""
    query = {"limit": limit, "before": before, "includeSubagents": include_subagents}
    return HttpCall("GET", "/api/sessions", list[SessionData], query=query, options=options)


def get_session(id: str, **options: Unpack[Options]) -> HttpCall[SessionData]:
    """Get a session."""
    return HttpCall("GET", _at("/api/sessions/{}", id), SessionData, options=options)


def delete_session(id: str, **options: Unpack[Options]) -> HttpCall[None]:
    """Delete a session with its history. Its streams end, its id is never used again."""
    path = _at("/api/sessions/{}", id)
    return HttpCall("DELETE", path, NoneType, already="session_not_found", options=options)


def rewind_session(
    id: str, *, message_id: str, cleanup_media: bool = True, **options: Unpack[Options]
) -> HttpCall[SessionData]:
    """Take back the end of a session's history: ``message_id`` is the last message to keep."""
    body = {"messageId": message_id, "cleanupMedia": cleanup_media}
    path = _at("/api/sessions/{}/rewind", id)
    return HttpCall("POST", path, SessionData, body=body, headers=_key(None), options=options)


def fork_session(
    id: str, *, message_index: int, title: str | None = None, **options: Unpack[Options]
) -> HttpCall[SessionData]:
    """Create a session with a copy of another one's messages, up to and with number ``message_index`` (from 0)."""
    body = {"messageIndex": message_index, "title": title}
    path = _at("/api/sessions/{}/fork", id)
    return HttpCall("POST", path, SessionData, body=body, repeatable=False, options=options)


def export_session(id: str, **options: Unpack[Options]) -> HttpCall[ExportSession]:
    """Get a whole session, to keep elsewhere."""
    return HttpCall("GET", _at("/api/sessions/{}/export", id), ExportSession, options=options)


def cancel_session(id: str, *, run_id: str | None = None, **options: Unpack[Options]) -> HttpCall[CancelResult]:
    """Ask for the end of the running answer, or of ``run_id``'s.

    The end itself comes on the stream, as ``complete`` with ``finish_reason="cancelled"``.
    """
    body = None if run_id is None else {"runId": run_id}
    headers = _key(None) if run_id is None else {}  # a late repetition is not to meet the next run
    path = _at("/api/sessions/{}/cancel", id)
    return HttpCall("POST", path, CancelResult, body=body, headers=headers, options=options)


def list_session_events(
    id: str, *, after: int = 0, limit: int = 500, **options: Unpack[Options]
) -> HttpCall[EventPage]:
    """Get up to ``limit`` events of a session's log behind offset ``after``, as the server keeps it; the page's
    ``next`` is the next ``after``."""
    query = {"after": after, "limit": limit}
    return HttpCall("GET", _at("/api/sessions/{}/events", id), EventPage, query=query, options=options)


def get_blob(id: str, hash: str, **options: Unpack[Options]) -> HttpCall[bytes]:
    """Get a file that came in a message of session ``id``, by its SHA-256, in hexadecimal.

    Which there are is in the session's log: ``blobs`` in the data of its ``message.created`` and ``message.revised``.
    """
    path = _at(_at("/api/sessions/{}/blobs/", id) + "{}", hash)
    return HttpCall("GET", path, bytes, digest=hash, headers={"accept": "*/*"}, options=options)


# Messages ------------------------------------------------------------------------------------------------------------


def send_message(
    id: str,
    *,
    text: str,
    agent: str | None = None,
    metadata: Mapping[str, object] | None = None,
    plan_mode: bool | None = None,
    thinking_level: str | None = None,
    max_steps: int | None = None,
    idempotency_key: str | None = None,
    **options: Unpack[Options],
) -> HttpCall[SendResult]:
    """Send a user's message to session ``id``; the answer comes on the stream.

    Args:
        text: not empty.
        agent: who answers this message; None is the session's agent.
        metadata: more fields of the request's body; they reach the agent.
        idempotency_key: 1 to 255 visible ASCII characters; None makes one. The same key and message again, from
            whatever process, attach to the same run.
    """
    body = {
        **(metadata or {}),
        "text": text,
        "agent": agent,
        "plan_mode": plan_mode,
        "thinking_level": thinking_level,
        "max_steps": max_steps,
    }
    path = _at("/api/sessions/{}/messages", id)
    return HttpCall("POST", path, SendResult, body=body, headers=_key(idempotency_key), options=options)


def send_streaming_message(
    id: str, *, content: str, idempotency_key: str | None = None, **options: Unpack[Options]
) -> HttpCall[SendResult]:
    """Send a user's message to session ``id``, as plain text or as JSON text (``{"text": ...}``).

    The answer comes on the stream. ``idempotency_key`` is as for ``send_message``.
    """
    path = _at("/stream/{}/message", id)
    return HttpCall("POST", path, SendResult, body={"content": content}, headers=_key(idempotency_key), options=options)


def list_messages(id: str, **options: Unpack[Options]) -> HttpCall[list[BackendMessage]]:
    """List the messages of session ``id``, the oldest first."""
    return HttpCall("GET", _at("/api/sessions/{}/messages", id), list[BackendMessage], options=options)


def list_history(
    *, limit: int | None = None, offset: int | None = None, **options: Unpack[Options]
) -> HttpCall[list[BackendMessage]]:
    """List the users' messages of all sessions, the newest first: ``limit`` (1 to 1000) of them, ``offset`` skipped."""
    query = {"limit": limit, "offset": offset}
    return HttpCall("GET", "/api/messages/history", list[BackendMessage], query=query, options=options)


# Permissions, notifications, system ----------------------------------------------------------------------------------


def grant_permission(id: str, **options: Unpack[Options]) -> HttpCall[PermissionResult]:
    """Allow what the agent asked for. The first answer to a permission counts, and is what is returned."""
    return HttpCall("POST", _at("/api/permissions/{}/grant", id), PermissionResult, options=options)


def deny_permission(id: str, **options: Unpack[Options]) -> HttpCall[PermissionResult]:
    """Refuse what the agent asked for. The first answer to a permission counts, and is what is returned."""
    return HttpCall("POST", _at("/api/permissions/{}/deny", id), PermissionResult, options=options)


def respond_notification(
    id: str,
    *,
    type: Literal["acknowledge", "text", "choice"],
    value: str | None = None,
    **options: Unpack[Options],
) -> HttpCall[None]:
    """Answer a notification; ``value`` is the text, or the choice."""
    body = {"type": type, "value": value}
    path = _at("/api/notifications/{}/respond", id)
    return HttpCall("POST", path, NoneType, body=body, already="ask_not_found", options=options)


def get_health(**options: Unpack[Options]) -> HttpCall[Health]:
    """Get a sign of life of the server."""
    return HttpCall("GET", "/health", Health, options=options)
