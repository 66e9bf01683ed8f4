"""Agents of LangChain with its real model classes, for a model server whose address is in the environment."""

from __future__ import annotations

import os

from langchain.agents import create_agent
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


openai = {"model": "m-1", "base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0, "stream_usage": True}
chat = named("chat", ChatOpenAI(**openai, use_responses_api=False))  # type: ignore[arg-type]
responses = named("responses", ChatOpenAI(**openai, use_responses_api=True))  # type: ignore[arg-type]
messages = named("messages", ChatAnthropic(model="m-1", base_url=URL, api_key="none", max_retries=0))  # type: ignore[call-arg,arg-type]
