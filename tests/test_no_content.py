"""What people, models and tools say is in no line of the log and in no span: one word is everywhere, and looked for."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx2
import msgspec
import pytest

import legato.logs
from fake_server import Reply, json_reply, stream_reply
from legato import Legato
from legato.agent import Agent, Turn
from legato.agents.upstream import model_agent
from legato.errors import AgentError, InvalidInput, StoreFull, TooLarge
from legato.event import read_stored
from legato.http.call import failure, refusal
from legato.http.errors import ConnectionFailed
from legato.logs import FRAMES, Discreet, JSONFormatter, TextFormatter, outline, show_content, told, trace
from legato.provider.errors import provider_error, refused
from legato.store import redis_errors, sqlite_errors
from legato.testing import Driver
from legato.tool import Tool
from legato.yields import Text, ToolCall, ToolResult, ToolStarted
from model_server import Keeper, asking, calls, says
from provider_streams import numbered, sse
from test_metrics import ends
from test_traces import EXPORTER, empty, provider  # noqa: F401  # fixtures

WORD = "cafe-d0c5-CANARY"
"""It is in whatever is said."""


@pytest.fixture
def heard() -> Iterator[Callable[[], str]]:
    """All lines at the lowest level: ours, of an application's own handler, and the fields of each record."""
    stream = io.StringIO()
    handlers = []
    for formatter in (JSONFormatter(), TextFormatter(), logging.Formatter("%(message)s"), Fields()):
        handlers.append(logging.StreamHandler(stream))
        handlers[-1].setFormatter(formatter)
    ours, root = logging.getLogger("legato"), logging.getLogger()
    for each in handlers:
        root.addHandler(each)
    ours.setLevel(logging.DEBUG)
    yield stream.getvalue
    ours.setLevel(logging.NOTSET)
    for each in handlers:
        root.removeHandler(each)


class Fields(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return repr(record.__dict__)


def spans() -> str:
    return "".join(span.to_json() for span in EXPORTER.get_finished_spans())


async def said(
    agent: Agent | Callable[..., Any], cases: Iterable[str] = ("",), heard: Callable[[], str] = str
) -> list[str]:
    """Send a message that has the word everywhere, for each case, which is its session's id; how their runs ended, as
    JSON. After each, nothing that was logged or traced has the word."""
    app = Legato("memory:", agents=[agent], traces=True)
    file = {"type": "input_file", "filename": f"{WORD}.txt", "file_data": "data:text/plain;base64,Y2Fm"}
    message = {"role": "user", "content": [{"type": "input_text", "text": WORD}, file]}
    found = []
    async with Driver(app) as driver:
        for number, case in enumerate(cases, 1):
            made = {"id": f"s{number}", "title": WORD, "metadata": {WORD: WORD, "case": case}}
            assert (await driver.request("POST", "/api/sessions", json=made)).status == 201
            body = {
                "conversation": f"s{number}",
                "input": [message],
                "background": True,
                "metadata": {"case": case},
            }
            answer = await driver.request("POST", "/v1/responses", json=body)
            assert answer.status < 300, answer.text
            await ends(app, number)
            found.append((await app.store.read(f"s{number}", 0, limit=100, deltas=False))[-1].json.decode())
            told = heard() + spans() + (await app.metrics().text())[0].decode()
            assert WORD not in told, (case, told[max(0, told.index(WORD) - 400) :][:800])
    return found


# Agents ---------------------------------------------------------------------------------------------------------------


T = TypeVar("T")


def of(cases: Mapping[str, T], turn: Turn) -> T:
    """The case that a session is of."""
    return list(cases.values())[int(turn.session.removeprefix("s")) - 1]


class Colour(msgspec.Struct):
    of: Literal["red"]


class Odd(Exception):
    """Whose every word is content, and which cannot even be looked at."""

    def __str__(self) -> str:
        return WORD

    def __repr__(self) -> str:
        return WORD

    @property
    def status_code(self) -> int:
        return len(WORD)


def chained() -> None:
    try:
        raise KeyError(WORD)
    except KeyError as exc:
        raise ValueError("outer") from exc


def handled() -> None:
    try:
        json.loads(f"{{{WORD}")
    except ValueError:
        int(WORD)


def noted() -> None:
    error = ValueError("x")
    error.add_note(WORD)
    raise error


def several() -> None:
    raise ExceptionGroup(WORD, [ValueError(WORD), ExceptionGroup(WORD, [KeyError(WORD)])])


def deep(left: int = 300) -> None:
    if left == 0:
        raise ValueError(WORD)
    deep(left - 1)


def circular() -> None:
    one, two = ValueError(WORD), KeyError(WORD)
    one.__cause__, two.__cause__ = two, one
    raise one


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


FAULTS: dict[str, Callable[[], object]] = {
    "error": raises(RuntimeError(WORD)),
    "key": lambda: {}[WORD],
    "chained": chained,
    "handled": handled,
    "noted": noted,
    "several": several,
    "deep": deep,
    "circular": circular,
    "odd": lambda: raises(Odd())(),
    "value": lambda: msgspec.json.decode(json.dumps({"of": WORD}), type=Colour),
    "unicode": lambda: (WORD.encode() and b"\xff".decode()) or b"\xff".decode(WORD),
    "file": lambda: Path(f"/none/{WORD}").read_bytes(),
    "attribute": lambda: getattr(object(), WORD),
    "syntax": lambda: compile(f"{WORD} {WORD}", WORD, "exec"),
    "exit": raises(SystemExit(WORD)),
    "own": raises(AgentError(WORD, code="out_of_tea", field=WORD)),
    "unfit": raises(AgentError(WORD, code=f"{WORD} {WORD}")),
    "detail": raises(AgentError(WORD, of={WORD: object()})),
    "input": raises(InvalidInput(WORD)),
    "large": raises(TooLarge(WORD)),
    "group of ours": raises(ExceptionGroup("x", [InvalidInput(WORD)])),
}


async def test_what_an_agent_raises(heard: Callable[[], str]) -> None:
    """Where it did, and what kind of exception it is; and nothing that it quotes."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield Text(WORD)
        yield ToolCall("t1", "kettle", json.dumps({"of": WORD}))
        yield ToolStarted("t1", json.dumps({"of": WORD}))
        yield ToolResult("t1", {"tea": WORD})
        of(FAULTS, turn)()

    for case, last in zip(FAULTS, await said(agent, FAULTS, heard), strict=True):
        assert '"code"' in last, case
    assert heard().count(f"in {agent.__name__}") > 2 * len(FAULTS)


ITEMS = {"object": object(), "dict": {"type": WORD}, "call": ToolCall("t", WORD, "{"), "large": Text(WORD * 100_000)}


async def test_what_an_agent_yields_and_cannot(heard: Callable[[], str]) -> None:
    """Its run fails with words for its user, who may see them."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield of(ITEMS, turn)

    await said(agent, ITEMS, heard)
    assert "the agent did what it cannot: InvalidInput" in heard()


async def test_what_agents_raise_when_they_are_stopped(heard: Callable[[], str]) -> None:
    """By who sent the message, and with the server."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield WORD
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError(WORD)

    def stop() -> None:
        raise ValueError(WORD)

    app = Legato("memory:", agents=[Agent(agent, name="agent", on_stop=stop)])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "a"})
        await driver.request("POST", "/api/sessions/a/messages", json={"text": WORD})
        while app.runner.running == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await driver.request("POST", "/api/sessions/a/cancel", json={})
        await ends(app, 1)
    assert "failed when stopped" in heard()
    assert "agent agent failed to stop" in heard()
    assert WORD not in heard()


# Tools and models -----------------------------------------------------------------------------------------------------


def error_reply(status: int, **headers: str) -> Reply:
    error = {"message": f"Bad: {WORD}", "type": f"of {WORD}", "code": f"a {WORD}", "param": WORD}
    return json_reply({"error": error}, status, **headers)


REPLIES: dict[str, Callable[[], Reply]] = {
    **{str(status): lambda status=status: error_reply(status) for status in (400, 401, 404, 413, 429, 500, 529)},
    "page": lambda: Reply(502, f"<html>{WORD}</html>".encode()),
    "text": lambda: Reply(400, WORD.encode()),
    "failed": lambda: stream_reply(
        sse(numbered({"type": "response.failed", "response": {"id": "r", "status": "failed", "error": {
            "code": f"x {WORD}", "message": WORD}}})), None),
    "error": lambda: stream_reply(sse(numbered({"type": "error", "code": WORD + "?", "message": WORD})), None),
    "malformed": lambda: stream_reply(f"data: {{{WORD}\n\n".encode(), None),
    "cut": lambda: Reply(200, f"data: {WORD}".encode(), {"content-type": "text/event-stream"}, cut=True),
    "no stream": lambda: json_reply({"choices": WORD}),
}  # fmt: skip


@pytest.mark.parametrize("wire", ["responses", "chat", "messages"])
async def test_what_a_provider_says(wire: str, heard: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its error, which may quote the prompt, the log has class, status and code."""
    replies = iter(REPLIES.values())
    await said(model_agent(asking(monkeypatch, lambda _: next(replies)(), wire)), REPLIES, heard)
    assert "the model failed: ProviderRefused (status 413)" in heard()
    assert heard().count("the model failed") >= 3 * len(REPLIES)


def failing_tool(city: str) -> None:
    raise ValueError(f"No such city: {city}")


async def test_what_tools_are_given_and_say(heard: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that fit or not, one that fails, and one that nobody has."""
    arguments = json.dumps({"city": WORD})
    asked = [("c1", "fail", arguments), ("c2", "fail", WORD), ("c3", "echo", arguments), ("c4", "none", arguments)]
    keeper = Keeper(calls(*asked), says(WORD))
    tools = [Tool(failing_tool, name="fail"), Tool(lambda city: {city: city}, name="echo")]
    await said(model_agent(asking(monkeypatch, keeper), tools=tools), heard=heard)
    assert "tool fail failed" in heard()


def test_what_a_repeated_request_says() -> None:
    """To stamina, and so to whatever that logs to."""
    for answer in (
        httpx2.Response(429, text=WORD, request=httpx2.Request("POST", "http://test/x")),
        httpx2.Response(
            529,
            json={"error": {"message": WORD, "code": "overloaded"}},
            request=httpx2.Request("POST", "http://test/x"),
        ),
    ):
        assert (WORD in str(refusal(answer)), WORD in repr(refusal(answer)), WORD in repr(refused(answer))) == (
            True,
            False,
            False,
        )
    assert repr(refused(answer)) == "APIError (overloaded, status 529)"


@pytest.mark.parametrize(
    "kind",
    [
        httpx2.ConnectError,
        httpx2.ConnectTimeout,
        httpx2.PoolTimeout,
        httpx2.ProxyError,
        httpx2.ReadTimeout,
        httpx2.ReadError,
        httpx2.RemoteProtocolError,
        httpx2.DecodingError,
    ],
)
def test_what_an_address_has_besides_its_server(kind: type[httpx2.RequestError]) -> None:
    """A key may stand in each other part of it; which server it was is told."""
    address = f"https://{WORD}:{WORD}@gateway:8443/{WORD}/v1/responses?key={WORD}"
    error = failure(kind("refused", request=httpx2.Request("POST", address)))
    shown = f"{error} {error!r} {trace(error)} {provider_error(error)} {trace(provider_error(error))}"
    assert (WORD in shown, "POST https://gateway:8443" in str(error)) == (False, True)


# Stores ---------------------------------------------------------------------------------------------------------------


def damaged() -> Exception:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(json.dumps({"of": WORD}), type=Colour)
    return caught.value


class Diagnosis:
    def __init__(self, primary: str) -> None:
        self.message_primary = primary


def of_postgres(state: str | None, primary: str) -> Exception:
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'legato[postgres]'")
    kind = type("Known", (psycopg.errors.DatabaseError,), {"sqlstate": state, "diag": Diagnosis(primary)})
    return kind(f"{primary}\nDETAIL:  Key (name)=({WORD}) already exists.")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("state", "primary", "kept"),
    [
        ("23505", "duplicate key value violates unique constraint", True),
        ("22P02", f"invalid input syntax for type integer: {WORD}", False),
        ("53100", "could not extend file", True),
        (None, WORD, False),
    ],
)
def test_what_postgres_says(state: str | None, primary: str, kept: bool) -> None:
    """Its details have rows, as have its messages about data."""
    error = of_postgres(state, primary)
    from legato.store.postgres_sql import store_error

    message = store_error(error, "db", connecting=False).message
    assert (WORD in message, primary in message, (state or "") in message) == (False, kept, True)
    assert WORD not in trace(error)


def test_what_redis_and_sqlite_say() -> None:
    """Redis quotes what it was told, and a row that cannot be read its values."""
    from redis import exceptions

    for words in (f"ERR unknown command 'x', with args beginning with: '{WORD}'", f"Command # 1 (SET {WORD}) failed"):
        assert WORD not in redis_errors.store_error(exceptions.ResponseError(words), "redis").message
    refused = exceptions.ResponseError("MISCONF Errors writing to the AOF file")
    assert "AOF file" in redis_errors.store_error(refused, "redis").message
    assert "(ValidationError)" in sqlite_errors.store_error(damaged(), "chat.db").message
    assert "No space" in sqlite_errors.store_error(OSError(28, "No space left on device"), "chat.db").message


def test_what_is_damaged(heard: Callable[[], str]) -> None:
    """An event is named by its place."""
    read_stored("s", 7, "text.delta", b'{"text": "' + WORD.encode())
    assert "session s: event 7 (text.delta) is damaged: msgspec.DecodeError" in heard()
    assert WORD not in heard()


# The server -----------------------------------------------------------------------------------------------------------


async def test_what_rules_of_an_application_raise(heard: Callable[[], str]) -> None:
    """``auth`` and ``quota`` are given what is theirs to look at, and their faults are told by their kind."""

    def auth(request: Any) -> str:
        if "x-who" not in request.headers:
            raise ValueError(WORD)
        return "ida"

    async def quota(*_: object) -> None:
        raise KeyError(WORD)

    app = Legato("memory:", agents=[lambda turn: "x"], auth=auth, quota=quota)
    async with Driver(app) as driver:
        assert (await driver.request("GET", "/api/sessions")).status == 401
        answer = await driver.request("POST", "/api/sessions", json={"id": WORD}, headers={"x-who": "x"})
        assert answer.status >= 400
    assert "auth failed with ValueError" in heard()
    assert WORD not in heard()


async def test_what_libraries_log() -> None:
    """Through the handler of ``legato serve``: exceptions of whoever logs, and what asyncio says of tasks."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    handler.addFilter(Discreet())
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "theirs")]
    for each in loggers:
        each.addHandler(handler)
    try:
        try:
            chained()
        except ValueError as exc:
            loggers[0].error("Exception in ASGI application\n", exc_info=exc)
            loggers[2].error(exc)
            loggers[2].error("%s, and %s", exc, KeyError(WORD))

        async def fail() -> None:
            raise ValueError(WORD)

        task = asyncio.create_task(fail(), name="a-task")
        await asyncio.wait([task])
        del task
        gc.collect()
        asyncio.get_running_loop().call_soon(raises(ValueError(WORD)))
        asyncio.get_running_loop().call_soon(lambda _: 1 // 0, WORD)
        await asyncio.sleep(0)
        loggers[1].warning("Executing %s took %.3f seconds", f"<Handle f({WORD!r}, [1]) at x.py:1 created at y>", 0.2)
    finally:
        for each in loggers:
            each.removeHandler(handler)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert WORD not in stream.getvalue()
    assert [line["message"] for line in lines[1:3]] == ["ValueError", "ValueError, and KeyError"]
    assert "'a-task'" in lines[3]["message"]
    assert [line["exception"].rpartition("\n")[2].partition(":")[0] for line in lines[3:6]] == [
        "ValueError", "ValueError", "ZeroDivisionError"
    ]  # fmt: skip
    assert lines[6]["message"] == "Executing <Handle f(...) at x.py:1 created at y> took 0.200 seconds"


# What is told ---------------------------------------------------------------------------------------------------------


class Oddly(AgentError):
    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)

    @property
    def status_code(self) -> int:
        raise RuntimeError(WORD)


class OfAnSDK(Exception):
    code = "rate_limit_exceeded"
    status_code = 429
    request_id = "req_7"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(WORD), "ValueError"),
        (Odd(), "test_no_content.Odd (status 16)"),
        (Oddly(WORD), "Oddly"),
        (damaged(), "msgspec.ValidationError"),
        (InvalidInput(WORD, field="Text.text"), "InvalidInput (invalid_input, of Text.text)"),
        (InvalidInput(WORD, field=f"a {WORD}"), "InvalidInput (invalid_input)"),
        (AgentError(WORD, code="out_of_tea"), "AgentError (out_of_tea)"),
        (StoreFull("The disk is full."), "The disk is full."),
        (FileNotFoundError(2, WORD, WORD), "FileNotFoundError (2, No such file or directory)"),
        (ExceptionGroup(WORD, [ValueError(WORD)]), "ExceptionGroup (1 in it)"),
        (OfAnSDK(WORD), "test_no_content.OfAnSDK (rate_limit_exceeded, status 429, request req_7)"),
        (of_postgres("23505", WORD), "builtins.Known (SQLSTATE 23505)"),
    ],
    ids=str,
)
def test_an_outline_is_what_programs_know(error: BaseException, text: str) -> None:
    """The class, the code, the status, the id of the request: enough to look it up."""
    assert outline(error).replace("test_no_content.Known", "builtins.Known") == text


def test_a_traceback_says_where() -> None:
    """Each frame, and what led to it, in the order in which it happened; not each of a thousand."""
    for fault, kinds in (
        ("chained", ["KeyError", "ValueError"]),
        ("several", ["ExceptionGroup (2 in it)", "  | ValueError"]),
    ):
        with pytest.raises(Exception) as caught:
            FAULTS[fault]()
        lines = trace(caught.value).splitlines()
        told_kinds = [line.partition(":")[0] for line in lines if line.endswith("shows it)")]
        assert told_kinds[:2] == kinds
        assert any(line.endswith(f"in {fault}") for line in lines)
    with pytest.raises(ValueError) as deeply:
        deep()
    assert len(trace(deeply.value).splitlines()) == FRAMES + 3


def test_content_is_shown_to_whom_asks_for_it() -> None:
    """By the setting of ``legato serve``, or by the program."""
    code = (
        "import logging; from legato.logs import set_up; set_up('debug', content={});"
        "log = logging.getLogger('legato'); log.error('x %s', ValueError('w' * 3), exc_info=ValueError('v' * 3));"
        "import threading; thread = threading.Thread(target=int, args=['u' * 3]); thread.start(); thread.join();"
        "x = type('X', (), {{'__del__': lambda self: int('s' * 3)}})(); del x;"
        "print(*[logging.getLogger(name).isEnabledFor(10) for name in ('openai.agents', 'httpx2', 'httpcore.http11')])"
    )
    for content in (False, True):
        ran = subprocess.run([sys.executable, "-c", code.format(content)], capture_output=True, text=True, check=True)
        assert [word in ran.stderr for word in ("www", "vvv", "uuu", "sss")] == [content] * 4
        assert "the thread Thread-1 (int) failed" in ran.stderr
        assert ran.stdout.split() == [str(content)] * 3


def test_libraries_say_no_more_than_the_level() -> None:
    """Those that write down content begin at a level of their own only where they would begin below it."""
    code = (
        "import logging; from legato.logs import set_up; set_up({!r});"
        "print(*[logging.getLogger(name).getEffectiveLevel() for name in ('openai.agents', 'mcp', 'httpx2')])"
    )
    for level, least in {"debug": "20 20 30", "info": "20 20 30", "warning": "30 30 30", "error": "40 40 40"}.items():
        ran = subprocess.run([sys.executable, "-c", code.format(level)], capture_output=True, text=True, check=True)
        assert ran.stdout.split() == least.split(), level


def test_words_that_any_log_may_have_are_told_as_they_were_given() -> None:
    """A key that stood in an address has been taken out of them."""
    assert told(ConnectionFailed("POST http://gw/key/v1 failed"), "POST http://gw/[key]/v1 failed").count("[key]") == 1


def test_arguments_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """Exceptions among them are told by their outline, too."""
    logging.getLogger("legato").error("it is %(why)s", {"why": ValueError("secret words")})
    assert caplog.messages == ["it is ValueError"]


def test_words_are_told_where_content_is_shown() -> None:
    """Those that were given, in which a key is left out."""
    assert (told(ValueError("x"), "y"), told(ValueError("x"))) == ("ValueError", "ValueError")
    show_content()
    try:
        assert (told(ValueError("x"), "y"), told(ValueError("x"))) == ("y", "x")
    finally:
        show_content(False)
    assert not legato.logs._content


def test_who_logs_is_discreet() -> None:
    """Whatever part of Legato is loaded alone: all that may tell of content reads events."""
    code = "import legato.event, logging; print(logging.getLogger('legato').filters)"
    assert "Discreet" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
