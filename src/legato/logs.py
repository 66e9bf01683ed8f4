"""Lines of the log, as text for people or as JSON for programs.

The parts of Legato log as Python does: a sentence and what stands in it. Where a sentence says ``run %s`` or
``session %s``, that is a field of the JSON, too; so no line has to say anything twice. What a task is about
(``about.py``) is in the lines of whoever logs in it, be it an agent or a library.

No line of Legato's has what people or models say, or what they sign in with. What an exception of an agent's says is
the agent's to know; it is in the log with its traceback.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from .about import ABOUT
from .json import unbroken

Format = Literal["text", "json"]
ACCESS = "legato.access"
"""The logger of a line for each answer."""
FIELDS = ("method", "path", "status", "ms")
"""What lines of that have besides."""

_TEXT = "%(asctime)s %(levelname)-7s %(message)s"
_NAMED = re.compile(r"(?:\b(session|run|agent|tool)\s)?%(?:%|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


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
    told: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **about,
        **{name: value for name in FIELDS if (value := record.__dict__.get(name)) is not None},
        **_traced(),
    }
    if record.exc_info:
        told["exception"] = logging.Formatter().formatException(record.exc_info)
    return told


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
        told = fields(record)
        try:
            return unbroken(msgspec.json.encode(told)).decode()
        except (UnicodeEncodeError, TypeError):  # half of a letter
            return unbroken(msgspec.json.encode({name: _written(value) for name, value in told.items()})).decode()


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


def set_up(level: str, form: Format = "text", *, access: bool = False) -> None:
    """Have the log written to standard error, unless the program has set up its own logging.

    Args:
        level: of what is told: ``debug``, ``info``, ``warning``, ``error``.
        form: of the lines.
        access: a line for each answer, too.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger(ACCESS).setLevel(logging.INFO if access else logging.CRITICAL)
