"""Lines of the log, as text for people or as JSON for programs.

The parts of Legato log as Python does: a sentence and what stands in it. Where a sentence says ``run %s`` or
``session %s``, that is a field of the JSON, too; so no line has to say anything twice. What a task is about
(``about.py``) is in the lines of whoever logs in it, be it an agent or a library.

No line of Legato's has what people, models or tools say, or what they sign in with. An exception may quote any of it:
an agent's the message, a provider's the prompt, a decoder's the document. So of exceptions, their kind is logged and
where they were raised, and what they say only where somebody has asked for it (``show_content``), or where it is
``loggable`` (``LegatoError``).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TypeGuard

import msgspec

from .about import ABOUT
from .errors import LegatoError
from .json import unbroken

logger = logging.getLogger("legato")

Format = Literal["text", "json"]
ACCESS = "legato.access"
"""The logger of a line for each answer."""
FIELDS = ("method", "path", "status", "ms")
"""What lines of that have besides."""

CHATTY = {
    logging.INFO: (
        "anthropic", "botocore", "google_genai", "groq", "langchain", "langchain_core", "langchain_openai", "langgraph",
        "langsmith", "LiteLLM", "mcp", "mistralai", "openai", "urllib3",
    ),
    logging.WARNING: ("httpcore", "httpcore2", "httpx", "httpx2"),
}  # fmt: skip
"""The least level of libraries that write down, below it, what models are told and say, or addresses with keys."""
FRAMES = 50
"""Of one traceback at most."""
LEFT_OUT = "(what it says is left out; --log-content shows it)"

_TEXT = "%(asctime)s %(levelname)-7s %(message)s"
_NAMED = re.compile(r"(?:\b(session|run|agent|tool)\s)?%(?:%|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}", re.ASCII)
_REQUEST_IDS = ("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id")
_content = False


def show_content(show: bool = True) -> None:
    """Let lines of this process have what exceptions say, which may be what people, models and tools said."""
    global _content
    _content = show


def is_word(text: object) -> bool:
    """Whether a text is a code, an id or a name, as programs write them."""
    return isinstance(text, str) and _WORD.fullmatch(text) is not None


def told(exc: BaseException, words: str | None = None) -> str:
    """What a line says of an exception: its words, where content is shown, else ``outline``.

    Args:
        exc: any.
        words: what is shown in the place of its own.
    """
    return (str(exc) if words is None else words) if _content or _loggable(exc) else outline(exc)


def _loggable(exc: BaseException) -> TypeGuard[LegatoError]:
    return isinstance(exc, LegatoError) and exc.loggable


def outline(exc: BaseException) -> str:
    """Of an exception what programs know of it: its class, code, status and the id of the request; not what it says,
    unless that is ``loggable``."""
    try:
        if _loggable(exc):
            return exc.message
        kind, module = type(exc), type(exc).__module__
        name = kind.__qualname__ if module.partition(".")[0] in _OWN else f"{module}.{kind.__qualname__}"
        found = [*_facts(exc)]
        return f"{name} ({', '.join(found)})" if found else name
    except Exception:  # of a class of somebody's own, which has not what its base has, or has it otherwise
        return type(exc).__name__


_OWN = ("builtins", "legato", "__main__")


def _facts(exc: BaseException) -> Iterator[str]:
    of_api = isinstance(exc, LegatoError) or type(getattr(exc, "status_code", None)) is int
    if of_api and is_word(code := getattr(exc, "code", None)) and code != "error":  # of others it may be anything
        yield str(code)
    for name, said in (("sqlstate", "SQLSTATE "), ("status_code", "status "), ("request_id", "request ")):
        value = getattr(exc, name, None)
        if is_word(value) or type(value) is int:
            yield f"{said}{value}"
    if isinstance(exc, LegatoError) and is_word(field := exc.detail.get("field")):
        yield f"of {field}"
    if isinstance(headers := getattr(exc, "headers", None), dict):
        yield from (f"request {headers[name]}" for name in _REQUEST_IDS if is_word(headers.get(name)))
    if isinstance(exc, OSError) and type(exc.errno) is int:
        yield f"{exc.errno}, {os.strerror(exc.errno)}"
    if isinstance(exc, BaseExceptionGroup):
        yield f"{len(exc.exceptions)} in it"


def trace(exc: BaseException) -> str:
    """A traceback without words: where an exception was raised, and those that led to it, and what they are."""
    return "\n".join(_lines(exc, set()))


def _lines(exc: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(exc))
    before, how = exc.__cause__, "This was the cause of:"
    if before is None and not exc.__suppress_context__:
        before, how = exc.__context__, "While that was handled:"
    if before is not None and id(before) not in seen and len(seen) < FRAMES:
        yield from (*_lines(before, seen), "", how, "")
    if exc.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(exc.__traceback__)]
        for number, (code, line) in enumerate(frames):
            if number < FRAMES // 2 or number >= len(frames) - FRAMES // 2:
                yield f'  File "{code.co_filename}", line {line}, in {code.co_name}'
            elif number == FRAMES // 2:
                yield f"  ... and {len(frames) - FRAMES} more"
    yield outline(exc) if _loggable(exc) else f"{outline(exc)}: {LEFT_OUT}"
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            if id(each) not in seen and len(seen) < FRAMES:
                yield from (f"  | {line}" for line in _lines(each, seen))


def _discreet(value: object) -> object:
    return outline(value) if isinstance(value, BaseException) else value


class Discreet(logging.Filter):
    """Has exceptions told by their outline, until content is shown. It is on the logger ``legato``, before anybody's
    handlers, and on the handler of ``set_up``, before which everybody's records come."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, with no words of exceptions."""
        if _content:
            return True
        if isinstance(record.msg, BaseException):
            record.msg = outline(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_discreet, record.args))
        elif record.args:
            record.args = {name: _discreet(each) for name, each in record.args.items()}
        if record.name == "asyncio":
            record.msg, record.args = _of_asyncio(record.getMessage()), None
        if record.exc_info and (raised := record.exc_info[1]) is not None:
            record.exc_info, record.exc_text = None, trace(raised)
        return True


logger.addFilter(Discreet())


def _of_asyncio(text: str) -> str:
    """What asyncio says of its tasks, without what they gave or raised, and without what calls were given."""
    text = re.sub(r"\b(exception|result|wait_for)=.*", r"\1=...", text, flags=re.DOTALL)
    return re.sub(r"((?:callback|<Handle|<TimerHandle)[^\n(]*)\(.*\)", r"\1(...)", text, flags=re.DOTALL)


def _named(record: logging.LogRecord) -> dict[str, str]:
    """What a line's sentence names, by the word before it."""
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return {}
    found, place = {}, 0
    for match in _NAMED.finditer(record.msg):
        if match[0].endswith("%%"):
            continue
        if match[1] is not None and place < len(record.args):
            found[match[1]] = str(record.args[place])
        place += 1
    return found


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says, for programs, in the order in which it is written."""
    about = {name: value for name, value in ABOUT.get()._asdict().items() if value}
    about |= _named(record) if record.name.partition(".")[0] == "legato" else {}
    if "run" in about:
        about.setdefault("session", about["run"].partition("~")[0])
    said: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **about,
        **{name: value for name in FIELDS if (value := record.__dict__.get(name)) is not None},
        **_traced(),
    }
    if record.exc_info or record.exc_text:
        said["exception"] = record.exc_text or logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
    return said


def _traced() -> dict[str, str]:
    """The ids of the span that is open, if somebody traces."""
    trace = sys.modules.get("opentelemetry.trace")
    context = None if trace is None else trace.get_current_span().get_span_context()
    if context is None or not context.is_valid:
        return {}
    return {"trace": f"{context.trace_id:032x}", "span": f"{context.span_id:016x}"}


class JSONFormatter(logging.Formatter):
    """A line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. What is no text that can be written is written with replacements."""
        said = fields(record)
        try:
            return unbroken(msgspec.json.encode(said)).decode()
        except (UnicodeEncodeError, TypeError):  # half of a letter
            return unbroken(msgspec.json.encode({name: _written(value) for name, value in said.items()})).decode()


def _written(value: object) -> object:
    if isinstance(value, int | float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


class TextFormatter(logging.Formatter):
    """A line for people. What somebody has sent, such as a path, begins no line of its own."""

    def __init__(self) -> None:
        super().__init__(_TEXT, "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # as logging has it
        """See ``logging.Formatter``."""
        if record.name.partition(".")[0] == "legato":
            record.message = _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", record.message)
        return super().formatMessage(record)


def _in_thread(failed: threading.ExceptHookArgs) -> None:
    if not isinstance(failed.exc_value, SystemExit):
        name = "?" if failed.thread is None else failed.thread.name
        logger.error("the thread %s failed", name, exc_info=failed.exc_value)


def _unraisable(failed: sys.UnraisableHookArgs) -> None:
    logger.error("an exception could be raised to nobody", exc_info=failed.exc_value)


def set_up(level: str, form: Format = "text", *, access: bool = False, content: bool = False) -> None:
    """Have the log written to standard error, unless the program has set up its own logging; also what Python would
    write there itself, of threads that fail and of what is raised where nobody can take it.

    Args:
        level: of what is told: ``debug``, ``info``, ``warning``, ``error``.
        form: of the lines.
        access: a line for each answer, too.
        content: lines may have what exceptions say, and libraries what they are given, see ``CHATTY``.
    """
    show_content(content)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    handler.addFilter(Discreet())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for least, names in CHATTY.items():
        for each in () if content else map(logging.getLogger, names):
            if each.getEffectiveLevel() < least:  # what says less anyway stays as it is
                each.setLevel(least)
    logging.getLogger(ACCESS).setLevel(logging.INFO if access else logging.CRITICAL)
