"""Models whose answers stream: the Responses API, Chat Completions and Anthropic Messages.

A provider has two verbs: ``chat_stream`` gives simple chunks (``StreamChunk``), ``chat`` the whole answer
(``ChatResult``). ``ResponsesClient`` gives the raw events. What goes wrong is raised as a ``ProviderError`` that
carries what had arrived. Each class has a twin for asyncio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..late import late

if TYPE_CHECKING:
    from .aio import (
        AsyncAnthropicProvider,
        AsyncChatCompletionsProvider,
        AsyncResponsesClient,
        AsyncResponsesProvider,
        AsyncStream,
    )
    from .errors import (
        ProviderError,
        ProviderRefused,
        ProviderUnreachable,
        ResponseCancelled,
        ResponseFailed,
        ResponseIncomplete,
        StreamInterrupted,
        StreamMalformed,
    )
    from .events import (
        ArgumentsDeltaEvent,
        ArgumentsDoneEvent,
        LifecycleEvent,
        OutputItemEvent,
        PartEvent,
        ReasoningDeltaEvent,
        RefusalDeltaEvent,
        ResponseErrorEvent,
        ResponseEvent,
        TextDeltaEvent,
        TextDoneEvent,
    )
    from .responses import (
        Response,
    )
    from .result import (
        ChatResult,
        StreamChunk,
        TokenUsage,
        ToolCall,
        ToolCallDelta,
        ToolOutput,
    )
    from .settings import (
        Timeouts,
    )
    from .sync import (
        AnthropicProvider,
        ChatCompletionsProvider,
        ResponsesClient,
        ResponsesProvider,
        Stream,
    )
else:
    __getattr__, __dir__ = late(__name__, "errors", "events", "result", "settings", "responses", "sync", "aio")

__all__ = [
    "AnthropicProvider",
    "ArgumentsDeltaEvent",
    "ArgumentsDoneEvent",
    "AsyncAnthropicProvider",
    "AsyncChatCompletionsProvider",
    "AsyncResponsesClient",
    "AsyncResponsesProvider",
    "AsyncStream",
    "ChatCompletionsProvider",
    "ChatResult",
    "LifecycleEvent",
    "OutputItemEvent",
    "PartEvent",
    "ProviderError",
    "ProviderRefused",
    "ProviderUnreachable",
    "ReasoningDeltaEvent",
    "RefusalDeltaEvent",
    "Response",
    "ResponseCancelled",
    "ResponseErrorEvent",
    "ResponseEvent",
    "ResponseFailed",
    "ResponseIncomplete",
    "ResponsesClient",
    "ResponsesProvider",
    "Stream",
    "StreamChunk",
    "StreamInterrupted",
    "StreamMalformed",
    "TextDeltaEvent",
    "TextDoneEvent",
    "Timeouts",
    "TokenUsage",
    "ToolCall",
    "ToolCallDelta",
    "ToolOutput",
]
