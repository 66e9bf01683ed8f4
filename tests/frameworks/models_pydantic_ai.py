"""Agents of pydantic-ai with its real model classes, see ``models_langgraph``."""

from __future__ import annotations

import os

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.toolsets import FunctionToolset

from legato.agents.pydantic_ai import adapt

URL = os.environ["MODEL_URL"]
openai = OpenAIProvider(openai_client=AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0))
anthropic = AnthropicProvider(anthropic_client=AsyncAnthropic(base_url=URL, api_key="none", max_retries=0))


def work(x: int) -> str:
    """Works."""
    return f"made {x}"


chat = adapt(Agent(OpenAIChatModel("m-1", provider=openai), tools=[work]), name="chat")
responses = adapt(Agent(OpenAIResponsesModel("m-1", provider=openai), tools=[work]), name="responses")
messages = adapt(Agent(AnthropicModel("m-1", provider=anthropic), tools=[work]), name="messages")


class Unknown(Model):
    """A model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self._model = OpenAIChatModel("m-1", provider=openai)

    model_name = property(lambda self: self._model.model_name)
    system = property(lambda self: self._model.system)

    async def request(self, *given):
        return await self._model.request(*given)

    def request_stream(self, *given):
        return self._model.request_stream(*given)


model = OpenAIChatModel("m-1", provider=openai)
set = adapt(
    Agent(model, model_settings={"extra_body": {"own": "field"}}),
    name="set",
    options=lambda _: {"model_settings": {"max_tokens": 9, "extra_body": {"seed": 2}}},
    heeds=["stop"],
)
formed = adapt(Agent(model, output_type=int), name="formed")
unknown = adapt(Agent(Unknown()), name="unknown")
dynamic = adapt(Agent(model, toolsets=[lambda _: FunctionToolset([work])]), name="dynamic")
retried = adapt(Agent(model, tools=[work]), name="retried", on_crash="retry")
