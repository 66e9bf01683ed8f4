"""Chat Completions on the wire: the events of one run as chunks, and as one completion.

For clients that speak nothing else. A call that is not the client's to run has no form here, and is left out. There is
no cursor in this dialect: a reader that was cut off reads the response of the same run by ``responses``. The fold is
pure, as all are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .. import sse
from ..event import (
    AnyFact,
    CallCompleted,
    CallDelta,
    CallStarted,
    Event,
    MessageCreated,
    Offset,
    RefusalDelta,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    RunWaiting,
    SessionDeleted,
    Terminal,
    TextDelta,
    TextPiece,
    ThinkingDelta,
    ToolCompleted,
)
from ..json import JsonObject, unbroken
from ..part import Usage
from .responses import CLIENTS, DONE, HEARTBEAT
from .trail import Trail

_FINISH = {"length": "length", "max_output_tokens": "length", "content_filter": "content_filter"}

_FIELDS: dict[type[TextPiece], str] = {
    TextDelta: "content",
    RefusalDelta: "refusal",
    ThinkingDelta: "reasoning_content",
}


def completion_id(run: str) -> str:
    """The id of the completion that ``run`` is."""
    return f"chatcmpl-{run}"


class _ChatCall:
    """What a completion has of a tool call. Copies of the encoder share one that is answered, see ``_own``."""

    __slots__ = ("answered", "arguments", "index", "name")

    def __init__(self, index: int, name: str, arguments: Trail[str], *, answered: bool = False) -> None:
        self.index, self.name, self.arguments, self.answered = index, name, arguments, answered

    def copy(self) -> _ChatCall:
        return _ChatCall(self.index, self.name, self.arguments.copy(), answered=self.answered)


WAITING = b": waiting for a place\n\n"
"""What is said while a run waits; this dialect has no event for it."""


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
        self._calls: dict[str, _ChatCall] = {}
        self._texts: dict[str, Trail[str]] = {field: Trail([]) for field in _FIELDS.values()}
        self._lengths: dict[int, int] = {}
        self._usage: JsonObject | None = None
        self._finish: str | None = None

    def copy(self) -> ChatEncoder:
        """See ``Fold``."""
        copy = ChatEncoder(self._run, agent=self._agent, include_usage=self._include_usage)
        copy.over, copy.failure, copy._created = self.over, self.failure, self._created
        copy._calls = {id: call if call.answered else call.copy() for id, call in self._calls.items()}
        copy._texts = {field: texts.copy() for field, texts in self._texts.items()}
        copy._lengths = dict(self._lengths)
        copy._usage, copy._finish = self._usage, self._finish
        return copy

    def encode(self, event: Event) -> bytes:
        """What a reader is sent for ``event``: whole frames, or nothing."""
        if self.over:
            return b""
        if isinstance(event.fact, SessionDeleted):
            self.over = True
            return _frame(_failure("response_deleted", "The answer was deleted while it was being read."))
        if isinstance(event.fact, RunWaiting) and event.run == self._run:
            return WAITING
        return b"".join(_frame(chunk) for chunk in self.feed(event)) + (DONE if self.over else b"")

    def heartbeat(self, cursor: Offset) -> bytes:
        """The frame for a silence."""
        return HEARTBEAT

    def feed(self, event: Event) -> list[JsonObject]:
        """The chunks that ``event`` makes; those of other runs make none."""
        if event.run != self._run or self.over:
            return []
        handler = _HANDLERS.get(type(event.fact))
        return handler(self, event.fact, event.at) if handler else []

    def completion(self) -> JsonObject:
        """The whole answer, as far as it came."""
        texts = {field: "".join(texts) for field, texts in self._texts.items()}
        message: JsonObject = {"role": "assistant", "content": texts["content"] or None}
        message["refusal"] = texts["refusal"] or None
        if texts["reasoning_content"]:
            message["reasoning_content"] = texts["reasoning_content"]
        calls = [
            {"id": id, "type": "function", "function": {"name": call.name, "arguments": "".join(call.arguments)}}
            for id, call in self._calls.items()
            if not call.answered  # else its client would run it once more
        ]
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return {**self._about("chat.completion"), "choices": [choice], "usage": self._usage}

    def _about(self, kind: str) -> JsonObject:
        return {"id": completion_id(self._run), "object": kind, "created": self._created, "model": self._agent}

    def _chunk(self, delta: JsonObject, finish: str | None = None) -> JsonObject:
        usage = {"usage": None} if self._include_usage else {}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._about("chat.completion.chunk"), "choices": [choice], **usage}

    def _message(self, fact: MessageCreated, at: float) -> list[JsonObject]:
        self._created = int(at)
        self._agent = fact.agent or self._agent
        return [self._chunk({"role": "assistant", "content": ""})]

    def _started(self, fact: RunStarted, at: float) -> list[JsonObject]:
        self._agent = fact.agent
        return []

    def _text(self, fact: TextPiece, at: float) -> list[JsonObject]:
        field = _FIELDS[type(fact)]
        text = self._new(fact.part, fact.start, fact.text)
        self._texts[field].append(text)
        return [self._chunk({field: text})] if text else []

    def _call_started(self, fact: CallStarted, at: float) -> list[JsonObject]:
        if fact.id in self._calls or fact.by not in CLIENTS:
            return []
        self._calls[fact.id] = call = _ChatCall(len(self._calls), fact.name, Trail([]))
        about = {"id": fact.id, "type": "function", "function": {"name": fact.name, "arguments": ""}}
        return [self._chunk({"tool_calls": [{"index": call.index, **about}]})]

    def _call_delta(self, fact: CallDelta, at: float) -> list[JsonObject]:
        return self._arguments(fact.id, self._new(fact.part, fact.start, fact.arguments))

    def _call_completed(self, fact: CallCompleted, at: float) -> list[JsonObject]:
        chunks = self._arguments(fact.id, self._new(fact.part, 0, fact.arguments))
        call = self._own(fact.id)
        if call is not None:
            call.arguments = Trail([fact.arguments])
        return chunks

    def _own(self, id: str) -> _ChatCall | None:
        """A call that can be changed: no copy of this encoder has it."""
        call = self._calls.get(id)
        if call is not None and call.answered:
            call = self._calls[id] = call.copy()
        return call

    def _arguments(self, id: str, text: str) -> list[JsonObject]:
        call = self._own(id)
        if call is None:
            return []  # a call that never began
        call.arguments.append(text)
        delta = {"tool_calls": [{"index": call.index, "function": {"arguments": text}}]}
        return [self._chunk(delta)] if text else []

    def _tool_completed(self, fact: ToolCompleted, at: float) -> list[JsonObject]:
        if fact.id in self._calls:
            self._calls[fact.id].answered = True
        return []

    def _new(self, part: int, start: int, text: str) -> str:
        """What of a delta has not been told yet."""
        have = self._lengths.get(part, 0)
        text = text[max(have - start, 0) :]
        self._lengths[part] = have + len(text)
        return text

    def _terminal(self, fact: Terminal, at: float) -> list[JsonObject]:
        self.over = True
        self._usage = _usage(fact.used or Usage())
        if isinstance(fact, RunFailed):
            self.failure = {"code": fact.code, "message": fact.message}
            return [_failure(**self.failure)]
        self._finish = "stop"
        if isinstance(fact, RunCompleted):
            stop = "stop" if all(call.answered for call in self._calls.values()) else "tool_calls"
            self._finish = _FINISH.get(fact.finish_reason, stop)
        chunks = [self._chunk({}, self._finish)]
        if self._include_usage:
            chunks.append({**self._about("chat.completion.chunk"), "choices": [], "usage": self._usage})
        return chunks


_HANDLERS: dict[type[AnyFact], Callable[[ChatEncoder, Any, float], list[JsonObject]]] = {
    MessageCreated: ChatEncoder._message,
    RunStarted: ChatEncoder._started,
    TextDelta: ChatEncoder._text,
    RefusalDelta: ChatEncoder._text,
    ThinkingDelta: ChatEncoder._text,
    CallStarted: ChatEncoder._call_started,
    CallDelta: ChatEncoder._call_delta,
    CallCompleted: ChatEncoder._call_completed,
    ToolCompleted: ChatEncoder._tool_completed,
    RunCompleted: ChatEncoder._terminal,
    RunFailed: ChatEncoder._terminal,
    RunCancelled: ChatEncoder._terminal,
}


def _failure(code: str, message: str) -> JsonObject:
    return {"error": {"message": message, "type": "server_error", "code": code, "param": None}}


def _usage(usage: Usage) -> JsonObject:
    given, made = usage.input_tokens, usage.output_tokens
    cached = {"cached_tokens": usage.cached_tokens}
    thought = {"reasoning_tokens": usage.reasoning_tokens}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made,
            "prompt_tokens_details": cached, "completion_tokens_details": thought}  # fmt: skip


def _frame(chunk: JsonObject) -> bytes:
    return sse.encode(sse.SSEMessage(data=unbroken(msgspec.json.encode(chunk)).decode()))
