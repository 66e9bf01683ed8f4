"""What is told to an API obeys its rules, whoever said it (R20): ids, names, blanks, roles, images and files."""

from __future__ import annotations

import copy
import itertools
import json
import re
from typing import Any

import pytest

from legato.provider.anthropic import AnthropicWire
from legato.provider.last_pass import RULES, Addressee, learned, told, told_name
from legato.provider.responses import ResponsesWire

Json = dict[str, Any]
CHAT = Addressee("chat", "http://gpu/v1", "m")
MISTRAL = Addressee("chat", "https://api.mistral.ai/v1", "m")
GEMINI = Addressee("chat", "https://generativelanguage.googleapis.com/v1beta/openai", "m")
DEEPSEEK = Addressee("chat", "https://api.deepseek.com", "m")
MESSAGES = Addressee("messages", "https://api.anthropic.com/v1", "m")
RESPONSES = Addressee("responses", "https://api.openai.com/v1", "m")
ALL = [CHAT, MISTRAL, GEMINI, DEEPSEEK, MESSAGES, RESPONSES]
FORMS = {"chat": r"[\w-]{1,40}", "messages": r"[\w-]{1,64}", "responses": r"[\w-]{1,64}"}
to_all = pytest.mark.parametrize("to", ALL, ids=lambda to: f"{to.wire}-{'-'.join(to.rules)}")


def user(text: Any = "Hi") -> Json:
    return {"role": "user", "content": text}


def assistant(text: str | None = None, *ids: str, name: str = "f", **more: Any) -> Json:
    calls = [{"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {}), **more}


def tool(id: str, text: str = "out") -> Json:
    return {"role": "tool", "tool_call_id": id, "content": text}


def anthropic(*messages: Json, **options: Any) -> Json:
    body: Json = AnthropicWire().chat(told(messages, MESSAGES), options).body  # type: ignore[assignment]
    return body


ODD_IDS = [
    "call_0~1", "call_0~12", "functions.get_weather:0", "", "a b", "caf\u00e9", "x" * 41, "x" * 65, "x" * 500, "call|1",
    "toolu_01A09q90qw90lq917835lq9", "chatcmpl-tool-0123456789abcdef0123456789abcdef", "\U0001f3bb", "9", "abcdefghi",
    "call_1__thought__CiQB+/=",
]  # fmt: skip


@to_all
@pytest.mark.parametrize("id", ODD_IDS)
def test_ids_in_the_form_that_is_taken(id: str, to: Addressee) -> None:
    """Of calls and their outputs alike; the same each time."""
    messages = [user(), assistant(None, id), tool(id), user("And?")]
    before = copy.deepcopy(messages)
    heard = told(messages, to)
    call, output = (next(m for m in heard if m.get("tool_calls")), next(m for m in heard if m["role"] == "tool"))
    form = "[A-Za-z0-9]{9}" if to is MISTRAL else FORMS[to.wire]
    assert re.fullmatch(form, call["tool_calls"][0]["id"], re.ASCII)
    assert output["tool_call_id"] == call["tool_calls"][0]["id"]
    assert (messages, told(messages, to)) == (before, heard)
    if re.fullmatch(form, id, re.ASCII):
        assert call["tool_calls"][0]["id"] == id


@to_all
def test_no_two_calls_have_one_id(to: Addressee) -> None:
    """In one step; and over all, where an API wants that. What is told later changes nothing of what came before."""
    ids = [f"call~{n}" for n in range(300)] + ODD_IDS
    messages = [user(), assistant(None, *ids), *map(tool, ids), assistant(None, *ids), *map(tool, ids), user()]
    heard = told(messages, to)
    steps = [[call["id"] for call in message["tool_calls"]] for message in heard if message.get("tool_calls")]
    assert [len(set(step)) for step in steps] == [len(ids)] * 2
    if to.wire == "messages":
        assert not set(steps[0]) & set(steps[1])
    outputs = [message["tool_call_id"] for message in heard if message["role"] == "tool"]
    assert outputs == list(itertools.chain(*steps))
    assert told(messages[: len(ids) + 2], to) == heard[: len(ids) + 2]


def test_an_output_without_a_call_keeps_its_id() -> None:
    """Its call is in an answer that the provider keeps."""
    assert told([tool("call~1|x")], RESPONSES) == [tool("call~1|x")]


@to_all
@pytest.mark.parametrize("name", ["a.b/c", "", "x" * 65, "caf\u00e9", "mcp: search", "ok_name-1", "x" * 64])
def test_names_in_the_form_that_is_taken(name: str, to: Addressee) -> None:
    """Each another, and those that fit as they are."""
    heard = told([user(), assistant(None, "c", name=name), tool("c"), user()], to)
    found = next(m for m in heard if m.get("tool_calls"))["tool_calls"][0]["function"]["name"]
    assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", found)
    assert found == told_name(name)
    assert (found == name) == bool(re.fullmatch("[a-zA-Z0-9_-]{1,64}", name))
    assert told_name(name) != told_name(f"{name}.") != told_name(f"{name}/")


@to_all
@pytest.mark.parametrize("blank", ["", " ", "\n\n", "\t \u2003", None])
def test_blank_texts_of_the_assistant_are_left_out(blank: str | None, to: Addressee) -> None:
    """Alone, or beside calls."""
    heard = told([user(), assistant(blank), user("More"), assistant(blank, "c12345678"), tool("c12345678")], to)
    said = [message for message in heard if message["role"] == "assistant"]
    assert len(said) == 1
    if to.wire == "chat":
        assert said[0]["content"] is None
    text = json.dumps(anthropic(user(), assistant(blank, "c"), tool("c"), user(" "), user("x"))["messages"])
    assert re.search(r'"text": "(\\\w|\s)*"', text) is None


@pytest.mark.parametrize(
    ("messages", "roles"),
    [
        ([user(), assistant("a", "c"), tool("c"), user()], "user assistant tool assistant user"),
        ([user(), assistant("a", "c", "d"), tool("c"), tool("d"), user(), user()],
         "user assistant tool tool assistant user"),
        ([user(), assistant("a"), user()], "user assistant user"),
        ([assistant("a"), user()], "user assistant user"),
        ([{"role": "system", "content": "s"}, assistant(None, "c"), tool("c"), assistant("b")],
         "system user assistant tool assistant"),
        ([user(), assistant("a"), assistant(None, "c"), tool("c"), user()], "user assistant tool assistant user"),
        ([user(), assistant("a"), {"role": "system", "content": "s"}, user()], "user assistant user"),
        ([user([{"type": "text", "text": "a"}]), user("b"), assistant("c")], "user assistant"),
    ],
)  # fmt: skip
def test_what_must_stand_between_at_mistral(messages: list[Json], roles: str) -> None:
    """Of an order that it refuses; the last answer is to be continued."""
    heard = told(messages, MISTRAL)
    assert " ".join(message["role"] for message in heard) == roles
    last = heard[-1]
    assert last.get("prefix", False) == (last["role"] == "assistant")
    assert sum(len(str(m["content"])) for m in heard) >= sum(len(str(m["content"])) for m in messages) - 40


@pytest.mark.parametrize("to", [GEMINI, DEEPSEEK], ids=["gemini", "deepseek"])
def test_neighbours_of_one_role_become_one(to: Addressee) -> None:
    """With all that they say, and what they are to have back."""
    opaque = [{"owner": to.owner, "data": [{"fields": {"extra": 1}}]}]
    heard = told([user("a"), user("b"), assistant("c", opaque=opaque), assistant("d", "x"), tool("x")], to)
    assert [(m["role"], m["content"]) for m in heard] == [("user", "a\n\nb"), ("assistant", "c\n\nd"), ("tool", "out")]
    assert heard[1]["extra"] == 1


def test_what_nobody_else_is_told() -> None:
    """Only a known reader has its gaps filled; to all others a field that they do not know is a reason to refuse."""
    messages = [user(), assistant("a", "c", "d"), tool("c"), tool("d"), assistant("b"), user()]
    for to in (CHAT, MISTRAL, RESPONSES, MESSAGES):
        assert "reasoning_content" not in json.dumps(told(messages, to))
        assert "signature" not in json.dumps(told(messages, to))
    filled = [m.get("reasoning_content", "") for m in told(messages, DEEPSEEK) if m["role"] == "assistant"]
    assert filled == ["(not kept)"] * 2
    google = {"google": {"thought_signature": "skip_thought_signature_validator"}}
    calls = next(m["tool_calls"] for m in told(messages, GEMINI) if "tool_calls" in m)
    assert [call["extra_content"] for call in calls] == [google, google]


def test_a_signature_of_its_own_is_enough() -> None:
    """Of calls that came together, Gemini signs the first."""
    signed = {"google": {"thought_signature": "s"}}
    opaque = [{"owner": GEMINI.owner, "data": [{"call": "c", "fields": {"extra_content": signed}}]}]
    heard = told([user(), assistant(None, "c", "d", opaque=opaque), tool("c"), tool("d")], GEMINI)
    assert [call.get("extra_content") for call in heard[1]["tool_calls"]] == [signed, None]


# Owners ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (CHAT, Addressee("chat", "http://gpu/v1", "other"), True),
        (CHAT, Addressee("chat", "http://gpu/v1?api-version=2", "m"), True),
        (CHAT, Addressee("chat", "http://me:secret@gpu/v1", "m"), True),
        (CHAT, Addressee("chat", "http://gpu:8000/v1", "m"), False),
        (CHAT, Addressee("chat", "http://gpu/v2", "m"), False),
        (CHAT, Addressee("responses", "http://gpu/v1", "m"), False),
        (CHAT, Addressee("chat", "http://gpu/v1", "qwen/m"), False),
        (Addressee("chat", "http://gpu/v1", "qwen/n"), Addressee("chat", "http://gpu/v1", "qwen/m"), True),
        (Addressee("chat", "http://gpu/v1", "z/n"), Addressee("chat", "http://gpu/v1", "qwen/m"), False),
    ],
)
def test_whose_it_is(one: Addressee, two: Addressee, same: bool) -> None:
    """The same API at the same address, and behind a gateway the same vendor; no secret stands in it."""
    assert (one.owner == two.owner) == same
    assert "secret" not in one.owner + two.owner
    opaque = [{"owner": one.owner, "data": [{"fields": {"sealed": "x"}}, {"block": {"type": "sealed", "data": "x"}}]}]
    heard = told([user(), assistant("a", opaque=opaque, thinking="t"), user()], two)
    assert ("sealed" in json.dumps(heard)) == same


@to_all
def test_odd_pieces_do_no_harm(to: Addressee) -> None:
    """Of another version, or by an agent of somebody's own."""
    for data in (None, 1, "x", {}, [None, 1, "x", [], {}, {"text": "a"}, {"call": 1}, {"call": []}, {"block": 1},
                                    {"fields": 1}, {"thinking": 1}, {"text": 99}, {"text": -5}]):  # fmt: skip
        for opaque in ([{"owner": to.owner, "data": data}], [{"owner": to.owner}], [{}]):
            heard = told([user(), assistant("Hello", "abcdefghi", opaque=opaque), tool("abcdefghi"), user()], to)
            if to.wire == "messages":
                heard = AnthropicWire().chat(heard, {}).body["messages"]  # type: ignore[index,assignment]
            if to.wire == "responses":
                heard = ResponsesWire().chat(heard, {}).body["input"]  # type: ignore[index,assignment]
            assert json.dumps(heard).count("Hello") == 1
            assert json.dumps(heard).count('"abcdefghi"') >= 2


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("The `reasoning_content` in the thinking mode must be passed back to the API.", "deepseek"),
        ("Missing `reasoning_content` field in the assistant message at message index 2.", "deepseek"),
        ("Function call is missing a thought_signature in functionCall parts.", "gemini"),
        ("function call default_api:f in the 3. content block is missing a `thought_signature`.", "gemini"),
        ("Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.", "mistral"),
        ("Unexpected role 'user' after role 'tool'", "mistral"),
        ("Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant", "mistral"),
        ("messages.1.content.0: Invalid `signature` in `thinking` block", "plain"),
        ("The encrypted content gAAA could not be verified.", "plain"),
        ("property 'reasoning_content' is unsupported", "plain"),
        ("You exceeded your current quota.", None),
    ],
)
def test_what_a_refusal_tells(words: str, rule: str | None) -> None:
    """Of the rule that was broken; each is learned once."""
    assert learned(words, ()) == rule
    assert learned(words, RULES) is None


@pytest.mark.parametrize(
    ("url", "model", "rules"),
    [
        ("https://api.mistral.ai/v1", "x", {"mistral"}),
        ("https://api.deepseek.com/beta", "x", {"deepseek"}),
        ("https://notdeepseek.com", "x", set()),
        ("https://europe-west1-aiplatform.googleapis.com/v1/x", "x", {"gemini"}),
        ("https://openrouter.ai/api/v1", "mistralai/devstral-small", {"mistral"}),
        ("http://127.0.0.1:11434/v1", "mixtral:8x7b", {"mistral"}),
        ("https://openrouter.ai/api/v1", "google/gemini-3-pro", set()),
    ],
)
def test_which_rules_are_known(url: str, model: str, rules: set[str]) -> None:
    """By the address, or by the model's name; and those that were said."""
    assert Addressee("chat", url, model).rules == rules
    assert Addressee("chat", url, model, ["plain"]).rules == rules | {"plain"}
    assert Addressee("messages", url, model).rules == set()


# Anthropic ------------------------------------------------------------------------------------------------------------

SIGNED = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
HIDDEN = {"type": "redacted_thinking", "data": "d"}


def mine(*pieces: Json) -> Any:
    return [{"owner": MESSAGES.owner, "data": list(pieces)}]


@pytest.mark.parametrize(
    ("pieces", "kinds"),
    [
        ([{"block": SIGNED}, {"text": 5}, {"call": "c"}], "thinking text tool_use"),
        ([{"block": SIGNED}, {"block": HIDDEN}, {"call": "c"}], "thinking redacted_thinking text tool_use"),
        ([{"block": SIGNED}, {"text": 2}, {"block": HIDDEN}, {"text": 3}, {"call": "c"}],
         "thinking text redacted_thinking text tool_use"),
        ([{"block": SIGNED}, {"text": 5}, {"call": "c"}, {"block": HIDDEN}, {"call": "d"}],
         "thinking text tool_use redacted_thinking tool_use"),
        ([{"block": SIGNED}, {"call": "other"}], "thinking text tool_use"),
        ([{"text": 5}, {"call": "c"}, {"block": SIGNED}], "text tool_use"),
    ],
)  # fmt: skip
def test_blocks_stand_where_they_stood(pieces: list[Json], kinds: str) -> None:
    """Unchanged, among what was said; none behind all else."""
    ids = ("c", "d") if {"call": "d"} in pieces else ("c",)
    body = anthropic(user(), assistant("Hello", *ids, opaque=mine(*pieces)), *map(tool, ids), user("More"))
    content = body["messages"][1]["content"]
    assert " ".join(block["type"] for block in content) == kinds
    assert all(block in (SIGNED, HIDDEN) for block in content if "thinking" in block["type"])
    assert "".join(block.get("text", "") for block in content) == "Hello"
    assert [block["type"] for block in body["messages"][2]["content"]] == ["tool_result"] * len(ids) + ["text"]


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ([user()], True),
        ([user(), assistant("a"), user()], True),
        ([user(), assistant(None, "c"), tool("c")], False),
        ([user(), assistant(None, "c", opaque=mine({"block": SIGNED})), tool("c")], True),
        ([user(), assistant(None, "c"), tool("c"), assistant(None, "d", opaque=mine({"block": SIGNED})), tool("d")],
         False),
        ([user(), assistant(None, "c"), tool("c"), assistant("a"), user()], True),
        ([user(), assistant(None, "c"), tool("c"), user()], True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}, None])
def test_thinking_waits_where_a_turn_was_begun_without(messages: list[Json], kept: bool, thinking: Any) -> None:
    """The API would refuse; what it decides itself is left to it."""
    told = anthropic(*messages, thinking=thinking).get("thinking")
    assert told == (thinking if kept or thinking is None or thinking["type"] == "adaptive" else None)


@pytest.mark.parametrize("text", ["Hello ", "Hello\n", " Hello \t\n"])
def test_a_beginning_has_no_blanks_at_its_end(text: str) -> None:
    """As the API wants it of an answer that is to be continued; others stay as they are."""
    messages = anthropic(user(), assistant(text), user(), assistant(text))["messages"]
    assert [each["content"][0]["text"] for each in messages] == ["Hi", text, "Hi", text.rstrip()]


def test_a_conversation_begins_with_a_user() -> None:
    """Also where its beginning is left out."""
    assert [each["role"] for each in anthropic(assistant("a"), user())["messages"]] == ["user", "assistant", "user"]


# Responses ------------------------------------------------------------------------------------------------------------


def test_items_stand_where_they_stood() -> None:
    """Reasoning before what it led to, with the ids and phases that they had."""
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e"}
    pieces = [
        {"block": reasoning}, {"text": 2, "fields": {"id": "msg_1", "phase": "commentary"}}, {"block": reasoning},
        {"call": "c", "fields": {"id": "fc_1"}}, {"text": 3, "fields": {"id": "msg_2"}},
    ]  # fmt: skip
    opaque = [{"owner": RESPONSES.owner, "data": pieces}]
    items = ResponsesWire().chat(told([user(), assistant("Hello", "c", opaque=opaque), tool("c")], RESPONSES), {}).body
    made = items["input"][1:]  # type: ignore[index]
    assert [each.get("id") for each in made] == ["rs_1", "msg_1", "rs_1", "fc_1", "msg_2", None]
    assert made[0] == reasoning
    assert (made[1]["phase"], made[1]["content"][0]["text"], made[4]["content"][0]["text"]) == (
        "commentary",
        "He",
        "llo",
    )


# Images and files -----------------------------------------------------------------------------------------------------

PDF = "data:application/pdf;base64,JVBERg=="
TEXT = "data:text/csv;base64,YSxi"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}


@pytest.mark.parametrize(
    ("part", "chat", "messages", "responses"),
    [
        (IMAGE, "image_url", "image", "input_image"),
        ({"type": "image_url", "image_url": {"url": "https://x/y.svg"}}, "image_url", "image", "input_image"),
        ({"type": "image_url", "image_url": {"url": "data:image/x;base64,AA"}}, "image_url", "[An im", "input_image"),
        ({"type": "input_image", "file_id": "file_1"}, "[An im", "[An im", "input_image"),
        ({"type": "input_file", "filename": "a.pdf", "file_data": PDF}, "file", "document", "input_file"),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}, "file", "document", "input_file"),
        ({"type": "file", "file": {"filename": "a.csv", "file_data": TEXT}}, "file", "document", "input_file"),
        ({"type": "input_file", "filename": "a", "file_data": "data:x/y;base64,AA"}, "file", "[The f", "input_file"),
        ({"type": "file", "file": {"file_id": "file_1"}}, "file", "[The f", "input_file"),
        ({"type": "input_file", "file_id": "file_1"}, "[The f", "[The f", "input_file"),
        ({"type": "input_file", "file_url": "https://x/a.pdf"}, "[The f", "document", "input_file"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, "input_audio", "[A sou", "input_audio"),
        ({"type": "odd", "x": 1}, "odd", "odd", "odd"),
    ],
)  # fmt: skip
def test_images_and_files(part: Json, chat: str, messages: str, responses: str) -> None:
    """In the form of each API; what it does not take is told by its name, so that the session goes on."""
    asked = [user([{"type": "text", "text": "See:"}, part])]
    made = {
        chat: told(asked, CHAT)[0]["content"][1],
        messages: anthropic(*asked)["messages"][0]["content"][1],
        responses: ResponsesWire().chat(told(asked, RESPONSES), {}).body["input"][0]["content"][1],  # type: ignore[index]
    }
    for wanted, found in ((chat, told(asked, CHAT)[0]["content"][1]), *made.items()):
        assert found["text"].startswith(wanted) if wanted.startswith("[") else found["type"] == wanted, found
