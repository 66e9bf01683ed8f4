"""Model APIs for the tests of agents that ask one: in memory, with scripted answers, and what a provider keeps of them.

``Keeper`` speaks the Responses API and keeps what it wrote in the background, as OpenAI does: each answer can be read
again from any event, and one idempotency key gives one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest

from fake_server import FakeTransport, Handler, Reply, Request, json_reply, stream_reply
from legato.agents.model import Model
from legato.provider import AsyncAnthropicProvider, AsyncChatCompletionsProvider, AsyncResponsesProvider
from provider_streams import USAGE, delta, item, numbered, sse

Event = dict[str, Any]
KINDS = {
    "responses": AsyncResponsesProvider,
    "chat": AsyncChatCompletionsProvider,
    "messages": AsyncAnthropicProvider,
}


def asking(monkeypatch: pytest.MonkeyPatch, handler: Handler, wire: str = "responses", **fields: Any) -> Model:
    """A model that is served in memory."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    def provider(model: Model) -> Any:
        http = httpx2.AsyncClient(transport=FakeTransport(handler))
        return KINDS[model.wire](model.base_url, model.api_key, http_client=http, sleep=sleep, retry_config=None)

    monkeypatch.setattr(Model, "provider", provider)
    return Model("m-1", wire, "http://test/v1", "key", **fields)  # type: ignore[arg-type]


def says(*pieces: str, thinking: Sequence[str] = ()) -> list[Event]:
    """The output of an answer that thinks and talks."""
    thought = [
        item(0, "added", type="reasoning", summary=[]),
        *(delta(0, "reasoning_summary_text", piece, summary_index=0) for piece in thinking),
    ]
    place = 1 if thinking else 0
    text = [
        item(place, "added", type="message", content=[]),
        *(delta(place, "output_text", piece) for piece in pieces),
        item(place, "done", type="message", content=[{"type": "output_text", "text": "".join(pieces)}]),
    ]
    return [*(thought if thinking else []), *text]


def calls(*asked: tuple[str, str, str], text: str = "") -> list[Event]:
    """The output of an answer that calls tools: id, name, arguments (in two pieces)."""
    events = says(text) if text else []
    for place, (id, name, arguments) in enumerate(asked, 1 if text else 0):
        about = {"type": "function_call", "call_id": id, "name": name}
        events += [
            item(place, "added", arguments="", **about),
            delta(place, "function_call_arguments", arguments[:3]),
            delta(place, "function_call_arguments", arguments[3:]),
            item(place, "done", arguments=arguments, **about),
        ]
    return events


class Keeper:
    """See the module's head.

    Args:
        answers: the outputs, in the order in which they are asked for; the last one is given again and again.
        end: how each answer ends.

    Attributes:
        asked: the bodies of the requests for an answer, one for each answer that was begun.
        cancelled: ids of answers that were cancelled.
        streamable: whether kept answers can be read as streams.
        before: called with each request; may answer in our place.
    """

    def __init__(self, *answers: list[Event], end: str = "completed", **fields: Any) -> None:
        self.answers = answers
        self.end = end
        self.fields = {"usage": USAGE, **fields}
        self.asked: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.streamable = True
        self.before: Callable[[Request], Reply | None] = lambda _: None
        self._keys: dict[str, str] = {}

    def __call__(self, request: Request) -> Reply:
        taken = self.before(request)
        if taken is not None:
            return taken
        parts = request.path.removeprefix("/v1/responses").strip("/").split("/")
        if request.method == "POST" and parts == [""]:
            return self._begin(request)
        if parts[1:] == ["cancel"]:
            self.cancelled.append(parts[0])
            return json_reply(self._response(parts[0], "cancelled"))
        if request.query.get("stream") != "true":
            return json_reply({**self._response(parts[0], self.end), "output": self._output(parts[0])})
        if not self.streamable:
            error = {"message": "This response can no longer be streamed.", "type": "invalid_request_error"}
            return json_reply({"error": error}, 400)
        return stream_reply(sse(self.events(parts[0])[int(request.query.get("starting_after", -1)) + 1 :]), None)

    def _begin(self, request: Request) -> Reply:
        key = request.headers["idempotency-key"]
        if key not in self._keys:
            self.asked.append(request.json)
            self._keys[key] = f"resp_{len(self.asked)}"
        return stream_reply(sse(self.events(self._keys[key])), None)

    def events(self, id: str) -> list[Event]:
        """All events of an answer."""
        output = self.answers[min(int(id.removeprefix("resp_")), len(self.answers)) - 1]
        return numbered(
            {"type": "response.created", "response": self._response(id, "in_progress")},
            *output,
            {"type": f"response.{self.end}", "response": self._response(id, self.end)},
        )

    def _response(self, id: str, status: str) -> dict[str, Any]:
        over = self.fields if status == self.end else {}
        return {"id": id, "object": "response", "status": status, "model": "m-1", "output": [], **over}

    def _output(self, id: str) -> list[Any]:
        items: dict[int, Any] = {}
        for event in self.events(id):
            if event["type"].startswith("response.output_item"):
                items[event["output_index"]] = event["item"]
            elif "reasoning" in event["type"]:
                summary = items[event["output_index"]].get("summary") or [{"type": "summary_text", "text": ""}]
                summary = [{**summary[0], "text": summary[0]["text"] + event["delta"]}]
                items[event["output_index"]] = {**items[event["output_index"]], "summary": summary}
        return [items[place] for place in sorted(items)]
