"""What the Responses dialect and Chat Completions write, as types: for the OpenAPI document, and for tests.

``responses`` and ``chat`` make plain dicts, for speed and because a response says again what it was sent. The tests
hold every one of them to these types, so the document is true.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

ItemStatus = Literal["in_progress", "completed", "incomplete"]

# Errors ---------------------------------------------------------------------------------------------------------------


class APIErrorDetail(msgspec.Struct):
    """What went wrong: ``code`` is the machine's word for it, ``param`` the part of the request that it is about."""

    message: str
    type: str
    code: str
    param: str | None


class APIErrorResponse(msgspec.Struct):
    """The body of an answer of the Responses API or of Chat Completions that is not a success."""

    error: APIErrorDetail


# Items ----------------------------------------------------------------------------------------------------------------


class OutputTextContent(msgspec.Struct, tag="output_text", tag_field="type"):
    """Text of the answer."""

    text: str
    annotations: list[Any]
    logprobs: list[Any]


class RefusalContent(msgspec.Struct, tag="refusal", tag_field="type"):
    """The model's words why it does not answer."""

    refusal: str


class SummaryTextContent(msgspec.Struct, tag="summary_text", tag_field="type"):
    """Text of the model's reasoning."""

    text: str


class OutputMessage(msgspec.Struct, tag="message", tag_field="type"):
    """A part of the answer."""

    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputTextContent | RefusalContent]


class ReasoningItem(msgspec.Struct, tag="reasoning", tag_field="type"):
    """A part of the model's reasoning."""

    id: str
    summary: list[SummaryTextContent]


class FunctionCallItem(msgspec.Struct, tag="function_call", tag_field="type"):
    """A call of a tool that the client runs; ``arguments`` is JSON text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(msgspec.Struct, tag="function_call_output", tag_field="type"):
    """What a tool gave of a call that was the client's, and that the agent has made all the same."""

    id: str
    status: ItemStatus
    call_id: str
    output: str


class CallFailure(msgspec.Struct, tag="mcp_tool_execution_error", tag_field="type"):
    """What came of a tool that could not do what was asked; or why nothing came."""

    content: list[dict[str, Any]]


class McpCallItem(msgspec.Struct, tag="mcp_call", tag_field="type"):
    """A call of a tool that is not the client's to run, and what came of it."""

    id: str
    status: Literal["in_progress", "calling", "completed", "incomplete", "failed"]
    approval_request_id: None
    server_label: str
    name: str
    arguments: str
    output: str | None
    error: CallFailure | None


OutputItem = OutputMessage | ReasoningItem | FunctionCallItem | FunctionCallOutputItem | McpCallItem

# The response ---------------------------------------------------------------------------------------------------------


class ResponseFailure(msgspec.Struct):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    """Why a response was cut."""

    reason: Literal["max_output_tokens", "content_filter"]


class InputTokensDetails(msgspec.Struct):
    """Of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(msgspec.Struct):
    """Of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """Tokens, as the agent counted them."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseConversation(msgspec.Struct):
    """The session that the response is in."""

    id: str


class ResponseObject(msgspec.Struct, tag="response", tag_field="object"):
    """One run of an agent. What stands after ``usage`` is what the request set, or its default."""

    id: str
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    model: str
    conversation: ResponseConversation
    output: list[OutputItem]
    usage: ResponseUsage | None
    instructions: str | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    max_output_tokens: int | None
    max_tool_calls: int | None
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    reasoning: dict[str, Any]
    text: dict[str, Any]
    truncation: str
    metadata: dict[str, str]
    background: bool
    store: bool
    service_tier: str
    safety_identifier: str | None
    prompt_cache_key: str | None
    previous_response_id: str | None


class DeletedResponse(msgspec.Struct, tag="response", tag_field="object"):
    """The response is gone."""

    id: str
    deleted: bool


class ItemList(msgspec.Struct, tag="list", tag_field="object"):
    """A page of items, each as it was sent, with an ``id`` and a ``status``."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelObject(msgspec.Struct, tag="model", tag_field="object"):
    """An agent."""

    id: str
    created: int
    owned_by: str


class ModelList(msgspec.Struct, tag="list", tag_field="object"):
    """The agents."""

    data: list[ModelObject]


# Events of a response -------------------------------------------------------------------------------------------------


class _Frame(msgspec.Struct, tag_field="type"):
    sequence_number: int


class _Lifecycle(_Frame):
    response: ResponseObject


class ResponseCreatedFrame(_Lifecycle, tag="response.created"):
    """The request has been stored. The first event."""


class ResponseQueuedFrame(_Lifecycle, tag="response.queued"):
    """It waits; of a response in the background."""


class ResponseInProgressFrame(_Lifecycle, tag="response.in_progress"):
    """The agent begins; once more for each further attempt after a crash."""


class ResponseCompletedFrame(_Lifecycle, tag="response.completed"):
    """The answer is there. Nothing follows."""


class ResponseIncompleteFrame(_Lifecycle, tag="response.incomplete"):
    """The answer was cut. Nothing follows."""


class ResponseFailedFrame(_Lifecycle, tag="response.failed"):
    """The run failed, or was cancelled (``status``). Nothing follows."""


class _OfItem(_Frame):
    output_index: int
    item: OutputItem


class OutputItemAddedFrame(_OfItem, tag="response.output_item.added"):
    """An item begins."""


class OutputItemDoneFrame(_OfItem, tag="response.output_item.done"):
    """An item is whole."""


class _InItem(_Frame):
    item_id: str
    output_index: int


class _InContent(_InItem):
    content_index: int


class ContentPartAddedFrame(_InContent, tag="response.content_part.added"):
    """A message's part begins."""

    part: OutputTextContent | RefusalContent


class ContentPartDoneFrame(_InContent, tag="response.content_part.done"):
    """A message's part is whole."""

    part: OutputTextContent | RefusalContent


class OutputTextDeltaFrame(_InContent, tag="response.output_text.delta"):
    """A piece of the answer."""

    delta: str
    logprobs: list[Any]


class OutputTextDoneFrame(_InContent, tag="response.output_text.done"):
    """The whole text of a part."""

    text: str
    logprobs: list[Any]


class RefusalDeltaFrame(_InContent, tag="response.refusal.delta"):
    """A piece of a refusal."""

    delta: str


class RefusalDoneFrame(_InContent, tag="response.refusal.done"):
    """The whole refusal."""

    refusal: str


class _InSummary(_InItem):
    summary_index: int


class ReasoningSummaryPartAddedFrame(_InSummary, tag="response.reasoning_summary_part.added"):
    """A part of the reasoning begins."""

    part: SummaryTextContent


class ReasoningSummaryPartDoneFrame(_InSummary, tag="response.reasoning_summary_part.done"):
    """A part of the reasoning is whole."""

    part: SummaryTextContent


class ReasoningSummaryTextDeltaFrame(_InSummary, tag="response.reasoning_summary_text.delta"):
    """A piece of the reasoning."""

    delta: str


class ReasoningSummaryTextDoneFrame(_InSummary, tag="response.reasoning_summary_text.done"):
    """The whole text of a part of the reasoning."""

    text: str


class FunctionCallArgumentsDeltaFrame(_InItem, tag="response.function_call_arguments.delta"):
    """A piece of a call's arguments."""

    delta: str


class FunctionCallArgumentsDoneFrame(_InItem, tag="response.function_call_arguments.done"):
    """The whole arguments of a call."""

    name: str
    arguments: str


class McpCallInProgressFrame(_InItem, tag="response.mcp_call.in_progress"):
    """A call begins that is not the client's to run."""


class McpCallArgumentsDeltaFrame(_InItem, tag="response.mcp_call_arguments.delta"):
    """A piece of such a call's arguments."""

    delta: str


class McpCallArgumentsDoneFrame(_InItem, tag="response.mcp_call_arguments.done"):
    """The whole arguments of such a call. Other items may come before its result."""

    arguments: str


class McpCallCompletedFrame(_InItem, tag="response.mcp_call.completed"):
    """The tool is done; what it gave stands in the item, which follows."""


class McpCallFailedFrame(_InItem, tag="response.mcp_call.failed"):
    """The tool could not do it; why stands in the item, which follows."""


class ErrorFrame(_Frame, tag="error"):
    """What went wrong; ``response.failed`` follows, unless the response was deleted. It says it in both of the shapes
    that clients know."""

    code: str
    message: str
    param: str | None
    error: APIErrorDetail


RESPONSE_EVENTS: tuple[type[msgspec.Struct], ...] = (
    ResponseCreatedFrame,
    ResponseQueuedFrame,
    ResponseInProgressFrame,
    OutputItemAddedFrame,
    ContentPartAddedFrame,
    OutputTextDeltaFrame,
    OutputTextDoneFrame,
    RefusalDeltaFrame,
    RefusalDoneFrame,
    ContentPartDoneFrame,
    ReasoningSummaryPartAddedFrame,
    ReasoningSummaryTextDeltaFrame,
    ReasoningSummaryTextDoneFrame,
    ReasoningSummaryPartDoneFrame,
    FunctionCallArgumentsDeltaFrame,
    FunctionCallArgumentsDoneFrame,
    McpCallInProgressFrame,
    McpCallArgumentsDeltaFrame,
    McpCallArgumentsDoneFrame,
    McpCallCompletedFrame,
    McpCallFailedFrame,
    OutputItemDoneFrame,
    ErrorFrame,
    ResponseCompletedFrame,
    ResponseIncompleteFrame,
    ResponseFailedFrame,
)
"""All events of a response's stream, in the order in which they can come."""

# Chat Completions -----------------------------------------------------------------------------------------------------


class ChatFunction(msgspec.Struct, omit_defaults=True):
    """A call's name, and its arguments as JSON text; in a chunk one of the two may be missing."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET


class ChatToolCall(msgspec.Struct, tag="function", tag_field="type"):
    """A call of a tool."""

    id: str
    function: ChatFunction


class ChatToolCallDelta(msgspec.Struct, omit_defaults=True):
    """A piece of a call; only the first has ``id`` and ``type``."""

    index: int
    function: ChatFunction
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET


class ChatMessage(msgspec.Struct, omit_defaults=True):
    """The answer. ``content`` is null if there is only a refusal, or only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ChatToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """A piece of the answer."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    refusal: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ChatToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(msgspec.Struct):
    """The one answer."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: FinishReason | None


class ChatChunkChoice(msgspec.Struct):
    """What a chunk adds to the one answer."""

    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: FinishReason | None


class PromptTokensDetails(msgspec.Struct):
    """Of the prompt's tokens."""

    cached_tokens: int


class ChatUsage(msgspec.Struct):
    """Tokens, as the agent counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: OutputTokensDetails


class ChatCompletion(msgspec.Struct, tag="chat.completion", tag_field="object"):
    """The whole answer."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage | None


class ChatCompletionChunk(msgspec.Struct, tag="chat.completion.chunk", tag_field="object"):
    """A piece of the answer; the last one, without choices, has the usage if that was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET


CHAT_EVENTS: tuple[type[msgspec.Struct], ...] = (ChatCompletionChunk, APIErrorResponse)
"""What a chat's stream is made of."""
