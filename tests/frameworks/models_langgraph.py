"""Agents of LangChain with its real model classes, for a model server whose address is in the environment."""

from __future__ import annotations

import os

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from legato.agents.langgraph import adapt

URL = os.environ["MODEL_URL"]


@tool
def work(x: int) -> str:
    """Works."""
    return f"made {x}"


def named(name: str, model: object) -> object:
    return adapt(create_agent(model, tools=[work]), name=name)  # type: ignore[arg-type]


openai = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0, "stream_usage": True}
chat = named("chat", ChatOpenAI(model="m-1", **openai, use_responses_api=False))  # type: ignore[arg-type]
responses = named("responses", ChatOpenAI(model="m-1", **openai, use_responses_api=True))  # type: ignore[arg-type]
messages = named("messages", ChatAnthropic(model="m-1", base_url=URL, api_key="none", max_retries=0))  # type: ignore[call-arg,arg-type]

configurable = init_chat_model("m-1", model_provider="openai", configurable_fields=("temperature",), **openai)
heeding = adapt(
    create_agent(configurable, tools=[work]),
    name="configurable",
    options=lambda turn: {
        "config": {
            "configurable": {name: value for name, value in turn.message.metadata.items() if name == "temperature"}
        }
    },
    heeds=["temperature"],
)
