"""``Legato``, the ASGI application: agents, a store, a runner, the routes and the streams.

The streams are answered by plain ASGI code; everything else goes through a Starlette router. The application owns the
runner, and the runner outlives every request.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, overload
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from ..agent import Agent, AgentFunction, OnCrash
from ..dialect import mix, mix_api
from ..errors import InvalidInput, LegatoError
from ..execution import Limits
from ..log import Store
from ..run import Runner
from ..store import open_store
from ..tool import Tool
from . import markdown
from .deva import DevaRoutes, DevaStream
from .inspect import InspectRoutes
from .mix import MixRoutes
from .openapi import document
from .operation import Answer, Operation, Request, error_answer, path_within, respond, respond_error
from .responses import ResponsesRoutes
from .stream import Pump, Streams

logger = logging.getLogger("legato")

WEB = Path(__file__).parent.parent / "web"

LOCAL_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
"""Browser origins that may use the API by default, besides its own: pages on this machine."""

PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}

F = TypeVar("F", bound=AgentFunction)


class Legato:
    """An ASGI application that answers with your agents, durably.

    Run it with any ASGI server, or mount it: ``FastAPI(lifespan=app.lifespan)`` and ``api.mount("/chat", app)``.

    Args:
        store: a URL (``"sqlite:///chat.db"``, ``"memory:"``) or a ``Store``.
        agents: as ``Agent`` or plain functions; more can be added with ``@app.agent``. The first is the default.
        limits: of runs and messages.
        heartbeat: seconds of silence after which a stream says that it is alive. Proxies cut at 30 s and more.
        client: what to take a client for that does not tell its version: ``"python-0.8.1"`` ...
        cors: origins of other sites' pages that may call the API, ``"*"`` for all; pages on this machine always may.
        hosts: Host names that are answered; None for all. Guards a server on loopback against DNS rebinding.
        max_streams, max_streams_per_session: bounds of open streams.
        max_body: bytes of a request's body.
        grace: seconds that runs have to finish when the application is shut down.
        page: whether to serve the chat page at ``/``, the inspector with its API, and the API's pages.
    """

    def __init__(
        self,
        store: str | Store = "sqlite:///legato.db",
        *,
        agents: Iterable[Agent | AgentFunction] = (),
        limits: Limits | None = None,
        heartbeat: float = 15.0,
        client: str = "python-0.8.1",
        cors: str | Sequence[str] | None = None,
        hosts: str | Sequence[str] | None = None,
        max_streams: int = 10_000,
        max_streams_per_session: int = 2_000,
        max_body: int = 4_194_304,
        grace: float = 25.0,
        page: bool = True,
    ) -> None:
        self.agents: dict[str, Agent] = {}
        self.tools: dict[str, Tool] = {}
        self.streams = Streams(total=max_streams, per_session=max_streams_per_session)
        self.grace = grace
        self.drain_on_signal = True
        """Whether SIGTERM and SIGINT end the streams; the server that runs the application may do it itself."""
        self.source = store
        """The store, or its URL; may be changed until ``start``, as ``hosts`` and ``grace`` may."""
        self._limits = limits or Limits()
        self._heartbeat = heartbeat
        self._default = mix.profile(client)
        self._cors = _names(cors) or ()
        self.hosts = _names(hosts)
        self._max_body = max_body
        self._page = page
        self._store: Store | None = None
        self._runner: Runner | None = None
        self._app: ASGIApp | None = None
        self._restore_signals: Callable[[], None] = lambda: None
        for agent in agents:
            self._add(agent if isinstance(agent, Agent) else Agent(agent))

    # Agents -----------------------------------------------------------------------------------------------------------

    @overload
    def agent(self, function: F) -> F: ...
    @overload
    def agent(self, *, name: str | None = None, on_crash: OnCrash = "fail") -> Callable[[F], F]: ...

    def agent(
        self, function: F | None = None, *, name: str | None = None, on_crash: OnCrash = "fail"
    ) -> F | Callable[[F], F]:
        """Register a function as an agent; a decorator, with or without arguments. See ``Agent``."""
        if function is not None:
            self._add(Agent(function, name=name, on_crash=on_crash))
            return function

        def register(function: F) -> F:
            self._add(Agent(function, name=name, on_crash=on_crash))
            return function

        return register

    def model(self, spec: str, *, first: bool = False, **options: Any) -> Agent:
        """Add an agent that asks a model, with this application's tools.

        Args:
            spec: ``"openai:gpt-5-mini"``, ``"ollama:llama3.2"`` ..., see ``agents.model.Model.read``.
            first: make it the default agent.
            options: ``base_url``, ``api_key`` and ``background`` of ``Model.read``; all else of ``model_agent``.

        Raises:
            InvalidInput: there is no such model, no key for it, or an agent of that name.
        """
        # Here, since a client of a model is nothing that every server needs.
        from ..agents.model import Model
        from ..agents.upstream import model_agent

        chosen = {name: options.pop(name) for name in ("base_url", "api_key", "background") if name in options}
        agent = model_agent(Model.read(spec, **chosen), **{"tools": self.tools, **options})
        self._add(agent)
        if first:
            self.agents = {agent.name: agent, **self.agents}
        return agent

    def tool(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register a function as a tool for the agents of ``model``; a decorator. See ``Tool`` for the arguments.

        Raises:
            InvalidInput: the function cannot be offered to a model, or there is a tool of that name.
        """
        if function is None:
            return lambda function: self.tool(function, **options)
        tool = function if isinstance(function, Tool) else Tool(function, **options)
        if tool.name in self.tools:
            raise InvalidInput(f"There is a tool {tool.name!r} already; give this one another name.")
        self.tools[tool.name] = tool
        return tool

    def _add(self, agent: Agent) -> None:
        if agent.name in self.agents:
            raise InvalidInput(f"There is an agent {agent.name!r} already; give this one another name.")
        self.agents[agent.name] = agent

    # Life -------------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The open store."""
        if self._store is None:
            raise InvalidInput(
                "Legato has not been started. Under an ASGI server this happens by itself; when it is mounted in "
                "another application, give that one lifespan=app.lifespan."
            )
        return self._store

    @property
    def runner(self) -> Runner:
        """The runner, once started."""
        self.store  # noqa: B018  # for its error
        assert self._runner is not None
        return self._runner

    async def start(self) -> None:
        """Open the store, take up what was left, be ready for requests. Idempotent."""
        if self._store is not None:
            return
        if not self.agents:
            raise InvalidInput("Legato needs an agent: decorate a function with @app.agent, or name an app.model(...).")
        store = open_store(self.source) if isinstance(self.source, str) else self.source
        await store.open()
        self._store = store
        self._runner = Runner(store, self.agents, limits=self._limits)
        operations = [
            *MixRoutes(store, self._runner, self._default).operations(),
            *DevaRoutes(store, self._runner).operations(),
        ]
        if self._page:
            operations += InspectRoutes(store, self._runner, self.streams).operations()
        self._app = self._build(operations)
        await self._runner.start()
        self._listen_for_shutdown()

    async def stop(self) -> None:
        """End all streams, let runs finish for ``grace`` seconds, close the store. Idempotent."""
        if self._store is None or self._runner is None:
            return
        self._restore_signals()
        await self._runner.stop(self.grace)
        await self.streams.close()
        await self._store.close()
        self._store = None
        for agent in self.agents.values():
            if agent.on_stop is not None:
                await agent.on_stop()

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """For an application that mounts this one: ``FastAPI(lifespan=app.lifespan)``."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    def _listen_for_shutdown(self) -> None:
        # An ASGI server that is told to stop waits for open streams to end, and tells nobody: it would wait for ever.
        # So the streams end at the signal, before the server's own handler sees it.
        if not self.drain_on_signal or threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def on_signal(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(self.streams.drain)
            handler = previous[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        def restore() -> None:
            for number, handler in previous.items():
                if signal.getsignal(number) is on_signal:
                    signal.signal(number, handler)

        for number, handler in previous.items():
            if callable(handler) and handler is not signal.default_int_handler:
                signal.signal(number, on_signal)
        self._restore_signals = restore

    # Requests ---------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # the server makes it a 403: the caller's doing, not a failure
        elif scope["type"] != "http":
            raise InvalidInput(f"Legato speaks HTTP, got a {scope['type']} connection.")
        elif self._app is None:
            self.store  # noqa: B018  # for its error
        else:
            await self._app(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except LegatoError as exc:
            await send({"type": "lifespan.startup.failed", "message": exc.message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _build(self, operations: Sequence[Operation]) -> ASGIApp:
        # One route for each path, so that a 405 names all of its methods.
        by_path: dict[str, dict[str, Operation]] = {}
        for operation in operations:
            by_path.setdefault(operation.path, {})[operation.method] = operation
        routes: list[BaseRoute] = [Route(path, self._endpoint(o), methods=list(o)) for path, o in by_path.items()]
        responses = ResponsesRoutes(
            self.store, self.runner, self.streams, heartbeat=self._heartbeat, max_body=self._max_body
        )
        if self._page:
            routes += self._pages([*operations, *responses.operations()])
        inner = Starlette(
            routes=routes,
            exception_handlers={LegatoError: _on_error, HTTPException: _on_http_error, Exception: _on_crash},
        )

        answers = DevaStream(self.store, self.runner, self.streams, heartbeat=self._heartbeat)

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            # Streams go past the router: each of its layers would cost a call for every event of every reader.
            path = path_within(scope)
            if path == "/stream":
                await self._stream(scope, receive, send)
            elif answers.serves(path):
                await answers(scope, receive, send)
            elif responses.serves(path):
                await responses(scope, receive, send)
            else:
                await inner(scope, receive, send)

        cors = CORSMiddleware(
            route,
            allow_origins=self._cors,
            allow_origin_regex=LOCAL_ORIGINS,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # Last-Event-ID, Idempotency-Key, what SDKs add of their own; the origin decides
            expose_headers=["Legato-Cursor", "Legato-Repeated", "Retry-After", "Location"],
        )
        return _Guard(cors, self._cors, self.hosts)  # outermost: it looks at preflights, too

    def _endpoint(self, operations: Mapping[str, Operation]) -> Callable[[HTTPRequest], Any]:
        async def endpoint(http: HTTPRequest) -> Response:
            operation = operations["GET" if http.method == "HEAD" else http.method]
            answer: Answer = await operation.handler(Request(http, self._max_body))
            return respond(answer)

        return endpoint

    def _pages(self, operations: Sequence[Operation]) -> list[BaseRoute]:
        described = document(operations)

        def page(name: str) -> Callable[[HTTPRequest], Any]:
            async def endpoint(http: HTTPRequest) -> Response:
                return FileResponse(WEB / name, headers=PAGE_HEADERS)

            return endpoint

        async def openapi(http: HTTPRequest) -> Response:
            return Response(msgspec.json.encode(described), media_type="application/json")

        async def rendering(http: HTTPRequest) -> Response:
            body = await Request(http, self._max_body).body(markdown.RenderRequest)
            return respond(Answer(200, await markdown.answer(body)))

        return [
            Route("/", page("index.html")),
            Route("/docs", page("docs.html")),
            Route("/inspect", page("inspect.html")),
            Route("/openapi.json", openapi),
            Route("/web/markdown", rendering, methods=["POST"]),
            Mount("/web", StaticFiles(directory=WEB)),
        ]

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        query = dict(parse_qsl(scope["query_string"].decode("ascii", "replace"), keep_blank_values=True))
        http = HTTPRequest(scope)
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise HTTPException(405, headers={"allow": "GET, HEAD"})
            pump, first, head = await self._open_stream(query, headers)
        except HTTPException as exc:
            await (await _on_http_error(http, exc))(scope, receive, send)
            return
        except LegatoError as exc:
            await (await _on_error(http, exc))(scope, receive, send)
            return
        except Exception as exc:
            await (await _on_crash(http, exc))(scope, receive, send)
            raise  # for the server's log
        if scope["method"] == "HEAD":
            pump.end()
        await self.streams.run(pump, first, head, receive, send)

    async def _open_stream(
        self, query: Mapping[str, str], headers: Headers
    ) -> tuple[Pump, bytes, list[tuple[bytes, bytes]]]:
        opening = mix.open_stream(query, headers.get("last-event-id"))
        profile = mix.negotiate(headers.get("user-agent", ""), query.get("client"), self._default)
        store, session = self.store, opening.session
        info = await store.info(session)
        after, exact = mix.position(opening, info)
        self.streams.admit(session)
        pump = Pump(
            store,
            session,
            after,
            encode=lambda event: mix.encode(event, session, profile),
            heartbeat=mix.heartbeat,
            interval=self._heartbeat,
            dialect=f"mix/{profile.name}",
        )
        # A delay of its own for each reader, so that after a restart they do not all come back at once.
        retry = random.randint(1000, 3000)  # noqa: S311
        first = mix.connected(session, after, exact=exact, info=info, retry=retry)
        return pump, first, [(b"legato-cursor", b"exact" if exact else b"reset")]


def _names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """One name is a list of one: a string is a sequence, too, but of letters."""
    return (given,) if isinstance(given, str) else None if given is None else tuple(given)


class _Guard:
    """Refuses what a foreign page or a rebound name sends: checks Host and Origin of every request."""

    def __init__(self, app: ASGIApp, origins: Sequence[str], hosts: Sequence[str] | None) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        host = headers.get("host", "").lower()
        if self._hosts is not None and re.sub(r":\d+$", "", host) not in self._hosts:
            return error_answer(
                421,
                mix_api.error_response(
                    421, f"This server is not {host[:200]!r}; see --allow-host.", "host_not_allowed"
                ),
            )
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin in self._origins or re.fullmatch(LOCAL_ORIGINS, origin):
            return None
        own = {host, headers.get("x-forwarded-host", "").lower()} - {""}
        if re.sub(r"^https?://", "", origin.lower()) in own:
            return None
        return error_answer(
            403,
            mix_api.error_response(
                403, f"Pages of {origin[:200]!r} may not use this server; see cors.", "origin_not_allowed"
            ),
        )


async def _on_error(http: HTTPRequest, exc: Exception) -> Response:
    assert isinstance(exc, LegatoError)
    if exc.status >= 500:
        logger.error("%s %s: %s", http.method, http.url.path, exc)
    return respond_error(exc)


async def _on_http_error(http: HTTPRequest, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    reason = {404: "no_such_route", 405: "method_not_allowed"}.get(exc.status_code, "http_error")
    message = f"{http.method} {http.url.path[:200]} is not part of this API; GET /openapi.json lists what is."
    answer = error_answer(exc.status_code, mix_api.error_response(exc.status_code, message, reason))
    answer.headers.update(exc.headers or {})
    return answer


async def _on_crash(http: HTTPRequest, exc: Exception) -> Response:
    return error_answer(500, mix_api.error_response(500, "The server failed; its log has the details.", "internal"))
