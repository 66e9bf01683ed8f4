"""The real mix-python-sdk, four versions of it as they are on PyPI, against a real server process.

Each version runs in an environment of its own (``venvs.py``) under ``realsdk/mix_driver.py``, which reports what the
SDK saw; the server runs the agent of ``realsdk/agents.py``. The four stand for the four shapes of the protocol: 0.5.7
sends over ``/stream``, 0.6.4 waits for the whole turn, 0.7.3 gets 202, 0.8.1 has the newest events.
"""

from __future__ import annotations

import itertools
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from facts import stored
from legato.dialect import mix
from legato.event import EVENTS, SessionCreated
from legato.log import SessionInfo
from processes import LONG, bounded
from venvs import MIX_VERSIONS, mix_python

HERE = Path(__file__).parent
DRIVER = HERE / "realsdk" / "mix_driver.py"
AGENT = f"{HERE / 'realsdk' / 'agents.py'}:scripted"

CALL_BEFORE_0_8 = ["tool", "tool_execution_start", "tool_execution_complete"]
CALL = {
    "0.8.1": [
        "tool_use_start",
        "tool_use_parameter_delta",
        "tool_use_parameter_streaming_complete",
        "tool_execution_start",
        "tool_execution_complete",
    ],
    "0.7.3": ["tool", "tool_parameter_delta", *CALL_BEFORE_0_8],
    "0.6.4": CALL_BEFORE_0_8,
    "0.5.7": CALL_BEFORE_0_8,
}
# One of each type, as the runner stores it, with every field that may be there.
_WHOLE = {
    "id": "r_1~m1",
    "text": "One file.",
    "parts": [
        {"type": "thinking", "step": 0, "text": "Hm"},
        {"type": "tool_call", "step": 0, "id": "c_1", "name": "Bash", "arguments": "{}", "success": True},
        {"type": "text", "step": 1, "text": "One file."},
    ],
}
_USAGE = {"input_tokens": 3, "output_tokens": 4, "cached_tokens": 1, "cost": 0.5, "model": "m"}
_PERMISSION = {"tool": "Bash", "description": "Lists.", "action": "run", "path": "/", "params": {"command": "ls"}}
_NOTE = {"kind": "question", "title": "Colour", "message": "Which?", "response": "choice", "choices": ["red", "blue"]}
EVERY_EVENT: list[tuple[str, dict[str, Any]]] = [
    ("session.created", {"title": "A title", "agent": "scripted", "metadata": {"a": 1}, "forked_from": "s_0"}),
    (
        "message.created",
        {
            "id": "m_1",
            "role": "user",
            "text": "é \u2028 \n",
            "agent": "scripted",
            "metadata": {"a": 1},
            "caller": "ida",
        },
    ),
    ("run.waiting", {}),
    ("run.started", {"agent": "scripted", "attempt": 1}),
    ("thinking.delta", {"part": 0, "step": 0, "start": 0, "text": "Hm"}),
    ("tool_call.started", {"part": 1, "step": 0, "id": "c_1", "name": "Bash"}),
    ("tool_call.delta", {"part": 1, "step": 0, "id": "c_1", "start": 0, "arguments": "{}"}),
    ("tool_call.completed", {"part": 1, "step": 0, "id": "c_1", "name": "Bash", "arguments": "{}"}),
    ("permission.requested", {"id": "r_1~p1", **_PERMISSION, "expires_at": 1767225700.5}),
    ("permission.resolved", {"id": "r_1~p1", "granted": True, "by": "user"}),
    ("tool.started", {"id": "c_1", "name": "Bash", "progress": ""}),
    ("tool.completed", {"id": "c_1", "name": "Bash", "progress": "", "success": True, "output": {"files": [None]}}),
    ("notification.created", {"id": "r_1~n1", **_NOTE, "timeout": 600.5, "created_at": 1767225600.5}),
    ("notification.resolved", {"id": "r_1~n1", "response": "choice", "value": "red", "by": "user"}),
    ("text.delta", {"part": 2, "step": 1, "start": 0, "text": "One file."}),
    ("refusal.delta", {"part": 3, "step": 1, "start": 0, "text": "No more."}),
    ("run.completed", {"message": _WHOLE, "usage": _USAGE, "finish_reason": "stop"}),
    ("run.failed", {"code": "agent_error", "message": "No.", "partial": _WHOLE, "usage": _USAGE, "detail": {"a": 1}}),
    ("run.cancel_requested", {"reason": "enough"}),
    ("run.cancelled", {"partial": _WHOLE, "usage": _USAGE, "reason": "enough"}),
    ("session.rewound", {"to": 2}),
    ("session.run_withdrawn", {"run": "r_0"}),
    ("session.updated", {"metadata": {"a": 1}}),
    ("message.revised", {"id": "m_0", "gone": True}),
    ("agent.checkpoint", {"data": {"a": 1}}),
    ("model.opaque", {"place": 0, "step": 1, "owner": "o", "data": ["x"]}),
    ("session.deleted", {}),
]
NOT_FOUND = ("ErrorResponse", 404, "not_found", 404)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server process that lives as long as this module's tests."""
    store = f"sqlite:///{tmp_path_factory.mktemp('real_mix') / 'log.db'}"
    command = [sys.executable, "-u", "-m", "legato", "serve", AGENT, "--port", "0", "--store", store]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield _address(process)
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def drain() -> None:  # to the end, so that a server that logs much never waits for us
        assert process.stdout
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=drain, daemon=True).start()
    said = []
    while line := lines.get(timeout=60):
        said.append(line)
        if found := re.search(r"http://[\w.\[\]:]+:\d+", line):
            return found.group()
    raise AssertionError(f"The server gave no address: {''.join(said)}")


class Sdk:
    """One version of the SDK, in a process that is started for the first call and again after one that died."""

    def __init__(self, version: str, base_url: str, errors: Path) -> None:
        self.version = version
        self.errors = errors
        self.command = [str(mix_python(version)), str(DRIVER), base_url]
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, scenario: str, **options: Any) -> dict[str, Any]:
        """What the SDK saw in the scenario."""
        process = self._running()
        assert process.stdin
        assert process.stdout
        print(json.dumps({"scenario": scenario, "options": options}), file=process.stdin, flush=True)
        with bounded(process, f"answer to {scenario}", self.errors.read_text, LONG):
            line = process.stdout.readline()
        answer = json.loads(line) if line else {"crash": f"The driver died:\n{self.errors.read_text()}"}
        if "crash" in answer:
            pytest.fail(f"mix-python-sdk {self.version}, {scenario} {options}\n{answer['crash']}", pytrace=False)
        return dict(answer["ok"])

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            with self.errors.open("w") as writing:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writing, text=True
                )
        return self.process


@pytest.fixture(scope="module", params=MIX_VERSIONS)
def sdk(request: pytest.FixtureRequest, server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    sdk = Sdk(request.param, server, tmp_path_factory.mktemp("driver") / "stderr")
    yield sdk
    sdk.close()


def names(events: list[dict[str, Any]]) -> list[str]:
    """The events' names, neighbours of the same name as one: how a text is cut into deltas is the server's affair."""
    return [name for name, _ in itertools.groupby(event["event"] for event in events)]


def text(events: list[dict[str, Any]]) -> str:
    return "".join(event["data"]["content"] for event in events if event["event"] == "content")


def ids(events: list[dict[str, Any]]) -> list[str]:
    return [event["id"] for event in events]


def beginning(sdk: Sdk) -> list[str]:
    return ["connected", "user_message_created"] if sdk.version >= "0.7" else ["connected"]


def failed(answer: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(answer.get(field) for field in ("error", "status", "type", "code"))


# Turns ----------------------------------------------------------------------------------------------------------------


def test_a_turn_is_the_events_that_the_version_knows(sdk: Sdk) -> None:
    """Thinking, text and the end arrive typed, and the text is the agent's."""
    seen = sdk("turn", text="hello")
    assert [*beginning(sdk), "thinking", "content", "complete"] == names(seen["events"])
    assert text(seen["events"]) == "You said: hello"
    assert seen["events"][-1]["data"]["content"] == "You said: hello"
    assert seen["events"][0]["data"] == {"sessionId": seen["session"]}


def test_a_tool_call_is_the_events_that_the_version_knows(sdk: Sdk) -> None:
    """A version from before 0.8 gets its own `tool` events and nothing that it would refuse."""
    events = sdk("turn", text="tools")["events"]
    assert [*beginning(sdk), "thinking", *CALL[sdk.version], "content", "complete"] == names(events)
    done = next(event["data"] for event in events if event["event"] == "tool_execution_complete")
    assert (done["toolCallId"], done["toolName"], done["success"]) == ("call_1", "Bash", True)
    whole = ("tool", "tool_use_parameter_streaming_complete")
    arguments = [event["data"]["input"] for event in events if event["event"] in whole]
    assert json.loads(arguments[-1]) == {"command": "ls"}


def test_every_event_of_a_turn_has_an_id_of_its_own(sdk: Sdk) -> None:
    """No two events share an id, so that each can be resumed after."""
    found = ids(sdk("turn", text="tools")["events"])
    assert sorted(set(found)) == sorted(found)


@pytest.mark.parametrize(
    ("sdk", "status"), [("0.8.1", "processing"), ("0.7.3", "processing"), ("0.5.7", "broadcasted")], indirect=["sdk"]
)
def test_a_send_is_acknowledged_at_once(sdk: Sdk, status: str) -> None:
    """202 from 0.7, and 200 with its own word on the old streaming route."""
    seen = sdk("turn", text="hello")
    assert seen["answer"] == {"status": status, "sessionId": seen["session"]}


@pytest.mark.parametrize("sdk", ["0.6.4", "0.5.7"], indirect=True)
def test_an_old_send_answers_with_the_whole_message(sdk: Sdk) -> None:
    """Until 0.6.4 `messages.send` returns when the turn is over."""
    answer = sdk("turn", text="hello", via="messages")["answer"]
    assert (answer["role"], answer["assistantResponse"]) == ("assistant", "You said: hello")


@pytest.mark.parametrize("sdk", ["0.5.7"], indirect=True)
def test_streaming_content_may_be_json_text(sdk: Sdk) -> None:
    """The 0.5 examples put `{"text": ...}` into the content; plain text means the same."""
    assert text(sdk("turn", text="hello", via="json")["events"]) == "You said: hello"


def test_a_stream_opened_after_the_send_has_the_turn_from_its_start(sdk: Sdk) -> None:
    """Sending first loses nothing."""
    events = sdk("send_first")["events"]
    assert [*beginning(sdk), "content", "permission", "content", "complete"] == names(events)
    assert text(events) == "May I? Granted."


def test_a_failed_agent_is_an_error_event(sdk: Sdk) -> None:
    """The text so far stays, no answer makes the SDK send again, and the session goes on."""
    seen = sdk("failure")
    assert [*beginning(sdk), "content", "error"] == names(seen["events"])
    assert "error" not in seen["answer"]
    assert text(seen["next"]) == "You said: hello"


def test_the_version_reads_every_event_that_the_dialect_writes_for_it(sdk: Sdk) -> None:
    """Its own parser and models take each frame, with all optional fields, and the heartbeat."""
    assert set(EVENTS) == {type for type, _ in EVERY_EVENT}
    profile = mix.profile(f"python-{sdk.version}")
    events = [
        stored(type, data, offset, 1767225600.5, run="r_1") for offset, (type, data) in enumerate(EVERY_EVENT, start=1)
    ]
    info = SessionInfo(session="s_1", head=len(events), created_at=0.0, updated_at=0.0, created=SessionCreated())
    frames = [
        mix.connected("s_1", 0, exact=False, info=info, retry=1000),
        *(mix.frame(event, "s_1", profile) for event in events),
        mix.heartbeat(len(events)),
    ]
    sent = [frame for frame in frames if frame]
    seen = sdk("parse", frames=b"".join(sent).decode())["events"]
    assert len(seen) == len(sent)
    assert profile.events == {event["event"] for event in seen}


# Resuming -------------------------------------------------------------------------------------------------------------


def test_a_stream_reopened_after_any_event_is_exactly_the_rest(sdk: Sdk) -> None:
    """Ids and data of what follows, for every id of a turn; the id of `connected` is where it was opened."""
    seen = sdk("resume", text="tools")
    for position, event in enumerate(seen["events"][:-1], start=1):
        connected, *rest = seen["tails"][event["id"]]
        assert ("connected", event["id"]) == (connected["event"], connected["id"])
        assert seen["events"][position:] == rest


def test_a_stream_reopened_after_the_last_event_is_only_the_next_turn(sdk: Sdk) -> None:
    """The end of a turn is a place like any other."""
    after = sdk("resume", text="hello")["after"]
    assert text(after) == "You said: again"
    assert names(after)[-1:] == ["complete"]


def test_a_turn_read_in_pieces_is_the_turn(sdk: Sdk) -> None:
    """A reader that loses its connection again and again while the agent speaks sees what the other one sees."""
    seen = sdk("drops", text="slow", every=3)
    pieces = [event for piece in seen["pieces"] for event in piece if event["event"] != "connected"]
    assert len(seen["pieces"]) > 3
    assert seen["events"][1:] == pieces
    assert text(pieces) == "".join(f"{number} " for number in range(20))


def test_two_readers_see_the_same_turns(sdk: Sdk) -> None:
    """One stream carries turn after turn, to each reader."""
    seen = sdk("persistent")
    assert [text(turn) for turn in seen["turns"]] == ["You said: hello", "There is a.txt."]
    assert seen["beside"] == seen["turns"]


def test_a_fresh_stream_does_not_replay_finished_turns(sdk: Sdk) -> None:
    """It begins with what is sent next."""
    seen = sdk("persistent")
    assert text(seen["fresh"]) == "You said: third"
    assert seen["fresh"][1:] == seen["third"]


# Answers of the user --------------------------------------------------------------------------------------------------


def test_a_cancelled_turn_ends_with_complete(sdk: Sdk) -> None:
    """The SDK's helpers wait for `complete`; cancelling the idle session does nothing."""
    seen = sdk("cancel")
    assert seen["cancelled"] == {"cancelled": True}
    assert [*beginning(sdk), "content", "complete"] == names(seen["events"])
    assert "error" not in seen["answer"]
    assert seen["again"] == {"ok": {"cancelled": False}}


@pytest.mark.parametrize(
    ("decision", "answer", "said"),
    [("grant", {"granted": True}, "May I? Granted."), ("deny", {"denied": True}, "May I? Denied.")],
)
def test_a_permission_is_asked_on_each_stream_and_decided_once(
    sdk: Sdk, decision: str, answer: dict[str, bool], said: str
) -> None:
    """A reader that comes back finds the question; the agent goes on with the first decision."""
    seen = sdk("permission", decision=decision)
    asked = next(event["data"] for event in seen["events"] if event["event"] == "permission")
    assert (asked["toolName"], asked["description"], asked["action"]) == ("Bash", "Lists your files.", "run")
    assert seen["decided"] == answer
    assert text(seen["events"]) == said
    again = [event["event"] for event in seen["repeated"]].index("permission")
    assert seen["repeated"][again:] == seen["events"][-len(seen["repeated"][again:]) :]


@pytest.mark.parametrize("sdk", ["0.8.1"], indirect=True)
@pytest.mark.parametrize(
    ("part", "answer", "said"),
    [
        ("choice", {"type_": "choice", "value": "blue"}, "You chose blue."),
        ("question", {"type_": "text", "value": "Ada"}, "You wrote Ada."),
    ],
)
def test_a_notification_is_answered_once(sdk: Sdk, part: str, answer: dict[str, str], said: str) -> None:
    """The agent gets the value; a second answer is 404."""
    seen = sdk("notification", text=part, answer=answer)
    assert "ok" in seen["first"]
    assert failed(seen["second"]) == NOT_FOUND
    assert text(seen["events"]) == said


@pytest.mark.parametrize("sdk", ["0.7.3", "0.6.4", "0.5.7"], indirect=True)
def test_a_notification_does_not_break_a_version_without_it(sdk: Sdk) -> None:
    """What a version has no name for is left out of its stream."""
    events = sdk("turn", text="announce")["events"]
    assert [*beginning(sdk), "content", "complete"] == names(events)


# The plain routes -----------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_a_typed_404(sdk: Sdk) -> None:
    """The SDK raises its own ErrorResponse, from the stream as from the plain routes."""
    seen = sdk("missing")
    empty = {name: failed(seen.pop(name)) for name in ("empty", "streaming empty") if name in seen}
    assert set(empty.values()) == {("ErrorResponse", 400, "bad_request", 400)}
    assert dict.fromkeys(seen, NOT_FOUND) == {name: failed(answer) for name, answer in seen.items()}


def test_a_cursor_that_was_never_given_is_refused(sdk: Sdk) -> None:
    """It is never waited on: the SDK raises instead of reading an empty stream."""
    seen = sdk("bad_cursor", cursors=["no such thing"])
    assert {cursor: answer.get("status") for cursor, answer in seen.items()} == {"no such thing": 400}


def test_a_session_can_be_read_listed_and_exported(sdk: Sdk) -> None:
    """Counts, messages and history agree about two turns."""
    seen = sdk("neighbours")
    session = seen["created"]["id"]
    assert seen["listed"] == [session]
    got = seen["got"]
    assert (got["title"], got["userMessageCount"], got["assistantMessageCount"]) == ("Neighbours", 2, 2)
    rows = [
        (row["role"], row["userInput"] if row["role"] == "user" else row["assistantResponse"])
        for row in seen["messages"]
    ]
    assert rows == [
        ("user", "tools"),
        ("assistant", "There is a.txt."),
        ("user", "hello"),
        ("assistant", "You said: hello"),
    ]
    call = seen["messages"][1]["toolCalls"][0]
    assert (call["name"], json.loads(call["input"]), call["finished"]) == ("Bash", {"command": "ls"}, True)
    assert sorted(row["id"] for row in seen["history"]) == sorted(row["id"] for row in seen["messages"])
    assert len(seen["page"]) == 1
    assert [message["content"] for message in seen["export"]["messages"]] == [said for _, said in rows]
    assert "attachment" in seen["disposition"][0]


def test_a_session_can_be_rewound_and_deleted(sdk: Sdk) -> None:
    """Rewinding keeps up to the named message; a deleted session is a 404."""
    seen = sdk("neighbours")
    assert seen["kept"] == seen["messages"][:2]
    assert seen["rewound"]["id"] == seen["created"]["id"]
    assert seen["deleted"] == {"ok": None}
    assert failed(seen["gone"]) == NOT_FOUND


@pytest.mark.parametrize("sdk", ["0.7.3", "0.6.4", "0.5.7"], indirect=True)
def test_a_session_can_be_forked(sdk: Sdk) -> None:
    """The fork holds the messages up to the index, that one included."""
    seen = sdk("neighbours")
    said = [row["userInput"] for row in seen["messages"][:1]]
    assert len(seen["forked"]["messages"]) == 2
    assert said == [row["userInput"] for row in seen["forked"]["messages"][:1]]
    assert seen["forked"]["session"]["title"] == "Forked"


def test_deleting_a_session_ends_its_streams(sdk: Sdk) -> None:
    """The reader is told, and its iteration ends without an error."""
    assert names(sdk("deleted")["events"])[-1:] == ["session_deleted"]


def test_the_calls_that_the_examples_begin_with_work(sdk: Sdk) -> None:
    """Health, storing a key and the system's facts: every example of the SDK makes some of them before it streams."""
    assert {"ok"} == {outcome for answer in sdk("preamble").values() for outcome in answer if outcome != "message"}


# The SDK's own helpers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sdk", ["0.8.1", "0.7.3", "0.6.4"], indirect=True)
def test_the_callback_and_query_helpers_work(sdk: Sdk) -> None:
    """They use the asyncio half of the SDK and a fresh stream per turn."""
    seen = sdk("helpers", text="tools")
    said = "".join(values[0] for name, *values in seen["callbacks"] if name == "content")
    assert said == "There is a.txt."
    assert seen["callbacks"][-1] == ["complete"]
    assert said == "".join(data["content"] for name, data in seen["query"] if name == "content")


@pytest.mark.parametrize("sdk", ["0.7.3", "0.6.4"], indirect=True)
def test_the_session_helper_works(sdk: Sdk) -> None:
    """It creates a session, speaks, and deletes it (0.8.1's cannot create one)."""
    seen = sdk("streaming_session", text="hello")
    assert "".join(seen["said"]) == "You said: hello"
    assert failed(seen["after"]) == NOT_FOUND
