"""Who is measured: this revision of Legato, with ``--base`` another one, and their peers. Each is a server of its own.

What a peer needs and is not here, is said, and the peer is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from legato.torture.ports import free_port

from .load import Server, serving
from .sides import HERE, Side, sides

NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
CONFIG = """
load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
error_log stderr crit;
pid {folder}/pid;
{user}
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/sub/([0-9]+)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }}
    location ~ ^/pub/([0-9]+)$ {{
      nchan_publisher;
      nchan_channel_id $1;
      nchan_message_buffer_length 32;
    }}
  }}
}}
"""


class Contender(NamedTuple):
    """A server that can be measured.

    Attributes:
        name: as in tables.
        side: the checkout, of Legato.
        memory: with its memory store, of Legato.
        serve: a server of it, for so many channels with so many tokens a second each; of a peer.
    """

    name: str
    side: Side | None = None
    memory: bool = False
    serve: Callable[[int, float], AbstractContextManager[Server]] | None = None

    def serving(self, channels: int, rate: float, *, folder: str | None = None) -> AbstractContextManager[Server]:
        """A running server; of Legato with the log in ``folder``, if it is given."""
        if self.side is not None:
            return serving(self.side, folder=folder, memory=self.memory)
        assert self.serve is not None
        return self.serve(channels, rate)


@contextlib.contextmanager
def _process(*command: str | Path, first_line: bool = True) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen([str(each) for each in command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline() if first_line else ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _python(name: str) -> Callable[[int, float], AbstractContextManager[Server]]:
    @contextlib.contextmanager
    def serve(channels: int, rate: float) -> Iterator[Server]:
        with contextlib.ExitStack() as stack:
            command = [sys.executable, HERE / "support" / "peers.py", name, str(rate)]
            pids = []
            if name == "redis":
                redis, port = stack.enter_context(_redis())
                command.append(str(port))
                pids.append(redis)
            process, port_line = stack.enter_context(_process(*command))
            yield Server(int(port_line), [process.pid, *pids])

    return serve


@contextlib.contextmanager
def _redis() -> Iterator[tuple[int, int]]:
    """Redis as it comes, but for a port and a folder of its own; its process and its port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="legato-bench-") as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--loglevel", "warning"]
        with _process(*command, "--maxclients", "15000", first_line=False) as (process, _):
            _wait_for(port)
            yield process.pid, port


@contextlib.contextmanager
def _nchan(channels: int, rate: float) -> Iterator[Server]:
    """nginx with nchan, in memory, and who publishes to it; that process is not counted, as nobody's agents are."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="legato-bench-") as folder:
        config = Path(folder, "nginx.conf")
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(
            CONFIG.format(module=NCHAN, folder=folder, port=port, user=user, files=15_000, connections=14_000)
        )
        master = subprocess.Popen(["nginx", "-p", folder, "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            _wait_for(port)
            publisher = [sys.executable, HERE / "support" / "publish.py", str(port), str(channels), str(rate)]
            with _process(*publisher, first_line=False):
                yield Server(port, [master.pid, *_workers(master.pid, port)])
        finally:
            master.terminate()  # it ends its worker, which a kill would leave behind
            master.wait()


def _workers(pid: int, port: int) -> list[int]:
    """The processes below nginx's own, once one answers: it listens before it has any."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    connection.getresponse().read()
    connection.close()
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise RuntimeError("a peer does not listen")


def _missing(*modules: str) -> list[str]:
    return [each for each in modules if importlib.util.find_spec(each) is None]


def _peers() -> dict[str, tuple[Contender, str]]:
    """All peers, and what is missing of each."""
    pip = "pip install 'legato[bench]'"
    starlette = pip if _missing("fastapi", "sse_starlette") else ""
    redis = pip if starlette or _missing("redis") else ""
    if not redis and shutil.which("redis-server") is None:
        redis = "redis-server (Debian: apt install redis-server)"
    nchan = (
        "" if NCHAN.exists() and shutil.which("nginx") else "nginx with nchan (Debian: apt install libnginx-mod-nchan)"
    )
    return {
        "raw ASGI": (Contender("raw ASGI", serve=_python("raw")), ""),
        "sse-starlette": (Contender("sse-starlette", serve=_python("sse-starlette")), starlette),
        "Redis Streams": (Contender("Redis Streams", serve=_python("redis")), redis),
        "nchan": (Contender("nchan", serve=_nchan), nchan),
    }


def contenders(options: argparse.Namespace, *peers: str, memory: bool = True) -> list[Contender]:
    """This revision of Legato first, each with SQLite and, if wanted, in memory; then those ``peers`` that are here."""
    found = []
    for side in sides(options):
        suffix = ", base" if side.name == "base" else ""
        found.append(Contender(f"Legato{suffix}", side))
        if memory:
            found.append(Contender(f"Legato, memory{suffix}", side, memory=True))
    for name, (peer, missing) in _peers().items():
        if name in peers:
            if missing:
                print(f"{name} is left out: it needs {missing}.", flush=True)
            else:
                found.append(peer)
    return [each for each in found if not options.only or any(word in each.name for word in options.only)]
