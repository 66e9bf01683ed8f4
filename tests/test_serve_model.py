"""``legato serve --model``: a real model server behind it, another Legato behind it, and ``kill -9`` in between."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from legato import AsyncClient, Client
from legato.torture.ports import free_port
from processes import EXAMPLES, Server, running
from test_tiny_model import decoded, wait_until_idle
from tiny_model import MODEL, serving_model

TOOLS = '''
from legato.tool import tool


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."
'''

UPSTREAM = '''
from legato import ToolCall


async def agent(turn):
    """Says half a sentence, waits to be let go on, and says the rest; or calls its client's tool."""
    items = turn.message.metadata.get("input", [])
    outputs = [item["output"] for item in items if item.get("type") == "function_call_output"]
    if outputs:
        yield f"It says: {outputs[0]}"
    elif "tool" in turn.message.text:
        yield ToolCall("call-1", "slow", '{"word": "hello"}')
    else:
        for word in range(100):
            yield f"{word} "
        await turn.ask_permission("Go", "Go on?", timeout=None)
        for word in range(100, 200):
            yield f"{word} "
'''
WHOLE = "".join(f"{word} " for word in range(200))


@contextmanager
def asking(url: str, folder: Path, vendor: str = "chat", *options: str, port: str = "0") -> Iterator[Server]:
    """A server whose agent is the model at ``url``, with the tools of ``tools.py``."""
    (folder / "tools.py").write_text(TOOLS)
    arguments = ["tools.py", "--model", vendor, "--base-url", url, "--instructions", "Be brief.", *options]
    store = f"sqlite:///{folder / 'log.db'}"
    with running("legato", "serve", *arguments, "--port", port, "--store", store, cwd=folder) as server:
        yield server


def events(url: str, session: str) -> list[dict[str, Any]]:
    page = httpx2.get(f"{url}/api/sessions/{session}/events?limit=1000", trust_env=False).raise_for_status().json()
    return list(page["events"])


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    with serving_model() as url:
        yield url


# A real model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_a_real_model_with_a_tool(api: str, model: str, tmp_path: Path) -> None:
    """The model calls the tool of the file, is told what it gave, and its answer reaches the reader."""
    with asking(model, tmp_path, f"{api}:{MODEL}") as server, Client(server.url) as client:
        answer = client.ask("What is the weather?")
        seen = [event.event for event in answer]

        assert "complete" == seen[-1]
        assert "content" in seen  # a few, since a quick model gets ahead of the store, and its tokens are joined
        said = events(server.url, answer.session_id)
    end = said[-1]["data"]
    calls = [part for part in end["message"]["parts"] if part["type"] == "tool_call"]
    assert {("weather", True)} == {(call["name"], call["success"]) for call in calls}
    assert all(call["output"].startswith("Sunny in ") for call in calls)
    assert (answer.text, end["finish_reason"]) == (end["message"]["text"], "stop")
    assert end["usage"]["output_tokens"] > 10
    assert MODEL in end["usage"]["model"]


@pytest.mark.parametrize("api", ["chat", "messages"])
def test_a_real_model_that_is_cut(api: str, model: str, tmp_path: Path) -> None:
    """The number of tokens that the sender allows reaches the model, and the answer says that it was cut."""
    with asking(model, tmp_path, f"{api}:{MODEL}") as server:
        body = {
            "model": MODEL,
            "input": "Tell me more.",
            "max_output_tokens": 9,
            "temperature": 0,
            "tool_choice": "none",
        }
        response = httpx2.post(f"{server.url}/v1/responses", json=body, timeout=60, trust_env=False).json()

    assert ("incomplete", {"reason": "max_output_tokens"}) == (response["status"], response["incomplete_details"])
    assert 9 == response["usage"]["output_tokens"]


def test_stop_reaches_a_real_model(tmp_path: Path) -> None:
    """When the run is cancelled, the model stops long before its end."""
    with serving_model(endless=True) as url, running(
        "legato", "serve", "--model", MODEL, "--base-url", url, "--port", "0", "--store", "memory:", cwd=tmp_path
    ) as server, Client(server.url) as client:  # fmt: skip
        before = decoded(url)
        answer = client.ask("Tell me everything.")
        for event in answer:
            if event.event == "content":
                answer.cancel()
        wait_until_idle(url)

        assert 0 < decoded(url) - before < 15_000
        assert "run.cancelled" == events(server.url, answer.session_id)[-1]["type"]


# Another Legato, which writes in the background -----------------------------------------------------------------------


def upstream(folder: Path) -> Any:
    (folder / "upstream.py").write_text(UPSTREAM)
    store = f"sqlite:///{folder / 'upstream.db'}"
    return running("legato", "serve", "upstream.py", "--port", "0", "--store", store, cwd=folder)


def grant(url: str) -> str:
    """Let the upstream's only run go on; its session."""
    (session,) = httpx2.get(f"{url}/api/sessions", trust_env=False).json()
    asked = next(e for e in events(url, session["id"]) if e["type"] == "permission.requested")
    httpx2.post(f"{url}/api/permissions/{asked['data']['id']}/grant", trust_env=False).raise_for_status()
    return str(session["id"])


async def test_kill_9_in_the_middle_of_a_background_answer(tmp_path: Path) -> None:
    """The run goes on from the upstream's cursor: one seamless text for the reader, asked for once."""
    with upstream(tmp_path) as behind:
        port = str(free_port())
        with asking(f"{behind.url}/v1", tmp_path, "legato:agent", port=port) as server:
            url = server.url
            async with AsyncClient(url) as client:
                answer = await client.ask("Write.")
                seen, restarted = [], False
                async for event in answer:
                    seen.append(event)
                    if event.event == "content" and "99 " in answer.text and not restarted:
                        server.process.kill()
                        server.stopped()
                        restarted = True
                        with asking(f"{behind.url}/v1", tmp_path, "legato:agent", port=port):
                            asked = grant(behind.url)
                            async for rest in answer:
                                seen.append(rest)
                            said = events(url, answer.session_id)
        upstream_events = events(behind.url, asked)

    assert ("complete", WHOLE) == (seen[-1].event, answer.text)
    assert [1, 2] == [event["data"]["attempt"] for event in said if event["type"] == "run.started"]
    assert WHOLE == "".join(event["data"]["text"] for event in said if event["type"] == "text.delta")
    assert 1 == len({event["data"]["part"] for event in said if event["type"] == "text.delta"})
    assert 1 == sum(event["type"] == "message.created" for event in upstream_events)


def test_tools_over_another_legato(tmp_path: Path) -> None:
    """What is a tool of this server is the client's tool there: the second question continues the first answer."""
    (tmp_path / "slow.py").write_text(
        "from legato.tool import tool\n\n@tool\ndef slow(word: str) -> str:\n    return word * 2\n"
    )
    with upstream(tmp_path) as behind, running(
        "legato", "serve", "slow.py", "--model", "legato:agent", "--base-url", f"{behind.url}/v1",
        "--port", "0", "--store", "memory:", cwd=tmp_path,
    ) as server, Client(server.url) as client:  # fmt: skip
        answer = client.ask("Use the tool.")
        list(answer)
        (session,) = httpx2.get(f"{behind.url}/api/sessions", trust_env=False).json()
        behind_events = events(behind.url, session["id"])

    assert "It says: hellohello" == answer.text
    assert 2 == sum(event["type"] == "message.created" for event in behind_events)


def test_the_example(model: str) -> None:
    """The tools of the example are a model's."""
    arguments = ["examples/tools.py", "--model", MODEL, "--base-url", model, "--port", "0", "--store", "memory:"]
    with running("legato", "serve", *arguments, cwd=EXAMPLES.parent) as server, Client(server.url) as client:
        for event in (answer := client.ask("What time is it?")):
            if event.event == "permission":
                client.permissions.grant(event.data.id)
        said = events(server.url, answer.session_id)

    results = [event["data"] for event in said if event["type"] == "tool.completed"]
    assert results
    assert {result["name"] for result in results} <= {"clock", "write_note"}
    assert "run.completed" == said[-1]["type"]


# The command line -----------------------------------------------------------------------------------------------------


def said_when_refused(*arguments: str, cwd: Path, **env: str) -> str:
    with pytest.raises(AssertionError) as caught, running("legato", "serve", *arguments, cwd=cwd, env=env):
        pass
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "gpt-x"], "Expected a model such as openai:gpt-5-mini"),
        (["--model", "openai:gpt-x"], "set OPENAI_API_KEY"),
        (["--model", "chat:x"], "needs a base URL"),
        (["--base-url", "http://host/v1"], "--base-url is for a model; name it with --model"),
        (["--instructions", "Rhyme."], "--instructions is for a model"),
        (["--model", "--port", "0"], "--model wants a name such as ollama:llama3.2, got '--port'"),
        (["--model", "ollama:x", "--model", "ollama:x"], "--model ollama:x is given twice"),
        (
            ["empty.py", "--model", "ollama:x"],
            "There is neither a tool nor an agent in empty.py: expected functions under",
        ),
        (["--model", "ollama:x", "--docs", "."], "--docs is for the guide, which is served without --model"),
        (["tools.py"], "its tools are for a model, to be named with --model"),
        (["--model", "ollama:x", "--model", "lmstudio:x"], "There is an agent 'x' already"),
    ],
)
def test_what_does_not_fit_together(arguments: list[str], words: str, tmp_path: Path) -> None:
    """One line says what is missing, before anything is served."""
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "empty.py").write_text("x = 1\n")
    said = said_when_refused(*arguments, "--store", "memory:", cwd=tmp_path, OPENAI_API_KEY="", COLUMNS="200")

    assert re.search(re.escape(words), said)
    assert "Traceback" not in said


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """The server's log says why somebody has to wait."""
    with asking("http://127.0.0.1:1/v1", tmp_path, "chat:x") as server, Client(server.url) as client:
        answer = client.ask("Hello")
        deadline = time.monotonic() + 60
        while "is repeated in" not in server.output and time.monotonic() < deadline:
            time.sleep(0.05)
        answer.cancel()

    assert re.search(r"WARNING a request is repeated in [\d.]+ s: POST http://127.0.0.1:1: ", server.output)


def test_models_beside_agents(tmp_path: Path) -> None:
    """The first model is the default; the agents and the tools of an application stay what they are."""
    (tmp_path / "app.py").write_text(
        "from legato import Legato\n"
        "app = Legato('memory:')\n"
        "@app.agent\n"
        "def own(turn): return 'x'\n"
        "@app.tool\n"
        "def add(a: int, b: int) -> int: return a + b\n"
    )
    arguments = ["app.py", "--model", "ollama:one:3b", "--model", "openai:two", "--port", "0"]
    with running("legato", "serve", *arguments, cwd=tmp_path, env={"OPENAI_API_KEY": "k"}) as server:
        models = httpx2.get(f"{server.url}/v1/models", trust_env=False).json()["data"]

    assert ["one:3b", "two", "own"] == [model["id"] for model in models]
