"""The adapters of agent frameworks, each with the framework's own package in an environment of its own.

What all frameworks can do is tested once, on each of them: the same model, scripted in ``frameworks/script.py``, stands
behind an agent of each, in a server process. What only one can do is below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework_server import FRAMEWORKS, Said, Talk, scripted
from legato import Client
from legato.client import ContentEvent, NotificationEvent, PermissionEvent, StreamEvent, ThinkingEvent
from processes import Server

SECRET = "swordfish"


class Place:
    """A framework, a server with its agents, and a client of that."""

    def __init__(self, framework: str, server: Server, client: Client, folder: Path) -> None:
        self.framework = framework
        self.server = server
        self.client = client
        self._folder = folder

    def talk(self) -> Talk:
        talk = Talk(self.client, self._folder / "notes")
        talk.notes()
        return talk


def placed(framework: str, factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = factory.mktemp(framework)
    with scripted(framework, folder) as server, Client(server.url) as client:
        yield Place(framework, server, client, folder)


@pytest.fixture(scope="module", params=FRAMEWORKS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from placed(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def pydantic_ai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from placed("pydantic-ai", tmp_path_factory)


@pytest.fixture(scope="module")
def openai_agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from placed("openai-agents", tmp_path_factory)


@pytest.fixture(scope="module")
def langgraph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from placed("langgraph", tmp_path_factory)


def calls(said: Said) -> dict[str, dict[str, Any]]:
    """The parts that are calls, by id."""
    return {part["id"]: part for part in said.message["parts"] if part["type"] == "tool_call"}


def is_text(event: StreamEvent) -> bool:
    return isinstance(event, ContentEvent)


def asks(event: StreamEvent) -> bool:
    return isinstance(event, PermissionEvent)


# What all can do ------------------------------------------------------------------------------------------------------


def test_an_answer_streams(place: Place) -> None:
    """Thinking and text come in the model's own pieces, with usage and the model's name at the end."""
    said = place.talk().say("hello")

    pieces = [event.data["text"] for event in said.events if event.type in ("thinking.delta", "text.delta")]
    assert ["Hm, ", "hello.", "Hello, ", "world."] == pieces
    assert ["thinking", "text"] == [part["type"] for part in said.message["parts"]]
    assert "Hello, world." == said.message["text"]
    usage = {"input_tokens": 10, "output_tokens": 5, "cached_tokens": 2, "reasoning_tokens": 1, "model": "scripted"}
    assert usage.items() <= said.end.data["usage"].items()
    assert ("run.completed", "stop") == (said.end.type, said.end.data["finish_reason"])


def test_readers_see_it(place: Place) -> None:
    """The Mix stream has the same pieces."""
    said = place.talk().say("hello")

    assert ["Hm, ", "hello."] == [event.data.content for event in said.stream if isinstance(event, ThinkingEvent)]
    assert ["Hello, ", "world."] == [event.data.content for event in said.stream if isinstance(event, ContentEvent)]
    assert "complete" == said.stream[-1].event


def test_tools(place: Place) -> None:
    """Parallel calls stream their arguments; results are told apart from failures; the answer is a step of its own."""
    talk = place.talk()
    said = talk.say("tools")

    pieces = [e.data["arguments"] for e in said.events if e.type == "tool_call.delta" and e.data["id"] == "call_1"]
    assert ['{"a":1', ',"b":2}'] == pieces
    added, broken = calls(said).values()
    assert ("add", '{"a":1,"b":2}', True, "3") == (
        added["name"],
        added["arguments"],
        added["success"],
        str(added["output"]),
    )
    assert ("broken", '{"what":"it"}', False) == (broken["name"], broken["arguments"], broken["success"])
    assert {"call_1", "call_2"} == {event.data["id"] for event in said.events if event.type == "tool.started"}
    assert [(1, "I add."), (1, "Let me see. "), (2, "It is 3.")] == [
        (part["step"], part["text"]) for part in said.message["parts"] if part["type"] != "tool_call"
    ]
    assert ("It is 3.", 20) == (said.message["text"], said.end.data["usage"]["input_tokens"])
    assert 1 == talk.notes().count("add 1 2")


def test_a_second_turn_knows_the_first(place: Place) -> None:
    """The model is given everything that was said and done before, the system prompt first, and each thing once."""
    talk = place.talk()
    talk.say("tools")
    said = talk.say("recall")

    lines = said.message["text"].split("\n")
    failure = lines.pop(6)
    assert failure.startswith("result: ")
    assert [
        "system: Be brief.",
        "user: tools",
        "assistant: Let me see. ",
        'call: add {"a": 1, "b": 2}',
        'call: broken {"what": "it"}',
        "result: 3",
        "assistant: It is 3.",
        "user: recall",
    ] == lines


def test_what_the_sender_adds(place: Place) -> None:
    """Instructions and images of a Responses client reach the model, beside the agent's own system prompt."""
    content = [
        {"type": "input_text", "text": "recall"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    ]
    fields = {"instructions": "Speak Latin.", "input": [{"role": "user", "content": content}]}
    said = place.talk().say("recall", fields=fields)

    lines = said.message["text"].split("\n")
    assert {"system: Be brief.", "system: Speak Latin."} <= set(lines)
    assert 1 == sum(line.startswith("user: recall [") for line in lines)


def test_permission_granted(place: Place) -> None:
    """A tool that needs approval asks before it begins, and runs when the user says yes."""
    talk = place.talk()
    said = talk.say("danger", grant=True)

    (asked,) = [event.data for event in said.stream if isinstance(event, PermissionEvent)]
    assert ("shell", 'Run shell with {"command":"rm -r /"}?') == (asked.tool_name, asked.description)
    types = [(event.type, event.data.get("id")) for event in said.events]
    assert types.index(("tool_call.completed", "call_2")) < types.index(("permission.requested", asked.id))
    assert types.index(("permission.resolved", asked.id)) < types.index(("tool.started", "call_2"))
    assert (True, "ran rm -r /") == (calls(said)["call_2"]["success"], calls(said)["call_2"]["output"])
    assert "So: result: ran rm -r /" == said.message["text"]
    assert {"add 1 2", "shell rm -r /"} <= set(talk.notes())


def test_permission_denied(place: Place) -> None:
    """Without permission the tool does not run; the model is told so, and answers."""
    talk = place.talk()
    said = talk.say("danger", grant=False)

    assert not calls(said)["call_2"]["success"]
    assert ("tool.started", "call_2") not in [(event.type, event.data.get("id")) for event in said.events]
    assert said.message["text"].startswith("So: result: ")
    assert "shell rm -r /" not in talk.notes()


def test_stopping_closes_the_model_s_stream(place: Place) -> None:
    """A cancelled run ends at once, and so does the request to the model."""
    talk = place.talk()
    said = talk.say("slow", stop_at=is_text)

    assert "run.cancelled" == said.end.type
    assert said.message["text"].startswith("on and ")
    assert talk.noted("closed slow 0")


def test_stopping_while_the_user_is_asked(place: Place) -> None:
    """The question ends with the run, and the tool never runs; the next turn goes on from there."""
    talk = place.talk()
    said = talk.say("danger", stop_at=asks)

    assert "run.cancelled" == said.end.type
    assert "success" not in calls(said)["call_2"]
    assert "shell rm -r /" not in talk.notes()
    assert "It is 3." == talk.say("tools").message["text"]


def test_the_next_turn_knows_what_was_stopped(place: Place) -> None:
    """What a stopped answer said is part of the conversation."""
    talk = place.talk()
    stopped = talk.say("slow", stop_at=is_text)
    said = talk.say("recall")

    lines = ["system: Be brief.", "user: slow", f"assistant: {stopped.message['text']}", "user: recall"]
    assert lines == said.message["text"].split("\n")


def test_the_limit_of_tokens(place: Place) -> None:
    """A cut answer says that it was cut."""
    said = place.talk().say("cut")

    assert ("Once upon", "length") == (said.message["text"], said.end.data["finish_reason"])


def test_a_known_error(place: Place) -> None:
    """A provider with too many requests gives a code of its own; its words are in no event, and not in the log."""
    said = place.talk().say("busy")

    assert ("run.failed", "model_rate_limited") == (said.end.type, said.end.data["code"])
    assert SECRET not in json.dumps(said.end.data)
    assert place.server.said(": the framework failed")
    assert SECRET not in place.server.output


def test_an_unknown_error(place: Place) -> None:
    """Anything else is an agent's failure, without a word of it."""
    said = place.talk().say("bug")

    assert ("run.failed", "agent_error") == (said.end.type, said.end.data["code"])
    assert SECRET not in json.dumps(said.end.data)


def test_a_limit_of_steps(place: Place) -> None:
    """A framework's own limit has a code of its own."""
    said = place.talk().say("steps", agent="impatient")

    assert ("run.failed", "too_many_steps") == (said.end.type, said.end.data["code"])


def test_options(place: Place) -> None:
    """What the framework's run is called with may depend on the turn."""
    said = place.talk().say("who is Ada", agent="with_context")

    assert "You are Ada." == said.message["text"]


def test_ids_that_come_again(place: Place) -> None:
    """Two calls of one id are two calls; the OpenAI Agents SDK itself refuses the second, which ends the run."""
    said = place.talk().say("twice x")

    if place.framework == "openai-agents":
        assert "model_error" == said.end.data["code"]
    else:
        assert ["call_x", "call_x-2"] == list(calls(said))
        assert ["1", "2"] == [str(call["output"]) for call in calls(said).values()]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_kill_dash_nine(framework: str, tmp_path: Path) -> None:
    """Killed in its second step, a run goes on after the first: no tool runs twice, the answer is whole."""
    store = f"sqlite:///{tmp_path / 'log.db'}"
    with scripted(framework, tmp_path, store, PACE="0.2") as server, Client(server.url) as client:
        talk = Talk(client, tmp_path / "notes")
        sent = client.messages.send(talk.session, text="steps", agent="agent")
        stream = client.streaming.stream_events(session_id=talk.session, last_event_id=sent.cursor)
        with stream:
            next(event for event in stream if isinstance(event, ContentEvent) and "3 " in event.data.content)
            server.process.kill()
    with scripted(framework, tmp_path, store) as server, Client(server.url) as client:
        talk.client = client
        with client.ask("hello", session_id=talk.session, agent="agent") as answer:
            answer.read()
        events = [event for event in talk.log() if event.run == sent.run_id]

    said = Said(events, [])
    assert [1, 2] == [event.data["attempt"] for event in events if event.type == "run.started"]
    assert ("run.completed", "".join(f"{number} " for number in range(40))) == (said.end.type, said.message["text"])
    assert ["call_1"] == list(calls(said))
    assert 1 == talk.notes().count("add 1 2")


# pydantic-ai ----------------------------------------------------------------------------------------------------------


def test_a_structured_answer_by_a_tool(pydantic_ai: Place) -> None:
    """It streams as the tool's arguments, and is the message's text in the end."""
    said = pydantic_ai.talk().say("city", agent="structured")

    assert '{"name":"Rome","people":3}' == said.message["text"]
    assert ("final_result", True) == (calls(said)["call_1"]["name"], calls(said)["call_1"]["success"])


def test_a_structured_answer_as_text(pydantic_ai: Place) -> None:
    """It streams as text, and is not said twice."""
    said = pydantic_ai.talk().say("json", agent="native")

    assert '{"name":"Rome","people":3}' == said.message["text"]


@pytest.mark.parametrize("grant", [True, False])
def test_a_tool_that_asks_while_it_runs(pydantic_ai: Place, grant: bool) -> None:
    """``ApprovalRequired`` asks, too."""
    talk = pydantic_ai.talk()
    said = talk.say("danger", agent="asking_inside", grant=grant)

    assert grant == calls(said)["call_2"]["success"]
    assert grant == ("shell rm -r /" in talk.notes())


def test_an_agent_that_decides_itself(pydantic_ai: Place) -> None:
    """A ``HandleDeferredToolCalls`` of the agent's own comes first: what it decides is not asked."""
    said = pydantic_ai.talk().say("danger", agent="deciding")

    assert "permission.requested" not in said.types()
    assert "So: result: ran rm -r /" == said.message["text"]


def test_a_stream_by_hand(pydantic_ai: Place) -> None:
    """``translate`` alone makes an agent."""
    said = pydantic_ai.talk().say("tools", agent="by_hand")

    assert ("It is 3.", 20) == (said.message["text"], said.end.data["usage"]["input_tokens"])


# OpenAI Agents SDK ----------------------------------------------------------------------------------------------------


def test_a_handoff(openai_agents: Place) -> None:
    """Handing over is a call with a result; the other agent's words are the answer."""
    said = openai_agents.talk().say("transfer", agent="handing_over")

    (call,) = calls(said).values()
    assert ("transfer_to_specialist", True) == (call["name"], call["success"])
    assert "I am the specialist. system: You know all." == said.message["text"]


# LangGraph ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grant", [True, False])
def test_an_interrupt(langgraph: Place, grant: bool) -> None:
    """A node's question is the user's to answer with yes or no."""
    said = langgraph.talk().say("ask", agent="interrupted", grant=grant)

    (asked,) = [event.data for event in said.stream if isinstance(event, PermissionEvent)]
    assert "Shall I?" == asked.description
    assert f"The answer was {grant}." == said.message["text"]


def test_an_interrupt_of_another_kind(langgraph: Place) -> None:
    """``on_interrupt`` decides what is asked, and what the graph goes on with."""
    talk = langgraph.talk()
    with talk.client.ask("ask", session_id=talk.session, agent="elsewhere") as answer:
        for event in answer:
            if isinstance(event, NotificationEvent):
                talk.client.notifications.respond(event.data.id, type="text", value="later")

    assert "The answer was 'later'." == answer.text


@pytest.mark.parametrize(("grant", "text"), [(True, "1 of 1\n\n2 of 2"), (False, "1 of 1")])
def test_a_breakpoint(langgraph: Place, grant: bool, text: str) -> None:
    """Before a node with a breakpoint the user is asked; without a yes, that was all."""
    said = langgraph.talk().say("go", agent="stopping", grant=grant)

    assert ("run.completed", text) == (said.end.type, said.message["text"])


def test_a_thread_of_its_own(langgraph: Place) -> None:
    """Each run begins with the conversation from the log, and leaves nothing in the checkpointer."""
    talk = langgraph.talk()
    assert ["1 of 1", "1 of 3"] == [talk.say("go", agent="fresh").message["text"] for _ in range(2)]
    talk.say("go", agent="forgetful")
    assert "0" == talk.say("how many", agent="checkpoints").message["text"]


def test_a_thread_that_is_kept(langgraph: Place) -> None:
    """With ``thread``, the graph keeps its state from turn to turn, and is given the new message only."""
    talk = langgraph.talk()
    assert ["1 of 1", "2 of 3"] == [talk.say("go", agent="kept").message["text"] for _ in range(2)]


def test_what_a_node_writes(langgraph: Place) -> None:
    """Texts and Legato's events that a node writes are told; other values are the graph's own affair."""
    said = langgraph.talk().say("go", agent="writing")

    assert [("thinking", "I read."), ("text", "Reading. Read.")] == [
        (part["type"], part["text"]) for part in said.message["parts"]
    ]


def test_a_model_that_does_not_stream(langgraph: Place) -> None:
    """Its message is told when it is whole, once."""
    said = langgraph.talk().say("go", agent="at_once")

    assert "All at once." == said.message["text"]


def test_models_that_speak_at_once(langgraph: Place) -> None:
    """They are told one after the other, each whole."""
    said = langgraph.talk().say("go", agent="choir")

    assert {"one " * 5, "two " * 5} == set(said.message["text"].split("\n\n"))
    assert 20 == said.end.data["usage"]["input_tokens"]


def test_a_chat_model_by_hand(langgraph: Place) -> None:
    """``translate`` takes what a chat model streams, without a graph."""
    said = langgraph.talk().say("hello", agent="bare")

    assert ("Hello, world.", 10) == (said.message["text"], said.end.data["usage"]["input_tokens"])


def test_a_checkpointer_that_outlives_the_process(tmp_path: Path) -> None:
    """Killed while a tool runs, the graph goes on there: the model is not asked again, the call has its result."""
    store = f"sqlite:///{tmp_path / 'log.db'}"
    with scripted("langgraph", tmp_path, store, PACE="1") as server, Client(server.url) as client:
        talk = Talk(client, tmp_path / "notes")
        sent = client.messages.send(talk.session, text="wait", agent="durable")
        assert talk.noted("lingering")
        server.process.kill()
    with scripted("langgraph", tmp_path, store) as server, Client(server.url) as client:
        talk.client = client
        client.ask("hello", session_id=talk.session, agent="agent").read()
        said = Said([event for event in talk.log() if event.run == sent.run_id], [])

    assert ("run.completed", "It took its time.") == (said.end.type, said.message["text"])
    assert ["took its time"] == [call["output"] for call in calls(said).values() if "output" in call]
    assert 1 == talk.notes().count("closed wait 0")


@pytest.mark.parametrize(
    "agent",
    ["dicts", "one_dict", "tuples", "texts", "text", "several", "objects", "bare_dicts", "no_message"],
)
def test_what_nodes_return(langgraph: Place, agent: str) -> None:
    """Messages as dicts, tuples or texts are an answer, though LangGraph streams none of them."""
    said = langgraph.talk().say("go", agent=agent)

    text = "hello \n\nworld" if agent == "several" else "hello world"
    assert ("run.completed", text) == (said.end.type, said.message["text"])


@pytest.mark.parametrize(("agent", "text"), [("direct", "Sunny in Oslo."), ("formatted", '{"city":"Oslo"}')])
def test_ends_without_a_word(langgraph: Place, agent: str, text: str) -> None:
    """When a tool's output is the answer, or a structure is, that is what is said."""
    said = langgraph.talk().say("go", agent=agent)

    assert ("run.completed", text) == (said.end.type, said.message["text"])


def test_graphs_that_ask_need_a_checkpointer(langgraph: Place) -> None:
    """Those that are known to are refused when they are adapted; another one fails in plain words."""
    said = langgraph.talk().say("go", agent="refusals")
    failed = langgraph.talk().say("go", agent="unnoticed")

    assert "interrupt import breakpoint behind middleware tool subgraph deep " == said.message["text"]
    assert ("run.failed", "no_checkpointer") == (failed.end.type, failed.end.data["code"])


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("overloaded_error", "model_unreachable"),
        ("api_error", "model_unreachable"),
        ("rate_limit_error", "model_rate_limited"),
        ("authentication_error", "model_key_refused"),
        ("something_new", "model_refused"),
    ],
)
def test_a_failure_in_the_middle(langgraph: Place, word: str, code: str) -> None:
    """What the provider calls it counts: the status was good."""
    said = langgraph.talk().say(word, agent="midway")

    assert ("run.failed", code) == (said.end.type, said.end.data["code"])


# OpenAI Agents SDK: ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("incomplete max_output_tokens", ("run.completed", "length")),
        ("incomplete content_filter", ("run.completed", "content_filter")),
        ("failed rate_limit_exceeded", ("run.failed", "model_rate_limited")),
        ("failed server_error", ("run.failed", "model_unreachable")),
        ("error rate_limit_exceeded", ("run.failed", "model_rate_limited")),
        ("error context_length_exceeded", ("run.failed", "context_too_long")),
    ],
)
def test_how_responses_end(openai_agents: Place, text: str, end: tuple[str, str]) -> None:
    """The SDK's own model class: the provider's word for it is more than the class of the SDK's error."""
    said = openai_agents.talk().say(text, agent="ending")

    assert end == (said.end.type, said.end.data.get("finish_reason") or said.end.data.get("code"))
    assert "Hel" == said.message["text"]


def test_a_tool_that_is_the_end(openai_agents: Place) -> None:
    """Its output is the answer."""
    said = openai_agents.talk().say("go", agent="first_tool")

    assert ("run.completed", "Sunny in Oslo.") == (said.end.type, said.message["text"])


def test_thinking_is_told_once(openai_agents: Place) -> None:
    """Also when a provider gives it under two names."""
    said = openai_agents.talk().say("think", agent="thinking")

    assert [("thinking", "Hm."), ("text", "Hi")] == [(part["type"], part["text"]) for part in said.message["parts"]]
