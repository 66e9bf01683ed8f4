"""pydantic-ai's own models of two providers, at the address in STRICT, behind one agent each."""

from __future__ import annotations

import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.deepseek import DeepSeekProvider
from pydantic_ai.providers.openai import OpenAIProvider

from legato.agents.pydantic_ai import adapt

STRICT = os.environ["STRICT"]


def add(x: int) -> int:
    """Adds one."""
    return x + 1


class Local(DeepSeekProvider):
    """DeepSeek's, at an address of the test's."""

    @property
    def base_url(self) -> str:
        return f"{STRICT}/deepseek/v1"


def client(name: str):  # type: ignore[no-untyped-def]  # of a package that is not here
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=f"{STRICT}/{name}/v1", api_key="key", max_retries=0)


thinker = OpenAIChatModel("deepseek-reasoner", provider=Local(openai_client=client("deepseek")))
sealer = OpenAIResponsesModel(
    "gpt-5",
    provider=OpenAIProvider(openai_client=client("openai")),
    settings=OpenAIResponsesModelSettings(openai_store=False, openai_reasoning_effort="low"),
)

deepseek = adapt(Agent(thinker, tools=[add]), name="deepseek")
openai = adapt(Agent(sealer, tools=[add]), name="openai")
