"""Which events are an answer's, and its text, whatever comes twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from legato.client import CursorReset, StreamEvent
from legato.client.answer import AnswerState, PartText
from legato.client.events import decode_event
from legato.client.models import SendResult
from legato.sse import SSEMessage


def event(kind: str, /, **data: Any) -> StreamEvent:
    decoded = decode_event(SSEMessage(json.dumps(data), kind, "1"))
    assert decoded is not None
    return decoded


def state(run: str | None = "r1") -> AnswerState:
    return AnswerState(SendResult(status="processing", session_id="s", run_id=run))


def content(text: str, start: int | None, part: int = 0, message: str = "r1~a1", **more: Any) -> StreamEvent:
    return event("content", content=text, part=part, start=start, assistantMessageId=message, **more)


def test_pieces_make_the_text() -> None:
    """In order, without places, as Mix servers send them."""
    text = PartText()
    for piece in ("Hel", "lo", " you"):
        text.apply(piece, None)

    assert "Hello you" == str(text)


def test_pieces_that_come_twice_do_no_harm() -> None:
    """Each piece names its place, in code points."""
    text = PartText()
    for piece, start in [("a\U0001f3bb", 0), ("bc", 2), ("a\U0001f3bb", 0), ("bc", 2), ("d", 4), ("c", 3)]:
        text.apply(piece, start)

    assert "a\U0001f3bbbcd" == str(text)


def test_the_text_is_that_of_the_newest_message() -> None:
    """What was said before a tool call is not the answer; parts are in their order."""
    answer = state()
    answer.take(content("Let me look.", 0))
    answer.take(content("It is ", 0, part=1, message="r1~a2"))
    answer.take(content("Well: ", 0, part=0, message="r1~a2"))

    assert "Well: It is " == answer.text


def test_a_sub_agents_text_is_not_the_answers() -> None:
    """It talks to the agent."""
    answer = state()
    answer.take(event("tool_use_start", id="t1", name="Task", assistantMessageId="r1~a1"))

    assert answer.take(content("secret", 0, message="r9~a1", parentToolCallId="t1")) is False
    assert "" == answer.text


@pytest.mark.parametrize(
    ("own", "name", "data"),
    [
        (True, "user_message_created", {"messageId": "m", "content": "hi", "runId": "r1"}),
        (False, "user_message_created", {"messageId": "m", "content": "hi", "runId": "r2"}),
        (True, "thinking", {"content": "x", "assistantMessageId": "r1~a1"}),
        (False, "thinking", {"content": "x", "assistantMessageId": "r11~a1"}),
        (True, "tool_execution_start", {"toolCallId": "t1"}),
        (False, "tool_execution_start", {"toolCallId": "t2"}),
        (True, "tool_execution_complete", {"toolCallId": "t1", "success": True}),
        (True, "permission", {"id": "p", "runId": "r1"}),
        (False, "permission", {"id": "p", "runId": "r2"}),
        (True, "notification_resolved", {"id": "n1"}),
        (False, "notification_resolved", {"id": "n2"}),
        (False, "session_rewound", {"to": "m1"}),
        (False, "heartbeat", {}),
        (False, "complete", {"done": True, "runId": "r2"}),
        (True, "session_deleted", {"sessionId": "s"}),
    ],
)
def test_an_answer_knows_its_own_events(own: bool, name: str, data: dict[str, Any]) -> None:
    """By run, by message, by tool call and by notification."""
    answer = state()
    answer.take(event("tool_use_start", id="t1", name="Bash", assistantMessageId="r1~a1"))
    answer.take(event("notification", id="n1", runId="r1"))

    assert own is answer.take(event(name, **data))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("complete", {"done": True, "content": "Hi", "runId": "r1"}),
        ("error", {"error": "It broke.", "type": "agent_error", "runId": "r1"}),
        ("session_deleted", {"sessionId": "s"}),
    ],
)
def test_an_answer_has_one_end(name: str, data: dict[str, Any]) -> None:
    """Done, failed, or gone with its session."""
    answer = state()
    assert answer.outcome is None
    end = event(name, **data)
    answer.take(end)

    assert end == answer.outcome


def test_in_the_end_the_text_is_the_servers() -> None:
    """``complete`` has the whole of it."""
    answer = state()
    answer.take(content("Hel", 0))
    answer.take(event("complete", done=True, content="Hello", runId="r1"))

    assert "Hello" == answer.text


def test_after_an_error_the_text_is_what_came() -> None:
    """Nothing that was read is lost."""
    answer = state()
    answer.take(content("Hel", 0))
    answer.take(event("error", error="It broke.", runId="r1"))

    assert "Hel" == answer.text


def test_without_a_run_every_event_is_the_answers() -> None:
    """A Mix server does not say what belongs to what."""
    assert state(None).take(content("x", None, message="whatever"))


def test_a_reset_is_raised() -> None:
    """The question may be gone, so its end may never come."""
    with pytest.raises(CursorReset):
        state().take(event("connected", sessionId="s", cursor="reset"))
