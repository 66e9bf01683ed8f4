"""What requests of the Responses dialect may hold: known items and parts, and settings that can be had."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..items import GIVEN_PARTS, KNOWN, SAID_PARTS, SYSTEM, Item, is_bare, is_output, is_reference
from ..json import JsonObject
from .responses_api import BadRequest, Create, CreateChat, flat_choice, flat_tool, old_choice

CHAT_NAMES = {
    "max_output_tokens": "max_completion_tokens",
    "reasoning.effort": "reasoning_effort",
    "text.format": "response_format",
    "text.verbosity": "verbosity",
}
"""What a chat calls what a response calls otherwise."""


class UnsupportedParameter(BadRequest):
    """What is asked for cannot be had."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"Unsupported parameter: {name!r}. {why}", code="unsupported_parameter", param=name)


def check_items(body: Create) -> bool:
    """Check that all of the input is known, and none of it passed over in silence.

    Returns:
        Whether some of it stands for what is kept.

    Raises:
        BadRequest: an item, or a part of one, is of no known type; ``param`` names the place.
    """
    referring = False
    for place, item in enumerate([] if isinstance(body.input, str) else body.input):
        if is_reference(item):
            referring = True
            continue
        referring = referring or is_bare(item)
        check_item(f"input[{place}]", item)
    return referring


def check_item(where: str, item: Item) -> None:
    """The same of one item, which is no reference.

    Raises:
        BadRequest: see ``check_items``.
    """
    kind = item.get("type")
    if kind is None and "role" not in item:
        raise BadRequest(f"{where} has neither a type nor a role.", code="missing_required_parameter",
                         param=f"{where}.type")  # fmt: skip
    if kind not in (None, *KNOWN):
        raise _unknown(f"{where}.type", kind, KNOWN)
    if kind in (None, "message"):
        _check_role(where, item, ("user", "assistant", *SYSTEM))
        _check_content(f"{where}.content", item.get("content"), item["role"])
    elif is_output(item):
        _check_content(f"{where}.output", item.get("output"), "tool")


def check_messages(body: CreateChat) -> None:
    """The same of the messages of a chat.

    Raises:
        BadRequest: see ``check_items``.
    """
    for place, message in enumerate(body.messages):
        where = f"messages[{place}]"
        _check_role(where, message, ("user", "assistant", "tool", "function", *SYSTEM))
        _check_content(f"{where}.content", message.get("content"), message["role"])
        if message.get("audio") is not None:
            raise BadRequest("What was said before is told as text; audio is not kept here.",
                             code="unsupported_parameter", param=f"{where}.audio")  # fmt: skip
        calls = message.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            kind = call.get("type") if isinstance(call, dict) else call
            if kind not in (None, "function", "custom"):
                raise _unknown(f"{where}.tool_calls[{number}].type", kind, ("function", "custom"))


def check_settings(body: Create | CreateChat, own: Collection[str] = ()) -> None:
    """Check that what is set can be had from any agent; values that ask for nothing can.

    Args:
        body: the request.
        own: tools of the agent, which it runs itself.

    Raises:
        UnsupportedParameter: no log and no agent can give it.
        BadRequest: a tool is to be called that nobody has.
    """
    if isinstance(body, CreateChat):
        if body.logprobs or body.top_logprobs:
            name = "logprobs" if body.logprobs else "top_logprobs"
            raise UnsupportedParameter(name, "No probabilities are kept of what is said.")
        if body.audio is not None or set(body.modalities or ()) - {"text"}:
            name = "audio" if body.audio is not None else "modalities"
            raise UnsupportedParameter(name, "Answers are text.")
        tools = [*(body.tools or ()), *(body.functions or ())]
        choice = body.tool_choice if body.function_call is None else old_choice(body.function_call)
        _check_choice("tool_choice" if body.function_call is None else "function_call", choice, tools, own)
        return
    if body.prompt is not None:
        raise UnsupportedParameter("prompt", "No templates are kept here.")
    if "message.output_text.logprobs" in (body.include or ()):
        raise UnsupportedParameter("include", "No probabilities are kept of what is said.")
    _check_choice("tool_choice", body.tool_choice, body.tools or [], own)


def _check_choice(
    where: str, choice: str | JsonObject | None, given: Sequence[JsonObject], own: Collection[str]
) -> None:
    tools = [flat_tool(tool) for tool in given]
    for place, tool in enumerate(tools):
        if tool.get("type") == "custom":
            raise UnsupportedParameter(f"tools[{place}].type", "A call of a custom tool has no form here.")
    if choice is None:
        return
    flat = flat_choice(choice)
    if isinstance(flat, str):
        if flat not in _CHOICES:
            raise _unknown(where, choice, _CHOICES)
        return
    wanted = [flat]
    if flat.get("type") == "allowed_tools":
        if flat.get("mode") not in ("auto", "required"):
            raise _unknown(f"{where}.mode", flat.get("mode"), ("auto", "required"))
        if not isinstance(flat.get("tools"), list):
            raise BadRequest(f"{where}.tools is a list of tools.", code="invalid_type", param=where)
        wanted = flat["tools"]
    names = {*own, *(tool["name"] for tool in tools if isinstance(tool.get("name"), str))}
    kinds = [tool.get("type") for tool in tools]
    for each in wanted:
        name, kind = each.get("name"), each.get("type")
        found = (
            name in names
            if kind in ("function", "custom") and isinstance(name, str)
            else kind in kinds and kind != "function"
        )
        if not found:
            said = name if isinstance(name, str) else kind
            raise BadRequest(f"Tool choice {said!r:.200} not found in 'tools' parameter.", param=where)


_CHOICES = ("none", "auto", "required")


def _check_role(where: str, item: Item, roles: tuple[str, ...]) -> None:
    if "role" not in item:
        raise BadRequest(f"Missing required parameter: '{where}.role'.", code="missing_required_parameter",
                         param=f"{where}.role")  # fmt: skip
    if item["role"] not in roles:
        raise _unknown(f"{where}.role", item["role"], roles)


def _check_content(where: str, content: object, role: str) -> None:
    known = SAID_PARTS if role == "assistant" else GIVEN_PARTS
    if content is not None and not isinstance(content, str | list):
        raise BadRequest(f"{where} is text or a list of parts.", code="invalid_type", param=where)
    for place, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict):
            raise BadRequest(f"{where}[{place}] is an object with a type.", code="invalid_type",
                             param=f"{where}[{place}]")  # fmt: skip
        bare = part.get("type") is None and isinstance(part.get("text", part.get("refusal")), str)
        if not (bare or part.get("type") in known):
            raise _unknown(f"{where}[{place}].type", part.get("type"), known)


def _unknown(where: str, given: object, known: Sequence[str]) -> BadRequest:
    return BadRequest(f"Invalid value: {given!r:.100}. Supported values of {where} are: {', '.join(known)}.",
                      param=where)  # fmt: skip
