"""From what was named on the command line to agents: modules, files, and the objects in them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from ..agent import Agent
from ..tool import Tool
from .failure import Failure, Misuse
from .settings import Misset

if TYPE_CHECKING:
    from ..server.app import Legato

_TARGET = re.compile(r"(?P<place>.+?)(?::(?P<name>[^\W\d][\w.]*))?")

FORMS = "module, module:agent, file.py or file.py:agent"
EXPECTED = "an agent (a function of one argument, the turn), a legato.agent.Agent or a Legato app"
EXPECTED_TOOLS = "functions under @tool (from legato.tool import tool), since a model answers; or agents beside it"

EXTRAS = {
    "agents": "openai-agents",
    "langchain": "langgraph",
    "langchain_core": "langgraph",
    "langgraph": "langgraph",
    "pydantic_ai": "pydantic-ai",
}
"""What of ours installs a framework, by the name under which it is imported."""


class Target(NamedTuple):
    """What a target is.

    Attributes:
        app: the application; None when there is none.
        agents: else the agents, the default one first.
        tools: beside the agents, for a model.
    """

    app: Legato | None
    agents: list[Agent]
    tools: list[Tool]


def load(target: str, *, tools_only: bool = False) -> Target:
    """What ``target`` names.

    Args:
        target: see ``FORMS``.
        tools_only: there need be no agent, since a model is to answer.

    Raises:
        Failure: with status 2: it cannot be imported, or there is nothing of the kind in it.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise Misuse(f"{target!r} is not of the form {FORMS}.")
    place, name = match["place"], match["name"]
    is_path = place.endswith(".py") or "/" in place or "\\" in place
    module = _file(Path(place)) if is_path else _module(place)
    tools = list({id(value): value for value in _held(module).values() if isinstance(value, Tool)}.values())
    if name is not None:
        found = _named(module, place, name)
    elif tools_only and tools and not _names(module) and not any(_is_app(value) for value in _held(module).values()):
        return Target(None, [], tools)
    else:
        found = _whole(module, place, EXPECTED_TOOLS if tools_only else EXPECTED)
    return Target(None, found, tools) if isinstance(found, list) else Target(found, [], [])


# Importing ------------------------------------------------------------------------------------------------------------


def _module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise Misuse(f"{name!r} is not a module's name; expected {FORMS}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
            raise _broken(exc, name) from exc
        beside = f"; did you mean {name}.py?" if Path(f"{name}.py").exists() else ""
        where = f"in {Path.cwd()} or among the installed packages"
        raise Misuse(f"There is no module {exc.name!r} {where}{beside}") from exc
    except Exception as exc:
        raise _broken(exc, name) from exc


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Misuse(f"There is no file {str(path)!r}; a target is {FORMS}.")
    sys.path.insert(0, str(path.resolve().parent))
    # A file may be called like a module that is loaded already: it must not take that one's place.
    name = path.stem if path.stem not in sys.modules and path.stem.isidentifier() else "legato_target"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Misuse(f"{str(path)!r} is not a Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise _broken(exc, str(path)) from exc
    return module


def _broken(exc: Exception, what: str) -> Failure:
    """What went wrong while ``what`` was imported: where, and how."""
    if isinstance(exc, SyntaxError):
        return Misuse(f"{exc.filename}:{exc.lineno}: {type(exc).__name__}: {exc.msg}")
    # The innermost place that the user can change, which is not in Python, in a library or here.
    paths = sysconfig.get_paths()
    ours = str(Path(__file__).parents[1])
    others = (paths["stdlib"], paths["purelib"], paths["platlib"], "<frozen", ours)
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if not f.filename.startswith(others)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else what
    faults: list[str] | None = getattr(exc, "faults", None)
    if faults is not None:  # of ``Legato(...)``, which tells all of them
        return Misset(f"{where}: {fault}" for fault in faults)
    advice = _advice(exc) if isinstance(exc, ModuleNotFoundError) else ""
    return Misuse(f"{where}: {type(exc).__name__}: {exc}{advice} (--debug shows more)")


def _advice(exc: ModuleNotFoundError) -> str:
    """How to get what is missing, as far as anybody can know: a package may be called unlike its module."""
    name = (exc.name or "").partition(".")[0]
    if extra := EXTRAS.get(name):
        return f"; the framework of that name comes with pip install 'legato[{extra}]'"
    return f"; install the package that has it into the environment of {sys.executable}"


# Finding --------------------------------------------------------------------------------------------------------------


def _named(module: ModuleType, place: str, name: str) -> Legato | list[Agent]:
    found: object = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = ", ".join(_names(module)) or "no agent at all"
            raise Misuse(f"There is no {name!r} in {place}; it has {known}.") from None
    if _is_app(found):
        return found
    return [_agent(found, f"{place}:{name}")]


def _whole(module: ModuleType, place: str, expected: str) -> Legato | list[Agent]:
    apps = list({id(value): value for value in _held(module).values() if _is_app(value)}.values())
    if _is_app(getattr(module, "app", None)):
        apps = [module.app]
    if len(apps) > 1:
        names = ", ".join(name for name, value in _held(module).items() if _is_app(value))
        raise Misuse(f"There are several apps in {place} ({names}); name one, as in {place}:app")
    if apps:
        return apps[0]
    found = {name: getattr(module, name) for name in _names(module)}
    # An Agent and the function it was made of, or two names of one thing, are one agent.
    wrapped = {id(value.function) for value in found.values() if isinstance(value, Agent)}
    distinct = {id(value): name for name, value in reversed(found.items()) if id(value) not in wrapped}
    if not distinct:
        tools = any(isinstance(value, Tool) for value in _held(module).values())
        hint = "; its tools are for a model, to be named with --model" if tools else ""
        missing = "neither a tool nor an agent" if expected == EXPECTED_TOOLS else "no agent"
        raise Misuse(f"There is {missing} in {place}: expected {expected}{hint}.")
    return [_agent(found[name], f"{place}:{name}") for name in reversed(distinct.values())]


def _held(module: ModuleType) -> dict[str, Any]:
    """What it holds now: who looks at something in it may make it load more."""
    return dict(vars(module))


def _names(module: ModuleType) -> list[str]:
    """The names of what looks like an agent in ``module``; ``agent`` first, so that it is the default."""
    names = [name for name, value in _held(module).items() if not name.startswith("_") and _looks(value, module)]
    if callable(getattr(module, "agent", None)) and "agent" not in names and not inspect.ismodule(module.agent):
        names.append("agent")
    return sorted(names, key=lambda name: name != "agent")


def _looks(value: object, module: ModuleType) -> bool:
    if isinstance(value, Agent):
        return True
    if isinstance(value, Tool):
        return False
    if not inspect.isfunction(value) or value.__module__ != module.__name__:
        return False
    parameters = _required(value)
    if parameters is None or len(parameters) != 1:
        return False
    annotation = parameters[0].annotation
    named = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return parameters[0].name == "turn" or named.rpartition(".")[2] == "Turn"


def _required(function: Callable[..., object]) -> list[inspect.Parameter] | None:
    """The parameters that a caller must give; None when nobody knows."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind not in variable]


def _agent(found: object, where: str) -> Agent:
    if isinstance(found, Agent):
        return found
    if not callable(found):
        raise Misuse(f"{where} is of type {type(found).__name__}; expected {EXPECTED}.")
    required = _required(found)
    if required is not None:
        try:
            inspect.signature(found).bind(object())
        except TypeError:
            names = ", ".join(parameter.name for parameter in required)
            raise Misuse(f"{where} takes ({names}); an agent is called with one argument, the turn.") from None
    return Agent(found)


def _is_app(value: object) -> TypeGuard[Legato]:
    from ..server.app import Legato

    return isinstance(value, Legato)
