"""An agent of pydantic-ai: a tool, and one that asks the user first.

    pip install 'legato[server,pydantic-ai]' 'pydantic-ai-slim[openai]'
    legato serve examples/agent_pydantic_ai.py

With OPENAI_API_KEY set a real model answers, else pydantic-ai's test model, which calls each tool once.
"""

import os

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from legato.agents.pydantic_ai import adapt

if os.environ.get("OPENAI_API_KEY"):
    model = os.environ.get("MODEL", "openai:gpt-4.1-mini")
else:
    print("OPENAI_API_KEY is not set: pydantic-ai's test model answers.")
    model = TestModel(custom_output_text="I am a test model. Set OPENAI_API_KEY, and a real one answers.")

assistant = Agent(model, name="assistant", instructions="Answer in one or two sentences.")


@assistant.tool_plain
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


@assistant.tool_plain(requires_approval=True)
def send_postcard(text: str) -> str:
    """Send the user's friends a postcard."""
    return f"Sent: {text}"


agent = adapt(assistant, description="Knows the weather, and sends postcards if it may.")
