"""Behind nginx, HAProxy and Caddy, as docs/deploy.md says and as others have them: streams pass as they are written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser

from browser import browsing
from driving import data
from fronts import BUFFERING, COMPRESSING, DOCUMENTED, client, front, until_ready
from legato.sse import Decoder, SSEMessage
from legato.torture.ports import free_port
from processes import Server, in_time, running

KINDS = (*DOCUMENTED, BUFFERING, *COMPRESSING)

AGENT = '''
import asyncio
from pathlib import Path


async def agent(turn):
    """Says a word, and the next one only when the last has been read on the other side of the proxy."""
    if turn.message.text == "ask":
        for word in ("one ", "two ", "three "):
            yield word
            await turn.ask_permission("Next", "Go on?", timeout=None)
    else:
        yield "one "
        while not Path(turn.message.text).exists():
            await asyncio.sleep(0.01)
        yield "two "
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    file = folder / "word.py"
    file.write_text(AGENT)
    command = ("legato", "serve", str(file), "--port", "0", "--allow-host", "chat.example.com")
    with running(*command, "--store", f"sqlite:///{folder / 'log.db'}") as server:
        yield server


def place(server: Server) -> str:
    return server.url.removeprefix("http://")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def proxied(kind: str, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client on the far side of a proxy, one at a time."""
    with front(kind, tmp_path_factory.mktemp("front"), place(server)) as address, client(address) as there:
        until_ready(there)
        yield there


def received(response: httpx2.Response) -> Iterator[SSEMessage]:
    decoder = Decoder()
    for chunk in in_time(response.iter_bytes()):
        yield from decoder.feed(chunk)


def through(client: httpx2.Client, session: str, last: str | None = None) -> Any:
    headers = {"accept-encoding": "gzip"} | ({"last-event-id": last} if last else {})
    return client.stream("GET", f"/stream?sessionId={session}&client=legato", headers=headers)


def test_a_stream_passes_event_by_event_and_resumes(proxied: httpx2.Client) -> None:
    """The agent waits until each word has been read: a proxy that held one back would hold the test (to its bound)."""
    client = proxied
    session = client.post("/api/sessions", json={}).json()["id"]
    with through(client, session) as response:
        messages = received(response)
        assert next(messages).event == "connected"  # at once: nothing has been said yet
        sent = client.post(f"/api/sessions/{session}/messages", json={"text": "ask"}).json()
        words = []
        last = ""
        for message in messages:
            if message.event == "content":
                words.append(data(message)["content"])
            elif message.event == "permission":
                last = message.id or ""
                if len(words) == 2:
                    break
                client.post(f"/api/permissions/{data(message)['id']}/grant")
    asked = data(message)["id"]
    with through(client, session, last) as response:
        messages = received(response)
        assert next(messages).id == last
        client.post(f"/api/permissions/{asked}/grant")
        for message in messages:
            if message.event == "content":
                words.append(data(message)["content"])
            elif message.event == "permission":
                client.post(f"/api/permissions/{data(message)['id']}/grant")
            elif message.event == "complete":
                break
    assert ["one ", "two ", "three "] == words
    assert sent["runId"] == data(message)["runId"]


def of_mix(client: httpx2.Client, text: str) -> tuple[str, str, Any]:
    session = client.post("/api/sessions", json={}).json()["id"]
    client.post(f"/api/sessions/{session}/messages", json={"text": text})
    return "GET", f"/stream?sessionId={session}&from=start", None


def of_responses(client: httpx2.Client, text: str) -> tuple[str, str, Any]:
    return "POST", "/v1/responses", {"input": text, "stream": True}


def of_a_response_that_was_begun(client: httpx2.Client, text: str) -> tuple[str, str, Any]:
    begun = client.post("/v1/responses", json={"input": text, "background": True}).json()
    return "GET", f"/v1/responses/{begun['id']}?stream=true", None


def of_chat(client: httpx2.Client, text: str) -> tuple[str, str, Any]:
    return (
        "POST",
        "/v1/chat/completions",
        {"model": "agent", "stream": True, "messages": [{"role": "user", "content": text}]},
    )


def of_deva(client: httpx2.Client, text: str) -> tuple[str, str, Any]:
    thread = client.post("/api/sdk/chat", json={}).json()["id"]
    message = client.post(f"/api/sdk/chat/{thread}/messages", json={"text": text}).json()["id"]
    return "POST", f"/api/sdk/chat/{thread}/messages/{message}/query/stream", None


@pytest.mark.parametrize("begin", [of_mix, of_responses, of_a_response_that_was_begun, of_chat, of_deva])
@pytest.mark.parametrize("coding", ["gzip", "zstd, br, gzip", "identity"])
def test_no_stream_is_held(begin: Any, coding: str, kind: str, proxied: httpx2.Client, tmp_path: Path) -> None:
    """Whatever its first bytes are, and however the proxy comes to read them: by chance, so several times. What is held
    would be held to the answer's end, and that comes when its first word has been read."""
    for number in range(5):
        file = tmp_path / str(number)
        method, path, body = begin(proxied, str(file))
        with proxied.stream(method, path, json=body, headers={"accept-encoding": coding}, timeout=60) as response:
            assert response.status_code == 200
            if kind != BUFFERING:  # which does not know no-transform, and flushes
                assert response.headers.get("content-encoding", "identity") == "identity"
            text = ""
            for piece in in_time(response.iter_text()):
                text += piece
                if "one " in text:
                    file.touch()
                if "two " in text:
                    break


@pytest.mark.parametrize("field", ["x-forwarded-for", "forwarded", "via"])
def test_only_proxies_are_told_that_nothing_is_encoded(field: str, server: Server) -> None:
    """HTTP would rather have no Content-Encoding where there is none."""
    with httpx2.Client(base_url=server.url, trust_env=False) as direct:
        session = direct.post("/api/sessions", json={}).json()["id"]
        with through(direct, session) as response:
            assert "content-encoding" not in response.headers
        url = f"/stream?sessionId={session}"
        with direct.stream("GET", url, headers={field: "for=10.0.0.1"}) as response:
            assert response.headers["content-encoding"] == "identity"


def test_a_stream_of_which_nothing_has_been_said_begins_at_once(server: Server, tmp_path: Path) -> None:
    """With a comment: an answer that waits has nothing else to say, and some proxies hold a head without a body."""
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as direct:
        for begin in (of_responses, of_chat, of_deva):
            file = tmp_path / begin.__name__
            method, path, body = begin(direct, str(file))
            with direct.stream(method, path, json=body) as response:
                assert next(response.iter_raw()).startswith(b":\n")
            file.touch()
        response = of_a_response_that_was_begun(direct, str(tmp_path / "resumed"))
        url = f"{response[1]}&starting_after=0"
        with direct.stream("GET", url, headers={"via": "1.1 proxy"}) as resumed:
            assert next(resumed.iter_raw()).startswith(b":\n")
        (tmp_path / "resumed").touch()


@pytest.mark.parametrize("kind", ["nginx", "HAProxy"], scope="function")  # which take any name that is asked for
@pytest.mark.parametrize("where", ["chat.example.com", "chat.example.com:8443"])
def test_the_servers_own_page_may_send(kind: str, where: str, server: Server, tmp_path: Path) -> None:
    """Whatever port it was opened at; another site's page may not, and no other name is answered."""
    with front(kind, tmp_path, place(server)) as address, client(address) as there:
        until_ready(there)
        for host, origin, status in (
            (where, f"https://{where}", 201),
            (where, "https://evil.test", 403),
            (where, "https://chat.example.com:9443", 403),
            ("evil.test", "https://evil.test", 421),
        ):
            answer = there.post("/api/sessions", json={}, headers={"host": host, "origin": origin})
            assert answer.status_code == status


# While the server is away ---------------------------------------------------------------------------------------------

AWAY = [
    # method, path, Accept, whether it is told to come back
    ("GET", "/stream?sessionId=s", "text/event-stream", True),
    ("GET", "/api/sdk/anything", "text/event-stream", True),
    ("GET", "/v10/stream", "text/event-stream", True),
    ("GET", "/v1/responses/r?stream=true", "text/event-stream", False),
    ("POST", "/v1/responses", "text/event-stream", False),
    ("POST", "/api/sessions", "text/event-stream", False),
    ("GET", "/stream?sessionId=s", "*/*", False),
    ("GET", "/stream?sessionId=s", "application/json", False),
    ("GET", "/api/sessions", "application/json", False),
    ("DELETE", "/api/sessions/s", "*/*", False),
]


@pytest.mark.parametrize("kind", DOCUMENTED, scope="function")
def test_only_an_eventsource_is_told_to_come_back(kind: str, tmp_path: Path) -> None:
    """All others hear that the server is away; what takes a stream's end for an answer's is told no end."""
    with front(kind, tmp_path, f"127.0.0.1:{free_port()}") as address:
        with contextlib.ExitStack() as stack:
            there = stack.enter_context(client(address))
            if kind == "Caddy":  # which waits: asked all at once
                pool = stack.enter_context(ThreadPoolExecutor(len(AWAY)))
                answers = list(pool.map(lambda row: there.request(row[0], row[1], headers={"accept": row[2]}), AWAY))
            else:
                answers = [there.request(row[0], row[1], headers={"accept": row[2]}) for row in AWAY]
        for row, answer in zip(AWAY, answers, strict=True):
            if row[3]:
                assert (answer.status_code, answer.text) == (200, ":"), row
                assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
            else:
                assert answer.status_code in (502, 503), row


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.mark.parametrize("kind", DOCUMENTED, scope="function")
def test_a_browsers_eventsource_outlives_a_deploy(kind: str, tmp_path: Path, chromium: Browser) -> None:
    """It is at the proxy while nobody is behind it, and does not give up."""
    agent = tmp_path / "word.py"
    agent.write_text('async def agent(turn):\n    yield f"<{turn.message.text}>"\n')
    port = free_port()
    command = ("legato", "serve", str(agent), "--port", str(port), "--store", f"sqlite:///{tmp_path / 'log.db'}")
    with front(kind, tmp_path, f"127.0.0.1:{port}") as address, client(address) as there:
        with running(*command) as server:
            until_ready(there)
            session = there.post("/api/sessions", json={}).json()["id"]
            page = chromium.new_context(ignore_https_errors=True, bypass_csp=True).new_page()
            page.goto(f"{address}/docs")
            page.evaluate(
                """(session) => {
                    window.words = [];
                    window.opened = 0;
                    window.lost = 0;
                    const stream = window.stream = new EventSource(`/stream?sessionId=${session}&client=legato`);
                    stream.addEventListener("content", (event) => words.push(JSON.parse(event.data).content));
                    stream.addEventListener("connected", () => opened++);
                    stream.addEventListener("error", () => lost++);
                }""",
                session,
            )
            page.wait_for_function("window.opened === 1")
            there.post(f"/api/sessions/{session}/messages", json={"text": "one"})
            page.wait_for_function("words.includes('<one>')")
            server.process.terminate()
            server.stopped()
        # The end of the stream is one, what the proxy says to its next attempt is another (Caddy says it after 5 s).
        page.wait_for_function("lost >= 2 || stream.readyState === 2", timeout=60_000)
        assert page.evaluate("stream.readyState") != 2, "The EventSource has given up."
        with running(*command):
            until_ready(there)
            there.post(f"/api/sessions/{session}/messages", json={"text": "two"})
            page.wait_for_function("words.length === 2", timeout=60_000)
        assert page.evaluate("words") == ["<one>", "<two>"]
        page.context.close()
