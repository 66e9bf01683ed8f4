"""Items: what a conversation is made of for clients of OpenAI's Responses API, as they write it and as it is kept.

Who reads a request and who tells a model of it have to agree on what is whose, and on what is to be answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from .json import JsonObject

Item = JsonObject

SYSTEM = ("system", "developer")
"""Roles whose words are instructions."""

DONE_BY_PROVIDER = (
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "tool_search_call",
    "tool_search_output",
    "mcp_list_tools",
)
"""Items of what the client's former provider did by itself. What came of it stands in the text behind it, and nobody
else can do anything with it: they are left out."""
CALLS = ("function_call", "custom_tool_call")
"""What is called by the client."""
OUTPUTS = ("function_call_output", "custom_tool_call_output")
"""What came of such a call."""
_APPROVALS = ("mcp_approval_request", "mcp_approval_response")
_SAID = (*DONE_BY_PROVIDER, *CALLS, "reasoning", "mcp_call", *_APPROVALS)

KNOWN = ("message", *_SAID, *OUTPUTS)
"""The types of items that are taken. Others would say something that no model is told: they are refused."""

REFERENCE = "item_reference"
"""The type of an item that stands for one that is kept."""

TEXTS = ("input_text", "output_text", "text")
"""Types of parts that are text."""
GIVEN_PARTS = (*TEXTS, "input_image", "image_url", "input_file", "file", "input_audio")
"""Types of parts that a user's message, or the output of a tool, may have."""
SAID_PARTS = (*TEXTS, "refusal", "thinking", "redacted_thinking", "reasoning", "reasoning_text")
"""Types of parts that the assistant's may have. What it thought is not told again."""


OWN_LABEL = "legato"
"""The ``server_label`` of a call that was run here: the one "MCP server" of a response."""
NOT_ALLOWED = "The user did not allow it."
INTERRUPTED = "This call was interrupted; nobody knows whether it was carried out."
"""What a model is told of a call that was not the client's, and that nothing came of: its run was stopped."""


def spelled_out(items: Iterable[Item]) -> list[Item]:
    """The items, those of calls that were not the client's as a call, with ``by``, and what came of it, with
    ``success``; nothing of what only led to one."""
    listed = list(items)
    approved = {str(item.get("approval_request_id")) for item in listed if item.get("type") == "mcp_call"}
    found: list[Item] = []
    for place, item in enumerate(listed):
        kind, id = item.get("type"), str(item.get("id") or f"mcp_{place}")
        if kind == "mcp_call":
            by = "server" if item.get("server_label") == OWN_LABEL else "provider"
            output, success = _came_of(item)
            found += [_call(id, item, by=by), _output(id, output, success=success)]
        elif kind == "mcp_approval_request":
            found += [] if id in approved else [_call(id, item)]
        elif kind == "mcp_approval_response":
            id = str(item.get("approval_request_id"))
            words = f"{NOT_ALLOWED} {item.get('reason') or ''}".strip()
            found += [] if item.get("approve") or id in approved else [_output(id, words, success=False)]
        else:
            found.append(item)
    return found


def _call(id: str, item: Item, **more: str) -> Item:
    given = item.get("arguments")
    given = given if isinstance(given, str) else "" if given is None else msgspec.json.encode(given).decode()
    return {"type": "function_call", "call_id": id, "name": item.get("name"), "arguments": given, **more}


def _output(id: str, output: str, *, success: bool) -> Item:
    return {"type": "function_call_output", "call_id": id, "output": output, "success": success}


def _came_of(call: Item) -> tuple[str, bool]:
    """What a call gave that was not the client's, and whether that is what was asked.

    Some clients leave out what came of it, since its server knows: what is not said to be cut off was carried out.
    """
    status = call.get("status") or "completed"
    if call.get("error"):
        return words_of(call["error"]), False
    if call.get("output") is not None:
        return words_of(call["output"]), status != "failed"
    return (INTERRUPTED, False) if status in ("in_progress", "calling", "incomplete") else ("", status != "failed")


def words_of(value: object) -> str:
    """What a tool gave, or how it failed, as a model reads it: a text, the texts in it, or JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for name in ("content", "message"):
            if words := text_of(value.get(name)):
                return words
    return text_of(value) or msgspec.json.encode(value).decode()


def is_said(item: Item) -> bool:
    """Whether an item is of the assistant."""
    return item.get("role") == "assistant" or item.get("type") in _SAID


def is_output(item: Item) -> bool:
    """Whether an item is what came of a call."""
    return item.get("type") in OUTPUTS


def is_system(item: Item) -> bool:
    """Whether an item is an instruction."""
    return item.get("role") in SYSTEM


def is_call(item: Item) -> bool:
    """Whether an item is a call that the client makes."""
    return item.get("type") in CALLS


def is_reference(item: Item) -> bool:
    """Whether an item stands for one that is kept; its type may be missing."""
    return item.get("type") == REFERENCE or (item.keys() <= {"id", "type"} and "id" in item and not item.get("type"))


def is_bare(item: Item) -> bool:
    """Whether an item is a call that was not the client's, of which it does not say what came: whoever ran it knows."""
    return item.get("type") == "mcp_call" and item.get("output") is None and not item.get("error")


def id_of(call: Item) -> str:
    """The id of a call, or of the one that an output is of; "" if it has none."""
    id = call.get("call_id")
    return id if isinstance(id, str) else ""


def arguments_of(call: Item) -> str:
    """The arguments of a call as JSON text; the input of a custom tool is its only one."""
    if call.get("type") == "custom_tool_call":
        return msgspec.json.encode({"input": call.get("input")}).decode()
    return str(call.get("arguments") or "")


def leading(items: Sequence[Item]) -> int:
    """How many of them are instructions before all else."""
    return next((place for place, item in enumerate(items) if not is_system(item)), len(items))


def present(items: Sequence[Item]) -> int:
    """Where that begins which is to be answered: behind what the assistant said before.

    What the assistant says at the very end is the beginning of its answer, and belongs to it.
    """
    asked = max((place for place, item in enumerate(items) if not is_said(item)), default=-1)
    return max((place + 1 for place in range(asked) if is_said(items[place])), default=0)


def text_of(content: object) -> str:
    """The text of a message's content, or of a tool's output: a string, or parts with texts."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def output_of(item: Item) -> Any:
    """What came of a call: text, or what it is if there is more than text in it."""
    output = item.get("output")
    parts = output if isinstance(output, list) else []
    whole = all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts)
    return text_of(output) if whole else output


def said_in(content: object) -> str:
    """The text of what the assistant said, a refusal included."""
    if not isinstance(content, list):
        return text_of(content)
    words = (part.get("text", part.get("refusal")) for part in content if isinstance(part, dict))
    return "".join(text for text in words if isinstance(text, str))
