"""The real ``openai`` SDKs for Python and JavaScript, unmodified, against a real server process."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Model
from openai.types.chat import ChatCompletion
from openai.types.conversations import Conversation, ConversationItem
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from driving import echo
from legato import Client
from legato.agent import Turn
from legato.agents.conversation import conversation
from legato.dialect.responses import response_id
from legato.server.app import Legato
from live_server import serving
from node_packages import package
from processes import Server, in_time, running
from venvs import framework_python

REALSDK = Path(__file__).parent / "realsdk"
AGENT = f"{REALSDK / 'openai_agents.py'}:scripted"
DRIVER = REALSDK / "openai_driver.mjs"
MODEL = "scripted"


def serve(store: str = "memory:") -> Any:
    return running("legato", "serve", AGENT, "--port", "0", "--store", store)


def connect(url: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60, **options)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with connect(server.url) as client:
        yield client


def streamed(client: OpenAI, input: str, **options: Any) -> list[ResponseStreamEvent]:
    return list(client.responses.create(model=MODEL, input=input, stream=True, **options))


def resumed(client: OpenAI, id: str, after: int | None = None) -> list[ResponseStreamEvent]:
    options: dict[str, Any] = {} if after is None else {"starting_after": after}
    return list(client.responses.retrieve(id, stream=True, **options))


def until_error(stream: Iterable[ResponseStreamEvent]) -> tuple[list[ResponseStreamEvent], openai.APIError]:
    """What came, and what was raised then."""
    seen = []
    try:
        for event in stream:
            seen.append(event)
    except openai.APIError as exc:
        return seen, exc
    raise AssertionError("The stream raised nothing.")


def dumped(events: list[ResponseStreamEvent]) -> list[dict[str, Any]]:
    """The events as they came; without warnings of fields that the SDK's own types do not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [event.to_dict() for event in events]


def final(events: list[ResponseStreamEvent]) -> Response:
    last = events[-1]
    assert last.type in ("response.completed", "response.failed", "response.incomplete")
    return last.response


# Responses ------------------------------------------------------------------------------------------------------------


def test_a_response_is_answered(client: OpenAI) -> None:
    """Not streamed: text, status, usage."""
    response = client.responses.create(model=MODEL, input="hello", instructions="Be brief.", metadata={"a": "b"})
    assert (response.output_text, response.status, response.model) == ("You said: hello", "completed", MODEL)
    assert response.usage is not None
    assert (response.usage.total_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 1)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert client.responses.retrieve(response.id) == response


def test_a_stream_has_every_event_in_order(client: OpenAI) -> None:
    """Numbered from 0 without gaps, the deltas together the text."""
    events = streamed(client, "hello")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "You said: hello"
    assert final(events).output_text == "You said: hello"


@pytest.mark.parametrize("input", ["hello", "tools", "calls", "refuse"])
def test_the_stream_helper_accepts_every_sequence(client: OpenAI, input: str) -> None:
    """It checks identities and order, and gives the final response."""
    with client.responses.stream(model=MODEL, input=input) as stream:
        response = stream.get_final_response()
    assert response.status == "completed"
    assert response.output_text == client.responses.retrieve(response.id).output_text


def test_a_stream_has_thinking_and_calls_with_their_outputs(client: OpenAI) -> None:
    """Each an item of its kind; a call that was run here is none of the client's."""
    response = final(streamed(client, "tools"))
    thinking, call, message = response.output
    assert thinking.type == "reasoning"
    assert thinking.summary[0].text == "I should look."
    assert call.type == "mcp_call"
    assert (call.server_label, call.name, call.arguments) == ("legato", "Bash", '{"command":"ls"}')
    assert (call.output, call.status) == ('{"files":["é.txt"]}', "completed")
    assert message.type == "message"
    assert response.output_text == "There is é.txt."


def test_a_refusal_is_no_text(client: OpenAI) -> None:
    """The helper hands it out piece by piece; the response has it whole, and no text; the next one can go on."""
    with client.responses.stream(model=MODEL, input="refuse") as stream:
        pieces = [event.delta for event in stream if event.type == "response.refusal.delta"]
        response = stream.get_final_response()
    (message,) = response.output
    assert message.type == "message"
    assert [part.to_dict() for part in message.content] == [{"type": "refusal", "refusal": "I cannot."}]
    assert ("".join(pieces), response.status, response.output_text) == ("I cannot.", "completed", "")
    following = client.responses.create(model=MODEL, input="why?", previous_response_id=response.id)
    assert following.output_text == "You said: why?"


@pytest.mark.parametrize("input", ["hello", "tools", "calls", "length", "refuse"])
def test_every_resume_is_the_rest_of_the_stream(client: OpenAI, input: str) -> None:
    """After each event of a background response, and from the start."""
    whole = dumped(streamed(client, input, background=True))
    id = whole[0]["response"]["id"]
    assert dumped(resumed(client, id)) == whole
    for after in range(len(whole)):
        assert dumped(resumed(client, id, after)) == whole[after + 1 :]


def test_every_resume_while_it_runs_is_the_rest_of_the_stream(client: OpenAI) -> None:
    """A reader that leaves after each event, and comes back with its number, misses nothing."""
    response = client.responses.create(model=MODEL, input="slow", background=True)
    assert response.status in ("queued", "in_progress")
    seen: list[ResponseStreamEvent] = []
    while not seen or seen[-1].type != "response.completed":
        options: dict[str, Any] = {"starting_after": seen[-1].sequence_number} if seen else {}
        with client.responses.retrieve(response.id, stream=True, **options) as stream:
            seen.append(next(iter(stream)))
    assert dumped(seen) == dumped(resumed(client, response.id))


def test_the_stream_helper_resumes(client: OpenAI) -> None:
    """It reads the whole response again and hides what was seen."""
    whole = streamed(client, "hello", background=True)
    with client.responses.stream(response_id=final(whole).id, starting_after=3) as stream:
        seen = [event.sequence_number for event in stream]
        assert stream.get_final_response().output_text == "You said: hello"
    assert seen == list(range(4, len(whole)))


def test_a_background_response_is_polled(client: OpenAI) -> None:
    """Until it is neither queued nor in progress."""
    response = client.responses.create(model=MODEL, input="slow", background=True)
    assert response.output == []
    with client.responses.retrieve(response.id, stream=True) as stream:
        for _ in in_time(stream):
            pass
    assert client.responses.retrieve(response.id).status == "completed"


def test_a_response_is_cancelled(client: OpenAI) -> None:
    """It keeps what was said; a second cancel gives it back; a stream of it ends as failed."""
    response = client.responses.create(model=MODEL, input="forever", background=True)
    with client.responses.retrieve(response.id, stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                cancelled = client.responses.cancel(response.id)
                break
        last = [event.type for event in stream][-1]
    assert (cancelled.status, last) == ("cancelled", "response.failed")
    assert cancelled.output_text.startswith("on and ")
    assert client.responses.cancel(response.id) == cancelled == client.responses.retrieve(response.id)


def test_a_stream_that_is_left_goes_on(client: OpenAI) -> None:
    """It was not asked to stop."""
    with client.responses.create(model=MODEL, input="slow", stream=True) as stream:
        first = next(iter(stream))
    assert first.type == "response.created"
    assert final(resumed(client, first.response.id)).output_text.split() == [str(n) for n in range(20)]


def test_an_answer_that_was_cut_is_incomplete(client: OpenAI) -> None:
    """With the reason."""
    response = final(streamed(client, "length"))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_goes_on(client: OpenAI) -> None:
    """By the response before, or by the conversation's id; its inputs can be listed."""
    first = client.responses.create(model=MODEL, input="one")
    second = client.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    assert first.conversation is not None
    third = client.responses.create(model=MODEL, input="three", conversation=first.conversation.id)
    assert first.conversation == second.conversation == third.conversation
    assert second.previous_response_id == first.id
    (item,) = client.responses.input_items.list(second.id)
    assert item.to_dict()["content"] == [{"type": "input_text", "text": "two"}]


def test_files_reach_the_agent_and_come_back(tmp_path: Path) -> None:
    """An image, a document and a sound, by every way that the SDK has; in a folder, and away from there at the end."""
    code = base64.b64encode(bytes(range(256)) * 400).decode()
    image, document = f"data:image/png;base64,{code}", f"data:application/pdf;base64,{code[:-4]}"

    async def seen(turn: Turn) -> AsyncIterator[str]:
        yield json.dumps(conversation(turn))

    parts: Any = [
        {"type": "input_text", "text": "See."},
        {"type": "input_image", "image_url": image, "detail": "auto"},
        {"type": "input_file", "filename": "a.pdf", "file_data": document},
    ]
    chat: Any = [
        {"type": "text", "text": "See."},
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": document}},
        {"type": "input_audio", "input_audio": {"data": code, "format": "wav"}},
    ]
    app = Legato("memory:", agents=[seen], blobs=f"file://{tmp_path}/files")
    with serving(app) as url, connect(url) as client:
        first = client.responses.create(model="seen", input=[{"role": "user", "content": parts}])
        for text in (code, document):
            assert first.output_text.count(text) >= 1
        (item,) = client.responses.input_items.list(first.id)
        assert item.to_dict()["content"] == parts
        second = client.responses.create(model="seen", input="and?", previous_response_id=first.id)
        assert json.loads(second.output_text)[0] == json.loads(first.output_text)[0]
        assert len([*tmp_path.rglob("files/*/*")]) == 2
        made = client.conversations.create(items=[{"role": "user", "content": parts}])
        (item,) = client.conversations.items.list(made.id)
        assert item.to_dict()["content"] == parts
        messages: Any = [{"role": "user", "content": chat}]
        answer = client.chat.completions.create(model="seen", messages=messages).choices[0].message.content
        assert json.loads(answer or "") == messages
        client.conversations.delete(made.id)
        for response in (second, first):
            client.responses.delete(response.id)
        assert len([*tmp_path.rglob("files/*/*")]) == 2, "those of the completion, which has no id to delete it by"


def test_a_response_is_deleted(client: OpenAI) -> None:
    """And then not found; what followed it stays, and goes on."""
    first = client.responses.create(model=MODEL, input="hello")
    second = client.responses.create(model=MODEL, input="again", previous_response_id=first.id)
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.cancel, client.responses.delete,
                 client.responses.input_items.list):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            call(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    assert client.responses.retrieve(second.id) == second
    third = client.responses.create(model=MODEL, input="more", previous_response_id=second.id)
    assert third.conversation == first.conversation


def test_the_agents_are_models(client: OpenAI) -> None:
    """By their names."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "legato"


def test_every_answer_is_of_the_sdks_own_types(client: OpenAI) -> None:
    """Checked strictly, which the SDK itself does not do."""
    types: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    options: dict[str, Any] = {"tools": [{"type": "function", "name": "f"}], "reasoning": {"effort": "low"}}
    for input in ("hello", "tools", "calls", "length", "refuse"):
        for event in dumped(streamed(client, input, background=True, **options)):
            types.validate_json(json.dumps(event), strict=True)
        raw = client.responses.with_raw_response.create(model=MODEL, input=input, **options)
        response = Response.model_validate_json(raw.http_response.content, strict=True)
        items = client.responses.input_items.with_raw_response.list(response.id)
        ResponseItemList.model_validate_json(items.http_response.content, strict=True)
        messages: Any = [{"role": "user", "content": input}]
        chat = client.chat.completions.with_raw_response.create(model=MODEL, messages=messages)
        ChatCompletion.model_validate_json(chat.http_response.content, strict=True)
    Model.model_validate_json(client.models.with_raw_response.retrieve(MODEL).http_response.content, strict=True)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_a_failed_response_raises_in_a_stream(client: OpenAI) -> None:
    """What came before is delivered; not streamed, the response has the error."""
    seen, error = until_error(client.responses.create(model=MODEL, input="fail", stream=True))
    assert (error.code, error.message) == ("no", "No.")
    assert [event.delta for event in seen if event.type == "response.output_text.delta"] == ["So far "]
    response = client.responses.create(model=MODEL, input="fail")
    assert response.status == "failed"
    assert response.error is not None
    assert response.error.message == "No."


def test_errors_are_of_the_class_that_says_what_to_do(client: OpenAI) -> None:
    """With code and parameter."""
    with pytest.raises(openai.NotFoundError) as lost:
        client.responses.retrieve("resp_none")
    assert (lost.value.code, lost.value.param) == ("response_not_found", "response_id")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.responses.create(model="nobody", input="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as previous:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_none")
    assert previous.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError) as value:
        client.responses.create(model=MODEL, input="x", temperature=-1)
    assert (value.value.code, value.value.param) == ("decimal_below_min_value", "temperature")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "fail"}])
    with pytest.raises(openai.PermissionDeniedError):
        client.models.list(extra_headers={"Origin": "https://elsewhere.example"})


def test_a_key_is_for_one_request(client: OpenAI) -> None:
    """Sent again, it is the same response; with another input, a conflict."""
    key = {"Idempotency-Key": "key-1"}
    first = client.responses.create(model=MODEL, input="one", extra_headers=key)
    assert client.responses.create(model=MODEL, input="one", extra_headers=key).id == first.id
    with pytest.raises(openai.ConflictError):
        client.responses.create(model=MODEL, input="two", extra_headers=key)


def test_too_many_streams_are_a_rate_limit() -> None:
    """And nothing has been begun, so the SDK may try again."""
    app = Legato("memory:", agents=[echo], grace=0.0, max_streams=0)
    with serving(app) as url, connect(url) as client, Client(url) as own:
        with pytest.raises(openai.RateLimitError):
            client.responses.create(model="echo", input="x", stream=True)
        assert own.sessions.list() == []


def test_a_server_that_is_gone_is_a_connection_error() -> None:
    """Also in the middle of a stream; what was stored is there when it is back."""
    with pytest.raises(openai.APIConnectionError):
        connect("http://127.0.0.1:9").models.list()


def test_a_stream_that_the_server_ends_early_raises() -> None:
    """A clean end would be taken for the end of the answer; what is missing can be read afterwards."""
    app = Legato("memory:", grace=0.0)

    @app.agent
    async def draining(turn: Turn) -> AsyncIterator[str]:
        yield "On"
        app.streams.drain()
        await asyncio.Event().wait()

    with serving(app) as url, connect(url) as client:
        seen, error = until_error(client.responses.create(model="draining", input="x", stream=True))
        assert isinstance(error, openai.APIConnectionError)
        first = seen[0]
        assert first.type == "response.created"
        assert client.responses.retrieve(first.response.id).status == "in_progress"


def test_a_response_outlives_its_server(tmp_path: Path) -> None:
    """Killed in the middle, the server is started again: the same numbers, then the end."""
    store = f"sqlite:///{tmp_path / 'l.db'}"
    seen: list[ResponseStreamEvent] = []
    with serve(store) as server, connect(server.url) as client:
        stream = client.responses.create(model=MODEL, input="forever", background=True, stream=True)
        for event in stream:
            seen.append(event)
            if len(seen) == 10:
                server.process.send_signal(signal.SIGKILL)
                break
        stream.close()
    first = seen[0]
    assert first.type == "response.created"
    with serve(store) as server, connect(server.url) as client:
        assert client.responses.retrieve(first.response.id).status == "failed"
        again, error = until_error(client.responses.retrieve(first.response.id, stream=True))
        assert error.code == "interrupted"
        assert dumped(again)[: len(seen)] == dumped(seen)


# Chat Completions -----------------------------------------------------------------------------------------------------


def test_a_chat_is_answered(client: OpenAI) -> None:
    """Whole."""
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content == "You said: hello"
    assert answer.usage is not None
    assert (answer.usage.total_tokens, answer.choices[0].finish_reason) == (7, "stop")


def test_a_chat_is_streamed_with_usage(client: OpenAI) -> None:
    """The usage comes last, without choices."""
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "You said: hello"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7


def test_the_chat_helper_gathers_calls(client: OpenAI) -> None:
    """Parallel ones, told apart by their index."""
    with client.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "calls"}]) as stream:
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls or []
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_1", "f", "[1]"), ("call_2", "g", "[2]"),
    ]  # fmt: skip
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_failed_chat_raises(client: OpenAI) -> None:
    """After what was said."""
    with pytest.raises(openai.APIError, match=r"No\."):
        list(client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "fail"}], stream=True))


# Other dialects -------------------------------------------------------------------------------------------------------


def test_a_response_is_watched_on_the_stream(server: Server, client: OpenAI) -> None:
    """Begun here, read and cancelled with Legato's own client."""
    response = client.responses.create(model=MODEL, input="forever", background=True)
    assert response.conversation is not None
    session = response.conversation.id
    with Client(server.url) as own, own.streaming.stream_events(session_id=session, last_event_id="0") as events:
        seen = []
        for event in events:
            seen.append(event.event)
            if seen.count("content") == 2:
                own.sessions.cancel(session)
            if event.event == "complete":
                break
    assert seen.index("user_message_created") < seen.index("content")
    assert final(resumed(client, response.id)).status == "cancelled"


def test_a_run_of_the_stream_is_a_response(server: Server, client: OpenAI) -> None:
    """Begun with Legato's own client, read here."""
    with Client(server.url) as own:
        answer = own.ask("hello")
        assert answer.read() == "You said: hello"
    assert final(resumed(client, response_id(answer.run_id))).output_text == "You said: hello"


# The JavaScript SDK ---------------------------------------------------------------------------------------------------

JAVASCRIPT = "openai@7.55.0"


def test_the_javascript_sdk(server: Server) -> None:
    """Streams, every resume, the helper, errors, cancel, and a chat with usage."""
    command = ["node", str(DRIVER), str(package(JAVASCRIPT)), server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    numbers = seen.pop("numbers")
    assert numbers == list(range(len(numbers)))
    assert seen.pop("resumed") == [True] * len(numbers)
    assert seen == {
        "text": "There is é.txt.",
        "helper": "You said: hello",
        "failed": [True, "no"],
        "lost": [True, "response_not_found"],
        "cancelled": "cancelled",
        "chat": ["You said: hello", 7],
        "items": ITEMS,
        "one": True,
        "deleted": [True, "item_not_found"],
        "metadata": {"topic": "y"},
        "gone": True,
    }


ITEMS = ["message", "message", "reasoning", "mcp_call", "message", "message"]


def test_conversations(client: OpenAI) -> None:
    """Each verb of the SDK: begin, go on, list, add, delete, change."""
    items: Any = [{"type": "message", "role": "user", "content": "before"}]
    made = client.conversations.create(metadata={"topic": "x"}, items=items)
    assert TypeAdapter(Conversation).validate_python(made.to_dict(), strict=True) == made
    response = client.responses.create(model=MODEL, input="tools", conversation=made.id)
    assert response.conversation is not None
    assert response.conversation.id == made.id
    added = client.conversations.items.create(made.id, items=[{**items[0], "role": "assistant", "content": "after"}])
    assert [item.type for item in added.data] == ["message"]

    whole = list(client.conversations.items.list(made.id, order="asc", limit=2, include=[]))
    assert [item.type for item in whole] == ITEMS
    assert list(client.conversations.items.list(made.id, include=["reasoning.encrypted_content"])) == whole[::-1]
    assert [item.to_dict() for item in whole[2:5]] == [item.to_dict() for item in response.output]
    for item in whole:
        TypeAdapter(ConversationItem).validate_python(item.to_dict())
        assert item.id is not None
        assert client.conversations.items.retrieve(item.id, conversation_id=made.id) == item
    last = whole.pop()
    assert last.id is not None
    assert client.conversations.items.delete(last.id, conversation_id=made.id) == made
    assert list(client.conversations.items.list(made.id, order="asc")) == whole
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(last.id, conversation_id=made.id)

    recalled = client.responses.create(model=MODEL, input="recall", conversation={"id": made.id}).output_text
    assert recalled == "user: before, user: tools, assistant: There is é.txt."
    assert client.conversations.update(made.id, metadata={"topic": "y"}).metadata == {"topic": "y"}
    assert client.conversations.retrieve(made.id).metadata == {"topic": "y"}
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="more", conversation=made.id)


def test_the_session_of_the_agents_sdk(server: Server) -> None:
    """``OpenAIConversationsSession`` keeps its turns here, with the calls of its own tool, and takes the last back."""
    python = framework_python("openai-agents")
    script = REALSDK.parent / "frameworks" / "conversations_session.py"
    command = [str(python), str(script), server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    turns = ["user: hello", "assistant: You said: hello", "user: look", "assistant: You said: found x"]
    turns += ["user: tools", "assistant: There is é.txt.", "user: recall"]
    assert seen["said"][:3] == ["You said: hello", "You said: found x", "There is é.txt."]
    assert seen["popped"]
    assert seen["last"]
    assert seen["cleared"]
    assert seen["id"].startswith("conv_")
    assert seen["recalled"] == ", ".join(turns[:-1])
