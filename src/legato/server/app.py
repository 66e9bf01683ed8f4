"""``Legato``, the ASGI application: agents, a store, a table of dialects, and the pages.

What it holds while it runs is its ``Life``, made in ``start`` and dropped in ``stop``; so it can be started again, also
on another event loop. The runner of a life outlives every request.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..agent import Agent, AgentFunction, OnCrash
from ..blobs import Outside
from ..bounds import Limits, tally
from ..caller import Caller, May, MayWithSession, Quota, may_on_open_server
from ..caller import may as may_what_is_theirs
from ..check import refused
from ..errors import Draining, InvalidInput, LegatoError, StoreLocked
from ..fault import contained
from ..log import Store
from ..retention import Retention
from ..run import Runner
from ..sessions import Sessions
from ..sharing import Shared
from ..store import open_store
from ..tool import Tool
from ..traces import Traces
from .adaptor import SEND_BODY, Adaptor, ApplicationStopped, StoreAwaited, respond_error
from .arguments import check
from .dialects import DIALECTS
from .guard import LOCAL_ORIGINS, Guard, origin_as_sent
from .inspect import Inspector
from .life import Life, Settings, nobody
from .listening import ListenWatch
from .operation import Absence, Dialect, NoSuchRoute, Operation
from .stream import Streams
from .traffic import Traffic

if TYPE_CHECKING:
    from ..archive import ArchiveCount
    from .connections import Connections
    from .metrics import Metrics
    from .sign_in import SignIn

logger = logging.getLogger("legato")

ON_STOP_SECONDS = 3.0
"""For which agents may let go of what they hold, once the application has stopped."""

LOOK_EVERY = 0.1
"""Seconds between two looks whether the store is free,"""
TELL_EVERY = 5.0
"""and between two lines in the log about that."""


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
        hosts: names that the server goes by, besides those of loopback and the address that a request came to; ``"*"``
            for any name. What is asked of another name is refused, so that none can be rebound to this server.
        max_streams, max_streams_per_session: bounds of open streams; and ``max_streams_per_owner`` of those of one
            signed-in subject, ``max_streams_per_address`` of those of one address where nobody is signed in.
        max_body: bytes of a request's body.
        traffic: what connections may take, in seconds and in bytes.
        grace: seconds that runs have to finish when the application is shut down.
        lease_ttl: seconds after which other nodes on the same store may take over what this one drove, once it is heard
            of no more. It says so three times within them.
        lock_wait: seconds for which a start waits while another process has the store's file open, as one that is
            about to stop has.
        page: whether to serve the chat page at ``/``, the inspector with its API, and the API's pages.
        dialects: rows for the table of dialects, besides those that every application speaks.
        auth: who asks, from a request, as a subject or a ``Caller`` or an awaitable of one; None, or whatever it
            raises, is 401. Or several such functions, of which the first that knows has its word. ``legato.auth`` has
            ready-made ones. What a caller creates is theirs. By default everybody is the same caller.
        identify: the same as an ASGI application's: from a scope, always a ``Caller`` or an awaitable of one; what it
            raises is the answer.
        may: what a caller may do to what is another's, ``lambda caller, session, action: bool``, see
            ``legato.caller.MayWithSession``; or by whose it is, see ``legato.caller.may``. By default, what they like
            to what is theirs; and the inspector is for everybody on an open server, and else for who has the scope
            ``admin``.
        shared: whose sessions are in a caller's lists besides their own, as far as ``may`` lets them read each: a
            function of the ``Caller``, which gives subjects, or an awaitable of them.
        traces: whether runs are traced, by the tracer provider of the process (``pip install 'legato[otel]'``).
        quota: your own limit of what a caller may begin, a coroutine function; see ``legato.caller.Quota``.
        retention: how long sessions are kept; by default for ever.
        blobs: where files that come in messages are if they are large: a URL (``"file:///var/lib/legato/blobs"``,
            ``"s3://bucket/prefix"``) or an ``Outside``; by default in the store, as the others are.

    Raises:
        Misconfigured: arguments are not what they must be: all of them are named.
        InvalidInput: both ``auth`` and ``identify`` say who asks.
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
        max_streams_per_owner: int = 1_000,
        max_streams_per_address: int = 5_000,
        max_body: int = 4_194_304,
        traffic: Traffic | None = None,
        grace: float = 25.0,
        lease_ttl: float = 15.0,
        lock_wait: float = 30.0,
        page: bool = True,
        dialects: Sequence[Dialect] = (),
        auth: Callable[[Any], Any] | Sequence[Callable[[Any], Any]] | None = None,
        identify: Callable[[Scope], Caller | Awaitable[Caller]] = nobody,
        may: May | MayWithSession | None = None,
        quota: Quota | None = None,
        shared: Shared | None = None,
        retention: Retention | None = None,
        traces: bool = False,
        blobs: str | Outside | None = None,
    ) -> None:
        check({name: value for name, value in locals().items() if name != "self"})
        self._sign_in: SignIn | None = None
        if auth is not None:
            from .sign_in import SignIn  # which no open server needs

            if identify is not nobody:
                raise InvalidInput("auth and identify both say who asks; give one of them.")
            identify = self._sign_in = SignIn(auth)
        self.agents: dict[str, Agent] = {}
        self.tools: dict[str, Tool] = {}
        self.grace = grace
        self.lock_wait = lock_wait
        self.lease_ttl = lease_ttl
        self.drain_on_signal = True
        """Whether SIGTERM and SIGINT end the streams; the server that runs the application may do it itself."""
        self.source = store
        """The store, or its URL. May be changed until ``start``, as ``hosts``, ``grace``, ``lease_ttl`` and
        ``lock_wait`` may."""
        self.connections: Connections | None = None
        """Those of the process, where the server is our own."""
        self.traffic = traffic or Traffic()
        """What connections may take; the server that runs the application keeps its part of it."""
        self.refused = tally()
        """How often each limit has refused something, by the limit's name, see ``legato.bounds``."""
        self._settings = Settings(
            heartbeat=heartbeat,
            client=client,
            max_body=max_body,
            max_streams=max_streams,
            max_streams_per_session=max_streams_per_session,
            max_streams_per_owner=max_streams_per_owner,
            max_streams_per_address=max_streams_per_address,
            quota=quota,
            shared=shared,
            retention=retention or Retention(),
            refused=self.refused,
            limits=limits or Limits(),
            identify=identify,
            traffic=self.traffic,
            traces=Traces() if traces else None,
            outside=_outside(blobs) if isinstance(blobs, str) else blobs,
            may=may or (may_on_open_server if identify is nobody else may_what_is_theirs),
        )
        self._cors = tuple(map(origin_as_sent, _names(cors)))
        self.hosts = _names(hosts)
        self._page = page
        self._dialects = (*DIALECTS, *dialects)
        self._life: Life | None = None
        self._app: ASGIApp | None = None
        self._changing: asyncio.Future[None] | None = None  # while it starts or stops
        self._stopped = False
        self._waiting: asyncio.Task[None] | None = None  # for the store, while requests are answered
        self._failed: Exception | None = None  # why it was in vain
        self._restore_signals: Callable[[], None] = lambda: None
        self._listening: ListenWatch | None = None
        if not isinstance(agents, Iterable):
            raise refused("agents", "a list of agents", agents)
        for agent in agents:
            self._add(agent if isinstance(agent, Agent) else Agent(agent))

    @property
    def signs_in(self) -> bool:
        """Whether it wants to know who asks."""
        return self._settings.identify is not nobody

    @property
    def lets_nobody_in(self) -> bool:
        """Whether it wants a key, and there is none that is good."""
        return self._sign_in is not None and all(getattr(auth, "keys", None) == [] for auth in self._sign_in.auths)

    @property
    def settings(self) -> Settings:
        """What it was given, or has by default."""
        return self._settings

    @property
    def cors(self) -> tuple[str, ...]:
        """The origins of other sites' pages that may call."""
        return self._cors

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
        from ..http import tasks  # what asks the model, which would else be loaded on the loop, by the first question

        tasks.load()
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
    def life(self) -> Life:
        """What the application holds, once started.

        Raises:
            Draining: it has been stopped, or waits for its store. InvalidInput: it has never been started.
        """
        if self._life is not None:
            return self._life
        if self._waiting is not None:
            raise StoreAwaited
        if self._stopped:
            raise ApplicationStopped
        raise InvalidInput(
            "Legato has not been started. Under an ASGI server this happens by itself; when it is mounted in "
            "another application, give that one lifespan=app.lifespan."
        )

    @property
    def alive(self) -> bool:
        """Whether it has started, and not stopped since."""
        return self._life is not None

    @property
    def limits(self) -> Limits:
        """Of runs and messages."""
        return self._settings.limits

    @property
    def store(self) -> Store:
        """The open store."""
        return self.life.store

    @property
    def runner(self) -> Runner:
        """The runner, once started."""
        return self.life.runner

    @property
    def sessions(self) -> Sessions:
        """What callers can do, for code beside the application, once started."""
        return self.life.sessions

    def trace(self) -> None:
        """Have runs traced; see ``traces``.

        Raises:
            InvalidInput: opentelemetry-api is not installed.
        """
        self._settings = msgspec.structs.replace(self._settings, traces=Traces())

    def metrics(self, *, local: bool = False) -> Metrics:
        """An ASGI application that answers with this one's figures, for Prometheus. Mount it where only those come who
        may see them; ``legato serve --metrics`` gives it a port of its own.

        Args:
            local: answer only requests for names of this machine.

        Raises:
            InvalidInput: prometheus-client is not installed: ``pip install 'legato[metrics]'``.
        """
        from .metrics import Metrics

        return Metrics(lambda: self.life, lambda: self.connections, local=local)

    @property
    def streams(self) -> Streams:
        """The open streams; none between two lives."""
        return Streams() if self._life is None else self._life.streams

    async def export(self, owner: str) -> AsyncIterator[bytes]:
        """All sessions of an owner as lines of JSON, see ``archive.export``."""
        from ..archive import export

        async for lines in export(self.store, owner=owner, blobs=self.runner.blobs):
            yield lines

    async def erase(self, owner: str) -> ArchiveCount:
        """Delete all that an owner has, see ``archive.erase``."""
        from ..archive import erase

        return await erase(self.store, owner, self.runner.blobs)

    async def start(self) -> None:
        """Open the store, take up what was left, be ready for requests. Idempotent, and possible again after ``stop``.

        While another process has the store's file open, it waits, for ``lock_wait`` seconds.

        Raises:
            InvalidInput, StoreError: it could not; nothing is held, and it can be tried again.
            ModuleNotFoundError: a package that the pages need is not installed.
        """
        locked = await self._begin()
        if locked is not None:
            await self._begin_when_free(locked)

    async def start_aside(self, over: Callable[[Exception | None], object] | None = None) -> None:
        """Start, as for a server that listens only when this is done: if another process has the store's file open,
        go on, answer all requests with that (503), and start when the file is free.

        Args:
            over: told when it has started; or why it cannot, after ``lock_wait`` seconds. By default this process is
                then told to stop (SIGTERM), if it is the main thread's.

        Raises:
            InvalidInput, StoreError, ModuleNotFoundError: see ``start``.
        """
        told = over or self._end
        locked = None if self._waiting is not None else await self._begin()
        if locked is None:
            if self._life is not None:
                told(None)
            return
        self._app = self._build_without_life(StoreAwaited)
        self._failed = None
        self._waiting = asyncio.create_task(self._wait_aside(locked, told), name="legato-start")

    async def _begin(self) -> StoreLocked | None:
        """Begin a life; or say who has the store, if they may let go of it."""
        async with self._change():
            if self._life is not None:
                return None
            if not self.agents:
                raise InvalidInput(
                    "Legato needs an agent: decorate a function with @app.agent, or name an app.model(...)."
                )
            if self._page:
                _look_for_pages()
            store = open_store(self.source) if isinstance(self.source, str) else self.source
            try:
                settings = msgspec.structs.replace(self._settings, lease_ttl=self.lease_ttl)
                life = await Life.begin(store, self.agents, settings)
            except StoreLocked as exc:
                if exc.detail.get("ours") or self.lock_wait <= 0:  # we would wait for ourselves
                    raise
                return exc
            self._app = self._build(life)
            self._life = life
            self._listen_for_shutdown(life)
            return None

    async def _begin_when_free(self, locked: StoreLocked) -> None:
        """Begin a life when the store is free.

        Raises:
            StoreLocked: it has not become so in ``lock_wait`` seconds.
        """
        until = time.monotonic() + self.lock_wait
        due = 0.0
        still: StoreLocked | None = locked
        while still is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise still
            if time.monotonic() >= due:
                due = time.monotonic() + TELL_EVERY
                logger.warning("waiting for the store, at most %.0f s more: %s", left, still)
            await asyncio.sleep(min(LOOK_EVERY, left))
            still = await self._begin()
        logger.warning("the store is free, and open here now")

    async def _wait_aside(self, locked: StoreLocked, told: Callable[[Exception | None], object]) -> None:
        error: Exception | None = None
        try:
            await self._begin_when_free(locked)
        except Exception as exc:
            error = self._failed = exc
            ours = isinstance(exc, LegatoError)  # which says what is wrong with a setting; nobody has said anything yet
            logger.error("the application cannot start: %s", str(exc) if ours else exc, exc_info=not ours)
        finally:
            self._waiting = None
        told(error)

    def _end(self, error: Exception | None) -> None:
        """Have the server that runs this application stop, since it cannot answer."""
        if error is not None and threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGTERM)

    async def stop(self) -> None:
        """End all streams, let runs finish for ``grace`` seconds, close the store. Idempotent."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])
            self._waiting = None
            self._stopped, self._app = True, self._build_without_life(ApplicationStopped)
        async with self._change():
            life = self._life
            if life is None:
                return
            self._restore_signals()
            if self._listening is not None:
                self._listening.stop()
            try:
                await life.end(self.grace)
            finally:
                self._life, self._stopped = None, True
                self._app = self._build_without_life(ApplicationStopped)
                await _stop_agents(self.agents.values())

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One start or stop at a time. No lock, which would belong to one event loop for ever."""
        while self._changing is not None:
            await asyncio.wait([self._changing])
        self._changing = changed = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            self._changing = None
            changed.set_result(None)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """For an application that mounts this one: ``FastAPI(lifespan=app.lifespan)``. See ``start_aside``."""
        await self.start_aside()
        try:
            yield
        finally:
            await self.stop()

    def _listen_for_shutdown(self, life: Life) -> None:
        # An ASGI server that stops waits for open streams to end, and tells nobody: it would wait for ever. So they end
        # at the signal, before the server's own handler sees it; or when it listens no more, if there is no signal.
        if not self.drain_on_signal:
            return
        loop = asyncio.get_running_loop()
        self._listening = ListenWatch(lambda: life.begin_end(self.grace))
        if threading.current_thread() is not threading.main_thread():
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def on_signal(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(life.begin_end, self.grace)
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
            self.life  # noqa: B018  # for its error
        else:
            if self._life is not None:
                if self._listening is not None:
                    self._listening.see(scope)
                await self._life.pace.keep()
            await self._app({**scope, SEND_BODY: send}, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start_aside()
        except LegatoError as exc:
            await send({"type": "lifespan.startup.failed", "message": exc.message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        if self._failed is None:
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "lifespan.shutdown.failed", "message": str(self._failed)})

    def _build(self, life: Life) -> ASGIApp:
        dialects = list(self._dialects)
        if self._sign_in is not None:
            from .sign_in_operations import SignInOperations

            dialects.append(Dialect("auth", SignInOperations(self._sign_in).operations()))
        beside: ASGIApp = _nothing
        if self._page:
            dialects.append(Dialect("inspector", Inspector(self._dialects).operations()))
            beside = _Pages([operation for dialect in dialects for operation in dialect.operations], life)
        adaptor = Adaptor(dialects, life)

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            if not await adaptor.answer(scope, receive, send):
                await beside(scope, receive, send)

        return self._guarded(route, adaptor)

    def _guarded(self, route: ASGIApp, adaptor: Adaptor) -> ASGIApp:
        cors = CORSMiddleware(
            route,
            allow_origins=self._cors,
            allow_origin_regex=LOCAL_ORIGINS,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # Last-Event-ID, Idempotency-Key, what SDKs add of their own; the origin decides
            expose_headers=[f"Legato-{name}" for name in ("Cursor", "Incarnation", "Next", "Repeated")]
            + ["Retry-After", "Location", "X-Request-Id"],
        )
        # Outermost: it looks at preflights, too.
        return Guard(cors, adaptor, self._cors, self.hosts, cookies=self._sign_in is not None)

    def _build_without_life(self, why: type[Draining]) -> ASGIApp:
        """What answers while there is no life: why, in the words of each dialect."""
        absence = Absence(why(), why is StoreAwaited, tuple(self.agents))
        adaptor = Adaptor(self._dialects, absence)

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            if not await adaptor.answer(scope, receive, send):
                await respond_error(why())(scope, receive, send)

        return self._guarded(route, adaptor)


async def _stop_agents(agents: Iterable[Agent]) -> None:
    """Let agents let go of what they hold. What one cannot let go of is no reason for the others to keep theirs."""
    stops = {asyncio.create_task(_stopped(agent)): agent.name for agent in agents if agent.on_stop is not None}
    if not stops:
        return
    _, late = await asyncio.wait(stops, timeout=ON_STOP_SECONDS)
    for task in late:
        logger.error("agent %s has not stopped within %g s; it is left behind", stops[task], ON_STOP_SECONDS)
        task.cancel()


async def _stopped(agent: Agent) -> None:
    try:
        with contained("on_stop"):
            assert agent.on_stop is not None
            await agent.on_stop()
    except Exception:
        logger.exception("agent %s failed to stop", agent.name)


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name is a list of one: a string is a sequence, too, but of letters."""
    return (given,) if isinstance(given, str) else tuple(given or ())


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await respond_error(NoSuchRoute(scope))(scope, receive, send)


def _outside(url: str) -> Outside:
    from ..outside import open_outside  # which few servers need

    return open_outside(url)


def _look_for_pages() -> None:
    """Miss what the pages need at the start, though it is loaded later.

    Raises:
        InvalidInput: it is not there.
    """
    for name in ("linkify_it", "markdown_it", "nh3", "pygments"):
        if find_spec(name) is None:
            raise InvalidInput(f"The pages need the package {name}: pip install 'legato[server]'.", name=name)


class _Pages:
    """The pages. What they need is loaded when something is first asked of them, in a thread: it takes 0.1 s."""

    def __init__(self, operations: Sequence[Operation], life: Life) -> None:
        self._operations = operations
        self._life = life
        self._loading: asyncio.Future[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loading = self._loading
        if loading is None:
            # A thread of its own, since all others may be busy with agents. And without the context of the request:
            # anyio would not be run in one that it runs already.
            thread = ThreadPoolExecutor(1, thread_name_prefix="legato-pages")
            loading = self._loading = asyncio.get_running_loop().run_in_executor(thread, self._load)
            thread.shutdown(wait=False)
        try:
            pages = await asyncio.shield(loading)  # others wait for it, too
        except Exception:
            if self._loading is loading:
                self._loading = None  # what was missing, such as a descriptor, may be there when it is asked again
            raise
        await pages(scope, receive, send)

    def _load(self) -> ASGIApp:
        from .pages import pages

        return pages(self._operations, self._life)
