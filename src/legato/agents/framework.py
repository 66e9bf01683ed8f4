"""What the adapters of agent frameworks share.

A framework has its own agent, its own loop and its own messages. Legato gives it the conversation, and takes what it
says. Here is what is the same for all of them: what the conversation is (``messages``), the tool calls of a run and
what may still be said of each (``Calls``), and errors in words for the user (``explained``). Nothing here imports a
framework.

The one rule: an adapter yields nothing that the run could refuse. What a framework says twice, too late, or of a call
that nobody knows is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import msgspec

from ..agent import Agent, AgentFunction, OnCrash, Turn
from ..errors import AgentError, InvalidInput, LegatoError
from ..json import JsonObject
from ..part import CallPart, Part, RefusalPart, TextPart, as_json
from ..provider.chat_completions import reason_of
from ..transcript import fold
from ..yields import Finish, RunBy, ToolArguments, ToolCall, ToolReady, ToolResult, ToolStarted, Yielded
from .conversation import answered, conversation, said
from .model import Words, lacking, settings

logger = logging.getLogger("legato")

Options = Callable[[Turn], Mapping[str, object]]
"""Further arguments for the framework's own run, made for each turn."""

SHOWN_CHARACTERS = 1_000
"""Of a call's arguments, in a question to the user; all of them are in the question's ``params``."""


def load(module: str, extra: str, name: str = "__name__") -> ModuleType:
    """The framework's ``module``, which has ``name``, or an error that says which extra to install."""
    try:
        found = importlib.import_module(module)
        if not hasattr(found, name):
            where = getattr(found, "__file__", None) or "somewhere"
            raise ImportError(
                f"This adapter needs legato[{extra}], but the module {module!r} is another one ({where}); rename that."
            )
        return found
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{module}.".startswith(f"{exc.name}."):
            raise ImportError(f"This adapter needs {exc.name}: pip install 'legato[{extra}]'") from exc
        raise


def adapted(
    function: AgentFunction,
    *,
    name: str | None,
    on_crash: OnCrash,
    description: str | None,
    found: object,
    tools: Callable[[], Collection[str]],
    lacks: Callable[[JsonObject], tuple[str, str] | None],
) -> Agent:
    """The agent that an adapter gives back.

    Args:
        function: answers a turn.
        name, on_crash, description: as the user of the adapter gave them.
        found: the framework's name for its agent, used when it is a text and ``name`` is None.
        tools, lacks: see ``Agent``.

    Raises:
        InvalidInput: ``on_crash`` is ``"resume"``, which no framework can do.
    """
    if on_crash == "resume":
        raise InvalidInput("An adapted agent cannot go on in the middle of a sentence: on_crash is 'fail' or 'retry'.")
    name = name or (found if isinstance(found, str) and found else "agent")
    return Agent(function, name=name, on_crash=on_crash, description=description or "", tools=tools, lacks=lacks)


# What the sender sets -------------------------------------------------------------------------------------------------


_CLASSES: dict[str, Words] = {
    # pydantic-ai
    "OpenAIChatModel": "chat",
    "OpenAIResponsesModel": "responses",
    "AnthropicModel": "messages",
    # OpenAI Agents SDK
    "OpenAIChatCompletionsModel": "chat",
    # whose subclass is the SDK's own too: "OpenAIResponsesModel"
}
"""Model classes of frameworks which take any field of their API's request, by the name of the class."""


def words_of(model: object) -> Words:
    """In whose words a framework's model can be told settings."""
    model = getattr(model, "wrapped", model)
    return next((_CLASSES[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in _CLASSES), "framework")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the sender of a message sets, for the run of a framework.

    Attributes:
        named: by the names that all frameworks have: ``max_tokens``, ``parallel_tool_calls``, ``temperature`` ...
        body: further fields of the request to the model, in the words of its API.
        choice: a mode (``"none"``, ``"required"``), or the tool that has to be called; None: the model chooses.
        among: the only tools that may be called; None: all.
    """

    named: JsonObject = field(default_factory=dict)
    body: JsonObject = field(default_factory=dict)
    choice: str | None = None
    among: list[str] | None = None

    @property
    def forces(self) -> bool:
        """Whether a tool has to be called. That holds for the first step, or the run would never end."""
        return self.choice == "required"

    @classmethod
    def of(cls, words: Words, metadata: JsonObject, heeds: Collection[str]) -> Wishes:
        """Of a message's metadata, without what others heed."""
        given = {name: value for name, value in metadata.items() if name not in heeds}
        framed = {name: given.pop(name, None) for name in ("max_output_tokens", "parallel_tool_calls", "tool_choice")}
        body, named = settings(words, given), settings("framework", {**framed, "tool_choice": None})
        if words == "framework":
            named, body = {**named, **body}, {}
        elif isinstance(framed["parallel_tool_calls"], bool):
            named["parallel_tool_calls"] = framed["parallel_tool_calls"]
        return cls(named, body, *_choice(framed["tool_choice"]))


def _choice(choice: object) -> tuple[str | None, list[str] | None]:
    match choice:
        case "none" | "required":
            return choice, None
        case {"type": "function", "name": str(name)}:
            return "required", [name]
        case {"type": "allowed_tools", "mode": mode, "tools": list(tools)}:
            return "required" if mode == "required" else None, [str(tool.get("name")) for tool in tools]
    return None, None


def lacks(
    words: Words, metadata: JsonObject, heeds: Collection[str], tools: Collection[str], formed: bool = False
) -> tuple[str, str] | None:
    """What of a message's metadata a framework's agent cannot heed, and why; see ``Agent``.

    Args:
        words: see ``words_of``.
        metadata: the message's.
        heeds: names in it that the user of the adapter sees to.
        tools: the agent's own, as far as they are known.
        formed: whether the agent's answers have a form of their own.
    """
    given = {name: value for name, value in metadata.items() if name not in heeds}
    name = lacking(words, given)
    if name is not None:
        return name, "The agent's framework, or its model, has no way to be told so for one run."
    if formed and (name := lacking("none", {"text": given.get("text")})) is not None:
        return name, "The agent's answers have a form of their own."
    choice, among = _choice(given.get("tool_choice"))
    # Without a known tool, the agent may still have some that are found when it runs.
    brought = among is None and choice == "required" and not tools and given.get("tools")
    if brought or (among is not None and not set(among) <= set(tools)):
        return "tool_choice", "Only tools of the agent can be chosen; those of a request are not offered to it."
    known = choice is not None or among is not None or isinstance(given.get("tool_choice"), str | None)
    return None if known else ("tool_choice", "It has to be a mode, or functions of the agent.")


# The conversation -----------------------------------------------------------------------------------------------------


def messages(turn: Turn, owner: str = "") -> list[JsonObject]:
    """All that was said, in the form of Chat Completions; see ``conversation``.

    An assistant's message has in ``opaque`` what ``owner`` wants back with it, as pieces.

    Behind the message to answer comes what an earlier attempt at the answer got done. So a further attempt asks the
    model only for what is missing, and no tool that has given its result runs twice. Ids of calls are unique in the
    conversation, and made of what the APIs of models take.
    """
    earlier = fold(turn.events)
    parts = earlier.message(turn.run).parts
    done = {part.step for part in parts if _is_done(part)}
    kept = [
        part for part in parts if part.step in done and (_is_done(part) or isinstance(part, TextPart | RefusalPart))
    ]
    told = answered([*conversation(turn), *said(kept, "", earlier.opaque)])
    return list(_identified(_owned(each, owner) for each in told))


def _is_done(part: Part) -> bool:
    return isinstance(part, CallPart) and part.done


def arguments_of(call: JsonObject) -> JsonObject:
    """The arguments of a call in such a message; what is no object has no meaning to a framework."""
    arguments = msgspec.json.decode(call["function"]["arguments"])
    return arguments if isinstance(arguments, dict) else {}


def _owned(message: JsonObject, owner: str) -> JsonObject:
    """The message with what is for this owner alone."""
    kept = {name: value for name, value in message.items() if name not in ("opaque", "thinking")}
    pieces = [piece for sealed in message.get("opaque", ()) if sealed["owner"] == owner for piece in sealed["data"]]
    return {**kept, "opaque": pieces} if pieces else kept


def _identified(told: Iterable[JsonObject]) -> Iterator[JsonObject]:
    taken: set[str] = set()
    ids: dict[str, str] = {}  # of the calls of the latest step: their outputs follow it
    for message in told:
        if message["role"] == "tool":
            yield {**message, "tool_call_id": ids[message["tool_call_id"]]}
        elif calls := message.get("tool_calls"):
            ids = {call["id"]: _identify(call["id"], taken) for call in calls}
            told_calls = [{**call, "id": ids[call["id"]]} for call in calls]
            pieces = message.get("opaque", ())
            renamed = [{**piece, "call": ids.get(piece["call"])} if "call" in piece else piece for piece in pieces]
            yield {**message, "tool_calls": told_calls, **({"opaque": renamed} if renamed else {})}
        else:
            yield message


def _identify(id: str, taken: set[str]) -> str:
    free = id = re.sub(r"[^A-Za-z0-9_-]", "_", id)[:56] or "call"
    number = 1
    while free in taken:
        number += 1
        free = f"{id}_{number}"
    taken.add(free)
    return free


# The calls of a run ---------------------------------------------------------------------------------------------------


class _CallState:
    def __init__(self, id: str) -> None:
        self.id = id
        self.sent = ""
        self.ready = self.started = self.done = False


class Calls:
    """The tool calls of one run, by the framework's own ids, which some models repeat from step to step.

    Each method gives what to yield, which is nothing when there is nothing left to say of the call.
    """

    def __init__(self) -> None:
        self._states: dict[str, _CallState] = {}  # by the framework's id: its latest call
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._states

    @property
    def ids(self) -> dict[str, str]:
        """The ids that calls have in the run, by the framework's own."""
        return {key: state.id for key, state in self._states.items()}

    def begin(self, key: str, name: str, by: RunBy = "server") -> list[Yielded]:
        """A new call; its arguments follow. The framework runs it, unless the model's provider does."""
        id, number = key, 1
        while id in self._taken:
            number += 1
            id = f"{key}-{number}"
        self._taken.add(id)
        self._states[key] = _CallState(id)
        return [ToolCall(id, name, by=by)]

    def arguments(self, key: str, text: str) -> list[Yielded]:
        """A piece of the JSON text of the arguments."""
        state = self._states.get(key)
        if state is None or state.ready or not text:
            return []
        state.sent += text
        return [ToolArguments(state.id, text)]

    def complete(self, key: str, whole: str) -> list[Yielded]:
        """All of the arguments, of which a beginning may have been told."""
        state = self._states.get(key)
        if state is None or state.ready:
            return []
        whole = whole or "{}"
        rest = self.arguments(key, whole[len(state.sent) :]) if whole.startswith(state.sent) else []
        state.ready = True
        return [*rest, ToolReady(state.id)]

    def start(self, key: str) -> list[Yielded]:
        """The tool begins to work."""
        state = self._states.get(key)
        if state is None or state.started or state.done:
            return []
        state.started = True
        return [*self.complete(key, state.sent), ToolStarted(state.id)]

    def finish(self, key: str, output: object, success: bool = True) -> list[Yielded]:
        """The tool is done; ``output`` may be any value."""
        state = self._states.get(key)
        if state is None or state.done:
            return []
        state.done = True
        return [*self.complete(key, state.sent), ToolResult(state.id, jsonable(output), success)]


def jsonable(value: object) -> Any:
    """``value`` in JSON values, whatever it is: models and dataclasses as objects, what has no such form as text."""
    try:
        return as_json("A value", value)
    except InvalidInput:
        pass
    try:
        to_jsonable = load("pydantic_core", "").to_jsonable_python
        return as_json("A value", to_jsonable(value, bytes_mode="base64", fallback=str))
    except (ImportError, ValueError, TypeError, InvalidInput):
        return str(value)


def as_words(value: object) -> str:
    """``value`` as it is said: a text is itself, anything else JSON."""
    return value if isinstance(value, str) else json_text(value)


def json_text(value: object) -> str:
    """``value`` as JSON text; a text is taken for JSON already, and None for no arguments at all."""
    if isinstance(value, str):
        return value
    return json.dumps({} if value is None else jsonable(value), ensure_ascii=False, separators=(",", ":"))


# Asking ---------------------------------------------------------------------------------------------------------------


async def ask(turn: Turn, tool: str, arguments: object, about: str = "") -> bool:
    """Ask the user whether ``tool`` may run with ``arguments``; ``about`` is the framework's own question, if any."""
    arguments = jsonable(arguments)
    shown = json_text(arguments)
    shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}…"
    question = about or (f"Run {tool} with {shown}?" if arguments else f"Run {tool}?")
    return await turn.ask_permission(tool, question, params=arguments if isinstance(arguments, dict) else None)


# Ends -----------------------------------------------------------------------------------------------------------------


def finish(reason: str | None) -> list[Yielded]:
    """Why the latest answer of the model ended, in Legato's word; nothing when it was simply done."""
    word = reason_of(reason)
    return [Finish(word)] if word in ("length", "content_filter") else []


class Reasons:
    """Why each answer of the model in a run ended: a limit in one of them says nothing of the next."""

    def __init__(self) -> None:
        self._cut = False

    def take(self, reason: str | None) -> list[Yielded]:
        """What the latest answer's reason is to be said of; None: it has not ended, or gives none."""
        found = finish(reason)
        back = not found and self._cut and reason_of(reason) is not None
        if found or back:
            self._cut = bool(found)
        return [Finish("stop")] if back else found


_BUSY = ("model_rate_limited", "The model is asked too much at the moment. Try again in a minute.")
_AWAY = ("model_unreachable", "The model cannot be reached at the moment. Try again later.")
_KEY = ("model_key_refused", "The model's provider does not accept the server's key.")
_REFUSED = ("model_refused", "The model's provider does not accept the request. The server's log has the details.")
_LONG = ("context_too_long", "The conversation has become too long for the model.")
_STEPS = ("too_many_steps", "The answer took more steps than it may.")
_FILTERED = ("content_filter", "The answer was stopped by a filter.")
_GUARDED = ("guardrail", "The answer was stopped by a guardrail.")
_USELESS = ("model_error", "The model gave an answer that cannot be used.")
_TOOL = ("tool_timeout", "A tool took longer than it may.")

_REASONS: dict[str, tuple[str, str]] = {
    # The SDKs of OpenAI and Anthropic, which all frameworks use; their errors come through as they are.
    "RateLimitError": _BUSY,
    "AuthenticationError": _KEY,
    "PermissionDeniedError": _KEY,
    "APITimeoutError": _AWAY,
    "APIConnectionError": _AWAY,
    "InternalServerError": _AWAY,
    "OverloadedError": _AWAY,
    "ServiceUnavailableError": _AWAY,
    "APIStatusError": _REFUSED,
    "APIError": _USELESS,
    # pydantic-ai
    "ModelRateLimitError": _BUSY,
    "ConcurrencyLimitExceeded": _BUSY,
    "ModelUnavailableError": _AWAY,
    "ModelServerError": _AWAY,
    "ModelConnectionError": _AWAY,
    "ModelContextWindowExceededError": _LONG,
    "ModelAPIError": _REFUSED,
    "UsageLimitExceeded": _STEPS,
    "ContentFilterError": _FILTERED,
    "UnexpectedModelBehavior": _USELESS,
    # OpenAI Agents SDK
    "MaxTurnsExceeded": _STEPS,
    "ModelTimeoutError": _AWAY,
    "ModelBehaviorError": _USELESS,
    "ModelRefusalError": _FILTERED,
    "ToolTimeoutError": _TOOL,
    "InputGuardrailTripwireTriggered": _GUARDED,
    "OutputGuardrailTripwireTriggered": _GUARDED,
    "ToolInputGuardrailTripwireTriggered": _GUARDED,
    "ToolOutputGuardrailTripwireTriggered": _GUARDED,
    # LangChain, LangGraph
    "ContextOverflowError": _LONG,
    "GraphRecursionError": _STEPS,
    "OutputParserException": _USELESS,
}
"""By the name of the class, or of one that it inherits from: code, and words for the user.

By name, so that no version of a framework has to have the class, and none has to be imported to look."""


_STATUSES = {401: _KEY, 403: _KEY, 429: _BUSY}


@contextlib.contextmanager
def explained(run: str) -> Iterator[None]:
    """What a framework raises within is raised as ``AgentError`` when it is known; the log of the server has the rest.

    Anything else passes: the run then fails as ``agent_error``, whose text users never see.
    """
    try:
        yield
    except LegatoError:
        raise
    except Exception as exc:
        reason = _reason(exc)
        if reason is None:
            raise
        logger.warning("run %s: the framework failed", run, exc_info=exc)
        raise AgentError(reason[1], code=reason[0]) from exc


def _reason(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, BaseExceptionGroup):  # of models that were tried in turn: the last one's
        return _reason(error.exceptions[-1])
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            status = getattr(error, "status_code", None)
            return worded(error) or _by_status(status) or _REASONS[kind.__name__]
    return _spelled(error)


_CLIENTS = {"openai", "anthropic", "langchain_openai", "langchain_anthropic", "langchain_google_genai",
            "langchain_mistralai"}  # fmt: skip
"""Packages that ask models, and in the middle of an answer raise what is no class of theirs."""


def _spelled(error: BaseException) -> tuple[str, str] | None:
    """What such a package lets through: an HTTP client's error, or a model's in words (``server_error: It broke.``)."""
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0]
                for frame, _ in traceback.walk_tb(error.__traceback__)]  # fmt: skip
    if any(kind.__name__ == "TransportError" for kind in type(error).__mro__) and _CLIENTS & {*packages}:
        return _AWAY
    if isinstance(error, ValueError) and packages and packages[-1] in _CLIENTS:
        return _CODES.get(str(error).partition(":")[0].lower(), _USELESS)
    return None


_CODES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ["rate_limit_exceeded", "rate_limit_error", "too_many_requests", "tokens", "requests", "resource_exhausted"],
        _BUSY,
    ),
    **dict.fromkeys(
        ["overloaded_error", "overloaded", "server_is_overloaded",
         "server_error", "api_error", "internal_server_error", "service_unavailable",
         "timeout_error", "unavailable"],
        _AWAY,
    ),
    **dict.fromkeys(["authentication_error", "permission_error", "invalid_api_key"], _KEY),
    **dict.fromkeys(["context_length_exceeded", "string_above_max_length"], _LONG),
    **dict.fromkeys(["content_filter", "content_policy_violation"], _FILTERED),
}  # fmt: skip
"""By a provider's own word for what went wrong. In the middle of a stream its status says that all is well."""


def worded(error: object, depth: int = 3) -> tuple[str, str] | None:
    """What a provider's code or type says, wherever in an error it stands."""
    if error is None or not depth:
        return None
    for name in ("code", "type"):
        word = error.get(name) if isinstance(error, Mapping) else getattr(error, name, None)
        if isinstance(word, str) and word.lower() in _CODES:
            return _CODES[word.lower()]
    for name in ("error", "body"):
        inner = error.get(name) if isinstance(error, Mapping) else getattr(error, name, None)
        if (found := worded(inner, depth - 1)) is not None:
            return found
    return None


def _by_status(status: object) -> tuple[str, str] | None:
    """What the HTTP status of a model's provider says, where it says more than the class of the error."""
    if not isinstance(status, int):
        return None
    return _STATUSES.get(status, _AWAY if status >= 500 else None)
