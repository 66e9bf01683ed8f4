"""Numbers that others write as text: one reader for all places, and it takes ASCII digits alone.

``int`` and ``float`` take more: digits of other scripts, signs, blanks, ``_``. Who stands before the server, or beside
it, may read such a field otherwise, or not at all.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest

from driving import Chat, chatting
from legato.check import digits
from legato.client.resume import _offset
from legato.dialect.common import offset_cursor
from legato.errors import CursorInvalid
from legato.http.call import _seconds
from legato.testing import ASGIResponse
from processes import EXAMPLES, Server, running

ODD = {
    "arabic": "\u0663", "full width": "\uff11\uff12", "devanagari": "\u0967", "superscript": "\u00b2",
    "circled": "\u2460", "roman": "\u2167", "plus": "+5", "minus": "-5", "minus zero": "-0", "hex": "0x5",
    "octal": "0o5", "list": "5, 5", "semicolon": "5;", "underscore": "1_000", "exponent": "1e1", "comma": "1,000",
    "blank inside": "5 5", "tab": "5\t6", "NaN": "NaN", "infinity": "Infinity", "huge": "9" * 5000, "long": "1" * 20,
    "quoted": '"5"', "letters": "five", "apostrophe": "1'000", "percent": "5%", "byte": "5\u00a0",
}  # fmt: skip
"""What is no number, by what is odd about it."""
NUMBERS = {"0": 0, "5": 5, "007": 7, "123456789012345": 123456789012345}


@pytest.mark.parametrize("odd", ODD)
def test_one_reader_reads_digits_alone(odd: str) -> None:
    """And so do those that are made of it: cursors of the dialects and of the client."""
    assert digits(ODD[odd]) is None
    assert _offset(ODD[odd]) is None
    with pytest.raises(CursorInvalid):
        offset_cursor(ODD[odd])
    assert digits("") is digits(None) is digits(" 5") is digits("5 ") is digits("5\n") is None


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read(text: str) -> None:
    """Zeros in front make no difference."""
    assert digits(text) == offset_cursor(text) == _offset(text) == NUMBERS[text]


@pytest.mark.parametrize("odd", ODD)
def test_a_client_takes_no_odd_time_to_wait(odd: str) -> None:
    """``Retry-After`` is seconds or a date; what is neither is none. Parts of a second are taken as they are meant."""
    assert _seconds(ODD[odd]) is None
    assert (_seconds("5"), _seconds("0.5"), _seconds("0"), _seconds("")) == (5.0, 0.5, 0.0, None)
    assert _seconds("Sun, 06 Nov 1994 08:49:37 GMT") == 0.0
    for wrong in (".5", "5.+1", "-0.5", "Sun, 06 Nov 99999999 08:49:37 GMT", "\u0660.5"):
        assert _seconds(wrong) is None


QUERIES = [
    "/stream?sessionId={s}&from=", "/stream?sessionId={s}&lastEventId=", "/api/sessions/{s}/events?after=",
    "/api/sessions/{s}/events?limit=", "/api/sessions/{s}/messages?limit=", "/api/messages/history?limit=",
    "/api/messages/history?offset=", "/api/sessions?limit=", "/api/inspect?limit=", "/api/inspect/sessions/{s}?after=",
    "/v1/responses/{r}?stream=true&starting_after=", "/v1/responses/{r}/input_items?limit=",
    "/api/sdk/chat/{s}/messages?limit=", "/api/sdk/chat/{s}/messages/m/query/stream?lastEventId=",
]  # fmt: skip
"""Each place in a query that takes a number."""


def method(path: str) -> str:
    return "POST" if path.startswith("/api/sdk") and "stream" in path else "GET"


@pytest.mark.parametrize("query", QUERIES)
async def test_no_query_takes_an_odd_number(query: str) -> None:
    """Each is refused, in its dialect's form, with what was expected; and the same place takes a number."""
    async with chatting() as chat:
        answered = await chat.driver.request("POST", "/v1/responses", json={"input": "hi"})
        target = query.format(s=chat.session, r=answered.json()["id"])
        for name, odd in ODD.items():
            answer = await chat.driver.request(method(query), target + quote(odd, safe=""))
            assert answer.status == 400, (name, answer.text)
        if "stream" not in query:
            assert (await chat.driver.request("GET", target + "1")).status == 200


@pytest.mark.parametrize("path", ["/stream?sessionId={s}", "/api/sdk/chat/{s}/messages/m/query/stream"])
async def test_no_cursor_in_a_header_is_odd(path: str) -> None:
    """As bytes of UTF-8, and as those of Latin-1, of which one has a digit of its own."""
    async with chatting() as chat:
        for name, odd in ODD.items():
            for sent in {odd.encode().decode("latin-1"), odd if odd.isascii() or name == "superscript" else "\u00b9"}:
                answer = await chat.driver.request(
                    method(path), path.format(s=chat.session), headers={"last-event-id": sent}
                )
                assert answer.status == 400, (name, answer.text)


@pytest.mark.parametrize("target", ["/api/sessions", "/v1/responses", "/v1/chat/completions", "/api/sdk/chat"])
async def test_no_length_of_a_body_is_odd(target: str) -> None:
    """Whatever server is around: it may hand on what it does not understand itself."""
    async with chatting() as chat:
        for name, odd in {**ODD, "empty": ""}.items():
            answer = await post(chat, target, odd.encode().decode("latin-1"))
            assert (answer.status, "Content-Length" in answer.text) == (400, True), name
        for length in ("7", "99999999"):  # a body that ends before its promised end, and one that would be too large
            assert (await post(chat, target, length)).status in (400, 413)
        empty = await chat.driver.request("POST", target, headers={"content-length": "5"})
        assert (empty.status, "promises a body" in empty.text) == (400, True)


async def post(chat: Chat, target: str, length: str) -> ASGIResponse:
    headers = {"content-length": length, "content-type": "application/json"}
    return await chat.driver.request("POST", target, body=b"{}", headers=headers)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("numbers") / "log.db"
    agent = str(EXAMPLES / "agent.py")
    with running("legato", "serve", agent, "--port", "0", "--store", f"sqlite:///{store}") as server:
        yield server


@pytest.mark.parametrize("odd", [*ODD, "empty"])
def test_no_length_on_the_wire_is_odd(server: Server, odd: str) -> None:
    """Neither is it taken for none: then the body would be the next request."""
    length = ODD.get(odd, "").encode()
    smuggled = b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    head = b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %b\r\n\r\n" % length
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as sock:
        sock.sendall(head + smuggled)
        answers = b""
        while more := sock.recv(65_536):
            answers += more
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_no_number_of_the_command_line_is_odd() -> None:
    """``--from`` of ``legato tail``; and a choice may be made with digits of one's own, but not with thousands."""
    import click

    from legato.cli.chat import _choice
    from legato.cli.sessions import _start

    context = click.Context(click.Command("tail"))
    for odd in ODD.values():
        with pytest.raises(click.BadParameter):
            _start(context, context.command, odd)  # type: ignore[arg-type]
    assert _start(context, context.command, "120") == 120  # type: ignore[arg-type]
    assert [_choice(text, ["a", "b", "c"]) for text in ("1", "\u0663", "9" * 5000, "-1", "0")] == ["a", "c", "", "", ""]
