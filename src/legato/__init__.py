"""Legato: durable, resumable answers from AI agents over Server-Sent Events.

The names below are the public ones. Importing ``legato`` loads nothing heavy; each name is loaded when it is first
used. ``Client`` and ``AsyncClient`` need nothing but the base install, ``Legato`` and the stores ``legato[server]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent import Agent, Answer, Turn
    from .bounds import Limits
    from .caller import Caller
    from .client import (
        APIError,
        AsyncClient,
        BackoffStrategy,
        Client,
        ErrorResponse,
        Result,
        RetryConfig,
    )
    from .errors import AgentError, LegatoError
    from .event import Event
    from .part import Message, Opaque, Usage
    from .server.app import Legato
    from .yields import (
        Checkpoint,
        Finish,
        Refusal,
        Text,
        Thinking,
        ToolArguments,
        ToolCall,
        ToolReady,
        ToolResult,
        ToolStarted,
    )

__version__ = "0.1.0"

__all__ = [
    "APIError",
    "Agent",
    "AgentError",
    "Answer",
    "AsyncClient",
    "BackoffStrategy",
    "Caller",
    "Checkpoint",
    "Client",
    "ErrorResponse",
    "Event",
    "Finish",
    "Legato",
    "LegatoError",
    "Limits",
    "Message",
    "Opaque",
    "Refusal",
    "Result",
    "RetryConfig",
    "Text",
    "Thinking",
    "ToolArguments",
    "ToolCall",
    "ToolReady",
    "ToolResult",
    "ToolStarted",
    "Turn",
    "Usage",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "agent": ("Agent", "Answer", "Turn"),
    "bounds": ("Limits",),
    "caller": ("Caller",),
    "client.aio": ("AsyncClient",),
    "client.errors": ("APIError", "ErrorResponse"),
    "client.funcs": ("Result",),
    "client.retry": ("BackoffStrategy", "RetryConfig"),
    "client.sync": ("Client",),
    "errors": ("AgentError", "LegatoError"),
    "event": ("Event",),
    "part": ("Message", "Opaque", "Usage"),
    "server.app": ("Legato",),
    "yields": (
        "Checkpoint",
        "Finish",
        "Refusal",
        "Text",
        "Thinking",
        "ToolArguments",
        "ToolCall",
        "ToolReady",
        "ToolResult",
        "ToolStarted",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            try:
                value = getattr(importlib.import_module(f".{module}", __name__), name)
            except ModuleNotFoundError as exc:
                if exc.name is not None and exc.name.split(".")[0] in ("starlette", "uvicorn", "apsw"):
                    raise ImportError(f"legato.{name} needs the server: pip install 'legato[server]'") from exc
                raise
            globals()[name] = value
            return value
    raise AttributeError(f"module 'legato' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
