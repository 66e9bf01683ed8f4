"""Agents of the OpenAI Agents SDK with its real model classes, see ``models_langgraph``."""

from __future__ import annotations

import os

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, function_tool, set_tracing_disabled
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
