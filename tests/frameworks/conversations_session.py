"""The OpenAI Agents SDK with ``OpenAIConversationsSession`` against a server: prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from agents import Agent, OpenAIConversationsSession, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)


@function_tool
def lookup(q: str) -> str:
    """Looks it up."""
    return f"found {q}"


async def main(url: str) -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    agent = Agent(name="a", tools=[lookup], model=OpenAIResponsesModel("scripted", client))
    session = OpenAIConversationsSession(openai_client=client)
    said = [(await Runner.run(agent, text, session=session)).final_output for text in ("hello", "look", "tools")]
    streamed = Runner.run_streamed(agent, "recall", session=session)
    async for _ in streamed.stream_events():
        pass
    items = await session.get_items()
    popped = await session.pop_item()
    after = await session.get_items()
    again = OpenAIConversationsSession(conversation_id=session.session_id, openai_client=client)
    said.append((await Runner.run(agent, "recall", session=again)).final_output)
    id = session.session_id
    found = {
        "said": said,
        "recalled": streamed.final_output,
        "types": [item.get("type", "message") for item in items],
        "popped": popped is not None and popped["id"] == items[-1]["id"] and after == items[:-1],
        "last": [item.get("id") for item in await session.get_items(2)]
        == [item.get("id") for item in (await session.get_items())[-2:]],
        "id": id,
    }
    await session.clear_session()
    found["cleared"] = await session.get_items() == [] and session.session_id != id
    print(json.dumps(found))


asyncio.run(main(sys.argv[1]))
