"""Agents that ask a model: ``model_agent`` makes them, ``model_turn`` is one turn of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping, Sequence

from ..agent import Agent, Turn
from ..check import as_word
from ..errors import InvalidInput
from ..json import JsonObject
from ..part import as_json
from ..provider.last_pass import RULES
from ..tool import Tool
from .connected import ConnectedModel
from .model import Model
from .model_turn import Items, ModelTurn


def model_agent(
    model: Model | str,
    *,
    tools: Mapping[str, Tool] | Sequence[Tool] = (),
    instructions: str = "",
    name: str | None = None,
    max_steps: int = 16,
    options: Mapping[str, object] | None = None,
    think_tag: str | None = None,
    rules: Collection[str] = (),
) -> Agent:
    """An agent that hands each turn to a model and says what the model says.

    Args:
        model: a ``Model``, or what ``Model.read`` makes one of.
        tools: what the model may call; a mapping by name is looked into anew in each turn. The client's own tools, in
            a message's metadata, are offered too, and left to the client.
        instructions: for the model, before the conversation.
        name: of the agent; the model's by default.
        max_steps: how often the model may be asked in one turn; then the run fails (``too_many_steps``).
        options: further fields of each request, by the names of the model's API. None takes a field out that is sent
            by default: ``stream_options``, ``store``, ``include``, ``background``.
        think_tag: the name of the tag between which the model thinks at the beginning of its text, for servers that
            leave it there: ``"think"``. None: tags are text.
        rules: what is known of who reads the conversation, and is not known of its address: of ``"deepseek"``,
            ``"gemini"``, ``"mistral"``, ``"plain"``.

    Raises:
        InvalidInput: see ``Model.read``; or an option is none of the request's, or no JSON; or there is no such rule.
    """
    model = Model.read(model) if isinstance(model, str) else model
    if "background" in (options or {}) and not (options or {})["background"]:
        model = dataclasses.replace(model, background=False)
    if max_steps < 1:
        raise InvalidInput(f"max_steps is at least 1, got {max_steps}.")
    by_name = tools if isinstance(tools, Mapping) else {tool.name: tool for tool in tools}
    given = _options(options)
    rules = [rules] if isinstance(rules, str) else rules
    for rule in rules:
        as_word("A rule", rule, RULES)
    connected = ConnectedModel(model, by_name, instructions, max_steps, given, think_tag, frozenset(rules))

    async def answer(turn: Turn) -> Items:
        async with contextlib.aclosing(ModelTurn(connected, turn).steps()) as items:
            async for item in items:
                yield item

    return Agent(
        answer,
        name=name or model.name,
        on_crash="resume",
        description=f"Asks {model.name}.",
        on_stop=connected.close,
        tools=by_name.keys,
        lacks=lambda metadata: _lacks(model, metadata),
        figures=connected.figures,
    )


def _lacks(model: Model, metadata: JsonObject) -> tuple[str, str] | None:
    name = model.lacks(metadata)
    return None if name is None else (name, f"The API of {model.name} has no word for it, or not for this value.")


_OWN = {
    "model": "name",
    "messages": "instructions",
    "input": "instructions",
    "tools": "tools",
    "headers": "",
    "stream": "",
    "think_tag": "think_tag",
}
"""Fields of a request that are not an option, and the argument that says it instead."""


def _options(given: Mapping[str, object] | None) -> JsonObject:
    """What is added to each request.

    Raises:
        InvalidInput: a field that the agent sets itself, or what is no JSON.
    """
    options: JsonObject = as_json("options", dict(given or {}))
    for name in options:
        if name in _OWN:
            instead = f"; say it by {_OWN[name]}" if _OWN[name] else ""
            raise InvalidInput(f"options has further fields of a request, and {name!r} is the agent's own{instead}.")
    return options
