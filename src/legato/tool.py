"""Tools: typed Python functions that a model may call.

A ``Tool`` knows its function's name, words and JSON schema, and how to call it with the JSON text that a model wrote.
It knows nothing of models or logs; ``agents.model_turn`` drives it. The one rule: whatever a model writes and whatever
the function does, ``run`` ends with an output or a ``ToolError``, whose text is meant for the model and the reader.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import logging
import re
import threading
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack, get_args, get_origin, get_type_hints, overload

import msgspec

from .agent import Turn
from .errors import AgentError, InvalidInput, LegatoError, TooLarge
from .json import JsonObject
from .part import as_json

logger = logging.getLogger("legato")

F = TypeVar("F", bound=Callable[..., object])

Approval = bool | str | Callable[..., bool | str]
"""Whether the user is asked before a tool runs; text is the question, with the arguments in braces."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""What every provider takes for a function's name."""


class ToolError(LegatoError):
    """Raised by a tool to tell the model, in words, why it could not do it. The run goes on.

    Any other exception is told as a general sentence, its text only in the server's log.
    """

    code = "tool_failed"
    status = 502


class ToolOptions(TypedDict, total=False):
    """What may be said of a tool, see ``Tool``."""

    name: str | None
    description: str | None
    approval: Approval
    timeout: float | None
    on_crash: Literal["fail", "retry"]


class Tool:
    """A function that a model may call. ``@tool`` and ``@app.tool`` make one; calling it calls the function.

    The parameters' types say what the model must send: everything that ``msgspec`` decodes from JSON (numbers, text,
    lists, ``Literal``, enums, dates, dataclasses, ``Annotated`` with ``msgspec.Meta`` bounds ...). Defaults make them
    optional. A parameter of type ``Turn``, or without a type and named ``turn``, is the turn and not for the model.

    Args:
        function: async, or plain: then it runs in a thread. Its docstring tells the model what it does, the lines
            under ``Args:`` what its parameters are.
        name: by which the model calls it; letters, digits, ``_`` and ``-``, at most 64. The function's own by default.
        description: instead of the docstring's.
        approval: True asks the user before each run; text is the question (``"Delete {path}?"``); a function is called
            with the arguments and gives one of these.
        timeout: seconds after which it has failed; a plain function's thread cannot be stopped and goes on.
        on_crash: what becomes of a call that was running when the process died: ``"fail"`` tells the model that nobody
            knows whether it was done, ``"retry"`` runs it again.

    Raises:
        InvalidInput: the function cannot be offered to a model.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *,
        name: str | None = None,
        description: str | None = None,
        approval: Approval = False,
        timeout: float | None = None,
        on_crash: Literal["fail", "retry"] = "fail",
    ) -> None:
        self.function = function
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        if not NAME.fullmatch(self.name):
            raise InvalidInput(f"A tool's name is 1 to 64 letters, digits, _ and -; got {self.name[:100]!r}.")
        if on_crash not in ("fail", "retry"):
            raise InvalidInput(f"on_crash of a tool is 'fail' or 'retry', got {on_crash!r}.")
        self.approval = approval
        self.timeout = timeout
        self.on_crash = on_crash
        text, about = _docstring(function)
        self.description = text if description is None else description
        self._turn, self._arguments = _signature(function, self.name, about)
        self.parameters: JsonObject = _schema(self._arguments, self.name)
        _check_approval(approval, self._arguments, self.name)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """The function itself."""
        return self.function(*args, **kwargs)

    @property
    def definition(self) -> JsonObject:
        """What a model is told: ``name``, ``description``, ``parameters`` (a JSON schema)."""
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    def arguments(self, text: str) -> dict[str, object]:
        """The arguments in the JSON text that a model wrote, of the declared types; "" stands for none.

        Raises:
            ToolError: they do not fit; the text says where.
        """
        try:
            read = msgspec.json.decode(text or "{}", type=self._arguments)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            raise ToolError(f"The arguments do not fit {self.name}: {exc}.") from exc
        return {name: getattr(read, name) for name in self._arguments.__struct_fields__}

    def question(self, arguments: Mapping[str, object]) -> str | None:
        """What the user is to be asked before the tool runs with ``arguments``; None: nothing."""
        wanted = self.approval(**arguments) if callable(self.approval) else self.approval
        if isinstance(wanted, str) and wanted:
            return wanted if callable(self.approval) else wanted.format_map(arguments)
        return f"Run {self.name}?" if wanted else None

    async def run(self, arguments: Mapping[str, object], turn: Turn) -> Any:
        """Call the function; what it returns, as JSON values.

        Raises:
            ToolError: it failed, took too long, or returned what JSON cannot hold.
        """
        given = {**arguments, **({self._turn: turn} if self._turn else {})}
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                if inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
                    getattr(self.function, "__call__", None)  # noqa: B004  # an object that is a function by its __call__
                ):
                    output = self.function(**given)
                else:
                    output = await _in_thread(self.name, functools.partial(self.function, **given))
                if inspect.isawaitable(output):  # also of a lambda around an async function
                    output = await output
            return as_json(f"The output of {self.name}", output)
        except ToolError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as exc:  # a task hands the last two on, and the server ends
            if limit.expired():
                raise ToolError(f"{self.name} did not finish within {self.timeout:g} seconds.") from exc
            logger.error("tool %s failed", self.name, exc_info=exc)
            # Other errors of Legato, as of a store or a provider, may name files or quote keys.
            words = "The server's log has the details."
            if isinstance(exc, AgentError | InvalidInput | TooLarge):
                words = exc.message
            raise ToolError(f"{self.name} failed. {words}") from exc


async def _in_thread(name: str, call: Callable[[], object]) -> object:
    """What ``call`` returns, from a thread of its own. Not of a pool: one that hangs would keep the process alive."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[object] = loop.create_future()

    def tell(error: BaseException | None, value: object) -> None:
        if done.done():  # nobody waits any more
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def work() -> None:
        error: BaseException | None = None
        value: object = None
        try:
            value = call()
        except (SystemExit, KeyboardInterrupt, StopIteration) as exc:  # those that a future does not carry
            error = RuntimeError(f"{name} raised {type(exc).__name__}")
        except BaseException as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(tell, error, value)
        except RuntimeError:
            pass  # the loop is closed

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), daemon=True, name=f"legato-tool-{name}").start()
    return await done


@overload
def tool(function: F, /) -> Tool: ...
@overload
def tool(**options: Unpack[ToolOptions]) -> Callable[[F], Tool]: ...


def tool(function: F | None = None, /, **options: Unpack[ToolOptions]) -> Tool | Callable[[F], Tool]:
    """Make a ``Tool`` of a function; a decorator, with or without arguments (those of ``Tool``)."""
    if function is not None:
        return Tool(function)
    return lambda function: Tool(function, **options)


# From a function to a schema ------------------------------------------------------------------------------------------

_SECTION = re.compile(r"(args|arguments|parameters|returns|yields|raises|examples?|notes?|attributes)\s*:?", re.I)


def _docstring(function: Callable[..., object]) -> tuple[str, dict[str, str]]:
    """What the docstring says of the function, and of each parameter (the lines ``name: text`` under ``Args:``)."""
    text: list[str] = []
    about: dict[str, str] = {}
    section, last = "", ""
    for line in (inspect.getdoc(function) or "").splitlines():
        plain = line.strip()
        if line and not line[0].isspace() and plain.endswith(":") and _SECTION.fullmatch(plain):
            section, last = plain.rstrip(":").lower(), ""
        elif not section:
            text.append(line)
        elif section in ("args", "arguments", "parameters") and plain:
            begun = re.match(r"\*{0,2}(\w+)(?: \([^)]*\))?: (.+)", plain)
            if begun:
                last = begun[1]
                about[last] = begun[2]
            elif last:
                about[last] += f" {plain}"
    return "\n".join(text).strip(), about


def _signature(
    function: Callable[..., object], name: str, about: Mapping[str, str]
) -> tuple[str | None, type[msgspec.Struct]]:
    """The parameter that takes the turn, if there is one, and a struct of the others."""
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = get_type_hints(_routine(function), include_extras=True)
    except (TypeError, ValueError, NameError, AttributeError) as exc:
        raise InvalidInput(f"The parameters of tool {name!r} cannot be read: {exc}.") from exc
    turn, fields = None, []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidInput(f"A model calls a tool by its parameters' names; {name!r} has {parameter}.")
        hint = hints.get(parameter.name, Any)
        if hint is Turn or (parameter.name == "turn" and parameter.annotation is parameter.empty):
            turn = parameter.name
        else:
            fields.append(_field(parameter, hint, about.get(parameter.name)))
    try:
        return turn, msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    except TypeError as exc:
        raise InvalidInput(f"The parameters of tool {name!r} cannot be read: {exc}.") from exc


def _routine(function: Callable[..., object]) -> Callable[..., object]:
    """What has the types of the parameters: the function, or the ``__call__`` of an object that is one."""
    return function if inspect.isroutine(function) else type(function).__call__


def _check_approval(approval: Approval, arguments: type[msgspec.Struct], name: str) -> None:
    """A question that cannot be asked would fail each call, long after it was written."""
    if inspect.iscoroutinefunction(approval):
        raise InvalidInput(f"The approval of tool {name!r} is a plain function; this one is async.")
    if isinstance(approval, str):
        try:
            asked = [
                re.split(r"[.\[]", field)[0] for _, field, _, _ in Formatter().parse(approval) if field is not None
            ]
        except ValueError as exc:
            raise InvalidInput(f"The question of tool {name!r} cannot be read: {exc}.") from exc
        if unknown := set(asked) - set(arguments.__struct_fields__):
            raise InvalidInput(f"The question of tool {name!r} names {sorted(unknown)}, which are no arguments of it.")


def _field(parameter: inspect.Parameter, hint: Any, about: str | None) -> tuple[str, type] | tuple[str, type, object]:
    described = get_origin(hint) is Annotated and any(
        isinstance(each, msgspec.Meta) and each.description for each in get_args(hint)[1:]
    )
    if about and not described:
        hint = Annotated[hint, msgspec.Meta(description=about)]
    if parameter.default is parameter.empty:
        return parameter.name, hint
    default = parameter.default
    if isinstance(default, list | dict | set | bytearray):
        return parameter.name, hint, msgspec.field(default_factory=lambda: copy.copy(default))
    return parameter.name, hint, default


def _schema(arguments: type[msgspec.Struct], name: str) -> JsonObject:
    try:
        schema = msgspec.json.schema(arguments)
        # Also what can be described but not decoded is to be found now, not at the model's first call.
        msgspec.json.Decoder(arguments)
    except (TypeError, ValueError) as exc:
        raise InvalidInput(f"A parameter of tool {name!r} has a type that JSON cannot express: {exc}.") from exc
    others = schema.get("$defs", {})
    own = others.pop("Arguments")
    own.pop("title", None)
    return {**own, **({"$defs": others} if others else {})}
