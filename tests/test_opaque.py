"""What a model's provider wants back: kept as it came, told to that provider, and seen by nobody else (R20)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from driving import chatting, ends
from legato import Opaque, Text, Thinking, ToolCall, ToolResult
from legato.errors import InvalidInput, TooLarge
from legato.event import Draft, Event, MessageCreated, OpaqueNoted, RunCompleted, Said, fact, read_fact, settle
from legato.history import history, told
from legato.part import CallPart, Message, TextPart, ThinkingPart
from legato.recorder import Recorder
from legato.server.app import Legato
from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from legato.testing import Driver
from legato.transcript import fold

SECRET = "sealed-by-the-provider"
OWNER = "messages https://models.test/v1"
SEALED = Opaque(OWNER, [{"block": {"type": "thinking", "signature": SECRET, "odd": [None, 1.5, "\u00e9"]}}])


def recorded(*items: Any, **bounds: Any) -> tuple[Recorder, list[Event]]:
    """What an agent's pieces are in a log."""
    recorder = Recorder("r", **bounds)
    drafts = [draft for item in items for draft in recorder.record(item)]
    return recorder, [Event(*settle(draft.fact)[:1], n, 0.0, "r") for n, draft in enumerate(drafts, 1)]


def test_it_belongs_to_the_message_of_the_model_behind_which_it_was_said() -> None:
    """Also where a message says nothing else."""
    one, two, three = (Opaque(OWNER, [number]) for number in (1, 2, 3))
    _, events = recorded(
        Thinking("Hm."), ToolCall("c", "f", "{}"), one, ToolResult("c", 1), two, ToolCall("d", "f", "{}"),
        ToolResult("d", 1), "Done.", three,
    )  # fmt: skip
    kept = fold(events)
    assert [(each.step, each.data) for each in kept.opaque] == [(1, [1]), (2, [2]), (3, [3])]
    assert [type(part) for part in kept.message("r").parts] == [ThinkingPart, CallPart, CallPart, TextPart]
    again = fold([*events, *events])
    assert again.opaque == kept.opaque  # R7


def test_it_is_the_same_after_the_log() -> None:
    """Every JSON value, in the message of the run's end and in the history."""
    recorder, _ = recorded("Hello", SEALED)
    end, json = settle(RunCompleted("stop", recorder.transcript.message("r")))
    asked = MessageCreated("m", "user", "Hi")
    messages = history(
        [Event(asked, 1, 0.0, "r"), Event(fact("run.completed", msgspec.json.decode(json)), 2, 0.0, "r")]
    )
    assert messages[1].opaque == [SEALED]
    assert end.said.opaque == [SEALED]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("owner", "data"), [(OWNER, object()), (OWNER, [object()]), (1, {}), ("", {}), ("x" * 2_000, {})]
)
def test_it_is_json_with_an_owner(owner: Any, data: Any) -> None:
    """What is none is refused as every yield is."""
    with pytest.raises((InvalidInput, TooLarge), match="Opaque"):
        Recorder("r").record(Opaque(owner, data))


def test_it_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """One that is larger than an event is left out, and said in the log; together they are bounded as the run is."""
    with caplog.at_level(logging.WARNING, logger="legato"):
        recorder, events = recorded("a", Opaque(OWNER, "x" * 2_000), "b", max_event_bytes=1_000)
    assert [event.type for event in events] == ["text.delta", "text.delta"]
    assert recorder.transcript.text() == "ab"
    assert "left out" in caplog.text
    for bound in ("max_run_bytes", "max_run_characters"):
        recorder = Recorder("r", **{bound: 5_000})
        for _ in range(4):
            recorder.record(Opaque(OWNER, "x" * 900))
        with pytest.raises(TooLarge):
            recorder.record(Opaque(OWNER, "x" * 1_600))


@pytest.mark.parametrize(
    "json",
    [
        b'{"message":{"id":"r~a1","text":"Hi","parts":[{"type":"text","step":1,"text":"Hi"}]},"finish_reason":"stop"}',
        b'{"message":{"id":"r~a1","text":"Hi","parts":[],"opaque":"odd"},"finish_reason":"stop"}',
        b'{"message":{"id":"r~a1","text":"Hi","parts":[],"opaque":[{"owner":"o"}]},"finish_reason":"stop"}',
    ],
)
def test_old_and_odd_logs_open(json: bytes) -> None:
    """Those without it, and those of versions that may keep it otherwise."""
    end = read_fact("run.completed", json)
    assert told(Event(end, 1, 0.0, "r", json)).opaque == []
    assert told(Event(end, 1, 0.0, "r", json)).text == "Hi"


def test_what_has_none_is_written_as_before() -> None:
    """Not a byte more in the logs of those who need it not."""
    assert b"opaque" not in settle(RunCompleted("stop", Said("r~a1", "Hi", [])))[1]
    assert b"opaque" not in settle(MessageCreated("m", "user", "Hi"))[1]


def test_what_is_shown_of_an_event() -> None:
    """The rest of it, and what only has the same name."""
    said = Said("r~a1", "Hi", [TextPart(1, "Hi")], [SEALED])
    shown = Event(RunCompleted("stop", said), 1, 0.0, "r").shown
    assert shown["message"] == {"id": "r~a1", "text": "Hi", "parts": [{"type": "text", "step": 1, "text": "Hi"}]}
    assert Event(OpaqueNoted(0, 1, OWNER, SECRET), 1, 0.0, "r").shown == {"place": 0, "step": 1}
    assert Event(fact("odd", {"opaque": 1}), 1, 0.0, "r").shown == {"opaque": 1}


def test_a_log_as_it_is_shown_is_one() -> None:
    """A reader who folds it comes to the message that the run's end has."""
    recorder, events = recorded("a", SEALED, ToolCall("c", "f", "{}"), SEALED, ToolResult("c"), "b", SEALED)
    end = Event(RunCompleted("stop", recorder.transcript.message("r")), 9, 0.0, "r")
    shown = [fact(event.type, event.shown) for event in (*events, end)]
    seen = fold([Event(each, n, 0.0, "r") for n, each in enumerate(shown[:-1], 1)])
    assert shown[-1].said == seen.message("r")  # type: ignore[union-attr]
    assert seen.message("r").opaque == []


async def sealing(turn: Any) -> AsyncIterator[Any]:
    """Says something with each kind of part, and what its provider wants back."""
    yield Thinking("Hm.")
    yield ToolCall("c", "f", "{}")
    yield SEALED
    yield ToolResult("c", "out")
    yield Text("Hello.")
    yield SEALED
    sealing.seen.append([message.opaque for message in turn.history])  # type: ignore[attr-defined]
    if "fail" in turn.message.text:
        raise RuntimeError("broken")


sealing.seen = []  # type: ignore[attr-defined]
READS = [operation for dialect in DIALECTS for operation in dialect.operations if operation.method == "GET"]
READS += [each for each in Inspector(DIALECTS).operations() if each.method == "GET"]


@pytest.mark.parametrize("text", ["go", "fail"])
async def test_no_reader_sees_it(text: str) -> None:
    """On no wire, in no history, page or export, of a run that ended well or not; and the agent has it again."""
    sealing.seen.clear()  # type: ignore[attr-defined]
    async with chatting(None, sealing) as chat:
        run = (await chat.said(text)).json()["runId"]
        bodies = []
        for query in ("client=legato", "client=python-0.2.3", ""):
            frames = await chat.follow("0", query, until=lambda message: message.event in ("complete", "error"))
            bodies.append("".join(f"{frame}" for frame in frames).encode())
        for operation in READS:
            path = operation.path.replace("{response_id}", f"resp_{run}")
            for name in ("{id}", "{threadId}", "{session_id}"):
                path = path.replace(name, chat.session)
            path = path.replace("{run}", run).replace("{messageId}", f"{run}~a2").replace("{model}", "sealing")
            if path == "/stream" or "{" in path:
                continue
            bodies.append((await chat.driver.request("GET", path)).body)
        wire = f"/api/inspect/sessions/{chat.session}/wire?dialects=responses,chat,deva,mix/legato,mix/python-0.2.3"
        bodies.append((await chat.driver.request("GET", wire)).body)
        for body in ({"input": text, "stream": True}, {"input": text}):
            bodies.append((await chat.driver.request("POST", "/v1/responses", json=body)).body)
        for stream in (True, False):
            asked = {"model": "sealing", "messages": [{"role": "user", "content": text}], "stream": stream}
            bodies.append((await chat.driver.request("POST", "/v1/chat/completions", json=asked)).body)
        assert sum(b"Hello." in body for body in bodies) > 8
        assert [body for body in bodies if SECRET.encode() in body or OWNER.encode() in body] == []
        assert [event.type for event in await chat.app.store.read(chat.session, 0) if "opaque" in event.type]
        await chat.said("again")
        assert [sealed for each in sealing.seen[-1:] for sealed in each] == [  # type: ignore[attr-defined]
            [],
            [SEALED, msgspec.structs.replace(SEALED, step=2)],
        ]


async def test_copies_keep_it_and_deletion_takes_it(tmp_path: Path) -> None:
    """In a fork and in a branch, after a restart too; and nothing is left of a session that was deleted."""
    path = tmp_path / "chat.db"
    kept = [SEALED, msgspec.structs.replace(SEALED, step=2)]
    async with chatting(None, sealing, store=f"sqlite:///{path}") as chat:
        run = (await chat.said("go")).json()["runId"]
        forked = (await chat.post("/fork", {"messageIndex": 1})).json()["id"]
        branched = (
            await chat.driver.request(
                "POST", "/v1/responses", json={"input": "on", "previous_response_id": f"resp_{run}"}
            )
        ).json()
        assert branched["status"] == "completed"
    sealing.seen.clear()  # type: ignore[attr-defined]
    app = Legato(f"sqlite:///{path}", agents=[sealing])
    async with Driver(app) as driver:
        for session in (chat.session, forked):
            sent = await driver.request("POST", f"/api/sessions/{session}/messages", json={"text": "again"})
            async with driver.stream(
                f"/stream?sessionId={session}&client=legato", headers={"last-event-id": sent.json()["cursor"]}
            ) as stream:
                async for message in stream.messages():
                    if ends(sent.json()["runId"])(message):
                        break
            assert sealing.seen[-1][1] == kept  # type: ignore[attr-defined]
        for info in (await app.store.sessions()).infos:
            await driver.request("DELETE", f"/api/sessions/{info.session}")
            assert all("opaque" not in event.type for event in await app.store.read(info.session, 0))


def test_a_message_copied_from_another_log_keeps_it() -> None:
    """A fork's first messages are of no run."""
    copied = MessageCreated("a", "assistant", "Hello.", [TextPart(1, "Hello.")], opaque=[SEALED])
    stored = settle(Draft(copied).fact)[0]
    message = told(Event(stored, 1, 0.0))
    assert message == Message("a", "assistant", "Hello.", [TextPart(1, "Hello.")], offset=1, opaque=[SEALED])
