"""``legato serve`` as a process: signals, and what only a socket can bring."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from uvicorn.server import ServerState

from legato.server.adaptor import LINE
from legato.server.protocol import HTTPProtocol
from legato.server.serve import AddressTaken, listen
from legato.sse import Decoder, SSEMessage
from processes import Server, running

AGENT = '''
async def agent(turn):
    """Asks, and says what it was told."""
    yield "May I? "
    yield str(await turn.ask_permission("Bash", "Lists.", timeout=None))
'''


@pytest.fixture
def agent_file(tmp_path: Path) -> Path:
    file = tmp_path / "asking.py"
    file.write_text(AGENT)
    return file


def command(agent_file: Path, *options: str) -> list[str]:
    store = f"sqlite:///{agent_file.parent / 'log.db'}"
    return ["legato", "serve", str(agent_file), "--port", "0", "--store", store, *options]


@asynccontextmanager
async def asked(server: Server) -> AsyncIterator[tuple[httpx2.AsyncClient, str, AsyncIterator[SSEMessage], SSEMessage]]:
    """A client, its session, an open stream, and the question at which the answer waits."""
    async with asyncio.timeout(60), httpx2.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
        session = (await client.post("/api/sessions", json={})).json()["id"]
        await client.post(f"/api/sessions/{session}/messages", json={"text": "go"})
        async with client.stream("GET", f"/stream?sessionId={session}&client=legato") as response:
            messages = received(response)
            async for message in messages:
                if message.event == "permission":
                    break
            yield client, session, messages, message


async def received(response: httpx2.Response) -> AsyncIterator[SSEMessage]:
    decoder = Decoder()
    async for chunk in response.aiter_bytes():
        for message in decoder.feed(chunk):
            yield message


async def drains(client: httpx2.AsyncClient) -> None:
    """Wait until the signal has arrived."""
    while (await client.get("/ready")).status_code != 503:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def of(message: SSEMessage) -> Any:
    return json.loads(message.data)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_stopping_server_lets_the_answer_finish(agent_file: Path, number: int) -> None:
    """It refuses new messages, goes on answering, and its readers see the end of the run and then of the stream."""
    with running(*command(agent_file, "--grace", "600")) as server:
        async with asked(server) as (client, session, messages, question):
            server.process.send_signal(number)
            await drains(client)
            refused = await client.post(f"/api/sessions/{session}/messages", json={"text": "more"})
            assert (refused.status_code, refused.json()["error"]["reason"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) > 0
            granted = await client.post(f"/api/permissions/{of(question)['id']}/grant")
            assert granted.json() == {"granted": True}
            rest = [message async for message in messages]  # ends without an error: the body had its proper end
        assert (rest[-1].event, of(rest[-1])["content"]) == ("complete", "May I? True")
        assert server.stopped() == 0


async def test_a_second_signal_stops_at_once_and_the_next_start_ends_the_run(agent_file: Path) -> None:
    """However long the answer may still take. Nothing that was stored is lost; no run is left running."""
    with running(*command(agent_file, "--grace", "3600")) as server:
        async with asked(server) as (client, session, _, question):
            server.process.send_signal(signal.SIGTERM)
            await drains(client)
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.stopped) == 0
    with running(*command(agent_file)) as server:
        async with asyncio.timeout(60), httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
            headers = {"last-event-id": question.id}
            async with client.stream("GET", f"/stream?sessionId={session}&client=legato", headers=headers) as response:
                seen = []
                async for message in received(response):
                    seen.append(message)
                    if message.event == "error":
                        break
    assert [message.event for message in seen] == ["connected", "permission_resolved", "error"]
    assert of(seen[-1])["type"] == "interrupted"


async def test_a_killed_server_resumes_exactly(agent_file: Path) -> None:
    """`kill -9` in the middle: what had been shown is stored, and the reader's cursor is good."""
    with running(*command(agent_file)) as server:
        async with asked(server) as (_, session, _, question):
            server.process.kill()
    with running(*command(agent_file)) as server:
        async with asyncio.timeout(60), httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
            while (await client.get(f"/api/sessions/{session}")).json()["running"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            events = (await client.get(f"/api/sessions/{session}/events")).json()["events"]
    types = [event["type"] for event in events]
    assert types[int(question.id) - 1] == "permission.requested"
    assert types[int(question.id) :] == ["permission.resolved", "run.failed"]
    assert events[-1]["data"]["partial"]["text"] == "May I? "


def raw(server: Server, request: bytes) -> bytes:
    """The first bytes of what the server answers to these bytes; empty if it hangs up."""
    with connected(server) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(65536)
        except TimeoutError:
            raise
        except OSError:  # it need not have read all before it hangs up
            return b""


POST = b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\n"
HEAD = b"GET /stream?sessionId=s HTTP/1.1\r\nHost: localhost\r\n"
WIRE = [
    ("not HTTP", b"hello\r\n\r\n"),
    ("a huge header", HEAD + b"x: " + b"a" * 1_000_000 + b"\r\n\r\n"),
    ("many headers", HEAD + b"".join(b"x-%d: a\r\n" % number for number in range(20_000)) + b"\r\n"),
    ("a huge cursor", HEAD + b"last-event-id: " + b"1" * 100_000 + b"\r\n\r\n"),
    ("bytes in a cursor", HEAD + b"last-event-id: \xff\xfe\r\n\r\n"),
    ("NUL in a cursor", HEAD + b"last-event-id: 1\x00\r\n\r\n"),
    ("CR in a cursor", HEAD + b"last-event-id: 1\r2\r\n\r\n"),
    ("two cursors", HEAD + b"last-event-id: 1\r\nlast-event-id: 2\r\n\r\n"),
    ("no host", b"GET /stream?sessionId=s HTTP/1.1\r\n\r\n"),
    ("HTTP/1.0", b"GET /stream?sessionId=s HTTP/1.0\r\n\r\n"),
    ("a huge URL", b"GET /stream?sessionId=" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("bytes in the URL", b"GET /stream?sessionId=\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("a lying length", POST + b"Content-Length: -1\r\n\r\n"),
    ("two lengths", POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    ("a body that breaks off", POST + b"Content-Length: 99\r\n\r\n{"),
    ("a bad chunk", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
    ("an upgrade", HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
]  # fmt: skip


async def test_bad_bytes_never_cost_a_5xx(agent_file: Path) -> None:
    """Each is refused, or hung up on; and the server goes on."""
    with running(*command(agent_file)) as server:
        answers = {name: raw(server, request) for name, request in WIRE}
        lines = {name: answer.partition(b"\r\n")[0] for name, answer in answers.items()}
        assert {name: line for name, line in lines.items() if line and not line.startswith(b"HTTP/1.1 4")} == {}
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
            assert (await client.get("/health")).status_code == 200
        assert server.output.count("Traceback") == 0, server.output[-6000:]


def test_a_head_without_an_end_is_hung_up_on(agent_file: Path) -> None:
    """It is not kept in memory for as long as it grows."""
    with running(*command(agent_file)) as server, connected(server) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(HEAD + b"x: ")
        for _ in range(64):
            sock.sendall(b"a" * 16_384)
        assert sock.recv(100).startswith(b"HTTP/1.1 400")


ONE_STREAM = """
from legato import Legato

app = Legato("memory:", heartbeat=3600.0, max_streams=1)

@app.agent
async def agent(turn):
    yield "Hello."
"""


async def test_a_reader_that_leaves_behind_another_request_has_left(tmp_path: Path) -> None:
    """A request that waits on the same connection does not keep its stream open."""
    file = tmp_path / "one.py"
    file.write_text(ONE_STREAM)
    with running("legato", "serve", str(file), "--port", "0") as server:
        async with asyncio.timeout(30), httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
            session = (await client.post("/api/sessions", json={})).json()["id"]
            target = f"/stream?sessionId={session}"
            with connected(server) as sock:
                stream, other = (f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in (target, "/health"))
                sock.sendall(f"{stream}{other}".encode())
                assert sock.recv(100).startswith(b"HTTP/1.1 200")
            while (await client.head(target)).status_code == 429:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_connection_goes_on_after_a_stream_that_has_ended(tmp_path: Path) -> None:
    """With what was asked behind it, and what is asked later; unless it is to be closed."""
    file = tmp_path / "one.py"
    file.write_text(ONE_STREAM)
    body = json.dumps({"model": "agent", "input": "hi", "stream": True})
    head = f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    other = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running("legato", "serve", str(file), "--port", "0") as server:
        for asked, answers in ((f"{head}\r\n{body}{other}", 2), (f"{head}\r\n{body}", 1)):
            with connected(server) as sock:
                sock.sendall(asked.encode())
                got = until(sock, lambda got, answers=answers: got.count(b"HTTP/1.1 200") == answers and ended(got))  # type: ignore[misc]
                assert got.index(b"data: [DONE]") < got.index(b"\r\n0\r\n\r\n")
                sock.sendall(other.encode())
                got = until(sock, lambda got: b'"status"' in got)
                assert got.startswith(b"HTTP/1.1 200")
        with connected(server) as sock:
            sock.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
            assert until(sock, lambda got: False).endswith(b"\r\n0\r\n\r\n")


def ended(got: bytes) -> bool:
    """Whether the stream has its end, and what comes behind it is whole."""
    _, end, behind = got.partition(b"\r\n0\r\n\r\n")
    return bool(end) and (not behind or behind.endswith(b"}"))


def until(sock: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    """What comes until it is enough, or all of it."""
    got = b""
    while not enough(got) and (more := sock.recv(65_536)):
        got += more
    return got


def connected(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def test_a_port_in_use_is_said_so() -> None:
    """With the host and the port."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressTaken, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)


COUNTING = """
import asyncio, os, socket
from legato import Legato
from legato.server.serve import ACCEPTS, listen, serve

class Counting(Legato):
    round, rounds = 0, []

    async def __call__(self, scope, receive, send):
        await super().__call__(scope, receive, send)
        if scope["type"] == "http":
            self.rounds.append(self.round)
        if len(self.rounds) == ACCEPTS:
            print(len(set(self.rounds)), ACCEPTS, flush=True)
            os._exit(0)

    def count(self):
        self.round += 1
        asyncio.get_running_loop().call_soon(self.count)

app = Counting("memory:", agents=[lambda turn: "hello"])
listener = listen("127.0.0.1", 0)
clients = [socket.create_connection(listener.getsockname()) for _ in range(ACCEPTS)]
for client in clients:
    client.sendall(b"GET /health HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n")
serve(app, listener, on_ready=app.count)
"""


def test_connections_are_accepted_many_at_a_time() -> None:
    """In a loop that has much to do in each of its rounds, nobody waits for as many rounds as there are others."""
    script = [sys.executable, "-c", COUNTING]
    rounds, connections = map(int, subprocess.run(script, capture_output=True, check=True, timeout=60).stdout.split())
    assert rounds < connections / 2


def test_who_comes_back_to_a_server_that_stops_is_sent_elsewhere(tmp_path: Path) -> None:
    """A stream that ends with the server ends after its port does, however long another one takes nothing: else a
    proxy would lead its reader here again, to the same end."""
    (tmp_path / "long.py").write_text("def agent(turn):\n    return 'x' * 1_000_000\n")
    with (
        running(*command(tmp_path / "long.py", "--grace", "0")) as server,
        httpx2.Client(base_url=server.url) as client,
    ):
        session = client.post("/api/sessions", json={}).json()["id"]
        for _ in range(4):
            run = client.post(f"/api/sessions/{session}/messages", json={"text": "go"}).json()["runId"]
            assert client.get(f"/v1/responses/resp_{run}?stream=true", timeout=60).status_code == 200
        url = urlsplit(server.url)
        assert url.port is not None
        with socket.socket() as stalled, contextlib.ExitStack() as streams:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect((url.hostname, url.port))
            stalled.sendall(
                f"GET /stream?sessionId={session}&client=legato&from=start HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            stalled.recv(1, socket.MSG_PEEK)
            reader = streams.enter_context(client.stream("GET", f"/stream?sessionId={session}&from=tail"))
            lines = reader.iter_lines()
            next(lines)
            server.process.terminate()
            for _ in lines:  # to its end
                pass
            assert server.process.poll() is None
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((url.hostname or "", url.port), timeout=5)
        assert server.stopped() == 0


@pytest.mark.parametrize("status", [200, 404])
async def test_a_request_is_let_go_without_the_collector(status: int) -> None:
    """It and its line know each other; when it has been answered, nothing of it is left, be its body read or not."""
    kept: list[weakref.ref[object]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(weakref.ref(scope["extensions"][LINE].send.__self__))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HTTPProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
    gc.collect()
    gc.disable()
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(3):
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
        async with asyncio.timeout(30):
            while state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)
            while any(ref() is not None for ref in kept):  # noqa: ASYNC110  # the last task has its last step
                await asyncio.sleep(0)
        assert len(kept) == 3
    finally:
        gc.enable()
        server.close()


def sent_while_nobody_reads(listener: socket.socket) -> int:
    """Bytes that can be written to a connection whose other end reads nothing, with next to no room of its own."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        server, _ = accepted(listener)
        with server:
            server.setblocking(False)
            sent, still = 0, 0
            while still < 5:  # what is on its way when the buffer is full makes room once more
                try:
                    sent += server.send(b"x" * 65_536)
                    still = 0
                except BlockingIOError:
                    still += 1
                    time.sleep(0.02)
            return sent


def accepted(listener: socket.socket) -> tuple[socket.socket, Any]:
    while True:
        with contextlib.suppress(BlockingIOError):
            return listener.accept()
        time.sleep(0.001)


def seconds_for(listener: socket.socket, size: int) -> float:
    """How long so many bytes take to a reader who reads as fast as it can."""
    with socket.create_connection(listener.getsockname()) as client:
        server, _ = accepted(listener)
        with server:
            server.setblocking(True)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer = threading.Thread(target=server.sendall, args=(b"x" * size,))
            began = time.perf_counter()
            writer.start()
            while size:
                size -= len(client.recv(65_536))
            writer.join()
            return time.perf_counter() - began


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="Needs Linux or macOS, for TCP_NOTSENT_LOWAT.")
def test_what_the_kernel_holds_for_a_stalled_reader_is_bounded_and_a_fast_one_is_not_held_up() -> None:
    """A connection holds little for who does not read, and carries as much as one without any bound."""
    size = 32_000_000
    with socket.create_server(("127.0.0.1", 0)) as plain, listen("127.0.0.1", 0) as ours:
        assert sent_while_nobody_reads(ours) <= 65_536 < sent_while_nobody_reads(plain)
        without = min(seconds_for(plain, size) for _ in range(3))
        assert min(seconds_for(ours, size) for _ in range(3)) < 12 * without
