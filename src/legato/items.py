"""Items: what a conversation is made of for clients of OpenAI's Responses API, as they write it and as it is kept.

Who reads a request and who tells a model of it have to agree on what is whose, and on what is to be answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .json import JsonObject

Item = JsonObject

SYSTEM = ("system", "developer")
"""Roles whose words are instructions."""

DONE_BY_PROVIDER = (
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_list_tools",
)
"""Items of what the client's former provider did by itself. What came of it stands in the text behind it, and nobody
else can do anything with it: they are left out."""
CARRIED_OUT = ("function_call_output",)
"""What came of a call."""
_SAID = (*DONE_BY_PROVIDER, "function_call", "reasoning", "mcp_call", "mcp_approval_request")

KNOWN = (*_SAID, *CARRIED_OUT, "message", "mcp_approval_response")
"""The types of items that are taken."""


def is_said(item: Item) -> bool:
    """Whether an item is of the assistant."""
    return item.get("role") == "assistant" or item.get("type") in _SAID


def is_output(item: Item) -> bool:
    """Whether an item is what came of a call."""
    return item.get("type") in CARRIED_OUT


def is_system(item: Item) -> bool:
    """Whether an item is an instruction."""
    return item.get("role") in SYSTEM


def leading(items: Sequence[Item]) -> int:
    """How many of them are instructions before all else."""
    return next((place for place, item in enumerate(items) if not is_system(item)), len(items))


def present(items: Sequence[Item]) -> int:
    """Where that begins which is to be answered: behind what the assistant said before.

    What the assistant says at the very end is the beginning of its answer, and belongs to it.
    """
    asked = max((place for place, item in enumerate(items) if not is_said(item)), default=-1)
    return max((place + 1 for place in range(asked) if is_said(items[place])), default=0)


def text_of(content: Any) -> str:
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


def said_in(content: Any) -> str:
    """The text of what the assistant said, a refusal included."""
    if not isinstance(content, list):
        return text_of(content)
    words = (part.get("text", part.get("refusal")) for part in content if isinstance(part, dict))
    return "".join(text for text in words if isinstance(text, str))
