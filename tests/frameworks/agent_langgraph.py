"""The script's model behind an agent of LangChain, which is a graph of LangGraph."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import AsyncIterator
from typing import Any, TypedDict

import pydantic
import script
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import StructuredTool, ToolException
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import interrupt
from stepwise import stepwise

from legato import Agent, Thinking, Turn
from legato.agents.langgraph import adapt, translate
from legato.errors import InvalidInput


class RateLimitError(Exception):
    """As the SDKs of vendors raise it."""


def read(messages: list[BaseMessage]) -> script.Seen:
    seen = script.Seen()
    for message in messages:
        match message.type:
            case "ai":
                if message.text:
                    seen.add("assistant", message.text)
                for call in message.tool_calls:
                    seen.add("call", f"{call['name']} {json.dumps(call['args'])}")
            case "tool":
                seen.add("result", message.text)
            case "human":
                blocks = (block.get("text") or f" [{block['type']}]" for block in message.content_blocks)
                seen.add("user", "".join(blocks))
            case kind:
                seen.add(kind, message.text)
    return seen


def write(piece: object) -> AIMessageChunk:
    match piece:
        case script.Think(text):
            return AIMessageChunk([{"type": "reasoning", "reasoning": text, "index": 0}])
        case script.Say(text):
            return AIMessageChunk(text)
        case script.Call(place, id, name):
            return AIMessageChunk("", tool_call_chunks=[{"index": place, "id": id, "name": name, "args": ""}])
        case script.Arguments(place, text):
            return AIMessageChunk("", tool_call_chunks=[{"index": place, "id": None, "name": None, "args": text}])
        case script.End() as end:
            usage = {
                "input_tokens": end.input_tokens,
                "output_tokens": end.output_tokens,
                "total_tokens": end.input_tokens + end.output_tokens,
                "input_token_details": {"cache_read": end.cached_tokens},
                "output_token_details": {"reasoning": end.reasoning_tokens},
            }
            about = {"finish_reason": end.reason, "model_name": "scripted"}
            return AIMessageChunk("", usage_metadata=usage, response_metadata=about)
    raise AssertionError(piece)


class Scripted(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise NotImplementedError

    async def _astream(self, messages: Any, *args: Any, **options: Any) -> AsyncIterator[ChatGenerationChunk]:
        async with contextlib.aclosing(script.answer(read(messages))) as pieces:
            try:
                async for piece in pieces:
                    yield ChatGenerationChunk(message=write(piece))
            except script.Busy as exc:
                raise RateLimitError(str(exc)) from exc


def broken(what: str) -> str:
    """Break."""
    raise ToolException(f"Broken: {what}")


assistant = create_agent(
    Scripted(),
    [
        StructuredTool.from_function(script.add),
        StructuredTool.from_function(script.shell),
        StructuredTool.from_function(broken, handle_tool_error=True),
    ],
    system_prompt="Be brief.",
    checkpointer=InMemorySaver(),
    middleware=[HumanInTheLoopMiddleware(interrupt_on={"shell": True})],
)
agent = stepwise(adapt(assistant, name="agent", on_crash="retry"))


async def durable(turn: Turn) -> AsyncIterator[Any]:
    """The same agent with a checkpointer that outlives the process."""
    async with AsyncSqliteSaver.from_conn_string(os.environ["CHECKPOINTS"]) as checkpointer:
        graph = create_agent(
            Scripted(), [StructuredTool.from_function(coroutine=script.linger)], checkpointer=checkpointer
        )
        async for item in adapt(graph).stream(turn):
            yield item


durable_agent = Agent(durable, on_crash="retry")


@dataclasses.dataclass
class Context:
    """What the server knows of the user."""

    name: str


def whoami() -> str:
    """Tell who the user is."""
    return get_runtime(Context).context.name


with_context = adapt(
    create_agent(Scripted(), [StructuredTool.from_function(whoami)], context_schema=Context),
    name="with_context",
    options=lambda turn: {"context": Context(turn.message.text.split()[-1])},
)
impatient = adapt(assistant, name="impatient", options=lambda turn: {"config": {"recursion_limit": 1}})


# Graphs of one's own --------------------------------------------------------------------------------------------------


class State(MessagesState):
    """More than messages."""

    count: int


def counting(state: State) -> dict[str, Any]:
    count = state.get("count", 0) + 1
    return {"count": count, "messages": [AIMessage(f"{count} of {len(state['messages'])}")]}


def asking(state: State) -> dict[str, Any]:
    answer = interrupt({"question": "Shall I?", "place": "here"})
    return {"messages": [AIMessage(f"The answer was {answer!r}.")]}


def telling(state: State) -> dict[str, Any]:
    write = get_stream_writer()
    write(Thinking("I read."))
    write("Reading. ")
    write({"progress": 0.5})
    return {"messages": [AIMessage("Read.")]}


async def whole(state: State) -> dict[str, Any]:
    model = GenericFakeChatModel(messages=iter([AIMessage("All at once.", usage_metadata=USAGE)]))
    return {"messages": [await model.bind().ainvoke(state["messages"], config={"tags": ["whole"]})]}


USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


def speaker(word: str) -> Any:
    async def speak(state: State) -> dict[str, Any]:
        return {"messages": [await Scripted().ainvoke([HumanMessage(f"words {word}")])]}

    return speak


def graph(*nodes: Any, beside: bool = False, **options: Any) -> Any:
    """A graph with these nodes, one after another or all ``beside`` each other."""
    builder = StateGraph(State)
    names = [f"{getattr(node, '__name__', 'node')}_{number}" for number, node in enumerate(nodes)]
    for number, (name, node) in enumerate(zip(names, nodes, strict=True)):
        builder.add_node(name, node)
        builder.add_edge(names[number - 1] if number and not beside else START, name)
    return builder.compile(**options)


kept = adapt(graph(counting, checkpointer=InMemorySaver()), name="kept", thread=lambda turn: turn.session)
fresh = adapt(graph(counting, checkpointer=InMemorySaver()), name="fresh")
interrupted = adapt(graph(asking, checkpointer=InMemorySaver()), name="interrupted")
stopping = adapt(
    graph(counting, counting, checkpointer=InMemorySaver(), interrupt_before=["counting_1"]), name="stopping"
)
writing = adapt(graph(telling), name="writing")
at_once = adapt(graph(whole), name="at_once")
choir = adapt(graph(speaker("one"), speaker("two"), beside=True), name="choir")
forgetful_saver = InMemorySaver()
forgetful = adapt(graph(counting, checkpointer=forgetful_saver), name="forgetful")


async def answered(turn: Turn, value: Any) -> Any:
    answer = await turn.notify("Question", value["question"], kind="question", response="text", wait=True)
    return answer.value


elsewhere = adapt(graph(asking, checkpointer=InMemorySaver()), name="elsewhere", on_interrupt=answered)


async def bare(turn: Turn) -> AsyncIterator[Any]:
    """A chat model without a graph, by hand."""
    async for item in translate(Scripted().astream([HumanMessage(turn.message.text)])):
        yield item


async def checkpoints(turn: Turn) -> AsyncIterator[str]:
    """Tells how many threads the forgetful agent has left."""
    yield str(len(forgetful_saver.storage))


# Ends that no stream has ----------------------------------------------------------------------------------------------


class Once(BaseChatModel):
    """A model that calls one tool, and does not stream."""

    tool: str

    @property
    def _llm_type(self) -> str:
        return "once"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        call = {"id": "c", "name": self.tool, "args": {"city": "Oslo"}}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])


def weather(city: str) -> str:
    """The weather."""
    return f"Sunny in {city}."


def consult(city: str) -> str:
    """Ask somebody."""
    return str(interrupt(city))


class Where(pydantic.BaseModel):
    """A place."""

    city: str


class Bare(TypedDict):
    """A state that makes no messages of what nodes return."""

    messages: list[Any]
    answer: str


def returning(messages: Any, state: Any = State, **more: Any) -> Any:
    def node(state: Any) -> dict[str, Any]:
        return {"messages": messages, **more}

    builder = StateGraph(state)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    return builder.compile()


RETURNED: dict[str, Any] = {
    "dicts": returning([{"role": "ai", "content": "hello world"}]),
    "one_dict": returning({"role": "assistant", "content": "hello world"}),
    "tuples": returning([("ai", "hello world")]),
    "texts": returning(["hello world"]),
    "text": returning("hello world"),
    "several": returning([{"role": "ai", "content": "hello "}, ("ai", "world")]),
    "objects": returning([AIMessage("hello world")]),
    "bare_dicts": returning([{"role": "ai", "content": "hello world"}], Bare),
    "no_message": returning([], Bare, answer="hello world"),
    "direct": create_agent(Once(tool="weather"), [StructuredTool.from_function(weather, return_direct=True)]),
    "formatted": create_agent(Once(tool="Where"), [], response_format=ToolStrategy(Where)),
}
(
    dicts, one_dict, tuples, texts, text, several, objects, bare_dicts, no_message, direct, formatted,
) = (adapt(each, name=name) for name, each in RETURNED.items())  # fmt: skip


def deeper(state: State) -> dict[str, Any]:
    return asking(state)


def graph_of(inner: Any) -> Any:
    """A graph whose node is a graph."""
    return StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile()


def by_hand(state: State) -> dict[str, Any]:
    from langgraph.types import interrupt as stop

    return {"messages": [AIMessage(str(stop("?")))]}


unnoticed = adapt(graph(deeper), name="unnoticed")


async def refusals(turn: Turn) -> AsyncIterator[str]:
    """Which graphs are refused for want of a checkpointer, and which are not."""
    shell = StructuredTool.from_function(script.shell)
    graphs: dict[str, Any] = {
        "interrupt": lambda: graph(asking),
        "import": lambda: graph(by_hand),
        "breakpoint": lambda: graph(counting, interrupt_before=["counting_0"]),
        "behind": lambda: graph(counting, interrupt_after=["counting_0"]),
        "middleware": lambda: create_agent(
            Scripted(), [shell], middleware=[HumanInTheLoopMiddleware(interrupt_on={"shell": True})]
        ),
        "tool": lambda: create_agent(Scripted(), [StructuredTool.from_function(consult)]),
        "subgraph": lambda: graph_of(graph(asking)),
        "deep": lambda: graph_of(graph_of(graph(asking))),
        "none": lambda: graph(counting),
        "none below": lambda: graph_of(graph(counting)),
        "kept": lambda: graph(asking, checkpointer=InMemorySaver()),
        "plain": lambda: create_agent(Scripted(), [shell]),
    }
    for name, make in graphs.items():
        try:
            adapt(make())
        except InvalidInput as exc:
            yield f"{name} " if "checkpointer" in str(exc) else f"{exc} "


class APIStatusError(Exception):
    """As Anthropic's SDK raises it in the middle of a stream: with the status of the answer's head."""

    status_code = 200

    def __init__(self, body: Any) -> None:
        super().__init__("odd")
        self.body = body


def failing(state: State) -> dict[str, Any]:
    raise APIStatusError({"type": "error", "error": {"type": state["messages"][-1].text, "message": "Odd."}})


midway = adapt(graph(failing), name="midway")
