"""A life of an application: what it holds between its start and its stop. Made in one place, dropped in one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import msgspec
from starlette.types import Scope

from ..agent import Agent
from ..blobs import Blobs, Outside
from ..bounds import Limits, tally
from ..caller import NOBODY, Caller, May, MayWithSession, Quota, Revoked, may_on_open_server
from ..dialect.fold import Encoder
from ..dialect.joined import JoinedPages
from ..errors import LegatoError
from ..event import Offset
from ..figures import Figures
from ..log import Store
from ..retention import Keeper, Retention
from ..run import Runner
from ..sessions import Located, Sessions
from ..sharing import Shared
from ..sse import HEARTBEAT
from ..tally import named
from ..traces import Traces
from .memory import Memory, SharedEncoder
from .pace import Pace
from .press import Press
from .reply import Follow, View
from .stream import Streams
from .traffic import Budget, Refusals, Traffic

logger = logging.getLogger("legato")

T = TypeVar("T")


def nobody(scope: Scope) -> Caller:
    """Who asks at an open server."""
    return NOBODY


@runtime_checkable
class Opens(Protocol):
    """Sign-in that is begun and ended with a life, as ``legato.auth.APIKeys``."""

    async def open(self, store: Store, revoked: Revoked) -> None:
        """Begin; ``revoked`` is to be called with each credential that is good no more."""
        ...

    async def close(self) -> None:
        """End. Idempotent."""
        ...


class Settings(msgspec.Struct, frozen=True):
    """What an application was made with.

    Attributes:
        heartbeat: seconds of silence after which a stream says that it is alive.
        client: what to take a Mix client for that does not tell its version.
        max_body: bytes of a request's body.
        max_streams, max_streams_per_session: bounds of open streams.
        limits: of runs and messages.
        identify: who asks, from the ASGI scope of a request.
        may: what they may do, see ``caller.may``.
        shared: whose sessions are in their lists, see ``sharing.Shared``.
        traffic: what connections may take.
        lease_ttl: seconds after which other nodes may take over what this one drove, once it is heard of no more.
        max_streams_per_owner, max_streams_per_address: bounds of open streams, too.
        quota: the application's own limit, see ``caller.Quota``.
        retention: how long what is kept.
        refused: counts what limits have refused, see ``bounds``.
        traces: makes spans of runs.
        outside: where large blobs are; None: in the store.
    """

    heartbeat: float = 15.0
    client: str = "python-0.8.1"
    max_body: int = 4_194_304
    max_streams: int = 10_000
    max_streams_per_session: int = 2_000
    limits: Limits = Limits()
    identify: Callable[[Scope], Caller | Awaitable[Caller]] = nobody
    may: May | MayWithSession = may_on_open_server
    shared: Shared | None = None
    traffic: Traffic = Traffic()
    lease_ttl: float = 15.0
    max_streams_per_owner: int = 1_000
    max_streams_per_address: int = 5_000
    quota: Quota | None = None
    retention: Retention = Retention()
    refused: Counter[str] = msgspec.field(default_factory=tally)
    traces: Traces | None = None
    outside: Outside | None = None


class Life:
    """Everything that an application holds while it runs.

    Args:
        store: open; closed in the end.
        agents: by name, the default one first.
        settings: of the application.

    Attributes:
        sessions: what callers can do.
        runner: drives the runs.
        keeper: deletes what need not be kept.
        streams: the open streams.
        pace: of requests and of readers who are behind.
        memory: of the runs that are read.
        pages: of deltas that were joined of late.
        press: makes HTML of texts.
        figures: what is counted.
        bodies, answers: the bytes of requests that are being read, and of answers that are being written.
        refused: by the names of limits, how often each has refused something since the application was made.
        began_at: seconds since the epoch.
        over: the store is being closed; nothing can be asked of it any more.
    """

    def __init__(self, store: Store, agents: Mapping[str, Agent], settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.refused = settings.refused
        self.figures = Figures()
        self.runner = Runner(
            store,
            agents,
            limits=settings.limits,
            lease_ttl=settings.lease_ttl,
            refused=self.refused,
            figures=self.figures,
            traces=settings.traces,
            blobs=Blobs(store, settings.outside),
        )
        self.sessions = Sessions(store, self.runner, may=settings.may, quota=settings.quota, shared=settings.shared)
        self.streams = Streams(
            total=settings.max_streams,
            per_session=settings.max_streams_per_session,
            per_owner=settings.max_streams_per_owner,
            per_address=settings.max_streams_per_address,
            seconds=settings.traffic.stream_seconds,
            stalled_seconds=settings.traffic.stalled_seconds,
            refused=self.refused,
            elsewhere=lambda party: self.runner.tally.elsewhere(f"streams {party}"),
            figures=self.figures,
        )
        self.runner.tally.sources.append(lambda: named("streams", self.streams.parties))
        self.keeper = Keeper(
            store,
            settings.retention,
            read=self.streams.count,
            forget=self._forget_session,
            blobs=self.runner.blobs,
        )
        self.pace = Pace()
        self.memory = Memory(store, self.pace)
        self.pages = JoinedPages()
        self.press = Press()
        self.bodies = Budget(settings.traffic.body_bytes, "bodies of requests", bound="body_bytes")
        self.answers = Budget(settings.traffic.answer_bytes, "answers", bound="answer_bytes")
        self.began_at = time.time()
        self.over = False
        self._kept: dict[type, object] = {}
        self._failing: dict[str, Refusals] = {}  # requests, by what the store's error is called
        self._stopping: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, store: Store, agents: Mapping[str, Agent], settings: Settings) -> Life:
        """Open the store, and take up what was left.

        Raises:
            StoreError: nothing was begun, and nothing is held.
        """
        await store.open()
        life = cls(store, agents, settings)
        try:
            if isinstance(settings.identify, Opens):
                await settings.identify.open(store, life.streams.dismiss)
            await life.runner.start()
            store.doorbell.hang_forget(life.forget)
            life.keeper.start()
        except BaseException:
            await life.runner.stop()
            await life._close_sign_in()
            await store.close()
            raise
        return life

    def forget(self, lost: bool = True) -> None:
        """Begin anew with what the store is now: it has lost the end of some logs, if ``lost``. Readers are cut off,
        and told so when they come back."""
        self.streams.cut()
        if not lost:
            logger.info("the store was started again and has lost nothing: all readers are cut off, and come back")
            return
        logger.warning("the store is not what it was: all readers are cut off, and all runs driven anew")
        self.runner.forget()
        self.memory.forget()
        self.pages.forget()
        self._kept.clear()

    async def _close_sign_in(self) -> None:
        if isinstance(self.settings.identify, Opens):
            await self.settings.identify.close()

    def begin_end(self, grace: float) -> None:
        """End all streams, take no more messages, and give runs ``grace`` seconds from now on; ``end`` is to follow.
        For a server that waits for both before it calls that. Idempotent."""
        self.streams.drain()
        if self._stopping is None:
            self._stopping = asyncio.create_task(self.runner.stop(grace), name="legato-stop")

    async def end(self, grace: float) -> None:
        """Let runs finish for ``grace`` seconds, end all streams, close the store."""
        self.store.doorbell.take_forget(self.forget)
        try:
            await self.keeper.stop()
            await (self._stopping or self.runner.stop(grace))
        finally:
            try:
                await self.streams.close()
            finally:
                await self.runner.accounts.close()
                self.over = True
                self.sessions.aside.close()
                try:
                    await self._close_sign_in()
                    await self.press.close()
                finally:
                    await self.store.close()

    def _forget_session(self, session: str) -> None:
        self.memory.forget_session(session)
        self.pages.forget_session(session)

    def tell_failed(self, method: str, path: str, error: LegatoError) -> None:
        """Log that a request failed with an error of the store: a line for the first, and one for all that meet the
        same within ``LOG_SECONDS``."""
        if error.code not in self._failing:
            self._failing[error.code] = Refusals("%d request(s) failed, the last %s %s: %s", level=logging.ERROR)
        self._failing[error.code].add(method, path, error)

    def kept(self, kind: type[T]) -> T:
        """The one object of this kind that the life keeps; made when it is first asked for."""
        made = self._kept.setdefault(kind, kind())
        assert isinstance(made, kind)
        return made

    def follow_run(
        self, run: Located, view: View, name: str, *, after: tuple[Offset, int] = (0, 0), first: bytes = b"",
        exact: bool | None = None,
    ) -> Follow:  # fmt: skip
        """A run as a stream that ends with it, out of the memory that all its readers share.

        Args:
            run: the run.
            view: of the dialect; has ``fold``.
            name: of the dialect, for the inspector.
            after: an event and how many of its frames the reader has; the run is read from there.
            first, exact: see ``Follow``. Who reads from the start is sent a heartbeat first, since a run that waits has
                nothing else to say at once; a resume is the rest of the bytes.
        """
        memory = self.memory.of(run, view)
        encoder: Encoder = SharedEncoder(memory, after=after)
        begin = max(run.before, after[0] - 1)
        if after == (0, 0):
            first = first or HEARTBEAT
        share, joins = (view.key, run.run), after[0] if view.joins else None
        return Follow(
            run.session, begin, encoder, name, first, exact, True, preparation=memory, share=share, joins=joins
        )
