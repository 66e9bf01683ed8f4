"""The server of a Redis store: how it is reached, and what is expected of it.

It knows nothing of logs. Commands go out in groups, each with a key that says which node of a cluster it is for. The
one rule that must hold: it is known of each command whether it was done, was not, or may have been (``is_lost``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import re
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

try:
    from redis import exceptions
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import ConnectionPool, SSLConnection
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
    from redis.backoff import NoBackoff
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "The Redis store needs the package redis: pip install 'legato[redis]'", name="redis"
    ) from exc

from ..errors import StoreError, StoreLost
from .redis_address import RedisAddress
from .redis_errors import REFUSED, is_lost, is_unknown, store_error
from .redis_scripts import MAY

logger = logging.getLogger("legato")

CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 5.0
"""For a connection, and for an answer, before it is taken for lost."""
MOVING = 50, 0.1
"""How often a command is sent again while what it is about moves to another node of a cluster, and seconds between."""
REPLICATED_SECONDS = 1.0
"""For replicas to have what was written, before it is said that they are behind."""
OLDEST = 7
DURABILITY = {
    "always": "appendonly yes and appendfsync always",
    "everysec": "appendonly yes and appendfsync everysec (or always)",
}
LOSES = {
    "none": "appendonly is off: what was acknowledged since the last snapshot is lost when the server ends",
    "everysec": "appendfsync is everysec: the last two seconds or so are lost with the power",
    "no": "appendfsync is no: what the system has not written yet, as a rule half a minute, is lost with the power",
}

OF_BUCKETS = frozenset({"era", "open", "updated", "gone"})
"""Kinds of keys of which each bucket has one."""

Command = tuple[bytes, tuple[Any, ...]]
"""A key of the command, which says for which node it is; and the command."""


@functools.cache
def sha(script: str) -> str:
    """The name of a script in a server."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _packed(commands: Iterable[Sequence[Any]]) -> bytes:
    """Commands as they are sent. redis-py does this, too; for commands with many words it is most of what they cost."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            if type(word) is not bytes:
                word = str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


class _NamedConnection(SSLConnection):
    """A connection to a server whose certificate has this name, wherever it is reached."""

    def __init__(self, *, named: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._named = named

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._named}


class RedisServer:
    """Redis or Valkey: one server, the one that sentinels name, or a cluster.

    Args:
        url: see ``RedisAddress``.

    Attributes:
        address: what the URL says.
        shown: the URL, without what is nobody's business.
        cluster: whether it is one.
        buckets: in how many the store's sessions stand. What has one bucket is in one slot of a cluster.
        channel, publish: where and how processes tell each other what has grown.
        behind: what to say while too few replicas have what was written, and it is waited for.

    Raises:
        InvalidInput: no such URL, or no such option.
    """

    def __init__(self, url: str) -> None:
        self.address = address = RedisAddress(url)
        self.shown, self.cluster = address.shown, address.way == "cluster"
        self._settings: dict[str, Any] = {
            "username": address.user or None,
            "password": address.password or None,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "socket_keepalive": True,
            "client_name": "legato",
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            **address.files,
        }
        if not address.way:
            self._settings["db"] = int(address.name or 0)
        self.buckets = 1
        self._asked: dict[Command, asyncio.Future[Any]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._finding = asyncio.Lock()
        self._pools: dict[tuple[str, int] | None, Any] = {}
        self._topology: Any = None  # redis-py's own types are not those of its arguments
        self._known: dict[tuple[str, int], None] = {}  # nodes of the cluster; the hosts of the URL may be away
        self._sentinel: Any = None
        self.version = ""
        self._has_waitaof = False
        self.behind: StoreError | None = None
        self.publish = "SPUBLISH" if self.cluster else "PUBLISH"
        self.channel = self.key("era", "bell")

    # Keys, and asking -------------------------------------------------------------------------------------------------

    def key(self, bucket: int | str, kind: str, name: str = "") -> bytes:
        """A key of this store; ``bucket`` says in which slot."""
        return f"{self.address.prefix}:{{{bucket}}}:{kind}:{name}".encode()

    def bucket(self, session: str) -> int:
        """The bucket of a session."""
        return zlib.crc32(session.encode()) % self.buckets

    def keys(self, session: str, *kinds: str) -> list[bytes]:
        """Keys of a session, and those of its bucket."""
        bucket = self.bucket(session)
        return [self.key(bucket, kind, "" if kind in OF_BUCKETS else session) for kind in kinds]

    async def do(self, key: bytes, *command: Any) -> Any:
        """What the server says. What is asked for at the same time goes out together, and what is the same, once.

        Raises:
            StoreError: an error instead; ``__cause__`` is what the server said.
        """
        reply = await asyncio.shield(self.later(key, *command))
        if isinstance(reply, Exception):
            raise store_error(reply, self.shown) from reply
        return reply

    def later(self, key: bytes, *command: Any) -> asyncio.Future[Any]:
        """As ``do``, for who does not wait; an error is what it gives, too."""
        asked = key, command
        future = self._asked.get(asked)
        if future is None:
            future = self._asked[asked] = asyncio.get_running_loop().create_future()
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name="legato-redis-ask")
        return future

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            replies: Sequence[Any]
            try:
                replies = await self.ask(list(asked))
            except Exception as exc:
                replies = [exc] * len(asked)
            for future, reply in zip(asked.values(), replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    async def run(self, script: str, keys: Sequence[bytes], *args: Any) -> Any:
        """What a script gives that changes nothing, or only what nobody has changed: it may be done twice."""
        try:
            return await self.do(keys[0], "EVALSHA", sha(script), len(keys), *keys, *args)
        except StoreError as exc:
            if not is_unknown(exc.__cause__):
                raise
        return await self.do(keys[0], "EVAL", script, len(keys), *keys, *args)

    # Connections ------------------------------------------------------------------------------------------------------

    async def _pool(self, key: bytes) -> tuple[tuple[str, int] | None, Any]:
        """The connections to the node that has ``key``."""
        place = None
        if self.cluster:
            node = (await self._nodes()).get_node_from_key(key)
            if node is None:
                raise StoreLost(f"No node of the cluster has {key!r}: {self.shown}.", url=self.shown)
            place = (node.host, int(node.port))
        pool = self._pools.get(place)
        if pool is None:
            how: dict[str, Any]
            if self.address.way == "sentinel":
                make: Any = Sentinel
                self._sentinel = make(self.address.hosts, socket_timeout=CONNECT_SECONDS)
                make, how = SentinelConnectionPool, {"ssl": self.address.tls}
                pool = make(self.address.name, self._sentinel, **how, **self._settings)
            else:
                host, port = place or self.address.hosts[0]
                how = {"connection_class": _NamedConnection, "named": host} if self.address.tls else {}
                if not self.cluster:
                    host, port = self.address.reach.get((host, port), (host, port))
                make = ConnectionPool
                pool = make(host=host, port=port, **how, **self._settings)
            self._pools[place] = pool
        return place, pool

    async def _nodes(self) -> Any:
        """Which node of the cluster has what."""
        async with self._finding:
            if self._topology is None:
                make: Any = RedisCluster
                nodes = [ClusterNode(*address) for address in {**dict.fromkeys(self.address.hosts), **self._known}]
                reach = self.address.reach
                remap = (lambda node: reach.get(node, node)) if reach else None
                topology = make(startup_nodes=nodes, ssl=self.address.tls, address_remap=remap, **self._settings)
                try:
                    await topology.initialize()
                except BaseException:
                    await topology.aclose()
                    raise
                self._topology = topology
                self._known = {(node.host, int(node.port)): None for node in topology.get_nodes()}
            return self._topology

    async def addresses(self) -> list[tuple[str, int]]:
        """Where the nodes of a cluster are, as they say themselves.

        Raises:
            StoreError: none of those that are known says so.
        """
        try:
            topology = await self._nodes()
        except Exception as exc:
            raise store_error(exc, self.shown) from exc
        return [(node.host, int(node.port)) for node in topology.get_nodes()]

    async def forget_topology(self) -> None:
        """Where a node is away, the others are asked who has its place."""
        if self._topology is not None:
            topology, self._topology = self._topology, None
            with contextlib.suppress(Exception):
                await topology.aclose()

    async def ask(self, commands: Sequence[Command], *, wait: bool = False) -> list[Any]:
        """What the server says to each, or the error that stands for it. In a cluster each node has its commands in
        their order.

        Args:
            commands: to be sent at once.
            wait: until as many replicas have what was written as the options say.

        Raises:
            StoreError: no server could be reached; nothing was sent.
        """
        replies: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        tries, pause = MOVING
        while True:
            groups: dict[Any, tuple[Any, list[int]]] = {}
            try:
                for place in left:
                    name, pool = await self._pool(commands[place][0])
                    groups.setdefault(name, (pool, []))[1].append(place)
            except Exception as exc:
                await self.forget_topology()
                raise store_error(exc, self.shown) from exc
            talks = [self._talk(pool, [commands[n][1] for n in places], wait) for pool, places in groups.values()]
            answers = await asyncio.gather(*talks) if len(talks) > 1 else [await talk for talk in talks]
            for (_, places), answer in zip(groups.values(), answers, strict=True):
                for place, reply in zip(places, answer, strict=True):
                    replies[place] = reply
            moving = exceptions.AskError, exceptions.TryAgainError
            if self.cluster and any(is_lost(replies[place]) or isinstance(replies[place], StoreLost) for place in left):
                await self.forget_topology()
            left = [place for place in left if isinstance(replies[place], moving)]
            if not left or not tries:
                return replies
            tries -= 1
            await self.forget_topology()
            await asyncio.sleep(pause)

    async def _talk(self, pool: Any, commands: list[tuple[Any, ...]], wait: bool) -> list[Any]:
        try:
            connection = await pool.get_connection()
        except Exception as exc:
            if self.cluster:
                return [StoreLost(f"A node cannot be reached: {self.shown} ({exc}).", url=self.shown)] * len(commands)
            raise store_error(exc, self.shown) from exc
        replies: list[Any] = []
        whole = False
        try:
            await connection.send_packed_command([_packed(commands)], check_health=False)
            while len(replies) < len(commands):
                try:
                    replies.append(await connection.read_response())
                except exceptions.ResponseError as exc:
                    replies.append(exc)
            while wait and self.address.replicas and not await self._replicated(connection):
                if self.behind is None:
                    self.behind = StoreLost(
                        f"Fewer than {self.address.replicas} replicas have it: {self.shown}.", url=self.shown
                    )
                    logger.error("nothing is acknowledged: %s", self.behind)
            if wait and self.behind is not None:
                logger.warning("%s: enough replicas have it again", self.shown)
            # A server that was demoted is left: the address may lead to another one now.
            whole = not any(isinstance(reply, exceptions.ReadOnlyError) for reply in replies)
        except Exception as exc:
            # Whatever came in the place of an answer, it may have been done.
            lost = exc if isinstance(exc, REFUSED) or is_lost(exc) else ConnectionError(f"{type(exc).__name__}: {exc}")
            if wait and self.address.replicas:  # what was done may be gone where another server takes over
                replies = [reply if isinstance(reply, Exception) else lost for reply in replies]
            replies += [lost] * (len(commands) - len(replies))
        finally:
            if wait:
                self.behind = None  # it is not waited for any more
            if not whole:
                await connection.disconnect(nowait=True)
            await pool.release(connection)
        return replies

    async def _replicated(self, connection: Any) -> bool:
        """Whether enough replicas have what was written: in memory, or on their disks where ``durability=always``."""
        on_disk = self.address.durability == "always" and self._has_waitaof
        command = ["WAITAOF", 1, self.address.replicas] if on_disk else ["WAIT", self.address.replicas]
        await connection.send_command(*command, round(REPLICATED_SECONDS * 1000), check_health=False)
        answer = await connection.read_response()
        return int(answer[1] if on_disk else answer) >= self.address.replicas

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[Any]:
        """A connection that hears what other processes tell."""
        channel = self.channel
        _, pool = await self._pool(channel)
        client: Any = Redis(connection_pool=pool)
        pubsub = client.pubsub()
        try:
            await (pubsub.ssubscribe(channel) if self.cluster else pubsub.subscribe(channel))
            yield pubsub
        except Exception:
            await self.forget_topology()
            raise
        finally:
            with contextlib.suppress(Exception):
                await pubsub.aclose()

    async def close(self) -> None:
        """Let go of all connections, after what is asked."""
        if self._asking is not None:
            await asyncio.gather(self._asking, return_exceptions=True)
        await self.forget_topology()
        pools, self._pools = self._pools, {}
        self._asking, self._finding = None, asyncio.Lock()
        for pool in pools.values():
            with contextlib.suppress(Exception):
                await pool.aclose()
        if self._sentinel is not None:
            with contextlib.suppress(Exception):
                await self._sentinel.aclose()

    async def nodes(self) -> list[bytes]:
        """A key for each server that takes writes, which leads to it."""
        if not self.cluster:
            return [b"0"]
        nodes = await self._nodes()
        keys: dict[str, bytes] = {}
        for number in range(100_000):
            key = b"{%d}" % number
            keys.setdefault(nodes.get_node_from_key(key).name, key)
            if len(keys) == len(nodes.get_primaries()):
                break
        return list(keys.values())

    # What is expected of it -------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Look at the server's version and settings.

        Raises:
            StoreError: it cannot be used, or not as the options want it. What can be lost is only said in the log.
        """
        for key in await self.nodes():
            self._check(*await self.ask([(key, ("INFO",)), (key, ("CONFIG", "GET", "append*"))]))

    async def check_rights(self) -> None:
        """Look whether the user may do all that the scripts do.

        Raises:
            StoreError: it may not.
        """
        speak, listen = ("SPUBLISH", "SSUBSCRIBE") if self.cluster else ("PUBLISH", "SUBSCRIBE")
        keys = [[self.key(bucket, kind) for kind in ("staged", "whole")] for bucket in range(self.buckets)]
        told = await asyncio.gather(*(self.run(MAY, each, self.channel, speak, listen) for each in keys))
        if missing := sorted({name.decode() for names in told for name in names}):
            raise StoreError(
                f"The server does not let this user do what the store needs, or does not know it: {', '.join(missing)} "
                f"(docs/deploy.md has the list): {self.shown}."
            )

    def _check(self, info: Any, settings: Any) -> None:
        if isinstance(info, Exception):
            raise store_error(info, self.shown) from info
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        name = "Valkey" if "valkey_version" in facts else "Redis"
        self.version = f"{name} {facts.get('valkey_version', facts.get('redis_version', '?'))}"
        if int(facts.get("redis_version", "0").partition(".")[0]) < OLDEST:
            raise StoreError(f"The store needs Redis {OLDEST} or Valkey 8 at least, got {self.version}: {self.shown}.")
        release = [int(part) for part in re.findall(r"\d+", facts.get("redis_version", ""))]
        self._has_waitaof = release >= [7, 2]
        if (facts.get("cluster_enabled") == "1") != self.cluster:
            wanted = "redis+cluster://" if not self.cluster else "redis://"
            raise StoreError(
                f"This is {'a cluster' if not self.cluster else 'no cluster'}; say {wanted}: {self.shown}."
            )
        memory = facts.get("maxmemory_policy", "noeviction")
        if memory.startswith("allkeys") and facts.get("maxmemory", "0") != "0":
            raise StoreError(
                f"maxmemory-policy is {memory}: the server would throw away sessions to make room. Set it to "
                f"noeviction ('CONFIG SET maxmemory-policy noeviction', and in its file): {self.shown}."
            )
        if isinstance(settings, Exception):
            logger.warning(
                "%s: its settings cannot be looked at (%s), so nobody knows what it may lose", self.shown, settings
            )
            return
        config = {settings[n].decode(): settings[n + 1].decode() for n in range(0, len(settings), 2)}
        kept = config.get("appendfsync", "no") if config.get("appendonly") == "yes" else "none"
        levels = ["none", "no", "everysec", "always"]
        asked = self.address.durability
        if levels.index(kept) < levels.index(asked or "none"):
            raise StoreError(
                f"durability={asked} needs {DURABILITY[asked]}, but {LOSES[kept]}. Set it ('CONFIG SET appendonly "
                f"yes', 'CONFIG SET appendfsync {asked}', and in the server's file), or say which loss you can live "
                f"with: durability=everysec, or none: {self.shown}."
            )
        if not asked and kept != "always":
            logger.warning("%s: %s; see 'Redis and Valkey' in docs/deploy.md", self.shown, LOSES[kept])
