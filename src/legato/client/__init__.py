"""The SDK: a client of a Legato (or Mix) server, for threads and for asyncio.

``Client`` and ``AsyncClient`` have the same methods; ``funcs`` has them as functions that do not raise. A stream comes
back by itself after each cut and goes on behind the last event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..late import late

if TYPE_CHECKING:
    from . import funcs
    from .aio import (
        AsyncAnswerStream,
        AsyncClient,
        AsyncEventStream,
    )
    from .errors import (
        APIError,
        ClientError,
        ConnectionFailed,
        ConnectionLost,
        CursorReset,
        ErrorResponse,
        ForeignResponse,
        ResponseInvalid,
    )
    from .events import (
        CancelRequestedEvent,
        CompleteEvent,
        ConnectedEvent,
        ContentEvent,
        ErrorEvent,
        HeartbeatEvent,
        NotificationEvent,
        NotificationResolvedEvent,
        PermissionEvent,
        PermissionResolvedEvent,
        RunStartedEvent,
        RunWaitingEvent,
        SessionCreatedEvent,
        SessionDeletedEvent,
        SessionRewoundEvent,
        StreamEvent,
        ThinkingEvent,
        ToolExecutionCompleteEvent,
        ToolExecutionStartEvent,
        ToolUseParameterDeltaEvent,
        ToolUseParameterStreamingCompleteEvent,
        ToolUseStartEvent,
        UserMessageCreatedEvent,
    )
    from .funcs import (
        Err,
        Ok,
        Result,
    )
    from .models import (
        BackendMessage,
        CancelResult,
        EventPage,
        ExportMessage,
        ExportSession,
        Health,
        LogEvent,
        PermissionResult,
        SendResult,
        SessionData,
        ToolCallData,
    )
    from .resume import (
        ReconnectBackoff,
    )
    from .retry import (
        UNSET,
        BackoffStrategy,
        RetryConfig,
    )
    from .sync import (
        AnswerStream,
        Client,
        EventStream,
    )
else:
    __getattr__, __dir__ = late(__name__, "errors", "events", "models", "resume", "retry", "sync", "aio", "funcs")

__all__ = [
    "UNSET",
    "APIError",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "AsyncEventStream",
    "BackendMessage",
    "BackoffStrategy",
    "CancelRequestedEvent",
    "CancelResult",
    "Client",
    "ClientError",
    "CompleteEvent",
    "ConnectedEvent",
    "ConnectionFailed",
    "ConnectionLost",
    "ContentEvent",
    "CursorReset",
    "Err",
    "ErrorEvent",
    "ErrorResponse",
    "EventPage",
    "EventStream",
    "ExportMessage",
    "ExportSession",
    "ForeignResponse",
    "Health",
    "HeartbeatEvent",
    "LogEvent",
    "NotificationEvent",
    "NotificationResolvedEvent",
    "Ok",
    "PermissionEvent",
    "PermissionResolvedEvent",
    "PermissionResult",
    "ReconnectBackoff",
    "ResponseInvalid",
    "Result",
    "RetryConfig",
    "RunStartedEvent",
    "RunWaitingEvent",
    "SendResult",
    "SessionCreatedEvent",
    "SessionData",
    "SessionDeletedEvent",
    "SessionRewoundEvent",
    "StreamEvent",
    "ThinkingEvent",
    "ToolCallData",
    "ToolExecutionCompleteEvent",
    "ToolExecutionStartEvent",
    "ToolUseParameterDeltaEvent",
    "ToolUseParameterStreamingCompleteEvent",
    "ToolUseStartEvent",
    "UserMessageCreatedEvent",
    "funcs",
]
