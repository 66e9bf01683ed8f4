"""Chat Completions on the wire: the events of one run as chunks, and as one completion.

For clients that speak nothing else. There is no cursor in this dialect: a reader that was cut off reads the response
of the same run by ``responses``. The fold is pure, as all are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .. import sse
from ..event import TERMINAL, Event
from .responses import DONE, HEARTBEAT

_FINISH = {"length": "length", "max_output_tokens": "length", "content_filter": "content_filter"}

_FIELDS = {"text.delta": "content", "refusal.delta": "refusal", "thinking.delta": "reasoning_content"}


def completion_id(run: str) -> str:
    """The id of the completion that ``run`` is."""
    return f"chatcmpl-{run}"


class ChatEncoder:
    """The chunks of one run, event by event.

    Args:
        run: its id; it must be given from its first event on.
        agent: who answers, as far as the session knows.
        include_usage: whether the client asked for a chunk with the usage.

    Attributes:
        over: nothing can follow.
        failure: ``code`` and ``message`` of a run that failed.
    """

    def __init__(self, run: str, *, agent: str, include_usage: bool = False) -> None:
        self.over = False
        self.failure: dict[str, str] | None = None
        self._run = run
        self._agent = agent
        self._include_usage = include_usage
        self._created = 0
        self._calls: dict[str, dict[str, Any]] = {}  # by id: what the completion has of it
        self._unanswered: set[str] = set()
        self._texts: dict[str, list[str]] = {field: [] for field in _FIELDS.values()}
        self._lengths: dict[int, int] = {}
        self._usage: dict[str, Any] | None = None
        self._finish: str | None = None

    def encode(self, event: Event) -> bytes:
        """What a reader is sent for ``event``: whole frames, or nothing."""
        if self.over:
            return b""
        if event.type == "session.deleted":
            self.over = True
            return _frame(_failure("response_deleted", "The answer was deleted while it was being read."))
        return b"".join(_frame(chunk) for chunk in self.feed(event)) + (DONE if self.over else b"")

    def heartbeat(self, cursor: int) -> bytes:
        """The frame for a silence."""
        return HEARTBEAT

    def feed(self, event: Event) -> list[dict[str, Any]]:
        """The chunks that ``event`` makes; those of other runs make none."""
        if event.run != self._run or self.over:
            return []
        if event.type in TERMINAL:
            return self._terminal(event)
        handler = _HANDLERS.get(event.type)
        return handler(self, event) if handler else []

    def completion(self) -> dict[str, Any]:
        """The whole answer, as far as it came."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts["content"]) or None}
        message["refusal"] = "".join(self._texts["refusal"]) or None
        if self._texts["reasoning_content"]:
            message["reasoning_content"] = "".join(self._texts["reasoning_content"])
        if self._calls:
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
                for id, call in self._calls.items()
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return {**self._about("chat.completion"), "choices": [choice], "usage": self._usage}

    def _about(self, kind: str) -> dict[str, Any]:
        return {"id": completion_id(self._run), "object": kind, "created": self._created, "model": self._agent}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        usage = {"usage": None} if self._include_usage else {}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._about("chat.completion.chunk"), "choices": [choice], **usage}

    def _message(self, event: Event) -> list[dict[str, Any]]:
        self._created = int(event.at)
        self._agent = event.data.get("agent") or self._agent
        return [self._chunk({"role": "assistant", "content": ""})]

    def _started(self, event: Event) -> list[dict[str, Any]]:
        self._agent = event.data["agent"]
        return []

    def _text(self, event: Event) -> list[dict[str, Any]]:
        data = event.data
        field = _FIELDS[event.type]
        text = self._new(data["part"], data["start"], data["text"])
        self._texts[field].append(text)
        return [self._chunk({field: text})] if text else []

    def _call_started(self, event: Event) -> list[dict[str, Any]]:
        data = event.data
        if data["id"] in self._calls:
            return []
        self._calls[data["id"]] = {"index": len(self._calls), "name": data["name"], "arguments": ""}
        self._unanswered.add(data["id"])
        about = {"id": data["id"], "type": "function", "function": {"name": data["name"], "arguments": ""}}
        return [self._chunk({"tool_calls": [{"index": len(self._calls) - 1, **about}]})]

    def _call_delta(self, event: Event) -> list[dict[str, Any]]:
        data = event.data
        return self._arguments(data["id"], self._new(data["part"], data["start"], data["arguments"]))

    def _call_completed(self, event: Event) -> list[dict[str, Any]]:
        data = event.data
        chunks = self._arguments(data["id"], self._new(data["part"], 0, data["arguments"]))
        self._calls[data["id"]]["arguments"] = data["arguments"]
        return chunks

    def _arguments(self, id: str, text: str) -> list[dict[str, Any]]:
        call = self._calls[id]
        call["arguments"] += text
        delta = {"tool_calls": [{"index": call["index"], "function": {"arguments": text}}]}
        return [self._chunk(delta)] if text else []

    def _tool_completed(self, event: Event) -> list[dict[str, Any]]:
        self._unanswered.discard(event.data["id"])
        return []

    def _new(self, part: int, start: int, text: str) -> str:
        """What of a delta has not been told yet."""
        have = self._lengths.get(part, 0)
        text = text[max(have - start, 0) :]
        self._lengths[part] = have + len(text)
        return text

    def _terminal(self, event: Event) -> list[dict[str, Any]]:
        self.over = True
        self._usage = _usage(event.data.get("usage"))
        if event.type == "run.failed":
            self.failure = {"code": event.data["code"], "message": event.data["message"]}
            return [_failure(**self.failure)]
        stop = "tool_calls" if self._unanswered else "stop"
        self._finish = _FINISH.get(event.data.get("finish_reason", ""), stop)
        chunks = [self._chunk({}, self._finish)]
        if self._include_usage:
            chunks.append({**self._about("chat.completion.chunk"), "choices": [], "usage": self._usage})
        return chunks


_HANDLERS: dict[str, Callable[[ChatEncoder, Event], list[dict[str, Any]]]] = {
    "message.created": ChatEncoder._message,
    "run.started": ChatEncoder._started,
    "text.delta": ChatEncoder._text,
    "refusal.delta": ChatEncoder._text,
    "thinking.delta": ChatEncoder._text,
    "tool_call.started": ChatEncoder._call_started,
    "tool_call.delta": ChatEncoder._call_delta,
    "tool_call.completed": ChatEncoder._call_completed,
    "tool.completed": ChatEncoder._tool_completed,
}


def _failure(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "code": code, "param": None}}


def _usage(usage: dict[str, Any] | None) -> dict[str, Any]:
    usage = usage or {}
    given, made = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    cached = {"cached_tokens": usage.get("cached_tokens", 0)}
    thought = {"reasoning_tokens": usage.get("reasoning_tokens", 0)}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made,
            "prompt_tokens_details": cached, "completion_tokens_details": thought}  # fmt: skip


def _frame(chunk: dict[str, Any]) -> bytes:
    return sse.encode(sse.Message(data=msgspec.json.encode(chunk).decode()))
