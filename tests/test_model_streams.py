"""What really comes over a model's stream: accents of servers, in bytes made up here after reports of their users."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from fake_server import Reply, Request, json_reply, stream_reply
from legato.client import BackoffStrategy, RetryConfig
from legato.errors import InvalidInput
from legato.provider import (
    ChatResult,
    ProviderError,
    ProviderRefused,
    ResponseFailed,
    ResponseIncomplete,
    StreamInterrupted,
    StreamMalformed,
    TokenUsage,
)
from provider_streams import (
    ANTHROPIC_TEXT,
    CHAT_TEXT,
    CHAT_TOOLS,
    CREATED,
    FACES,
    FIDDLE,
    START,
    STOP,
    TEXT,
    TEXT_EVENTS,
    TOOL_EVENTS,
    Seen,
    add,
    block,
    chat,
    chunk,
    delta,
    finish,
    item,
    numbered,
    over,
    read,
    sse,
    state,
    total,
    use,
)

QUICK = RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 60_000), True)
TYPES = {"Responses": "responses", "ChatCompletions": "chat", "Anthropic": "messages"}


def seen(wire: str, body: bytes | Reply, face: str = "sync", **settings: Any) -> Seen:
    reply = body if isinstance(body, Reply) else stream_reply(body, None)
    got: Seen = use(face, f"{wire}Provider", lambda _: reply, chat, **settings)
    # What was handed out is what the result says, always.
    summed, partial = total(got.items, got.partial), got.partial
    assert (summed.text, summed.thinking, summed.tool_calls) == (partial.text, partial.thinking, partial.tool_calls)
    return got


# Tool calls of Chat Completions ---------------------------------------------------------------------------------------


def piece(index: int | None = None, id: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    """A piece of a tool call with the fields that are given."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    about = {key: value for key, value in (("index", index), ("id", id)) if value is not None}
    return {**about, "type": "function", "function": function}


def called(*chunks: Sequence[Any], reason: str = "tool_calls") -> Seen:
    payloads = [chunk(tool_calls=list(pieces)) for pieces in chunks]
    return seen("ChatCompletions", sse([*payloads, chunk(reason), "[DONE]"], named=False))


TWO = [("add", '{"x":1}'), ("sub", '{"y":2}')]
ACCENTS: dict[str, list[list[Any]]] = {
    "whole, all 0, no id, one chunk (Gemini)": [[piece(0, None, "add", '{"x":1}'), piece(0, None, "sub", '{"y":2}')]],
    "whole, all 0, no id, two chunks (Gemini)": [
        [piece(0, None, "add", '{"x":1}')],
        [piece(0, None, "sub", '{"y":2}')],
    ],
    "whole, all 0, an empty id": [[piece(0, "", "add", '{"x":1}')], [piece(0, "", "sub", '{"y":2}')]],
    "whole, no index, no id": [[piece(None, None, "add", '{"x":1}'), piece(None, None, "sub", '{"y":2}')]],
    "whole, no index, one id for all": [[piece(None, "c", "add", '{"x":1}'), piece(None, "c", "sub", '{"y":2}')]],
    "whole, one index and one id for all": [[piece(0, "c", "add", '{"x":1}')], [piece(0, "c", "sub", '{"y":2}')]],
    "interleaved, all 0, with ids": [
        [piece(0, "a", "add", ""), piece(0, "b", "sub", "")],
        [piece(0, "b", None, '{"y":')],
        [piece(0, "a", None, '{"x":')],
        [piece(0, "b", None, "2}"), piece(0, "a", None, "1}")],
    ],
    "interleaved, all 0, with ids and arguments at once": [
        [piece(0, "a", "add", '{"x"'), piece(0, "b", "sub", '{"y"')],
        [piece(0, "a", None, ":1}"), piece(0, "b", None, ":2}")],
    ],
    "interleaved, no index, with ids": [
        [piece(None, "a", "add", '{"x":')],
        [piece(None, "b", "sub", '{"y":')],
        [piece(None, "a", None, "1}")],
        [piece(None, "b", None, "2}")],
    ],
    "a new id in each piece (vLLM)": [
        [piece(0, "r1", "add", '{"x"')],
        [piece(0, "r2", None, ":1}")],
        [piece(1, "r3", "sub", '{"y"')],
        [piece(1, "r4", None, ":2}")],
    ],
    "a new id in each piece, all 0": [
        [piece(0, "r1", "add", "")],
        [piece(0, "r2", None, '{"x":1}')],
        [piece(0, "r3", "sub", "")],
        [piece(0, "r4", None, '{"y":')],
        [piece(0, "r5", None, "2}")],
    ],
    "a new id and the name in each piece": [
        [piece(0, "r1", "add", '{"x"')],
        [piece(0, "r2", "add", ":1}")],
        [piece(0, "r3", "sub", '{"y"')],
        [piece(0, "r4", "sub", ":2}")],
    ],
    "the name in each piece": [
        [piece(0, "a", "add", '{"x"')],
        [piece(0, None, "add", ":1}")],
        [piece(1, "b", "sub", '{"y"')],
        [piece(1, None, "sub", ":2}")],
    ],
    "the name in each piece, no index": [
        [piece(None, None, "add", '{"x"')],
        [piece(None, None, "add", ":1}")],
        [piece(None, None, "sub", '{"y"')],
        [piece(None, None, "sub", ":2}")],
    ],
    "an empty call first": [[{}], [piece(0, "a", "add", '{"x":1}')], [{"index": 1}], [piece(1, "b", "sub", '{"y":2}')]],
    "an empty function first": [
        [piece(0, "", "", "")],
        [piece(0, "a", "add", '{"x":1}')],
        [{"index": 1, "function": None}],
        [piece(1, "b", "sub", '{"y":2}')],
    ],
    "an id alone first": [
        [piece(0, "a")],
        [piece(0, None, "add", '{"x":1}')],
        [piece(1, "b")],
        [piece(1, None, "sub", '{"y":2}')],
    ],
    "empty ids": [
        [piece(0, "", "add", '{"x":')],
        [piece(0, "", None, "1}")],
        [piece(1, "", "sub", '{"y":')],
        [piece(1, "", "", "2}")],
    ],
    "no index": [
        [piece(None, "a", "add", '{"x":')],
        [piece(None, None, None, "1}")],
        [piece(None, "b", "sub", '{"y":')],
        [piece(None, None, None, "2}")],
    ],
    "an index in text": [
        [{**piece(None, "a", "add", '{"x":1}'), "index": "0"}],
        [{**piece(None, "b", "sub", '{"y":2}'), "index": "1"}],
    ],
    "an index as a float": [
        [{**piece(None, "a", "add", '{"x":'), "index": 0.0}, {**piece(None, "b", "sub", '{"y":2}'), "index": 1.0}],
        [{**piece(None, None, None, "1}"), "index": 0.0}],
    ],
    "arguments as an object": [[piece(0, "a", "add", {"x": 1})], [piece(1, "b", "sub", {"y": 2})]],
    "arguments as an object, all 0, no id": [[piece(0, None, "add", {"x": 1}), piece(0, None, "sub", {"y": 2})]],
    "the name late": [
        [piece(0, "a", None, '{"x":')],
        [piece(0, None, "add", "1}")],
        [piece(1, "b", "", '{"y":2}')],
        [piece(1, None, "sub")],
    ],
    "the name late, by id": [
        [piece(None, "a", None, '{"x":1}')],
        [piece(None, "a", "add", "")],
        [piece(None, "b", None, '{"y":2}')],
        [piece(None, "b", "sub", None)],
    ],
    "pieces that help nothing": [
        [piece(0, "a", "add", '{"x":1}')],
        [piece(0, None, None, "")],
        [piece(0, "a", None, " \n")],
        [piece(0, None, None, "}")],
        [piece(1, "b", "sub", '{"y":2}')],
        [{}],
    ],
    "whole again at the end": [
        [piece(0, "a", "add", '{"x":'), piece(1, "b", "sub", '{"y":')],
        [piece(0, "a", None, "1}"), piece(1, "b", None, "2}")],
        [piece(0, "a", "add", '{"x":1}'), piece(1, "b", "sub", '{"y":2}')],
    ],
    "an empty object first": [
        [piece(0, "a", "add", {}), piece(1, "b", "sub", "{}")],
        [piece(0, None, None, '{"x":'), piece(1, None, None, '{"y":2}')],
        [piece(0, None, None, "1}")],
    ],
    "an index for each piece": [
        [piece(0, "a", "add", '{"x"')],
        [piece(1, "a", None, ":1}")],
        [piece(2, "b", "sub", '{"y":2}')],
    ],
    "an index that comes late": [
        [piece(None, "a", "add", "")],
        [piece(0, None, None, '{"x":1}')],
        [piece(1, "b", "sub", '{"y":2}')],
    ],
    "the name in pieces": [
        [piece(0, "a", "a", "")],
        [piece(0, None, "dd")],
        [piece(0, None, None, '{"x":1}')],
        [piece(1, "b", "su", "")],
        [piece(1, None, "b", '{"y":')],
        [piece(1, None, None, "2}")],
    ],
    "the name in pieces, all with the id": [
        [piece(0, "a", "ad")],
        [piece(0, "a", "d", "")],
        [piece(0, "a", "", '{"x":1}')],
        [piece(1, "b", "s")],
        [piece(1, "b", "u")],
        [piece(1, "b", "b")],
        [piece(1, "b", None, '{"y":2}')],
    ],
    "the name in pieces, no index, no id": [
        [piece(None, None, "a")],
        [piece(None, None, "dd", '{"x":1}')],
        [piece(None, None, "s", "")],
        [piece(None, None, "ub", "")],
        [piece(None, None, None, '{"y":2}')],
    ],
    "the name in pieces, all 0": [
        [piece(0, None, "ad", "")],
        [piece(0, None, "d", '{"x":1}')],
        [piece(0, None, "su", "")],
        [piece(0, None, "b", '{"y":2}')],
    ],
    "the name growing": [
        [piece(0, "a", "a", "")],
        [piece(0, "a", "add", "")],
        [piece(0, "a", "add", '{"x":1}')],
        [piece(1, "b", "s")],
        [piece(1, None, "sub")],
        [piece(1, None, None, '{"y":2}')],
    ],
    "the whole name again and again": [
        [piece(0, "a", "add", "")],
        [piece(0, None, "add", "")],
        [piece(0, "a", "add", '{"x":')],
        [piece(0, None, "add", "1}")],
        [piece(1, "b", "sub", "")],
        [piece(1, None, "sub", '{"y":2}')],
    ],
    "one call, not in a list": [[piece(0, "a", "add", '{"x":1}')], [piece(1, "b", "sub", '{"y":2}')]],
}


@pytest.mark.parametrize("name", ACCENTS)
def test_tool_calls_of_every_accent(name: str) -> None:
    """Index, id, name and whether the arguments are whole decide together to which call a piece belongs."""
    got = called(*ACCENTS[name])

    assert got.error is None
    assert TWO == [(call.name, call.arguments) for call in got.partial.tool_calls]
    assert all(call.id for call in got.partial.tool_calls)


@pytest.mark.parametrize("end", [[chunk("tool_calls"), "[DONE]"], [chunk("tool_calls")], ["[DONE]"]])
@pytest.mark.parametrize("pieces", [["roll"], ["ro", "ll"], ["r", "roll"], ["roll", "roll"]])
def test_a_call_of_which_nothing_but_the_name_comes(pieces: list[str], end: list[Any]) -> None:
    """It is told at the end, whatever says so."""
    payloads = [chunk(tool_calls=[piece(0, "a", name)]) for name in pieces]
    got = seen("ChatCompletions", sse([*payloads, *end], named=False))

    assert ["roll"] == [call.name for call in got.partial.tool_calls]


@pytest.mark.parametrize("reason", ["tool_calls", "stop", "tool_use"])
def test_ids_that_are_given_are_kept(reason: str) -> None:
    """Whichever piece brings it, the first one counts."""
    late = called([piece(0, None, "add", "")], [piece(0, "a", None, '{"x":1}')], reason=reason)
    new = called(*ACCENTS["a new id in each piece (vLLM)"], reason=reason)

    assert ["r1", "r3"] == [call.id for call in new.partial.tool_calls]
    assert [("add", '{"x":1}')] == [(call.name, call.arguments) for call in late.partial.tool_calls]


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(0, None, "roll", "{}"), piece(0, None, "roll", "{}")],
        [piece(None, None, "roll", "{}"), piece(None, None, "roll", "{}")],
        [piece(0, "a", "roll", ""), piece(1, "b", "roll", "")],
        [piece(0, "a", "roll", ""), piece(0, "b", "roll", "")],
        [piece(None, "a", "roll", "{}"), piece(None, "b", "roll", "{}")],
    ],
)
def test_the_same_call_twice_is_two_calls(pieces: list[Any]) -> None:
    """Dice are thrown twice by two equal calls; only one with the very same id is a repetition."""
    assert ["roll", "roll"] == [call.name for call in called(*([each] for each in pieces)).partial.tool_calls]


@pytest.mark.parametrize("arguments", ['{"a":"}{"}', r'{"a":"\"}"}', '{"a":{"b":[{}]}}', '{"a":"\\\\"}', "[]"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_brackets_in_texts_end_nothing(arguments: str, size: int) -> None:
    """Whether a value is whole is known wherever it was cut."""
    cuts = [arguments[place : place + size] for place in range(0, len(arguments), size)]
    pieces = [piece(0, None, "f", cuts[0]), *(piece(0, None, None, cut) for cut in cuts[1:])]
    got = called(*([each] for each in pieces), [piece(0, None, "g", "{}")])

    assert [("f", arguments), ("g", "{}")] == [(call.name, call.arguments) for call in got.partial.tool_calls]


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [piece(None, None, "roll", ""), piece(None, None, "roll", "")]},
        {"content": "", "tool_calls": [piece(0, "", "roll", {}), piece(0, "", "roll", {})]},
    ],
)
def test_calls_of_a_whole_answer_are_told_apart(message: Any) -> None:
    """There are no pieces in it."""
    answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
    whole: ChatResult = use(
        "sync", "ChatCompletionsProvider", lambda _: json_reply(answer), lambda c: c.chat(model="m", messages=[])
    )

    assert ["roll", "roll"] == [call.name for call in whole.tool_calls]
    assert whole.tool_calls == seen("ChatCompletions", json_reply(answer)).partial.tool_calls


def test_the_old_form_of_a_call_is_read() -> None:
    """``function_call``, from the time when there was one."""
    payloads = [
        chunk(function_call={"name": "add", "arguments": ""}),
        chunk(function_call={"arguments": '{"x":1}'}),
        chunk("function_call"),
    ]
    got = seen("ChatCompletions", sse([*payloads, "[DONE]"], named=False))

    assert ("tool_calls", "add", '{"x":1}') == (
        got.partial.finish_reason,
        got.partial.tool_calls[0].name,
        got.partial.tool_calls[0].arguments,
    )


@pytest.mark.parametrize("arguments", ["{}", '{"x":1}', '{"x'])
@pytest.mark.parametrize("end", [[chunk("tool_calls"), "[DONE]"], ["[DONE]"], []])
def test_arguments_without_a_name_are_not_lost_in_silence(arguments: str, end: list[Any]) -> None:
    """Nobody can make such a call, and an answer without it would be another answer."""
    got = seen("ChatCompletions", sse([chunk(tool_calls=[piece(0, "a", None, arguments)]), *end], named=False))

    assert StreamMalformed is type(got.error)


# The provider's words -------------------------------------------------------------------------------------------------

WORDS = "The prompt is too long."
FAILURES: dict[str, Any] = {
    "an error": {"error": {"message": WORDS, "type": "invalid_request_error", "code": "context_length_exceeded"}},
    "an error in text": {"error": WORDS},
    "a flat one (vLLM)": {"object": "error", "message": WORDS, "type": "BadRequestError", "code": 400},
    "a list (Gemini)": [{"error": {"code": 400, "message": WORDS, "status": "INVALID_ARGUMENT"}}],
    "a detail": {"detail": WORDS},
    "a message and a code": {"code": "Arrearage", "message": WORDS, "request_id": "r"},
    "Anthropic's": {"type": "error", "error": {"type": "invalid_request_error", "message": WORDS}},
    "flat with a type": {"type": "error", "message": WORDS, "code": "bad"},
    "errors": {"errors": [{"message": WORDS}]},
    "a message beside": {"error": {"code": 400}, "message": WORDS},
}
every_wire = pytest.mark.parametrize("wire", TYPES)
every_failure = pytest.mark.parametrize("name", FAILURES)
BEGINNINGS = {
    "Responses": sse(numbered(CREATED, item(0, "added", type="message", content=[]), delta(0, "output_text", "Hel"))),
    "ChatCompletions": sse([chunk(content="Hel")], named=False),
    "Anthropic": sse([START, block(0, type="text", text=""), add(0, "text_delta", text="Hel")]),
}


def says(got: Seen, text: str = "") -> None:
    assert isinstance(got.error, ResponseFailed), got.error
    assert (WORDS, text) == (got.error.message, got.partial.text)


@every_wire
@every_failure
@pytest.mark.parametrize("kind", ["application/json", "text/plain; charset=utf-8", None, "text/event-stream"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_body_that_is_an_error(wire: str, name: str, kind: str | None, indent: int | None) -> None:
    """Under whatever name it comes, with a status that says that all is well."""
    body = json.dumps(FAILURES[name], indent=indent).encode()

    says(seen(wire, Reply(200, body, {} if kind is None else {"content-type": kind})))


@every_wire
@every_failure
@pytest.mark.parametrize(
    "form", ["data: {}\n\n", "event: error\ndata: {}\n\n", "{}\n", "{}", "error: {}\n\n", "error:{}"]
)
def test_an_error_in_the_middle(wire: str, name: str, form: str) -> None:
    """As an event, as a bare line, as a field that SSE does not know (llama.cpp): with what came before it."""
    error = form.replace("{}", json.dumps(FAILURES[name])).encode()

    says(seen(wire, BEGINNINGS[wire] + error), "Hel")
    says(seen(wire, error))


@every_wire
@pytest.mark.parametrize("form", ["error: {}\n", "event: error\ndata: {}\n\n"])
def test_an_error_in_plain_words(wire: str, form: str) -> None:
    """Not everybody writes JSON when it is late."""
    says(seen(wire, BEGINNINGS[wire] + form.replace("{}", WORDS).encode()), "Hel")


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": ""}, "finish_reason": "error", "error": {"code": 502, "message": WORDS}},
        {"delta": {"content": ""}, "finish_reason": None, "error": {"code": 502, "message": WORDS}},
        {"delta": {}, "finish_reason": "stop", "error": {"code": 502, "message": WORDS}},
        {"message": {"content": None}, "finish_reason": "error", "error": {"message": WORDS}},
    ],
)
@pytest.mark.parametrize("end", [["[DONE]"], [], [chunk("stop"), "[DONE]"]])
def test_an_error_in_the_choice(choice: Any, end: list[Any]) -> None:
    """OpenRouter's: never an answer that is complete."""
    body = sse([chunk(content="Hel"), {"id": "chat_1", "model": "m-1", "choices": [{"index": 0, **choice}]}, *end],
               named=False)  # fmt: skip

    says(seen("ChatCompletions", body), "Hel")


@pytest.mark.parametrize("reason", ["error", "ERROR", "failed", "network_error"])
@pytest.mark.parametrize("more", [{}, {"error": {"message": WORDS, "code": 502}}])
def test_a_finish_that_is_an_error(reason: str, more: Any) -> None:
    """Said in one word, it is a failure still."""
    got = seen("ChatCompletions", sse([chunk(content="Hel"), {**chunk(reason), **more}, "[DONE]"], named=False))

    assert isinstance(got.error, ResponseFailed)
    assert not more or got.error.message == WORDS


@every_wire
@every_failure
def test_a_whole_answer_that_is_an_error(wire: str, name: str) -> None:
    """Without a stream, too."""
    with pytest.raises(ProviderError) as caught:
        use("sync", f"{wire}Provider", lambda _: json_reply(FAILURES[name]), lambda c: c.chat(model="m", messages=[]))

    assert WORDS == caught.value.message


@every_failure
def test_a_refusal_has_the_same_words(name: str) -> None:
    """With an error status."""
    got = seen("ChatCompletions", json_reply(FAILURES[name], 400))

    assert (ProviderRefused, WORDS) == (type(got.error), got.error and got.error.message)


@every_wire
@pytest.mark.parametrize("line", ["x-request-id: 7", "data", "<p>", "foo: {}", "} ", ": {", "id: {"])
def test_lines_that_say_nothing_are_passed_over(wire: str, line: str) -> None:
    """A field that is not known is ignored, as the format says."""
    end = {"Responses": TEXT_EVENTS, "ChatCompletions": CHAT_TEXT, "Anthropic": ANTHROPIC_TEXT}[wire]
    body = sse(end, named=wire != "ChatCompletions")
    first = body.index(b"\n\n") + 2

    got = seen(wire, body[:first] + line.encode() + b"\n\n" + body[first:])

    assert (None, TEXT) == (got.error, got.partial.text)


# Odd fields -----------------------------------------------------------------------------------------------------------


def with_all(payloads: Iterable[Any], **fields: Any) -> list[Any]:
    return [{**payload, **fields} if isinstance(payload, dict) else payload for payload in payloads]


def usage(**fields: Any) -> list[Any]:
    return [*CHAT_TEXT[:-2], {"id": "chat_1", "model": "m-1", "choices": [], "usage": fields}, "[DONE]"]


def raw(text: str) -> bytes:
    """A chat in which ``X`` in the second chunk's fields is this JSON."""
    body = sse([chunk(content="Hel"), {**chunk(content=f"lo {FIDDLE}"), "logprobs": "X"}, chunk("stop"), "[DONE]"],
               named=False)  # fmt: skip
    return body.replace(b'"X"', text.encode())


ODD_CHATS: dict[str, bytes] = {
    "usage in floats": sse(usage(prompt_tokens=5.0, completion_tokens=7.0, total_tokens=12.0), named=False),
    "usage in texts": sse(usage(prompt_tokens="5", completion_tokens="7"), named=False),
    "usage of another form": sse(usage(prompt_tokens=[5], completion_tokens={"n": 7}), named=False),
    "usage is a list": sse([*CHAT_TEXT[:-2], {**chunk(), "usage": [1]}, "[DONE]"], named=False),
    "usage is beyond all bounds": sse(usage(prompt_tokens=1e300, completion_tokens=-7), named=False),
    "details of another form": sse(usage(prompt_tokens=5, prompt_tokens_details=[]), named=False),
    "a number as id": sse(with_all(CHAT_TEXT, id=17), named=False),
    "an object as id": sse(with_all(CHAT_TEXT, id={"a": 1}), named=False),
    "a number as model": sse(with_all(CHAT_TEXT, model=4.1), named=False),
    "a model of another form": sse(with_all(CHAT_TEXT, model=["m"]), named=False),
    "NaN": raw("NaN"),
    "NaN, deeper": raw('{"content":[{"logprob":-Infinity,"top":[NaN]}]}'),
    "infinity": raw("Infinity"),
    "half a pair where nobody looks": raw(r'"\ud83d"'),
    "an empty data": sse(["", *CHAT_TEXT], named=False),
    "a blank data": sse([*CHAT_TEXT[:2], " \t", *CHAT_TEXT[2:]], named=False),
    "[DONE] with a blank": sse([*CHAT_TEXT[:-1], "[DONE] "], named=False),
    "[DONE] with blanks around": sse([*CHAT_TEXT[:-1], "  [DONE]\t"], named=False),
    "index null": sse([{**each, "choices": [{**each["choices"][0], "index": None}]} if isinstance(each, dict)
                       and each["choices"] else each for each in CHAT_TEXT], named=False),
    "index in text": sse([{**each, "choices": [{**each["choices"][0], "index": "0"}]} if isinstance(each, dict)
                          and each["choices"] else each for each in CHAT_TEXT], named=False),
    "choices null": sse([{"id": "chat_1", "choices": None}, *CHAT_TEXT], named=False),
    "tool_calls null": sse([chunk(content="", tool_calls=None), *CHAT_TEXT], named=False),
    "thinking of another form": sse([chunk(content="", reasoning={"effort": "low"}), *CHAT_TEXT], named=False),
    "a finish reason in each chunk": sse([chunk("", content="Hel"), chunk("null", content=f"lo {FIDDLE}"),
                                          chunk("stop"), "[DONE]"], named=False),
    "created in text": sse(with_all(CHAT_TEXT, created="now", object=7), named=False),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_CHATS)
def test_an_odd_field_costs_nothing(name: str) -> None:
    """Of another type, missing or null: what is not what was said cannot spoil what was."""
    got = seen("ChatCompletions", ODD_CHATS[name])

    assert (None, TEXT) == (got.error, got.partial.text)


@pytest.mark.parametrize(
    "spent", [{"prompt_tokens": 5.0, "completion_tokens": 7.0}, {"prompt_tokens": "5.0", "completion_tokens": "7"}]
)
def test_floats_are_counted(spent: Any) -> None:
    """What can be read is."""
    got = seen("ChatCompletions", sse(usage(**spent), named=False))

    assert TokenUsage(5, 7, 12) == got.partial.usage


@pytest.mark.parametrize(
    "events",
    [
        with_all(TEXT_EVENTS, sequence_number="1"),
        with_all(TEXT_EVENTS, sequence_number=None),
        with_all(TEXT_EVENTS, sequence_number=0),
        with_all(TEXT_EVENTS, logprobs=None, obfuscation=7),
        with_all(TEXT_EVENTS, content_index="x"),
        with_all(TEXT_EVENTS, item_id=17),
        [{**TEXT_EVENTS[0], "response": {"id": 7, "output": None, "usage": [1.5]}}, *TEXT_EVENTS[1:]],
        [*TEXT_EVENTS[:-1], state("completed", usage={"input_tokens": 5.0, "output_tokens": None})],
        [*TEXT_EVENTS[:-1], state("completed", usage="much")],
        ["", *TEXT_EVENTS, "[DONE] "],
    ],
)  # fmt: skip
def test_an_odd_field_of_an_event_costs_nothing(events: list[Any]) -> None:
    """Over Responses."""
    got = seen("Responses", sse(events))

    assert (None, TEXT) == (got.error, got.partial.text)


@pytest.mark.parametrize(
    "events",
    [
        [{**START, "message": {"id": 7, "model": None, "usage": {"input_tokens": 3.0}}}, *ANTHROPIC_TEXT[1:]],
        [{**START, "message": {**START["message"], "usage": []}}, *ANTHROPIC_TEXT[1:]],
        [*ANTHROPIC_TEXT[:-2], {**finish("end_turn"), "usage": {"output_tokens": "7"}}, STOP],
        [*ANTHROPIC_TEXT[:-2], {**finish("end_turn"), "usage": None}, STOP],
        [{**each, "index": 1.0} if type(each.get("index")) is int else each for each in ANTHROPIC_TEXT],
        ["", " ", *ANTHROPIC_TEXT],
        [{"type": "ping", "x": "\ud83d"}, *ANTHROPIC_TEXT],
        [*ANTHROPIC_TEXT[:-1]],
    ],
)  # fmt: skip
def test_an_odd_field_of_a_message_costs_nothing(events: list[Any]) -> None:
    """Over Messages; the last one lacks ``message_stop`` behind its reason to stop."""
    body = "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in events).encode()
    got = seen("Anthropic", body)

    assert (None, TEXT) == (got.error, got.partial.text)


EMOJI = "\U0001f600"
HALVES = {
    "ChatCompletions": [chunk(content="a\ud83d"), chunk(content="\ude00b"), chunk("stop"), "[DONE]"],
    "Responses": numbered(CREATED, delta(0, "output_text", "a\ud83d"), delta(0, "output_text", "\ude00b"),
                          state("completed")),
    "Anthropic": [START, block(0, type="text", text=""), add(0, "text_delta", text="a\ud83d"),
                  add(0, "text_delta", text="\ude00b"), over(0), finish("end_turn"), STOP],
}  # fmt: skip


def escaped(payloads: Iterable[Any]) -> bytes:
    return "".join(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in payloads).encode()


@every_wire
@pytest.mark.parametrize("face", FACES)
def test_halves_of_a_letter_are_joined(wire: str, face: str) -> None:
    """Cut in two chunks, an emoji is whole again."""
    got = seen(wire, escaped(HALVES[wire]), face)

    assert (None, f"a{EMOJI}b") == (got.error, got.partial.text)


@every_wire
def test_half_a_letter_alone_is_replaced(wire: str) -> None:
    """Its other half never comes: the rest of the text is what it is."""
    body = escaped(HALVES[wire]).replace(b"\\ude00", b"")
    got = seen(wire, body)

    assert (None, "a\ufffdb") == (got.error, got.partial.text)


@pytest.mark.parametrize("kind", ["reasoning_content", "refusal", "reasoning"])
def test_halves_of_other_texts_are_joined(kind: str) -> None:
    """Thinking and refusals are texts, too; and one does not take the other's half."""
    body = escaped([chunk(**{kind: "\ud83d"}), chunk(content="\ud83d"), chunk(**{kind: "\ude00"}),
                    chunk(content="\ude00"), chunk("stop"), "[DONE]"])  # fmt: skip
    got = seen("ChatCompletions", body)

    assert (EMOJI, EMOJI) == (got.partial.text, got.partial.thinking or got.partial.refusal)


def test_halves_in_arguments_are_joined() -> None:
    """Of each call for itself."""
    pieces = [piece(0, "a", "f", '"\ud83d'), piece(1, "b", "g", '["\ud83d'), piece(0, None, None, '\ude00"'),
              piece(1, None, None, '\ude00"]')]  # fmt: skip
    body = escaped([*(chunk(tool_calls=[each]) for each in pieces), chunk("tool_calls"), "[DONE]"])
    got = seen("ChatCompletions", body)

    assert [f'"{EMOJI}"', f'["{EMOJI}"]'] == [call.arguments for call in got.partial.tool_calls]


# Two names for one item -----------------------------------------------------------------------------------------------


def without(events: Iterable[Any], *names: str) -> list[Any]:
    return [{name: value for name, value in event.items() if name not in names} for event in events]


def all_at(events: Iterable[Any], index: int = 0) -> list[Any]:
    return [{**event, "output_index": index} if "output_index" in event else event for event in events]


def renamed(events: Iterable[Any]) -> list[Any]:
    """Each event has its own id for the same item."""
    return [{**event, "item_id": f"x{number}"} if "item_id" in event else
            {**event, "item": {**event["item"], "id": f"x{number}"}} if "item" in event else event
            for number, event in enumerate(events)]  # fmt: skip


def nameless(events: Iterable[Any]) -> list[Any]:
    return [{**event, "item": {name: value for name, value in event["item"].items() if name != "id"}}
            if "item" in event else event for event in without(events, "item_id", "output_index")]  # fmt: skip


ONE_BY_ONE = numbered(
    CREATED,
    item(0, "added", type="function_call", call_id="call_a", name="add", arguments=""),
    delta(0, "function_call_arguments", '{"x":'),
    delta(0, "function_call_arguments", "1}"),
    item(0, "done", type="function_call", call_id="call_a", name="add", arguments='{"x":1}'),
    item(1, "added", type="function_call", call_id="call_b", name="sub", arguments=""),
    delta(1, "function_call_arguments", '{"y":2}'),
    item(1, "done", type="function_call", call_id="call_b", name="sub", arguments='{"y":2}'),
    state("completed"),
)
TEXTS = {"content": [{"type": "output_text", "text": TEXT}]}
NAMES: dict[str, list[Any]] = {
    "no output_index": without(TEXT_EVENTS, "output_index"),
    "no item_id": without(TEXT_EVENTS, "item_id"),
    "neither": without(TEXT_EVENTS, "item_id", "output_index"),
    "nothing at all": nameless(TEXT_EVENTS),
    "null for both": with_all(TEXT_EVENTS, item_id=None, output_index=None),
    "another id in each event": renamed(TEXT_EVENTS),
    "text already in added": [*TEXT_EVENTS[:1], item(0, "added", type="message", **TEXTS), *TEXT_EVENTS[3:]],
    "its beginning already in added": [
        *TEXT_EVENTS[:1],
        item(0, "added", type="message", content=[{"type": "output_text", "text": "Hel"}]),
        *TEXT_EVENTS[3:],
    ],
    "added goes before the deltas": [
        *TEXT_EVENTS[:1],
        item(0, "added", type="message", content=[{"type": "output_text", "text": "Hel"}]),
        *TEXT_EVENTS[4:],
    ],
    "text in added alone": [*TEXT_EVENTS[:1], item(0, "added", type="message", **TEXTS), TEXT_EVENTS[-1]],
    "text in the part alone": [
        *TEXT_EVENTS[:2],
        {"type": "response.content_part.added", "item_id": "item_0", "part": {"type": "output_text", "text": TEXT}},
        TEXT_EVENTS[-1],
    ],
    "text in text.done alone": [
        *TEXT_EVENTS[:2],
        {"type": "response.output_text.done", "item_id": "item_0", "output_index": 0, "text": TEXT},
        TEXT_EVENTS[-1],
    ],
    "text in the part and in deltas": [
        *TEXT_EVENTS[:2],
        {"type": "response.content_part.added", "item_id": "item_0", "part": {"type": "output_text", "text": TEXT}},
        *TEXT_EVENTS[3:],
    ],
    "text in the end alone": [CREATED, state("completed", output=[{"type": "message", **TEXTS}])],
    "text in the end alone, behind an item": [
        *TEXT_EVENTS[:2],
        state("completed", output=[{"type": "message", "id": "other", **TEXTS}]),
    ],
    "done twice": [*TEXT_EVENTS[:-1], TEXT_EVENTS[-2], TEXT_EVENTS[-1]],
    "done twice without ids": nameless([*TEXT_EVENTS[:-1], TEXT_EVENTS[-2], TEXT_EVENTS[-1]]),
    "deltas behind done": [*TEXT_EVENTS[:3], TEXT_EVENTS[5], TEXT_EVENTS[3], TEXT_EVENTS[4], TEXT_EVENTS[6]],
    "no added": [TEXT_EVENTS[0], *TEXT_EVENTS[3:]],
    "no added, nothing at all": nameless([TEXT_EVENTS[0], *TEXT_EVENTS[3:]]),
    "each event twice, numbered": [event for event in TEXT_EVENTS for _ in range(2)],
    "the output again at the end": [
        *TEXT_EVENTS[:-1],
        state("completed", output=[{"type": "message", "id": "other", **TEXTS}]),
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_text_comes_once(name: str) -> None:
    """However an event says to which item it belongs, and wherever else the text stands."""
    got = seen("Responses", sse(NAMES[name]))

    assert (None, TEXT, "stop") == (got.error, got.partial.text, got.partial.finish_reason)


CALLED: dict[str, list[Any]] = {
    "no output_index": without(TOOL_EVENTS, "output_index"),
    "no item_id": without(TOOL_EVENTS, "item_id"),
    "neither, one by one": without(ONE_BY_ONE, "item_id", "output_index"),
    "nothing at all, one by one": nameless(ONE_BY_ONE),
    "all output_index 0": all_at(TOOL_EVENTS),
    "all output_index 0, one by one": all_at(ONE_BY_ONE),
    "all output_index 0, no item_id, one by one": without(all_at(ONE_BY_ONE), "item_id"),
    "another id in each event": renamed(TOOL_EVENTS),
    "another id in each event, all 0, one by one": renamed(all_at(ONE_BY_ONE)),
    "one id for all": [{**event, "item_id": "i"} if "item_id" in event else
                       {**event, "item": {**event["item"], "id": "i"}} if "item" in event else event
                       for event in TOOL_EVENTS],
    "arguments already in added": [
        {**event, "item": {**event["item"], "arguments": dict(TWO)[event["item"]["name"]]}}
        if event["type"].endswith("item.added") else event for event in TOOL_EVENTS
    ],
    "arguments in added alone": [
        CREATED,
        item(0, "added", type="function_call", call_id="call_a", name="add", arguments='{"x":1}'),
        item(1, "added", type="function_call", call_id="call_b", name="sub", arguments='{"y":2}'),
        state("completed"),
    ],
    "arguments as objects": [
        CREATED,
        item(0, "done", type="function_call", call_id="call_a", name="add", arguments={"x": 1}),
        item(1, "done", type="function_call", call_id="call_b", name="sub", arguments={"y": 2}),
        state("completed"),
    ],
    "deltas before added": [TOOL_EVENTS[0], TOOL_EVENTS[4], TOOL_EVENTS[3], *TOOL_EVENTS[1:3], *TOOL_EVENTS[5:]],
    "the second in the end alone": [
        *ONE_BY_ONE[:5],
        state("completed", output=[
            {"type": "function_call", "id": "o", "call_id": "call_a", "name": "add", "arguments": '{"x":1}'},
            {"type": "function_call", "id": "p", "call_id": "call_b", "name": "sub", "arguments": '{"y":2}'},
        ]),
    ],
    "again at the end, with other ids": [
        *TOOL_EVENTS[:-1],
        state("completed", output=[
            {"type": "function_call", "id": "o", "call_id": "other", "name": "add", "arguments": '{"x":1}'},
            {"type": "function_call", "id": "p", "call_id": "another", "name": "sub", "arguments": '{"y":2}'},
        ]),
    ],
    "done twice": [*TOOL_EVENTS[:-1], *TOOL_EVENTS[-3:-1], TOOL_EVENTS[-1]],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLED)
def test_calls_come_once(name: str) -> None:
    """All of them, each with its own arguments."""
    got = seen("Responses", sse(CALLED[name]))

    assert got.error is None
    assert TWO == [(call.name, call.arguments) for call in got.partial.tool_calls]
    assert "tool_calls" == got.partial.finish_reason


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ({"status": "failed", "error": {"code": "server_error", "message": "No."}}, ResponseFailed),
        ({"status": "completed", "error": {"code": "server_error", "message": "No."}}, ResponseFailed),
        ({"error": "No."}, ResponseFailed),
        ({"status": "cancelled"}, ResponseFailed),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, ResponseIncomplete),
        ({"status": "incomplete", "incomplete_details": {"reason": "MAX_TOKENS"}}, ResponseIncomplete),
    ],
)
def test_a_completed_event_of_no_completed_response(response: Any, error: type[ProviderError]) -> None:
    """What is in it counts: a failure never ends as completed."""
    end = {"type": "response.completed", "response": {"id": "resp_1", **response}}
    got = seen("Responses", sse([CREATED, delta(0, "output_text", "Hel"), end]))

    assert (True, "Hel") == (isinstance(got.error, error), got.partial.text)
    assert not isinstance(got.error, ResponseIncomplete) or "length" == got.error.reason


@pytest.mark.parametrize("given", [{}, {"x": 1}])
@pytest.mark.parametrize("pieces", [[], ['{"x":1}'], ['{"x"', ":1}"], [""]])
def test_an_input_that_comes_twice(given: Any, pieces: list[str]) -> None:
    """Anthropic's calls begin with an empty input; what begins with more is not doubled by its text."""
    deltas = [add(0, "input_json_delta", partial_json=each) for each in pieces]
    events = [
        START,
        block(0, type="tool_use", id="a", name="add", input=given),
        *deltas,
        over(0),
        finish("tool_use"),
        STOP,
    ]
    got = seen("Anthropic", sse(events))

    expected = "".join(pieces) or json.dumps(given, separators=(",", ":"))
    assert [expected] == [call.arguments for call in got.partial.tool_calls]


def test_two_messages_are_two_texts() -> None:
    """What is not the same is not taken for it."""
    two = [
        item(0, "added", type="message", content=[]),
        delta(0, "output_text", "One."),
        item(0, "done", type="message", content=[{"text": "One."}]),
        item(1, "added", type="message", content=[]),
        delta(1, "output_text", "Two."),
        item(1, "done", type="message", content=[{"text": "Two."}]),
    ]
    for events in (two, all_at(two), nameless(two), without(two, "output_index")):
        got = seen("Responses", sse([CREATED, *events, state("completed")]))

        assert (None, "One.Two.") == (got.error, got.partial.text)


# Retries --------------------------------------------------------------------------------------------------------------

OVERLOADED = {
    "ChatCompletions": [
        {"error": {"message": "Overloaded", "code": 503}},
        {"error": {"message": "Slow down.", "type": "rate_limit_error", "code": None}},
        {"object": "error", "message": "Busy.", "type": "internal_error", "code": 500},
        {"choices": [{"delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "Bad gateway"}}]},
    ],
    "Responses": [
        {"type": "error", "error": {"type": "server_error", "code": "rate_limit_exceeded", "message": "Busy."}},
        {"type": "error", "code": "server_error", "message": "It broke."},
        state("failed", error={"code": "server_error", "message": "It broke."}),
    ],
    "Anthropic": [
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        {"type": "error", "error": {"type": "api_error", "message": "Internal server error"}},
        {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down."}},
    ],
}
BUSY = [(wire, error) for wire, errors in OVERLOADED.items() for error in errors]
SILENT = {
    "ChatCompletions": [chunk(role="assistant", content="")],
    "Responses": [CREATED, state("in_progress")],
    "Anthropic": [START, {"type": "ping"}],
}
ANSWERS = {
    "ChatCompletions": sse(CHAT_TEXT, named=False),
    "Responses": sse(TEXT_EVENTS),
    "Anthropic": sse(ANTHROPIC_TEXT),
}


def asked(wire: str, bodies: Sequence[bytes | Reply], face: str = "sync", retries: Any = QUICK) -> tuple[Seen, int]:
    """What comes of these answers, and how many of them were asked for."""
    requests: list[Request] = []

    def handler(request: Request) -> Reply:
        requests.append(request)
        body = bodies[min(len(requests), len(bodies)) - 1]
        return body if isinstance(body, Reply) else stream_reply(body, None)

    got = use(face, f"{wire}Provider", handler, chat, retry_config=retries)
    return got, len(requests)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("wire", "error"), BUSY)
@pytest.mark.parametrize("begun", [False, True])
def test_a_busy_provider_is_asked_again(face: str, wire: str, error: Any, begun: bool) -> None:
    """It took the request, and said then that it is overloaded: before anything was said, that is a refusal."""
    busy = sse([*(SILENT[wire] if begun else []), error], named=wire != "ChatCompletions")
    got, requests = asked(wire, [busy, busy, ANSWERS[wire]], face)

    assert (None, TEXT, 3) == (got.error, got.partial.text, requests)


@pytest.mark.parametrize(("wire", "error"), BUSY)
def test_what_was_said_is_not_said_twice(wire: str, error: Any) -> None:
    """Behind a word, the failure is the end."""
    got, requests = asked(wire, [BEGINNINGS[wire] + sse([error], named=False), ANSWERS[wire]])

    assert ("Hel", 1) == (got.partial.text, requests)
    assert isinstance(got.error, ResponseFailed)


@pytest.mark.parametrize(
    "error",
    [
        {"message": "No money.", "code": "insufficient_quota", "type": "insufficient_quota"},
        {"message": "No such model.", "code": "model_not_found"},
        {"message": "Too long.", "code": 400},
        {"message": "Bad.", "type": "invalid_request_error"},
    ],
)
@every_wire
def test_what_stays_wrong_is_not_asked_again(wire: str, error: Any) -> None:
    """Only what may pass is."""
    got, requests = asked(wire, [sse([{"type": "error", "error": error}]), ANSWERS[wire]])

    assert (error["message"], 1) == (got.error and got.error.message, requests)


@every_wire
def test_patience_ends(wire: str) -> None:
    """Then the provider's words are raised, with what is known."""
    error = OVERLOADED[wire][0]
    got, requests = asked(
        wire, [sse([error], named=False)], retries=RetryConfig("backoff", BackoffStrategy(1, 1, 1.0, 20), True)
    )
    once, one = asked(wire, [sse([error], named=False)], retries=None)

    assert requests >= 1
    assert 1 == one
    assert (type(got.error), str(got.error)) == (type(once.error), str(once.error))
    assert isinstance(got.error, ResponseFailed)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("header", [{"retry-after": "3600"}, {"retry-after": "61"}, {"retry-after-ms": "90000"},
                                    {"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT"}])  # fmt: skip
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_beyond_the_patience_fails_at_once(face: str, header: dict[str, str], status: int) -> None:
    """Nobody sits before a silent chat for a minute to hear then that it is an hour."""
    waits: list[float] = []
    requests: list[Request] = []

    def handler(request: Request) -> Reply:
        requests.append(request)
        return json_reply({"error": {"message": "Later."}}, status, **header)

    got = use(face, "ChatCompletionsProvider", handler, chat, retry_config=QUICK, waits=waits)

    assert (ProviderRefused, "Later.", 1) == (type(got.error), got.error.message, len(requests))
    assert got.error.retry_after > 60


# Whole answers --------------------------------------------------------------------------------------------------------

WHOLE_ANSWERS: dict[str, Any] = {
    "ChatCompletions": {
        "id": "chat_1", "object": "chat.completion", "model": "m-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    },
    "Responses": {
        "id": "resp_1", "object": "response", "model": "m-1", "status": "completed",
        "output": [{"type": "message", "id": "i", "content": [{"type": "output_text", "text": TEXT}]}],
        "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
    },
    "Anthropic": {
        "id": "msg_1", "type": "message", "model": "m-1", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": TEXT}], "usage": {"input_tokens": 5, "output_tokens": 7},
    },
}  # fmt: skip


@every_wire
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "text/plain", None,
                                  "application/octet-stream", "text/event-stream"])  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_a_whole_answer_is_taken_as_one_piece(wire: str, kind: str | None, indent: int | None) -> None:
    """Some servers do not stream, least of all when there are tools; and call it as they like."""
    body = json.dumps(WHOLE_ANSWERS[wire], indent=indent).encode()
    got = seen(wire, Reply(200, body, {} if kind is None else {"content-type": kind}))

    assert (None, TEXT, "stop") == (got.error, got.partial.text, got.partial.finish_reason)
    assert (5, 7) == (got.partial.usage.input_tokens, got.partial.usage.output_tokens)


@every_wire
@pytest.mark.parametrize("cut", [0, 1, 20, -20, -1])
@pytest.mark.parametrize("lost", [True, False])
def test_half_a_whole_answer_is_none(wire: str, cut: int, lost: bool) -> None:
    """It is never taken for complete."""
    body = json.dumps(WHOLE_ANSWERS[wire]).encode()[:cut]
    got = seen(wire, Reply(200, body, {"content-type": "application/json"}, cut=lost))

    assert isinstance(got.error, StreamMalformed | StreamInterrupted)


@every_wire
@pytest.mark.parametrize("kind", ["text/plain", "application/json", None, "application/octet-stream"])
def test_an_event_stream_by_another_name_is_one(wire: str, kind: str | None) -> None:
    """What is in it counts."""
    got = seen(wire, Reply(200, ANSWERS[wire], {} if kind is None else {"content-type": kind}))

    assert (None, TEXT) == (got.error, got.partial.text)


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/json", "text/event-stream"])
def test_chunks_without_a_frame_are_chunks(kind: str) -> None:
    """A line of JSON each."""
    body = "".join(json.dumps(each) + "\n" for each in CHAT_TEXT if isinstance(each, dict)).encode()
    got = seen("ChatCompletions", Reply(200, body, {"content-type": kind}))

    assert (None, TEXT) == (got.error, got.partial.text)


@every_wire
@pytest.mark.parametrize(
    "body", [b"<html>", b"<!doctype html>\n<p>Sign in", b"Welcome!", b"", b"{", b"[1]", b"7", b"{}"]
)
@pytest.mark.parametrize("kind", ["text/html", "text/plain", "application/json"])
def test_anything_else_is_malformed(wire: str, body: bytes, kind: str) -> None:
    """A page of a proxy is no answer."""
    got = seen(wire, Reply(200, body, {"content-type": kind}))

    assert isinstance(got.error, StreamInterrupted if body == b"{}" and wire == "Responses" else StreamMalformed)


# Reasons of an end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        *((word, "stop") for word in ("stop", "STOP", "eos", "EOS", "end_turn", "eos_token", "end-turn", "Stop_Word")),
        *((word, "tool_calls") for word in ("tool_calls", "tool_use", "TOOL_CALLS", "function_call", "tool-calls")),
        ("max_turns", "max_turns"),
    ],
)  # fmt: skip
def test_words_for_an_end(reason: str, expected: str) -> None:
    """Synonyms are folded, without regard to case; an unknown word is the provider's own, and no failure."""
    got = seen("ChatCompletions", sse([chunk(content="Hel"), chunk(reason), "[DONE]"], named=False))

    assert (None, expected) == (got.error, got.partial.finish_reason)


@pytest.mark.parametrize(
    "reason", ["length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length", "max-output-tokens"]
)
def test_words_for_a_limit(reason: str) -> None:
    """The answer was cut off."""
    got = seen("ChatCompletions", sse([chunk(content="Hel"), chunk(reason), "[DONE]"], named=False))

    assert isinstance(got.error, ResponseIncomplete)
    assert "length" == got.error.reason


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "PROHIBITED_CONTENT", "Recitation"])
def test_words_for_a_filter(reason: str) -> None:
    """Somebody did not like it."""
    got = seen("ChatCompletions", sse([chunk(content="Hel"), chunk(reason), "[DONE]"], named=False))

    assert isinstance(got.error, ResponseIncomplete)
    assert "content_filter" == got.error.reason


# Smaller --------------------------------------------------------------------------------------------------------------


@every_wire
@pytest.mark.parametrize(
    ("address", "path", "query"),
    [
        ("http://test/v1?api-version=2024-10-21", "/v1", {"api-version": "2024-10-21"}),
        ("http://test/v1/?api-version=1&a=b%20c", "/v1", {"api-version": "1", "a": "b c"}),
        ("http://test/openai?key=", "/openai", {"key": ""}),
        ("http://test/v1/", "/v1", {}),
    ],
)
def test_the_query_of_an_address_is_kept(wire: str, address: str, path: str, query: dict[str, str]) -> None:
    """Azure's has the version there; it stands behind the path of the request."""
    from fake_server import FakeTransport
    from legato import provider

    transport = FakeTransport(lambda _: stream_reply(ANSWERS[wire], None))
    import httpx2

    with httpx2.Client(transport=transport) as http:
        client = getattr(provider, f"{wire}Provider")(address, "key", http_client=http)
        got = read(client.chat_stream(model="m", messages=[]))

    assert None is got.error
    assert (True, query) == (transport.requests[0].path.startswith(f"{path}/"), transport.requests[0].query)
    assert "//" not in transport.requests[0].path


TAGGED = ["<think>Hm.</think>Hi", "<think>Hm.</think>\n\nHi", "\n<think>Hm.</think>Hi", "<think>Hm.</think> Hi"]


@pytest.mark.parametrize("text", TAGGED)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_tags_are_split_when_asked(text: str, size: int) -> None:
    """What a server leaves between tags is thinking, wherever it was cut; and stays text if nobody asks."""
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    body = sse([*(chunk(content=each) for each in pieces), chunk("stop"), "[DONE]"], named=False)

    def split(client: Any) -> Any:
        return chat(client, think_tag="think")

    got = use("sync", "ChatCompletionsProvider", lambda _: stream_reply(body, None), split)
    whole = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    one = use("sync", "ChatCompletionsProvider", lambda _: json_reply(whole),
              lambda client: client.chat(model="m", messages=[], think_tag="think"))  # fmt: skip

    assert ("Hm.", "Hi") == (got.partial.thinking, got.partial.text) == (one.thinking, one.text)
    assert got.partial.text == "".join(each.delta for each in got.items)
    assert text == seen("ChatCompletions", body).partial.text


@pytest.mark.parametrize(
    ("text", "thinking", "said"),
    [
        ("Use <think>x</think>", "", "Use <think>x</think>"),
        ("<thinking>x", "", "<thinking>x"),
        ("<thi", "", "<thi"),
        ("  ", "", "  "),
        ("<think>never ends</thi", "never ends</thi", ""),
        ("<think></think>Hi", "", "Hi"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    ],
)
def test_what_is_no_tag_is_text(text: str, thinking: str, said: str) -> None:
    """Only at the beginning, and only as a whole."""
    body = sse([*(chunk(content=letter) for letter in text), chunk("stop"), "[DONE]"], named=False)
    got = use("sync", "ChatCompletionsProvider", lambda _: stream_reply(body, None),
              lambda client: chat(client, think_tag="think"))  # fmt: skip

    assert (None, thinking, said) == (got.error, got.partial.thinking, got.partial.text)


def test_a_paused_answer_has_what_is_wanted_back() -> None:
    """Anthropic goes on with a turn that it has paused when it gets its blocks back, of whatever kind."""
    search = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"type": "web_search_result"}]}
    events = [
        START,
        block(0, type="thinking", thinking="", signature=""),
        add(0, "thinking_delta", thinking="Hm."),
        add(0, "signature_delta", signature="sig"),
        over(0),
        block(1, type="text", text=""),
        add(1, "text_delta", text="Let me"),
        add(1, "text_delta", text=" look."),
        over(1),
        block(2, **search),
        add(2, "input_json_delta", partial_json='{"query":'),
        add(2, "input_json_delta", partial_json='"canon"}'),
        over(2),
        block(3, **found),
        over(3),
        finish("pause_turn"),
        STOP,
    ]
    got = seen("Anthropic", sse(events))

    assert (None, "pause_turn") == (got.error, got.partial.finish_reason)
    assert (
        {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
        {"type": "text", "text": "Let me look."},
        {**search, "input": {"query": "canon"}},
        found,
    ) == got.partial.content


@pytest.mark.parametrize("address", ["localhost:1234", "ftp://test", ""])
def test_an_address_is_http(address: str) -> None:
    """As before."""
    with pytest.raises(InvalidInput):
        use("sync", "ChatCompletionsProvider", address, lambda client: None)


def test_tools_come_as_before() -> None:
    """The documented form, for comparison."""
    assert TWO == [
        (c.name, c.arguments) for c in seen("ChatCompletions", sse(CHAT_TOOLS, named=False)).partial.tool_calls
    ]
