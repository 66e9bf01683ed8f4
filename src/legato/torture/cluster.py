"""A cluster that is tortured: nodes in processes of their own, a database, and a front door that remembers nobody.

Between each node and the database is a link that can be cut. While people talk and readers come and go through the
front door, nodes are killed (``kill -9``), stopped for longer than their leases last (SIGSTOP), told to stop, and cut
off. In the end every reader's text is compared with the log, and the logs of all nodes with each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import secrets
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec

from ..errors import InvalidInput, LegatoError
from .database import OWN, database
from .leash import scratch, started
from .listeners import LISTENERS, ChatListener, MixListener, RunListener, asked, pause
from .ports import free_port
from .relay import Address, Relay, Way
from .report import Chart
from .verdict import NodeLife, Spoken, Verdict, judged

PORTS = {"postgresql": 5432, "postgres": 5432, "redis": 6379, "rediss": 6379, "valkey": 6379, "valkeys": 6379}
"""Where the database of a URL listens that does not say."""
TLS = "rediss", "valkeys"
HOSTS = {"host", "hostaddr", "port", "service", "reach"}
"""Options of a URL that say where its database is."""
START_SECONDS = 60.0
"""Within which a node is to be ready."""
SEND_SECONDS = 60.0
"""Within which a message is to be taken by some node."""
SLACK = 5.0
"""Seconds beyond a lease after which no run may still be open that nobody drives."""
PATIENCE = 60.0
"""Seconds, beyond what a run may take, after which a reader that has not heard its end has lost it."""
KINDS = ("kill", "pause", "away", "cut", "silent", "slow", "stop")
"""What is done to a node: ended; stopped for less than a lease; for longer; its link cut; its link silent, in one way
or both; its link slow; told to stop in good order."""
WAYS: Sequence[Sequence[Way]] = (("up", "down"), ("up",), ("down",))
"""In which a link is silent."""
TAKEN = re.compile(r"(\d+\.\d+) run (\S+) is taken here")
"""What a node of ours says of a run that it takes."""
TRACES = " ", "Traceback ", "The above exception ", "During handling "
"""What lines of a traceback begin with that do not say what is wrong."""
DEFAULT = "fails"
"""Who answers where nobody is asked by name."""
DRAWN = 12
"""Readers that have a lane in the chart."""


class ClusterFailed(LegatoError):
    """The cluster could not be started, or a node has ended by itself."""

    code = "cluster_failed"


class ClusterPlan(msgspec.Struct, frozen=True):
    """What is to be done.

    Attributes:
        store: a URL that all nodes can use; or ``"postgresql:"``, ``"redis:"``: one is started that is thrown away.
        nodes: how many, from 1.
        sessions: conversations at once.
        seconds: for which messages are sent, and nodes ill-treated.
        lease_ttl: seconds, see ``Legato``.
        kinds: of what is done to nodes, see ``KINDS``; none: nothing.
        every: seconds between the beginnings of two such things.
        app: what ``legato serve`` takes, for an application of one's own; None: agents that count.
        say: what is said to it.
        front: ``"haproxy"`` or ``"relay"``; None: HAProxy if there is one.
        seed: of what is random.
    """

    store: str
    nodes: int = 2
    sessions: int = 200
    seconds: float = 60.0
    lease_ttl: float = 5.0
    kinds: Sequence[str] = KINDS
    every: float = 3.0
    app: str | None = None
    say: str = "Hello"
    front: str | None = None
    seed: int = 0


# Nodes ----------------------------------------------------------------------------------------------------------------


class ClusterNode:
    """A server, which has many lives at one port, and its own link to the database.

    Attributes:
        name: for people.
        port: where it listens.
        links: to the database; of a cluster, to each of its nodes.
        up: it is ready, and at peace.
        up_since: when that was last not so, by the wall clock.
        said: the last lines of its log.
        life: what was done to it, and which runs it took.
    """

    def __init__(self, name: str, store: str, links: Mapping[Address, Relay], plan: ClusterPlan, folder: Path) -> None:
        self.name = name
        self.port = free_port()
        self.links = list(links.values())
        self.up = False
        self.up_since = time.time()
        self.said: list[str] = []
        self.life = NodeLife()
        self._plan = plan
        self._folder = folder
        self._store = _through(store, links)
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin a life, and wait until it is ready.

        Raises:
            ClusterFailed: it does not become ready.
        """
        self._process = await started(
            sys.executable, "-m", *self._command(), stdin=PIPE, stdout=DEVNULL, stderr=PIPE, cwd=self._folder
        )
        self._reading = asyncio.create_task(self._read(self._process))
        until = time.monotonic() + START_SECONDS
        while not await self.ready():
            if self._process.returncode is not None or time.monotonic() > until:
                await asyncio.sleep(0.2)  # for the rest of what it says
                said = [line for line in self.said if line.strip() and not line.startswith(TRACES)]
                raise ClusterFailed("\n".join([f"{self.name} does not become ready. It wrote last:", *said[-5:]]))
            await asyncio.sleep(0.05)
        self.up, self.up_since = True, time.time()

    def _command(self) -> list[str]:
        plan, port = self._plan, str(self.port)
        if plan.app is None:
            return [f"{__package__}.node", self._store, port, str(plan.lease_ttl)]
        return ["legato", "serve", plan.app, "--store", self._store, "--port", port, "--grace", "0",
                "--lease-ttl", str(plan.lease_ttl)]  # fmt: skip

    async def _read(self, process: Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            if (taken := TAKEN.match(text)) is not None:
                self.life.takes.append((taken[2], float(taken[1])))
            else:
                self.said = [*self.said[-999:], text]

    async def ready(self) -> bool:
        """Whether it says so."""
        with contextlib.suppress(OSError):
            async with asked(self.port, "GET", "/ready") as answer:
                return answer.status == 200
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def ended(self, seconds: float) -> None:
        """Wait for the end of its process; after so many seconds it is killed."""
        assert self._process is not None
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    async def close(self) -> None:
        """Kill it."""
        self.up = False
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()


def _of_cluster(store: str) -> bool:
    return store.partition(":")[0].endswith("+cluster")


def _check_store(store: str) -> None:
    """See that there can be links to a store that is given by its URL.

    Raises:
        InvalidInput: several processes cannot use it, or not by way of an address that is ours.
    """
    try:
        parts = urlsplit(store)
    except ValueError:  # half of an IPv6 address, or signs that stand for others; its words may be a password
        raise InvalidInput("A store's address names a host such as 'db.example.com' or '[::1]'.") from None
    if _of_cluster(store):
        if "reach=" in parts.query:
            raise InvalidInput("The option reach is taken here, for the links; name a cluster that needs none.")
    elif named := HOSTS & {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}:
        raise InvalidInput(f"Links need the address in its place, postgresql://HOST:PORT/NAME; got {sorted(named)}.")
    elif parts.scheme not in PORTS or not parts.hostname or "," in parts.netloc:
        raise InvalidInput(
            "A cluster needs a store that several processes can use, on one address, so that links to it can be cut: "
            f"postgresql://HOST/NAME, redis://HOST or redis+cluster://HOST; got {parts.scheme}:."
        )


async def _targets(store: str) -> list[Address]:
    """Where a store is: at one address, but each node of a Redis cluster at its own."""
    if not _of_cluster(store):
        parts = urlsplit(store)
        return [(parts.hostname or "", parts.port or PORTS[parts.scheme])]
    from ..store.redis_server import RedisServer

    server = RedisServer(store)
    try:
        return await server.addresses()
    finally:
        await server.close()


def _through(store: str, links: Mapping[Address, Relay]) -> str:
    """The store's URL by way of links, one for each of its addresses."""
    parts = urlsplit(store)
    user, at, _ = parts.netloc.rpartition("@")
    named = [(f"[{host}]" if ":" in host else host, port, link.port) for (host, port), link in links.items()]
    hosts = ",".join(f"127.0.0.1:{link.port}" for link in links.values())
    more = ""
    if parts.scheme.startswith("postgres"):  # whose certificate is looked at for the name
        hosts = ",".join(f"{host}:{here}" for host, _, here in named)
        more = "hostaddr=127.0.0.1"
    elif _of_cluster(store) or parts.scheme in TLS:
        more = "reach=" + ",".join(f"{host}:{port}=127.0.0.1:{here}" for host, port, here in named)
        hosts = hosts if _of_cluster(store) else parts.netloc.rpartition("@")[2]
    query = "&".join(each for each in (parts.query, more) if each)
    return urlunsplit(parts._replace(netloc=f"{user}{at}{hosts}", query=query))


# The front door -------------------------------------------------------------------------------------------------------

HAPROXY = """
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 500ms
    option redispatch
    option http-no-delay
    option http-server-close
    retries 3
frontend front
    bind 127.0.0.1:{port}
    default_backend nodes
backend nodes
    balance roundrobin
    option httpchk GET /ready
{servers}
"""


@asynccontextmanager
async def front_door(kind: str | None, ports: Sequence[int], folder: Path) -> AsyncIterator[int]:
    """A port whose connections go to one node or another: HAProxy, or a relay of our own.

    Raises:
        InvalidInput: HAProxy is wanted, and is not there.
    """
    program = shutil.which("haproxy")
    if kind not in (None, "haproxy", "relay"):
        raise InvalidInput(f"The front door is 'haproxy' or 'relay', got {kind!r}.")
    if kind == "haproxy" and program is None:
        raise InvalidInput("There is no haproxy on this machine; --front relay needs none.")
    if kind == "relay" or program is None:
        async with Relay([("127.0.0.1", port) for port in ports]) as relay:
            yield relay.port
        return
    port = free_port()
    servers = "\n".join(
        f"    server n{n} 127.0.0.1:{each} check inter 500ms fall 2 rise 1" for n, each in enumerate(ports)
    )
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, servers=servers), "utf-8")
    process = await started(program, "-db", "-f", folder / "haproxy.cfg", stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


# The cluster ----------------------------------------------------------------------------------------------------------


class Cluster:
    """Nodes, their links, and the front door.

    Attributes:
        nodes: all of them.
        port: of the front door.
        chart: what was done when.
        trouble: things that are done to nodes now.
        began: when all began, seconds since the epoch.
        calm_since: when that was last more than none, by the steady clock.
    """

    def __init__(self, nodes: list[ClusterNode], port: int, plan: ClusterPlan) -> None:
        self.nodes = nodes
        self.port = port
        self.plan = plan
        self.chart = Chart(f"{plan.nodes} nodes, {plan.sessions} sessions, {plan.seconds:g} s, seed {plan.seed}")
        self.chart.lanes = [node.name for node in nodes]
        self.trouble = 0
        self.calm_since = time.monotonic()
        self.done: Counter[str] = Counter()
        self.stops: list[tuple[str, float]] = []  # nodes that were told to stop, and when
        self.began = time.time()

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return time.time() - self.began

    def at(self, moment: float) -> float:
        """The same of a moment of the wall clock."""
        return moment - self.began

    async def ill_treat(self, kind: str, node: ClusterNode, dice: random.Random) -> None:
        """Do one thing to a node, and wait until it is over and the node ready again."""
        ttl = self.plan.lease_ttl
        self.trouble += 1
        self.done[kind] += 1
        node.up = False
        began = self.now
        self.chart.span(node.name, max(self.at(node.up_since), 0.0), began, "up")
        node.life.hits.append(time.time())
        try:
            shown = await self._done(kind, node, dice, ttl)
            self.chart.span(node.name, began, self.now, shown, kind)
            until = time.monotonic() + START_SECONDS
            while not await node.ready():
                if time.monotonic() > until:
                    raise ClusterFailed(f"{node.name} is not ready again {START_SECONDS:g} s after: {kind}.")
                await asyncio.sleep(0.1)
            self.chart.mark(node.name, self.now, "heal", "ready")
            node.up, node.up_since = True, time.time()
        finally:
            self.trouble -= 1
            self.calm_since = time.monotonic()

    async def _done(self, kind: str, node: ClusterNode, dice: random.Random, ttl: float) -> str:
        self.chart.mark(node.name, self.now, {"away": "pause", "silent": "cut"}.get(kind, kind), kind)
        if kind == "kill":
            node.signal(signal.SIGKILL)
            await node.ended(10.0)
            await asyncio.sleep(dice.uniform(0.2, 2.0))
            await node.start()
            return "down"
        if kind == "stop":
            self.stops.append((str(node.port), time.time()))
            node.signal(signal.SIGTERM)
            await node.ended(20.0)
            await node.start()
            return "down"
        if kind in ("pause", "away"):
            node.signal(signal.SIGSTOP)
            await asyncio.sleep(dice.uniform(0.2, 0.5) * ttl if kind == "pause" else dice.uniform(1.2, 1.8) * ttl)
            node.signal(signal.SIGCONT)
            return "paused"
        if kind == "cut":
            for link in node.links:
                link.cut()
        elif kind == "silent":
            ways = dice.choice(WAYS)
            for link in node.links:
                link.silence(*ways)
        else:
            seconds = dice.uniform(0.01, 0.1)
            for link in node.links:
                link.slow(seconds)
        await asyncio.sleep(dice.uniform(0.2, 1.6) * ttl)
        for link in node.links:
            link.mend()
        return "slow" if kind == "slow" else "cut"

    async def torment(self, until: float, dice: random.Random) -> None:
        """Ill-treat nodes until ``until`` (of the steady clock), half of them at once at most, and wait until they are
        ready again. Each kind comes once before one comes again."""
        bag: list[str] = []
        going: set[asyncio.Task[None]] = set()
        most = max(len(self.nodes) // 2, 1)
        try:
            while self.plan.kinds and time.monotonic() < until - self.plan.lease_ttl:
                idle = [node for node in self.nodes if node.up]
                if len(self.nodes) - len(idle) < most:
                    if not bag:
                        bag = list(self.plan.kinds)
                        dice.shuffle(bag)
                    node, kind = dice.choice(idle), bag.pop()
                    node.up = False
                    going.add(asyncio.create_task(self.ill_treat(kind, node, dice)))
                await asyncio.sleep(self.plan.every * dice.uniform(0.5, 1.5))
                for task in [task for task in going if task.done()]:
                    going.discard(task)
                    task.result()
            await asyncio.gather(*going)
        finally:
            for task in going:
                task.cancel()

    def is_calm(self, since: float) -> bool:
        """Whether nothing has been done to any node since shortly before ``since`` (of the steady clock)."""
        return not self.trouble and self.calm_since + 1.0 < since


@asynccontextmanager
async def cluster(plan: ClusterPlan) -> AsyncIterator[Cluster]:
    """A cluster as ``plan`` has it, all nodes ready; its processes end with it.

    Raises:
        ClusterFailed, InvalidInput: it could not be started.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(scratch("cluster"))
        if plan.store not in OWN:
            _check_store(plan.store)
        store = await stack.enter_async_context(database(plan.store))
        targets = await _targets(store)
        nodes = []
        for number in range(plan.nodes):
            links = {each: await stack.enter_async_context(Relay([each])) for each in targets}
            nodes.append(ClusterNode(f"node {number + 1}", store, links, plan, Path.cwd()))
            stack.push_async_callback(nodes[-1].close)
        await nodes[0].start()  # it makes the schema
        await asyncio.gather(*(node.start() for node in nodes[1:]))
        port = await stack.enter_async_context(front_door(plan.front, [node.port for node in nodes], folder))
        made = Cluster(nodes, port, plan)
        await _answers(port)
        yield made


async def _answers(port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            async with asked(port, "GET", "/ready") as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise ClusterFailed("The front door does not lead to a node that is ready.")


# The load -------------------------------------------------------------------------------------------------------------


class ClusterLoad:
    """People who talk, and what came of it.

    Attributes:
        spoken: the messages that were taken.
        faults: what must not be.
        waits: seconds, by what was waited for; cancels and answers only while nothing was done to any node.
        refused: how often by which status.
        sent: how many messages over which dialect.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.spoken: list[Spoken] = []
        self.faults: list[str] = []
        self.waits: dict[str, list[float]] = {"cancel": [], "answer": [], "taken": []}
        self.refused: Counter[int] = Counter()
        self.sent: Counter[str] = Counter()
        self._cluster = cluster
        self._port = cluster.port
        plan = cluster.plan
        self._own = plan.app is not None
        self._patience = plan.lease_ttl + SLACK + PATIENCE

    async def talk(self, number: int, until: float) -> None:
        """Be one of those who talk, until ``until`` (of the steady clock)."""
        dice = random.Random(f"{self._cluster.plan.seed} {number}")  # noqa: S311  # no secret
        await asyncio.sleep(dice.random())
        session = f"t{number}-{secrets.token_hex(8)}"
        if not await self._send("POST", "/api/sessions", {"id": session, "title": "torture"}, dice, good=(201, 409)):
            return
        while time.monotonic() < until:
            if not self._own and dice.random() < 0.2:
                await self._chat(dice)
            else:
                await self._turn(session, dice)
            await asyncio.sleep(dice.uniform(0.0, 1.0))

    def _words(self, dice: random.Random) -> tuple[str, str, int, float, bool]:
        """Who is asked, in which words; how many pieces that makes, how many a second; and whether it asks back."""
        if self._own:
            return "", self._cluster.plan.say, 0, 0.2, False
        rate = dice.choice((3.0, 5.0, 10.0))
        count = max(3, int(rate * dice.uniform(0.5, min(8.0, self._cluster.plan.seconds / 3))))
        asks = dice.random() < 0.15
        text = f"{rate:g} {count}{' asks' if asks else ''}"
        return dice.choice(("fails", "retries", "resumes")), text, count, rate, asks

    async def _send(
        self, method: str, path: str, body: Any, dice: random.Random, *, good: Sequence[int] = (200, 202),
        key: str | None = None,
    ) -> Any:  # fmt: skip
        """Ask until a node does it; what it answers. None, and a fault, if none does."""
        until = time.monotonic() + SEND_SECONDS
        headers = {} if key is None else {"idempotency-key": key}
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                async with asked(self._port, method, path, body, headers) as answer:
                    if answer.status in good:
                        return await answer.json() or {}
                    self.refused[answer.status] += 1
                    if answer.status not in (429, 500, 502, 503, 504, 507):
                        self.faults.append(f"{method} {path} is answered {answer.status}: {await answer.json()}")
                        return None
            await pause(dice)
        self.faults.append(f"{method} {path} was not answered for {SEND_SECONDS:g} s")
        return None

    async def _turn(self, session: str, dice: random.Random) -> None:
        agent, text, count, rate, asks = self._words(dice)
        began = time.monotonic()
        over = "mix" if self._own else dice.choice(("mix", "mix", "deva", "responses"))
        if over == "deva":
            agent = DEFAULT
        run = await self._said(over, session, agent, text, dice)
        if run is None:
            return
        self.waits["taken"].append(time.monotonic() - began)
        self.sent[over] += 1
        spoken = Spoken(session, run, agent, count, rate)
        self.spoken.append(spoken)
        first = MixListener if asks else dice.choice(LISTENERS)
        kinds = [first, *([dice.choice(LISTENERS)] if dice.random() < 0.5 else [])]
        spoken.listeners = [kind(self._port, session, run, f"{run}~u", "0", dice) for kind in kinds]
        beside = []
        if asks:
            beside.append(asyncio.create_task(self._answer(spoken.listeners[0], dice)))
        elif dice.random() < 0.1 and count:
            beside.append(asyncio.create_task(self._cancel(spoken, dice)))
        try:
            await self._listen(spoken)
        finally:
            for task in beside:
                task.cancel()

    async def _said(self, over: str, session: str, agent: str, text: str, dice: random.Random) -> str | None:
        """Send a message over this dialect; its run. None, and a fault, if no node takes it."""
        key = f"k{dice.getrandbits(64):x}"
        if over == "deva":
            path, body = f"/api/sdk/chat/{session}/messages", {"text": text, "client_id": key}
            sent = await self._send("POST", path, body, dice, good=(201,))
            return None if sent is None else str(sent["id"]).removesuffix("~u")
        if over == "responses":
            said = {"model": agent, "input": text, "conversation": session, "background": True}
            sent = await self._send("POST", "/v1/responses", said, dice, key=key)
            return None if sent is None else str(sent["id"]).removeprefix("resp_")
        body = {"text": text} | ({"agent": agent} if agent else {})
        sent = await self._send("POST", f"/api/sessions/{session}/messages", body, dice, key=key)
        return None if sent is None else str(sent["runId"])

    async def _chat(self, dice: random.Random) -> None:
        agent, text, count, rate, _ = self._words(dice)
        text = text.removesuffix(" asks")
        listener = ChatListener(self._port, agent, text, f"k{dice.getrandbits(64):x}", dice)
        spoken = Spoken("", "", agent, count, rate, listeners=[listener])
        await self._listen(spoken)
        self.sent["chat"] += 1
        spoken.session, spoken.run = listener.session, listener.run
        self.spoken.append(spoken)

    async def _listen(self, spoken: Spoken) -> None:
        until = time.monotonic() + spoken.count / spoken.rate + self._patience
        await asyncio.gather(*(listener.listen(until) for listener in spoken.listeners))

    async def _answer(self, listener: RunListener, dice: random.Random) -> None:
        """Say yes to what the run asks, each time."""
        while True:
            id = await listener.asks.get()
            began = time.monotonic()
            if await self._send("POST", f"/api/permissions/{id}/grant", {}, dice) is None:
                return
            while listener.heard_at < began and not listener.ended:  # noqa: ASYNC110  # what wakes it is counted as well
                await asyncio.sleep(0.01)
            if self._cluster.is_calm(began):
                self.waits["answer"].append(listener.heard_at - began)

    async def _cancel(self, spoken: Spoken, dice: random.Random) -> None:
        listener = spoken.listeners[0]
        await asyncio.sleep(dice.uniform(0.0, spoken.count / spoken.rate))
        if listener.ended:
            return
        spoken.cancelled = True
        began = time.monotonic()
        session, run = spoken.session, spoken.run
        ways: list[tuple[str, Any]] = [
            (f"/api/sessions/{session}/cancel", {"runId": run}),
            (f"/v1/responses/resp_{run}/cancel", {}),
            (f"/api/sdk/chat/{session}/messages/{run}~u/stop", {}),
        ]
        path, body = dice.choice(ways)
        if await self._send("POST", path, body, dice) is None:
            return
        while not listener.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._cluster.is_calm(began):
            self.waits["cancel"].append(listener.heard_at - began)


# All of it ------------------------------------------------------------------------------------------------------------


async def torture_cluster(
    plan: ClusterPlan,
    progress: Callable[[str], None] = lambda text: None,
    stopped: Callable[[Chart], None] = lambda chart: None,
) -> Chart:
    """Torture a cluster of our own.

    Args:
        plan: how.
        progress: is told what is done now.
        stopped: is given what there is, without any comparison, where it is cancelled.

    Returns:
        What was done when, what was measured, and what must not be: nothing, if it has held.

    Raises:
        ClusterFailed, InvalidInput: it could not be started, or a node has ended by itself.
    """
    if unknown := set(plan.kinds) - set(KINDS):
        raise InvalidInput(f"What is done to nodes is {', '.join(KINDS)}; got {sorted(unknown)}.")
    progress(f"{plan.nodes} nodes and a front door")
    async with cluster(plan) as made:
        load = ClusterLoad(made)
        until = time.monotonic() + plan.seconds
        progress(f"{plan.sessions} conversations, {plan.seconds:g} s")
        dice = random.Random(plan.seed)  # noqa: S311  # no secret
        torment = asyncio.create_task(made.torment(until, dice))
        talk = asyncio.create_task(_all_talk(load, plan, until))
        try:
            await asyncio.wait({torment, talk}, return_when=asyncio.FIRST_EXCEPTION)
            await torment
            await talk
            progress("all logs, from each node")
            ports = [node.port for node in made.nodes]
            verdict = await judged(ports, load.spoken, most=plan.lease_ttl + SLACK, began=made.began,
                                   lives=[node.life for node in made.nodes])  # fmt: skip
        except asyncio.CancelledError:
            made.chart.title += f"; stopped after {made.now:.0f} s, and no log was compared"
            _write(made, load, None)
            stopped(made.chart)
            raise
        finally:
            talk.cancel()
            torment.cancel()
        _write(made, load, verdict)
        return made.chart


async def _all_talk(load: ClusterLoad, plan: ClusterPlan, until: float) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(plan.sessions):
            group.create_task(load.talk(number, until))


def _write(made: Cluster, load: ClusterLoad, verdict: Verdict | None) -> None:
    """Put what was measured into the chart; without a verdict, what there is."""
    chart, plan = made.chart, made.plan
    for node in made.nodes:
        if node.up:
            chart.span(node.name, max(made.at(node.up_since), 0.0), made.now, "up")
    listeners = [listener for spoken in load.spoken for listener in spoken.listeners]
    seen = [fault for listener in listeners for fault in listener.faults] if verdict is None else verdict.faults
    chart.faults = [*load.faults, *seen]
    if verdict is not None and not load.spoken:
        chart.faults.append(f"No message was taken in {plan.seconds:g} s, so nothing has been seen: take more seconds.")
    figures: dict[str, str | int | float] = {
        "done to nodes": ", ".join(f"{count} x {kind}" for kind, count in sorted(made.done.items())) or "nothing",
        "messages taken": len(load.spoken),
        "messages over": ", ".join(f"{n} {over}" for over, n in sorted(load.sent.items())),
        "readers": ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(e.dialect for e in listeners).items())),
        "came back": sum(listener.cuts for listener in listeners),
        "refused, by status": ", ".join(f"{n} x {status}" for status, n in sorted(load.refused.items())) or "none",
    }
    waits = {**load.waits, "piece": [wait for listener in listeners for wait in listener.waits]}
    if verdict is not None:
        figures |= {
            "ended": ", ".join(f"{count} {type}" for type, count in sorted(verdict.runs.items())),
            "further attempts": verdict.attempts,
            "longest silence of an open run, s": round(verdict.longest, 2),
            "and at most, s": plan.lease_ttl + SLACK,
            "longest, with nodes that were hit as soon as they had taken it, s": round(verdict.between, 2),
            "answers compared between nodes": verdict.compared,
        }
        waits["handover at a stop"] = _handovers(made, verdict)
    labels = {"taken": "message taken", "piece": "a piece, yield to reader", "cancel": "cancel to the end, in calm",
              "answer": "answer to the next piece, in calm"}  # fmt: skip
    for name, found in waits.items():
        if found:
            found.sort()
            shares = ", ".join(
                f"{label} {found[min(int(len(found) * share), len(found) - 1)] * 1e3:.0f}"
                for label, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0))
            )
            figures[f"{labels.get(name, name)}, ms"] = f"{shares} (of {len(found)})"
    chart.figures = figures
    for listener in sorted(listeners, key=lambda each: -each.cuts)[:DRAWN]:
        for began, ended in listener.times:
            chart.span(f"{listener.dialect} {listener.run[-6:]}", made.at(began), made.at(ended), "reading")


def _handovers(made: Cluster, verdict: Verdict) -> list[float]:
    """Seconds from when a node was told to stop until another had begun each of its runs that was not to be ended."""
    found = []
    for port, stopped in made.stops:
        for node, said_at, began in verdict.started:
            if node == port and said_at - 0.5 <= stopped <= began and began - stopped < made.plan.lease_ttl:
                found.append(began - stopped)
    return found
