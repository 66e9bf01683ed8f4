"""Lines of the log: what stands in which field, and what in none."""

from __future__ import annotations

import ast
import functools
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from legato import Legato
from legato.agent import Turn
from legato.caller import Caller
from legato.logs import ACCESS, LEFT_OUT, JSONFormatter, TextFormatter, fields, set_up
from legato.server.guard import HostRefused
from legato.testing import Driver
from test_metrics import ends

SOURCE = Path(__file__).parent.parent / "src" / "legato"
SECRETS = ("hush", "sesame", "Secret" * 7)
KEY = f"lg_abcdefghijkl_{'Secret' * 7}x"


class Lines:
    """What is logged, as a program that reads it has it."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(formatter)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    found = Lines(TextFormatter() if getattr(request, "param", "json") == "text" else JSONFormatter())
    root, access = logging.getLogger(), logging.getLogger(ACCESS)
    before = root.level, access.level
    root.addHandler(found.handler)
    root.setLevel(logging.INFO)
    access.setLevel(logging.INFO)
    yield found
    root.removeHandler(found.handler)
    root.setLevel(before[0])
    access.setLevel(before[1])


async def agent(turn: Turn) -> AsyncIterator[str]:
    """Logs, and fails."""
    logging.getLogger("theirs").info("the tea is ready")
    yield "hush"
    if turn.message.text == "fail":
        raise RuntimeError("no tea")


def identify(scope: Any) -> Caller:
    return Caller(dict(scope["headers"]).get(b"x-who", b"").decode())


async def test_lines_say_what_they_are_about(lines: Lines) -> None:
    """Of a run also those of the agent and its libraries; and of which request it is."""
    app = Legato("memory:", agents=[agent], identify=identify)
    async with Driver(app, headers={"x-who": "ida"}) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"}, headers={"x-request-id": "mine-1"})
        await driver.request("DELETE", f"/api/auth/keys/{KEY}", headers={"x-request-id": "mine-0"})
        target = "/api/sessions/a/messages?key=sesame"
        sent = await driver.request("POST", target, json={"text": "fail"}, headers={"x-request-id": "mine-2"})
        await ends(app, 1)
        run = sent.json()["runId"]
    theirs = next(each for each in lines.records if each["logger"] == "theirs")
    failed = next(each for each in lines.records if each["level"] == "error")
    access = [each for each in lines.records if each["logger"] == ACCESS]

    about = {"request": "mine-2", "owner": "ida", "session": "a", "run": run}
    assert {name: theirs[name] for name in about} == about
    assert {name: failed[name] for name in about if name != "request"} | {"request": "mine-2"} == about
    assert failed["message"] == f"run {run}: the agent failed"
    assert failed["exception"].splitlines()[-1] == f"RuntimeError: {LEFT_OUT}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", failed["time"])
    assert [(each["method"], each["path"], each["status"], each["request"]) for each in access] == [
        ("POST", "/api/sessions", 201, "mine-1"),
        ("DELETE", "/api/auth/keys/lg_abcdefghijkl_...", 404, "mine-0"),
        ("POST", "/api/sessions/a/messages", sent.status, "mine-2"),
    ]
    assert [secret for secret in SECRETS if secret in lines.text] == []


async def test_what_serves_many_is_about_nobody(lines: Lines) -> None:
    """The runner's own task is begun by the first who needs it, and would be about that for ever."""
    app = Legato("memory:", agents=[agent])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await driver.request("POST", "/api/sessions/a/messages", json={"text": "go"}, headers={"x-request-id": "first"})
        await ends(app, 1)
        log = logging.getLogger("legato")

        async def broken(**_: object) -> None:
            log.warning("cannot look after leases: %s", "it is away")
            raise RuntimeError

        app.runner.store.renew = broken  # type: ignore[method-assign]
        app.runner._renewal = (0.0, 0.0)
        app.runner.wake("a")
        while not any("leases" in each["message"] for each in lines.records):
            import asyncio

            await asyncio.sleep(0)
    line = next(each for each in lines.records if "leases" in each["message"])
    assert line.keys() == {"time", "level", "logger", "message"}


@pytest.mark.parametrize(
    "target", ["/health", "/api/sessions/none", "/v1/responses/none", "/api/sdk/personas", "/stream"]
)
async def test_each_answer_has_an_id(target: str) -> None:
    """The one that the request came with, if it is one; else its own."""
    async with Driver(Legato("memory:", agents=[agent])) as driver:
        given = await driver.request("GET", target, headers={"x-request-id": "01J-9:x/y+z=@."})
        assert given.headers["x-request-id"] == "01J-9:x/y+z=@."
        assert len({(await driver.request("GET", target)).headers["x-request-id"] for _ in range(3)}) == 3
        for wrong in ("", "a b", "x" * 129, "é", 'a"b'):
            answer = await driver.request("GET", target, headers={"x-request-id": wrong})
            assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
        refused = await driver.request("GET", target, headers={"host": "evil.test", "x-request-id": "mine"})
        assert (refused.status, refused.headers["x-request-id"]) == (HostRefused.status, "mine")


@pytest.mark.parametrize("lines", ["text", "json"], indirect=True)
@pytest.mark.parametrize("path", ["/x%0A12:00:00 ERROR forged", "/x%0D%0Ay", "/%E2%80%A8z", "/%1b[31mred", "/%00"])
async def test_nobody_writes_lines_of_their_own(lines: Lines, path: str) -> None:
    """What a request says makes no line of the log, and moves no cursor on a terminal."""
    app = Legato("memory:", agents=[agent])
    async with Driver(app) as driver:
        await driver.request("GET", path.replace(" ", "%20"))
        logging.getLogger("legato").error("%s %s: %s", "GET", "/x\n12:00:00 ERROR forged\u2028\x1b[31m", "no")
    assert len(lines.text.splitlines()) == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", lines.text)


def record(message: str, *arguments: object, name: str = "legato", **extra: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, __file__, 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (record("run %s: %d of %s", "s~r", 3, "x"), {"run": "s~r", "session": "s"}),
        (record("%d%% of session %s, agent %s", 50, "s", "a"), {"session": "s", "agent": "a"}),
        (record("%.0f s; tool %s", 1.5, "kettle"), {"tool": "kettle"}),
        (record("run %s", "s~r", name="theirs"), {}),
        (record("run %(id)s", {"id": "x"}), {}),
        (record("running %s", "x"), {}),
        (record("no arguments: run %s"), {}),
    ],
)
def test_a_sentence_is_its_structure(made: logging.LogRecord, told: dict[str, str]) -> None:
    """What stands behind a word that names it is a field, whatever stands before it; in lines of ours alone."""
    found = fields(made)
    assert {name: value for name, value in found.items() if name not in ("time", "level", "logger", "message")} == told


def test_any_line_can_be_written() -> None:
    """Halves of letters and objects that cannot be shown end no server."""
    made = json.loads(JSONFormatter().format(record("%s", "\ud83d half")))
    assert made["message"] == "\\ud83d half"
    assert json.loads(JSONFormatter().format(record("%s", "x", method=b"\xff")))["method"]


@functools.cache
def calls() -> list[tuple[str, str]]:
    """The sentences that are logged with something in them, what that is, and where."""
    return list(_calls())


def _calls() -> Iterator[tuple[str, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and len(node.args) > 1
                and isinstance(node.args[0], ast.Constant)
            ):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", str(node.args[0].value)
                for argument in node.args[1:]:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", ast.unparse(argument)


def test_sentences_name_sessions_and_runs() -> None:
    """An id that stands in a line has its word before it, so that it is a field; and none is put in as text."""
    found = calls()
    assert len(found) > 60
    ids = re.compile(r"(?:\.|^|_)(?:session|run)$")
    wrong = []
    place: dict[str, str] = {}
    for where, text in found:
        if "%" in text and where not in place:
            place[where] = text
        elif ids.search(text):
            word = "session" if text.endswith("session") else "run"
            if f"{word} %s" not in place[where]:
                wrong.append(f"{where}: {place[where]!r} has {text}")
    assert wrong == []


def test_no_sentence_has_the_address_of_a_client() -> None:
    """Which is personal data, and what many log for ever."""
    told = re.compile(r"(?:\.|^|_)(?:client|address|peer|party|headers)\b(?!\()")
    assert [(where, text) for where, text in calls() if "%" not in text and told.search(text)] == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_serve_writes_them(form: str, tmp_path: Path) -> None:
    """To standard error, in the form that is asked for; an unusable target is told as before."""
    code = (
        "import logging; from legato.logs import set_up;"
        f"set_up('info', {form!r}, access=True); logging.getLogger('legato').info('run %s', 's~r');"
        "logging.getLogger('legato.access').info('x'); logging.getLogger('legato').debug('no')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == ""
    first, second = told.stderr.splitlines()
    assert (json.loads(first)["run"] if form == "json" else first.endswith("INFO    run s~r")) in ("s~r", True)
    assert second


def test_a_program_that_has_its_own_logging_keeps_it() -> None:
    """Pytest has, here."""
    before = [*logging.getLogger().handlers, sys.unraisablehook, threading.excepthook]
    access = logging.getLogger(ACCESS)
    level = access.level
    set_up("debug", "json")
    try:
        assert [*logging.getLogger().handlers, sys.unraisablehook, threading.excepthook] == before
        assert not access.isEnabledFor(logging.INFO)
    finally:
        access.setLevel(level)
