"""Answers that are not the server's: a gateway's, a page to sign in, a redirect, another server's (R19).

They are weather: nothing is done by them and nothing is over, whatever their status; they are waited for, and named in
the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from client_faces import FACES, stream, use
from fake_server import ANSWER, Reply, Request, error_reply, json_reply, stream_reply
from legato.client import BackoffStrategy, ClientError, ErrorResponse, ForeignResponse, ResponseInvalid, RetryConfig

HTML = b"<!doctype html><title>Sign in</title><form method=post>"
QUICK = RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 60_000), True)

FOREIGN: dict[str, Reply] = {
    "302 to a page": Reply(302, b"", {"location": "https://login.example.com/?next=%2F"}),
    "301 to https": Reply(301, HTML, {"location": "https://chat.example.com/api/sessions"}),
    "303": Reply(303, b"", {"location": "/login"}),
    "307": Reply(307, b"", {"location": "/login"}),
    "308": Reply(308, b"", {"location": "https://chat.example.com/"}),
    "304": Reply(304),
    "400 of HTTP": Reply(400, b"<html>400 Bad Request</html>", {"content-type": "text/html"}),
    "401 of a proxy": Reply(401, HTML, {"content-type": "text/html", "www-authenticate": "Basic"}),
    "403 of a firewall": Reply(403, HTML, {"content-type": "text/html"}),
    "403 as JSON": json_reply({"message": "Forbidden"}, 403),
    "404 as text": Reply(404, b"404 page not found\n", {"content-type": "text/plain"}),
    "404 of FastAPI": json_reply({"detail": "Not Found"}, 404),
    "404, empty": Reply(404),
    "404, an error that is a word": json_reply({"error": "not found"}, 404),
    "405": Reply(405, b"", {"allow": "GET"}),
    "409": Reply(409, b"conflict"),
    "410": Reply(410, HTML),
    "413 of nginx": Reply(413, b"<html>413 Request Entity Too Large</html>"),
    "421": Reply(421, b"Misdirected Request"),
    "425": Reply(425, b"too early"),
    "451": Reply(451, HTML),
    "502": Reply(502, HTML),
    "200 with a page": Reply(200, HTML, {"content-type": "text/html"}),
    "200, empty": Reply(200),
    "200 as JSON": json_reply({"ok": True}),
    "200, a list": json_reply([{"login": "/"}]),
    "200, null": json_reply(None),
    "202 of a queue": json_reply({"queued": "yes"}, 202),
    "206": Reply(206, b"{}"),
}
TALE = {"status": "processing", "sessionId": "s"}
WRITES: dict[str, tuple[Callable[[Any], Any], Reply]] = {
    "delete": (lambda c: c.sessions.delete("s"), Reply(204)),
    "respond": (lambda c: c.notifications.respond("n", type="acknowledge"), Reply(204)),
    "send": (lambda c: c.messages.send("s", text="hi"), json_reply(TALE)),
    "send streaming": (lambda c: c.streaming.send_streaming_message("s", content="hi"), json_reply(TALE)),
    "create": (lambda c: c.sessions.create(), json_reply({"id": "s"}, 201)),
    "rewind": (lambda c: c.sessions.rewind("s", message_id="m"), json_reply({"id": "s"})),
    "cancel": (lambda c: c.sessions.cancel("s"), json_reply({"cancelled": True})),
    "grant": (lambda c: c.permissions.grant("p"), json_reply({"granted": True})),
    "deny": (lambda c: c.permissions.deny("p"), json_reply({"denied": True})),
}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("write", WRITES)
def test_no_write_is_done_by_it(face: str, foreign: str, write: str) -> None:
    """The request is made again until the server itself has answered; a redirect is followed by none."""
    act, own = WRITES[write]
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return FOREIGN[foreign] if len(asked) < 3 else own

    use(face, handler, act, retry_config=QUICK)

    assert len(asked) == 3
    assert len({(request.method, request.path, request.body) for request in asked}) == 1


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("write", [*WRITES, "fork"])
def test_it_is_named_when_it_does_not_pass(face: str, foreign: str, write: str) -> None:
    """And never returned as done. What may not be repeated is not."""
    act = {**WRITES, "fork": (lambda c: c.sessions.fork("s", message_index=0), Reply())}[write][0]
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return FOREIGN[foreign]

    with pytest.raises(ClientError) as caught:
        use(face, handler, act, retry_config=QUICK if write == "fork" else None)

    assert len(asked) == 1 or (write, foreign) == ("fork", "502")
    assert isinstance(caught.value, ForeignResponse | ResponseInvalid)
    location = FOREIGN[foreign].headers.get("location")
    assert location is None or ("Sign in again" in caught.value.message and location in caught.value.message)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("foreign", [name for name in FOREIGN if name != "304"])
def test_a_stream_outlives_it(face: str, foreign: str) -> None:
    """In the middle of an answer: the stream comes back, from where it was, and has every event once."""
    replies = iter([
        stream_reply(ANSWER.after(None)[: -len(ANSWER.frames[-1]) - 5], cut=True),
        FOREIGN[foreign], FOREIGN[foreign], FOREIGN["404 as text"],
    ])  # fmt: skip

    def handler(request: Request) -> Reply:
        reply = FOREIGN["200 with a page"] if request.path == "/login" else next(replies, None)
        return stream_reply(ANSWER.after(request.headers.get("last-event-id"))) if reply is None else reply

    events = stream(face, handler, quiet=True)

    assert [event.id for event in events] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_what_the_server_itself_says_is_final_at_once(face: str, status: int) -> None:
    """For a write and for a stream."""
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        if request.path == "/stream" and len(asked) == 1:
            return stream_reply(ANSWER.frames[0], cut=True)
        return error_reply(status, "its_word")

    with pytest.raises(ErrorResponse, match="its_word"):
        stream(face, handler)
    assert len(asked) == 2
    with pytest.raises(ErrorResponse, match="its_word"):
        use(face, handler, lambda c: c.sessions.delete("s"), retry_config=QUICK)
    assert len(asked) == 3
