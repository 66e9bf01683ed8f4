"""A client's own history: what it says was said before reaches the agent, and the model behind it, in its order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from driving import chatting
from fake_server import Reply, Request, stream_reply
from legato.agent import Turn
from legato.agents.conversation import NOT_CARRIED_OUT, conversation
from legato.agents.framework import messages as adapted_messages
from legato.agents.upstream import model_agent
from legato.testing import ASGIResponse
from legato.yields import Thinking, ToolCall, ToolResult
from model_server import asking
from provider_streams import ANTHROPIC_TEXT, CHAT_TEXT, TEXT_EVENTS, sse

Json = dict[str, Any]
Words = Sequence[str]
ANSWERS = {
    "chat": sse(CHAT_TEXT, named=False),
    "messages": sse(ANTHROPIC_TEXT),
    "responses": sse(TEXT_EVENTS),
}
PNG = "data:image/png;base64,AA=="
GONE = f"Error: {NOT_CARRIED_OUT}"

# A history in short: "u one" is the user's, "a" the assistant's, "s" instructions, "r" reasoning, "c x" a call of id x,
# "o x 3" what came of it, and "i" a user's message in parts, with an image.


def items(history: Words) -> list[Json]:
    """It as items of the Responses API."""
    made: list[Json] = []
    for kind, _, text in (each.partition(" ") for each in history):
        id, _, output = text.partition(" ")
        made.append(
            {
                "u": {"type": "message", "role": "user", "content": text},
                "i": {"role": "user", "content": [{"type": "input_text", "text": text},
                                                  {"type": "input_image", "image_url": PNG, "detail": "auto"}]},
                "a": {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
                "s": {"role": "developer", "content": text},
                "r": {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": text}]},
                "c": {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"},
                "o": {"type": "function_call_output", "call_id": id, "output": output},
            }[kind]
        )  # fmt: skip
    return made


def messages(history: Words) -> list[Json]:
    """It as messages of Chat Completions; calls stand in the assistant's message before them."""
    made: list[Json] = []
    for kind, _, text in (each.partition(" ") for each in history):
        id, _, output = text.partition(" ")
        call = {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
        if kind == "c" and made and made[-1]["role"] == "assistant":
            made[-1].setdefault("tool_calls", []).append(call)
        else:
            made.append(
                {
                    "u": {"role": "user", "content": text},
                    "i": {"role": "user", "content": [{"type": "text", "text": text},
                                                      {"type": "image_url", "image_url": {"url": PNG}}]},
                    "a": {"role": "assistant", "content": text},
                    "s": {"role": "system", "content": text},
                    "c": {"role": "assistant", "content": None, "tool_calls": [call]},
                    "o": {"role": "tool", "tool_call_id": id, "content": output},
                }[kind]
            )  # fmt: skip
    return made


def text_of(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "".join(part.get("text", "<image>") for part in parts)


def told(messages: Sequence[Json]) -> list[str]:
    """Messages in the form of Chat Completions, in short again."""
    short = []
    for message in messages:
        text = text_of(message["content"])
        if message["role"] == "tool":
            short.append(f"o {message['tool_call_id']} {text}")
        elif text:
            short.append(f"{message['role'][0]} {text}")
        short += [f"c {call['id']}" for call in message.get("tool_calls", ())]
    return short


def told_items(items: Sequence[Json]) -> list[str]:
    """The same of items."""
    short = []
    for item in items:
        match item.get("type"):
            case "function_call":
                short.append(f"c {item['call_id']}")
            case "function_call_output":
                short.append(f"o {item['call_id']} {item['output']}")
            case _:
                short.append(f"{item['role'][0]} {text_of(item['content'])}")
    return short


def told_blocks(body: Json) -> list[str]:
    """The same of a request to Anthropic."""
    short = []
    for message in body["messages"]:
        for block in message["content"]:
            match block["type"]:
                case "tool_use":
                    short.append(f"c {block['id']}")
                case "tool_result":
                    short.append(f"o {block['tool_use_id']} {text_of(block['content'])}")
                case _:
                    short.append(f"{message['role'][0]} {block.get('text', '<image>')}")
    return short


TWO_STEPS = ["u one", "a First.", "c x", "o x 1", "a Then.", "c y", "o y 2", "a Done.", "u two"]
HISTORIES: dict[str, tuple[Words, Words | None]] = {
    "two steps": (TWO_STEPS, None),
    "steps without text": (["u one", "c x", "o x 1", "c y", "o y 2", "a Done.", "u two"], None),
    "three steps, the last is to be answered": (["u one", "a A", "c x", "o x 1", "c y", "o y 2", "c z", "o z 3"], None),
    "parallel calls": (["u one", "a A", "c x", "c y", "o x 1", "o y 2", "a B", "u two"], None),
    "parallel calls in both steps": (
        ["u 1", "c x", "c y", "o x 1", "o y 2", "a A", "c v", "c w", "o v 3", "o w 4", "a B", "u 2"], None,
    ),
    "outputs out of order": (
        ["u one", "c x", "c y", "o y 2", "o x 1", "a B", "u two"],
        ["u one", "c x", "c y", "o x 1", "o y 2", "a B", "u two"],
    ),
    "outputs out of order are to be answered": (["u one", "c x", "c y", "o y 2", "o x 1"], None),
    "text between calls": (
        ["u one", "a A", "c x", "a B", "c y", "o x 1", "o y 2", "a C", "u two"],
        ["u one", "a A", "c x", "o x 1", "a B", "c y", "o y 2", "a C", "u two"],
    ),
    "an id in each step anew": (["u 1", "c x", "o x 1", "a A", "c x", "o x 2", "a B", "u 2", "c x", "o x 3"], None),
    "no ids": (["u 1", "c ", "c ", "o  1", "o  2", "a A", "u 2"], None),
    "several messages of the user": (
        ["u 1", "u 2", "a A", "u 3", "i 4", "u 5"], ["u 1", "u 2", "a A", "u 3", "u 4<image>", "u 5"],
    ),
    "images before": (["i 1", "a A", "i 2", "a B", "u 3"], ["u 1<image>", "a A", "u 2<image>", "a B", "u 3"]),
    "several messages of the assistant": (["u 1", "a A", "a B", "a C", "u 2"], None),
    "several messages and a call": (["u 1", "a A", "a B", "c x", "o x 1", "a C", "a D", "u 2"], None),
    "instructions in the middle": (["u 1", "s I", "a A", "s J", "u 2", "a B", "s K", "u 3", "s L"], None),
    "instructions between answers": (["u 1", "a A", "s I", "a B", "u 2"], None),
    "instructions between a call and its output": (
        ["u 1", "c x", "s I", "o x 1", "a A", "u 2"], ["u 1", "c x", "o x 1", "s I", "a A", "u 2"],
    ),
    "a call without output": (["u 1", "a A", "c x", "u 2"], ["u 1", "a A", "c x", f"o x {GONE}", "u 2"]),
    "one of two calls without output": (
        ["u 1", "c x", "c y", "o y 2", "a B", "u 2"], ["u 1", "c x", "c y", "o y 2", f"o x {GONE}", "a B", "u 2"],
    ),
    "an output behind another message": (
        ["u 1", "c x", "u wait", "o x 1", "a A", "u 2"], ["u 1", "c x", "o x 1", "u wait", "a A", "u 2"],
    ),
    "an output behind another answer": (
        ["u 1", "c x", "u wait", "a Yes.", "o x 1", "u 2"], ["u 1", "c x", "o x 1", "u wait", "a Yes.", "u 2"],
    ),
    "an output of no call": (["u 1", "o z 9", "a A", "u 2"], ["u 1", "u 9", "a A", "u 2"]),
    "an output before its call": (
        ["u 1", "o x 9", "c x", "o x 1", "a A", "u 2"], ["u 1", "u 9", "c x", "o x 1", "a A", "u 2"],
    ),
    "a call that gave nothing": (["u 1", "c x", "o x  "], None),
    "a call without output at the end": (["u 1", "c x"], ["u 1", "c x", f"o x {GONE}"]),
    "the answer begins": (["u 1", "a A", "u 2", "a It is"], None),
    "the answer begins behind an output": (["u 1", "c x", "o x 1", "a It is"], None),
    "the answer begins twice": (["u 1", "a It", "a is"], None),
}  # fmt: skip
REASONED: dict[str, tuple[Words, Words]] = {
    "reasoning": (
        ["u 1", "r H", "a A", "c x", "o x 1", "r I", "a B", "u 2"], ["u 1", "a A", "c x", "o x 1", "a B", "u 2"],
    ),
    "reasoning between a message and its call": (
        ["u 1", "a A", "r H", "c x", "r I", "c y", "o x 1", "o y 2", "u 2"],
        ["u 1", "a A", "c x", "c y", "o x 1", "o y 2", "u 2"],
    ),
}  # fmt: skip
WIRES = ("v1/responses", "v1/chat/completions")
CASES = [
    *(pytest.param(wire, *case, id=f"{wire}: {name}") for name, case in HISTORIES.items() for wire in WIRES),
    *(pytest.param("v1/responses", *case, id=f"v1/responses: {name}") for name, case in REASONED.items()),
]  # fmt: skip


async def ask(chat: Any, wire: str, history: Words, **fields: Any) -> ASGIResponse:
    body = {"input": items(history)} if wire == "v1/responses" else {"messages": messages(history)}
    answer: ASGIResponse = await chat.driver.request("POST", f"/{wire}", json={**body, **fields})
    return answer


class Listener:
    """An agent that keeps what it was given."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> AsyncIterator[Any]:
        self.turns.append(turn)
        yield "ok"


@pytest.mark.parametrize(("wire", "given", "wanted"), CASES)
async def test_a_history_is_told_in_its_order(wire: str, given: Words, wanted: Words | None) -> None:
    """The same roles, ids and texts, to whoever asks a model by hand and to adapted agents."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        assert (await ask(chat, wire, given)).status == 200
    (turn,) = listener.turns
    assert told(conversation(turn)) == list(wanted or given)
    adapted = told(adapted_messages(turn))
    assert [each.split(" ")[0] for each in adapted] == [each.split(" ")[0] for each in wanted or given]


def anew(short: list[str], ids: list[str]) -> list[str]:
    """With the ids that were given for those that an API wants unique."""
    told = [each.split()[1] for each in short if each[0] == "c"]
    assert len(set(told)) == len(told)
    given = dict(zip(told, ids, strict=True))
    words = [each.split(" ", 2) if each[0] in "co" else [each] for each in short]
    return [" ".join(given.get(word, word) if n == 1 else word for n, word in enumerate(each)) for each in words]


@pytest.mark.parametrize("model", ANSWERS)
@pytest.mark.parametrize(("wire", "given", "wanted"), [case for case in CASES if "no ids" not in str(case.id)])
async def test_a_model_is_told_a_history_in_its_order(
    wire: str, given: Words, wanted: Words | None, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever API it speaks."""
    bodies: list[Json] = []

    def answer(request: Request) -> Reply:
        bodies.append(request.json)
        return stream_reply(ANSWERS[model], None)

    agent = model_agent(asking(monkeypatch, answer, model))
    async with chatting(None, agent) as chat:
        assert (await ask(chat, wire, given)).status == 200
    short = told_items(bodies[0]["input"]) if model == "responses" else (
        told(bodies[0]["messages"]) if model == "chat" else told_blocks(bodies[0]))  # fmt: skip
    expected = list(wanted or given)
    if model == "messages":  # which has no place for them in the middle
        instructions = [each[2:] for each in expected if each[0] == "s"]
        assert (bodies[0].get("system") or "").split("\n\n") == (instructions or [""])
        expected = [each for each in expected if each[0] != "s"]
        expected = [piece for each in expected for piece in each.replace("<image>", "\0u <image>").split("\0")]
        short = anew(short, [each.split()[1] for each in expected if each[0] == "c"])
    assert short == expected


async def test_each_step_of_a_history_is_a_step_of_its_message() -> None:
    """As the messages of our own runs have them: parts in order, a new step behind what came of calls."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        await ask(chat, "v1/responses", ["u 1", "r H", "a A", "c x", "c y", "o x 1", "o y 2", "r I", "a B", "u 2"])
    (_, message) = listener.turns[0].history
    assert [(part.type, part.step) for part in message.parts] == [
        ("thinking", 1), ("text", 1), ("tool_call", 1), ("tool_call", 1), ("thinking", 2), ("text", 2),
    ]  # fmt: skip
    assert message.text == "B"


async def test_our_own_steps_are_told_in_their_order() -> None:
    """Of an answer that was given here, and of the response that goes on from it."""
    turns: list[Turn] = []

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        turns.append(turn)
        if len(turns) > 1:
            return
        yield Thinking("Hm.")
        yield "First."
        yield ToolCall("x", "f", "{}")
        yield ToolCall("y", "f", "{}")
        yield ToolResult("y", "2")
        yield ToolResult("x", "1")
        yield "Then."
        yield ToolCall("z", "f", "{}")
        yield ToolResult("z", "3")
        yield "Done."

    async with chatting(None, agent) as chat:
        first = (await ask(chat, "v1/responses", ["u 1"])).json()
        await ask(chat, "v1/responses", ["u 2"], previous_response_id=first["id"])
    assert told(conversation(turns[1])) == [
        "u 1", "a First.", "c x", "c y", "o x 1", "o y 2", "a Then.", "c z", "o z 3", "a Done.", "u 2",
    ]  # fmt: skip


async def test_instructions_of_an_earlier_request_stay_where_they_were() -> None:
    """Those that came among its items; the field of that name holds for its request alone."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        first = (await ask(chat, "v1/responses", ["s Items.", "u 1"], instructions="Field.")).json()
        assert told(conversation(listener.turns[0])) == ["s Field.\n\nItems.", "u 1"]
        await ask(chat, "v1/responses", ["u 2"], previous_response_id=first["id"], instructions="New.")
    assert told(conversation(listener.turns[1])) == ["s New.", "s Items.", "u 1", "a ok", "u 2"]


ONLY_INSTRUCTIONS: list[tuple[str, Json]] = [
    ("v1/chat/completions", {"messages": [{"role": "system", "content": "Greet."}]}),
    ("v1/chat/completions", {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Greet."}]}]}),
    ("v1/responses", {"input": [{"role": "system", "content": "Greet."}]}),
    ("v1/responses", {"input": [], "instructions": "Greet."}),
]


@pytest.mark.parametrize(("wire", "body"), ONLY_INSTRUCTIONS)
async def test_instructions_alone_are_asked(wire: str, body: Json) -> None:
    """They are what the message says, and the model is told them as what they are."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        assert (await chat.driver.request("POST", f"/{wire}", json=body)).status == 200
    assert listener.turns[0].message.text == "Greet."
    assert told(conversation(listener.turns[0])) == ["s Greet."]


async def test_instructions_alone_are_a_user_s_words_where_somebody_has_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic refuses a conversation without messages."""
    bodies: list[Json] = []

    def answer(request: Request) -> Reply:
        bodies.append(request.json)
        return stream_reply(ANSWERS["messages"], None)

    async with chatting(None, model_agent(asking(monkeypatch, answer, "messages"))) as chat:
        for wire, body in ONLY_INSTRUCTIONS:
            assert (await chat.driver.request("POST", f"/{wire}", json=body)).status == 200
    assert [(told_blocks(body), body.get("system")) for body in bodies] == [(["u Greet."], None)] * len(
        ONLY_INSTRUCTIONS
    )


NOTHING: list[tuple[str, Json, str]] = [
    ("v1/chat/completions", {"messages": []}, "messages"),
    ("v1/chat/completions", {"messages": [{"role": "user", "content": " "}]}, "messages"),
    ("v1/chat/completions", {"messages": [{"role": "assistant", "content": "I"}]}, "messages"),
    ("v1/chat/completions", {"messages": messages(["a A", "c x"])}, "messages"),
    ("v1/responses", {"input": []}, "input"),
    ("v1/responses", {"input": ""}, "input"),
    ("v1/responses", {"input": items(["a A"])}, "input"),
    ("v1/responses", {"input": items(["a A", "c x"])}, "input"),
]


@pytest.mark.parametrize(("wire", "body", "param"), NOTHING)
async def test_what_cannot_be_answered_is_refused_by_the_name_of_its_field(wire: str, body: Json, param: str) -> None:
    """The client's own."""
    async with chatting() as chat:
        answer = await chat.driver.request("POST", f"/{wire}", json=body)
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param
    assert param in answer.json()["error"]["message"]
