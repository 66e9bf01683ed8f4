"""Figures: what is counted, what it is called, and who gets to see it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount

from legato import Legato
from legato.agent import Turn
from legato.bounds import Limits
from legato.caller import Caller
from legato.errors import AgentError
from legato.figures import NAMES, Counts, Figures, Spread
from legato.server.measures import measures
from legato.testing import Driver
from legato.yields import Usage
from processes import running

DOCS = Path(__file__).parent.parent / "docs"
STORES = ["memory", "sqlite"]


async def agent(turn: Turn) -> AsyncIterator[Any]:
    """Does what it is told."""
    if turn.message.text == "fail":
        raise AgentError("No.", code="out_of_tea")
    yield "Half "
    if turn.message.text == "ask":
        await turn.ask_permission("tea", "Tea?", timeout=None)
    yield Usage(input_tokens=7, output_tokens=3, cached_tokens=2, cost=0.5)
    yield "and half."


def legato(store: str, folder: Path, **options: Any) -> Legato:
    return Legato("memory:" if store == "memory" else f"sqlite:///{folder}/log.db", agents=[agent], **options)


def values(text: str) -> dict[str, float]:
    """Each sample of an answer to Prometheus, as ``name{label="value"}``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def scraped(app: Legato) -> dict[str, float]:
    return values((await app.metrics().text())[0].decode())


async def sent(driver: Driver, session: str, text: str, **headers: str) -> str:
    """The run that is to answer."""
    target = f"/api/sessions/{session}/messages"
    answer = await driver.request("POST", target, json={"text": text}, headers=headers)
    assert answer.status in (200, 202), answer.text
    return str(answer.json()["runId"])


async def ends(app: Legato, count: int) -> None:
    """Wait until so many runs have ended."""
    while sum(app.life.figures.ended.counts.values()) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)


# What is counted ------------------------------------------------------------------------------------------------------


def test_a_spread_is_what_it_says() -> None:
    """A value belongs to the first bound that it is not beyond; a clock that was set back counts as none at all."""
    spread = Spread((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0, -3.0):
        spread.add(value)

    assert spread.counts == [3, 2, 1]
    assert (spread.count, spread.sum) == (6, 14.0)
    assert (spread.within(0.5), spread.within(0.9), Spread().within(0.5)) == (1.0, float("inf"), None)


def test_a_tally_has_a_bound() -> None:
    """However many names come, be it that somebody makes them up."""
    tally = Counts()
    for number in range(5 * NAMES):
        tally.add("failed", f"code_{number}")

    assert len(tally.counts) == NAMES + 1
    assert tally["other", "other"] == 4 * NAMES
    assert sum(tally.counts.values()) == 5 * NAMES


@pytest.mark.parametrize("store", STORES)
async def test_what_happens_is_counted(tmp_path: Path, store: str) -> None:
    """Runs by their ends, tokens, streams by their beginnings, answers, and how long things took."""
    app = legato(store, tmp_path)
    async with Driver(app) as driver:
        before = await scraped(app)
        assert (before['legato_runs{state="running"}'], before["legato_store_up"]) == (0, 1)
        for session in ("a", "b"):
            await driver.request("POST", "/api/sessions", json={"id": session})
        await sent(driver, "a", "say")
        await sent(driver, "a", "fail")
        await ends(app, 2)
        await sent(driver, "b", "ask")
        while app.runner.asking == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await sent(driver, "b", "say")
        during = await scraped(app)
        assert during['legato_runs{state="asking"}'] == 1
        assert during['legato_runs{state="waiting"}'] == 1
        await driver.request("POST", "/api/sessions/b/cancel", json={})
        await ends(app, 4)
        async with driver.stream("/stream?sessionId=a&from=start") as first:
            await anext(aiter(first))
            reading = await scraped(app)
        async with driver.stream("/stream?sessionId=a", headers={"last-event-id": "2"}) as resumed:
            await anext(aiter(resumed))
        async with driver.stream("/stream?sessionId=a", headers={"last-event-id": "999"}) as reset:
            await anext(aiter(reset))
        after = await scraped(app)

    assert sum(reading[f'legato_readers{{state="{state}"}}'] for state in ("live", "behind", "stalled")) == 1
    assert after['legato_runs_ended_total{code="",outcome="completed"}'] == 1
    assert after['legato_runs_ended_total{code="out_of_tea",outcome="failed"}'] == 1
    assert after['legato_runs_ended_total{code="",outcome="cancelled"}'] == 2
    assert after["legato_first_token_seconds_count"] == 2
    assert after["legato_run_wait_seconds_count"] == 3  # the fourth was cancelled while it waited
    assert after['legato_tokens_total{agent="agent",kind="input"}'] == 7
    assert after['legato_tokens_total{agent="agent",kind="cached"}'] == 2
    assert after['legato_cost_total{agent="agent"}'] == 0.5
    assert {start: after[f'legato_streams_total{{dialect="mix",start="{start}"}}'] for start in ("new", "resumed")} == {
        "new": 1,
        "resumed": 1,
    }
    assert after['legato_streams_total{dialect="mix",start="reset"}'] == 1
    assert after["legato_stream_bytes_total"] == sum(len(each.body) for each in (first, resumed, reset))
    assert after['legato_answers_total{operation="createSession",status="201"}'] == 2
    assert after["legato_answer_seconds_count"] > 4
    if store == "sqlite":
        commits = after["legato_store_commit_seconds_count"]
        assert commits == after["legato_store_commit_requests_count"] > 4
        assert after["legato_store_commit_requests_sum"] >= commits
        assert after["legato_store_failures_total"] == 0


async def test_a_run_of_an_earlier_life_is_taken_over(tmp_path: Path) -> None:
    """It is counted where it goes on."""
    app = legato("sqlite", tmp_path, limits=Limits(cancel_grace=0.01), grace=0.0)
    app.agents["agent"].on_crash = "retry"
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await sent(driver, "a", "ask")
        while app.runner.asking == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
    async with Driver(app) as driver:
        while app.runner.asking == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await scraped(app))["legato_runs_taken_over_total"] == 1


async def test_what_is_delivered_late_is_seen(tmp_path: Path) -> None:
    """From the time in the log to the connection, for one of the deliveries between two looks of a timer."""
    app = legato("memory", tmp_path)
    driver = Driver(app)
    driver.lines = True
    async with driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        async with driver.stream("/stream?sessionId=a") as stream:
            chunks = aiter(stream)
            await anext(chunks)
            app.life.figures.delivery = Spread()
            app.life.figures.due = True
            await sent(driver, "a", "say")
            await anext(chunks)
            assert app.life.figures.delivery.count >= 1
            assert 0 <= app.life.figures.delivery.sum < 60


async def test_a_reader_who_takes_nothing_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is told by how many events."""
    app = legato("memory", tmp_path)
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        async with driver.stream("/stream?sessionId=a&from=start", buffer=0):
            await sent(driver, "a", "say")
            await ends(app, 1)
            found = {each.name: each for each in await measures(app.life)}
            assert dict(found["legato_readers"].samples[1][0]) == {"state": "behind"}
            assert found["legato_readers"].samples[1][1] == 1
            assert found["legato_readers_behind_events"].samples[0][1] > 1
            monkeypatch.setattr("legato.server.measures.STALLED", 0.0)
            found = {each.name: each for each in await measures(app.life)}
            assert found["legato_readers"].samples[2][1] == 1


# What it is called ----------------------------------------------------------------------------------------------------

UNITS = ("_seconds", "_bytes", "_total", "_characters", "_events", "_requests")
BARE = {
    *("legato_runs", "legato_run_places", "legato_readers", "legato_readers_limit", "legato_store_up", "legato_info"),
    *("legato_draining", "legato_renderer_processes", "legato_connections", "legato_connections_limit"),
}
"""Counts of things, and yes or no: what has no unit."""


async def test_names_are_as_prometheus_has_them_and_documented(tmp_path: Path) -> None:
    """Each has its unit at its end and a sentence; docs/operate.md has each, and no other."""
    app = legato("sqlite", tmp_path)
    async with Driver(app):
        found = await measures(app.life, _connections())
    names = [each.name for each in found]

    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"legato_[a-z_]+", name)] == []
    assert [name for name in names if not name.endswith(UNITS) and name not in BARE] == []
    assert [each.name for each in found if not each.help.endswith(".")] == []
    documented = re.findall(r"^\| `(legato_[a-z_]+)`", (DOCS / "operate.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(names)


def _connections() -> Any:
    from legato.server.connections import Connections
    from legato.server.traffic import Traffic

    return Connections(Traffic())


async def test_no_label_names_anybody(tmp_path: Path) -> None:
    """However many sessions and callers there are, there are as many series as before, and none of their names."""

    def identify(scope: Any) -> Caller:
        return Caller(dict(scope["headers"])[b"x-who"].decode())

    app = legato("memory", tmp_path, identify=identify)
    async with Driver(app) as driver:
        counts = []
        for turn in range(2):
            for number in range(3):
                who = {"x-who": f"ida{turn}{number}"}
                await driver.request("POST", "/api/sessions", json={"id": f"secret{turn}{number}"}, headers=who)
                await sent(driver, f"secret{turn}{number}", "say", **who)
            await ends(app, 3 + 3 * turn)
            text = (await app.metrics().text())[0].decode()
            assert not re.search("ida|secret|127.0.0.1", text)
            counts.append(len(values(text)))
    assert counts[0] == counts[1]


# Who gets to see it ---------------------------------------------------------------------------------------------------


async def test_it_is_no_part_of_the_api(tmp_path: Path) -> None:
    """The port that people reach does not have it."""
    async with Driver(legato("memory", tmp_path)) as driver:
        assert (await driver.request("GET", "/metrics")).status == 404


async def test_an_application_mounts_it_where_it_likes(tmp_path: Path) -> None:
    """It answers reads alone, in the form that is asked for; each application counts for itself."""
    one, other = legato("memory", tmp_path), legato("memory", tmp_path)
    async with Driver(one) as driver, Driver(other):
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        asked = Driver(one.metrics(), lifespan=False)
        answer = await asked.request("GET", "/metrics")
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
        assert values(answer.text)['legato_answers_total{operation="createSession",status="201"}'] == 1
        assert "process_resident_memory_bytes" in values(answer.text)
        assert not any("createSession" in name for name in await scraped(other))
        wanted = {"accept": "application/openmetrics-text; version=1.0.0"}
        assert (await asked.request("GET", "/", headers=wanted)).text.endswith("# EOF\n")
        assert (await asked.request("HEAD", "/metrics")).status == 200
        assert (await asked.request("POST", "/metrics")).status == 405
        assert (await asked.request("GET", "/api/sessions")).status == 404
        assert (await asked.request("GET", "/metrics", headers={"host": "evil.test"})).status == 200
        mounted = Driver(Starlette(routes=[Mount("/internal/metrics", one.metrics())]), lifespan=False)
        assert (await mounted.request("GET", "/internal/metrics/")).status == 200
        assert (await mounted.request("GET", "/internal/metrics/x")).status == 404
        local = Driver(one.metrics(local=True), lifespan=False)
        assert (await local.request("GET", "/metrics", headers={"host": "evil.test"})).status == 421
        for host in ("localhost:9464", "127.0.0.1", "[::1]:9464", "10.0.0.5"):
            assert (await local.request("GET", "/metrics", headers={"host": host})).status == 200
    stopped = await Driver(one.metrics(), lifespan=False).request("GET", "/metrics")
    assert (stopped.status, stopped.json()["error"]["reason"]) == (503, "draining")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of a server, and of its metrics."""
    folder = tmp_path_factory.mktemp("metrics")
    with running("legato", "serve", "--port", "0", "--metrics", "0", "--store", "memory:", cwd=folder) as process:
        assert process.said("stop ")
        found = re.search(r"metrics (http://127\.0\.0\.1:\d+/metrics)", process.output)
        assert found is not None, process.output
        yield process.url, found[1]


def test_serve_gives_it_a_port_of_its_own(server: tuple[str, str]) -> None:
    """With the connections of the other one; and the other one does not have it."""
    url, address = server
    with httpx2.Client(trust_env=False) as client:
        assert client.get(f"{url}/health").status_code == 200
        found = values(client.get(address).text)
        assert found['legato_answers_total{operation="getHealth",status="200"}'] == 1
        assert found["legato_connections_accepted_total"] == 1
        assert found['legato_connections{state="idle"}'] == 1
        assert found["legato_event_loop_lag_seconds_count"] > 0
        assert client.get(f"{url}/metrics").status_code == 404
        assert client.get(address, headers={"host": "evil.test"}).status_code == 421


@pytest.mark.parametrize("address", ["", "x", ":9464", "localhost:", "localhost:99999", "-1", "1.5", "http://x:1"])
def test_serve_wants_an_address(tmp_path: Path, address: str) -> None:
    """What it is to be, and what came."""
    from click.testing import CliRunner

    from legato.cli.group import group

    result = CliRunner().invoke(group, ["serve", "--store", "memory:", "--port", "0", f"--metrics={address}"])
    assert result.exit_code == 2
    assert "--metrics wants a port, or host:port" in result.stderr


def test_nobody_who_does_not_ask_for_it_loads_it() -> None:
    """A server without metrics or traces does not need what they need."""
    code = "from legato import Legato; import legato.server.serve, sys; Legato('memory:'); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [
        name for name in found if name.startswith(("prometheus_client", "opentelemetry", "legato.server.metrics"))
    ]


async def test_without_its_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when somebody asks."""
    from legato.errors import InvalidInput

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InvalidInput, match=r"pip install 'legato\[metrics\]'"):
        legato("memory", tmp_path).metrics()


def test_figures_begin_at_nothing() -> None:
    """Those of one application are nobody else's."""
    assert Figures().waits is not Figures().waits


# The dashboard and the alerts -----------------------------------------------------------------------------------------

DEPLOY = Path(__file__).parent.parent / "deploy"
SUFFIX = re.compile("_(?:bucket|sum|count)$")
OTHERS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"}
OTHERS |= {"process_start_time_seconds"}
"""Of any process, from prometheus-client."""


def expressions() -> Iterator[tuple[str, str]]:
    """Those of the dashboard and of the alerts, with their names."""
    board = json.loads((DEPLOY / "grafana" / "legato.json").read_text("utf-8"))
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    rules = (DEPLOY / "prometheus" / "legato.rules.yml").read_text("utf-8")
    yield from re.findall(r"- alert: (\w+)\n +expr: (.+)\n", rules)


async def test_dashboard_and_alerts_ask_for_what_there_is(tmp_path: Path) -> None:
    """Each figure in them exists, with the labels that they look at; and each figure is in one of them."""
    app = legato("sqlite", tmp_path)
    async with Driver(app):
        found = {each.name: each for each in await measures(app.life, _connections())}
    used: set[str] = set()
    for title, text in expressions():
        for name in re.findall(r"\b(?:legato|process)_[a-z_]+\b", text):
            whole = name if name in found else SUFFIX.sub("", name)
            assert whole in found or name in OTHERS, (title, name)
            assert (whole == name) == (name in OTHERS or found[whole].kind != "histogram"), (title, name)
            used.add(whole)
        assert "rate(" in text or "increase(" in text or not re.search(r"_total\b", text), title
    assert found.keys() - used == {"legato_info"}  # which the dashboard lists its servers by


def test_the_dashboard_is_one_for_grafana() -> None:
    """As far as that can be said without Grafana: what each panel has, and that none lies on another."""
    board = json.loads((DEPLOY / "grafana" / "legato.json").read_text("utf-8"))
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= board.keys()
    assert {each["name"] for each in board["templating"]["list"]} == {"datasource", "instance"}
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"])


def test_the_alerts_are_documented() -> None:
    """docs/operate.md says of each what to do."""
    named = re.findall(r"^\| `(Legato\w+)` \|", (DOCS / "operate.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(title for title, _ in expressions() if title.startswith("Legato"))
