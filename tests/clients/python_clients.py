"""Agent frameworks and SDKs of Python, each as the client of a server whose agent runs a tool itself.

``python agent_clients.py URL`` plays every case, and prints one line of JSON for each: what its user got to read, how
often its own tool ran, what the agent was told of all that when it was asked again, or what was raised. They run in one
process, since it takes longer to import them than to play the cases.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is asked for over the network
warnings.simplefilter("ignore")

import agents  # noqa: E402
import litellm  # noqa: E402
import openai  # noqa: E402
import pydantic_ai  # noqa: E402
from langchain.agents import create_agent  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

BASE = f"{sys.argv[1]}/v1"
KEY: dict[str, Any] = {"base_url": BASE, "api_key": "none"}
MODEL = "weather"
AGAIN = "recall"
SCHEMA = {"type": "object", "properties": {}}
CLOCK: dict[str, Any] = {"name": "clock", "description": "Tells the time.", "parameters": SCHEMA}

runs = 0


def clock() -> str:
    """Tells the time."""
    global runs
    runs += 1
    return "12:00"


# Each takes what the user says, and whether it has a tool of its own; it gives what the user reads, then and again.
Case = Callable[[str, bool], Any]


def openai_agents(responses: bool, stream: bool) -> Case:
    agents.set_tracing_disabled(True)
    kind = agents.OpenAIResponsesModel if responses else agents.OpenAIChatCompletionsModel

    async def play(said: str, own: bool) -> tuple[str, str]:
        model = kind(model=MODEL, openai_client=openai.AsyncOpenAI(**KEY, max_retries=0))
        tools: list[Any] = [agents.function_tool(clock)] if own else []
        agent = agents.Agent(name="a", model=model, tools=tools)

        async def run(given: Any) -> Any:
            if not stream:
                return await agents.Runner.run(agent, given)
            streamed = agents.Runner.run_streamed(agent, given)
            async for _ in streamed.stream_events():
                pass
            return streamed

        first = await run(said)
        second = await run([*first.to_input_list(), {"role": "user", "content": AGAIN}])
        return first.final_output, second.final_output

    return lambda said, own: asyncio.run(play(said, own))


def langchain(responses: bool, stream: bool) -> Case:
    def play(said: str, own: bool) -> tuple[str, str]:
        model = ChatOpenAI(model=MODEL, **KEY, use_responses_api=responses, streaming=stream, max_retries=0)
        agent = create_agent(model, tools=[clock] if own else [])

        def run(messages: list[Any]) -> list[Any]:
            if not stream:
                return list(agent.invoke({"messages": messages})["messages"])
            last: Any = None
            for kind, value in agent.stream({"messages": messages}, stream_mode=["messages", "values"]):
                last = value if kind == "values" else last
            return list(last["messages"])

        first = run([{"role": "user", "content": said}])
        second = run([*first, {"role": "user", "content": AGAIN}])
        return str(first[-1].text), str(second[-1].text)

    return play


def pydantic(responses: bool, stream: bool) -> Case:
    kind: Any = OpenAIResponsesModel if responses else OpenAIChatModel

    async def play(said: str, own: bool) -> tuple[str, str]:
        client = openai.AsyncOpenAI(**KEY, max_retries=0)
        # As it does for OpenAI's own models: else it sends back nothing of a call that was not its own.
        settings: Any = {"openai_send_reasoning_ids": True} if responses else {}
        model = kind(MODEL, provider=OpenAIProvider(openai_client=client))
        agent = pydantic_ai.Agent(model, model_settings=settings)
        if own:
            agent.tool_plain(clock)

        async def run(given: str, history: Any = None) -> Any:
            if not stream:
                return await agent.run(given, message_history=history)
            result = None
            async with agent.run_stream_events(given, message_history=history) as events:
                async for event in events:
                    result = getattr(event, "result", None) if event.event_kind == "agent_run_result" else result
            return result

        first = await run(said)
        second = await run(AGAIN, first.all_messages())
        return first.output, second.output

    return lambda said, own: asyncio.run(play(said, own))


def _chat(ask: Callable[[list[Any], dict[str, Any]], Any]) -> Case:
    """The loop of calls, for who leaves it to its user."""

    def play(said: str, own: bool) -> tuple[str, str]:
        more = {"tools": [{"type": "function", "function": CLOCK}]} if own else {}
        messages: list[Any] = [{"role": "user", "content": said}]
        texts = []
        for _ in range(2):
            while True:
                answer = ask(messages, more)
                message = answer.choices[0].message
                messages.append(message.model_dump(exclude_none=True))
                if not message.tool_calls:
                    break
                assert answer.choices[0].finish_reason == "tool_calls"
                for call in message.tool_calls:
                    assert call.function.name == "clock", call
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": clock()})
            texts.append(message.content)
            messages.append({"role": "user", "content": AGAIN})
        return texts[0], texts[1]

    return play


def _responses(ask: Callable[[Any, dict[str, Any]], Any], *, chained: bool = False) -> Case:
    def play(said: str, own: bool) -> tuple[str, str]:
        more: dict[str, Any] = {"tools": [{"type": "function", **CLOCK}]} if own else {}
        given: list[Any] = [{"role": "user", "content": said}]
        texts = []
        for _ in range(2):
            while True:
                answer = ask(given, more)
                output = [item.model_dump(exclude_none=True) for item in answer.output]
                given = [] if chained else given + output
                if chained:
                    more["previous_response_id"] = answer.id
                calls = [item for item in output if item["type"] == "function_call"]
                assert {call["name"] for call in calls} <= {"clock"}, calls
                given += [{"type": "function_call_output", "call_id": call["call_id"], "output": clock()}
                          for call in calls]  # fmt: skip
                if not calls:
                    break
            texts.append("".join(part["text"] for item in output if item["type"] == "message"
                                 for part in item["content"]))  # fmt: skip
            given.append({"role": "user", "content": AGAIN})
        return texts[0], texts[1]

    return play


def openai_sdk(responses: bool, stream: bool) -> Case:
    client = openai.OpenAI(**KEY, max_retries=0)

    def ask_chat(messages: list[Any], more: dict[str, Any]) -> Any:
        if not stream:
            return client.chat.completions.create(model=MODEL, messages=messages, **more)
        with client.chat.completions.stream(model=MODEL, messages=messages, **more) as events:
            return events.get_final_completion()

    def ask(given: Any, more: dict[str, Any]) -> Any:
        if not stream:
            return client.responses.create(model=MODEL, input=given, **more)
        with client.responses.stream(model=MODEL, input=given, **more) as events:
            return events.get_final_response()

    # Streamed, the next one goes on after the one before; else it has all that was said in it.
    return _responses(ask, chained=stream) if responses else _chat(ask_chat)


def lite(responses: bool, stream: bool) -> Case:
    about: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": BASE, "api_key": "none", "max_retries": 0}

    def ask_chat(messages: list[Any], more: dict[str, Any]) -> Any:
        if not stream:
            return litellm.completion(**about, messages=messages, **more)
        chunks = list(litellm.completion(**about, messages=messages, **more, stream=True))
        return litellm.stream_chunk_builder(chunks, messages=messages)

    def ask(given: Any, more: dict[str, Any]) -> Any:
        if not stream:
            return litellm.responses(**about, input=given, **more)
        events: Any = list(litellm.responses(**about, input=given, **more, stream=True))
        return next(event.response for event in events if event.type == "response.completed")

    return _responses(ask) if responses else _chat(ask_chat)


def main() -> None:
    global runs
    logging.disable(logging.CRITICAL)
    makers = {"openai-agents": openai_agents, "langchain": langchain, "pydantic-ai": pydantic, "openai": openai_sdk,
              "litellm": lite}  # fmt: skip
    for name, make in makers.items():
        for responses in (False, True):
            for stream in (False, True):
                for own in (False, True):
                    case = " ".join([name, "responses" if responses else "chat", "stream" if stream else "whole",
                                     "own" if own else "none"])  # fmt: skip
                    runs = 0
                    try:
                        text, told = make(responses, stream)(case, own)
                        seen = {"text": text, "told": told}
                    except Exception:
                        seen = {"error": traceback.format_exc()[-3000:]}
                    print(json.dumps({"case": case, "runs": runs, **seen}), flush=True)


main()
