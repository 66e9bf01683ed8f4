"""docs/deploy.md, block by block, as it stands in the page: what it tells people to run, runs.

Proxies are run by test_proxies.py and test_rehearsal.py, too, at other ports; here they have the page's own ports,
names and places of files, in a namespace of their own, where nobody else has them.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest

from databases import shared_postgres
from fronts import DEPLOY, certificate, documented
from machine import program
from processes import bounded, running
from valkeys import shared_valkey

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROOT = Path(__file__).parent.parent
BLOCKS = [(language, code) for language, code in FENCE.findall(DEPLOY)]
AGENT = 'async def agent(turn):\n    yield "Hello."\n'
COMMAND = shutil.which("legato", path=str(Path(sys.executable).parent)) or "legato"


def block(language: str, start: str) -> str:
    """The one block of a language that has a line that begins so."""
    [found] = [
        code for each, code in BLOCKS if each == language and re.search(f"^{re.escape(start)}", code, re.MULTILINE)
    ]
    return found


TRIED = [
    ("ini", "[Unit]"),
    ("ini", "[Socket]"),
    ("dockerfile", "FROM"),
    ("nginx", "server {"),
    ("", "chat.example.com {"),
    ("", "defaults"),
    ("sh", "legato backup"),
    ("sh", "createdb"),
    ("sh", "pip install 'legato[server,redis]'"),
    ("", "ACL"),  # by test_redis.py
    ("sh", "legato migrate"),  # by test_migrate_stores.py
]


def test_each_block_is_tried() -> None:
    """A new one needs a test here."""
    assert sorted(block(*each) for each in TRIED) == sorted(code for _, code in BLOCKS)


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_the_unit_for_systemd(tmp_path: Path) -> None:
    """Its command serves, stops at its signal, and in less than its time."""
    parsed = unit(block("ini", "[Unit]"))
    service = parsed["Service"]
    (tmp_path / "my_agent.py").write_text(AGENT)
    command = (
        service["ExecStart"].replace("/srv/legato/.venv/bin/legato", "legato").replace("/srv/legato", str(tmp_path))
    )
    arguments = shlex.split(command)
    assert arguments[0] == "legato"
    assert set(parsed["Install"]) == {"WantedBy"}
    assert int(service["TimeoutStopSec"]) > 25 + 5  # of --grace, and what it may take besides
    assert int(service["LimitNOFILE"]) > 20_000  # connections
    with running(*arguments, "--port", "0", cwd=tmp_path) as server:
        with httpx2.Client(base_url=server.url, trust_env=False) as client:
            assert client.get("/ready", headers={"host": "chat.example.com"}).status_code == 200
            assert client.get("/ready", headers={"host": "evil.test"}).status_code == 421
        server.process.send_signal(getattr(signal, service["KillSignal"]))
        assert server.stopped() == 0
    assert (tmp_path / "chat.db").exists()


@pytest.mark.parametrize("start", ["[Unit]", "[Socket]"])
def test_systemd_knows_each_line(start: str, tmp_path: Path) -> None:
    """By systemd's own word."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is missing; on Debian: apt-get install systemd")
    text = block("ini", "[Unit]").replace("/srv/legato/.venv/bin/legato", sys.executable)
    text = text.replace("User=legato", f"User={os.environ.get('USER') or 'root'}").replace("/srv/legato", str(tmp_path))
    (tmp_path / "legato.service").write_text(text)
    name = "legato.service"
    if start == "[Socket]":
        name = "legato.socket"
        (tmp_path / name).write_text(block("ini", start))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("legato.")]
    assert not said, said


def test_a_socket_of_systemd(tmp_path: Path) -> None:
    """The address of the unit, handed over as systemd hands it: the port is open while nobody serves."""
    address = unit(block("ini", "[Socket]"))["Socket"]["ListenStream"]
    assert re.fullmatch(r"127\.0\.0\.1:8088", address)
    (tmp_path / "my_agent.py").write_text(AGENT)
    code = """if True:
        import os, socket, sys
        listener = socket.create_server(("127.0.0.1", 0))
        print("http://127.0.0.1:%d" % listener.getsockname()[1], flush=True)
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        os.execv(sys.executable, [sys.executable, "-m", "legato", "serve", *sys.argv[1:]])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, "my_agent.py", "--store", "sqlite:///chat.db"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout
        with bounded(process, "address of the server"):
            url = process.stdout.readline().strip()
        assert httpx2.get(f"{url}/health", timeout=60, trust_env=False).status_code == 200
    finally:
        process.kill()
        process.communicate()


def test_the_file_for_docker(tmp_path: Path) -> None:
    """Its command, without Docker, with its folder for the data; what it installs is what the project offers."""
    steps = dict(re.findall(r"^([A-Z]+) (.+)$", block("dockerfile", "FROM"), re.MULTILINE))
    assert set(steps) == {"FROM", "WORKDIR", "COPY", "RUN", "CMD"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extra = re.fullmatch(r"pip install --no-cache-dir '(\w+)\[(\w+)\]'", steps["RUN"]).groups()  # type: ignore[union-attr]
    assert name == project["name"]
    assert extra in project["optional-dependencies"]
    python = tuple(map(int, re.fullmatch(r"python:(\d+)\.(\d+)-slim", steps["FROM"]).groups()))  # type: ignore[union-attr]
    assert python >= tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    (tmp_path / steps["COPY"].split()[0]).write_text(AGENT)
    command = [each.replace("/data", str(tmp_path)) for each in json.loads(steps["CMD"])]
    with running(*command, "--port", "0", cwd=tmp_path) as server:
        port = server.url.rpartition(":")[2]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/ready", headers={"host": "chat.example.com"}).status_code == 200


def test_the_command_for_a_backup(tmp_path: Path) -> None:
    """As it stands, in a shell, while the server runs."""
    (tmp_path / "my_agent.py").write_text(AGENT)
    command = ("legato", "serve", "my_agent.py", "--port", "0", "--store", "sqlite:///chat.db")
    with running(*command, cwd=tmp_path) as server, httpx2.Client(base_url=server.url, trust_env=False) as client:
        session = client.post("/api/sessions", json={}).json()["id"]
        path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-e", "-c", block("sh", "legato backup")],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "chat-backup.db") as copy:
        assert session in "".join(copy.iterdump())


def offered(install: list[str]) -> bool:
    """Whether what ``pip install`` names is what the project offers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = install[2].removeprefix(f"{project['name']}[").removesuffix("]").split(",")
    return set(extras) <= project["optional-dependencies"].keys()


def test_the_commands_for_postgresql(tmp_path: Path) -> None:
    """An extra that there is, a new database, and a server on it."""
    psycopg = pytest.importorskip("psycopg", reason="needs legato[postgres]")
    server = shared_postgres()
    install, create, serve = (shlex.split(line) for line in block("sh", "createdb").splitlines())
    assert offered(install)
    assert create[1] == "--encoding"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {create[3]} ENCODING '{create[2]}' TEMPLATE template0")
    (tmp_path / "my_agent.py").write_text(AGENT)
    store = serve[-1].replace("db.example.com", f"127.0.0.1:{server.port}")
    with running(*serve[:-1], store, "--port", "0", cwd=tmp_path) as node:
        assert httpx2.get(f"{node.url}/ready", timeout=60, trust_env=False).status_code == 200


def test_the_commands_for_redis(tmp_path: Path) -> None:
    """An extra that there is, and a server on a server that is empty."""
    pytest.importorskip("redis", reason="needs legato[redis]")
    install, serve = (shlex.split(line) for line in block("sh", "pip install 'legato[server,redis]'").splitlines())
    assert offered(install)
    (tmp_path / "my_agent.py").write_text(AGENT)
    store = serve[-1].replace("db.example.com:6379", f"127.0.0.1:{shared_valkey().port}")
    with running(*serve[:-1], f"{store}?prefix=page", "--port", "0", cwd=tmp_path) as node:
        assert httpx2.get(f"{node.url}/ready", timeout=60, trust_env=False).status_code == 200


# In a namespace of its own: ports, names and places of files are those of the page.
ALONE = """
set -e
ip link set lo up
for place in /etc/ssl /etc/haproxy; do
    if [ -d $place ]; then mount -t tmpfs none $place; fi
done
cp chat.crt chat.key /etc/ssl
if [ -d /etc/haproxy ]; then cat chat.crt chat.key > /etc/haproxy/chat.pem; fi
exec "$@"
"""
PROBE = """
import subprocess, sys, time
import httpx2

def within(command):
    return subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)

def probe(server, proxy):
    deadline = time.monotonic() + 60
    asked = {"headers": {"host": "chat.example.com"}, "extensions": {"sni_hostname": "chat.example.com"}}
    with httpx2.Client(base_url="https://127.0.0.1", verify=False, trust_env=False, timeout=20) as client:
        while True:
            try:
                if client.get("/ready", **asked).status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            if proxy.poll() is not None or server.poll() is not None or time.monotonic() > deadline:
                sys.exit("It does not answer.")
            time.sleep(0.05)
        session = client.post("/api/sessions", json={}, **asked).json()["id"]
        client.post(f"/api/sessions/{session}/messages", json={"text": "Hello"}, **asked)
        with client.stream("GET", f"/stream?sessionId={session}&from=start", **asked) as response:
            text = ""
            for piece in response.iter_text():
                text += piece
                if "event: complete" in text:
                    print("complete")
                    return

server = within([sys.executable, "-m", "legato", "serve", "my_agent.py", "--allow-host", "chat.example.com"])
proxy = within(sys.argv[1:])
try:
    probe(server, proxy)
finally:
    for process in (proxy, server):  # kindly: what they have started ends, too
        process.terminate()
        process.wait()
"""


@pytest.mark.parametrize("kind", ["nginx", "HAProxy", "Caddy"])
def test_a_proxy_as_it_stands(kind: str, tmp_path: Path) -> None:
    """With nothing changed: where it listens, what it stands before, and where its certificate is."""
    folder = ["unshare", "--map-root-user", "--net", "--mount"]
    try:
        subprocess.run([*folder, "ip", "link", "set", "lo", "up"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("unshare or ip is missing, or not allowed; on Debian: apt-get install util-linux iproute2, as root")
    certificate(tmp_path)
    (tmp_path / "my_agent.py").write_text(AGENT)
    if kind == "nginx":
        places = "".join(
            f"{each}_temp_path {tmp_path};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        around = f"daemon off; user root; pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ access_log off;"
        (tmp_path / "conf").write_text(f"{around} {places}\n{documented('nginx', 'nginx')}}}\n")
        command = [program("nginx"), "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "conf")]
    elif kind == "HAProxy":
        (tmp_path / "conf").write_text(documented("HAProxy"))
        command = [program("haproxy"), "-db", "-f", str(tmp_path / "conf")]
    else:
        # A certificate of its own making: nobody can be asked for one here.
        (tmp_path / "conf").write_text("{\n local_certs\n skip_install_trust\n}\n" + documented("Caddy"))
        command = [program("caddy"), "run", "--config", str(tmp_path / "conf"), "--adapter", "caddyfile"]
    done = subprocess.run(
        [*folder, "sh", "-c", ALONE, "sh", sys.executable, "-c", PROBE, *command],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip() == "complete", done.stderr[-3000:]
