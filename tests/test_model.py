"""Which model an agent asks: names, addresses, keys, and the settings of a turn."""

from __future__ import annotations

from typing import Any

import pytest

from legato.agents.model import VENDORS, Model
from legato.errors import InvalidInput
from legato.provider import AsyncAnthropicProvider, AsyncChatCompletionsProvider, AsyncResponsesProvider

KEYS = {"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": "a", "OPENROUTER_API_KEY": "r", "MODEL_API_KEY": "m"}
HERE = "http://host/v1"


@pytest.mark.parametrize(
    ("spec", "base_url", "model"),
    [
        ("openai:gpt-x", None, Model("gpt-x", "responses", "https://api.openai.com/v1", "o", background=True)),
        ("openai:gpt-x", HERE, Model("gpt-x", "responses", HERE, "o", background=True)),
        ("anthropic:c", None, Model("c", "messages", "https://api.anthropic.com/v1", "a")),
        ("ollama:llama3.2:3b", None, Model("llama3.2:3b", "chat", "http://127.0.0.1:11434/v1", "m")),
        ("openrouter:a/b", None, Model("a/b", "chat", "https://openrouter.ai/api/v1", "r")),
        ("legato:guide", HERE, Model("guide", "responses", HERE, "m", background=True)),
        ("responses:x", HERE, Model("x", "responses", HERE, "m")),
        ("messages:x", HERE, Model("x", "messages", HERE, "m")),
        ("llama3.2:3b", HERE, Model("llama3.2:3b", "chat", HERE, "m")),
        ("x", HERE, Model("x", "chat", HERE, "m")),
    ],
)
def test_names_of_models(spec: str, base_url: str | None, model: Model) -> None:
    """The vendor says how and where; an address of one's own needs no vendor."""
    assert model == Model.read(spec, base_url=base_url, environment=KEYS)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("gpt-x", {}, "Expected a model such as openai:"),
        ("", {}, "Expected a model"),
        ("nobody:x", {}, "ollama:"),
        ("openai:", {}, "Which model of openai?"),
        ("chat:x", {}, "needs a base URL"),
        ("openai:x", {}, "set OPENAI_API_KEY"),
        ("anthropic:x", {}, "set ANTHROPIC_API_KEY"),
        ("ollama:x", {"background": True}, "Only the Responses API"),
        ("chat:x", {"base_url": "host:80"}, "http://"),
    ],
)
def test_names_that_are_none(spec: str, options: dict[str, Any], words: str) -> None:
    """Each is refused with what to do instead, before anybody asks."""
    with pytest.raises(InvalidInput, match=words.replace("?", r"\?")):
        Model.read(spec, environment={}, **options)


def test_a_key_is_not_shown() -> None:
    """A model that stands in a log or in a traceback does not give it away."""
    assert "secret" not in repr(Model("m", "chat", HERE, api_key="secret"))


def test_an_address_of_one_s_own_needs_no_key() -> None:
    """Local servers rarely want one."""
    assert None is Model.read("openai:x", base_url=HERE, environment={}).api_key
    assert HERE == Model.read("openai:x", environment={**KEYS, "OPENAI_BASE_URL": HERE}).base_url
    assert "given" == Model.read("openai:x", api_key="given", environment=KEYS).api_key


@pytest.mark.parametrize("background", [True, False])
def test_the_background_can_be_chosen(background: bool) -> None:
    """Against what the vendor is known to support."""
    spec = "responses:x" if background else "openai:x"

    assert background is Model.read(spec, base_url=HERE, background=background, environment=KEYS).background


async def test_providers() -> None:
    """Each API has its client."""
    kinds = {"responses": AsyncResponsesProvider, "chat": AsyncChatCompletionsProvider,
             "messages": AsyncAnthropicProvider}  # fmt: skip
    for wire, kind in kinds.items():
        provider = Model.read(f"{wire}:x", base_url=HERE, environment={}).provider()
        assert kind is type(provider)
        await provider.aclose()
    assert {vendor.wire for vendor in VENDORS.values()} == set(kinds)


GIVEN = {
    "max_output_tokens": 5,
    "temperature": 0.5,
    "top_p": 1,
    "presence_penalty": 0.1,
    "tool_choice": {"type": "function", "name": "f"},
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    "service_tier": None,
    "plan_mode": True,
}
NUMBERS = {"max_tokens": 5, "temperature": 0.5, "top_p": 1}


@pytest.mark.parametrize(
    ("wire", "settings"),
    [
        (
            "responses",
            NUMBERS
            | {
                name: GIVEN[name]
                for name in ("presence_penalty", "tool_choice", "parallel_tool_calls", "reasoning", "text")
            },
        ),
        (
            "chat",
            NUMBERS
            | {
                "presence_penalty": 0.1,
                "parallel_tool_calls": False,
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "reasoning_effort": "low",
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
            },
        ),
        (
            "messages",
            NUMBERS
            | {
                "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
                "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
            },
        ),
    ],
)
def test_settings_of_a_turn(wire: str, settings: dict[str, Any]) -> None:
    """They reach the model in the words of its API; those of nobody's business do not."""
    assert settings == Model("x", wire, HERE).settings(GIVEN)  # type: ignore[arg-type]


@pytest.mark.parametrize("wire", ["responses", "chat", "messages"])
def test_settings_that_do_not_fit(wire: str) -> None:
    """Another dialect's metadata may use the same names for something else: it is left out."""
    odd = dict.fromkeys(GIVEN, object()) | {"temperature": True, "max_output_tokens": "5"}

    assert {} == Model("x", wire, HERE).settings(odd)  # type: ignore[arg-type]
    for choice in ("auto", "none", "required"):
        assert "tool_choice" in Model("x", wire, HERE).settings({"tool_choice": choice})  # type: ignore[arg-type]
