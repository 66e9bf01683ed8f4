"""What errors tell callers: never where a file is, what a program looks like inside, or a key. The log has that."""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec
import pytest

from driving import chatting
from legato import errors
from legato.agents.failure import failure
from legato.errors import StoreError
from legato.provider import ProviderRefused, ResponseFailed
from legato.server.app import Legato
from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from legato.store.memory import MemoryStore
from legato.testing import Driver
from legato.tool import Tool, ToolError

INSIDE = re.compile(
    rb"/srv|/root|/home|chat\.db|SELECT|0x[0-9a-f]{6}|\.py\b|Traceback|site-packages|legato\.\w+\.|apsw"
)
"""What no caller is to read."""
DETAILS = "SQLite could not do it: /srv/secret/chat.db (apsw.SQLError: near SELECT in <object at 0x7f00deadbeef>)."

STORE_ERRORS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, StoreError)]
OPERATIONS = [each for dialect in DIALECTS for each in dialect.operations] + Inspector(DIALECTS).operations()
STORED = [each for each in OPERATIONS if "/api/auth" not in each.path]
"""All that may ask the store."""


class Failing(MemoryStore):
    """A store of which every method fails, once it is told to."""

    failure: Exception | None = None

    def __getattribute__(self, name: str) -> Any:
        failure = super().__getattribute__("failure")
        if failure is not None and name in ("append", "info", "sessions", "read", "open_runs", "find", "keyed"):

            async def fail(*args: Any, **options: Any) -> Any:
                raise failure

            return fail
        return super().__getattribute__(name)


def request(operation: Any, session: str) -> tuple[str, str, Any]:
    """One that reaches the store, if the operation does."""
    target = re.sub(r"\{(response_id)\}", f"resp_{session}~000000000001", operation.path)
    target = re.sub(r"\{(id|threadId)\}", session, target)
    target = re.sub(r"\{model\}", "echo", re.sub(r"\{\w*[iI]d\}", f"{session}~000000000001~u", target))
    body = {
        "text": "a",
        "content": "a",
        "input": "a",
        "messageId": "m",
        "messageIndex": 0,
        "type": "text",
        "value": "a",
    }
    body |= {"messages": [{"role": "user", "content": "a"}]}
    query = {"streamEvents": f"?sessionId={session}", "getResponse": "?stream=true"}.get(operation.id, "")
    return operation.method, target + query, {} if operation.id == "createSession" else body


@pytest.mark.parametrize("error", STORE_ERRORS)
async def test_what_a_store_says_of_its_files_is_for_the_log(error: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is asked, and in whatever dialect: the code and a sentence, and the rest in the log."""
    store = Failing()
    async with chatting(store=store) as chat:
        await chat.said()
        store.failure = error(DETAILS, path="/srv/secret/chat.db")
        failed = 0
        try:
            with caplog.at_level(logging.WARNING, logger="legato"):
                for operation in STORED:
                    method, target, body = request(operation, chat.session)
                    sent = {} if method in ("GET", "DELETE") else {"json": body}
                    answer = await chat.driver.request(method, target, **sent)
                    assert not INSIDE.search(answer.body), (operation.id, answer.body)
                    if answer.status >= 500 and operation.path != "/health/ready":  # that is not of a session
                        failed += 1
                        assert answer.status == error.status
                        assert error.code in answer.text
                        assert error.told in answer.text
        finally:
            store.failure = None
        assert failed > 12
        assert DETAILS in caplog.text


class Odd(StoreError):
    """An error of somebody's own store."""

    code = "odd"

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"{path}: {number}", path=path)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Odd("/srv/secret/chat.db", 1), "odd"),
        (OSError(28, "No space left", "/srv/secret/chat.db"), "internal"),
        (RuntimeError(DETAILS), "internal"),
        (KeyError(object()), "internal"),
        (msgspec.ValidationError(DETAILS), "internal"),
    ],
)
@pytest.mark.parametrize("target", ["/api/sessions", "/stream?sessionId=s", "/v1/responses/resp_s~0", "/api/inspect"])
async def test_whatever_else_fails_tells_no_more(failure: Exception, reason: str, target: str) -> None:
    """Errors of a store's own, and those that nobody foresaw."""
    store = Failing()
    async with chatting(store=store) as chat:
        store.failure = failure
        try:
            answer = await chat.driver.request("GET", target)
        finally:
            store.failure = None
        assert answer.status == 500
        assert reason in answer.text
        assert not INSIDE.search(answer.body)


async def test_who_asks_may_fail_too() -> None:
    """The application's own function."""

    def identify(scope: Any) -> Any:
        raise FileNotFoundError(2, "No such file", "/srv/secret/users.json")

    async with Driver(Legato("memory:", agents=[nobody_answers], identify=identify)) as driver:
        answer = await driver.request("GET", "/api/sessions")
        assert answer.status == 500
        assert not INSIDE.search(answer.body)


async def nobody_answers(turn: Any) -> str:
    """Says nothing."""
    return ""


FAILURES: list[Exception] = [
    StoreError(DETAILS, path="/srv/secret/chat.db"),
    OSError(2, "No such file", "/srv/secret/agent.py"),
    RuntimeError(DETAILS),
    ImportError("No module named 'x' (/srv/secret/agent.py)"),
    ProviderRefused("Your key sk-1234567890 is wrong: /srv/secret", status_code=401),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: type(each).__name__)
async def test_a_failed_answer_tells_no_more(failure: Exception) -> None:
    """On no stream, and in no history."""

    async def agent(turn: Any) -> str:
        raise failure

    async with chatting(None, agent) as chat:
        await chat.said()
        answers = [(await chat.get(path)).body for path in ("/messages", "/events", "/export")]
        answers.append((await chat.driver.request("POST", "/v1/responses", json={"input": "a"})).body)
        for body in answers:
            assert not INSIDE.search(body)
            assert b"1234567890" not in body


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: type(each).__name__)
async def test_a_failed_tool_tells_no_more(failure: Exception) -> None:
    """Neither the model nor, by its event, the users."""

    def read() -> str:
        raise failure

    with pytest.raises(ToolError) as caught:
        await Tool(read).run({}, None)  # type: ignore[arg-type]  # no turn is asked for
    assert caught.value.message == "read failed. The server's log has the details."


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Incorrect API key provided: sk-pro****wxyz.", "Incorrect API key provided: [...]"),
        ("Bad header 'Authorization: Bearer abc.def'", "Bad header 'Authorization: Bearer [...]"),
        ("key AIzaSyD-1234567890 is not valid", "key [...] is not valid"),
        ("unable to load model: /root/.ollama/models/blobs/sha256-12", "unable to load model: [...]"),
        ("C:\\models\\secret.gguf not found", "[...] not found"),
        ("bad <Object object at 0x7f00deadbeef>", "bad <Object object at [...]>"),
        ("See https://example.com/docs/errors/400.", "See https://example.com/docs/errors/400."),
        ("Between 1/2 and 3/4 and/or a sk-y", "Between 1/2 and 3/4 and/or a sk-y"),
        ("This model's maximum context is 8192 tokens.", "This model's maximum context is 8192 tokens."),
    ],
)
def test_the_words_of_a_provider_are_shown_without_keys_and_files(said: str, shown: str) -> None:
    """Of a model server on this machine, the files are this machine's."""
    assert failure(ResponseFailed(said, code="c")).message == f"The model's provider says: {shown}"


def test_a_provider_quotes_the_key_it_was_given() -> None:
    """Of whatever form."""
    assert "hush" not in failure(ResponseFailed("Not hush", code="c"), "hush").message
