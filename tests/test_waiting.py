"""A model that keeps no answers, and a process that dies: what the model said whole is neither lost nor asked again.

In memory a run is cut at every one of its events; with real processes a server is killed while the user is asked.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fake_server import FakeServer, Reply, Request, stream_reply
from legato.agents.upstream import model_agent
from legato.errors import AgentError
from legato.event import CheckpointNoted
from legato.tool import Tool
from model_server import asking
from processes import Server, running
from provider_streams import START, STOP, USED, add, block, call, chunk, finish, item, numbered, over, sse, state
from test_upstream import Run

Call = tuple[str, str, str]
WIRES = ("chat", "messages", "responses")


def step(wire: str, text: str, *calls: Call) -> bytes:
    """What a model says in one step, on a wire: some text, and calls (id, name, arguments)."""
    if wire == "chat":
        pieces = [chunk(reasoning_content="Hm."), chunk(content=text[:2]), chunk(content=text[2:])] if text else []
        asked = [chunk(tool_calls=[call(n, arguments, id, name)]) for n, (id, name, arguments) in enumerate(calls)]
        return sse([*pieces, *asked, chunk("tool_calls" if calls else "stop"), USED, "[DONE]"], named=False)
    if wire == "messages":
        events: list[Any] = [START]
        if text:
            events += [block(0, type="thinking", thinking=""), add(0, "thinking_delta", thinking="Hm."),
                       add(0, "signature_delta", signature="abc"), over(0), block(1, type="text", text=""),
                       add(1, "text_delta", text=text[:2]), add(1, "text_delta", text=text[2:]), over(1)]  # fmt: skip
        for n, (id, name, arguments) in enumerate(calls, 2):
            events += [block(n, type="tool_use", id=id, name=name, input={}),
                       add(n, "input_json_delta", partial_json=arguments), over(n)]  # fmt: skip
        return sse([*events, finish("tool_use" if calls else "end_turn"), STOP])
    output: list[dict[str, Any]] = []
    if text:
        output += [item(0, "added", type="message", content=[]),
                   {"type": "response.output_text.delta", "output_index": 0, "item_id": "i_0", "delta": text},
                   item(0, "done", type="message", content=[{"type": "output_text", "text": text}])]  # fmt: skip
    for n, (id, name, arguments) in enumerate(calls, 1):
        about = {"type": "function_call", "call_id": id, "name": name}
        output += [item(n, "added", arguments="", **about), item(n, "done", arguments=arguments, **about)]
    return sse(numbered(state("created"), *output, state("completed", status="completed", output=[])))


class Scripted:
    """A model server: each request is answered with the next step, by how many answers it is told of."""

    def __init__(self, wire: str, *steps: tuple[str, Sequence[Call]]) -> None:
        self.wire = wire
        self.steps = steps
        self.asked: list[Any] = []

    def __call__(self, request: Request) -> Reply:
        told = request.json
        self.asked.append(told)
        outputs = len(re.findall(r'"(?:tool_call_id|tool_use_id)"|"function_call_output"', json.dumps(told)))
        begins = itertools.accumulate((len(calls) for _, calls in self.steps), initial=0)
        text, calls = self.steps[next(place for place, begin in enumerate(begins) if outputs <= begin)]
        return stream_reply(step(self.wire, text, *calls), None)


STEPS: tuple[tuple[str, Sequence[Call]], ...] = (
    ("Let me see.", [("a", "work", '{"x":1}'), ("b", "work", '{"x":2}')]),
    ("", [("c", "work", '{"x":3}')]),
    ("And more.", [("a", "work", '{"x":4}')]),
    ("Done.", []),
)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("on_crash", ["retry", "fail"])
async def test_a_crash_at_every_event(wire: str, on_crash: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a whole step the run goes on to the same end, and the model is told the same; in a half one it ends as
    interrupted. In no case is a step asked for twice, or a tool that must not be run again."""
    made: list[int] = []

    def work(x: int) -> str:
        made.append(x)
        return f"made {x}"

    def run() -> tuple[Run, Scripted]:
        model = Scripted(wire, *STEPS)
        made.clear()
        tools = [Tool(work, on_crash=on_crash)]
        return Run(model_agent(asking(monkeypatch, model, wire, background=False), tools=tools)), model

    whole, model = run()
    assert await whole.attempt() == "stop"
    told = model.asked
    assert len(told) == len(STEPS)
    went_on = 0
    for crash in range(1, len(whole.events)):
        broken, model = run()
        await broken.attempt(crash_after=crash)
        notes = [event.fact for event in broken.events if isinstance(event.fact, CheckpointNoted)]
        if notes and notes[-1].data.get("over"):
            cut = [event.fact.id for event in broken.events if event.type == "tool.started"]
            cut = [id for id in cut if not any(e.type == "tool.completed" and e.fact.id == id for e in broken.events)]
            assert await broken.attempt() == "stop", crash
            went_on += 1
            assert len(model.asked) == len(STEPS)
            if on_crash == "retry" or not cut:
                assert model.asked == told, crash
                assert broken.transcript.message("s~r") == whole.transcript.message("s~r"), crash
                assert set(made) == {1, 2, 3, 4}
            else:
                assert "nobody knows whether it was done" in json.dumps(model.asked[-1])
                assert len(made) <= 4
        else:
            asked, done = len(model.asked), list(made)
            with pytest.raises(AgentError) as caught:
                await broken.attempt()
            assert (caught.value.code, len(model.asked), made) == ("interrupted", asked, done), crash
    assert went_on >= 10


async def test_a_second_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each further attempt, too."""
    made: list[int] = []
    model = Scripted("chat", *STEPS)
    tool = Tool(lambda x: made.append(x), name="work", on_crash="retry")
    agent = model_agent(asking(monkeypatch, model, "chat"), tools=[tool])
    whole = Run(agent)
    await whole.attempt()
    told = list(model.asked)
    places = [n for n, event in enumerate(whole.events, 1) if event.type == "agent.checkpoint"]
    model.asked.clear()
    broken = Run(agent)
    await broken.attempt(crash_after=places[0])
    await broken.attempt(crash_after=len(broken.events) + 3)
    assert await broken.attempt() == "stop"
    assert model.asked == told
    assert broken.transcript.message("s~r") == whole.transcript.message("s~r")


# With real processes --------------------------------------------------------------------------------------------------

TOOLS = '''
from pathlib import Path

from legato.tool import tool


@tool(approval="Delete {path}?")
def delete(path: str) -> str:
    """Delete a file."""
    with Path("made").open("a") as file:
        file.write(f"{path}\\n")
    return f"{path} is gone"


@tool
def look(path: str) -> str:
    """Look at a file."""
    with Path("made").open("a") as file:
        file.write(f"{path}\\n")
    return f"{path} is there"
'''
CASES: dict[str, Sequence[Call]] = {
    "one": [("c1", "delete", '{"path":"a"}')],
    "two": [("c1", "delete", '{"path":"b"}'), ("c2", "delete", '{"path":"c"}')],
    "one of two is done": [("c1", "look", '{"path":"d"}'), ("c2", "delete", '{"path":"e"}')],
}


@contextmanager
def serving(folder: Path, url: str, wire: str) -> Iterator[Server]:
    (folder / "tools.py").write_text(TOOLS)
    arguments = ["tools.py", "--model", f"{wire}:m", "--base-url", f"{url}/v1", "--grace", "0.2", "--port", "0"]
    store = f"sqlite:///{folder / 'log.db'}"
    with running("legato", "serve", *arguments, "--store", store, cwd=folder) as server:
        yield server


def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    return httpx2.request(method, f"{server.url}{path}", json=body, trust_env=False).raise_for_status().json()


def until(look: Callable[[], Any]) -> Any:
    """What comes of it, once something does. The bound is a safety net."""
    end = time.monotonic() + 60
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    return found


def events(server: Server, session: str, type: str) -> list[dict[str, Any]]:
    page = ask(server, "GET", f"/api/sessions/{session}/events?limit=1000")["events"]
    return [event["data"] for event in page if event["type"] == type]


def waiting(server: Server, session: str, wanted: dict[str, int]) -> None:
    """Wait until there are so many events of each type."""
    until(lambda: {type: len(events(server, session, type)) for type in wanted} == wanted)


@pytest.mark.parametrize(("wire", "how", "times"), [("chat", "kill", 4), ("messages", "term", 4)])
def test_a_permission_is_granted_after_a_restart(wire: str, how: str, times: int, tmp_path: Path) -> None:
    """Killed or stopped, once or again and again, a run waits on: each tool runs once, the model is asked for each step
    once, and there is one answer."""
    models = {name: Scripted(wire, ("I will.", calls), ("All done.", [])) for name, calls in CASES.items()}

    def behind(request: Request) -> Reply:
        told = json.dumps(request.json)
        return next(model for name, model in models.items() if f"Go: {name}." in told)(request)

    with FakeServer(behind) as model:
        sessions: dict[str, str] = {}
        for life in range(times):
            with serving(tmp_path, model.url, wire) as server:
                for name, calls in CASES.items():
                    if not life:
                        sessions[name] = ask(server, "POST", "/api/sessions", {})["id"]
                        ask(server, "POST", f"/api/sessions/{sessions[name]}/messages", {"text": f"Go: {name}."})
                    asking = sum(tool == "delete" for _, tool, _ in calls)
                    wanted = {"permission.requested": asking, "tool.completed": len(calls) - asking}
                    waiting(server, sessions[name], {**wanted, "run.started": life + 1})
                server.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
                server.process.wait(60)
        with serving(tmp_path, model.url, wire) as server:
            for session in sessions.values():
                for each in events(server, session, "permission.requested"):
                    assert ask(server, "POST", f"/api/permissions/{each['id']}/grant")["granted"] is True
            ends = {name: ended(server, session) for name, session in sessions.items()}
            begun = {name: len(events(server, session, "permission.requested")) for name, session in sessions.items()}

    assert begun == {name: sum(tool == "delete" for _, tool, _ in calls) for name, calls in CASES.items()}
    for name, end in ends.items():
        assert [part["text"] for part in end["message"]["parts"] if part["type"] == "text"] == ["I will.", "All done."]
        assert len(models[name].asked) == 2
        for _, tool, arguments in CASES[name]:
            said = "is gone" if tool == "delete" else "is there"
            assert f"{json.loads(arguments)['path']} {said}" in json.dumps(models[name].asked[1])
        assert end["usage"]["output_tokens"] == 14
    made = (tmp_path / "made").read_text().split()
    assert sorted(made) == sorted(json.loads(arguments)["path"] for calls in CASES.values() for *_, arguments in calls)


def ended(server: Server, session: str) -> dict[str, Any]:
    (end,) = until(lambda: events(server, session, "run.completed"))
    return dict(end)
