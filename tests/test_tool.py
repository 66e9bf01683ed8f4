"""Tools: what a model is told of a function, and what becomes of what the model writes."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from legato.agent import Turn
from legato.errors import AgentError, InvalidInput
from legato.tool import Tool, ToolError, tool
from test_agent import make_turn


class Unit(enum.Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


@dataclasses.dataclass
class Place:
    city: str
    country: str = "NO"


@tool
def weather(
    turn: Turn,
    place: Place,
    days: Annotated[int, msgspec.Meta(ge=1, le=7)] = 3,
    unit: Unit = Unit.CELSIUS,
    tags: list[str] = [],  # noqa: B006  # as users write it
) -> dict[str, Any]:
    """Tell the weather of a place.

    For some days.

    Args:
        place: where,
            roughly.
        days (int): how many.
        unnamed: nothing of the sort.

    Returns:
        The weather.
    """
    tags.append("seen")
    return {"city": place.city, "days": days, "unit": unit, "run": turn.run, "tags": tags}


async def run(tool: Tool, text: str = "{}") -> Any:
    async with asyncio.timeout(30):
        return await tool.run(tool.arguments(text), make_turn())


def test_what_a_model_is_told() -> None:
    """Types, bounds, defaults and words become a JSON schema; the turn is not for the model."""
    definition = weather.definition

    assert ("weather", "Tell the weather of a place.\n\nFor some days.") == (
        definition["name"],
        definition["description"],
    )
    schema = definition["parameters"]
    assert ["place", "days", "unit", "tags"] == list(schema["properties"])
    assert ["place"] == schema["required"]
    assert {"type": "integer", "minimum": 1, "maximum": 7, "default": 3, "description": "how many."} == schema[
        "properties"
    ]["days"]
    assert "where, roughly." == schema["properties"]["place"]["description"]
    assert {"Place", "Unit"} == set(schema["$defs"])
    assert False is schema["additionalProperties"]
    json.dumps(definition)


async def test_a_call_gets_values_of_the_declared_types() -> None:
    """And what it returns is made of JSON values."""
    answer = await run(weather, '{"place": {"city": "Oslo"}, "unit": "f"}')

    assert {"city": "Oslo", "days": 3, "unit": "f", "run": "s~r", "tags": ["seen"]} == answer
    assert ["seen"] == (await run(weather, '{"place": {"city": "Oslo"}}'))["tags"]  # a default is nobody's to keep


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ("{}", "missing required field `place`"),
        ('{"place": {"city": 1}}', "$.place.city"),
        ('{"place": {"city": "x"}, "days": 8}', "$.days"),
        ('{"place": {"city": "x"}, "dayz": 8}', "unknown field `dayz`"),
        ("[" * 100_000, "weather"),
    ],
)
def test_arguments_that_do_not_fit(text: str, words: str) -> None:
    """The model is told what is wrong, and where."""
    with pytest.raises(ToolError, match="The arguments do not fit weather") as caught:
        weather.arguments(text)

    assert words in caught.value.message


def test_no_arguments_are_an_empty_object() -> None:
    """Some models write nothing at all."""
    assert {"x": 1} == Tool(_with_default).arguments("")


def _with_default(x: int = 1) -> int:
    return x


async def _async(x: int = 1) -> int:
    await asyncio.sleep(0)
    return x


class _Object:
    def __call__(self, x: int = 1) -> int:
        return x


class _AsyncObject:
    async def __call__(self, x: int = 1) -> int:
        return x


@pytest.mark.parametrize(
    "function",
    [_with_default, _async, _Object(), _AsyncObject(), _Object().__call__, lambda x=1: _async(x)],
    ids=["plain", "async", "object", "async object", "method", "lambda"],
)
async def test_kinds_of_functions(function: Any) -> None:
    """All are called alike."""
    assert 5 == await run(Tool(function, name="f"), '{"x": 5}')


async def test_a_plain_function_may_block() -> None:
    """It runs in a thread, so the event loop goes on, and can be waited for through the turn."""
    import threading

    gate = threading.Event()

    def block() -> str:
        assert gate.wait(30)
        return "done"

    waiting = asyncio.create_task(run(Tool(block)))
    await asyncio.sleep(0)
    gate.set()

    assert "done" == await waiting


class _Unwritable:
    pass


def _raises(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_raises(ToolError("No such city.")), "No such city."),
        (_raises(AgentError("Closed.")), "f failed. Closed."),
        (_raises(ValueError("secret")), "f failed. The server's log has the details."),
        (_raises(SystemExit(1)), "f failed. The server's log has the details."),
        (_raises(StopIteration()), "f failed. The server's log has the details."),
        (lambda: _Unwritable(), "f failed. The output of f must be made of JSON values"),
    ],
    ids=["told", "safe", "not safe", "exit", "odd", "output"],
)
async def test_a_tool_that_fails(function: Any, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """What it says on purpose is told; anything else stays in the log."""
    with pytest.raises(ToolError) as caught:
        await run(Tool(function, name="f"))

    assert caught.value.message.startswith(words)
    assert "secret" not in caught.value.message


async def test_a_tool_that_takes_too_long() -> None:
    """It is given up."""
    with pytest.raises(ToolError, match=r"f did not finish within 0.001 seconds\."):
        await run(Tool(asyncio.Event().wait, name="f", timeout=0.001))


async def test_an_async_tool_that_exits() -> None:
    """It ends neither the run nor the server."""

    async def leave() -> None:
        raise SystemExit(1)

    with pytest.raises(ToolError, match="leave failed"):
        await run(Tool(leave))


def test_a_tool_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    """Its thread is let go of when everything else has ended."""
    code = (
        "import asyncio, threading\n"
        "from legato.tool import Tool, ToolError\n"
        "async def main():\n"
        "    try:\n"
        "        await Tool(threading.Event().wait, name='f', timeout=0.01).run({}, None)\n"
        "    except ToolError as exc:\n"
        "        print(exc.message)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert "f did not finish within 0.01 seconds.\n" == done.stdout


@pytest.mark.parametrize(
    ("approval", "question"),
    [
        (False, None),
        ("", None),
        (True, "Run f?"),
        ("Delete {x}?", "Delete 1?"),
        (lambda x: x > 0, "Run f?"),
        (lambda x: x < 0, None),
        (lambda x: f"{x} {{x}}?", "1 {x}?"),
    ],
)
def test_what_the_user_is_asked(approval: Any, question: str | None) -> None:
    """Nothing, a general question, one in words, or one that depends on the arguments."""
    assert question == Tool(_with_default, name="f", approval=approval).question({"x": 1})


def _positional(x: int, /) -> None: ...


def _variable(*x: int) -> None: ...


def _keywords(**x: int) -> None: ...


def _unwritable(x: _Unwritable) -> None: ...


def _unknown(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("function", [_positional, _variable, _keywords, _unwritable, _unknown, dict.get])
def test_functions_that_a_model_cannot_call(function: Any) -> None:
    """They are refused when they are declared."""
    with pytest.raises(InvalidInput, match=function.__name__):
        Tool(function)


async def _async_approval() -> bool:
    return False


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 65},
        {"on_crash": "resume"},
        {"approval": "Delete {path}?"},
        {"approval": "Delete {}?"},
        {"approval": "Delete {?"},
        {"approval": _async_approval},
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    """They are refused, too."""
    with pytest.raises(InvalidInput):
        Tool(lambda: None, **options)


def test_a_tool_is_still_its_function() -> None:
    """Other code, and tests, call it as before; with options the decorator works alike."""

    @tool(name="plus", description="Adds.", approval=True, on_crash="retry")
    def add(a: int, b: Literal[1, 2]) -> int:
        return a + b

    assert (5, "plus", "Adds.", "retry") == (add(3, b=2), add.name, add.description, add.on_crash)
    assert "partial" == Tool(functools.partial(_with_default), name="partial").name
    assert "2026-01-02" == msgspec.to_builtins(Tool(_dated).arguments('{"day": "2026-01-02"}')["day"])


def _dated(day: datetime.date) -> None: ...
