"""An agent of LangChain, which is a graph of LangGraph: a tool, and one that asks the user first.

    pip install 'legato[server,langgraph]' langchain-openai
    legato serve examples/agent_langgraph.py

With OPENAI_API_KEY set a real model answers, else a stand-in, which calls each tool once.
"""

import os

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.language_models.chat_models import BaseChatModel, generate_from_stream
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.checkpoint.memory import InMemorySaver

from legato.agents.langgraph import adapt


class Rehearsal(BaseChatModel):
    """Stands in for a model: after the user's words it calls the tools, after their results it says what it is."""

    _llm_type = "rehearsal"

    def bind_tools(self, tools, **options):
        return self

    def _generate(self, messages, *args, **options):
        return generate_from_stream(self._stream(messages))

    def _stream(self, messages, *args, **options):
        if messages[-1].type == "human":
            calls = [("weather", '{"city": "Rome"}'), ("send_postcard", '{"text": "Hello"}')]
            for index, (name, arguments) in enumerate(calls):
                call = {"index": index, "id": f"{name}_{len(messages)}", "name": name, "args": arguments}
                yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[call]))
        else:
            for piece in ("I am a stand-in. ", "Set OPENAI_API_KEY, ", "and a model answers."):
                yield ChatGenerationChunk(message=AIMessageChunk(piece))


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


def send_postcard(text: str) -> str:
    """Send the user's friends a postcard."""
    return f"Sent: {text}"


if os.environ.get("OPENAI_API_KEY"):
    model = os.environ.get("MODEL", "openai:gpt-4.1-mini")
else:
    print("OPENAI_API_KEY is not set: a stand-in for a model answers.")
    model = Rehearsal()

assistant = create_agent(
    model,
    [weather, send_postcard],
    name="assistant",
    system_prompt="Answer in one or two sentences.",
    middleware=[HumanInTheLoopMiddleware(interrupt_on={"send_postcard": True})],
    checkpointer=InMemorySaver(),  # interrupts need one
)
agent = adapt(assistant, description="Knows the weather, and sends postcards if it may.")
