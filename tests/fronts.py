"""What stands before a server: nginx, HAProxy and Caddy, with TLS, with the blocks of docs/deploy.md; and what stands
before two, with the files of deploy/."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2

from legato.torture.ports import free_port
from machine import program

ROOT = Path(__file__).parent.parent
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
DOCUMENTED = ("nginx", "HAProxy", "Caddy")
BUFFERING = "nginx that buffers and compresses"
IMPATIENT = f"{BUFFERING}, and waits two seconds"
TLS = ssl._create_unverified_context()
COMPRESSING = ("HAProxy that compresses", "Caddy that compresses")


def documented(heading: str, language: str = "") -> str:
    """The configuration under a heading of docs/deploy.md."""
    found = re.search(rf"### {heading}\n\n```{language}\n(.*?)```", DEPLOY, re.DOTALL)
    assert found
    return found[1]


@functools.cache
def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    crt, key = folder / "chat.crt", folder / "chat.key"
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key),
         "-out", str(crt)],
        check=True, capture_output=True,
    )  # fmt: skip
    return crt, key


def authority(kind: str, folder: Path) -> str:
    """The certificate by which to know that of a proxy, once that is there."""
    own = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    return own.read_text() if kind == "Caddy" else certificate(folder)[0].read_text()


def _changed(text: str, **places: str) -> str:
    """A block of the page with other names, ports and places of files; each has to be in it."""
    assert [old for old in places if old not in text] == []
    # All at once: what is put in may look like what is to be replaced, as the port 44305 does like :443.
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


FILES = {"nginx": "nginx.conf", "HAProxy": "haproxy.cfg", "Caddy": "Caddyfile"}
"""In deploy/, for two nodes."""


def _before(kind: str, servers: Sequence[str], **places: str) -> str:
    """What a proxy of this kind is told for one server, or for two."""
    if len(servers) == 2:
        text = (ROOT / "deploy" / FILES[kind]).read_text()
        nodes = dict(zip(("127.0.0.1:8081", "127.0.0.1:8082"), servers, strict=True))
    else:
        text = documented(kind, "nginx" if kind == "nginx" else "")
        nodes = {"127.0.0.1:8088": servers[0]}
    return _changed(text, **nodes, **places)


def _nginx(kind: str, folder: Path, servers: Sequence[str], port: int) -> list[str]:
    if kind.startswith(BUFFERING):
        # By itself nginx speaks HTTP/1.0 to the server, and buffers.
        waits = "proxy_read_timeout 2s;" if kind == IMPATIENT else ""
        block = f"""gzip on; gzip_types *; proxy_buffering on; {waits}
        server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{servers[0]}; }} }}"""
    else:
        crt, key = certificate(folder)
        block = _before(
            kind, servers,
            **{"listen 443": f"listen 127.0.0.1:{port}", "chat.example.com": "localhost",
               "/etc/ssl/chat.crt": str(crt), "/etc/ssl/chat.key": str(key)},
        )  # fmt: skip
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder / 'pid'}; error_log stderr crit;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}{block}\n}}\n"
    )
    return [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config)]


def _haproxy(kind: str, folder: Path, servers: Sequence[str], port: int) -> list[str]:
    crt, key = certificate(folder)
    both = folder / "chat.pem"
    both.write_text(crt.read_text() + key.read_text())
    block = _before("HAProxy", servers, **{":443": f"127.0.0.1:{port}", "/etc/haproxy/chat.pem": str(both)})
    if kind in COMPRESSING:
        block += "    compression algo gzip\n    compression type text/event-stream application/json\n"
    config = folder / "haproxy.cfg"
    config.write_text(block)
    return [program("haproxy"), "-db", "-f", str(config)]


def _caddy(kind: str, folder: Path, servers: Sequence[str], port: int) -> list[str]:
    block = _before("Caddy", servers, **{"chat.example.com": f"localhost:{port}"})
    if kind in COMPRESSING:
        block = block.replace("{\n", "{\n    encode zstd gzip\n", 1)
    config = folder / "Caddyfile"
    # It would else offer its API at a port of its own, listen at 80 as well, and ask for a password.
    config.write_text(
        "{\n    admin off\n    skip_install_trust\n    auto_https disable_redirects\n"
        f"    log {{\n        level ERROR\n    }}\n}}\n{block}"
    )
    return [program("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]


@contextlib.contextmanager
def front(kind: str, folder: Path, *servers: str) -> Iterator[str]:
    """The address of a proxy before one or two ``servers`` (``127.0.0.1:8088``), which need not be there yet.

    Args:
        kind: one of ``DOCUMENTED``, ``BUFFERING`` or ``COMPRESSING``.
        folder: for its files.
    """
    port = free_port()
    make = {"nginx": _nginx, "HAProxy": _haproxy, "Caddy": _caddy}[kind.partition(" ")[0]]
    command = make(kind, folder, servers, port)
    scheme = "http" if kind.startswith(BUFFERING) else "https"
    environment = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    output = folder / "front.log"
    with output.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as proxy:
        try:
            _until_there(scheme, port, proxy, output)
            yield f"{scheme}://localhost:{port}"
        finally:
            proxy.send_signal(signal.SIGTERM)
            try:
                proxy.wait(10)
            except subprocess.TimeoutExpired:  # Caddy waits for streams
                proxy.kill()


def _until_there(scheme: str, port: int, proxy: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + 60  # a safety net
    while proxy.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
            if scheme == "https":  # Caddy has no certificate yet when it listens
                TLS.wrap_socket(connection, server_hostname="localhost").close()
            return
        time.sleep(0.02)
    raise AssertionError(f"The proxy does not answer: {output.read_text()}")


def client(address: str) -> httpx2.Client:
    """A client at a proxy; the certificate is our own."""
    return httpx2.Client(base_url=address, timeout=60, trust_env=False, verify=False)


def until_ready(client: httpx2.Client) -> None:
    """Wait until the server behind the proxy is ready."""
    deadline = time.monotonic() + 60  # a safety net
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if client.get("/ready").status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError("The server behind the proxy does not answer.")
