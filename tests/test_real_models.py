"""The adapters with the frameworks' real model classes, which read the bytes of a model server of these tests.

What a framework makes of a provider's stream is not what a scripted model gives: other ids, other orders, other errors.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fake_server import FakeServer, Reply, Request, stream_reply
from framework_server import AGENTS, Said, Talk, serving
from legato import Client
from legato.client import ContentEvent, StreamEvent
from test_settings import NESTED, WORDS

WIRES = {
    "langgraph": ["chat", "responses", "messages"],
    "openai-agents": ["chat", "responses"],
    "pydantic-ai": ["chat", "responses", "messages"],
}
CASES = [(framework, wire) for framework, wires in WIRES.items() for wire in wires]

Step = list[tuple[str, Any]]
"""What a model says in one step: ``think`` and ``text`` in pieces, ``call`` (id, name, pieces of the arguments),
``wait`` until a reader has had what came before, ``error`` and ``cut``, and ``end`` with the reason."""
ONE = ("call", ("call_1", "work", ['{"x"', ":1}"]))
TWO = ("call", ("call_2", "work", ["", '{"x":', "2}"]))
SCRIPTS: dict[str, list[Step]] = {
    "text": [[("text", "Hel"), ("wait", None), ("text", "lo "), ("text", "world.")]],
    "think": [[("think", "Hm, "), ("think", "so."), ("text", "Well.")]],
    "tool": [[("text", "I look. "), ("wait", None), ONE], [("text", "Made it.")]],
    "only a tool": [[ONE], [("text", "Made it.")]],
    "think and tool": [[("think", "Hm."), ONE], [("think", "So."), ("text", "Made it.")]],
    "tools": [[ONE, TWO], [("text", "Both.")]],
    "two steps": [[ONE], [("text", "On. "), TWO], [("text", "Done.")]],
    "killed": [[ONE], [("text", "Made "), ("wait", None), ("text", "it.")]],
    "length": [[("text", "Once upon"), ("end", "length")]],
    "error": [[("text", "Hel"), ("error", "Overloaded.")]],
    "error at once": [[("error", "Overloaded.")]],
    "cut": [[("text", "Hel"), ("cut", None)]],
}


class Model:
    """A server that plays the script named by the user's first words, over three APIs."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.heard = threading.Event()
        self.burst = False

    def __call__(self, request: Request) -> Reply:
        body = request.json
        self.asked.append(body)
        words = json.dumps(body)
        name = next(name for name in sorted(SCRIPTS, key=len, reverse=True) if f"play: {name}!" in words)
        outputs = words.count("made 1") + words.count("made 2")
        script = SCRIPTS[name]
        calls = [sum(kind == "call" for kind, _ in step) for step in script]
        place = next(n for n in range(len(script)) if outputs <= sum(calls[:n]))
        wire = {"completions": "chat", "responses": "responses", "messages": "messages"}[request.path.split("/")[-1]]
        step = [each for each in script[place] if each[0] != "cut"]
        cut = len(step) < len(script[place])
        return stream_reply(b"", None, pieces=self._pieces(getattr(self, wire)(step, cut)), cut=cut)

    def _pieces(self, frames: Iterator[Any]) -> Iterator[bytes]:
        for frame in frames:
            if frame is None:
                self.burst |= not self.heard.wait(15)
            else:
                yield frame

    def chat(self, step: Step, cut: bool) -> Iterator[Any]:
        def chunk(finish: str | None = None, **delta: Any) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            return data({"id": "chat_1", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
                         "choices": [choice]})  # fmt: skip

        yield chunk(role="assistant", content="")
        calls, end = 0, ""
        for kind, what in step:
            if kind == "wait":
                yield None
            elif kind == "think":
                yield chunk(reasoning_content=what)
            elif kind == "text":
                yield chunk(content=what)
            elif kind == "call":
                id, name, pieces = what
                yield chunk(tool_calls=[{"index": calls, "id": id, "type": "function",
                                         "function": {"name": name, "arguments": ""}}])  # fmt: skip
                for piece in pieces:
                    yield chunk(tool_calls=[{"index": calls, "function": {"arguments": piece}}])
                calls += 1
            elif kind == "error":
                yield data({"error": {"message": what, "type": "overloaded_error", "code": 529}})
                return
            else:
                end = what
        if cut:
            return
        yield chunk(end or ("tool_calls" if calls else "stop"))
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        yield data({"id": "chat_1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [],
                    "usage": usage})  # fmt: skip
        yield b"data: [DONE]\n\n"

    def messages(self, step: Step, cut: bool) -> Iterator[Any]:
        yield named({"type": "message_start", "message": {
            "id": f"msg_{len(self.asked)}", "type": "message", "role": "assistant", "model": "m-1", "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 1}}})  # fmt: skip
        index, kinds, end = -1, "", ""

        def open(kind: str, block: dict[str, Any]) -> Iterator[bytes]:
            nonlocal index, kinds
            if index >= 0:
                yield named({"type": "content_block_stop", "index": index})
            index, kinds = index + 1, kind
            yield named({"type": "content_block_start", "index": index, "content_block": block})

        def delta(kind: str, **fields: Any) -> bytes:
            return named({"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}})

        called = False
        for kind, what in step:
            if kind == "wait":
                yield None
            elif kind == "think":
                if kinds != "think":
                    yield from open("think", {"type": "thinking", "thinking": "", "signature": ""})
                yield delta("thinking_delta", thinking=what)
            elif kind == "text":
                if kinds != "text":
                    yield from open("text", {"type": "text", "text": ""})
                yield delta("text_delta", text=what)
            elif kind == "call":
                id, name, pieces = what
                called = True
                yield from open("call", {"type": "tool_use", "id": id, "name": name, "input": {}})
                for piece in pieces:
                    yield delta("input_json_delta", partial_json=piece)
            elif kind == "error":
                yield named({"type": "error", "error": {"type": "overloaded_error", "message": what}})
                return
            else:
                end = {"length": "max_tokens"}[what]
        if cut:
            return
        yield named({"type": "content_block_stop", "index": index})
        reason = end or ("tool_use" if called else "end_turn")
        yield named({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None},
                     "usage": {"input_tokens": 5, "output_tokens": 7}})  # fmt: skip
        yield named({"type": "message_stop"})

    def responses(self, step: Step, cut: bool) -> Iterator[Any]:
        number, response = -1, f"resp_{len(self.asked)}"
        output: list[dict[str, Any]] = []

        def event(type: str, **fields: Any) -> bytes:
            nonlocal number
            number += 1
            return named({"type": f"response.{type}", "sequence_number": number, **fields})

        def whole(status: str, **fields: Any) -> dict[str, Any]:
            return {"id": response, "object": "response", "created_at": 1, "status": status, "model": "m-1",
                    "output": output if status != "in_progress" else [], "error": None, "incomplete_details": None,
                    "instructions": None, "metadata": {}, "parallel_tool_calls": True, "temperature": 1.0,
                    "tool_choice": "auto", "tools": [], "top_p": 1.0, **fields}  # fmt: skip

        def close() -> Iterator[bytes]:
            if not output or output[-1].get("status") == "completed":
                return
            item, place = output[-1], len(output) - 1
            about = {"item_id": item["id"], "output_index": place}
            item["status"] = "completed"
            if item["type"] == "message":
                text = item["content"][0]["text"]
                yield event("output_text.done", **about, content_index=0, text=text, logprobs=[])
                yield event("content_part.done", **about, content_index=0, part=item["content"][0])
            elif item["type"] == "reasoning":
                yield event("reasoning_summary_text.done", **about, summary_index=0, text=item["summary"][0]["text"])
                yield event("reasoning_summary_part.done", **about, summary_index=0, part=item["summary"][0])
            else:
                yield event("function_call_arguments.done", **about, name=item["name"], arguments=item["arguments"])
            yield event("output_item.done", output_index=place, item=item)

        def open(kind: str, **fields: Any) -> Iterator[bytes]:
            yield from close()
            prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
            place = len(output)
            item = {"type": kind, "id": f"{prefix}_{len(self.asked)}{place}", "status": "in_progress", **fields}
            yield event("output_item.added", output_index=place, item=item)
            about = {"item_id": item["id"], "output_index": place}
            output.append(item)
            if kind == "message":
                part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                yield event("content_part.added", **about, content_index=0, part=part)
                output[-1] = {**item, "content": [part]}
            elif kind == "reasoning":
                part = {"type": "summary_text", "text": ""}
                yield event("reasoning_summary_part.added", **about, summary_index=0, part=part)
                output[-1] = {**item, "summary": [part]}

        def place() -> dict[str, Any]:
            return {"item_id": output[-1]["id"], "output_index": len(output) - 1}

        yield event("created", response=whole("in_progress"))
        yield event("in_progress", response=whole("in_progress"))
        usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12,
                 "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                 "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
        for kind, what in step:
            last = output[-1]["type"] if output and output[-1]["status"] == "in_progress" else ""
            if kind == "wait":
                yield None
            elif kind == "think":
                if last != "reasoning":
                    yield from open("reasoning", summary=[])
                output[-1]["summary"][0]["text"] += what
                yield event("reasoning_summary_text.delta", **place(), summary_index=0, delta=what)
            elif kind == "text":
                if last != "message":
                    yield from open("message", role="assistant", content=[])
                output[-1]["content"][0]["text"] += what
                yield event("output_text.delta", **place(), content_index=0, delta=what, logprobs=[])
            elif kind == "call":
                id, name, pieces = what
                yield from open("function_call", call_id=id, name=name, arguments="")
                for piece in pieces:
                    output[-1]["arguments"] += piece
                    yield event("function_call_arguments.delta", **place(), delta=piece)
            elif kind == "error":
                error = {"code": "server_is_overloaded", "message": what}
                number += 1
                yield named({"type": "error", "sequence_number": number, **error, "param": None})
                yield event("failed", response=whole("failed", error=error))
                return
            else:
                yield from close()
                yield event("incomplete", response=whole(
                    "incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=usage))  # fmt: skip
                return
        if cut:
            return
        yield from close()
        yield event("completed", response=whole("completed", usage=usage))


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def named(value: Any) -> bytes:
    return b"event: " + value["type"].encode() + b"\n" + data(value)


class Place:
    """A framework's agents in a server, and the model behind them."""

    def __init__(self, url: str, client: Client, model: Model, folder: Any) -> None:
        self.url = url
        self.client = client
        self.model = model
        self._folder = folder

    def say(self, wire: str, name: str) -> Said:
        self.model.asked.clear()
        self.model.heard.clear()
        self.model.burst = False
        return Talk(self.client, self._folder / "notes").say(f"play: {name}!", agent=wire, stop_at=self._hear)

    def ask(self, wire: str, name: str, **fields: Any) -> tuple[str | None, list[Any]]:
        """What is refused of a request over Chat Completions, or None; and what the model was asked."""
        self.model.asked.clear()
        self.model.heard.set()
        said = [{"role": "user", "content": f"play: {name}!"}]
        body = {"model": wire, "messages": said, **fields}
        answer = httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
        if answer.status_code == 400:
            assert not self.model.asked
            return answer.json()["error"]["param"], []
        assert answer.status_code == 200, answer.text
        return None, list(self.model.asked)

    def _hear(self, event: StreamEvent) -> bool:
        if isinstance(event, ContentEvent):
            self.model.heard.set()
        return False


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """Made when they are asked for."""
    opened: list[Any] = []

    class Places(dict[str, Place]):
        def __missing__(self, framework: str) -> Place:
            model = Model()
            behind = FakeServer(model).__enter__()
            target = AGENTS / f"models_{framework.replace('-', '_')}.py"
            server = serving(framework, target, "memory:", MODEL_URL=behind.url)
            url = server.__enter__().url
            client = Client(url)
            opened.extend([client.__exit__, server.__exit__, behind.__exit__])
            self[framework] = place = Place(url, client, model, tmp_path_factory.mktemp(framework))
            return place

    yield Places()
    for leave in opened:
        leave(None, None, None)


def parts(said: Said) -> list[Any]:
    """The message's parts, briefly."""
    found: list[Any] = []
    for part in said.message["parts"]:
        if part["type"] == "tool_call":
            found.append((part["name"], part["arguments"].replace(" ", ""), part.get("output")))
        else:
            found.append((part["type"], part["text"]))
    return found


MADE_1, MADE_2 = ("work", '{"x":1}', "made 1"), ("work", '{"x":2}', "made 2")
ANSWERS: dict[str, list[Any]] = {
    "text": [("text", "Hello world.")],
    "think": [("thinking", "Hm, so."), ("text", "Well.")],
    "tool": [("text", "I look. "), MADE_1, ("text", "Made it.")],
    "only a tool": [MADE_1, ("text", "Made it.")],
    "think and tool": [("thinking", "Hm."), MADE_1, ("thinking", "So."), ("text", "Made it.")],
    "tools": [MADE_1, MADE_2, ("text", "Both.")],
    "two steps": [MADE_1, ("text", "On. "), MADE_2, ("text", "Done.")],
}
SILENT = {("langgraph", "chat")}
"""Whose class does not read what these servers think: LangChain's ``ChatOpenAI`` knows no ``reasoning_content``."""


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(("framework", "wire"), CASES)
def test_an_answer(framework: str, wire: str, name: str, places: dict[str, Place]) -> None:
    """The same parts in the same order, deltas as they come, each step asked for once, the tokens counted."""
    place = places[framework]
    said = place.say(wire, name)

    wanted = ANSWERS[name]
    if (framework, wire) in SILENT:
        wanted = [part for part in wanted if part[0] != "thinking"]
    assert said.end.type == "run.completed", said.end.data
    assert parts(said) == wanted
    assert said.message["text"] == wanted[-1][1]
    assert not place.model.burst
    assert len(place.model.asked) == len(SCRIPTS[name])
    steps = len(SCRIPTS[name])
    assert (said.end.data["usage"]["input_tokens"], said.end.data["usage"]["output_tokens"]) == (5 * steps, 7 * steps)
    assert said.end.data["finish_reason"] == "stop"
    pieces = [event.data["text"] for event in said.events if event.type == "text.delta"]
    if name == "text":
        assert pieces[0] == "Hel"


@pytest.mark.parametrize(("framework", "wire"), CASES)
def test_a_limit_of_tokens(framework: str, wire: str, places: dict[str, Place]) -> None:
    """A cut answer says so."""
    said = places[framework].say(wire, "length")

    assert (said.end.type, said.message["text"]) == ("run.completed", "Once upon")
    # The Agents SDK makes a completed response of every chat, and keeps the reason to itself.
    assert said.end.data["finish_reason"] == ("stop" if (framework, wire) == ("openai-agents", "chat") else "length")


@pytest.mark.parametrize("name", ["error", "error at once", "cut"])
@pytest.mark.parametrize(("framework", "wire"), CASES)
def test_an_error_in_the_middle(framework: str, wire: str, name: str, places: dict[str, Place]) -> None:
    """The run fails with a documented code, never completes; what came is kept."""
    said = places[framework].say(wire, name)

    assert said.end.type == "run.failed", said.end.data
    assert said.end.data["code"].startswith("model_")
    assert said.message["text"] == ("" if name == "error at once" else "Hel")


# What the sender sets -------------------------------------------------------------------------------------------------

ADAPTED = [case for case in CASES if case[0] != "langgraph"]
PLACES = {"chat": 1, "responses": 2, "messages": 3}


@pytest.mark.parametrize(("framework", "wire"), ADAPTED)
def test_a_model_is_told_what_the_sender_sets(framework: str, wire: str, places: dict[str, Place]) -> None:
    """In the words of its API, or it is refused by name, as of a model without a framework."""
    for row in WORDS:
        fields, wanted = row[0], row[PLACES[wire]]
        if "tools" in fields:
            continue
        refused, asked = places[framework].ask(wire, "text", **fields)
        if isinstance(wanted, str):
            assert refused == wanted, fields
            continue
        assert refused is None, fields
        body = asked[0]
        if "max_completion_tokens" in body:
            body["max_tokens"] = body.pop("max_completion_tokens")
        assert {name: body.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(("framework", "wire"), ADAPTED)
def test_one_call_at_a_time(framework: str, wire: str, places: dict[str, Place]) -> None:
    """Of the agent's own tools."""
    refused, asked = places[framework].ask(wire, "text", parallel_tool_calls=False)
    assert refused is None
    if wire == "messages":
        assert asked[0]["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    else:
        assert asked[0]["parallel_tool_calls"] is False


WORK = {"type": "function", "function": {"name": "work"}}
AMONG = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WORK]}}


@pytest.mark.parametrize(("framework", "wire"), ADAPTED)
def test_a_tool_that_has_to_be_called(framework: str, wire: str, places: dict[str, Place]) -> None:
    """Holds for the first step; else the agent would call it again and never answer."""
    named = {
        "chat": WORK,
        "responses": {"type": "function", "name": "work"},
        "messages": {"type": "tool", "name": "work"},
    }
    some: dict[str, Any] = {"chat": "required", "responses": "required", "messages": {"type": "any"}}
    # pydantic-ai says of the one tool that is left that one has to be called.
    for choice, wanted in (("required", [some]), (WORK, [named, some])):
        refused, asked = places[framework].ask(wire, "only a tool", tool_choice=choice)
        assert refused is None
        assert len(asked) == 2
        assert asked[0]["tool_choice"] in [each[wire] for each in wanted]
        assert asked[1].get("tool_choice") in (None, "auto", {"type": "auto"})
    refused, asked = places[framework].ask(wire, "text", tool_choice="none")
    assert refused is None
    assert asked[0].get("tool_choice") in ("none", {"type": "none"}) or not asked[0].get("tools")
    refused, asked = places[framework].ask(wire, "only a tool", tool_choice=AMONG)
    assert (refused, len(asked)) == (("tool_choice", 0) if framework == "openai-agents" else (None, 2))


@pytest.mark.parametrize("framework", WIRES)
def test_a_tool_that_is_not_the_agent_s(framework: str, places: dict[str, Place]) -> None:
    """Cannot be chosen, be it brought along or not."""
    for name in ("f", "h"):
        choice = {"type": "function", "function": {"name": name}}
        assert places[framework].ask("chat", "text", tools=NESTED, tool_choice=choice)[0] == "tool_choice"
    agent = "chat" if framework == "langgraph" else "set"  # which has none
    assert places[framework].ask(agent, "text", tools=NESTED, tool_choice="required")[0] == "tool_choice"


def test_tools_that_are_found_when_the_agent_runs(places: dict[str, Place]) -> None:
    """They can be called for, though nobody knows their names before."""
    refused, asked = places["pydantic-ai"].ask("dynamic", "only a tool", tool_choice="required")
    assert (refused, [body["tool_choice"] for body in asked]) == (None, ["required", "auto"])


@pytest.mark.parametrize("wire", WIRES["langgraph"])
def test_a_graph_is_told_nothing(wire: str, places: dict[str, Place]) -> None:
    """What asks for something is refused by name, unless its adapter says that it is heeded; what asks for nothing is
    not."""
    place = places["langgraph"]
    for fields in (row[0] for row in WORDS):
        refused, _ = place.ask(wire, "text", **fields)
        asked = {*fields, *({"verbosity"} if "text" in fields else ())}
        assert refused in asked, fields
    assert place.ask(wire, "text", tool_choice="required")[0] == "tool_choice"
    assert place.ask(wire, "text", tool_choice="auto", parallel_tool_calls=True, user=None)[0] is None


def test_what_a_graph_heeds(places: dict[str, Place]) -> None:
    """By LangChain's configurable fields, as docs/frameworks.md says."""
    place = places["langgraph"]
    refused, asked = place.ask("configurable", "only a tool", temperature=0.5)
    assert (refused, [body["temperature"] for body in asked]) == (None, [0.5, 0.5])
    refused, asked = place.ask("configurable", "text")
    assert (refused, "temperature" in asked[0]) == (None, False)
    assert place.ask("configurable", "text", top_p=0.5)[0] == "top_p"


@pytest.mark.parametrize("framework", ["openai-agents", "pydantic-ai"])
def test_options_count_before_what_the_sender_sets(framework: str, places: dict[str, Place]) -> None:
    """And leave the rest as it is, the agent's own fields included; what they heed is not told twice."""
    place = places[framework]
    refused, asked = place.ask("set", "text", max_tokens=5, temperature=0.5, seed=1, stop="x")
    assert refused is None
    body = asked[0]
    limit = body.get("max_tokens", body.get("max_completion_tokens"))
    assert (limit, body["temperature"], body["seed"], body["own"]) == (9, 0.5, 2, "field")
    assert "stop" not in body


@pytest.mark.parametrize("framework", ["openai-agents", "pydantic-ai"])
def test_a_form_of_its_own(framework: str, places: dict[str, Place]) -> None:
    """An agent whose answers have one takes no other."""
    place = places[framework]
    assert place.ask("formed", "text", response_format={"type": "json_object"})[0] == "response_format"


@pytest.mark.parametrize("framework", ["openai-agents", "pydantic-ai"])
def test_a_model_that_is_not_known(framework: str, places: dict[str, Place]) -> None:
    """Is told what all frameworks have a word for; else the framework would drop it."""
    place = places[framework]
    assert place.ask("unknown", "text", seed=1)[0] == "seed"
    assert place.ask("unknown", "text", presence_penalty=1)[0] == "presence_penalty"
    refused, asked = place.ask("unknown", "text", temperature=0.5, top_p=0.5, max_tokens=5)
    assert refused is None
    assert (asked[0]["temperature"], asked[0]["top_p"]) == (0.5, 0.5)


@pytest.mark.parametrize("framework", ["openai-agents", "pydantic-ai"])
def test_a_further_attempt_calls_no_tool_again(framework: str, tmp_path: Path) -> None:
    """What had to be called was called before the server was killed."""
    model, target = Model(), AGENTS / f"models_{framework.replace('-', '_')}.py"
    store = f"sqlite:///{tmp_path / 'log.db'}"
    body = {"model": "retried", "input": "play: killed!", "background": True, "tool_choice": "required"}
    with FakeServer(model) as behind:
        with serving(framework, target, store, MODEL_URL=behind.url) as server:
            id = httpx2.post(f"{server.url}/v1/responses", json=body, timeout=60).json()["id"]
            _until(lambda: len(model.asked) == 2)
            server.process.kill()
        model.heard.set()
        with serving(framework, target, store, MODEL_URL=behind.url) as server:

            def ended() -> bool:
                status = httpx2.get(f"{server.url}/v1/responses/{id}", timeout=60).json()["status"]
                return status not in ("queued", "in_progress")

            _until(ended)
    choices = [asked.get("tool_choice") for asked in model.asked]
    assert choices[0] == "required"
    assert len(choices) == 3
    assert set(choices[1:]) <= {None, "auto"}


def _until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)
