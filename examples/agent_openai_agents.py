"""An agent of the OpenAI Agents SDK: a tool, and one that asks the user first.

    pip install 'legato[server,openai-agents]'
    legato serve examples/agent_openai_agents.py

With OPENAI_API_KEY set a real model answers, else one that is scripted, which calls each tool once.
"""

import os

from agents import Agent, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call

from legato.agents.openai_agents import adapt


class Rehearsal(ScriptedModel):
    """Stands in for a model: after the user's words it calls the tools, after their results it says what it is."""

    async def stream_response(self, system_instructions, input, *args, **options):
        if input[-1].get("role") == "user":
            step = [
                function_call("weather", {"city": "Rome"}, call_id=f"weather_{len(input)}"),
                function_call("send_postcard", {"text": "Hello"}, call_id=f"postcard_{len(input)}"),
            ]
        else:
            step = [assistant_message("I am a scripted model. Set OPENAI_API_KEY, and a real one answers.")]
        self.enqueue(step)
        async for event in super().stream_response(system_instructions, input, *args, **options):
            yield event


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


@function_tool(needs_approval=True)
def send_postcard(text: str) -> str:
    """Send the user's friends a postcard."""
    return f"Sent: {text}"


if os.environ.get("OPENAI_API_KEY"):
    model = os.environ.get("MODEL", "gpt-4.1-mini")
else:
    print("OPENAI_API_KEY is not set: a scripted model answers.")
    model = Rehearsal()
    set_tracing_disabled(True)

assistant = Agent(
    name="assistant",
    instructions="Answer in one or two sentences.",
    model=model,
    tools=[weather, send_postcard],
)
agent = adapt(assistant, description="Knows the weather, and sends postcards if it may.")
