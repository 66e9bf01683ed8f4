"""Legato inside other applications: the examples as they are, mounts, middleware, and what is forgotten easily."""

from __future__ import annotations

import asyncio
import importlib
import re
import signal
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount

from driving import Chat, data, decoded, echo, ends
from legato.errors import InvalidInput
from legato.server.app import Legato
from legato.server.pages import WEB
from legato.testing import Driver
from processes import EXAMPLES, bounded, running

EXAMPLE_APPS = [("app_uvicorn:app", ""), ("app_fastapi:api", "/chat"), ("app_starlette:site", "/chat")]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports one of the examples anew, with a store in memory."""
    monkeypatch.setenv("LEGATO_STORE", "memory:")
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name: str) -> Any:
        module, _, attribute = name.partition(":")
        return getattr(importlib.reload(importlib.import_module(module)), attribute)

    return load


async def turn(driver: Driver, prefix: str) -> list[str]:
    """One whole turn under a prefix: the names of its events."""
    session = (await driver.request("POST", f"{prefix}/api/sessions", json={})).json()["id"]
    sent = await driver.request("POST", f"{prefix}/api/sessions/{session}/messages", json={"text": "la la"})
    assert sent.status == 202
    names = []
    async with asyncio.timeout(30), driver.stream(f"{prefix}/stream?sessionId={session}&from=start") as stream:
        async for message in stream.messages():
            names.append(message.event)
            if message.event == "complete":
                assert data(message)["content"].split()[-2:] == ["la", "la"]
                break
    return names


WHOLE = ["connected", "session_created", "user_message_created", "content", "content", "complete"]


@pytest.mark.parametrize(("name", "prefix"), EXAMPLE_APPS)
async def test_an_example_answers(example: Any, name: str, prefix: str) -> None:
    """In this process, with its lifespan, under its prefix."""
    async with Driver(example(name)) as driver:
        assert await turn(driver, prefix) == WHOLE


@pytest.mark.parametrize(("name", "prefix"), EXAMPLE_APPS)
def test_an_example_runs_under_uvicorn_and_stops_with_a_stream_open(name: str, prefix: str, tmp_path: Path) -> None:
    """SIGTERM ends the stream, and then the server: uvicorn alone would wait for ever for the stream to end."""
    env = {"LEGATO_STORE": f"sqlite:///{tmp_path / 'log.db'}"}
    with (
        running("uvicorn", name, "--port", "0", cwd=EXAMPLES, env=env) as server,
        httpx2.Client(base_url=server.url + prefix + "/", timeout=60, trust_env=False) as client,
    ):
        session = client.post("api/sessions", json={}).json()["id"]
        client.post(f"api/sessions/{session}/messages", json={"text": "la la"})
        body = b""
        with (
            bounded(server.process, "end of the stream", lambda: body),
            client.stream("GET", f"stream?sessionId={session}&from=start") as response,
        ):
            for chunk in response.iter_raw():  # a body without its proper end would raise here
                body += chunk
                if b"event: complete" in chunk:
                    server.process.send_signal(signal.SIGTERM)
        assert [message.event for message in decoded(body)] == WHOLE
        assert server.stopped() in (0, -signal.SIGTERM)
        assert "Traceback" not in server.output


def test_the_minimal_agent_is_served(tmp_path: Path) -> None:
    """`legato serve agent.py`, and one turn of it."""
    store = f"sqlite:///{tmp_path / 'log.db'}"
    with (
        running("legato", "serve", "agent.py", "--port", "0", "--store", store, cwd=EXAMPLES) as server,
        httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        session = client.post("/api/sessions", json={}).json()["id"]
        answer = client.post(f"/api/sessions/{session}/messages?client=python-0.6.4", json={"text": "a b"})
        assert answer.json()["assistantResponse"] == "1. a\n2. b\nThat makes 2."
        server.process.send_signal(signal.SIGINT)
        assert server.stopped() == 0


# Mounting -------------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page loads and links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value and value[0] != "#"]


def test_agents_are_a_list() -> None:
    """One agent alone, as everybody gives it once, is refused by name."""
    with pytest.raises(InvalidInput, match="agents must be a list of agents, got function"):
        Legato("memory:", agents=echo)  # type: ignore[arg-type]


async def test_pages_and_what_they_load_are_found_under_a_prefix() -> None:
    """Every link of the pages is relative, and the page without its slash goes to the one with it."""
    app = Legato("memory:", agents=[echo])
    async with Driver(Starlette(routes=[Mount("/chat", app)], lifespan=app.lifespan)) as driver:
        redirected = await driver.request("GET", "/chat")
        assert redirected.status in (301, 302, 307, 308)
        assert redirected.headers["location"].endswith("/chat/")
        for page in ("/chat/", "/chat/docs"):
            answer = await driver.request("GET", page)
            assert answer.headers["content-type"].startswith("text/html")
            links = Links()
            links.feed(answer.text)
            assert links.found
            for link in links.found:
                assert not link.startswith(("/", "http:", "https:"))
                assert (await driver.request("GET", urljoin(page, link))).status == 200


def test_scripts_name_nothing_by_an_absolute_path() -> None:
    """Under a prefix such a request would miss."""
    for script in WEB.glob("*.js"):
        absolute = re.findall(r"""(?:from|import|fetch\(|url\(|EventSource\()\s*["'`](/[^"'`]*)""", script.read_text())
        assert absolute == [], script.name


async def test_everything_works_under_a_prefix() -> None:
    """The document, errors, methods that are not there, preflights, and a resume."""
    app = Legato("memory:", agents=[echo])
    async with Driver(Starlette(routes=[Mount("/a/chat", app)], lifespan=app.lifespan)) as driver:
        assert (await driver.request("GET", "/a/chat/openapi.json")).json()["openapi"] == "3.2.0"
        assert (await driver.request("GET", "/a/chat/nope")).json()["error"]["reason"] == "no_such_route"
        assert (await driver.request("PUT", "/a/chat/stream")).status == 405
        preflight = {"origin": "http://localhost:1", "access-control-request-method": "GET"}
        assert (await driver.request("OPTIONS", "/a/chat/stream", headers=preflight)).status == 200
        created = await driver.request("POST", "/a/chat/api/sessions", json={})
        session = created.json()["id"]
        target = f"/a/chat/stream?sessionId={session}"
        async with asyncio.timeout(30), driver.stream(target, headers={"last-event-id": "1"}) as stream:
            assert decoded(await stream.read())[0].id == "1"
        assert (await driver.request("GET", created.headers["location"])).status == 200


async def test_the_same_application_may_be_behind_a_root_path() -> None:
    """A proxy that strips its prefix and tells it changes nothing for the application."""

    async def agent(turn: Any) -> AsyncIterator[str]:
        yield "la "
        await turn.stored()  # else what comes in the same round is one piece
        yield "la"

    app = Legato("memory:", agents=[agent])

    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        # As uvicorn --root-path /proxy does it: the path is given with the prefix in front.
        if scope["type"] == "http":
            scope = {**scope, "root_path": "/proxy", "path": "/proxy" + scope["path"]}
        await app(scope, receive, send)

    async with Driver(proxied) as driver:
        assert await turn(driver, "") == WHOLE


@pytest.mark.parametrize("outer", [FastAPI, Starlette])
async def test_a_mount_without_lifespan_says_what_is_missing(outer: Any) -> None:
    """Not an error of some inner part."""
    app = outer(routes=[Mount("/chat", Legato("memory:", agents=[echo]))])
    async with Driver(app) as driver:
        for target in ("/chat/health", "/chat/stream?sessionId=s", "/chat/"):
            answer = await driver.request("GET", target)
            assert answer.status == 500
            assert isinstance(answer.error, InvalidInput)  # in the server's log
            assert "lifespan=app.lifespan" in answer.error.message


async def test_two_applications_stand_side_by_side() -> None:
    """Each with a store of its own."""
    one, two = Legato("memory:", agents=[echo]), Legato("memory:", agents=[echo])
    routes = [Mount("/one", one), Mount("/two", two)]
    async with one.lifespan(), two.lifespan(), Driver(Starlette(routes=routes)) as driver:
        await driver.request("POST", "/one/api/sessions", json={})
        assert len((await driver.request("GET", "/one/api/sessions")).json()) == 1
        assert (await driver.request("GET", "/two/api/sessions")).json() == []


# Middleware -----------------------------------------------------------------------------------------------------------


class Nothing(BaseHTTPMiddleware):
    """The kind of middleware that wraps every response."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


MIDDLEWARE: list[tuple[Any, dict[str, Any]]] = [
    (GZipMiddleware, {"minimum_size": 0}),
    (Nothing, {}),
    (TrustedHostMiddleware, {"allowed_hosts": ["localhost"]}),
]


@pytest.mark.parametrize(("middleware", "options"), MIDDLEWARE)
async def test_middleware_does_not_hold_a_frame_back(middleware: Any, options: dict[str, Any]) -> None:
    """The first frame comes before anything else happens, each further one as it is stored, none compressed."""
    app = Legato("memory:", agents=[echo])
    async with Driver(middleware(app, **options)) as driver:
        chat = Chat(app, driver, (await driver.request("POST", "/api/sessions", json={})).json()["id"])
        async with asyncio.timeout(30), chat.stream(headers={"accept-encoding": "gzip"}) as stream:
            assert "content-encoding" not in stream.headers
            [first] = decoded(await stream.read())
            assert first.event == "connected"
            run = (await chat.send()).json()["runId"]
            async for message in stream.messages():
                if ends(run)(message):
                    break


@pytest.mark.parametrize(("middleware", "options"), MIDDLEWARE)
async def test_a_disconnect_is_seen_through_middleware(middleware: Any, options: dict[str, Any]) -> None:
    """No pump is left behind by a reader that has gone."""
    app = Legato("memory:", agents=[echo])
    async with Driver(middleware(app, **options)) as driver:
        chat = Chat(app, driver, (await driver.request("POST", "/api/sessions", json={})).json()["id"])
        async with asyncio.timeout(30), chat.stream() as stream:
            await stream.read()
            assert len(app.streams) == 1
        assert len(app.streams) == 0


async def test_answers_may_be_compressed() -> None:
    """It is only streams that must not be."""
    app = Legato("memory:", agents=[echo])
    async with Driver(GZipMiddleware(app, minimum_size=0)) as driver:
        answer = await driver.request("GET", "/openapi.json", headers={"accept-encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"


def test_the_examples_are_one_file_each() -> None:
    """Each says in its first lines how it is run."""
    for example_file in EXAMPLES.glob("*.py"):
        assert example_file.read_text().startswith('"""'), example_file.name


@pytest.mark.parametrize("prefix", ["", "/chat"])
@pytest.mark.parametrize("page", ["docs", "inspect", "openapi.json"])
async def test_a_slash_too_many_leads_to_the_page_wherever_it_is_served(prefix: str, page: str) -> None:
    """Under https behind a proxy, too: the way is told relative to the address that was asked for."""
    app = Legato("memory:", agents=[echo])
    outer = Starlette(routes=[Mount(prefix, app)]) if prefix else app
    async with app.lifespan(), Driver(outer, lifespan=False) as driver:
        answer = await driver.request("GET", f"{prefix}/{page}/")
        location = urljoin(f"https://example.com{prefix}/{page}/", answer.headers["location"])
        found = await driver.request("GET", location.removeprefix("https://example.com"))
        nowhere = await driver.request("GET", f"{prefix}/nothing/")

    assert answer.status == 308
    assert location == f"https://example.com{prefix}/{page}"
    assert found.status == 200
    assert nowhere.status == 404
