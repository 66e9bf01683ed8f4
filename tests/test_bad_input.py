"""What callers send that cannot be used: one table, from request to answer.

No row may cost a 5xx (the clients of this dialect repeat those for ten minutes), and after all of them the server
answers as before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from driving import Chat, chatting, reason
from legato.testing import ASGIResponse

BAD = "bad_request"
MAX_BODY = 1_048_576
LOST = (404, "not_found", "session_not_found")
NO_ROUTE = (404, "not_found", "no_such_route")
NO_ASK = (404, "not_found", "ask_not_found")
NO_MESSAGE = (404, "not_found", "not_found")
INVALID = (400, BAD, "invalid_input")
CURSOR = (400, BAD, "cursor_invalid")
TOO_LARGE = (413, "validation_error", "too_large")


class Row(NamedTuple):
    """One request; ``{s}`` in its target is the session."""

    name: str
    request: str
    expected: tuple[int, str, str]
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})


def nested(depth: int) -> bytes:
    return b'{"text":' + b"[" * depth + b"]" * depth + b"}"


# Ids that try to be something else. Each is put where a session's id belongs.
IDS: list[tuple[str, tuple[int, str, str]]] = [
    ("nobody", LOST),
    ("..", LOST),
    ("%2e%2e", LOST),
    (".", LOST),
    ("a%00b", LOST),
    ("%00", LOST),
    ("a%0d%0ab", LOST),
    ("{s}%0a", LOST),
    ("{s}%20", LOST),
    ("%20{s}", LOST),
    ("%F0%9F%8E%B5", LOST),
    ("%ff%fe", LOST),
    ("{s}~x", LOST),
    ("'%20OR%201=1--", LOST),
    ("%25s", LOST),
    ("x" * 129, LOST),
    ("x" * 10_000, LOST),
    ("__proto__", LOST),
]

# Bodies for a message, and for what else takes one.
BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("blank", b"  \n"),
    ("no JSON", b"hello"),
    ("half JSON", b'{"text": "a'),
    ("two values", b'{"text":"a"}{"text":"b"}'),
    ("null", b"null"),
    ("a list", b'["text"]'),
    ("text", b'"text"'),
    ("a number", b"1"),
    ("NaN", b"NaN"),
    ("an empty object", b"{}"),
    ("a number for text", b'{"text": 1, "content": 1, "messageId": 1, "messageIndex": "1", "type": 1}'),
    ("null for text", b'{"text": null, "content": null, "messageId": null, "messageIndex": null, "type": null}'),
    ("a list for text", b'{"text": ["a"], "content": ["a"], "messageId": ["a"], "messageIndex": ["a"], "type": ["a"]}'),
    ("bad UTF-8", b'{"text": "\xff\xfe", "content": "\xff", "messageId": "\xff", "type": "\xff"}'),
    ("UTF-16", '{"text": "a"}'.encode("utf-16")),
    ("two BOMs", b'\xef\xbb\xbf\xef\xbb\xbf{"text": "a"}'),
    ("NUL", b"\x00"),
    ("a form", b"text=a&content=a"),
    ("deep lists", nested(100_000)),
    ("deep objects", b'{"a":' * 100_000 + b"}" * 100_000),
    ("an endless number", b'{"messageIndex":' + b"9" * 100_000 + b',"text":1,"content":1,"type":1}'),
    ("half a surrogate pair", rb'{"text": "\ud800", "content": "\ud800", "messageId": 1, "type": "\ud800"}'),
]
TAKES_A_BODY = [
    "/stream/{s}/message",
    "/api/sessions/{s}/messages",
    "/api/sessions/{s}/rewind",
    "/api/sessions/{s}/fork",
]

LAST_EVENT_IDS = [
    "abc",
    "-1",
    "+1",
    "1.0",
    "1 2",
    " ",
    "0x10",
    "1e3",
    "1_0",
    "²",
    "1,2",
    "s_1:5",
    "9" * 16,
    "1" * 10_240,
]


def rows() -> Iterator[Row]:
    yield Row("stream without session", "GET /stream", INVALID)
    yield Row("stream with an empty session", "GET /stream?sessionId=", INVALID)
    yield Row("stream with another name", "GET /stream?session_id={s}", INVALID)
    for id, expected in IDS:
        yield Row(f"stream of {id[:20]}", f"GET /stream?sessionId={id}", expected)
        if "%" in id or set(id) - {"."}:
            yield Row(f"get {id[:20]}", f"GET /api/sessions/{id}", expected)
            yield Row(f"send to {id[:20]}", f"POST /api/sessions/{id}/messages", expected, {"text": "a"})
            yield Row(f"delete {id[:20]}", f"DELETE /api/sessions/{id}", expected)
            yield Row(f"cancel {id[:20]}", f"POST /api/sessions/{id}/cancel", expected)
            yield Row(f"events of {id[:20]}", f"GET /api/sessions/{id}/events", expected)
            yield Row(f"export {id[:20]}", f"GET /api/sessions/{id}/export", expected)
            yield Row(f"messages of {id[:20]}", f"GET /api/sessions/{id}/messages", expected)
            yield Row(f"rewind {id[:20]}", f"POST /api/sessions/{id}/rewind", expected, {"messageId": "m"})
            yield Row(f"fork {id[:20]}", f"POST /api/sessions/{id}/fork", expected, {"messageIndex": 0})
            yield Row(f"retry in {id[:20]}", f"POST /api/sessions/{id}/messages/m/retry", expected)
            yield Row(f"retry {id[:20]}", f"POST /api/sessions/{{s}}/messages/{id}/retry", NO_MESSAGE)
            yield Row(f"grant {id[:20]}", f"POST /api/permissions/{id}/grant", NO_ASK)
            yield Row(f"deny {id[:20]}", f"POST /api/permissions/{id}/deny", NO_ASK)
            note = {"type": "acknowledge"}
            yield Row(f"answer {id[:20]}", f"POST /api/notifications/{id}/respond", NO_ASK, note)
    for coding in ("gzip", "br", "deflate, gzip", "x-gzip", "identity, gzip", "zstd"):
        for path in TAKES_A_BODY:
            expected = (415, BAD, "unsupported_encoding")
            yield Row(f"{coding} to {path}", f"POST {path}", expected, b"\x1f\x8b\x08", {"content-encoding": coding})
    yield from deva_rows()
    yield Row("slash in an id", "GET /api/sessions/a%2Fb", NO_ROUTE)
    yield Row("slashes in an id", "GET /api/sessions/..%2f..%2fetc", NO_ROUTE)
    yield Row("unknown session comes before the body", "POST /api/sessions/nobody/messages", LOST, b"no JSON")
    for target in TAKES_A_BODY:
        for name, body in BODIES:
            yield Row(f"{target}: {name}", f"POST {target}", INVALID, body)
        yield Row(f"{target}: too large", f"POST {target}", TOO_LARGE, b'{"text":"' + b"a" * MAX_BODY + b'"}')
    for name, body in BODIES:
        if name not in ("an empty object", "an endless number", "a number for text", "null for text"):
            continue
        yield Row(f"api-key: {name}", "POST /api/auth/api-key", INVALID, body)
    for name, body in (("title", {"title": 1}), ("null", {"title": None}), ("long", {"title": "a" * 1001})):
        yield Row(f"create: {name}", "POST /api/sessions", INVALID, body)
    for id in ("", ".", "..", "a/b", "a b", "a\n", "é", "x" * 129, "a~b", 7, ["a"]):
        yield Row(f"create with id {str(id)[:9]!r}", "POST /api/sessions", INVALID, {"id": id})
        fork = {"messageIndex": 0, "id": id}
        yield Row(f"fork with id {str(id)[:9]!r}", "POST /api/sessions/{s}/fork", INVALID, fork)
    yield Row("create again", "POST /api/sessions", (409, BAD, "session_exists"), {"id": "{s}"})
    yield Row("create for an unknown agent", "POST /api/sessions", INVALID, {"agent": "nobody"})
    yield Row("create with a half pair", "POST /api/sessions", INVALID, rb'{"title": "\ud800"}')
    yield Row("create of an unknown type", "POST /api/sessions", INVALID, {"sessionType": "x"})
    for text in ("", " ", "\n\t", "\u2028\u3000"):
        yield Row(f"send {text!r}", "POST /api/sessions/{s}/messages", INVALID, {"text": text})
        yield Row(f"stream {text!r}", "POST /stream/{s}/message", INVALID, {"content": text})
    yield Row("stream an empty text in JSON", "POST /stream/{s}/message", INVALID, {"content": '{"text": " "}'})
    yield Row("send to an unknown agent", "POST /api/sessions/{s}/messages", INVALID, {"text": "a", "agent": "nobody"})
    yield Row("send to no agent", "POST /api/sessions/{s}/messages", INVALID, {"text": "a", "agent": 1})
    content = json.dumps({"text": "a", "agent": ["nobody"]})
    yield Row("stream to no agent", "POST /stream/{s}/message", INVALID, {"content": content})
    for key in ("", "a b", "a\tb", "é", "x" * 256, "\x7f"):
        header = {"idempotency-key": key}
        yield Row(f"key {key[:9]!r}", "POST /api/sessions/{s}/messages", INVALID, {"text": "a"}, header)
        yield Row(f"stream key {key[:9]!r}", "POST /stream/{s}/message", INVALID, {"content": "a"}, header)
    for cursor in LAST_EVENT_IDS:
        yield Row(f"Last-Event-ID {cursor[:9]!r}", "GET /stream?sessionId={s}", CURSOR, None, {"last-event-id": cursor})
    for place in ("begin", "-1", "1.5", "START", "%C2%B2", "%D9%A1", "1%0A", "9" * 16, "1" * 5_000):
        yield Row(f"from {place[:9]}", f"GET /stream?sessionId={{s}}&from={place}", CURSOR)
    for client in ("python", "java-1.2.3", "python-0.8", "x" * 5_000, "python-%D9%A1.0.0", "%00"):
        yield Row(f"client {client[:9]}", f"GET /stream?sessionId={{s}}&client={client}", INVALID)
        target = f"POST /api/sessions/{{s}}/messages?client={client}"
        yield Row(f"send as {client[:9]}", target, INVALID, {"text": "a"})
    for query in ("limit=0", "limit=-1", "limit=1001", "limit=a", "limit=", "limit=1e3", "limit=" + "9" * 5_000):
        yield Row(f"sessions {query[:12]}", f"GET /api/sessions?{query}", INVALID)
        yield Row(f"history {query[:12]}", f"GET /api/messages/history?{query}", INVALID)
        yield Row(f"events {query[:12]}", f"GET /api/sessions/{{s}}/events?{query}", INVALID)
    for query in ("after=-1", "after=a", "after=%D9%A1", "after=" + "9" * 17, "after="):
        yield Row(f"events {query[:12]}", f"GET /api/sessions/{{s}}/events?{query}", INVALID)
    for query in ("offset=-1", "offset=a", "offset=100001"):
        yield Row(f"history {query}", f"GET /api/messages/history?{query}", INVALID)
    for moment in ("x", "0", "2026-11-21", "2026-11-21T12:00:00", "9999999999999999999", "0000-01-01T00:00:00Z"):
        yield Row(f"before {moment}", f"GET /api/sessions?before={moment}", INVALID)
    for body in (b"x", b"[]", b"null", b'{"runId": 1}'):
        yield Row(f"cancel {body!r}", "POST /api/sessions/{s}/cancel", INVALID, body)
        yield Row(f"retry {body!r}", "POST /api/sessions/{s}/messages/m/retry", INVALID, body)
    yield Row("rewind to nothing", "POST /api/sessions/{s}/rewind", (404, "not_found", "not_found"), {"messageId": "m"})
    for index in (99, -1, 2**63, 2**64, 1.5, True):
        yield Row(f"fork at {index}", "POST /api/sessions/{s}/fork", INVALID, {"messageIndex": index})
    for path in (
        "/nope",
        "/api",
        "/api/sessions/{s}/nope",
        "/stream/{s}",
        "/web/../app.py",
        "/web/nope.js",
        "/%00",
        "//",
    ):
        yield Row(f"GET {path}", f"GET {path}", NO_ROUTE)
    not_allowed = (405, BAD, "method_not_allowed")
    for request in ("PUT /stream", "POST /stream?sessionId={s}", "DELETE /api/sessions", "PATCH /api/sessions/{s}",
                    "GET /stream/{s}/message", "GET /api/permissions/p/grant", "POST /health", "BREW /"):  # fmt: skip
        yield Row(request, request, not_allowed)
    for host in ("evil.test", "localhost.evil.test", "127.0.0.1.nip.io", "", "localhost:80:80", "[::1", "x" * 5_000):
        for request in (
            "GET /stream?sessionId={s}",
            "GET /api/sessions",
            "POST /api/sessions/{s}/cancel",
            "GET /",
            "BREW /",
        ):
            yield Row(f"{request} at {host[:9]}", request, (421, BAD, "host_not_allowed"), None, {"host": host})
    asks = {"access-control-request-method": "POST"}
    at_evil = {**asks, "host": "evil.test", "origin": "http://evil.test"}
    from_evil = {**asks, "origin": "http://evil.test"}
    yield Row("preflight at evil.test", "OPTIONS /api/sessions", (421, BAD, "host_not_allowed"), None, at_evil)
    yield Row("preflight from evil.test", "OPTIONS /api/sessions", (403, BAD, "origin_not_allowed"), None, from_evil)
    for origin in (
        "https://evil.test",
        "http://localhost.evil.test",
        "null",
        "",
        "http://localhost@evil.test",
        "x" * 5_000,
    ):
        for request in ("GET /stream?sessionId={s}", "GET /api/sessions", "POST /api/sessions/{s}/cancel"):
            yield Row(
                f"{request} from {origin[:9]}", request, (403, BAD, "origin_not_allowed"), None, {"origin": origin}
            )


DEVA = "/api/sdk/chat"


def deva_rows() -> Iterator[Row]:
    """Of the Deva dialect; ``m`` is no message."""
    for id, expected in IDS:
        if "%" in id or set(id) - {"."}:
            yield Row(f"thread {id[:20]}", f"GET {DEVA}/{id}", expected)
            yield Row(f"thread's messages {id[:20]}", f"GET {DEVA}/{id}/messages", expected)
            yield Row(f"thread's message {id[:20]}", f"POST {DEVA}/{id}/messages", expected, {"text": "a"})
            for verb in ("stop", "retry", "query/stream"):
                yield Row(f"{verb} in {id[:20]}", f"POST {DEVA}/{id}/messages/m/{verb}", expected)
                yield Row(f"{verb} {id[:20]}", f"POST {DEVA}/{{s}}/messages/{id}/{verb}", NO_MESSAGE)
    yield Row("unknown thread comes before the body", f"POST {DEVA}/nobody/messages", LOST, b"no JSON")
    for name, body in BODIES:
        yield Row(f"thread's message: {name}", f"POST {DEVA}/{{s}}/messages", INVALID, body)
    for key in ("", "a b", "a\n", "é", "x" * 256, 7):
        body = {"text": "a", "client_id": key}
        yield Row(f"client_id {str(key)[:9]!r}", f"POST {DEVA}/{{s}}/messages", INVALID, body)
    yield Row("blank message", f"POST {DEVA}/{{s}}/messages", INVALID, {"text": " "})
    for body in (
        b"x",
        b"[]",
        b"null",
        b'{"title": 1}',
        b'{"username": 1}',
        b'{"username": "nobody"}',
        b'{"id": "a\\n"}',
    ):
        yield Row(f"thread {body!r}", f"POST {DEVA}", INVALID, body)
    yield Row("thread again", f"POST {DEVA}", (409, BAD, "session_exists"), {"id": "{s}"})
    for query in ("limit=0", "limit=101", "limit=a", "created_at=", "created_at=ISO", "created_at=%00"):
        yield Row(f"messages {query}", f"GET {DEVA}/{{s}}/messages?{query}", INVALID)
    for cursor in ("", "nope", "%00", "x" * 5_000):
        yield Row(f"messages before {cursor[:9]}", f"GET {DEVA}/{{s}}/messages?cursor={cursor}", CURSOR)
    stream = f"{DEVA}/{{s}}/messages/m/query/stream"
    yield Row("answer with times", f"POST {stream}?created_at=x", INVALID)
    for cursor in (*(each for each in LAST_EVENT_IDS if each != "1.0"), "42", "42.", "42.2", ".0", "42.0 0"):
        yield Row(f"answer after {cursor[:9]!r}", f"POST {stream}", CURSOR, None, {"last-event-id": cursor})
    for method in ("GET", "HEAD", "PUT", "DELETE", "BREW"):
        yield Row(f"{method} of an answer", f"{method} {stream}", (405, BAD, "method_not_allowed"))
    yield Row("answer at evil.test", f"POST {stream}", (421, BAD, "host_not_allowed"), None, {"host": "evil.test"})
    foreign = {"origin": "https://evil.test"}
    yield Row("answer for evil.test", f"POST {stream}", (403, BAD, "origin_not_allowed"), None, foreign)


ROWS = list(rows())


async def answer(chat: Chat, row: Row) -> ASGIResponse:
    method, _, target = row.request.partition(" ")
    target = target.replace("{s}", chat.session)
    body = row.body
    if not isinstance(body, bytes):
        body = b"" if body is None else json.dumps(body).replace("{s}", chat.session).encode()
    async with asyncio.timeout(30), chat.driver.stream(target, method=method, body=body, headers=row.headers) as stream:
        while await stream.read() and stream.status != 200:  # a stream that should not be would have no end
            pass
        return ASGIResponse(stream.status, stream.headers, stream.body, stream.error)


HOSTS = ["localhost", "127.0.0.1", "[::1]"]


async def test_what_cannot_be_used_is_refused_with_a_reason() -> None:
    """Every row of the table is answered as it says, by one server, which then answers a message as before."""
    async with chatting(max_body=MAX_BODY, hosts=HOSTS) as chat:
        found = [(row.name, answered(await answer(chat, row))) for row in ROWS]
        wrong = [(name, row.expected, got) for row, (name, got) in zip(ROWS, found, strict=True) if row.expected != got]
        assert not wrong, "\n".join(map(str, wrong))
        assert (await chat.get("/messages")).json() == []  # what was refused was not stored
        assert len((await chat.driver.request("GET", "/api/sessions")).json()) == 1
        run = (await chat.said()).json()["runId"]
        assert [run, run] == [message["runId"] for message in (await chat.get("/messages")).json()]


def answered(response: ASGIResponse) -> Any:
    try:
        return reason(response)
    except (AssertionError, ValueError, KeyError, TypeError) as exc:
        return response.status, response.body[:300], exc


async def test_a_body_may_begin_with_a_byte_order_mark_and_say_that_it_is_as_it_is() -> None:
    """As some editors write it, and some clients say."""
    async with chatting() as chat:
        for coding in ("identity", "Identity", ""):
            headers = {"content-type": "application/json", "content-encoding": coding}
            body = b'\xef\xbb\xbf{"text": "a", "content": "a"}'
            for path in (f"/api/sessions/{chat.session}/messages", f"/stream/{chat.session}/message"):
                assert (await chat.driver.request("POST", path, body=body, headers=headers)).status in (200, 202)
