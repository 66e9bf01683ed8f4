"""The fold and its way back: what an agent yields, recorded as events, folds to the same message."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import facts
from legato.errors import InvalidInput, TooLarge
from legato.event import (
    CallCompleted,
    CallDelta,
    CallStarted,
    Delta,
    Draft,
    Event,
    OtherFact,
    PermissionRequested,
    RunStarted,
    Said,
    read_fact,
    settle,
)
from legato.history import history
from legato.part import CallPart, Part, RunError, TextPart, Usage, encode
from legato.recorder import DELTA_CHARACTERS, Recorder, brought, merge
from legato.transcript import Transcript, fold, message_id
from legato.yields import Finish, Refusal, Text, Thinking, ToolArguments, ToolCall, ToolReady, ToolResult, ToolStarted

RUN = "s~r"


def record(items: Sequence[object], recorder: Recorder | None = None) -> list[Draft]:
    recorder = recorder or Recorder(RUN)
    return [draft for item in items for draft in recorder.record(item)] + recorder.end()


def stored(drafts: Sequence[Draft], first: int = 1) -> list[Event]:
    settled = [settle(draft.fact) for draft in drafts]
    return [
        Event(fact, offset, float(offset), draft.run, json)
        for offset, (draft, (fact, json)) in enumerate(zip(drafts, settled, strict=True), first)
    ]


def folded(drafts: Sequence[Draft]) -> Said:
    return fold(stored(drafts)).message(RUN)


def parts_of(items: Sequence[object]) -> list[Part]:
    return folded(record(items)).parts


# Whatever an agent may say: calls are made, filled, run and answered in any interleaving that is legal.

texts = st.text(st.characters(categories=("L", "N", "P", "Z", "S", "Cs", "Cc")), max_size=12)


@st.composite
def answers(draw: st.DrawFn) -> list[object]:
    items: list[object] = []
    streaming: list[str] = []
    running: list[str] = []
    for number in range(draw(st.integers(0, 24))):
        kind = draw(st.integers(0, 10))
        if kind <= 2:
            items.append(draw(texts))
        elif kind == 3:
            items.append(Text(draw(texts)))
        elif kind <= 5:
            items.append(Thinking(draw(texts)))
        elif kind == 6:
            whole = draw(st.booleans())
            items.append(ToolCall(f"c{number}", draw(texts), arguments=draw(texts) if whole else None))
            (running if whole else streaming).append(f"c{number}")
        elif kind == 7 and streaming:
            items.append(ToolArguments(draw(st.sampled_from(streaming)), draw(texts)))
        elif kind == 8 and streaming:
            id = draw(st.sampled_from(streaming))
            streaming.remove(id)
            running.append(id)
            items.append(draw(st.sampled_from([ToolReady(id), ToolStarted(id, "working")])))
        elif kind == 9 and running:
            id = draw(st.sampled_from(running))
            running.remove(id)
            output = draw(st.one_of(texts, st.integers(), st.none(), st.lists(st.booleans())))
            items.append(ToolResult(id, output, success=draw(st.booleans())))
        elif kind == 10:
            items.append(Refusal(draw(texts)))
    return items


@given(answers())
def test_the_fold_of_what_was_recorded_is_the_recorder_s_transcript(items: list[object]) -> None:
    """Whoever reads the log sees the message that the writer had."""
    recorder = Recorder(RUN)
    events = stored(record(items, recorder))
    assert recorder.transcript.message(RUN) == fold(events).message(RUN)
    assert recorder.transcript.size == fold(events).size
    assert recorder.transcript.answered == fold(events).answered


def ready(transcript: Transcript) -> list[bool]:
    return [part.ready for part in transcript.parts]


@given(answers(), st.data())
def test_applying_an_event_again_changes_nothing(items: list[object], data: st.DataObject) -> None:
    """A reader that gets an event twice, or goes back some way and reads on, has the same message (R7)."""
    events = stored(record(items))
    once = fold(events)
    twice = Transcript()
    for place, event in enumerate(events):
        twice.apply(event.fact)
        for again in events[data.draw(st.integers(0, place)) : place + 1]:
            twice.apply(again.fact)
    assert once.message(RUN) == twice.message(RUN)
    assert (once.size, once.answered, ready(once)) == (twice.size, twice.answered, ready(twice))


@given(answers())
def test_merging_keeps_the_folded_message(items: list[object]) -> None:
    """Fewer deltas, the same message; and what is merged is not merged further."""
    drafts = record(items)
    merged = merge(drafts)
    assert folded(drafts) == folded(merged)
    assert [d for d in drafts if not d.fact.delta] == [d for d in merged if not d.fact.delta]
    assert merged == merge(merged)


def piece(fact: Delta) -> str:
    return fact.arguments if isinstance(fact, CallDelta) else fact.text


@given(answers())
def test_every_delta_names_where_it_stands(items: list[object]) -> None:
    """A delta's ``start`` is the number of characters of its part before it, and parts are numbered without a gap."""
    lengths: list[int] = []
    for fact in (draft.fact for draft in record(items)):
        part = fact.part if isinstance(fact, Delta | CallStarted | CallCompleted) else None
        if part == len(lengths):
            lengths.append(0)
        if isinstance(fact, Delta):
            assert lengths[fact.part] == fact.start
            lengths[fact.part] += len(piece(fact))
        elif part is not None:
            assert part < len(lengths)


@given(answers(), st.data())
def test_a_resumed_recorder_goes_on_as_if_nothing_had_happened(items: list[object], data: st.DataObject) -> None:
    """Stopped after any item and resumed with the rest, the events are those of an uninterrupted run."""
    stop = data.draw(st.integers(0, len(items)))
    begun = record(items[:stop])
    resumed = Recorder(RUN, earlier=fold(stored(begun)), resumed=True)
    assert record(items) == begun + record(items[stop:], resumed)


@given(answers(), answers())
def test_a_retried_recorder_begins_a_new_step(first: list[object], second: list[object]) -> None:
    """A further attempt adds parts of later steps and leaves those of the first as they were."""
    begun = record(first)
    recorder = Recorder(RUN, earlier=fold(stored(begun)))
    drafts = record(second, recorder)
    parts = recorder.transcript.message(RUN).parts
    before = folded(begun).parts
    assert before == parts[: len(before)]
    calls = [part for part in parts if isinstance(part, CallPart)]
    assert len({call.id for call in calls}) == len(calls)
    last = max((part.step for part in before), default=0)
    facts = [draft.fact for draft in drafts]
    assert all(fact.step > last for fact in facts if isinstance(fact, Delta | CallStarted | CallCompleted))


@given(answers())
def test_what_is_recorded_can_be_stored_as_json(items: list[object]) -> None:
    """Every draft survives JSON in UTF-8, lone surrogates in the agent's text included."""
    for draft, event in zip(record(items), stored(record(items)), strict=True):
        assert draft.fact == event.fact == read_fact(event.type, event.json)


# Parts and steps ------------------------------------------------------------------------------------------------------


def test_neighbouring_text_is_one_part() -> None:
    """``str`` and ``Text`` are the same, and go on in the same part."""
    assert parts_of(["Hel", Text("lo"), " you"]) == [TextPart(1, "Hello you")]


def test_thinking_and_text_take_turns_in_parts_of_one_step() -> None:
    """A change of kind begins a part, not a step."""
    kinds = [(part.type, part.step) for part in parts_of([Thinking("hm"), "a", Thinking("hm"), "b"])]
    assert kinds == [("thinking", 1), ("text", 1), ("thinking", 1), ("text", 1)]


def test_what_follows_a_tool_result_is_a_new_step() -> None:
    """The model's next message begins after results, once, however many there were."""
    items = ["a", ToolCall("1", "A", "{}"), ToolCall("2", "B", "{}"), ToolResult("2"), ToolResult("1"), "b", "c"]
    assert [part.step for part in parts_of(items)] == [1, 1, 1, 2]


def test_the_message_s_text_is_that_of_the_last_step_with_text() -> None:
    """Text before a tool call belongs to an earlier message of the model."""
    message = folded(record(["first", ToolCall("1", "A", "{}"), ToolResult("1"), "second"]))
    assert message.text == "second"
    assert message_id(RUN, 2) == message.id


def test_text_of_one_step_can_be_asked_for() -> None:
    """``text(step)`` is that step's alone, empty if it has none."""
    transcript = fold(stored(record(["first", ToolCall("1", "A", "{}"), ToolResult("1"), "second"])))
    assert [transcript.text(1), transcript.text(2), transcript.text(3)] == ["first", "second", ""]


def test_an_empty_answer_has_an_empty_message() -> None:
    """A run that says nothing still has a message."""
    assert Said(message_id(RUN, 1), "", []) == folded(record(["", Text(""), Thinking("")]))


def test_types_that_are_no_part_of_the_message_are_ignored() -> None:
    """A transcript can be fed every event of its run."""
    transcript = Transcript()
    transcript.apply(PermissionRequested("x", "Bash", "Run ls?", "execute"))
    transcript.apply(RunStarted("a", 1))
    transcript.apply(OtherFact("tool.dreamt", {"part": 0}))
    assert transcript.message(RUN).parts == []


# Tool calls -----------------------------------------------------------------------------------------------------------


def types_of(items: Sequence[object]) -> list[str]:
    return [draft.type for draft in record(items)]


def test_a_call_with_arguments_is_complete_at_once() -> None:
    """Whole arguments need no delta."""
    assert types_of([ToolCall("1", "A", "{}")]) == ["tool_call.started", "tool_call.completed"]


def test_a_streamed_call_is_completed_by_what_follows() -> None:
    """Ready, started or a result: the first of them completes the arguments, once."""
    begun = [ToolCall("1", "A"), ToolArguments("1", '{"a":'), ToolArguments("1", "1}")]
    events = ["tool_call.started", "tool_call.delta", "tool_call.delta", "tool_call.completed"]
    assert events == types_of([*begun, ToolReady("1")])
    assert events == types_of([*begun, ToolReady("1"), ToolReady("1")])
    assert [*events, "tool.started", "tool.completed"] == types_of([*begun, ToolStarted("1"), ToolResult("1")])
    assert [*events, "tool.completed"] == types_of([*begun, ToolResult("1")])
    completed = record([*begun, ToolReady("1")])[-1]
    assert completed.fact.arguments == '{"a":1}'


def test_the_output_and_its_success_stand_in_the_part() -> None:
    """A failed tool is part of the message, not an error of the run."""
    part = parts_of([ToolCall("1", "A", "{}"), ToolResult("1", {"why": "not found"}, success=False)])[0]
    assert (part.success, part.output) == (False, {"why": "not found"})


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([ToolArguments("1", "x")], "There is no tool call '1'"),
        ([ToolResult("1")], "There is no tool call '1'"),
        ([ToolCall("1", "A"), ToolCall("1", "A")], "exists already"),
        ([ToolCall("1", "A", by="cliant")], "ToolCall.by must be one of server, client, provider"),  # type: ignore[arg-type]
        ([ToolCall("1", "A", by=1)], "ToolCall.by must be text, got int"),  # type: ignore[arg-type]
        ([ToolCall("1", "A", "{}"), ToolArguments("1", "x")], "are complete"),
        ([ToolCall("1", "A", "{}"), ToolResult("1"), ToolResult("1")], "has its result already"),
        ([5], "this one yielded int"),
        ([b"bytes"], "this one yielded bytes"),
        ([Text(5)], "Text.text must be text, got int"),  # type: ignore[arg-type]
        ([ToolCall("1", "A", "{}"), ToolResult("1", object())], "must be made of JSON values"),
        ([ToolCall("1", "A", "{}"), ToolResult("1", {1, 2, object()})], "must be made of JSON values"),
    ],
)
def test_what_is_out_of_place_is_refused_with_what_was_expected(items: list[object], words: str) -> None:
    """A mistake of an agent is told in words, and nothing of it is recorded."""
    recorder = Recorder(RUN)
    record(items[:-1], recorder)
    before = recorder.transcript.message(RUN)
    with pytest.raises(InvalidInput, match=words):
        recorder.record(items[-1])
    assert before == recorder.transcript.message(RUN)


@pytest.mark.parametrize(
    ("given", "by"), [(None, "server"), ("server", "server"), ("client", "client"), ("provider", "provider")]
)
def test_a_call_says_who_runs_it(given: Any, by: str) -> None:
    """If the agent does not, this process; in the log from the beginning, and in the message."""
    drafts = record([ToolCall("1", "A", by=given), ToolResult("1")])
    assert (drafts[0].fact.by, folded(drafts).parts[0].by) == (by, by)


@pytest.mark.parametrize(("given", "by"), [(None, "client"), ("server", "server"), ("provider", "provider")])
def test_a_call_of_a_tool_that_the_client_brought_is_the_client_s(given: Any, by: str) -> None:
    """Unless the agent says else: it may have a tool of the same name."""
    recorder = Recorder(RUN, theirs=brought({"tools": [{"type": "function", "name": "A"}]}))
    assert record([ToolCall("1", "A", by=given)], recorder)[0].fact.by == by
    assert record([ToolCall("2", "B")], recorder)[0].fact.by == "server"


@pytest.mark.parametrize("tools", [None, {}, "A", ["A"], [{"function": {"name": "A"}, "type": "other"}], [None]])
def test_what_is_no_function_is_not_brought(tools: Any) -> None:
    """Metadata may come from anywhere."""
    assert brought({"tools": tools}) == frozenset()


def test_a_retried_call_of_the_same_id_gets_another_in_the_log() -> None:
    """Ids are unique in the run's log, and the agent goes on to use its own."""
    first = record([ToolCall("1", "A", "{}"), ToolCall("1~2", "A", "{}")])
    recorder = Recorder(RUN, earlier=fold(stored(first)))
    drafts = record([ToolCall("1", "A"), ToolArguments("1", "{}"), ToolResult("1", "ok")], recorder)
    ids = {draft.fact.id for draft in drafts}
    assert len(ids) == 1
    assert ids.isdisjoint({"1", "1~2"})


def test_a_resumed_call_keeps_its_id() -> None:
    """An agent that goes on can give the result of a call that an earlier attempt made."""
    first = record([ToolCall("1", "A", "{}")])
    recorder = Recorder(RUN, earlier=fold(stored(first)), resumed=True)
    assert [draft.fact.id for draft in record([ToolResult("1", "ok")], recorder)] == ["1"]


def test_a_resumed_agent_speaks_a_new_step_after_a_result() -> None:
    """Also when the result that came last was of another call than the last."""
    first = record([ToolCall("1", "A", "{}"), ToolCall("2", "B", "{}"), ToolResult("1")])
    recorder = Recorder(RUN, earlier=fold(stored(first)), resumed=True)
    assert [draft.fact.step for draft in record(["on"], recorder)] == [2]


def test_a_refusal_is_a_part_of_its_own_and_text_to_those_who_know_none() -> None:
    """The message's text is not empty; its parts tell the two apart."""
    message = folded(record(["I ", Refusal("can"), Refusal("not.")]))
    assert message.text == "I cannot."
    assert [(part.type, part.text) for part in message.parts] == [("text", "I "), ("refusal", "cannot.")]


# Usage and finish -----------------------------------------------------------------------------------------------------


def test_usage_and_finish_make_no_events() -> None:
    """They stand in the terminal event; the last one counts."""
    recorder = Recorder(RUN)
    assert record([Usage(input_tokens=1), Usage(input_tokens=2), Finish("length")], recorder) == []
    assert (Usage(input_tokens=2), "length") == (recorder.usage, recorder.finish_reason)


def test_without_a_finish_the_reason_is_stop() -> None:
    """An answer that simply ends has stopped."""
    assert Recorder(RUN).finish_reason == "stop"


def test_an_answer_that_ends_with_a_refusal_says_so() -> None:
    """Unless the agent gives another reason, or has more to say; also when another attempt goes on with it."""
    for items, reason in (
        ([Refusal("No.")], "refusal"),
        ([Refusal("No."), "But "], "stop"),
        ([Finish("length"), Refusal("No.")], "length"),
    ):
        recorder = Recorder(RUN)
        record(items, recorder)
        assert reason == recorder.finish_reason
    earlier = fold(stored(record([Refusal("N")])))
    assert Recorder(RUN, earlier=earlier, resumed=True).finish_reason == "refusal"


# Bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [Text, Thinking, Refusal, str])
def test_long_text_is_split(item: Any) -> None:
    """One item beyond the bound becomes several deltas of one part."""
    text = "é" * (2 * DELTA_CHARACTERS + 1)
    drafts = record([item(text)])
    assert [draft.fact.start for draft in drafts] == [0, DELTA_CHARACTERS, 2 * DELTA_CHARACTERS]
    assert text == folded(drafts).parts[0].text


def test_long_arguments_are_split() -> None:
    """A long piece of arguments becomes several deltas, too."""
    drafts = record([ToolCall("1", "A"), ToolArguments("1", "x" * (DELTA_CHARACTERS + 1))])
    assert [draft.fact.start for draft in drafts[1:]] == [0, DELTA_CHARACTERS]


@pytest.mark.parametrize("character", ["\x01", "\u2028", "𝄞", '"', "x"])
def test_no_delta_passes_128_kib_as_json(character: str) -> None:
    """Old clients refuse longer frames; escapes count."""
    for draft in record([character * (2 * DELTA_CHARACTERS)]):
        assert len(encode(draft.fact)) < 131_072 - 512


def test_merging_stops_at_the_bound() -> None:
    """Joined deltas are no longer than a single one may be."""
    drafts = record(["x" * (DELTA_CHARACTERS - 1), "y", "z"])
    assert [len(draft.fact.text) for draft in merge(drafts)] == [DELTA_CHARACTERS, 1]


def test_merging_does_not_change_what_it_is_given() -> None:
    """The drafts that came in are facts already."""
    drafts = record(["a", "b"])
    merge(drafts)
    assert [draft.fact.text for draft in drafts] == ["a", "b"]


def test_an_event_that_cannot_be_split_is_bounded() -> None:
    """A tool's output beyond the bound ends the run with a clear error."""
    recorder = Recorder(RUN, max_event_bytes=1000)
    record([ToolCall("1", "A", "{}")], recorder)
    with pytest.raises(TooLarge, match="limit of 1000"):
        recorder.record(ToolResult("1", "x" * 1000))


@pytest.mark.parametrize("output", ["x" * 60, ["x" * 60]])
def test_the_whole_message_is_bounded(output: object) -> None:
    """Text, arguments and outputs of any kind count."""
    recorder = Recorder(RUN, max_run_characters=100)
    record([ToolCall("1", "A", "{}"), ToolResult("1", output)], recorder)
    with pytest.raises(TooLarge, match="100 characters"):
        recorder.record("y" * 60)


# Surrogates -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(categories=("Cs", "L", "So")), max_size=20))
def test_lone_surrogates_are_replaced_and_nothing_else(text: str) -> None:
    """Half a pair becomes one U+FFFD; two halves in one text become their character; the rest stays."""
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    expected = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in joined)
    assert expected == "".join(draft.fact.text for draft in record([text]))


HIGH, LOW, EMOJI = "\ud83d", "\ude00", "\U0001f600"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([HIGH, LOW], EMOJI),
        ([f"a{HIGH}", f"{LOW}b"], f"a{EMOJI}b"),
        ([HIGH, "", LOW], EMOJI),
        ([HIGH, Text(LOW)], EMOJI),
        ([f"é{HIGH}", f"{LOW}{HIGH}", LOW], f"é{EMOJI}{EMOJI}"),
        ([HIGH, HIGH, LOW], f"\ufffd{EMOJI}"),
        ([HIGH, "b"], "\ufffdb"),
        ([HIGH], "\ufffd"),
        ([LOW, HIGH], "\ufffd\ufffd"),
        ([HIGH, Usage(), "b"], "\ufffdb"),
    ],
)
def test_halves_of_a_letter_are_joined_across_pieces(pieces: list[object], expected: str) -> None:
    """Text that was cut as UTF-16 can be is whole again, and every draft can be written as UTF-8."""
    drafts = record(pieces)

    assert expected == "".join(draft.fact.text for draft in drafts)
    for draft in drafts:
        encode(draft.fact)


@pytest.mark.parametrize("kind", [Text, Thinking, Refusal])
def test_halves_of_another_kind_are_no_pair(kind: type) -> None:
    """Each kind of text has its own letters, and each keeps its place."""
    other = Thinking if kind is Text else Text
    drafts = record([kind(HIGH), other(LOW), kind(HIGH), kind(LOW)])

    assert ["\ufffd", "\ufffd", EMOJI] == [draft.fact.text for draft in drafts]


def test_halves_are_joined_in_arguments() -> None:
    """Of each call for itself; what stays alone is replaced."""
    items = [
        ToolCall("a", "f"),
        ToolCall("b", "f"),
        ToolArguments("a", f'"{HIGH}'),
        ToolArguments("b", HIGH),
        ToolArguments("a", f'{LOW}"'),
        ToolReady("a"),
        ToolReady("b"),
    ]
    whole = [draft.fact.arguments for draft in record(items) if isinstance(draft.fact, CallCompleted)]

    assert [f'"{EMOJI}"', "\ufffd"] == whole


def test_surrogates_are_replaced_everywhere() -> None:
    """Names, arguments, progress, output and reasons as well."""
    recorder = Recorder(RUN)
    items = [
        ToolCall("\ud800", "\ud800", "\ud800"),
        ToolStarted("\ud800", "\ud800"),
        ToolResult("\ud800", "\ud800", progress="\ud800"),
        Finish("\ud800"),
    ]
    for draft in record(items, recorder):
        assert "\ufffd" in encode(draft.fact).decode()
    assert recorder.finish_reason == "\ufffd"


def test_a_byte_order_mark_is_text() -> None:
    """The way through UTF-16 takes no character with it."""
    assert folded(record(["\ufeffé"])).text == "\ufeffé"


# History --------------------------------------------------------------------------------------------------------------


def question(run: str | None, text: str, role: str = "user") -> Draft:
    return facts.draft("message.created", {"id": f"{text}~u", "role": role, "text": text}, run)


def answer(run: str, text: str, type: str = "run.completed") -> Draft:
    field = "message" if type == "run.completed" else "partial"
    said = {"id": f"{run}~a1", "text": text, "parts": [{"type": "text", "step": 1, "text": text}]}
    failure = {"code": "broken", "message": "It broke."} if type == "run.failed" else {}
    return facts.draft(type, {field: said, "usage": {"input_tokens": 3}, **failure}, run)


def conversation(*drafts: Draft) -> list[str]:
    return [message.text for message in history(stored(drafts))]


def test_history_is_questions_and_answers() -> None:
    """Whole messages in order, with what goes with them."""
    asked, answered = history(stored([question("r1", "q1"), answer("r1", "a1")], first=5))
    assert (asked.role, asked.text, asked.run, asked.offset) == ("user", "q1", "r1", 5)
    assert (
        answered.role,
        answered.text,
        answered.run,
        answered.offset,
        answered.status,
    ) == ("assistant", "a1", "r1", 6, "completed")
    assert answered.usage == Usage(input_tokens=3)
    assert answered.error is None  # its "message" is what was said, not what went wrong


def test_an_answer_stands_after_its_own_question() -> None:
    """Questions that were already waiting come after it."""
    waiting = [question("r1", "q1"), question("r2", "q2"), question("r3", "q3")]
    assert conversation(*waiting, answer("r1", "a1")) == ["q1", "a1", "q2", "q3"]
    assert conversation(*waiting, answer("r1", "a1"), answer("r2", "a2")) == ["q1", "a1", "q2", "a2", "q3"]


@pytest.mark.parametrize(("type", "status"), [("run.failed", "failed"), ("run.cancelled", "cancelled")])
def test_what_was_said_before_a_run_failed_or_was_cancelled_is_kept(type: str, status: str) -> None:
    """The partial answer is part of the conversation, with its status."""
    message = history(stored([question("r1", "q1"), answer("r1", "half", type)]))[1]
    assert ("half", status) == (message.text, message.status)
    assert (RunError("broken", "It broke.") if status == "failed" else None) == message.error


def test_a_rewind_takes_back_what_came_after() -> None:
    """History keeps the named message and what is before it, and goes on from there."""
    rewind = facts.draft("session.rewound", {"to": "r1~a1"})
    turns = [question("r1", "q1"), answer("r1", "a1"), question("r2", "q2"), answer("r2", "a2")]
    assert conversation(*turns, rewind) == ["q1", "a1"]
    assert conversation(*turns, rewind, question("r3", "q3"), answer("r3", "a3")) == ["q1", "a1", "q3", "a3"]


def test_an_answer_to_a_question_that_was_taken_back_is_left_out() -> None:
    """A run that ends after the rewind does not come back into the conversation."""
    rewind = facts.draft("session.rewound", {"to": "r1~a1"})
    assert conversation(question("r1", "q1"), answer("r1", "a1"), question("r2", "q2"), rewind, answer("r2", "a2")) == [
        "q1",
        "a1",
    ]


def test_a_rewind_to_an_unknown_message_changes_nothing() -> None:
    """Nothing is taken back by mistake."""
    rewind = facts.draft("session.rewound", {"to": "nowhere"})
    assert conversation(question("r1", "q1"), answer("r1", "a1"), rewind) == ["q1", "a1"]


def test_a_rewind_to_before_the_first_message_keeps_nothing() -> None:
    """Its ``to`` is empty."""
    rewind = facts.draft("session.rewound", {"to": ""})
    assert conversation(question("r1", "q1"), answer("r1", "a1"), rewind, question("r2", "q1")) == ["q1"]


@pytest.mark.parametrize(("to", "kept"), [("", []), ("r1~a1", ["q1", "a1"])])
def test_a_rewind_takes_back_no_more_than_its_author_saw(to: str, kept: list[str]) -> None:
    """A message that was stored after ``until``, and its answer, stay."""
    turns = [question("r1", "q1"), answer("r1", "a1"), question("r2", "q2"), answer("r2", "a2"), question("r3", "q3")]
    rewind = facts.draft("session.rewound", {"to": to, "until": 4})
    assert conversation(*turns, rewind, question("r4", "q2"), answer("r3", "a3")) == [*kept, "q3", "a3", "q2"]


def test_copied_messages_of_a_fork_are_history() -> None:
    """A fork's messages have no run, and assistants' keep their role and parts."""
    parts = [{"type": "text", "step": 1, "text": "a1"}]
    copied = facts.draft("message.created", {"id": "a", "role": "assistant", "text": "a1", "parts": parts})
    messages = history(stored([question(None, "q1"), copied, question("r2", "q2"), answer("r2", "a2")]))
    assert [(message.role, message.text) for message in messages] == [
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
    ]
    assert [TextPart(1, "a1")] == messages[1].parts


def test_other_events_are_no_part_of_history() -> None:
    """Deltas and the like may be there or not; the messages are the same."""
    drafts = record(["a", "1"])
    assert conversation(question("r1", "q1"), *drafts, answer("r1", "a1")) == ["q1", "a1"]


def test_a_long_answer_in_short_pieces_takes_little_more_than_its_text() -> None:
    """What a run keeps for its end does not grow with the number of pieces."""
    recorder = Recorder(RUN)
    tracemalloc.start()
    for number in range(10_000):
        recorder.record(f"{number:5}é")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * 10_000 * len("00000é".encode())
    assert "".join(f"{number:5}é" for number in range(10_000)) == recorder.transcript.text()


def test_usage_that_is_not_json_is_refused_at_once() -> None:
    """Counts that no store could take are the agent's mistake now, not a run that cannot end later."""
    recorder = Recorder("r")

    with pytest.raises(InvalidInput, match=r"Usage\.input_tokens must be a whole number"):
        recorder.record(Usage(input_tokens=object()))  # type: ignore[arg-type]
    assert recorder.usage is None


def test_what_the_agent_changes_after_yielding_it_is_not_changed_in_the_log() -> None:
    """An event is a fact: the agent's own object may change, and tuples are lists from the first reader on."""
    output = {"found": 1, "pair": (1, 2)}
    recorder = Recorder(RUN)
    drafts = record([ToolCall("c", "search", "{}"), ToolResult("c", output)], recorder)
    output["found"] = 2
    kept = {"found": 1, "pair": [1, 2]}
    assert [kept, kept] == [drafts[-1].fact.output, recorder.transcript.parts[0].output]


def test_output_that_is_too_deep_for_json_is_refused() -> None:
    """What cannot be encoded for its depth is out of place like everything that is no JSON."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="JSON"):
        record([ToolCall("c", "search", "{}"), ToolResult("c", deep)])
