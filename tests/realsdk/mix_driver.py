"""Drives the real mix-python-sdk against a server and says what it saw, as JSON.

``python mix_driver.py BASE_URL`` reads one request per line, ``{"scenario": "turn", "options": {"text": "hello"}}``,
and answers each with one line: ``{"ok": ...}``, or ``{"crash": ...}`` with a traceback. It runs under the Python of an
environment that holds the SDK (see ``venvs.py``), so it imports nothing of this project. Each scenario is a function
of ``SCENARIOS``; what differs between versions of the SDK is in the functions above them, and asserting is the test's
work. An event is ``{"event", "id", "data"}`` from the SDK's own typed object, a failed call the name of its error class
with what the class exposes. A driver that hangs prints the stacks of its threads and dies.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import faulthandler
import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from mix_python_sdk import Mix, models
from mix_python_sdk.utils import unmarshal_json
from mix_python_sdk.utils.eventstreaming import EventStream

VERSION = tuple(int(part) for part in importlib.metadata.version("mix-python-sdk").split("."))
ENDS = ("complete", "error")
# Seconds, more than any scenario needs on a busy machine.
HANG = 60


# What differs between versions ----------------------------------------------------------------------------------------


def connect(base_url: str) -> Mix:
    """A client that does not retry: a 5XX must be seen at once, not after ten minutes."""
    return Mix(server_url=base_url, retry_config=None)


def create(mix: Mix, title: str = "A session") -> Any:
    if VERSION >= (0, 8, 0):
        return mix.sessions.create(title=title, browser_mode="electron-embedded-browser")
    return mix.sessions.create(title=title)


def send(mix: Mix, session: str, text: str, *, via: str | None = None) -> Any:
    """What the version's own way of sending answers.

    ``via="messages"`` forces the REST route, which until 0.6.4 answers only when the turn is over; ``via="json"``
    sends the JSON text that the 0.5 examples put into ``content``.
    """
    if VERSION >= (0, 6, 0) or via == "messages":
        return mix.messages.send(id=session, text=text)
    content = json.dumps({"text": text, "plan_mode": False}) if via == "json" else text
    return mix.streaming.send_streaming_message(id=session, content=content)


@contextmanager
def sending(mix: Mix, session: str, text: str, *, via: str | None = None) -> Iterator[Callable[[], Any]]:
    """Send now and go on reading; the yielded function waits for the answer of the send.

    Where the send answers at once, it has answered when the body begins, so that the stream is read only afterwards.
    """
    waits = (0, 6, 0) <= VERSION < (0, 6, 5) or (VERSION < (0, 6, 5) and via == "messages")
    if not waits:
        answer = send(mix, session, text, via=via)
        yield lambda: answer
        return
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(send, mix, session, text, via=via)
        yield future.result


# Reading --------------------------------------------------------------------------------------------------------------


@contextmanager
def reading(mix: Mix, session: str, last_event_id: str | None = None) -> Iterator[Iterable[Any]]:
    response = mix.streaming.stream_events(session_id=session, last_event_id=last_event_id)
    with response.result as stream:
        yield stream


def opened(mix: Mix, session: str, last_event_id: str | None = None) -> str:
    """Only open a stream: whether it was refused is all that is of interest."""
    with reading(mix, session, last_event_id):
        return "opened"


def plain(value: Any) -> Any:
    """A value of the SDK as JSON, with the wire's names and without what was not sent."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def seen(event: Any) -> dict[str, Any]:
    return {"event": event.event, "id": event.id, "data": plain(event.data)}


def read(stream: Iterable[Any], *until: str, most: int = 0) -> list[dict[str, Any]]:
    """The events up to the first of ``until`` (an end of the turn when none is given), or ``most`` of them."""
    events = []
    for event in stream:
        if event.event != "heartbeat":
            events.append(seen(event))
        if event.event in (until or ENDS) or event.event in ENDS or len(events) == most:
            return events
    return [*events, {"event": "(end of stream)", "id": "", "data": {}}]


def attempt(call: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """What a call returned, or its error as a program that uses the SDK would see it."""
    try:
        return {"ok": plain(call(**arguments))}
    except Exception as error:
        inner = getattr(getattr(error, "data", None), "error", None)
        return {
            "error": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "type": getattr(inner, "type", None),
            "code": getattr(inner, "code", None),
            "message": getattr(inner, "message", None) or str(error),
        }


# Scenarios ------------------------------------------------------------------------------------------------------------


def turn(mix: Mix, *, text: str = "hello", via: str | None = None) -> dict[str, Any]:
    """Open the stream, send, then read."""
    session = create(mix).id
    with reading(mix, session) as stream, sending(mix, session, text, via=via) as answer:
        events = read(stream)
        return {"session": session, "events": events, "answer": plain(answer())}


def send_first(mix: Mix) -> dict[str, Any]:
    """Send, and open the stream only when the turn is running (the agent waits for a permission, so it still is)."""
    session = create(mix).id
    with sending(mix, session, "permission"), reading(mix, session) as stream:
        events = read(stream, "permission")
        mix.permissions.grant(id=events[-1]["data"]["id"])
        return {"events": events + read(stream)}


def resume(mix: Mix, *, text: str = "hello") -> dict[str, Any]:
    """Record a turn, then reopen the stream after every one of its events, and after its last."""
    recorded = turn(mix, text=text)
    session = recorded["session"]
    tails = {}
    for event in recorded["events"][:-1]:
        with reading(mix, session, event["id"]) as stream:
            tails[event["id"]] = read(stream)
    with reading(mix, session, recorded["events"][-1]["id"]) as stream, sending(mix, session, "again"):
        after = read(stream)
    return {"events": recorded["events"], "tails": tails, "after": after}


def drops(mix: Mix, *, text: str = "slow", every: int = 3) -> dict[str, Any]:
    """Lose the connection after every few events of a running turn, beside a reader that does not."""
    session = create(mix).id
    pieces: list[list[dict[str, Any]]] = []
    with reading(mix, session) as whole, reading(mix, session) as stream, sending(mix, session, text):
        pieces.append(read(stream, most=every))
        while pieces[-1][-1]["event"] not in ENDS:
            with reading(mix, session, pieces[-1][-1]["id"]) as again:
                pieces.append(read(again, most=every))
        return {"pieces": pieces, "events": read(whole)}


def missing(mix: Mix) -> dict[str, Any]:
    """Calls that name what is not there, or send nothing."""
    session = create(mix).id
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "stream": (opened, {"mix": mix, "session": "nobody"}),
        "send": (mix.messages.send, {"id": "nobody", "text": "hello"}),
        "empty": (mix.messages.send, {"id": session, "text": ""}),
        "get": (mix.sessions.get, {"id": "nobody"}),
        "delete": (mix.sessions.delete, {"id": "nobody"}),
        "messages": (mix.messages.list_session, {"id": "nobody"}),
        "cancel": (mix.sessions.cancel_processing, {"id": "nobody"}),
        "export": (mix.sessions.export_session, {"id": "nobody"}),
        "rewind": (mix.sessions.rewind_session, {"id": "nobody", "message_id": "none"}),
        "rewind to nothing": (mix.sessions.rewind_session, {"id": session, "message_id": "none"}),
        "grant": (mix.permissions.grant, {"id": "nobody"}),
        "deny": (mix.permissions.deny, {"id": "nobody"}),
    }
    if VERSION < (0, 8, 0):
        calls["fork"] = (mix.sessions.fork, {"id": "nobody", "message_index": 0})
    else:
        calls["respond"] = (mix.notifications.respond_to_notification, {"id": "nobody", "type_": "acknowledge"})
    if VERSION < (0, 6, 0):
        calls["streaming send"] = (mix.streaming.send_streaming_message, {"id": "nobody", "content": "hello"})
        calls["streaming empty"] = (mix.streaming.send_streaming_message, {"id": session, "content": ""})
    return {name: attempt(call, **arguments) for name, (call, arguments) in calls.items()}


def bad_cursor(mix: Mix, *, cursors: list[str]) -> dict[str, Any]:
    """Reopen a finished turn with ids that the server never gave."""
    session = turn(mix)["session"]
    return {cursor: attempt(opened, mix=mix, session=session, last_event_id=cursor) for cursor in cursors}


def cancel(mix: Mix, *, text: str = "forever") -> dict[str, Any]:
    """Stop a turn that would not end by itself, and try it again on the idle session."""
    session = create(mix).id
    with reading(mix, session) as stream, sending(mix, session, text) as answer:
        events = read(stream, "content")
        cancelled = plain(mix.sessions.cancel_processing(id=session))
        events += read(stream)
        return {
            "events": events,
            "cancelled": cancelled,
            "answer": attempt(answer),
            "again": attempt(mix.sessions.cancel_processing, id=session),
            "messages": plain(mix.messages.list_session(id=session)),
        }


def permission(mix: Mix, *, decision: str) -> dict[str, Any]:
    """Lose the connection when the agent asks, be asked again on the new one, decide, and decide again."""
    session = create(mix).id
    with reading(mix, session) as stream, sending(mix, session, "permission"):
        events = read(stream, "permission")
        with reading(mix, session, events[-2]["id"]) as again:
            repeated = read(again, "permission")
            asked = events[-1]["data"]["id"]
            decide = getattr(mix.permissions, decision)
            decided = plain(decide(id=asked))
            after = read(again)
        return {
            "events": events + read(stream),
            "repeated": repeated + after,
            "decided": decided,
            "second": attempt(decide, id=asked),
        }


def notification(mix: Mix, *, text: str, answer: dict[str, str]) -> dict[str, Any]:
    """Be notified, answer, answer again (from 0.8.0; older versions know neither the event nor the route)."""
    session = create(mix).id
    with reading(mix, session) as stream, sending(mix, session, text):
        events = read(stream, "notification")
        asked = events[-1]["data"]["id"]
        first = attempt(mix.notifications.respond_to_notification, id=asked, **answer)
        second = attempt(mix.notifications.respond_to_notification, id=asked, **answer)
        return {"events": events + read(stream), "first": first, "second": second}


def neighbours(mix: Mix) -> dict[str, Any]:
    """The life of a session on the plain routes."""
    created = create(mix, "Neighbours")
    session = created.id
    spoken(mix, session, "tools")
    spoken(mix, session, "hello")
    found = {
        "created": plain(created),
        "got": plain(mix.sessions.get(id=session)),
        "listed": [item.id for item in mix.sessions.list() if item.id == session],
        "messages": plain(mix.messages.list_session(id=session)),
        "history": [item for item in plain(mix.messages.get_history(limit=1000)) if item["sessionId"] == session],
        "page": plain(mix.messages.get_history(limit=1, offset=1)),
        "health": attempt(mix.system.get_health),
    }
    exported = mix.sessions.export_session(id=session)
    found["export"] = plain(exported.result)
    found["disposition"] = exported.headers.get("content-disposition")
    if VERSION < (0, 8, 0):
        forked = mix.sessions.fork(id=session, message_index=1, title="Forked")
        found["forked"] = {"session": plain(forked), "messages": plain(mix.messages.list_session(id=forked.id))}
    keep = found["messages"][1]["id"]
    found["rewound"] = plain(mix.sessions.rewind_session(id=session, message_id=keep))
    found["kept"] = plain(mix.messages.list_session(id=session))
    found["deleted"] = attempt(mix.sessions.delete, id=session)
    found["gone"] = attempt(mix.sessions.get, id=session)
    return found


def spoken(mix: Mix, session: str, text: str) -> list[dict[str, Any]]:
    with reading(mix, session) as stream, sending(mix, session, text):
        return read(stream)


def preamble(mix: Mix) -> dict[str, Any]:
    """What the SDK's own examples call before they stream."""
    return {
        "health": attempt(mix.system.get_health),
        "api_key": attempt(mix.authentication.store_api_key, api_key="sk-none", provider="openrouter"),
        "system": attempt(mix.system.get_system_info),
        "commands": attempt(mix.system.list_commands),
        "mcp": attempt(mix.system.list_mcp_servers),
    }


def persistent(mix: Mix) -> dict[str, Any]:
    """One stream over two turns, a second reader beside it, and a stream opened when both turns are over."""
    session = create(mix).id
    with reading(mix, session) as stream, reading(mix, session) as beside:
        both = []
        for text in ("hello", "tools"):
            with sending(mix, session, text):
                both.append(read(stream))
        other = [read(beside), read(beside)]
        with reading(mix, session) as fresh, sending(mix, session, "third"):
            return {"turns": both, "beside": other, "fresh": read(fresh), "third": read(stream)}


def deleted(mix: Mix) -> dict[str, Any]:
    """Delete a session while its stream is open."""
    session = create(mix).id
    spoken(mix, session, "hello")
    with reading(mix, session) as stream:
        mix.sessions.delete(id=session)
        return {"events": [seen(event) for event in stream if event.event != "heartbeat"]}


def failure(mix: Mix) -> dict[str, Any]:
    """An agent that raises, and the turn after it."""
    session = create(mix).id
    with reading(mix, session) as stream, sending(mix, session, "fail") as answer:
        events = read(stream)
        return {"events": events, "answer": attempt(answer), "next": spoken(mix, session, "hello")}


def parse(mix: Mix, *, frames: str) -> dict[str, Any]:
    """Frames that no server sent, read by the SDK's own parser and models."""
    response = httpx.Response(200, content=frames.encode())
    with EventStream(response, lambda raw: unmarshal_json(raw, models.SSEEventStream)) as stream:
        return {"events": [seen(event) for event in stream]}


def helpers(mix: Mix, *, text: str = "tools") -> dict[str, Any]:
    """The SDK's own helpers (from 0.6.1), which open a new stream for each turn and use its asyncio half."""
    from mix_python_sdk.helpers import query, send_with_callbacks

    async def both() -> dict[str, Any]:
        session = create(mix).id
        calls: list[list[Any]] = []
        names = ["thinking", "content", "tool_execution_start", "tool_execution_complete", "error", "permission"]

        def note(name: str) -> Callable[..., None]:
            return lambda *values: calls.append([name, *map(plain, values)])

        callbacks = {f"on_{name}": note(name) for name in [*names, "complete"]}
        await send_with_callbacks(mix, session, text, **callbacks)
        asked = [[event.type, plain(event.data)] async for event in query(mix, session, text)]
        return {"callbacks": calls, "query": asked}

    return asyncio.run(both())


def streaming_session(mix: Mix, *, text: str = "hello") -> dict[str, Any]:
    """The SDK's session helper (0.6.1 to 0.7.3; it cannot create a session in 0.8)."""
    from mix_python_sdk.helpers import StreamingSession

    async def one() -> dict[str, Any]:
        said: list[str] = []
        async with StreamingSession(mix, title="Helper") as session:
            await session.send(text, on_content=said.append)
            name = session.id
        return {"said": said, "after": attempt(mix.sessions.get, id=name)}

    return asyncio.run(one())


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    "turn": turn,
    "send_first": send_first,
    "resume": resume,
    "drops": drops,
    "missing": missing,
    "bad_cursor": bad_cursor,
    "cancel": cancel,
    "permission": permission,
    "notification": notification,
    "neighbours": neighbours,
    "preamble": preamble,
    "persistent": persistent,
    "deleted": deleted,
    "failure": failure,
    "parse": parse,
    "helpers": helpers,
    "streaming_session": streaming_session,
}


def answered(base_url: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request; each gets a client of its own."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    try:
        with connect(base_url) as mix:
            return {"ok": SCENARIOS[request["scenario"]](mix, **request.get("options", {}))}
    except Exception:
        return {"crash": traceback.format_exc()}
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answered(sys.argv[1], json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
