"""What carrying and reading a token costs, counted in work and not in time, so that it is the same on every machine.

A server in a process of its own does a fixed amount of work in step with its readers: the next token is said when all
have the one before. ``python tests/test_work.py`` prints what is counted now, to set ``MEASURED`` anew after a change
that makes it less; a bound that is far above what is needed guards nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from counted_server import Counter
from legato import provider
from legato.http.connection import HttpConnection
from legato.http.transport import Transport
from processes import bounded
from provider_streams import HELLO, delta, sse
from test_transport import HEAD

SERVER = Path(__file__).with_name("counted_server.py")
ROOM, LEAST = 1.25, 0.05
"""What is let pass: so many times what was measured, since versions of Python differ and so do the groups that SQLite
commits; and so much more, for what is next to nothing."""
WARM, TOKENS = 10, 40
SHAPES = {"fan-out": (1, 100), "chat": (20, 1)}
"""Sessions, and readers of each."""

WORDS = 20
"""Messages that are answered by a word, one after another."""

COUNTS = ("calls", "resumed", "c_calls", "blocks", "pages", "writes")
MEASURED = {
    ("fan-out", "sqlite"): (0.40, 0.05, 0.51, 0.13, 0.01, 1.03),
    ("fan-out", "memory"): (0.33, 0.05, 0.46, 0.10, 0.0, 1.0),
    ("chat", "sqlite"): (34.0, 5.01, 43.5, 9.5, 0.28, 1.57),
    ("chat", "memory"): (29.2, 5.01, 38.3, 7.84, 0.0, 1.0),
}
"""``COUNTS`` for each token and reader, see ``counted_server.Counter``; as on 2026-11-29 with CPython 3.11."""
WORD = {
    "sqlite": (823, 116, 843, 267, 14.2, 36.3),
    "memory": (949, 108, 833, 264, 0.0, 5.0),
}
"""The same for a message and its answer of one word, with a reader."""
LATE_TOKENS = 1_200
LATE_READERS = {
    "mix": "GET /stream?sessionId={session}&from=start",
    "responses": "GET /v1/responses/resp_{runId}?stream=true",
    "deva": "POST /api/sdk/chat/{session}/messages/{messageId}/query/stream",
}
LATE = {
    "mix": (0.32, 0.05, 2.37, 0.19, 0.0, 0.0),
    "responses": (11.0, 0.16, 14.5, 0.90, 0.0, 0.02),
    "deva": (0.39, 0.07, 2.40, 0.23, 0.0, 0.0),
}
"""The same for each token, for who comes when so many have been said."""
CHUNKS = 50
CHUNK = {"ChatCompletions": (52.0, 10.0, 37.0), "Responses": (56.0, 10.0, 45.0), "Anthropic": (53.0, 10.0, 42.0)}
"""The first three for a chunk of a model's answer, from the bytes to the caller."""


class Reader:
    """A reader that blocks until it has a token."""

    def __init__(self, port: int, session: str, *, asked: str = "") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        asked = asked or f"GET /stream?sessionId={session}"
        self._socket.sendall(f"{asked} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n".encode())
        self._seen = b""
        self.wait_for(b"\r\n\r\n")

    def wait_for(self, text: bytes) -> None:
        while text not in self._seen:
            self._seen = self._seen[-1000:] + self._socket.recv(65_536)
        self._seen = self._seen.partition(text)[2]

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def counted(store: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server, and its port."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, str(SERVER), store], stdin=pipe, stdout=pipe, bufsize=0)
    try:
        assert process.stdout is not None
        with bounded(process, "port of the server"):
            port = int(process.stdout.readline())
        yield process, port
    finally:
        process.kill()
        process.communicate()


def post(port: int, path: str, body: dict[str, str]) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return dict(answer)


def measure(shape: str, store: str) -> dict[str, float]:
    """What one token costs for one reader."""
    sessions, readers_of_each = SHAPES[shape]
    with counted(store) as (process, port), contextlib.ExitStack() as stack:
        assert process.stdin is not None
        assert process.stdout is not None
        made = [post(port, "/api/sessions", {})["id"] for _ in range(sessions)]
        readers = [Reader(port, session) for session in made for _ in range(readers_of_each)]
        for reader in readers:
            stack.callback(reader.close)
        for session in made:
            post(port, f"/api/sessions/{session}/messages", {"text": "go"})
        for number in range(1, WARM + TOKENS + 1):
            process.stdin.write(b"bt" if number == WARM + 1 else b"t")
            for reader in readers:
                reader.wait_for(f"token {number}. ".encode())
        process.stdin.write(b"e")
        found = json.loads(process.stdout.readline())
        return {name: value / (TOKENS * len(readers)) for name, value in found.items()}


def told(found: dict[str, float]) -> str:
    return ", ".join(f"{found[name]:.2f}" for name in COUNTS if name in found)


def store_of(kind: str, folder: str | Path) -> str:
    return "memory:" if kind == "memory" else f"sqlite:///{folder}/work.db"


@pytest.mark.parametrize(("shape", "kind"), MEASURED)
def test_a_token_costs_no_more_than_it_did(shape: str, kind: str, tmp_path: Path) -> None:
    """Calls, resumed coroutines, writes, pages and kept memory for each token and reader stay within their bounds."""
    check(measure(shape, store_of(kind, tmp_path)), MEASURED[shape, kind])


def check(found: dict[str, float], measured: tuple[float, ...]) -> None:
    bounds = {name: value * ROOM + LEAST for name, value in zip(COUNTS, measured, strict=False)}
    assert {name: value for name, value in found.items() if value > bounds[name]} == {}, (found, bounds)


def measure_word(store: str) -> dict[str, float]:
    """What a message and its answer of one word cost."""
    with counted(store) as (process, port), contextlib.ExitStack() as stack:
        assert process.stdin is not None
        assert process.stdout is not None
        session = post(port, "/api/sessions", {})["id"]
        reader = Reader(port, session)
        stack.callback(reader.close)
        for number in range(WARM + WORDS):
            if number == WARM:
                process.stdin.write(b"b")
            post(port, f"/api/sessions/{session}/messages", {"text": f"word {number}."})
            reader.wait_for(b"event: complete\n")
        process.stdin.write(b"e")
        return {name: value / WORDS for name, value in json.loads(process.stdout.readline()).items()}


@pytest.mark.parametrize("kind", WORD)
def test_a_first_word_costs_no_more_than_it_did(kind: str, tmp_path: Path) -> None:
    """From the message to its reader, and to the end of the answer."""
    check(measure_word(store_of(kind, tmp_path)), WORD[kind])


def measure_late(dialect: str, store: str) -> dict[str, float]:
    """What each token costs for two readers who come late to an answer, one after the other."""
    with counted(store) as (process, port), contextlib.ExitStack() as stack:
        assert process.stdin is not None
        assert process.stdout is not None
        session = post(port, "/api/sessions", {})["id"]
        first = Reader(port, session)
        stack.callback(first.close)
        sent = post(port, f"/api/sessions/{session}/messages", {"text": "go"})
        for number in range(1, LATE_TOKENS + 1):
            process.stdin.write(b"t")
            first.wait_for(f"token {number}. ".encode())
        process.stdin.write(b"b")
        for _ in range(2):
            reader = Reader(port, session, asked=LATE_READERS[dialect].format(session=session, **sent))
            stack.callback(reader.close)
            reader.wait_for(f"token {LATE_TOKENS}. ".encode())
        process.stdin.write(b"e")
        found = json.loads(process.stdout.readline())
        return {name: value / (2 * LATE_TOKENS) for name, value in found.items()}


@pytest.mark.parametrize("dialect", LATE)
def test_a_late_reader_costs_no_more_than_it_did(dialect: str, tmp_path: Path) -> None:
    """For each token of an answer that is still being given."""
    check(measure_late(dialect, store_of("sqlite", tmp_path)), LATE[dialect])


class Silent(asyncio.Transport):
    """A connection over which nothing goes out."""

    def write(self, data: bytes) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


EVENTS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "ChatCompletions": ([], {"choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]}),
    "Responses": ([], delta(0, "output_text", " word", content_index=0)),
    "Anthropic": (
        [{"type": "message_start", "message": {"id": "m", "content": []}}],
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " word"}},
    ),
}
"""What begins an answer, and a piece of it."""


def chunk(payloads: list[Any]) -> bytes:
    body = sse(payloads, named="type" in payloads[0])
    return b"%x\r\n%b\r\n" % (len(body), body)


async def measure_chunk(wire: str) -> dict[str, float]:
    """What a chunk costs that comes alone, to a caller who waits for it."""
    connection = HttpConnection(("http", "model", 80), lambda lost: None)
    connection.connection_made(Silent())

    class Connected(Transport):
        async def _connect(self, *asked: object) -> HttpConnection:
            asyncio.get_running_loop().call_soon(connection.data_received, HEAD + chunk(begin))
            return connection

    begin, piece = EVENTS[wire]
    begin = [*begin, piece]
    came, counter = 0, Counter()

    async def read() -> None:
        nonlocal came
        async with httpx2.AsyncClient(transport=Connected()) as http:
            asked = getattr(provider, f"Async{wire}Provider")("http://model/v1", "key", http_client=http)
            async for each in asked.chat_stream(model="m", messages=HELLO):
                came += each.delta == " word"

    reading = asyncio.create_task(read())
    while not came:
        await asyncio.sleep(0)
        assert not reading.done(), reading.result()
    data = chunk([piece])
    for number in range(WARM + CHUNKS):
        if number == WARM:
            counter.begin()
        connection.data_received(data)
        while came < number + 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    found = counter.end()
    reading.cancel()
    await asyncio.wait([reading])
    return {name: found[name] / CHUNKS for name in COUNTS[:3]}


@pytest.mark.parametrize("wire", CHUNK)
async def test_a_chunk_of_a_model_costs_no_more_than_it_did(wire: str) -> None:
    """Calls and resumed coroutines, from the bytes that came to the caller's next step."""
    check(await measure_chunk(wire), CHUNK[wire])


if __name__ == "__main__":
    for shape, kind in MEASURED:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(shape, store_of(kind, folder))
        print(f'    ("{shape}", "{kind}"): ({told(found)}),')
    for kind in WORD:
        with tempfile.TemporaryDirectory() as folder:
            print(f'    "{kind}": ({told(measure_word(store_of(kind, folder)))}),')
    for dialect in LATE:
        with tempfile.TemporaryDirectory() as folder:
            print(f'    "{dialect}": ({told(measure_late(dialect, store_of("sqlite", folder)))}),')
    for wire in CHUNK:
        print(f'    "{wire}": ({told(asyncio.run(measure_chunk(wire)))}),')
