"""The vocabulary: reading facts, as far as they fit, and writing them; equality of events."""

from __future__ import annotations

import copy
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facts import draft, stored
from legato.errors import InvalidInput
from legato.event import (
    DELTAS,
    EVENTS,
    TERMINAL,
    CallStarted,
    CheckpointNoted,
    Draft,
    Event,
    Fact,
    MessageCreated,
    NotificationCreated,
    OtherFact,
    PermissionRequested,
    RunCancelled,
    RunCompleted,
    RunFailed,
    Said,
    SessionCreated,
    SessionRewound,
    TextDelta,
    ToolCompleted,
    fact,
    read_fact,
    settle,
)
from legato.machine import TRANSITIONS
from legato.part import (
    CallPart,
    OtherPart,
    Part,
    RefusalPart,
    TextPart,
    ThinkingPart,
    Usage,
    as_json,
    encode,
    read_part,
    to_builtins,
)

# Events ---------------------------------------------------------------------------------------------------------------


def test_events_are_equal_without_their_bytes() -> None:
    """What has been encoded of an event so far is no part of the fact."""
    one = stored("text.delta", {"part": 0, "step": 1, "start": 0, "text": "a"}, 1, at=2.0, run="r")
    two = Event(one.fact, 1, 2.0, "r", one.json, wire={"mix": b"x"})

    assert one == two
    assert not one != two  # noqa: SIM202
    assert one != Event(one.fact, 2, 2.0, "r", one.json)
    assert one != "text.delta"


def test_events_that_say_something_else_are_not_equal() -> None:
    """Their types, their facts, and also what this version does not know of them."""
    one = stored("session.deleted", {}, 1)

    assert one != stored("session.dreamt", {}, 1)
    assert one != stored("session.deleted", {"why": "asked"}, 1)
    assert stored("session.created", {"title": "a"}, 1) != stored("session.created", {"title": "b"}, 1)


def test_events_share_no_wire() -> None:
    """Each event has its own place for its bytes."""
    one, two = (stored("session.deleted", {}, offset) for offset in (1, 2))
    one.wire["mix"] = b"x"

    assert {} == two.wire


def test_the_data_of_an_event_is_made_anew() -> None:
    """Whoever changes it has changed nothing but their own."""
    event = Event(SessionCreated(metadata={"a": 1}), 1, 0.0)
    event.data["metadata"]["a"] = 2

    assert {"metadata": {"a": 1}} == event.data
    assert SessionCreated(metadata={"a": 1}) == event.fact


def test_tables_agree() -> None:
    """Deltas, terminal types and transitions speak of types that exist."""
    assert DELTAS | TERMINAL | {type_ for _, type_ in TRANSITIONS} <= set(EVENTS)
    assert {"thinking.delta", "text.delta", "refusal.delta", "tool_call.delta"} == DELTAS
    assert {"run.completed", "run.failed", "run.cancelled"} == TERMINAL
    assert all(name == kind.type for name, kind in EVENTS.items())


def test_what_holds_json_of_others_is_open() -> None:
    """A fact with any JSON, a list or parts in it has to be copied before it is kept."""
    for kind in EVENTS.values():
        hints = [str(field.type) for field in msgspec.structs.fields(kind)]
        assert any(word in hint for hint in hints for word in ("dict", "list", "Any", "Part", "Said")) is kind.open, (
            kind
        )


# Reading --------------------------------------------------------------------------------------------------------------

DELTA = {"part": 1, "step": 2, "start": 3, "text": "x"}


def test_a_fact_is_what_its_json_says() -> None:
    """From a type and an object, and from a type and bytes."""
    assert TextDelta(1, 2, 3, "x") == fact("text.delta", DELTA) == read_fact("text.delta", encode(DELTA))
    assert Draft(TextDelta(1, 2, 3, "x"), "r") == draft("text.delta", DELTA, "r")
    assert SessionRewound("m") == fact("session.rewound", {"to": "m"})


def test_a_whole_message_is_read_with_its_parts() -> None:
    """A terminal fact's message, with parts of each kind."""
    parts: list[Part] = [
        ThinkingPart(1, "hm"),
        TextPart(1, "a"),
        RefusalPart(1, "no"),
        CallPart(1, "c", "add", "{}", True, {"x": 1}),
        CallPart(1, "d", "add", "{"),
    ]
    whole = RunCompleted("stop", Said("m", "a", parts), {"input_tokens": 3})
    json = {
        "finish_reason": "stop",
        "message": {
            "id": "m",
            "text": "a",
            "parts": [
                {"type": "thinking", "step": 1, "text": "hm"},
                {"type": "text", "step": 1, "text": "a"},
                {"type": "refusal", "step": 1, "text": "no"},
                {"type": "tool_call", "step": 1, "id": "c", "name": "add", "arguments": "{}", "success": True,
                 "output": {"x": 1}},
                {"type": "tool_call", "step": 1, "id": "d", "name": "add", "arguments": "{"},
            ],
        },
        "usage": {"input_tokens": 3},
    }  # fmt: skip

    assert whole == fact("run.completed", json)
    assert (whole.message, Usage(3)) == (whole.said, whole.used)
    assert json == msgspec.json.decode(encode(whole)) == to_builtins(whole)
    assert [False, True] == [part.done for part in reversed(parts) if isinstance(part, CallPart)]


def test_an_output_of_none_is_an_output() -> None:
    """A tool that gave nothing is done all the same."""
    part = read_part({"type": "tool_call", "step": 1, "id": "c", "name": "f", "arguments": "", "success": True,
                      "output": None})  # fmt: skip

    assert (True, None) == (part.done, part.output)
    assert b'"output":null' in encode(part)


def test_an_unknown_type_passes() -> None:
    """What another version wrote is kept as it is, and moves nothing."""
    json = b'{"id":"x","nested":{"a":[1,null]}}'
    other = read_fact("tool.dreamt", json)

    assert OtherFact("tool.dreamt", {"id": "x", "nested": {"a": [1, None]}}) == other == fact(other.type, other.data)
    assert (False, False, "tool.dreamt") == (other.delta, other.terminal, other.type)
    assert (other, json) == settle(other)
    assert stored("tool.dreamt", other.data, 1).data == other.data


def test_unknown_fields_are_kept_in_the_event() -> None:
    """The fact does not know them, and the event still has them for whoever shows or exports it."""
    data = {"title": "a", "colour": "red", "metadata": {"b": 1}}
    event = stored("session.created", data, 1)

    assert SessionCreated(title="a", metadata={"b": 1}) == event.fact
    assert data == event.data == msgspec.json.decode(event.json)


@pytest.mark.parametrize(
    ("type", "data", "expected"),
    [
        ("text.delta", {**DELTA, "part": "1"}, TextDelta(0, 2, 3, "x")),
        ("text.delta", {**DELTA, "text": None}, TextDelta(1, 2, 3, "")),
        ("text.delta", {"text": "x"}, TextDelta(0, 0, 0, "x")),
        ("text.delta", {}, TextDelta(0, 0, 0, "")),
        ("message.created", {"id": "m", "role": "user", "text": "a", "metadata": 5}, MessageCreated("m", "user", "a")),
        ("message.created", {"id": "m", "parts": "no"}, MessageCreated("m", "", "")),
        ("tool.completed", {"id": "c", "success": "yes"}, ToolCompleted("c", "", "", False, None)),
        ("agent.checkpoint", {}, CheckpointNoted(None)),
        ("notification.created", {"id": "n", "timeout": "long", "choices": ["a", 1]},
         NotificationCreated("n", "", "", "", "", 0.0, 0.0)),
        ("run.completed", {}, RunCompleted("", Said("", "", []))),
        ("run.completed", {"finish_reason": "stop", "message": "text"}, RunCompleted("stop", Said("", "", []))),
        ("run.completed", {"finish_reason": 5, "message": {"id": "m", "text": 7, "parts": [{"type": "text"}]}},
         RunCompleted("", Said("m", "", [OtherPart({"type": "text"})]))),
        ("run.failed", {"code": "x", "message": "y", "partial": {"text": "z"}, "usage": {"input_tokens": "3"}},
         RunFailed("x", "y", Said("", "z", []), {"input_tokens": "3"})),
        ("run.failed", {"code": "x", "message": "y", "partial": {"text": "z"}, "usage": [3]},
         RunFailed("x", "y", Said("", "z", []))),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_mended(type: str, data: dict[str, Any], expected: Fact) -> None:
    """A field that another version wrote differently has its least value, and the rest is read."""
    before = copy.deepcopy(data)

    assert expected == fact(type, data) == read_fact(type, encode(data))
    assert before == data == stored(type, data, 1).data


@pytest.mark.parametrize(
    ("usage", "used"),
    [
        (None, None),
        ({}, Usage()),
        ({"input_tokens": 3, "images": 1, "model": "m"}, Usage(3, model="m")),
        ({"input_tokens": "3", "output_tokens": 2, "cost": "free"}, Usage(output_tokens=2)),
    ],
)
def test_usage_is_kept_as_it_came(usage: dict[str, Any] | None, used: Usage | None) -> None:
    """In the fact it is what was written; what of that is known, and fits, can be had."""
    for type, whole in (("run.completed", "message"), ("run.failed", "partial"), ("run.cancelled", "partial")):
        read = fact(type, {whole: {}} if usage is None else {whole: {}, "usage": usage})

        assert isinstance(read, RunCompleted | RunFailed | RunCancelled)
        assert (usage, used) == (read.usage, read.used)
        assert usage == settle(read)[0].usage  # type: ignore[union-attr]


def test_mending_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each field, without what is in it."""
    with caplog.at_level(logging.WARNING, "legato"):
        fact("text.delta", {**DELTA, "part": "secret"})

    assert ["a stored TextDelta does not fit: part is 'str'"] == [record.message for record in caplog.records]


@pytest.mark.parametrize("type", [*EVENTS, "tool.dreamt"])
def test_what_is_no_object_is_no_fact(type: str) -> None:
    """There is nothing to mend."""
    for json in (b"[]", b'"x"', b"{", b""):
        with pytest.raises(msgspec.DecodeError):
            read_fact(type, json)


plain = st.sampled_from([None, True, 0, -1, 2**60, 0.5, "", "a", [], ["a"], [{}], {}, {"id": "m", "parts": 1}])
values = plain | st.lists(plain, max_size=2) | st.dictionaries(st.sampled_from(["id", "text", "parts"]), plain)


@pytest.mark.parametrize("type", EVENTS)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_stands_in_a_log_can_be_read(type: str, data: st.DataObject) -> None:
    """Each field may be anything, or missing: there is a fact, and it can be written and read again."""
    given = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(EVENTS[type].__struct_fields__, values)))
    read = fact(type, given)

    assert EVENTS[type] is read.__class__
    assert read == read_fact(type, encode(given))
    assert read == read_fact(type, encode(read)) == settle(read)[0]


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {"type": "image", "step": 2, "url": "data:,"},
        {"type": "text", "step": "one", "text": "x"},  # known, but it does not fit
        {"type": "tool_call", "step": 1},
        {"no": "type"},
    ],
)
def test_unknown_parts_pass(data: dict[str, Any]) -> None:
    """They come out of a fact as they came in, in their place."""
    said = {"id": "m", "text": "", "parts": [{"type": "text", "step": 1, "text": "a"}, data]}
    read = fact("run.completed", {"finish_reason": "stop", "message": said})

    assert isinstance(read, RunCompleted)
    assert [TextPart(1, "a"), OtherPart(data)] == read.message.parts
    assert said == to_builtins(read)["message"] == msgspec.json.decode(encode(read))["message"]
    assert (read, encode(read)) == settle(read)


def test_an_other_part_knows_its_kind_and_step() -> None:
    """As far as it says them; what is no object at all is kept, too."""
    assert ("image", 2) == (OtherPart({"type": "image", "step": 2}).type, OtherPart({"type": "image", "step": 2}).step)
    assert ("", 1) == (OtherPart({"step": "x"}).type, OtherPart({"step": "x"}).step)
    assert OtherPart({"value": 5}) == read_part(5)  # type: ignore[arg-type]
    assert OtherPart({"a": 1}) != OtherPart({"a": 2})
    assert "OtherPart({'a': 1})" == repr(OtherPart({"a": 1}))
    with pytest.raises(TypeError):
        hash(OtherPart({}))


def test_fields_of_a_known_part_that_are_new_are_not_its_own() -> None:
    """They stay in the event's bytes, where an export finds them."""
    parts = [{"type": "text", "step": 1, "text": "a", "language": "en"}]
    event = stored("message.created", {"id": "m", "role": "assistant", "text": "a", "parts": parts}, 1)

    assert isinstance(event.fact, MessageCreated)
    assert [TextPart(1, "a")] == event.fact.parts
    assert parts == event.data["parts"]


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_settled_fact_is_nobody_s_to_change() -> None:
    """What its author changes later is not changed in the log; tuples are lists from the first reader on."""
    given: dict[str, Any] = {"found": 1, "pair": (1, 2)}
    settled, json = settle(ToolCompleted("c", "f", "", True, given))
    given["found"] = 2

    assert isinstance(settled, ToolCompleted)
    assert {"found": 1, "pair": [1, 2]} == settled.output == msgspec.json.decode(json)["output"]
    nested = OtherFact("tool.dreamt", {"a": [1]})
    settled, _ = settle(nested)
    nested.data["a"].append(2)
    assert OtherFact("tool.dreamt", {"a": [1]}) == settled


def test_a_list_of_choices_is_nobody_s_to_change() -> None:
    """It is copied, too."""
    choices = ["a"]
    settled, _ = settle(NotificationCreated("n", "k", "t", "m", "choice", 1.0, 2.0, choices))
    choices.append("b")

    assert isinstance(settled, NotificationCreated)
    assert ["a"] == settled.choices


def test_a_fact_of_its_own_values_is_settled_as_it_is() -> None:
    """It has nothing that could be changed; no copy is made for each delta."""
    delta = TextDelta(0, 1, 0, "x")

    assert settle(delta)[0] is delta
    assert b'{"part":0,"step":1,"start":0,"text":"x"}' == settle(delta)[1]


def test_what_was_not_said_is_not_in_the_json() -> None:
    """Neither null nor a default."""
    request = PermissionRequested("p", "Bash", "Run?", "execute")

    assert {"id": "p", "tool": "Bash", "description": "Run?", "action": "execute"} == Event(request, 1, 0.0).data
    assert b"{}" == settle(SessionCreated())[1]
    assert "retries" not in Event(MessageCreated("m", "user", "a"), 1, 0.0).data
    assert {"retries": None} == {
        name: value for name, value in Event(MessageCreated("m", "user", "a", retries=None), 1, 0.0).data.items()
        if name == "retries"
    }  # fmt: skip


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


def circle() -> list[Any]:
    circle: list[Any] = []
    circle.append({"again": circle})
    return circle


@pytest.mark.parametrize(
    "value",
    [object(), {1, object()}, {"a": 1 + 2j}, deep(), circle(), "\ud800", {"\ud800": 1}, {("a",): 1}, iter([1])],
    ids=["object", "set", "complex", "deep", "circle", "surrogate", "surrogate in a key", "key", "iterator"],
)
def test_what_is_no_json_cannot_be_stored(value: Any) -> None:
    """It is refused where it is to be written, in words that name the type; a checkpoint, an output, an unknown."""
    for wrong in (CheckpointNoted(value), ToolCompleted("c", "f", "", True, value), OtherFact("odd", {"a": value})):
        with pytest.raises(InvalidInput, match=f"The data of {wrong.type} cannot be stored as JSON"):
            settle(wrong)
    with pytest.raises(InvalidInput, match="A note must be made of JSON values"):
        as_json("A note", value)


def test_the_data_of_an_unknown_type_is_an_object() -> None:
    """Whatever reads it may rely on that."""
    with pytest.raises(InvalidInput, match="must be a dict, not list"):
        settle(OtherFact("odd", []))  # type: ignore[arg-type]


@pytest.mark.parametrize("type", EVENTS)
def test_a_known_type_is_no_unknown_fact(type: str) -> None:
    """Else it would be one thing to the machine that moves a session, and another to whoever reads it."""
    with pytest.raises(InvalidInput, match=f"{type} is no unknown type; it is a {EVENTS[type].__name__}"):
        settle(OtherFact(type, {}))


def test_facts_cannot_be_changed() -> None:
    """Readers share them."""
    begun = CallStarted(0, 1, "c", "add")

    with pytest.raises(AttributeError):
        begun.name = "sub"  # type: ignore[misc]
