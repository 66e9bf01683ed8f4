"""Model APIs that refuse as their providers do, in the providers' own words, and keep account of what they were told.

Each answers a turn with two steps of tool calls and then with text. What it wants back carries its name, so that a test
can see where it went: ``SEALS`` finds it in any text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from fake_server import FakeTransport, Reply, Request, json_reply, stream_reply
from legato.agents.model import Model
from model_server import KINDS
from provider_streams import delta, item, numbered, sse

Json = dict[str, Any]
SEALS = re.compile(r"seal-(\w+)-\d+")


class Refused(Exception):
    """A rule was broken; the status and the provider's words."""

    def __init__(self, words: str, status: int = 400) -> None:
        super().__init__(words)
        self.status = status


class Strict:
    """One provider. ``step`` says what the model says at a place of its turn; the rest is its API.

    Attributes:
        told: the bodies of the requests that it answered.
        refused: its words, each time that it refused.
    """

    name = ""
    wire = "chat"
    host = ""

    def __init__(self) -> None:
        self.told: list[Json] = []
        self.refused: list[str] = []
        self.count = 0
        self.tool = "add"

    @property
    def model(self) -> str:
        return f"{self.name}-large"

    def seal(self) -> str:
        self.count += 1
        return f"seal-{self.name}-{self.count}"

    def __call__(self, request: Request) -> Reply:
        body = request.json
        try:
            self.check(body)
        except Refused as refusal:
            self.refused.append(str(refusal))
            return json_reply(self.error(str(refusal)), refusal.status)
        self.told.append(body)
        return stream_reply(self.answer(body), None)

    def error(self, words: str) -> Json:
        return {"error": {"message": words, "type": "invalid_request_error", "param": None, "code": None}}

    def check(self, body: Json) -> None:
        raise NotImplementedError

    def answer(self, body: Json) -> bytes:
        raise NotImplementedError


def expect(met: object, words: str, status: int = 400) -> None:
    if not met:
        raise Refused(words, status)


# Chat Completions -----------------------------------------------------------------------------------------------------


class StrictChat(Strict):
    """What all of them want: outputs behind their calls, one for each."""

    def steps(self, body: Json) -> int:
        """The steps of the present turn."""
        messages = body["messages"]
        last = max(place for place, message in enumerate(messages) if message["role"] == "user")
        return sum(message["role"] == "assistant" for message in messages[last:])

    def check(self, body: Json) -> None:
        waiting: list[str] = []
        for message in body["messages"]:
            if message["role"] == "tool":
                expect(message["tool_call_id"] in waiting, "Messages with role 'tool' must answer a tool call.")
                waiting.remove(message["tool_call_id"])
                continue
            expect(not waiting, "An assistant message with 'tool_calls' must be followed by tool messages.")
            if message["role"] == "assistant":
                expect(message.get("content") or message.get("tool_calls"), "Assistant message must have content.")
                waiting = [call["id"] for call in message.get("tool_calls") or ()]
                expect(len(set(waiting)) == len(waiting), "Duplicate ids of tool calls.")
        expect(not waiting, "An assistant message with 'tool_calls' must be followed by tool messages.")

    def ids(self) -> Iterator[str]:
        while True:
            self.count += 1
            yield f"call_{self.count:02d}_{self.name}"

    def answer(self, body: Json) -> bytes:
        step = self.steps(body)
        deltas: list[Json] = [*self.before()]
        if step < 2:
            deltas += [{"content": "I add. "}] if step else []
            for index, id in zip(range(2 - step), self.ids(), strict=False):
                function = {"name": self.tool, "arguments": f'{{"x": {index}}}'}
                deltas.append({"tool_calls": [{"index": index, "id": id, "function": function, **self.beside(index)}]})
        else:
            deltas += [{"content": "The sum"}, {"content": f" of {self.name}.", **self.last()}]
        choices = [{"index": 0, "delta": each, "finish_reason": None} for each in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if step < 2 else "stop"})
        chunks = [{"id": "chat_1", "model": self.model, "choices": [choice]} for choice in choices]
        return sse([*chunks, "[DONE]"], named=False)

    def before(self) -> list[Json]:
        return []

    def beside(self, index: int) -> Json:
        return {}

    def last(self) -> Json:
        return {}


class DeepSeek(StrictChat):
    """Thinks by default, and wants all of it back."""

    name = "deepseek"
    host = "api.deepseek.com"

    def before(self) -> list[Json]:
        return [{"reasoning_content": "Hm, "}, {"reasoning_content": self.seal()}]

    def check(self, body: Json) -> None:
        super().check(body)
        for message in body["messages"]:
            if message["role"] == "assistant":
                expect(
                    message.get("reasoning_content"),
                    "The `reasoning_content` in the thinking mode must be passed back to the API.",
                )


class OldDeepSeek(DeepSeek):
    """As it was before: only what is of the present turn."""

    def check(self, body: Json) -> None:
        StrictChat.check(self, body)
        messages = body["messages"]
        last = max(place for place, message in enumerate(messages) if message["role"] == "user")
        for place, message in enumerate(messages[last:], last):
            if message["role"] == "assistant":
                expect(
                    message.get("reasoning_content"),
                    f"Missing `reasoning_content` field in the assistant message at message index {place}. For more "
                    "information, please refer to https://api-docs.deepseek.com/guides/thinking_mode#tool-calls",
                )


class Gemini(StrictChat):
    """Signs the first call of each step, and its texts."""

    name = "gemini"
    host = "generativelanguage.googleapis.com"

    def signed(self) -> Json:
        return {"extra_content": {"google": {"thought_signature": self.seal()}}}

    def beside(self, index: int) -> Json:
        return {} if index else self.signed()

    def last(self) -> Json:
        return self.signed()

    def error(self, words: str) -> Any:
        return [{"error": {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}}]

    def check(self, body: Json) -> None:
        super().check(body)
        before = ""
        for message in body["messages"]:
            if calls := message.get("tool_calls"):
                expect(
                    before in ("user", "tool"),
                    "Please ensure that function call turn comes immediately after a user turn or after a function "
                    "response turn.",
                )
                google = calls[0].get("extra_content", {}).get("google", {})
                expect(
                    google.get("thought_signature"),
                    "Function call is missing a thought_signature in functionCall parts. This is required for tools to "
                    "work correctly, and missing thought_signature may lead to degraded model performance. Additional "
                    f"data, function call `default_api:{calls[0]['function']['name']}`, position 2.",
                )
            before = message["role"]


class Mistral(StrictChat):
    """Wants its own form of ids, its own order, and no field that it does not know."""

    name = "mistral"
    host = "api.mistral.ai"
    fields = frozenset({"role", "content", "tool_calls", "tool_call_id", "name", "prefix"})

    def ids(self) -> Iterator[str]:
        while True:
            self.count += 1
            yield f"Mist{self.count:05d}"

    def error(self, words: str) -> Json:
        return {"object": "error", "message": words, "type": "invalid_request_error", "param": None, "code": "3230"}

    def check(self, body: Json) -> None:
        before = ""
        for message in body["messages"]:
            role = message["role"]
            more = message.keys() - self.fields
            for call in message.get("tool_calls") or ():
                more |= call.keys() - {"id", "type", "function"}
            expect(not more, f"Extra inputs are not permitted: body.messages.{sorted(more)}", 422)
            expect(not (role == "user" and before == "tool"), "Unexpected role 'user' after role 'tool'")
            for id in [*(call["id"] for call in message.get("tool_calls") or ()), message.get("tool_call_id")]:
                expect(
                    id is None or re.fullmatch("[a-zA-Z0-9]{9}", id),
                    f"Tool call id was {id} but must be a-z, A-Z, 0-9, with a length of 9.",
                )
            before = role
        super().check(body)
        last = body["messages"][-1]
        expect(
            last["role"] in ("user", "tool") or last.get("prefix"),
            "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant",
        )


# Messages -------------------------------------------------------------------------------------------------------------


class Anthropic(Strict):
    """Thinks, in the open or not, and wants that back as it was."""

    name = "anthropic"
    wire = "messages"
    host = "api.anthropic.com"

    def __init__(self) -> None:
        super().__init__()
        self.thought: list[Json] = []

    def error(self, words: str) -> Json:
        return {"type": "error", "error": {"type": "invalid_request_error", "message": words}, "request_id": "req_1"}

    def check(self, body: Json) -> None:
        messages = body["messages"]
        expect(messages and messages[0]["role"] == "user", 'messages: first message must use the "user" role')
        seen: set[str] = set()
        calls: list[str] = []
        for place, message in enumerate(messages):
            content = message["content"]
            at = f"messages.{place}"
            expect(place == 0 or messages[place - 1]["role"] != message["role"], f"{at}: roles must alternate")
            expect(
                content,
                f"{at}: all messages must have non-empty content except for the optional final assistant message",
            )
            kinds = [block["type"] for block in content]
            results = [block["tool_use_id"] for block in content if block["type"] == "tool_result"]
            expect(
                sorted(results) == sorted(calls) and kinds[: len(results)] == ["tool_result"] * len(results),
                f"{at}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(calls)}. "
                "Each `tool_use` block must have a corresponding `tool_result` block in the next message.",
            )
            calls = [block["id"] for block in content if block["type"] == "tool_use"]
            for id in calls:
                words = "String should match pattern '^[a-zA-Z0-9_-]+$'"
                expect(re.fullmatch("[a-zA-Z0-9_-]{1,64}", id), f"{at}.content.0.tool_use.id: {words}")
                expect(id not in seen, f"{at}.content.1: `tool_use` ids must be unique")
                seen.add(id)
            for block in content:
                if block["type"] == "text":
                    expect(block["text"].strip(), "messages: text content blocks must contain non-whitespace text")
                elif block["type"] in ("thinking", "redacted_thinking"):
                    expect(block in self.thought, f"{at}.content.0: Invalid `signature` in `thinking` block")
            expect(
                not kinds[-1].endswith("thinking"),
                f"{at}: The final block in an assistant message cannot be `thinking`",
            )
        expect(not calls, "`tool_use` ids were found without `tool_result` blocks immediately after")
        if messages[-1]["role"] == "assistant" and messages[-1]["content"][-1]["type"] == "text":
            words = "messages: final assistant content cannot end with trailing whitespace"
            expect(messages[-1]["content"][-1]["text"] == messages[-1]["content"][-1]["text"].rstrip(), words)
        if body.get("thinking"):
            turn = self.turn(body)
            kind = turn[0]["content"][0]["type"] if turn else "thinking"
            expect(
                kind.endswith("thinking"),
                f"messages.{len(messages) - 2}.content.0.type: Expected `thinking` or `redacted_thinking`, but found "
                f"`{kind}`. When `thinking` is enabled, a final `assistant` message must start with a thinking block "
                "(preceeding the lastmost set of `tool_use` and `tool_result` blocks).",
            )

    def turn(self, body: Json) -> list[Json]:
        """The assistant's messages of the present turn."""
        messages = body["messages"]
        asked = [n for n, m in enumerate(messages) if m["role"] == "user" and m["content"][-1]["type"] != "tool_result"]
        return [message for message in messages[max(asked) :] if message["role"] == "assistant"]

    def answer(self, body: Json) -> bytes:
        step = len(self.turn(body))
        blocks: list[Json] = []
        if body.get("thinking"):
            blocks.append({"type": "thinking", "thinking": f"Step {step}.", "signature": self.seal()})
            if not step:
                blocks.append({"type": "redacted_thinking", "data": self.seal()})
        if step < 2:
            blocks += [{"type": "text", "text": "I add. "}] if step else []
            for index in range(2 - step):
                self.count += 1
                input = {"x": index}
                blocks.append({"type": "tool_use", "id": f"toolu_{self.count}", "name": self.tool, "input": input})
        else:
            blocks.append({"type": "text", "text": f"The sum of {self.name}."})
        self.thought += [block for block in blocks if block["type"].endswith("thinking")]
        return sse(anthropic_events(self.model, blocks, "tool_use" if step < 2 else "end_turn"))


def anthropic_events(model: str, blocks: list[Json], reason: str) -> Iterator[Json]:
    """The events in which blocks come."""
    usage = {"input_tokens": 1, "output_tokens": 1}
    yield {"type": "message_start", "message": {"id": "msg_1", "model": model, "usage": usage}}
    for index, block in enumerate(blocks):
        empty = {**block, **{name: "" for name in ("thinking", "signature", "text") if name in block}}
        empty |= {"input": {}} if "input" in block else {}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for name in ("thinking", "signature", "text"):
            if name in block:
                for piece in (block[name][:3], block[name][3:]):
                    change = {"type": f"{name}_delta", name: piece}
                    yield {"type": "content_block_delta", "index": index, "delta": change}
        if "input" in block:
            change = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield {"type": "content_block_delta", "index": index, "delta": change}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}
    yield {"type": "message_stop"}


# Responses ------------------------------------------------------------------------------------------------------------


class OpenAI(Strict):
    """Keeps nothing: its reasoning is sealed, and comes back, before what it led to."""

    name = "openai"
    wire = "responses"
    host = "api.openai.com"

    def __init__(self) -> None:
        super().__init__()
        self.led: dict[str, str] = {}  # from an item's id to that of the reasoning before it
        self.sealed: dict[str, str] = {}

    def check(self, body: Json) -> None:
        items = body["input"]
        open_calls: dict[str, int] = {}
        for place, each in enumerate(items):
            kind, id = each.get("type"), each.get("id")
            if kind == "reasoning":
                expect(
                    each.get("encrypted_content"),
                    f"Item with id '{id}' not found. Items are not persisted when `store` is set to false. Try again "
                    "with `store` set to true, or remove this item from your input.",
                    404,
                )
                expect(
                    self.sealed.get(id or "") == each["encrypted_content"],
                    f"The encrypted content for item {id} could not be verified. Reason: Encrypted content could not "
                    "be decrypted or parsed.",
                )
                expect("status" not in each, f"Unknown parameter: 'input[{place}].status'.")
                following = items[place + 1] if place + 1 < len(items) else {}
                expect(
                    self.led.get(following.get("id") or "") == id,
                    f"Item '{id}' of type 'reasoning' was provided without its required following item.",
                )
            elif id is not None:
                required = self.led.get(id)
                expect(
                    required,
                    f"Item with id '{id}' not found. Items are not persisted when `store` is set to false.",
                    404,
                )
                expect(
                    any(one.get("id") == required for one in items[:place]),
                    f"Item '{id}' of type '{kind}' was provided without its required 'reasoning' item: '{required}'.",
                )
            if kind == "function_call":
                expect(len(each["call_id"]) <= 64, "string too long. Expected a string with maximum length 64")
                open_calls[each["call_id"]] = place
            elif kind == "function_call_output":
                expect(open_calls.pop(each["call_id"], None) is not None,
                       f"No tool call found for function call output with call_id {each['call_id']}.")  # fmt: skip
        expect(not open_calls, f"No tool output found for function call {next(iter(open_calls), '')}.")

    def steps(self, body: Json) -> int:
        items = body["input"]
        last = max(n for n, each in enumerate(items) if each.get("role") == "user")
        kinds = [each.get("type") for each in items[last:]]
        return sum(one == "function_call_output" != two for one, two in zip(kinds, [*kinds[1:], ""], strict=True))

    def answer(self, body: Json) -> bytes:
        step = self.steps(body)
        self.count += 1
        reasoning, seal = f"rs_{self.count}", self.seal()
        included = "reasoning.encrypted_content" in (body.get("include") or ())
        self.sealed[reasoning] = seal
        events = [
            item(0, "added", type="reasoning", id=reasoning, summary=[]),
            delta(0, "reasoning_summary_text", f"Step {step}.", summary_index=0, item_id=reasoning),
            item(0, "done", type="reasoning", id=reasoning, status=None,
                 summary=[{"type": "summary_text", "text": f"Step {step}."}],
                 **({"encrypted_content": seal} if included else {})),
        ]  # fmt: skip
        if step < 2:
            for index in range(2 - step):
                self.count += 1
                id, arguments = f"fc_{self.count}", f'{{"x": {index}}}'
                self.led[id] = reasoning
                call = {"type": "function_call", "id": id, "call_id": f"call_{self.count}", "name": self.tool}
                events += [
                    item(index + 1, "added", arguments="", **call),
                    delta(index + 1, "function_call_arguments", arguments, item_id=id),
                    item(index + 1, "done", arguments=arguments, status="completed", **call),
                ]
        else:
            self.count += 1
            id, text = f"msg_{self.count}", f"The sum of {self.name}."
            self.led[id] = reasoning
            message = {"type": "message", "id": id, "role": "assistant", "phase": "final_answer"}
            events += [
                item(1, "added", content=[], **message),
                delta(1, "output_text", text, item_id=id, content_index=0),
                item(1, "done", content=[{"type": "output_text", "text": text}], status="completed", **message),
            ]
        response = {"id": f"resp_{self.count}", "object": "response", "model": self.model, "output": []}
        return sse(
            numbered(
                {"type": "response.created", "response": {**response, "status": "in_progress"}},
                *events,
                {"type": "response.completed", "response": {**response, "status": "completed"}},
            )
        )


ALL: dict[str, Callable[[], Strict]] = {
    "deepseek": DeepSeek,
    "gemini": Gemini,
    "mistral": Mistral,
    "anthropic": Anthropic,
    "openai": OpenAI,
}


def served(monkeypatch: pytest.MonkeyPatch, *strict: Strict, known: bool = True) -> dict[str, Model]:
    """Models that are served in memory, at the addresses of their providers or where nobody knows them."""
    hosts = {each.host if known else f"{each.name}.test": each for each in strict}

    def provider(model: Model) -> Any:
        http = httpx2.AsyncClient(transport=FakeTransport(hosts[model.base_url.split("/")[2]]))
        return KINDS[model.wire](model.base_url, model.api_key, http_client=http, retry_config=None)

    monkeypatch.setattr(Model, "provider", provider)
    return {
        each.name: Model("m-1", each.wire, f"https://{host}/v1", "key")  # type: ignore[arg-type]
        for host, each in hosts.items()
    }
