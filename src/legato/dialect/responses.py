"""The Responses dialect on the wire: the events of one run, folded into the events of one response.

A response is a run, and its id is the run's, so any node finds it without an index. Its events are numbered from 0
over the whole response, which one event cannot know by itself; so this fold has a state. It is pure nonetheless: the
same events of the run give the same numbers and the same bytes, for ever. A resume folds again from the run's first
event and leaves out what the client has.

Each part of the answer is one output item. Items are told one after another, also where an agent streams the
arguments of several tool calls at once: clients of this dialect credit a delta to the item that was added last. What
belongs to a later item waits until the earlier one is done.

The bodies of requests are in ``responses_api``, Chat Completions in ``chat``. ``docs/dialects/responses.md`` says what
a client sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from .. import sse
from ..event import TERMINAL, Event

DONE = b"data: [DONE]\n\n"
"""The last frame of a stream whose response has ended."""

HEARTBEAT = b": ping\n\n"
"""The frame for a silence. A whole block: parsers that split at blank lines would take a lone comment line for a part
of the next event. Streams of this dialect have no ids, so no decoder makes an event of it."""

_ID = re.compile(r"resp_(([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})~[0-9a-f]{1,64})", re.ASCII)


def response_id(run: str) -> str:
    """The id of the response that ``run`` is."""
    return f"resp_{run}"


def parse_id(id: str) -> tuple[str, str] | None:
    """Session and run of a response's id; None if no response can have it."""
    match = _ID.fullmatch(id)
    return (match[2], match[1]) if match else None


# What a request may set -----------------------------------------------------------------------------------------------

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Settings(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a request sets besides its input: the agent finds it in ``turn.message.metadata``, by these names.

    The response says it again. None is the same as not given.
    """

    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    background: bool | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None


_DEFAULTS: dict[str, Any] = {
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
    "metadata": {},
    "background": False,
    "store": True,
    "service_tier": "default",
    "safety_identifier": None,
    "prompt_cache_key": None,
    "previous_response_id": None,
}
"""What a response says of what was not set. Strict clients want every field, and numbers where there are numbers."""


def settings(metadata: dict[str, Any]) -> Settings:
    """What was set, from a message's metadata; nothing if that came from another dialect and does not fit."""
    try:
        return msgspec.convert(metadata, Settings)
    except msgspec.ValidationError:
        return Settings()


def _echo(metadata: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in msgspec.structs.asdict(settings(metadata)).items() if value is not None}
    echo = {**_DEFAULTS, **given}
    for field in ("reasoning", "text"):
        echo[field] = {**_DEFAULTS[field], **echo[field]}
    whole: dict[str, Any] = {"description": None, "parameters": None, "strict": None}
    echo["tools"] = [{**(whole if tool.get("type") == "function" else {}), **tool} for tool in echo["tools"]]
    return echo


# Items ----------------------------------------------------------------------------------------------------------------

ItemKind = Literal["message", "refusal", "reasoning", "function_call", "function_call_output"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Payload = dict[str, Any]

_PREFIX: dict[ItemKind, str] = {
    "message": "msg",
    "refusal": "msg",  # on the wire it is a message whose one part is the refusal
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}
_KINDS: dict[str, ItemKind] = {"text.delta": "message", "refusal.delta": "refusal", "thinking.delta": "reasoning"}
_CONTENT: dict[ItemKind, Callable[[str], dict[str, Any]]] = {
    "message": lambda text: {"type": "output_text", "text": text, "annotations": [], "logprobs": []},
    "refusal": lambda text: {"type": "refusal", "refusal": text},
}
"""The one part of a message, by kind."""


class _Item:
    """One output item: what has come of it, and what of that has been told."""

    def __init__(self, kind: ItemKind, run: str, index: int, *, call: str = "", name: str = "") -> None:
        self.kind = kind
        self.index = index
        self.id = f"{_PREFIX[kind]}_{run}_{index}"
        self.call = call
        self.name = name
        self.status: ItemStatus = "in_progress"
        self.begun = False
        self.length = 0
        self._pieces: list[str] = []
        self._untold: list[str] = []

    @property
    def text(self) -> str:
        """All that has come, in characters of text or of the arguments' JSON text."""
        return "".join(self._pieces)

    def extend(self, start: int, text: str) -> None:
        """Add what stands from ``start`` on; what came before is not added twice."""
        text = text[max(self.length - start, 0) :]
        if text:
            self._pieces.append(text)
            self._untold.append(text)
            self.length += len(text)

    def replace(self, text: str) -> None:
        """The whole text, where it is no continuation of what came."""
        if text.startswith(self.text):
            self.extend(0, text)
        else:
            self._pieces, self.length = [text], len(text)
            self._untold = [] if self.begun else [text]

    def take(self) -> str:
        """What has come since the last call."""
        text = "".join(self._untold)
        self._untold.clear()
        return text

    def data(self, *, empty: bool = False) -> dict[str, Any]:
        """The item as the wire has it; as it was when it began, if ``empty``."""
        text = "" if empty else self.text
        status = "in_progress" if empty else self.status
        if self.kind == "reasoning":
            summary = [] if empty else [{"type": "summary_text", "text": text}]
            return {"type": "reasoning", "id": self.id, "summary": summary}
        if self.kind in _CONTENT:
            content = [] if empty else [_CONTENT[self.kind](text)]
            return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": content}
        about = {"type": self.kind, "id": self.id, "status": status}
        if self.kind == "function_call":
            return {**about, "call_id": self.call, "name": self.name, "arguments": text}
        return {**about, "call_id": self.call, "output": text}


def _summary_part(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _begin(item: _Item) -> list[Payload]:
    if item.kind == "function_call_output":
        return []  # it comes whole
    place = _place(item)
    if item.kind in _CONTENT:
        return [{"type": "response.content_part.added", **place, "part": _CONTENT[item.kind]("")}]
    if item.kind == "reasoning":
        return [{"type": "response.reasoning_summary_part.added", **place, "part": _summary_part("")}]
    return []


def _delta(item: _Item, text: str) -> list[Payload]:
    place = {**_place(item), "delta": text}
    if item.kind == "message":
        return [{"type": "response.output_text.delta", **place, "logprobs": []}]
    if item.kind == "refusal":
        return [{"type": "response.refusal.delta", **place}]
    if item.kind == "reasoning":
        return [{"type": "response.reasoning_summary_text.delta", **place}]
    if item.kind == "function_call":
        return [{"type": "response.function_call_arguments.delta", **place}]
    return []


def _end(item: _Item) -> list[Payload]:
    place, text = _place(item), item.text
    if item.kind in _CONTENT:
        whole = {"refusal": text} if item.kind == "refusal" else {"text": text, "logprobs": []}
        return [
            {"type": f"response.{'refusal' if item.kind == 'refusal' else 'output_text'}.done", **place, **whole},
            {"type": "response.content_part.done", **place, "part": _CONTENT[item.kind](text)},
        ]
    if item.kind == "reasoning":
        return [
            {"type": "response.reasoning_summary_text.done", **place, "text": text},
            {"type": "response.reasoning_summary_part.done", **place, "part": _summary_part(text)},
        ]
    if item.kind == "function_call":
        return [{"type": "response.function_call_arguments.done", **place, "name": item.name, "arguments": text}]
    return []


def _place(item: _Item) -> dict[str, Any]:
    inner = {"summary_index": 0} if item.kind == "reasoning" else {"content_index": 0} if item.kind in _CONTENT else {}
    return {"item_id": item.id, "output_index": item.index, **inner}


# The fold -------------------------------------------------------------------------------------------------------------

_INCOMPLETE = {"length": "max_output_tokens", "max_output_tokens": "max_output_tokens",
               "content_filter": "content_filter"}  # fmt: skip
"""Why an answer that was not failed is not complete, by the run's ``finish_reason``."""


class Fold:
    """What the events of one run are in this dialect.

    Args:
        session, run: ids.
        agent: who answers, as far as the session knows; what the run's own events say wins.

    Attributes:
        ended: whether the terminal event has been told.
        sequence: the number of the next event.
    """

    def __init__(self, session: str, run: str, *, agent: str) -> None:
        self.ended = False
        self.sequence = 0
        self._session = session
        self._run = run
        self._agent = agent
        self._status = "queued"
        self._created = self._completed = 0.0
        self._error: dict[str, Any] | None = None
        self._incomplete: dict[str, Any] | None = None
        self._usage: dict[str, Any] | None = None
        self._echo = _DEFAULTS
        self._items: list[_Item] = []
        self._told = 0  # items that are done; all before the one that is being told
        self._parts: dict[int, _Item] = {}
        self._restarted = False
        self._out: list[Payload] = []

    def feed(self, event: Event) -> list[Payload]:
        """The events of the response that ``event`` makes, each with its number. Those of other runs make none."""
        if event.run != self._run or self.ended:
            return []
        self._out = []
        handler = _HANDLERS.get(event.type)
        if handler is not None:
            handler(self, event)
        elif event.type in TERMINAL:
            self._terminal(event)
        return self._out

    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        return {
            "id": response_id(self._run),
            "object": "response",
            "created_at": int(self._created),
            "completed_at": int(self._completed) if self._status == "completed" else None,
            "status": self._status,
            "error": self._error,
            "incomplete_details": self._incomplete,
            "model": self._agent,
            "conversation": {"id": self._session},
            "output": [item.data() for item in self._items],
            "usage": self._usage,
            **self._echo,
        }

    def _emit(self, *payloads: Payload) -> None:
        for payload in payloads:
            self._out.append({"type": payload["type"], "sequence_number": self.sequence, **payload})
            self.sequence += 1

    def _lifecycle(self, name: str) -> None:
        self._emit({"type": f"response.{name}", "response": self.response()})

    def _message(self, event: Event) -> None:
        metadata = event.data.get("metadata", {})
        self._created = event.at
        self._agent = event.data.get("agent") or self._agent
        self._echo = _echo(metadata)
        if self._echo["background"]:
            self._lifecycle("created")
            self._lifecycle("queued")
        else:
            self._status = "in_progress"
            self._lifecycle("created")

    def _started(self, event: Event) -> None:
        self._agent = event.data["agent"]
        self._status = "in_progress"
        self._restarted = event.data["attempt"] > 1
        self._lifecycle("in_progress")

    def _text(self, event: Event) -> None:
        data = event.data
        if data["part"] not in self._parts:
            self._open(_KINDS[event.type], data["part"])
        self._extend(data["part"], data["start"], data["text"])

    def _call_started(self, event: Event) -> None:
        data = event.data
        if data["part"] not in self._parts:
            self._open("function_call", data["part"], call=data["id"], name=data["name"])
            self._tell()

    def _call_delta(self, event: Event) -> None:
        self._extend(event.data["part"], event.data["start"], event.data["arguments"])

    def _call_completed(self, event: Event) -> None:
        item = self._parts[event.data["part"]]
        item.replace(event.data["arguments"])
        item.status = "completed"
        self._tell()

    def _tool_completed(self, event: Event) -> None:
        output = event.data["output"]
        item = self._open("function_call_output", None, call=event.data["id"])
        item.extend(0, output if isinstance(output, str) else msgspec.json.encode(output).decode())
        item.status = "completed" if event.data["success"] else "incomplete"
        self._tell()

    def _open(self, kind: ItemKind, part: int | None, *, call: str = "", name: str = "") -> _Item:
        for other in self._items[self._told :]:
            if other.status == "in_progress" and self._restarted:
                other.status = "incomplete"  # its attempt died, and the next one begins anew
            elif other.status == "in_progress" and other.kind != "function_call":
                other.status = "completed"
        self._restarted = False
        item = _Item(kind, self._run, len(self._items), call=call, name=name)
        self._items.append(item)
        if part is not None:
            self._parts[part] = item
        return item

    def _extend(self, part: int, start: int, text: str) -> None:
        self._restarted = False
        self._parts[part].extend(start, text)
        self._tell()

    def _tell(self) -> None:
        while self._told < len(self._items):
            item = self._items[self._told]
            about = {"output_index": item.index}
            if not item.begun:
                item.begun = True
                whole = item.kind == "function_call_output"
                added = {"type": "response.output_item.added", **about, "item": item.data(empty=not whole)}
                self._emit(added, *_begin(item))
            if text := item.take():
                self._emit(*_delta(item, text))
            if item.status == "in_progress":
                return
            self._emit(*_end(item), {"type": "response.output_item.done", **about, "item": item.data()})
            self._told += 1

    def _terminal(self, event: Event) -> None:
        data = event.data
        completed = event.type == "run.completed"
        reason = _INCOMPLETE.get(data["finish_reason"]) if completed else None
        unfinished = [item for item in self._items[self._told :] if item.status == "in_progress"]
        for item in unfinished:
            cut = not completed or (reason is not None and item is self._items[-1])
            item.status = "incomplete" if cut else "completed"
        self._tell()
        self._usage = _usage(data.get("usage"))
        self._completed = event.at
        self.ended = True
        if reason is not None:
            self._status, self._incomplete = "incomplete", {"reason": reason}
            self._lifecycle("incomplete")
        elif completed:
            self._status = "completed"
            self._lifecycle("completed")
        elif event.type == "run.cancelled":  # this dialect has no event of that name
            self._status = "cancelled"
            self._lifecycle("failed")
        else:
            self._status = "failed"
            self._error = {"code": data["code"], "message": data["message"]}
            self._emit(error_payload(data["code"], data["message"]))
            self._lifecycle("failed")


_HANDLERS: dict[str, Callable[[Fold, Event], None]] = {
    "message.created": Fold._message,
    "run.started": Fold._started,
    "text.delta": Fold._text,
    "refusal.delta": Fold._text,
    "thinking.delta": Fold._text,
    "tool_call.started": Fold._call_started,
    "tool_call.delta": Fold._call_delta,
    "tool_call.completed": Fold._call_completed,
    "tool.completed": Fold._tool_completed,
}


def error_payload(code: str, message: str) -> Payload:
    """An ``error`` event. It carries both shapes that clients know: flat, and nested, at which the SDKs raise."""
    about = {"code": code, "message": message, "param": None}
    return {"type": "error", **about, "error": {"type": "server_error", **about}}


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    given, made = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0), "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens", 0)},
        "total_tokens": given + made,
    }


# Bytes ----------------------------------------------------------------------------------------------------------------


def frame(payload: Payload) -> bytes:
    """One event as bytes. No id: after one, decoders of this dialect's clients take a heartbeat for an event."""
    return sse.encode(sse.Message(data=msgspec.json.encode(payload).decode(), event=payload["type"]))


class ResponseEncoder:
    """The bytes of one reader's stream, event by event.

    Args:
        fold: new; it must be given the run from its first event on.
        after: leave out events up to and with this number; None for all.

    Attributes:
        over: nothing can follow.
    """

    def __init__(self, fold: Fold, *, after: int | None = None) -> None:
        self.over = False
        self._fold = fold
        self._after = -1 if after is None else after

    def encode(self, event: Event) -> bytes:
        """What the reader is sent for ``event``: whole frames, or nothing."""
        if self.over:
            return b""
        if event.type == "session.deleted":
            self.over = True
            gone = error_payload("response_deleted", "The response was deleted while it was being read.")
            return frame({"type": "error", "sequence_number": self._fold.sequence, **gone})
        payloads = [each for each in self._fold.feed(event) if each["sequence_number"] > self._after]
        self.over = self._fold.ended
        frames = b"".join(frame(each) for each in payloads)
        return frames + DONE if self.over and frames else frames

    def heartbeat(self, cursor: int) -> bytes:
        """The frame for a silence."""
        return HEARTBEAT
