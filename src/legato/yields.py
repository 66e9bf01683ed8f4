"""What an agent yields: pieces of an answer, in the order in which they come. ``Recorder`` makes facts of them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .part import Opaque as Opaque
from .part import Usage as Usage


class Text(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer. Yielding a plain ``str`` means the same."""

    text: str


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's explanation why it does not answer. Readers that know no refusals see it as text.

    An answer that ends with one has the finish reason ``"refusal"``, unless ``Finish`` gives another."""

    text: str


class Thinking(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's reasoning, shown apart from the answer."""

    text: str


RunBy = Literal["server", "client", "provider"]
"""Who runs a tool call: this process, whoever asked, or the model's own side."""


class ToolCall(msgspec.Struct, frozen=True):
    """The model begins to call a tool; its arguments follow, whole here or in pieces by ``ToolArguments``.

    Attributes:
        id: unique in the run; what later events of the call name.
        name: the tool's name.
        arguments: the whole JSON text of the arguments, or None when they will be streamed.
        by: who runs it. None: the client, if its request brought a tool of that name; else this process.
    """

    id: str
    name: str
    arguments: str | None = None
    by: RunBy | None = None


class ToolArguments(msgspec.Struct, frozen=True, gc=False):
    """A piece of the JSON text of a call's arguments."""

    id: str
    text: str


class ToolReady(msgspec.Struct, frozen=True, gc=False):
    """The arguments of a streamed call are complete."""

    id: str


class ToolStarted(msgspec.Struct, frozen=True, gc=False):
    """The tool begins to work. ``progress`` is a sentence for the reader.

    Completes a call whose arguments were being streamed."""

    id: str
    progress: str = ""


class ToolResult(msgspec.Struct, frozen=True, gc=False):
    """The tool is done. ``output`` is any JSON value (the error's text when ``success`` is false)."""

    id: str
    output: Any = None
    success: bool = True
    progress: str = ""


class Finish(msgspec.Struct, frozen=True, gc=False):
    """Why the answer ended, when it was not simply done: ``"length"``, ``"content_filter"`` ... The run completes with
    it."""

    reason: str


class Checkpoint(msgspec.Struct, frozen=True, gc=False):
    """A note of the agent to itself, stored in the order in which it was yielded. Readers do not see it.

    After a crash, ``turn.checkpoint`` is the last one: where to go on, what was begun elsewhere. ``data`` is any JSON
    value, as large as one event may be.
    """

    data: Any


Yielded = (
    str
    | Text
    | Refusal
    | Thinking
    | ToolCall
    | ToolArguments
    | ToolReady
    | ToolStarted
    | ToolResult
    | Usage
    | Finish
    | Checkpoint
    | Opaque
)
"""Everything an agent may yield."""
