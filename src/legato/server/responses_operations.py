"""The tables of the Responses dialect and of Chat Completions."""

from __future__ import annotations

from typing import Any

import msgspec

from ..dialect import conversations_api as bodies
from ..dialect import responses_schema as schema
from ..dialect.common import KEY_PATTERN
from ..dialect.responses import ID_PATTERN
from ..dialect.responses_api import CreateBody, CreateChat
from ..json import JsonObject
from . import conversations
from . import responses as routes
from .operation import Dialect, Frames, Handler, Operation, Param

RESPONSE_EVENTS = Frames("ResponseStreamEvent", schema.RESPONSE_EVENTS, done=True)
CHAT_EVENTS = Frames("ChatStreamEvent", schema.CHAT_EVENTS, named=False, done=True)

_EVERYWHERE = "Also without `/v1`."
_ID = Param("response_id", "path", "The response's id.", {"type": "string", "pattern": ID_PATTERN}, required=True)
_KEY = Param("Idempotency-Key", "header", "The same key and request, the same response: safe to send again. For a "
             "request that names no conversation, keys are common to the whole server.",
             {"type": "string", "pattern": KEY_PATTERN})  # fmt: skip
_BOOLEAN: JsonObject = {"type": "boolean", "default": False}


def _operation(id: str, method: str, path: str, summary: str, handler: Handler, answer: Any,
               description: str = "", **options: Any) -> list[Operation]:  # fmt: skip
    tag = "chat completions" if "chat" in path else path.split("/")[1]
    described = " ".join(filter(None, [handler.__doc__, description, _EVERYWHERE]))
    operation = Operation(id, method, f"/v1{path}", tag, summary, handler, {200: answer}, description=described,
                          error=schema.APIErrorResponse, **options)  # fmt: skip
    return [operation, msgspec.structs.replace(operation, path=path, documented=False)]


def _limit() -> Param:
    schema: JsonObject = {"type": "integer", "minimum": 1, "maximum": 100}
    return Param("limit", "query", "How many at most; 20 if it is not given.", schema)


def _order() -> Param:
    return Param("order", "query", "`desc` if it is not given.", {"type": "string", "enum": ["asc", "desc"]})


def _responses() -> list[Operation]:
    response = schema.ResponseObject
    return [
        *_operation("createResponse", "POST", "/responses", "Ask for a response", routes.create, response,
                  "A client that leaves ends nothing. `previous_response_id` or `conversation` go on with a session; "
                  "without them a new one begins.",
                  params=[_KEY], body=CreateBody, errors=(404, 409, 429), stream=RESPONSE_EVENTS),
        *_operation("getResponse", "GET", "/responses/{response_id}", "Get a response, or its stream",
                  routes.retrieve, response, "Any number of times, for as long as its session is kept.",
                  params=[_ID, Param("stream", "query", "Whether to answer with the events.", _BOOLEAN),
                          Param("starting_after", "query", "The `sequence_number` of the last event you have; the "
                                "stream goes on exactly after it.",
                                {"type": "integer", "minimum": 0, "maximum": 10**15 - 1})],
                  errors=(404, 429), stream=RESPONSE_EVENTS),
        *_operation("deleteResponse", "DELETE", "/responses/{response_id}", "Delete a response", routes.delete,
                  schema.DeletedResponse, "`DELETE /api/sessions/{id}` deletes a conversation as a whole.",
                  params=[_ID], errors=(404,)),
        *_operation("cancelResponse", "POST", "/responses/{response_id}/cancel", "Stop a response", routes.cancel,
                  response, params=[_ID], errors=(404, 503)),
        *_operation("listInputItems", "GET", "/responses/{response_id}/input_items", "List what was asked",
                  routes.input_items, schema.ItemList,
                  params=[_ID, _limit(), _order(),
                          Param("after", "query", "The id of the item after which the page begins.",
                                {"type": "string", "pattern": "^in_.*_[0-9]+$"})],
                  errors=(404,)),
        *_operation("listModels", "GET", "/models", "List the agents", routes.models, schema.ModelList),
        *_operation("getModel", "GET", "/models/{model}", "Get an agent", routes.model, schema.ModelObject,
                  params=[Param("model", "path", "The agent's name.", required=True)], errors=(404,)),
    ]  # fmt: skip


_CONVERSATION = Param("conversation_id", "path", "The conversation's id, which is its session's.", required=True)
_ITEM = Param("item_id", "path", "The item's id.", required=True)
_INCLUDE = Param("include", "query", "For clients that ask for more: there is nothing more.",
                 {"type": "array", "items": {"type": "string", "enum": sorted(bodies.INCLUDABLE)}})  # fmt: skip
_ADD_KEY = Param("Idempotency-Key", "header", "The same key and request are taken once.",
                 {"type": "string", "pattern": KEY_PATTERN})  # fmt: skip


def _conversations() -> list[Operation]:
    one, items = bodies.ConversationObject, "/conversations/{conversation_id}/items"
    return [
        *_operation("createConversation", "POST", "/conversations", "Begin a conversation", conversations.create, one,
                  params=[_ADD_KEY], body=bodies.CreateConversation, body_required=False, errors=(409,)),
        *_operation("getConversation", "GET", "/conversations/{conversation_id}", "Get a conversation",
                  conversations.retrieve, one, params=[_CONVERSATION], errors=(404,)),
        *_operation("updateConversation", "POST", "/conversations/{conversation_id}", "Change a conversation",
                  conversations.update, one, params=[_CONVERSATION], body=bodies.UpdateConversation, errors=(404,)),
        *_operation("deleteConversation", "DELETE", "/conversations/{conversation_id}", "Delete a conversation",
                  conversations.delete, bodies.DeletedConversation, params=[_CONVERSATION], errors=(404,)),
        *_operation("listConversationItems", "GET", items, "List what was said", conversations.list_items,
                  schema.ItemList,
                  params=[_CONVERSATION, _limit(), _order(),
                          Param("after", "query", "The id of the item after which the page begins."), _INCLUDE],
                  errors=(404,)),
        *_operation("createConversationItems", "POST", items, "Add what was said elsewhere", conversations.add_items,
                  schema.ItemList, params=[_CONVERSATION, _INCLUDE, _ADD_KEY], body=bodies.CreateItems,
                  errors=(404, 409)),
        *_operation("getConversationItem", "GET", f"{items}/{{item_id}}", "Get an item", conversations.get_item,
                  JsonObject, params=[_CONVERSATION, _ITEM, _INCLUDE], errors=(404,)),
        *_operation("deleteConversationItem", "DELETE", f"{items}/{{item_id}}", "Delete an item",
                  conversations.delete_item, one, params=[_CONVERSATION, _ITEM], errors=(404, 409)),
    ]  # fmt: skip


def _chat() -> list[Operation]:
    return [
        *_operation("createChatCompletion", "POST", "/chat/completions", "Ask for a chat completion", routes.complete,
                  schema.ChatCompletion, "For clients that know nothing else; the same run can be read as a response.",
                  params=[_KEY], body=CreateChat, errors=(404, 409, 429), stream=CHAT_EVENTS),
    ]  # fmt: skip


RESPONSES = Dialect(
    "responses",
    [*_responses(), *_conversations()],
    refuse=routes.refuse,
    view=lambda name: routes.RESPONSES_VIEW if name == "responses" else None,
    views=("responses",),
    roots=("v1", "responses", "models", "conversations"),
)
CHAT = Dialect(
    "chat",
    _chat(),
    refuse=routes.refuse,
    view=lambda name: routes.CHAT_VIEWS[False] if name == "chat" else None,
    views=("chat",),
    roots=("chat", "completions", "embeddings"),
)
