"""Rows of a SQLite file that nobody can read, as a broken disk, another program or an older version may leave them.

One such event is shown as damaged, and is named in the log once. Whatever shows its session, or a list of all, answers.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client_faces import FACES, use
from driving import Chat, echo
from legato.client import models
from legato.errors import StoreCorrupt
from legato.server.app import Legato
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver
from live_server import serving
from raw_log import canonical

TYPES = ["session.created", "message.created", "run.started", "run.completed"]
TEXTS: dict[str, str | bytes] = {
    "no JSON": "not json",
    "half": '{"id": "a',
    "a list": "[]",
    "null": "null",
    "nothing": "",
    "a number beyond all": '{"usage": {"cost": 1e400}, "finish_reason": "stop"}',
    "NaN": '{"usage": {"cost": NaN}}',
    "too deep": '{"metadata": ' + "[" * 5_000 + "]" * 5_000 + ', "id": "x"}',
    "no UTF-8": b'{"id": "\xff", "title": "\xff", "agent": "\xff", "finish_reason": "\xff"}',
    "no UTF-8 in what is not known": b'{"future": "\xff"}',
}
USAGES = [
    '{"input_tokens": null, "output_tokens": 2}',
    '{"input_tokens": "12"}',
    '{"input_tokens": 1180591620717411303424}',
    '{"input_tokens": -5, "cost": -1}',
    '{"cost": null}',
    '{"cost": 1e308}',
    '{"cost": 1' + "0" * 400 + "}",
    '{"model": null, "cost": "x", "reasoning_tokens": []}',
    "5",
    "[]",
]
"""As a version before the check at the door has stored them, or somebody else."""
READS: list[tuple[str, str, Any]] = [
    ("GET", "/api/sessions", list[models.SessionData]),
    ("GET", "/api/sessions/{s}", models.SessionData),
    ("GET", "/api/sessions/{s}/messages", list[models.BackendMessage]),
    ("GET", "/api/sessions/{s}/export", models.ExportSession),
    ("GET", "/api/sessions/{s}/events", models.EventPage),
    ("GET", "/api/messages/history", list[models.BackendMessage]),
    ("GET", "/v1/responses/resp_{r}", None),
    ("GET", "/api/sdk/chat/{s}", None),
    ("GET", "/api/sdk/chat/{s}/messages", None),
    ("GET", "/api/inspect", None),
    ("GET", "/api/inspect/sessions/{s}", None),
    ("GET", "/api/inspect/sessions/{s}/wire?dialects=mix/legato,responses,chat,deva", None),
]


def app_on(folder: Path) -> Legato:
    app = Legato(SQLiteStore(folder / "log.db"), agents=[echo], grace=0.0)
    app.drain_on_signal = False
    return app


@asynccontextmanager
async def three(folder: Path, change: str, *values: object) -> AsyncIterator[tuple[Driver, list[str], str]]:
    """A server of three sessions with one answer each, whose second one somebody has changed; its run."""
    sessions, runs = [], []
    async with Driver(app_on(folder)) as driver:
        for _ in range(3):
            sessions.append((await driver.request("POST", "/api/sessions", json={"title": "t"})).json()["id"])
            runs.append((await Chat(app_on(folder), driver, sessions[-1]).said()).json()["runId"])
    with sqlite3.connect(folder / "log.db") as file:
        assert file.execute(change, values).rowcount == 1
    file.close()
    async with Driver(app_on(folder)) as driver:
        yield driver, sessions, runs[1]


async def read_all(driver: Driver, session: str, run: str) -> None:
    for method, target, model in READS:
        read = await driver.request(method, target.format(s=session, r=run))
        assert read.status == 200 or (read.status == 404 and "resp_" in target), (target, read.body[:300])
        assert read.error is None, target
        if model is not None:
            msgspec.json.decode(read.body, type=model)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("type", TYPES)
async def test_an_event_that_cannot_be_read_hides_nothing_else(
    type: str, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its session can be looked at in every way, and so can all others, and it is named once."""
    caplog.set_level(logging.WARNING, logger="legato")
    data = TEXTS[text]
    change = "UPDATE event SET data = CAST(? AS TEXT) WHERE type = ? AND session = 2"
    async with three(tmp_path, change, data, type) as (driver, sessions, run):
        await read_all(driver, sessions[1], run)
        await read_all(driver, sessions[1], run)
        listed = {each["id"]: each for each in (await driver.request("GET", "/api/sessions")).json()}
        assert set(listed) == set(sessions)
        assert {listed[each]["assistantMessageCount"] for each in (sessions[0], sessions[2])} == {1}
        shown = [event for event in await canonical(driver, sessions[1]) if event["type"] == type]
        if "not known" in text or "beyond" in text or text in ("NaN", "too deep"):
            assert len(shown) == 1  # what is wrong with it need not be in a field of this type
        else:
            assert [event["data"] for event in shown] == [{"damaged": True}]
            named = [record for record in caplog.messages if f"session {sessions[1]}: event" in record]
            assert len(named) == 1
            assert type in named[0]


@pytest.mark.parametrize("usage", USAGES)
async def test_figures_of_earlier_versions_are_read(usage: str, tmp_path: Path) -> None:
    """As far as they can be; what they cannot be is 0, and every sum is a number."""
    change = "UPDATE event SET data = json_set(data, '$.usage', json(?)) WHERE type = 'run.completed' AND session = 2"
    async with three(tmp_path, change, usage) as (driver, sessions, run):
        await read_all(driver, sessions[1], run)
        about = (await driver.request("GET", f"/api/sessions/{sessions[1]}")).json()
        assert (about["promptTokens"], about["cost"]) == (0, 0)
        assert about["completionTokens"] == (2 if "2}" in usage else 0)


@pytest.mark.parametrize("at", [-1, 2**62, -(2**62)])
@pytest.mark.parametrize("what", ["event SET at", "session SET updated_at"])
async def test_a_time_beyond_all_calendars_is_shown(what: str, at: int, tmp_path: Path) -> None:
    """As the first or the last moment of one."""
    which = "session = 2 AND type = 'run.completed'" if what.startswith("event") else "id = 2"
    async with three(tmp_path, f"UPDATE {what} = ? WHERE {which}", at) as (driver, sessions, run):
        await read_all(driver, sessions[1], run)


async def test_a_session_that_cannot_be_read_at_all_is_listed_as_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are as before, and it is told once, and not for each who looks."""

    class Torn(SQLiteStore):
        torn = ""

        async def read(self, session: str, *args: Any, **options: Any) -> Any:
            if session == self.torn:
                raise StoreCorrupt("It is not there.")
            return await super().read(session, *args, **options)

    store = Torn(tmp_path / "log.db")
    app = Legato(store, agents=[echo], grace=0.0)
    app.drain_on_signal = False
    async with Driver(app) as driver:
        sessions = [(await driver.request("POST", "/api/sessions", json={})).json()["id"] for _ in range(3)]
        for session in sessions:
            await Chat(app, driver, session).said()
        store.torn = sessions[1]
        for _ in range(2):
            listed = await driver.request("GET", "/api/sessions")
            assert listed.status == 200
            read = {each.id: each for each in msgspec.json.decode(listed.body, type=list[models.SessionData])}
            assert [read[session].damaged for session in sessions] == [False, True, False]
        assert len([line for line in caplog.messages if f"session {sessions[1]} is damaged" in line]) == 1
        history = await driver.request("GET", "/api/messages/history")
        assert {each["sessionId"] for each in history.json()} == {sessions[0], sessions[2]}
        assert (await driver.request("GET", f"/api/sessions/{sessions[1]}/messages")).status == 500
        async with asyncio.timeout(30):
            await Chat(app, driver, sessions[0]).said()


@pytest.mark.parametrize("face", FACES)
def test_our_client_reads_such_a_log(face: str, tmp_path: Path) -> None:
    """Its lists and its messages."""
    change = "UPDATE event SET data = json_set(data, '$.usage', json(?)) WHERE type = 'run.completed' AND session = 2"

    async def made() -> list[str]:
        async with three(tmp_path, change, USAGES[0]) as (_, sessions, _run):
            return sessions

    sessions = asyncio.run(made())
    with serving(app_on(tmp_path)) as url:
        listed = use(face, url, lambda client: client.sessions.list())
        assert {each.id for each in listed} == set(sessions)
        messages = use(face, url, lambda client: client.messages.list(sessions[1]))
        assert [message.role for message in messages] == ["user", "assistant"]
