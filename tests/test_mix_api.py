"""The bodies of the Mix dialect's ordinary requests, and the folds that fill them."""

from __future__ import annotations

import inspect
from datetime import datetime
from typing import Any

import msgspec
import pytest

from facts import stored as event_of
from legato import errors
from legato.agent import Agent
from legato.caller import NOBODY
from legato.dialect import common, mix_api
from legato.errors import InvalidInput, LegatoError, Unauthorized
from legato.event import Draft, Event, RunStarted, SessionCreated, fact
from legato.history import history
from legato.log import SessionInfo
from legato.machine import OpenRun
from legato.part import Message
from legato.run import Runner
from legato.sessions import Sessions
from legato.store.memory import MemoryStore

AT = 1767225600.0  # 2026-01-01T00:00:00Z


def wire(body: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(body))


def stored(*events: tuple[str, dict[str, Any], str | None]) -> list[Event]:
    return [event_of(type, data, number, AT + number, run) for number, (type, data, run) in enumerate(events, start=1)]


CALL = {"type": "tool_call", "step": 1, "id": "c", "name": "Bash", "arguments": "{}"}
PARTS = [
    {"type": "thinking", "step": 1, "text": "H"},
    {"type": "thinking", "step": 1, "text": "m"},
    {**CALL, "success": False, "output": {"error": "é"}},
    {**CALL, "id": "open"},
    {"type": "text", "step": 2, "text": "Done."},
]
USAGE = {"input_tokens": 3, "output_tokens": 4, "cost": 0.5, "model": "m"}
LOG = stored(
    ("session.created", {"title": "T", "agent": "a", "metadata": {"sessionType": "subagent"}}, None),
    ("message.created", {"id": "u1", "role": "user", "text": "one"}, "r1"),
    ("run.completed", {"message": {"id": "r1~a2", "text": "Done.", "parts": PARTS}, "usage": USAGE}, "r1"),
    ("message.created", {"id": "u2", "role": "user", "text": "two"}, "r2"),
    ("run.failed", {"partial": {"id": "r2~a1", "text": "", "parts": []}, "code": "no", "message": "No."}, "r2"),
)
MESSAGES = history(LOG)


def info(*open_runs: OpenRun, **data: Any) -> SessionInfo:
    return SessionInfo(
        session="s",
        head=5,
        created_at=AT,
        updated_at=AT + 5,
        created=fact("session.created", data or LOG[0].data),
        open_runs=list(open_runs),
    )


# Errors ---------------------------------------------------------------------------------------------------------------


def every_error() -> list[type[LegatoError]]:
    found = [LegatoError]
    for kind in found:
        found += [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return found


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_a_body_that_strict_clients_take(kind: type[LegatoError]) -> None:
    """The type is one of five words, the reason our own."""
    wanted = inspect.signature(kind).parameters
    more: dict[str, Any] = {"limit": 1} if "detail" in wanted else {}
    error = kind("m", **more, **({"after": 1.0} if "after" in wanted else {}))
    body = wire(common.describe(error))["error"]
    assert msgspec.json.decode(msgspec.json.encode(common.describe(error)), type=common.ErrorBody)
    assert (body["code"], body["reason"]) == (kind.status, kind.code)
    assert body.get("detail") or kind is Unauthorized  # which says the same whatever was wrong


@pytest.mark.parametrize(
    ("status", "type"),
    [(400, "bad_request"), (401, "unauthorized"), (403, "bad_request"), (404, "not_found"), (409, "bad_request"),
     (413, "validation_error"), (429, "bad_request"), (500, "internal_error"), (503, "internal_error")],
)  # fmt: skip
def test_each_status_has_its_type(status: int, type: str) -> None:
    """As the document says; an empty detail is left out."""
    body = wire(common.error_body(status, "m", "r"))
    assert body == {"error": {"code": status, "message": "m", "type": type, "reason": "r"}}


# Folds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.0, AT, AT + 0.0004, AT + 0.9999, 1e9 + 0.5])
def test_times_are_rfc_3339_with_a_zone(at: float) -> None:
    """Strict clients refuse any other; to the millisecond."""
    text = mix_api.rfc3339(at)
    assert text.endswith("Z")
    assert len(text) == len("2026-01-01T00:00:00.000Z")
    assert abs(datetime.fromisoformat(text).timestamp() - at) <= 0.001


def test_a_session_is_the_sum_of_its_messages() -> None:
    """All required fields, with the right types; optional ones only when there is something."""
    assert wire(mix_api.session_data(info(), MESSAGES)) == {
        "id": "s",
        "title": "T",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:05.000000Z",
        "userMessageCount": 2,
        "assistantMessageCount": 2,
        "toolCallCount": 2,
        "promptTokens": 3,
        "completionTokens": 4,
        "cost": 0.5,
        "sessionType": "subagent",
        "browserMode": "electron-embedded-browser",
        "running": False,
        "firstUserMessage": "one",
        "agent": "a",
    }


def test_an_empty_session_has_all_required_fields() -> None:
    """Zeros and empty text, never null; cost is a float."""
    data = mix_api.session_data(SessionInfo("s", 1, AT, AT, SessionCreated(), [OpenRun("s", "r", 1)]), [])
    assert (data.title, data.cost, data.running) == ("", 0.0, True)
    assert isinstance(data.cost, float)
    assert None not in wire(data).values()
    assert {"firstUserMessage", "parentSessionId", "agent"}.isdisjoint(wire(data))


def test_a_users_message_has_only_a_users_fields() -> None:
    """And nothing that is null."""
    assert wire(mix_api.backend_message("s", MESSAGES[0])) == {
        "id": "u1",
        "sessionId": "s",
        "role": "user",
        "userInput": "one",
        "createdAt": "2026-01-01T00:00:02.000Z",
        "runId": "r1",
    }


def test_an_answer_has_its_text_twice_and_its_calls() -> None:
    """A call that never ended is not finished; an output that is no text is JSON text."""
    body = wire(mix_api.backend_message("s", MESSAGES[1]))
    call = {"name": "Bash", "input": "{}", "type": "function"}
    assert (body["userInput"], body["assistantResponse"], body["reasoning"]) == ("Done.", "Done.", "Hm")
    assert body["toolCalls"] == [
        {"id": "c", **call, "finished": True, "result": '{"error":"é"}', "isError": True},
        {"id": "open", **call, "finished": False},
    ]
    assert (body["status"], body["model"], body["cost"]) == ("completed", "m", 0.5)


def test_a_failed_answer_says_so() -> None:
    """It has no tokens to report, and reports none."""
    body = wire(mix_api.backend_message("s", MESSAGES[3]))
    assert (body["status"], body["assistantResponse"]) == ("failed", "")
    assert {"cost", "model", "inputTokens", "toolCalls", "reasoning"}.isdisjoint(body)


def test_an_export_is_the_session_and_its_messages() -> None:
    """Each message with the fields that clients require."""
    body = wire(mix_api.export(mix_api.session_data(info(), MESSAGES), MESSAGES))
    assert body["id"] == "s"
    for message in body["messages"]:
        assert {"id", "role", "content", "createdAt", "updatedAt"} <= set(message)
        assert None not in message.values()
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"] * 2


@pytest.mark.parametrize(("events", "head", "next"), [(LOG[:2], 5, 2), (LOG, 5, None), ([], 5, None), ([], 0, None)])
def test_a_page_says_where_the_next_begins(events: list[Event], head: int, next: int | None) -> None:
    """Null when there is none; `after` beyond the head is an empty last page."""
    body = wire(mix_api.event_page(events, head))
    assert (body["next"], body["head"], len(body["events"])) == (next, head, len(events))


# Requests -------------------------------------------------------------------------------------------------------------


def test_a_created_session_keeps_what_it_was_given() -> None:
    """Unknown fields are ignored, known ones kept, defaults filled in."""
    raw = b'{"title":"T","promptMode":"append","customSystemPrompt":"p","agent":"a","cdpUrl":"x","unknown":{}}'
    created = mix_api.created(msgspec.json.decode(raw, type=mix_api.CreateSession))
    assert (created.type, created.title, created.agent) == ("session.created", "T", "a")
    assert created.metadata == {
        "promptMode": "append",
        "sessionType": "main",
        "browserMode": "electron-embedded-browser",
        "customSystemPrompt": "p",
    }
    assert mix_api.created(mix_api.CreateSession()).title == ""


@pytest.mark.parametrize(
    "raw",
    [b'{"title":1}', b'{"title":null}', b'{"promptMode":"x"}', b'{"id":""}', b'{"id":"a/b"}', b'{"id":".."}',
     b'{"browserMode":"netscape"}', b"[]", b"null"],
)  # fmt: skip
def test_a_session_that_does_not_fit_is_refused(raw: bytes) -> None:
    """By its type alone."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=mix_api.CreateSession)


async def forked(index: int) -> tuple[MemoryStore, SessionInfo]:
    """A store with the log, and a fork of it."""
    store = MemoryStore(clock=lambda: AT)
    drafts = [Draft(event.fact, event.run) for event in LOG]
    for place, run in ((4, "r2"), (2, "r1")):
        drafts.insert(place, Draft(RunStarted("a", 1), run))
    await store.append("s", drafts)
    sessions = Sessions(store, Runner(store, {"a": Agent(lambda turn: "", name="a")}))
    return store, await sessions.fork(NOBODY, "s", "f", last=index, title="F")


@pytest.mark.parametrize("index", range(4))
async def test_a_fork_is_a_history_that_can_be_read_again(index: int) -> None:
    """The messages up to and with the one asked for, with their parts, belonging to no run."""
    store, fork = await forked(index)
    assert (fork.created.title, fork.created.forked_from, fork.created.agent) == ("F", "s", "a")
    events = await store.read("f", 0)

    def shown(message: Message) -> tuple[Any, ...]:
        return message.id, message.role, message.text, message.parts

    copied = history(events)
    assert [shown(message) for message in MESSAGES[: index + 1]] == [shown(message) for message in copied]
    assert {message.run for message in copied} == {None}


async def test_a_fork_beyond_the_end_is_refused() -> None:
    """With how many there are."""
    with pytest.raises(InvalidInput, match="4 messages"):
        await forked(4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hello", ("hello", {})),
        ("", ("", {})),
        ('{"text":"a"}', ("a", {})),
        ('\n {"text":"a","plan_mode":false,"media":[]}', ("a", {"plan_mode": False, "media": []})),
        ('{"text":null}', ('{"text":null}', {})),
        ('{"text":"a"} and more', ('{"text":"a"} and more', {})),
        ("{" * 100_000, ("{" * 100_000, {})),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, ('{"a":' * 50_000 + "1" + "}" * 50_000, {})),
        ('"text"', ('"text"', {})),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_content_is_json_text_only_if_it_is_a_whole_object_with_text(
    content: str, expected: tuple[str, dict[str, Any]]
) -> None:
    """Whatever else it is, it is the text."""
    assert expected == mix_api.stream_message(mix_api.StreamMessage(content=content))


@pytest.mark.parametrize("key", ["a", "x" * 255, "!~", "a:b/c=", None])
def test_a_key_is_visible_ascii(key: str | None) -> None:
    """Up to 255 characters; none is none."""
    assert key == common.idempotency_key(key)


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "\x7f", "x" * 256, "a\n"])
def test_another_key_is_refused(key: str) -> None:
    """Rather than taken for none, which would let the message be stored twice."""
    with pytest.raises(InvalidInput):
        common.idempotency_key(key)
