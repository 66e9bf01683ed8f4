"""An item of a response's output, as it grows, and what clients are told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from ..items import OWN_LABEL
from ..json import JsonObject
from .trail import Trail

ItemKind = Literal["message", "refusal", "reasoning", "function_call", "function_call_output", "mcp_call"]
ItemStatus = Literal["in_progress", "calling", "completed", "incomplete", "failed"]
Payload = JsonObject

_PREFIX: dict[ItemKind, str] = {
    "message": "msg",
    "refusal": "msg",  # on the wire it is a message whose one part is the refusal
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "mcp_call": "mcp",
}
NO_RESULT = "The run ended before this call had a result."
"""The error of a call of our own that nothing has come of."""
CALLS = ("function_call", "mcp_call")
"""Kinds whose text is arguments."""
_CONTENT: dict[ItemKind, Callable[[str], JsonObject]] = {
    "message": lambda text: {"type": "output_text", "text": text, "annotations": [], "logprobs": []},
    "refusal": lambda text: {"type": "refusal", "refusal": text},
}
"""The one part of a message, by kind."""


class OutputItem:
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
        self.output: str | None = None
        self.error: str | None = None
        self._pieces: Trail[str] = Trail([])
        self._untold: list[str] = []

    def copy(self) -> OutputItem:
        """The same item as far as it has come."""
        copy = OutputItem(self.kind, "", self.index, call=self.call, name=self.name)
        copy.id, copy.status, copy.begun, copy.length = self.id, self.status, self.begun, self.length
        copy.output, copy.error = self.output, self.error
        copy._pieces, copy._untold = self._pieces.copy(), list(self._untold)
        return copy

    @property
    def over(self) -> bool:
        """Whether nothing more can come of it."""
        return self.status not in ("in_progress", "calling")

    def cut(self) -> None:
        """Be over without an end."""
        self.status = "incomplete"
        if self.kind == "mcp_call":
            self.error = NO_RESULT
            self.replace(sound(self.text))

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
            self._pieces, self.length = Trail([text]), len(text)
            self._untold = [] if self.begun else [text]

    def take(self) -> str:
        """What has come since the last call."""
        text = "".join(self._untold)
        self._untold.clear()
        return text

    def data(self, *, empty: bool = False) -> JsonObject:
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
        if self.kind == "mcp_call":
            asked = {"approval_request_id": None, "server_label": OWN_LABEL, "name": self.name, "arguments": text}
            came = {"output": self.output, "error": None if self.error is None else _failed_call(self.error)}
            return {**about, **asked, **came}
        if self.kind == "function_call":
            return {**about, "call_id": self.call, "name": self.name, "arguments": text}
        return {**about, "call_id": self.call, "output": text}

    def begin(self) -> list[Payload]:
        """What is told once it has been added."""
        if self.kind == "function_call_output":
            return []  # it comes whole
        place = self._place()
        if self.kind in _CONTENT:
            return [{"type": "response.content_part.added", **place, "part": _CONTENT[self.kind]("")}]
        if self.kind == "reasoning":
            return [{"type": "response.reasoning_summary_part.added", **place, "part": _summary_part("")}]
        return [{"type": "response.mcp_call.in_progress", **place}] if self.kind == "mcp_call" else []

    def delta(self, text: str) -> list[Payload]:
        """What is told of a piece of its text."""
        place = {**self._place(), "delta": text}
        if self.kind == "message":
            return [{"type": "response.output_text.delta", **place, "logprobs": []}]
        if self.kind == "refusal":
            return [{"type": "response.refusal.delta", **place}]
        if self.kind == "reasoning":
            return [{"type": "response.reasoning_summary_text.delta", **place}]
        if self.kind in CALLS:
            return [{"type": f"response.{self.kind}_arguments.delta", **place}]
        return []

    def end(self) -> list[Payload]:
        """What is told once the text is whole."""
        place, text = self._place(), self.text
        if self.kind in _CONTENT:
            whole = {"refusal": text} if self.kind == "refusal" else {"text": text, "logprobs": []}
            return [
                {"type": f"response.{'refusal' if self.kind == 'refusal' else 'output_text'}.done", **place, **whole},
                {"type": "response.content_part.done", **place, "part": _CONTENT[self.kind](text)},
            ]
        if self.kind == "reasoning":
            return [
                {"type": "response.reasoning_summary_text.done", **place, "text": text},
                {"type": "response.reasoning_summary_part.done", **place, "part": _summary_part(text)},
            ]
        if self.kind == "function_call":
            return [{"type": "response.function_call_arguments.done", **place, "name": self.name, "arguments": text}]
        if self.kind == "mcp_call":
            return [{"type": "response.mcp_call_arguments.done", **place, "arguments": text}]
        return []

    def done(self) -> list[Payload]:
        """What is told once nothing more can come of it."""
        ran = self.kind == "mcp_call" and self.status in ("completed", "failed")
        last = [{"type": f"response.mcp_call.{self.status}", **self._place()}] if ran else []
        return [*last, {"type": "response.output_item.done", "output_index": self.index, "item": self.data()}]

    def _place(self) -> JsonObject:
        place = {"item_id": self.id, "output_index": self.index}
        if self.kind == "reasoning":
            return {**place, "summary_index": 0}
        return {**place, "content_index": 0} if self.kind in _CONTENT else place


def sound(arguments: str) -> str:
    """Arguments as JSON text, whatever was said: clients decode those of a call that they do not run."""
    if not arguments.strip():
        return "{}"
    try:
        msgspec.json.decode(arguments, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return msgspec.json.encode({"arguments": arguments}).decode()
    return arguments


def _failed_call(words: str) -> JsonObject:
    return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": words}]}


def _summary_part(text: str) -> JsonObject:
    return {"type": "summary_text", "text": text}
