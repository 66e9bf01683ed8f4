"""What a node tells of a session when all is over, over each dialect: to the byte what every other node tells."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from .listeners import ChatListener, asked

TRIES = 60
"""How often a node is asked before that is a fault: all of them are up by then."""
_RETRY = re.compile(rb"(?m)^(?:retry: \d+|:.*)\n")
"""Lines of a stream that are for one connection: when to come back, which is drawn, and comments."""


async def bytes_of(port: int, method: str, path: str, body: Any = None, *, until: bytes | None = None,
                   headers: dict[str, str] | None = None) -> bytes | None:  # fmt: skip
    """The body of a good answer; of a stream that stays open, up to and with what it has ``until``.

    Returns:
        None: there is none, however often it is asked for.
    """
    for _ in range(TRIES):
        try:
            async with asked(port, method, path, body, headers) as answer:
                if answer.status == 200:
                    found = b""
                    async for chunk in answer.chunks():
                        found += chunk
                        if until is not None and until in found:
                            return found.partition(until)[0] + until
                    if until is None:
                        return found
        except OSError:
            pass
        await asyncio.sleep(0.25)
    return None


async def retold(
    port: int, session: str, events: Sequence[dict[str, Any]], chats: Sequence[ChatListener]
) -> dict[str, bytes | None]:
    """What this node tells, by what that is: the history over each dialect; the whole log as one stream; and of the
    newest run its answer, whole and as streams."""
    found: dict[str, bytes | None] = {}
    streams: dict[str, Any] = {}
    pages = {
        "messages of Mix": f"/api/sessions/{session}/messages",
        "messages of Deva": f"/api/sdk/chat/{session}/messages?limit=100",
        "items of a conversation": f"/v1/conversations/{session}/items?limit=100&order=asc",
    }
    run, message = next(
        ((each["run"], each["data"].get("id")) for each in reversed(events)
         if each["type"] == "message.created" and each.get("run")),
        (None, None),
    )  # fmt: skip
    if run is not None:
        pages["the response"] = f"/v1/responses/resp_{run}"
        streams["stream of the response"] = bytes_of(port, "GET", f"/v1/responses/resp_{run}?stream=true")
        path = f"/api/sdk/chat/{session}/messages/{message}/query/stream"
        streams["stream of Deva"] = bytes_of(port, "POST", path, {})
    for chat in chats:
        method, path, body, headers = chat.request()
        streams["stream of the chat completion"] = bytes_of(port, method, path, body, headers=headers)
    if events:
        end = f"\nid: {events[-1]['offset']}\n\n".encode()
        path = f"/stream?sessionId={session}&client=legato&from=start"
        streams["stream of Mix"] = bytes_of(port, "GET", path, until=end)
    for name, path in pages.items():
        found[name] = await bytes_of(port, "GET", path)
    for name, stream in streams.items():
        told = await stream
        found[name] = None if told is None else _RETRY.sub(b"", told)
    return found
