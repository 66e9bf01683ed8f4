"""Which model an agent asks, and how: from ``openai:gpt-5-mini`` to a provider, and from a turn's settings to its own.

Tables, and what reads them. The key comes from the environment and is kept nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ..errors import InvalidInput
from ..http.retry import BackoffStrategy, RetryConfig
from ..http.settings import address as checked
from ..json import JsonObject
from ..provider import (
    AsyncAnthropicProvider,
    AsyncChatCompletionsProvider,
    AsyncResponsesProvider,
)

Wire = Literal["responses", "chat", "messages"]
Words = Literal[Wire, "framework", "none"]
"""Whose words settings are said in: an API's, those that frameworks have for any model, or nobody's."""
Provider = AsyncResponsesProvider | AsyncChatCompletionsProvider | AsyncAnthropicProvider

_PROVIDERS: Final[dict[Wire, Callable[..., Provider]]] = {
    "responses": AsyncResponsesProvider,
    "chat": AsyncChatCompletionsProvider,
    "messages": AsyncAnthropicProvider,
}

KEY: Final = "MODEL_API_KEY"
"""The environment variable with the key, for addresses whose owner has none of its own."""


PATIENCE: Final = RetryConfig("backoff", BackoffStrategy(500, 5_000, 1.5, 20_000), True)
"""How long a model is asked again that cannot be reached: a person waits for it."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """Where models are asked.

    Attributes:
        wire: the API.
        base_url: up to the version; None: it has to be given.
        key: the environment variable with the key; None: no key is needed.
        background: whether it keeps answers that are written in the background, so that they survive us.
    """

    wire: Wire
    base_url: str | None = None
    key: str | None = None
    background: bool = False


VENDORS: Final[dict[str, Vendor]] = {
    "openai": Vendor("responses", "https://api.openai.com/v1", "OPENAI_API_KEY", background=True),
    "anthropic": Vendor("messages", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
    "ollama": Vendor("chat", "http://127.0.0.1:11434/v1"),
    "lmstudio": Vendor("chat", "http://127.0.0.1:1234/v1"),
    "llamacpp": Vendor("chat", "http://127.0.0.1:8080/v1"),
    "openrouter": Vendor("chat", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "legato": Vendor("responses", "http://127.0.0.1:8088/v1", background=True),
    # By their APIs, for any other address.
    "responses": Vendor("responses"),
    "chat": Vendor("chat"),
    "messages": Vendor("messages"),
}
"""What may stand before the colon of a model's name."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model at an address.

    Attributes:
        name: as its provider calls it.
        wire: the API.
        base_url: up to the version.
        api_key: None sends none.
        background: whether its answers are asked for in the background.
    """

    name: str
    wire: Wire
    base_url: str
    api_key: str | None = field(default=None, repr=False)  # it shall stand in no log
    background: bool = False

    @classmethod
    def read(
        cls,
        spec: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        background: bool | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Model:
        """The model that ``spec`` names: ``vendor:model``, or with a ``base_url`` the model alone (Chat Completions).

        Args:
            spec: for example ``"openai:gpt-5-mini"``, ``"ollama:llama3.2:3b"``.
            base_url: instead of its provider's own address.
            api_key: instead of the environment's.
            background: instead of what the provider is known to support.
            environment: where keys are found.

        Raises:
            InvalidInput: there is no such vendor, no model, no address, or no key for it.
        """
        prefix, colon, name = spec.partition(":")
        vendor = VENDORS.get(prefix) if colon else None
        if vendor is None and base_url is not None:
            vendor, prefix, name = VENDORS["chat"], "chat", spec
        if vendor is None:
            known = ", ".join(f"{each}:" for each in VENDORS)
            raise InvalidInput(
                f"Expected a model such as openai:gpt-5-mini or ollama:llama3.2, got {spec[:100]!r}; before the name "
                f"may stand {known} or nothing, with a base URL.",
            )
        if not name:
            raise InvalidInput(f"Which model of {prefix}? Expected {prefix}:NAME.")
        address = base_url or (environment.get("OPENAI_BASE_URL") if prefix == "openai" else None) or vendor.base_url
        if address is None:
            raise InvalidInput(f"{prefix}:{name} needs a base URL: the address of its server up to the version.")
        checked(address, of="model")  # now, and not at the first question
        key = api_key or environment.get(vendor.key or KEY) or None
        if key is None and vendor.key is not None and base_url is None:
            raise InvalidInput(f"{prefix} needs a key: set {vendor.key}.")
        if background and vendor.wire != "responses":
            raise InvalidInput(f"Only the Responses API has answers in the background, {prefix} speaks another.")
        return cls(name, vendor.wire, address, key, vendor.background if background is None else background)

    def provider(self) -> Provider:
        """A client of its API. Close it."""
        return _PROVIDERS[self.wire](self.base_url, self.api_key, retry_config=PATIENCE)

    def settings(self, metadata: Mapping[str, object]) -> JsonObject:
        """What of a message's metadata is meant for a model, in the words of its API. What does not fit is left out."""
        return settings(self.wire, metadata)

    def lacks(self, metadata: Mapping[str, object]) -> str | None:
        """The first setting for which the API has no word, or not for its value; None if it has one for all."""
        return lacking(self.wire, metadata)


def settings(words: Words, metadata: Mapping[str, object]) -> JsonObject:
    """See ``Model.settings``."""
    found: JsonObject = {}
    for name, read in _SETTINGS[words].items():
        value = _at(metadata, name)
        for key, setting in (read(value) or {}).items() if value is not None else ():
            both = isinstance(setting, dict) and isinstance(found.get(key), dict)
            found[key] = {**found[key], **setting} if both else setting
    if words == "messages" and metadata.get("parallel_tool_calls") is False:
        choice = found.get("tool_choice", {"type": "auto"})
        found["tool_choice"] = choice if choice["type"] == "none" else {**choice, "disable_parallel_tool_use": True}
    return found


def lacking(words: Words, metadata: Mapping[str, object]) -> str | None:
    """See ``Model.lacks``. Settings that ask for nothing need no word."""
    for name in _ASKED:
        value, known = _at(metadata, name), _SETTINGS[words]
        if value is None or value in _NOTHING.get(name, ()):
            continue
        said = name if name in known else name.partition(".")[0]  # some take all of it as it is
        if said not in known or known[said](_at(metadata, said)) is None:
            return name
    return None


def _at(metadata: Mapping[str, object], name: str) -> object:
    head, _, inner = name.partition(".")
    value = metadata.get(head)
    return value.get(inner) if inner and isinstance(value, dict) else None if inner else value


def allowed(tools: Sequence[JsonObject], choice: object) -> list[JsonObject]:
    """The tools that a choice leaves, of those in the forms of a request and of ``Tool.definition``: for APIs whose
    servers mostly do not know a choice of ``allowed_tools``."""
    match choice:
        case {"type": "allowed_tools", "tools": list(given)}:
            named = {(tool.get("type"), tool.get("name")) for tool in given if isinstance(tool, dict)}
            return [tool for tool in tools if _called(tool) in named]
    return list(tools)


def _called(tool: JsonObject) -> tuple[object, object]:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else tool.get("name")
    return tool.get("type", "function"), name


def relax(choice: object) -> object:
    """A choice once it has been heeded: the model may answer now; None if nothing is left of it."""
    match choice:
        case {"disable_parallel_tool_use": True}:
            return {"type": "auto", "disable_parallel_tool_use": True}
    return None


# Settings -------------------------------------------------------------------------------------------------------------

Read = Callable[[object], JsonObject | None]


def _as(name: str, *types: type) -> Read:
    """The value under another name, if it is of one of the types."""
    return lambda value: {name: value} if isinstance(value, types) and not isinstance(value, bool) else None


def _flag(name: str) -> Read:
    return lambda value: {name: value} if isinstance(value, bool) else None


def _choice(choice: object) -> object:
    """A choice without ``allowed_tools``, of which ``allowed`` has left only the tools."""
    match choice:
        case {"type": "allowed_tools", "mode": str(mode)}:
            return mode
    return choice


def _chat_choice(choice: object) -> JsonObject | None:
    match _choice(choice):
        case str(mode):
            return {"tool_choice": mode}
        case {"type": "function", "name": str(name)}:
            return {"tool_choice": {"type": "function", "function": {"name": name}}}
    return None


def _messages_choice(choice: object) -> JsonObject | None:
    match _choice(choice):
        case "auto" | "none" as mode:
            return {"tool_choice": {"type": mode}}
        case "required":
            return {"tool_choice": {"type": "any"}}
        case {"type": "function", "name": str(name)}:
            return {"tool_choice": {"type": "tool", "name": name}}
    return None


def _chat_format(form: object) -> JsonObject | None:
    match form:
        case {"type": "json_schema", **schema}:
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case {"type": "json_object"}:
            return {"response_format": {"type": "json_object"}}
    return None


def _messages_format(form: object) -> JsonObject | None:
    match form:
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    return None


def _messages_effort(effort: object) -> JsonObject | None:
    return {"output_config": {"effort": "low" if effort == "minimal" else effort}} if isinstance(effort, str) else None


def _stops(value: object) -> JsonObject | None:
    stops = [value] if isinstance(value, str) else value
    return {"stop_sequences": stops} if isinstance(stops, list) else None


def _messages_user(value: object) -> JsonObject | None:
    return {"metadata": {"user_id": value}} if isinstance(value, str) else None


def _messages_tier(value: object) -> JsonObject | None:
    word = {"auto": "auto", "default": "standard_only"}.get(value) if isinstance(value, str) else None
    return None if word is None else {"service_tier": word}


def _heeded(value: object) -> JsonObject | None:
    """What is said beside the rest, see ``Model.settings``."""
    return {}


_NUMBERS: Final[dict[str, Read]] = {
    "max_output_tokens": _as("max_tokens", int),
    "temperature": _as("temperature", int, float),
    "top_p": _as("top_p", int, float),
}
_PENALTIES: Final[dict[str, Read]] = {
    "presence_penalty": _as("presence_penalty", int, float),
    "frequency_penalty": _as("frequency_penalty", int, float),
}
_OPENAI: Final[dict[str, Read]] = {
    **_NUMBERS,
    **_PENALTIES,
    "parallel_tool_calls": _flag("parallel_tool_calls"),
    "service_tier": _as("service_tier", str),
    "user": _as("user", str),
    "safety_identifier": _as("safety_identifier", str),
    "prompt_cache_key": _as("prompt_cache_key", str),
    "prompt_cache_retention": _as("prompt_cache_retention", str),
}
_SETTINGS: Final[dict[Words, dict[str, Read]]] = {
    "responses": {
        **_OPENAI,
        "tool_choice": _as("tool_choice", str, dict),
        "reasoning": _as("reasoning", dict),
        "text": _as("text", dict),
        "truncation": _as("truncation", str),
        "max_tool_calls": _as("max_tool_calls", int),
    },
    "chat": {
        **_OPENAI,
        "tool_choice": _chat_choice,
        "reasoning.effort": _as("reasoning_effort", str),
        "text.format": _chat_format,
        "text.verbosity": _as("verbosity", str),
        "stop": _as("stop", str, list),
        "seed": _as("seed", int),
        "logit_bias": _as("logit_bias", dict),
        "prediction": _as("prediction", dict),
        "web_search_options": _as("web_search_options", dict),
    },
    "messages": {
        **_NUMBERS,
        "tool_choice": _messages_choice,
        "parallel_tool_calls": _heeded,
        "service_tier": _messages_tier,
        "stop": _stops,
        "user": _messages_user,
        "safety_identifier": _messages_user,
        "text.format": _messages_format,
        "reasoning.effort": lambda effort: None if effort == "none" else _messages_effort(effort),
    },
    "framework": {**_NUMBERS, "tool_choice": _as("tool_choice", str, dict)},
    "none": {},
}
_ASKED: Final = (
    *("stop", "seed", "logit_bias", "presence_penalty", "frequency_penalty", "parallel_tool_calls", "service_tier"),
    *("user", "reasoning.effort", "text.format", "text.verbosity", "truncation", "max_tool_calls", "prediction"),
    *("web_search_options", "tool_choice", "temperature", "top_p", "max_output_tokens", "safety_identifier"),
)
"""Settings that an answer would be another one without."""
_NOTHING: Final[dict[str, tuple[object, ...]]] = {
    "tool_choice": ("auto",),
    "stop": ("", []),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
    "text.format": ({"type": "text"},),
    "text.verbosity": ("medium",),
    "reasoning.effort": ("none",),
    "truncation": ("disabled",),
    "web_search_options": ({},),
}
"""Values of them that ask for nothing."""
