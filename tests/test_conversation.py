"""What a model is told of a turn."""

from __future__ import annotations

from typing import Any

import pytest

from legato.agent import Turn
from legato.agents.conversation import NOT_CARRIED_OUT, conversation
from legato.part import Message, Part, read_part
from test_agent import Desk

Json = dict[str, Any]


async def told(*messages: Message, own: str = "", **metadata: Any) -> list[Json]:
    asked = messages[-1] if messages and messages[-1].role == "user" else Message(id="q", role="user", text="And?")
    before = messages[:-1] if messages and asked is messages[-1] else messages
    asked = Message(id=asked.id, role="user", text=asked.text, metadata={**asked.metadata, **metadata})
    return conversation(Turn(desk=Desk(), session="s", run="r", message=asked, history=before), own)


def user(text: str, **metadata: Any) -> Message:
    return Message(id="u", role="user", text=text, metadata=metadata)


def assistant(*parts: Part, text: str = "", **fields: Any) -> Message:
    return Message(id="a", role="assistant", text=text, parts=list(parts), **fields)


def part(kind: str, step: int = 1, **fields: Any) -> Part:
    return read_part({"type": kind, "step": step, **fields})


def call(id: str, arguments: str = "{}", step: int = 1, **fields: Any) -> Part:
    return part("tool_call", step, id=id, name="f", arguments=arguments, **fields)


AND = {"role": "user", "content": "And?"}


async def test_texts() -> None:
    """Questions and answers, in order; what has no text is nothing."""
    assert [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        AND,
    ] == await told(user("Hi"), assistant(text="Hello"), assistant())


@pytest.mark.parametrize(
    ("own", "given", "system"),
    [("", None, None), ("Be kind.", None, "Be kind."), ("", "Rhyme.", "Rhyme."), ("A", "B", "A\n\nB"), ("A", 7, "A")],
)
async def test_instructions(own: str, given: Any, system: str | None) -> None:
    """The server's stand before the sender's; what is no text is left out."""
    messages = await told(own=own, **({} if given is None else {"instructions": given}))

    assert [*([{"role": "system", "content": system}] if system else []), AND] == messages


async def test_steps_and_their_tools() -> None:
    """Each step is a message, and behind it stands what its tools gave. Thinking is not told."""
    answer = assistant(
        part("thinking", text="Hm."),
        part("text", text="Let me "),
        part("text", text="see."),
        call("a", '{"x":1}', output={"y": [1]}, success=True),
        call("b", "", output="broken", success=False),
        part("refusal", 2, text="I will not."),
    )

    def asked(id: str, arguments: str) -> Json:
        return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}

    assert [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [asked("a", '{"x":1}'), asked("b", "{}")]},
        {"role": "tool", "tool_call_id": "a", "content": '{"y":[1]}'},
        {"role": "tool", "tool_call_id": "b", "content": "Error: broken"},
        {"role": "assistant", "content": "I will not."},
        AND,
    ] == await told(answer)


async def test_a_call_that_was_not_answered() -> None:
    """A provider refuses a conversation with an open call, so it is told what became of it."""
    messages = await told(assistant(call("a"), call("b", output=1, success=True)))

    assert [("assistant", None), ("tool", "b"), ("tool", "a"), ("user", None)] == [
        (message["role"], message.get("tool_call_id")) for message in messages
    ]
    assert f"Error: {NOT_CARRIED_OUT}" == messages[2]["content"]


async def test_a_call_that_was_cut_off() -> None:
    """Half of its arguments is no JSON; a provider would refuse it."""
    assert [AND] == await told(assistant(call("a", '{"x":'), status="cancelled"))
    assert [AND] == await told(assistant(call("a", "[1]", output="no")))


async def test_the_client_s_own_tools() -> None:
    """Their outputs come as the next message, in items or in parts of text."""
    output = [{"type": "input_text", "text": "4"}, {"type": "input_text", "text": "2"}]
    items = [
        {"type": "function_call_output", "call_id": "a", "output": output},
        {"type": "function_call_output", "call_id": "b", "output": "x"},
    ]
    messages = await told(assistant(call("a"), call("b")), user("42\n\nx", input=items))

    assert [
        {"role": "tool", "tool_call_id": "a", "content": "42"},
        {"role": "tool", "tool_call_id": "b", "content": "x"},
    ] == messages[1:]


async def test_a_client_that_answers_one_of_two_calls() -> None:
    """The other one is closed as well, though nothing follows."""
    items = [{"type": "function_call_output", "call_id": "b", "output": "x"}]
    messages = await told(assistant(call("a"), call("b")), user("x", input=items))

    assert [("b", "x"), ("a", f"Error: {NOT_CARRIED_OUT}")] == [
        (message["tool_call_id"], message["content"]) for message in messages[1:]
    ]


async def test_an_output_without_its_call() -> None:
    """It is told as what the user says, since an output alone would be refused."""
    items = [{"type": "function_call_output", "call_id": "gone", "output": "4"}]

    assert [{"role": "user", "content": "4"}] == await told(user("4", input=items))


async def test_images_and_items_of_the_past() -> None:
    """Parts are told as they came; items before the last answer are in the history already."""
    items = [
        {"role": "user", "content": "before"},
        {"type": "message", "role": "assistant", "content": []},
        {"role": "system", "content": "now"},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look:"},
                {"type": "input_image", "image_url": "data:,", "detail": None},
                {"type": "input_file", "file_id": "f"},
                "no part",
            ],
        },
        "no item",
    ]

    assert [
        {"role": "system", "content": "now"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": "data:,", "detail": "auto"}},
                {"type": "input_file", "file_id": "f"},
            ],
        },
    ] == await told(user("Look:", input=items))


@pytest.mark.parametrize("given", [None, "text", 7, [], [{"role": "user", "content": ""}], [{"type": "mystery"}]])
async def test_input_that_says_nothing(given: Any) -> None:
    """Then the message's text counts: it is never empty."""
    assert [{"role": "user", "content": "Hi"}] == await told(user("Hi", input=given))
