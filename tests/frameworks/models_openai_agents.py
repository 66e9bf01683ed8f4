"""Agents of the OpenAI Agents SDK with its real model classes, see ``models_langgraph``."""

from __future__ import annotations

import os

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from legato.agents.openai_agents import adapt

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=f"{os.environ['MODEL_URL']}/v1", api_key="none", max_retries=0)


@function_tool
def work(x: int) -> str:
    """Works."""
    return f"made {x}"


chat = adapt(Agent(name="chat", tools=[work], model=OpenAIChatCompletionsModel("m-1", client)))
responses = adapt(Agent(name="responses", tools=[work], model=OpenAIResponsesModel("m-1", client)))


class Unknown(Model):
    """A model of one's own."""

    def __init__(self) -> None:
        self._model = OpenAIChatCompletionsModel("m-1", client)

    async def get_response(self, *given: object, **more: object) -> object:
        return await self._model.get_response(*given, **more)

    def stream_response(self, *given: object, **more: object) -> object:
        return self._model.stream_response(*given, **more)


model = OpenAIChatCompletionsModel("m-1", client)
own = ModelSettings(extra_body={"own": "field"})
theirs = ModelSettings(max_tokens=9, extra_body={"seed": 2})
set = adapt(
    Agent(name="set", model=model, model_settings=own),
    options=lambda _: {"run_config": RunConfig(model_settings=theirs)},
    heeds=["stop"],
)
formed = adapt(Agent(name="formed", model=model, output_type=int))
unknown = adapt(Agent(name="unknown", model=Unknown()))
retried = adapt(Agent(name="retried", model=model, tools=[work]), on_crash="retry")
