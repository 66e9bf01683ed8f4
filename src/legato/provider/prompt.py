"""What goes to a model, read from the form in which callers give it: that of Chat Completions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from ..errors import InvalidInput
from ..json import JsonObject, known
from .result import ToolCall

__all__ = ["FunctionTool", "as_text", "read_tool", "tool_calls", "with_tools"]


class FunctionTool(msgspec.Struct, frozen=True):
    """A function that the model may call.

    Attributes:
        name: of the function.
        description: for the model.
        parameters: their JSON schema.
        strict: whether the model must keep to the schema; None: as the provider likes.
    """

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    def fields(self) -> JsonObject:
        """Those that say something."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


def read_tool(tool: Mapping[str, object]) -> FunctionTool | JsonObject:
    """The tool, when it is a function, nested as in Chat Completions or flat; a provider's own kind stays as it is.

    Raises:
        InvalidInput: a function without a name.
    """
    if tool.get("type", "function") != "function":
        return dict(tool)
    function = tool.get("function", tool)
    if isinstance(function, Mapping) and "input_schema" in function:  # as Anthropic calls it
        function = {**function, "parameters": function["input_schema"]}
    try:
        return msgspec.convert(function, known(FunctionTool))
    except msgspec.ValidationError as exc:
        raise InvalidInput(f"A tool has a name, and may have a description and parameters: {exc}.") from exc


def with_tools(options: Mapping[str, object], form: Callable[[FunctionTool], JsonObject]) -> JsonObject:
    """The options of a request, with their functions in the ``form`` of an API.

    Raises:
        InvalidInput: see ``read_tool``.
    """
    made: JsonObject = dict(options)
    if made.get("tools") is not None:
        tools = map(read_tool, made["tools"])
        made["tools"] = [form(tool) if isinstance(tool, FunctionTool) else tool for tool in tools]
    return made


def tool_calls(message: JsonObject) -> list[ToolCall]:
    """The tool calls of an assistant's message.

    Raises:
        InvalidInput: one without an id, a name or arguments.
    """
    calls = []
    for call in message.get("tool_calls") or ():
        try:
            function = call["function"]
            calls.append(ToolCall(call["id"], function["name"], function["arguments"]))
        except (KeyError, TypeError) as exc:
            raise InvalidInput(f"A tool call has an id, and a function with name and arguments, not {exc}.") from exc
    return calls


def as_text(content: object) -> str:
    """The text of a message's content, or of a part: a text, or a list of parts of which those with text count."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        text = content.get("text")
        return text if isinstance(text, str) else ""
    if isinstance(content, list):
        return "".join(as_text(part) for part in content)
    return ""
