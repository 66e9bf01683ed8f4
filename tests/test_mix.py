"""The Mix dialect on the wire: which client gets which event, what stands in it, and where a stream begins.

The tables here were written from what the clients' releases understand, not from the code.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facts import stored as event_of
from legato.dialect import mix
from legato.errors import CursorInvalid, InvalidInput
from legato.event import (
    EVENTS,
    Event,
    RefusalDelta,
    SessionCreated,
    TextDelta,
    TextPiece,
    ThinkingDelta,
    read_fact,
    settle,
)
from legato.log import SessionInfo
from legato.machine import OpenRun
from legato.sse import Decoder, encode
from legato.testing import check_dialect

SESSION = "s_1"

ALWAYS = {
    "connected", "heartbeat", "thinking", "content", "tool_execution_start", "tool_execution_complete", "permission",
    "complete", "error",
}  # fmt: skip
SESSIONS = {"session_created", "session_deleted"}
TOOL_USE = {"tool_use_start", "tool_use_parameter_delta", "tool_use_parameter_streaming_complete"}
OWN = {
    "run_waiting", "run_started", "permission_resolved", "notification_resolved", "cancel_requested", "session_rewound",
}  # fmt: skip

# What each release knows beyond ALWAYS, and the status with which it expects a sent message to be answered.
CLIENTS: dict[str, tuple[set[str], int]] = {
    "python-0.5.0": ({"tool"}, 200),
    "python-0.5.5": ({"tool"}, 200),
    "python-0.5.6": ({"tool"} | SESSIONS, 200),
    "python-0.5.7": ({"tool"} | SESSIONS, 200),
    "python-0.6.4": ({"tool"} | SESSIONS, 200),
    "python-0.6.5": ({"tool"} | SESSIONS, 202),
    "python-0.6.6": ({"tool", "tool_parameter_delta"} | SESSIONS, 202),
    "python-0.7.0": ({"tool", "tool_parameter_delta", "user_message_created"} | SESSIONS, 202),
    "python-0.7.3": ({"tool", "tool_parameter_delta", "user_message_created"} | SESSIONS, 202),
    "python-0.8.0": ({"user_message_created", "notification"} | TOOL_USE | SESSIONS, 202),
    "python-0.8.1": ({"user_message_created", "notification"} | TOOL_USE | SESSIONS, 202),
    "python-1.0.0": ({"user_message_created", "notification"} | TOOL_USE | SESSIONS, 202),
    "typescript-0.5.5": ({"tool"}, 200),
    "typescript-0.6.8": ({"tool"}, 200),
    "typescript-0.6.9": ({"tool"} | SESSIONS, 200),
    "typescript-0.6.10": ({"tool"} | SESSIONS, 200),
    "typescript-0.7.3": ({"tool"} | SESSIONS, 200),
    "typescript-0.7.4": ({"tool"} | SESSIONS, 202),
    "typescript-0.7.5": ({"tool", "tool_parameter_delta"} | SESSIONS, 202),
    "typescript-0.7.7": ({"tool", "tool_parameter_delta"} | SESSIONS, 202),
    "typescript-0.8.7": ({"tool", "tool_parameter_delta", "user_message_created"} | SESSIONS, 202),
    "typescript-0.9.1": ({"tool", "tool_parameter_delta", "user_message_created"} | SESSIONS, 202),
    "typescript-0.10.0": ({"user_message_created"} | TOOL_USE | SESSIONS, 202),
    "typescript-0.10.1": ({"user_message_created"} | TOOL_USE | SESSIONS, 202),
    "typescript-0.11.1": ({"user_message_created"} | TOOL_USE | SESSIONS, 202),
    "typescript-0.11.2": ({"user_message_created", "notification"} | TOOL_USE | SESSIONS, 202),
    "typescript-0.11.4": ({"user_message_created", "notification"} | TOOL_USE | SESSIONS, 202),
    "legato": ({"user_message_created", "notification"} | TOOL_USE | SESSIONS | OWN, 202),
}

# The required fields of each event and their types; what else stands in it must not be null.
REQUIRED: dict[str, dict[str, type]] = {
    "connected": {"sessionId": str},
    "heartbeat": {"type": str},
    "session_created": {"type": str, "sessionId": str, "title": str, "createdAt": int},
    "session_deleted": {"type": str, "sessionId": str},
    "user_message_created": {"type": str, "messageId": str, "content": str},
    "thinking": {"type": str, "content": str, "assistantMessageId": str, "part": int, "start": int},
    "content": {"type": str, "content": str, "assistantMessageId": str, "part": int, "start": int},
    "tool": {"type": str, "name": str, "input": str, "id": str, "status": str},
    "tool_parameter_delta": {"type": str, "toolCallId": str, "input": str},
    "tool_use_start": {"type": str, "id": str, "name": str, "assistantMessageId": str},
    "tool_use_parameter_delta": {"type": str, "toolCallId": str, "input": str, "start": int},
    "tool_use_parameter_streaming_complete": {"type": str, "id": str, "name": str, "input": str},
    "tool_execution_start": {"type": str, "toolCallId": str, "toolName": str, "progress": str},
    "tool_execution_complete": {"type": str, "toolCallId": str, "toolName": str, "progress": str, "success": bool},
    "permission": {"type": str, "id": str, "sessionId": str, "toolName": str, "description": str, "action": str},
    "notification": {
        "type": str, "id": str, "sessionId": str, "notificationType": str, "title": str, "message": str,
        "responseType": str, "timeout": int, "createdAt": int,
    },
    "complete": {"type": str, "done": bool, "content": str, "messageId": str, "runId": str, "finishReason": str},
    "error": {"type": str, "error": str, "runId": str},
    "run_waiting": {"type": str, "runId": str, "for": str},
    "run_started": {"type": str, "runId": str, "agent": str, "attempt": int},
    "permission_resolved": {"type": str, "id": str, "granted": bool, "by": str, "runId": str},
    "notification_resolved": {"type": str, "id": str, "by": str},
    "cancel_requested": {"type": str, "runId": str},
    "session_rewound": {"type": str, "to": str},
}  # fmt: skip

SAID = {
    "id": "r~a2",
    "text": "Done.",
    "parts": [
        {"type": "thinking", "step": 1, "text": "Hm\u2028"},
        {"type": "tool_call", "step": 1, "id": "c", "name": "Bash", "arguments": "{}", "success": True, "output": None},
        {"type": "text", "step": 2, "text": "Done."},
    ],
}
ASKED = {"id": "r~p1", "tool": "Bash", "description": "Lists.", "action": "execute"}
NOTE = {"id": "r~n1", "title": "T", "message": "M", "timeout": 600.7, "created_at": 1767225600.9}

# Canonical events, each type with the least and with the most that it can hold.
SAMPLES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("session.created", {}, ["session_created"]),
    ("session.created", {"title": "A\r\nB", "agent": "a", "metadata": {"x": None}}, ["session_created"]),
    ("message.created", {"id": "m", "role": "user", "text": "Hi\u2028\r\n\x00"}, ["user_message_created"]),
    ("message.created", {"id": "m", "role": "assistant", "text": "copied"}, []),
    ("run.waiting", {}, ["run_waiting"]),
    ("run.started", {"agent": "a", "attempt": 1}, ["run_started"]),
    ("thinking.delta", {"part": 0, "step": 1, "start": 0, "text": "Hm"}, ["thinking"]),
    ("text.delta", {"part": 2, "step": 2, "start": 4, "text": "🎵\n\ndata: x\r"}, ["content"]),
    ("refusal.delta", {"part": 0, "step": 1, "start": 0, "text": "No."}, ["content"]),
    ("tool_call.started", {"part": 1, "step": 1, "id": "c", "name": "Bash"}, ["tool_use_start", "tool"]),
    ("tool_call.delta", {"part": 1, "step": 1, "id": "c", "start": 0, "arguments": "{"},
     ["tool_use_parameter_delta", "tool_parameter_delta"]),
    ("tool_call.completed", {"part": 1, "step": 1, "id": "c", "name": "Bash", "arguments": "{}"},
     ["tool_use_parameter_streaming_complete", "tool"]),
    ("tool.started", {"id": "c", "name": "Bash", "progress": ""}, ["tool_execution_start"]),
    ("tool.completed", {"id": "c", "name": "Bash", "progress": "", "success": True, "output": None},
     ["tool_execution_complete"]),
    ("tool.completed", {"id": "c", "name": "Bash", "progress": "x", "success": False, "output": {"a": [1]}},
     ["tool_execution_complete"]),
    ("permission.requested", ASKED, ["permission"]),
    ("permission.requested", {**ASKED, "path": "/", "params": {"a": 1}, "expires_at": 1767225600.5}, ["permission"]),
    ("permission.resolved", {"id": "r~p1", "granted": False, "by": "timeout"}, ["permission_resolved"]),
    ("notification.created", {**NOTE, "kind": "info", "response": "acknowledge"}, ["notification"]),
    ("notification.created", {**NOTE, "kind": "question", "response": "choice", "choices": ["a"]}, ["notification"]),
    ("notification.resolved", {"id": "r~n1", "by": "timeout", "run": "r"}, ["notification_resolved"]),
    ("notification.resolved", {"id": "r~n1", "by": "user", "response": "text", "value": ""}, ["notification_resolved"]),
    ("agent.checkpoint", {"data": {"a": [1, None]}}, []),
    ("model.opaque", {"place": 0, "step": 1, "owner": "o", "data": [{"a": None}]}, []),
    ("run.cancel_requested", {}, ["cancel_requested"]),
    ("run.completed", {"message": {"id": "r~a1", "text": "", "parts": []}, "finish_reason": "length"}, ["complete"]),
    ("run.completed", {"message": SAID, "usage": {"cost": 0.5}, "finish_reason": "stop"}, ["complete"]),
    ("run.cancelled", {"partial": SAID, "reason": "enough"}, ["complete"]),
    ("run.failed", {"code": "timeout", "message": "Too long.", "partial": SAID, "detail": {"a": 1}}, ["error"]),
    ("session.rewound", {"to": "m"}, ["session_rewound"]),
    ("session.run_withdrawn", {"run": "s_1~0a"}, []),
    ("session.updated", {"metadata": {"a": 1}}, []),
    ("message.revised", {"id": "m", "text": "less", "deleted": ["i"]}, []),
    ("session.deleted", {}, ["session_deleted"]),
]  # fmt: skip
RUNLESS = ("session.", "message.revised", "notification.resolved")


def stored(number: int, type: str, data: dict[str, Any]) -> Event:
    run = None if type.startswith(RUNLESS) else "r"
    return event_of(type, data, offset=number, at=1767225600.75, run=run)


def events() -> list[Event]:
    return [stored(number, type, data) for number, (type, data, _) in enumerate(SAMPLES, start=1)]


def known(client: str) -> set[str]:
    return ALWAYS | CLIENTS[client][0]


def info(head: int, *open_runs: int) -> SessionInfo:
    runs = [OpenRun(session=SESSION, run=f"r{offset}", offset=offset) for offset in open_runs]
    return SessionInfo(
        session=SESSION, head=head, created_at=0.0, updated_at=0.0, created=SessionCreated(), open_runs=runs
    )


def check(name: str, data: dict[str, Any]) -> None:
    """The fields that a strict client demands are there with their type, and none is null."""
    assert {field: type(data.get(field)) for field in REQUIRED[name]} == REQUIRED[name]
    assert [field for field, value in data.items() if value is None] == []
    if name not in ("connected", "heartbeat", "error"):
        assert data["type"] == name


def test_there_is_a_sample_of_every_event_type() -> None:
    """The table above leaves none out."""
    assert set(EVENTS) == {type for type, _, _ in SAMPLES}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_names_that_its_release_knows(client: str) -> None:
    """One unknown name ends the stream of these clients for good."""
    assert known(client) == mix.profile(client).events


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_answered_with_the_status_that_its_release_knows(client: str) -> None:
    """Old releases take only 200 with the whole answer, newer ones only 202 at once."""
    assert (CLIENTS[client][1] == 202) == mix.profile(client).answer_at_once


@pytest.mark.parametrize("client", CLIENTS)
def test_every_event_is_the_first_name_that_the_client_knows_or_nothing(client: str) -> None:
    """An event has at most one message; what has no name for a client is left out."""
    for event, (_, _, names) in zip(events(), SAMPLES, strict=True):
        expected = [name for name in names if name in known(client)][:1]
        found = mix.messages(event, SESSION, mix.profile(client))
        assert expected == [message.event for message in found]


@pytest.mark.parametrize("client", CLIENTS)
def test_every_message_is_what_strict_clients_demand(client: str) -> None:
    """Required fields, of the right type, nothing null, and the offset as id."""
    for event in events():
        for message in mix.messages(event, SESSION, mix.profile(client)):
            check(message.event, json.loads(message.data))
            assert str(event.offset) == message.id


@pytest.mark.parametrize("client", CLIENTS)
def test_every_frame_is_one_that_every_decoder_survives(client: str) -> None:
    """LF only, one line of data, the id last, and what is decoded is what was meant."""
    for event in events():
        frame = mix.frame(event, SESSION, mix.profile(client))
        meant = mix.messages(event, SESSION, mix.profile(client))
        if not meant:
            assert frame == b""
            continue
        fields = [line.partition(b":")[0] for line in frame.removesuffix(b"\n\n").split(b"\n")]
        assert fields == [b"event", b"data", b"id"]
        assert frame.endswith(b"\n\n")
        assert b"\r" not in frame
        assert meant == Decoder().feed(frame)


PIECES: list[type[TextPiece]] = [TextDelta, ThinkingDelta, RefusalDelta]
AWKWARD = st.text(max_size=30) | st.sampled_from(
    ['"content":""', '"start":0', 'a","b', "\\", "\n\r\0", "\u2028\x85", "🎵é"]
)


@given(st.data())
def test_a_piece_of_text_is_the_frame_that_its_message_says(data: st.DataObject) -> None:
    """Pieces have a way of their own to their bytes, and these are no others, wherever a piece comes from."""
    number = st.integers(0, 2**40)
    part, step, start, offset = (data.draw(number) for _ in range(4))
    drawn = data.draw(st.sampled_from(PIECES))(part, step, start, data.draw(AWKWARD))
    run, json = data.draw(st.none() | AWKWARD), settle(drawn)[1]
    kept, read = Event(drawn, offset, 0.0, run), Event(read_fact(drawn.type, json), offset, 0.0, run, json)
    session, profile = data.draw(AWKWARD), mix.profile(data.draw(st.sampled_from(list(CLIENTS))))
    [message] = mix.messages(kept, session, profile)
    assert [encode(message)] * 2 == [mix.frame(event, session, profile) for event in (kept, read)]


def test_an_event_is_the_same_bytes_for_ever() -> None:
    """The fold is pure: another copy of the event, and the cached bytes, give the same frame."""
    for client in CLIENTS:
        profile = mix.profile(client)
        first, second = events(), events()
        frames = [mix.frame(event, SESSION, profile) for event in first]
        assert frames == [mix.frame(event, SESSION, profile) for event in first]
        assert frames == [mix.frame(event, SESSION, profile) for event in second]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_dialect_keeps_the_rules_of_frames(client: str) -> None:
    """The published check, on each profile."""
    profile = mix.profile(client)
    check_dialect(lambda: lambda event: mix.frame(event, SESSION, profile), events())


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        (b"data: x\r\n\r\n", "LF only"),
        (b"id: 1\ndata: x\n\n", "id is the last field"),
        (b"data: x\ndata: y\nid: 1\n\n", "one line of data"),
        (b"data: x\nid: 1\n", "a blank line"),
        (b"id: 1\n\n", "each frame is one event"),
        (b"data: x\nid: 1\n\n", "no id is used twice"),
    ],
)
def test_the_check_of_dialects_finds_what_breaks_a_rule(frames: bytes, rule: str) -> None:
    """And names the event and the rule."""
    with pytest.raises(AssertionError, match=rf"Event \d+ .*{rule}"):
        check_dialect(lambda: lambda event: frames, events())


def test_the_check_of_dialects_finds_a_fold_that_is_not_pure() -> None:
    """Other bytes for the same events are no replay."""
    numbers = itertools.count()
    with pytest.raises(AssertionError, match="the same bytes"):
        check_dialect(lambda: lambda event: b"data: %d\n\n" % next(numbers), events())


def test_releases_that_understand_the_same_share_their_bytes() -> None:
    """However many versions clients name, there are few profiles."""
    assert mix.profile("python-0.8.1") is mix.profile("python-0.9.77")
    names = {mix.profile(f"{language}-0.{minor}.{patch}").name
             for language in ("python", "typescript") for minor in range(14) for patch in range(14)}  # fmt: skip
    assert len(names) < 20


def test_the_one_release_that_demands_session_ids_gets_them() -> None:
    """TypeScript 0.7.7 wants sessionId in every event; its neighbours are not burdened with it."""
    for event in events():
        for message in mix.messages(event, SESSION, mix.profile("typescript-0.7.7")):
            assert json.loads(message.data)["sessionId"] == SESSION
    delta = stored(1, "text.delta", {"part": 0, "step": 1, "start": 0, "text": "x"})
    for client in ("typescript-0.7.6", "typescript-0.7.8"):
        assert "sessionId" not in json.loads(mix.messages(delta, SESSION, mix.profile(client))[0].data)


def data_of(type: str, data: dict[str, Any], client: str = "legato") -> dict[str, Any]:
    [message] = mix.messages(stored(7, type, data), SESSION, mix.profile(client))
    return dict(json.loads(message.data))


def test_a_delta_names_its_place() -> None:
    """The message it belongs to, its part, and the character at which it starts."""
    assert data_of("text.delta", {"part": 2, "step": 3, "start": 4, "text": "🎵"}) == {
        "type": "content", "content": "🎵", "assistantMessageId": "r~a3", "part": 2, "start": 4,
    }  # fmt: skip


def test_a_refusal_is_content_that_says_so() -> None:
    """Clients of this dialect know no refusals: they show it as the answer."""
    place = {"part": 0, "step": 1, "start": 0}
    said = data_of("text.delta", {**place, "text": "No."}, "python-0.6.4")
    assert data_of("refusal.delta", {**place, "text": "No."}, "python-0.6.4") == {**said, "refusal": True}


def test_the_old_tool_event_runs_and_then_completes() -> None:
    """Releases before the tool_use events read one name with two states, the input whole in the second."""
    about = {"part": 1, "step": 1, "id": "c", "name": "Bash"}
    started = data_of("tool_call.started", about, "python-0.7.3")
    done = data_of("tool_call.completed", {**about, "arguments": '{"a":1}'}, "python-0.7.3")
    assert (started["status"], started["input"]) == ("running", "")
    assert (done["status"], done["input"]) == ("completed", '{"a":1}')


def test_a_cancelled_run_completes_with_what_it_said() -> None:
    """The helpers of the clients wait for `complete`; the reason tells it apart."""
    data = data_of("run.cancelled", {"partial": SAID})
    assert (
        data["done"], data["finishReason"], data["content"], data["messageId"],
    ) == (True, "cancelled", "Done.", "r~a2")  # fmt: skip


def test_complete_carries_the_reasoning_only_if_there_is_some() -> None:
    """Strict clients refuse null."""
    empty = {"id": "r~a1", "text": "", "parts": []}
    assert "reasoning" not in data_of("run.completed", {"message": empty, "finish_reason": "stop"})
    assert data_of("run.completed", {"message": SAID, "finish_reason": "stop"})["reasoning"] == "Hm\u2028"


def test_a_failed_run_is_an_error_with_its_code() -> None:
    """`type` is the machine's word, as this dialect has it."""
    data = data_of("run.failed", {"code": "timeout", "message": "Too long.", "partial": SAID})
    assert data == {"type": "timeout", "error": "Too long.", "runId": "r"}


def test_connected_and_heartbeat_carry_the_readers_own_cursor() -> None:
    """They move nobody forward, and are whole messages for strict decoders."""
    decoder = Decoder()
    [first, beat] = decoder.feed(
        mix.connected(SESSION, 5, exact=True, info=info(9), retry=1234) + mix.heartbeat(5)
    )  # fmt: skip
    assert (first.event, first.id, first.retry) == ("connected", "5", 1234)
    assert json.loads(first.data) == {"sessionId": SESSION, "cursor": "exact"}
    assert (beat.event, beat.id, json.loads(beat.data)) == ("heartbeat", "5", {"type": "ping"})
    check("connected", json.loads(first.data))
    check("heartbeat", json.loads(beat.data))


def test_a_reset_says_what_there_is() -> None:
    """So that a reader can decide whether to load everything anew."""
    [first] = Decoder().feed(mix.connected(SESSION, 9, exact=False, info=info(9), retry=1000))
    assert json.loads(first.data) == {"sessionId": SESSION, "cursor": "reset", "earliest": 1, "latest": 9}


# Who is asking --------------------------------------------------------------------------------------------------------

DEFAULT = mix.profile("python-0.8.1")


@pytest.mark.parametrize(
    ("user_agent", "client"),
    [
        ("speakeasy-sdk/python 0.5.7 2.716.16 1.0.0 mix-python-sdk", "python-0.5.7"),
        ("speakeasy-sdk/python 0.6.4 2.730.0 1.0.0 mix-python-sdk", "python-0.6.4"),
        ("speakeasy-sdk/python 0.8.1 2.799.3 1.0.0 mix-python-sdk", "python-0.8.1"),
        ("speakeasy-sdk/typescript 0.6.10 2.723.11 1.0.0 mix-typescript-sdk", "typescript-0.6.10"),
        ("speakeasy-sdk/typescript 0.11.4 2.828.0 1.0.0 mix-typescript-sdk", "typescript-0.11.4"),
        ("legato-python/0.1.0", "legato"),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130.0 Safari/537.36", "python-0.8.1"),
        ("speakeasy-sdk/python 1.2.3 2.716.16 1.0.0 mistralai", "python-0.8.1"),
        ("speakeasy-sdk/python 99999.1.1 2.0.0 1.0.0 mix-python-sdk", "python-0.8.1"),
        ("speakeasy-sdk/python \u0660.\u0665.\u0667 2.0.0 1.0.0 mix-python-sdk", "python-0.8.1"),
        ("", "python-0.8.1"),
    ],
)
def test_a_client_is_known_by_its_user_agent(user_agent: str, client: str) -> None:
    """Releases tell their version there and nowhere else; whoever does not is taken for the default."""
    assert mix.profile(client) is mix.negotiate(user_agent, None, DEFAULT)


def test_the_query_wins_over_the_user_agent() -> None:
    """A browser cannot set its User-Agent."""
    agent = "speakeasy-sdk/python 0.5.7 2.716.16 1.0.0 mix-python-sdk"
    assert mix.profile("typescript-0.11.4") is mix.negotiate(agent, "typescript-0.11.4", DEFAULT)
    assert mix.profile("python-0.5.7") is mix.negotiate(agent, "", DEFAULT)


@pytest.mark.parametrize(
    "client",
    [
        "python",
        "python-1",
        "python-0.8",
        "python-0.8.1.1",
        "java-0.8.1",
        "Legato",
        "python-\u0660.\u0668.\u0661",
        "x" * 9999,
    ],
)
def test_a_client_of_no_known_form_is_refused(client: str) -> None:
    """The text names what was expected, and does not repeat ten kilobytes."""
    with pytest.raises(InvalidInput, match=r"typescript-X\.Y\.Z") as caught:
        mix.profile(client)
    assert len(caught.value.message) < 200


# Where a stream begins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "header", "expected"),
    [
        ({}, None, ("turn", None)),
        ({}, "", ("turn", None)),
        ({}, "0", ("turn", 0)),
        ({}, "42", ("turn", 42)),
        ({}, "007", ("turn", 7)),
        ({"from": "start"}, None, ("start", None)),
        ({"from": "tail"}, None, ("tail", None)),
        ({"from": "5"}, None, ("turn", 5)),
        ({"from": ""}, None, ("turn", None)),
        ({"from": "start"}, "42", ("turn", 42)),
        ({"from": "5"}, "42", ("turn", 42)),
        ({"lastEventId": "7"}, None, ("turn", 7)),
        ({"lastEventId": "7"}, "", ("turn", 7)),
        ({"lastEventId": "7", "from": "5"}, None, ("turn", 7)),
        ({"lastEventId": "7", "from": "start"}, "42", ("turn", 42)),
        ({"lastEventId": "", "from": "5"}, None, ("turn", 5)),
        ({"lastEventId": ""}, None, ("turn", None)),
    ],
)
def test_a_request_says_where_to_begin(
    query: dict[str, str], header: str | None, expected: tuple[str, int | None]
) -> None:
    """The header wins, since an EventSource repeats its URL when it comes back."""
    opening = mix.open_stream({"sessionId": SESSION, **query}, header)
    assert (SESSION, *expected) == (opening.session, opening.start, opening.cursor)


BAD_CURSORS = [
    "-1",
    "+1",
    "1.0",
    " 1",
    "1 ",
    "1e3",
    "0x1",
    "abc",
    "1_000",
    "\u0661\u0662\u0663",
    "²",
    "1\n",
    "9" * 16,
    "1" * 10_000,
]


@pytest.mark.parametrize("cursor", BAD_CURSORS, ids=ascii)
def test_a_cursor_of_another_form_is_refused(cursor: str) -> None:
    """In the header and in the query alike, before anything is sent."""
    with pytest.raises(CursorInvalid) as caught:
        mix.open_stream({"sessionId": SESSION}, cursor)
    assert len(caught.value.message) < 300
    with pytest.raises(CursorInvalid):
        mix.open_stream({"sessionId": SESSION, "from": cursor}, None)
    with pytest.raises(CursorInvalid, match="lastEventId"):
        mix.open_stream({"sessionId": SESSION, "lastEventId": cursor}, None)


@pytest.mark.parametrize("query", [{}, {"sessionId": ""}, {"session_id": "s_1"}])
def test_a_stream_needs_a_session(query: dict[str, str]) -> None:
    """The text shows how."""
    with pytest.raises(InvalidInput, match="sessionId=s_123"):
        mix.open_stream(query, None)


@pytest.mark.parametrize(
    ("start", "cursor", "open_runs", "expected"),
    [
        ("turn", None, [], (9, True)),
        ("turn", None, [4], (3, True)),
        ("turn", None, [4, 8], (3, True)),
        ("tail", None, [4], (9, True)),
        ("start", None, [4], (0, True)),
        ("turn", 0, [4], (0, True)),
        ("turn", 6, [4], (6, True)),
        ("turn", 9, [], (9, True)),
        ("turn", 10, [], (9, False)),
        ("turn", 10, [4], (3, False)),
        ("turn", 999_999_999_999_999, [], (9, False)),
    ],
)
def test_a_stream_begins_where_it_was_asked_to_or_says_so(
    start: Any, cursor: int | None, open_runs: list[int], expected: tuple[int, bool]
) -> None:
    """Nine events are stored. A fresh reader gets the first turn that is not over, else what comes next."""
    turn = open_runs[0] - 1 if open_runs else None
    assert expected == mix.position(mix.StreamRequest(SESSION, cursor, start), info(9, *open_runs), turn)
