"""The ``legato`` command, as people and scripts use it: real processes, real ports, a terminal where it matters."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from legato.cli.failure import Failure, Misuse
from legato.cli.target import Target, load
from legato.cli.terminal import TerminalView
from legato.cli.text import escaped, line, safe, typed
from legato.client import BackendMessage, Client
from legato.client.events import decode_event
from legato.server.app import Legato
from legato.sse import SSEMessage
from legato.torture.ports import free_port
from processes import LAST_WORDS

LEGATO = [sys.executable, "-m", "legato"]
SAFETY = 60.0
"""Seconds after which a wait is given up: a net against hanging, never a measure."""

AGENTS = '''
from legato.agent import Agent, Turn
from legato.errors import AgentError
from legato.yields import Refusal, Thinking, ToolCall, ToolResult, ToolStarted


async def agent(turn: Turn):
    """Echoes, and does what it is told."""
    match turn.message.text.split():
        case ["tools"]:
            yield Thinking("Let me see. ")
            yield ToolCall("c1", "Look", '{"where": "here"}')
            yield ToolStarted("c1", progress="Looking")
            yield ToolResult("c1", output="seen", progress="Seen")
            yield "I looked."
        case ["refuse"]:
            yield Refusal("I can")
            yield Refusal("not.")
        case ["ask"]:
            granted = await turn.ask_permission("Write", "May I write?", action="write", path="notes.txt")
            yield "granted." if granted else "denied."
        case ["choose"]:
            answer = await turn.notify(
                "Tea", "Which one?", kind="question", response="choice", choices=["green", "black"], wait=True
            )
            yield f"chosen {answer.value}."
        case ["name"]:
            answer = await turn.notify("Name", "What is it?", kind="question", response="text", wait=True)
            yield f"named {answer.value}."
        case ["wait"]:
            yield "before "
            await turn.ask_permission("Gate", "Go on?")
            yield "after"
        case ["hostile"]:
            yield "red \\x1b[31mtext\\x1b]0;title\\x07 \\x9b2J and \\u202eback"
            await turn.notify("T\\x1b[2J", "M\\x1b[1A")
        case ["fail"]:
            yield "half "
            raise AgentError("It broke.\\x1b[2J", code="broken")
        case _:
            yield f"You said: {turn.message.text}"


async def other(turn: Turn):
    """Another one."""
    yield "I am the other."
'''


# Driving programs -----------------------------------------------------------------------------------------------------


def _hear_interrupts() -> None:
    """A shell lets what it starts in the background ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
    """A running command whose output is collected, and can be waited for."""

    def __init__(self, *args: str, terminal: bool = False, cwd: Path | None = None, **env: str) -> None:
        self.output = ""
        self.errors = ""
        self._seen = 0
        self._changed = threading.Condition()
        self._terminal = -1
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TERM": "xterm", "COLUMNS": "100", **env}
        environment.pop("NO_COLOR", None)
        if terminal:
            self._terminal, theirs = os.openpty()
            # A session of its own with that terminal in charge, so that ^C typed into it is a SIGINT.
            self.process = subprocess.Popen(
                LEGATO_ON_TERMINAL + list(args), stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd,
                env=environment, start_new_session=True,
            )  # fmt: skip
            os.close(theirs)
            sources = [(self._terminal, "output")]
        else:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                LEGATO + list(args), stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=environment,
                preexec_fn=_hear_interrupts,
            )  # fmt: skip
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            sources = [(self.process.stdout.fileno(), "output"), (self.process.stderr.fileno(), "errors")]
        self._readers = [threading.Thread(target=self._read, args=source, daemon=True) for source in sources]
        for reader in self._readers:
            reader.start()

    def _read(self, file: int, into: str) -> None:
        while True:
            try:
                chunk = os.read(file, 65_536)
            except OSError:  # a terminal whose other end is closed
                chunk = b""
            with self._changed:
                setattr(self, into, getattr(self, into) + chunk.decode("utf-8", "replace"))
                self._changed.notify_all()
            if not chunk:
                return

    def expect(self, pattern: str, *, errors: bool = False) -> re.Match[str]:
        """Wait until ``pattern`` has been written, behind what was expected before (in the errors: anywhere)."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.errors) if errors else re.compile(pattern).search(self.output, self._seen)

        with self._changed:
            in_time = self._changed.wait_for(lambda: found() or not self._alive(), SAFETY)
            match = found()
            assert match, f"{pattern!r} in time: {in_time}\n{self.output[self._seen :]!r}\n{self.errors!r}"
            if not errors:
                self._seen = match.end()
            return match

    def _alive(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def type(self, text: str) -> None:
        """Give it input."""
        if self._terminal >= 0:
            os.write(self._terminal, text.encode())
        else:
            assert self.process.stdin is not None
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self) -> int:
        """Wait for its end; the exit status."""
        status = self.process.wait(SAFETY)
        if self._terminal < 0:
            for reader in self._readers:
                reader.join(SAFETY)
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                pass
        for reader in self._readers:
            reader.join(LAST_WORDS)
        if self._alive():  # what is closed under a thread that reads may be another's number when it reads on
            return
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self._terminal >= 0:
            os.close(self._terminal)


LEGATO_ON_TERMINAL = [
    sys.executable,
    "-c",
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from legato.cli import main; main()",
]

Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    programs: list[Program] = []

    def start_program(*args: str, **options: Any) -> Program:
        programs.append(Program(*args, **options))
        return programs[-1]

    yield start_program
    for program in programs:
        program.stop()


def run(*args: str, input: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    return subprocess.run(
        LEGATO + list(args), input=input, capture_output=True, text=True, timeout=SAFETY, cwd=cwd, env=environment
    )


def serving(program: Program) -> str:
    return program.expect(r"Legato is ready: (http://127\.0\.0\.1:\d+)\n")[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    (folder / "agents.py").write_text(AGENTS)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A server for all tests that do no harm to it."""
    program = Program("serve", str(folder / "agents.py"), "--port", "0", "--store", f"sqlite:///{folder}/shared.db")
    try:
        yield serving(program)
    finally:
        program.stop()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


# The command itself ---------------------------------------------------------------------------------------------------


def test_version() -> None:
    """--version says which version this is."""
    assert re.fullmatch(r"legato \d\S*\n", run("--version").stdout)


def test_help_teaches() -> None:
    """The help begins with the two commands to try, and lists all."""
    text = run("--help").stdout
    assert "Quick start" in text
    assert set(re.findall(r"^  (\w+)  ", text, re.M)) >= {"serve", "chat", "send", "tail", "log", "sessions"}


@pytest.mark.parametrize("command", ["serve", "chat", "send", "tail", "log", "sessions"])
def test_help_has_examples(command: str) -> None:
    """The help of each command shows real examples."""
    text = run(command, "--help").stdout
    assert len(re.findall(rf"^ +.*legato {command}", text.partition("Examples:")[2], re.M)) >= 2


def test_help_is_quick() -> None:
    """The help loads neither the server nor the SDK."""
    code = (
        "import sys; sys.argv = ['legato', '--help']\n"
        "try:\n    from legato.cli import main; main()\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('uvicorn', 'starlette', 'httpx2', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SAFETY)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_bare_install_says_what_to_install(missing: str) -> None:
    """Without the server's packages the command says which extra to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from legato.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SAFETY)
    assert result.returncode == 1
    assert f"{missing}, which is not installed: pip install 'legato[server]'" in result.stderr


# Serve ----------------------------------------------------------------------------------------------------------------


def test_serve_announces_itself(start: Start, folder: Path, tmp_path: Path) -> None:
    """The banner names the address, the agents and the store; SIGINT stops, with status 0."""
    server = start("serve", str(folder / "agents.py"), "--port", "0", cwd=tmp_path)
    serving(server)
    server.expect(r"Ctrl-C")
    server.process.send_signal(signal.SIGINT)
    assert server.finish() == 0
    assert "agents  agent: Echoes, and does what it is told.\n" in server.output
    assert "other: Another one." in server.output
    assert f"sqlite:///legato.db (in {tmp_path})" in server.output
    assert (tmp_path / "legato.db").exists()
    assert server.errors == ""


def test_serve_guards_loopback_by_host_name(start: Start, folder: Path) -> None:
    """On loopback, only its own names and those that were allowed are answered."""
    server = start(
        "serve", str(folder / "agents.py"), "--port", "0", "--store", "memory:", "--allow-host", "box.example"
    )
    url = serving(server)
    statuses = []
    for name in ("localhost:1", "127.0.0.1", "[::1]:8088", "box.example", "evil.example"):
        with Client(url, headers={"host": name}, retry_config=None) as client:
            response = client.http.get(f"{url}/health", headers={"host": name})
            statuses.append(response.status_code)
    assert statuses == [200, 200, 200, 200, 421]


def test_serve_lets_other_machines_in_under_names(start: Start, folder: Path) -> None:
    """Without them, whoever has a name lead here could read the chats; a whole app may have its own."""
    agents, app, named = str(folder / "agents.py"), folder / "whole.py", folder / "named.py"
    whole = "from legato import Legato\nfrom agents import agent\napp = Legato('memory:', agents=[agent]%s)\n"
    app.write_text(whole % "")
    named.write_text(whole % ", hosts='box.example'")
    for host in ("0.0.0.0", "::", "192.0.2.1", "box.example"):
        for target, how in ((agents, "--allow-host chat.example.com"), (str(app), "Legato(hosts=")):
            refused = run("serve", target, "--host", host, "--port", "0", cwd=folder)
            assert refused.returncode == 2
            assert how in refused.stderr
    wrong = run("serve", agents, "--allow-host", "https://box.example", "--port", "0")
    assert (wrong.returncode, "A host is a name alone" in wrong.stderr) == (2, True)
    for target, options in ((agents, ["--allow-host", "box.example"]), (str(named), []), (agents, ["--allow-host=*"])):
        store = [] if target == str(named) else ["--store", "memory:"]
        alone = run("serve", target, "--host", "0.0.0.0", "--port", "0", *store, *options, cwd=folder)
        assert (alone.returncode, "--open" in alone.stderr) == (2, True)
        options = [*options, "--open"]
        server = start("serve", target, "--host", "0.0.0.0", "--port", "0", *store, *options, cwd=folder)
        url = serving(server)
        with Client(url, retry_config=None) as client:
            statuses = [
                client.http.get(f"{url}/health", headers={"host": name}).status_code
                for name in ("127.0.0.1:8088", "box.example", "evil.example")
            ]
        assert statuses == [200, 200, 200 if "--allow-host=*" in options else 421]


def test_taken_port(start: Start, url: str, folder: Path) -> None:
    """A taken port is one line that says what to do."""
    port = url.rpartition(":")[2]
    result = run("serve", str(folder / "agents.py"), "--port", port, "--store", "memory:")
    assert result.returncode == 1
    assert re.fullmatch(rf"legato: Cannot listen on 127.0.0.1:{port}: .* --port 0 a free one\.\n", result.stderr)
    result = run("serve", str(folder / "agents.py"), "--port", port)
    assert result.stderr.endswith("Two servers need two stores, too: --store sqlite:///other.db, or memory:.\n")


def test_second_server_on_the_same_store(url: str, folder: Path) -> None:
    """A store that another server has open is refused, in one line, by who does not wait for it."""
    store = f"sqlite:///{folder}/shared.db"
    result = run("serve", str(folder / "agents.py"), "--port", "0", "--store", store, "--wait", "0")
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(r"legato: .*shared\.db.*another.*\n", result.stderr)


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://app.example.com/chat"])
def test_an_origin_that_no_browser_sends(tmp_path: Path, origin: str) -> None:
    """What could never match is refused, rather than pages being refused without a reason that anybody sees."""
    result = run("serve", "--port", "0", "--store", "memory:", "--cors", origin, cwd=tmp_path)
    assert result.returncode == 2
    assert (
        f"--cors wants an origin as browsers send it, such as https://app.example.com, got '{origin}'" in result.stderr
    )


@pytest.mark.parametrize(
    ("target", "text", "said"),
    [
        ("missing.py", None, "There is no file 'missing.py'"),
        ("missing", None, "There is no module 'missing'"),
        ("bad!name", None, "is not a module's name"),
        ("broken.py", "x = 1\ndef agent(turn:\n", r"broken\.py:2: SyntaxError"),
        ("fails.py", "\nraise ValueError('two\\nlines')\n", r"fails\.py:2: ValueError: two lines"),
        ("needs.py", "import no_such_package\n", r"needs\.py:1: ModuleNotFoundError: .*no_such_package.*; install the"),
        ("framed.py", "raise ModuleNotFoundError(name='agents.x')\n", r"pip install 'legato\[openai-agents\]'"),
        ("empty.py", "x = 1\n", r"There is no agent in empty\.py: expected"),
        ("some.py:nothing", "async def agent(turn): yield ''\n", r"There is no 'nothing' in some\.py; it has agent"),
        ("number.py:x", "x = 1\n", "is of type int; expected an agent"),
        ("none.py:f", "def f(): pass\n", r"takes \(\); an agent is called with one argument"),
    ],
)
def test_bad_target(tmp_path: Path, target: str, text: str | None, said: str) -> None:
    """A target that cannot be loaded is one line that says what was expected, and status 2."""
    if text is not None:
        (tmp_path / target.partition(":")[0]).write_text(text)
    result = run("serve", target, "--port", "0", "--store", "memory:", cwd=tmp_path)
    assert result.returncode == 2
    assert re.search(said, result.stderr)
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """--debug shows where an error comes from; the status stays."""
    (tmp_path / "fails.py").write_text("raise ValueError('here')\n")
    result = run("serve", "fails.py", "--debug", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_options_of_the_guide_need_the_guide(folder: Path) -> None:
    """--docs and --pace do nothing for other agents, so they are refused."""
    result = run("serve", str(folder / "agents.py"), "--pace", "3")
    assert (
        result.returncode,
        result.stderr,
    ) == (2, "legato: --pace is for the guide, which is served without a TARGET.\n")


def test_serve_the_guide(start: Start, tmp_path: Path) -> None:
    """Without a target the guide answers from the documents it was given."""
    (tmp_path / "tea.md").write_text("# Tea\n\nGreen tea is brewed at eighty degrees.\n")
    server = start("serve", "--docs", str(tmp_path), "--pace", "0", "--port", "0", "--store", "memory:")
    result = run("send", "How is green tea brewed?", "--url", serving(server))
    assert "eighty degrees" in result.stdout


def test_sigterm_lets_an_answer_finish(start: Start, folder: Path, tmp_path: Path) -> None:
    """At SIGTERM the running answer is written to its end and its readers see it; then the status is 0."""
    server = start("serve", str(folder / "agents.py"), "--port", "0", "--store", f"sqlite:///{tmp_path}/x.db")
    url = serving(server)
    with Client(url) as client:
        answer = client.ask("wait")
        events = iter(answer)
        asked = next(event for event in events if event.event == "permission")
        server.process.send_signal(signal.SIGTERM)
        server.expect(r"finishing 1 answer\(s\)", errors=True)
        client.permissions.grant(asked.data.id)
        assert list(events)[-1].event == "complete"
        assert answer.text == "before after"
    assert server.finish() == 0


# Targets --------------------------------------------------------------------------------------------------------------


def names(loaded: Target) -> list[str]:
    assert loaded.app is None
    return [agent.name for agent in loaded.agents]


def test_file_gives_all_its_agents(folder: Path) -> None:
    """Of a file, all functions of a turn are agents; ``agent`` is the first, so the default."""
    assert names(load(str(folder / "agents.py"))) == ["agent", "other"]


def test_a_module_that_grows_while_it_is_looked_at(tmp_path: Path) -> None:
    """Its names load what they stand for when they are looked at, and that is another name."""
    (tmp_path / "cli_lazy.py").write_text(
        "class Lazy:\n"
        "    @property\n"
        "    def __class__(self):\n"
        "        globals()[f'name_{len(globals())}'] = None\n"
        "        return Lazy\n\n"
        "async def agent(turn):\n"
        "    yield 'Hello.'\n\n"
        "lazy = Lazy()\n"
    )
    assert names(load(f"{tmp_path}/cli_lazy.py")) == ["agent"]


def test_file_and_name_give_one_agent(folder: Path) -> None:
    """A name picks one object."""
    assert names(load(f"{folder}/agents.py:other")) == ["other"]


def test_module_and_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module is found in the current folder, also inside a package."""
    (tmp_path / "cli_shop").mkdir()
    (tmp_path / "cli_shop" / "desk.py").write_text("class Desk:\n    def help(turn): return 'x'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert names(load("cli_shop.desk:Desk.help")) == ["help"]


def test_an_agent_and_its_function_are_one(tmp_path: Path) -> None:
    """An ``Agent`` hides the function it was made of, and two names of one agent are one."""
    (tmp_path / "cli_wrapped.py").write_text(
        "from legato.agent import Agent\n"
        "def first(turn): return 'x'\n"
        "def helper(text): return text\n"
        "agent = Agent(first, name='wrapped')\n"
        "same = agent\n"
    )
    assert names(load(f"{tmp_path}/cli_wrapped.py")) == ["wrapped"]


def test_file_with_an_app(tmp_path: Path) -> None:
    """A file's whole application is served as it is."""
    (tmp_path / "cli_app.py").write_text(
        "from legato.server.app import Legato\nservice = Legato('memory:')\n@service.agent\ndef a(turn): return 'x'\n"
    )
    app = load(f"{tmp_path}/cli_app.py").app
    assert isinstance(app, Legato)
    assert list(app.agents) == ["a"]


def test_several_apps_need_a_name(tmp_path: Path) -> None:
    """With more than one application somebody has to choose."""
    (tmp_path / "cli_apps.py").write_text("from legato.server.app import Legato\na = Legato()\nb = Legato()\n")
    with pytest.raises(Misuse, match=r"several apps .*\(a, b\)"):
        load(f"{tmp_path}/cli_apps.py")


def test_file_named_like_a_loaded_module(tmp_path: Path) -> None:
    """A file may be called like a module that is in use; that one stays what it is."""
    (tmp_path / "json.py").write_text("def agent(turn): return 'x'\n")
    before, path = sys.modules["json"], list(sys.path)
    try:
        assert names(load(f"{tmp_path}/json.py")) == ["agent"]
    finally:
        sys.path[:] = path
    assert before is sys.modules["json"]


def test_app_takes_the_store_given_and_refuses_the_rest(start: Start, tmp_path: Path) -> None:
    """--store overrides an application's own; what the application sets itself is refused."""
    (tmp_path / "app.py").write_text(
        "from legato.server.app import Legato\napp = Legato('memory:')\n@app.agent\ndef a(turn): return 'x'\n"
    )
    server = start("serve", "app.py", "--port", "0", "--store", "sqlite:///given.db", cwd=tmp_path)
    serving(server)
    server.expect("sqlite:///given.db")
    result = run("serve", "app.py", "--heartbeat", "3", cwd=tmp_path)
    assert (
        result.returncode,
        result.stderr,
    ) == (2, "legato: app.py is a whole app; it sets --heartbeat itself, in Legato(...).\n")


# Chat, without a terminal ---------------------------------------------------------------------------------------------


def session_of(text: str) -> str:
    found = re.search(r"legato chat (\S+)", text)
    assert found is not None, text
    return found[1]


def test_chat_over_a_pipe(url: str) -> None:
    """Each line is a message; the answers come in order, and the way back is told at the end."""
    result = run("chat", "--url", url, input="one\ntwo\n")
    assert result.returncode == 0
    session = session_of(result.stdout)
    assert [
        "> one",
        "You said: one",
        "> two",
        "You said: two",
        f"to come back: legato chat {session} --url {url}",
    ] == result.stdout.splitlines()


def test_chat_shows_tools_and_thinking(url: str) -> None:
    """A tool call is one line with name, arguments and result; a thought is one line too, or its text if wanted."""
    brief = run("chat", "--url", url, input="tools\n").stdout.splitlines()
    assert brief[1:4] == ["thought, 12 characters", '✓ Look {"where": "here"}: Seen', "I looked."]
    whole = run("chat", "--url", url, "--thinking", input="tools\n").stdout.splitlines()
    assert whole[1:4] == ["Let me see. ", '✓ Look {"where": "here"}: Seen', "I looked."]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("ask\ny\n", "granted."),
        ("ask\nn\n", "denied."),
        ("ask\nperhaps\nyes\n", "granted."),
        ("ask\n", "denied."),  # the end of the input is no permission
        ("choose\n2\n", "chosen black."),
        ("choose\nGreen\n", "chosen green."),
        ("choose\n7\n1\n", "chosen green."),
        ("name\nIda\n", "named Ida."),
    ],
)
def test_chat_asks(url: str, typed: str, said: str) -> None:
    """What the agent asks is asked, until it is answered."""
    result = run("chat", "--url", url, input=typed)
    assert said in result.stdout.splitlines()


def test_chat_shows_a_failure(url: str) -> None:
    """A failed answer says why, behind what came of it."""
    lines = run("chat", "--url", url, input="fail\n").stdout.splitlines()
    assert lines[1:3] == ["half ", "failed: It broke.␛[2J (broken)"]


def test_hostile_text_reaches_no_terminal(url: str, client: Client) -> None:
    """Escape sequences in what a server sends are shown, not obeyed: in answers, titles, errors and logs."""
    session = client.sessions.create(title="x\x1b[2Jy").id
    shown = [run("chat", session, "--url", url, input="hostile\nfail\n")]
    shown += [run("send", "hostile", "--session", session, "--url", url)]
    shown += [run("send", "fail", "--session", session, "--url", url)]
    shown += [run("log", session, "--url", url), run("log", session, "--url", url, "--json")]
    shown += [run("sessions", "--url", url), run("sessions", "--url", url, "--json")]
    for result in shown:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", result.stdout + result.stderr), result.args
    assert "red ␛[31mtext␛]0;title␇ �2J and �back" in shown[0].stdout


def test_json_keeps_hostile_text_exactly(url: str, client: Client) -> None:
    """JSON lines are harmless on a terminal and exact for programs."""
    session = client.sessions.create().id
    client.ask("hostile", session_id=session).read()
    events = [json.loads(row) for row in run("log", session, "--url", url, "--json").stdout.splitlines()]
    assert "red \x1b[31mtext\x1b]0;title\x07 \x9b2J and \u202eback" in [
        event["data"].get("text") for event in events if event["type"] == "text.delta"
    ]


def test_chat_comes_back_to_a_finished_session(url: str, client: Client) -> None:
    """An earlier conversation is shown briefly, once, and goes on."""
    session = client.sessions.create().id
    client.ask("first", session_id=session).read()
    result = run("chat", session, "--url", url, input="second\n")
    assert result.stdout.splitlines()[:4] == ["> first", "You said: first", "> second", "You said: second"]


def test_chat_comes_back_to_a_running_answer(start: Start, url: str, client: Client) -> None:
    """An answer that is going on is followed from its start, and not shown as history too."""
    session = client.sessions.create().id
    client.ask("first", session_id=session).read()
    answer = client.ask("wait", session_id=session)
    asked = next(event for event in answer if event.event == "permission")
    chat = start("chat", session, "--url", url)
    chat.expect(r"allow\? \[y/n\] ")
    client.permissions.grant(asked.data.id)  # from elsewhere, while it is being asked here
    chat.expect("permission granted\nafter")
    chat.end_input()
    assert chat.finish() == 0
    assert chat.output.count("before") == 1
    assert chat.output.count("> wait") == 1
    assert chat.output.index("You said: first") < chat.output.index("> wait")


def test_chat_with_another_agent(url: str) -> None:
    """--agent chooses who answers."""
    assert "I am the other." in run("chat", "--url", url, "--agent", "other", input="hello\n").stdout


def test_chat_with_an_unknown_agent(url: str) -> None:
    """An agent that is not there is one line, with those that are."""
    result = run("chat", "--url", url, "--agent", "nobody", input="hello\n")
    assert result.returncode == 1
    assert re.fullmatch(r"legato: There is no agent 'nobody'; .* agent, other\.\n", result.stderr)


# Chat, on a terminal --------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_and_then_leaves(start: Start, url: str) -> None:
    """Ctrl-C ends the answer that is going on and shows the end; the next one leaves."""
    chat = start("chat", "--url", url, terminal=True)
    chat.expect("> ")
    chat.type("wait\n")
    chat.expect(r"allow\? \[y/n\] ")
    chat.type("\x03")
    chat.expect("cancelled")
    chat.expect("> ")
    chat.type("\x03")
    chat.expect("to come back: legato chat")
    assert chat.finish() == 0


def test_a_second_ctrl_c_leaves_at_once(start: Start, folder: Path, tmp_path: Path) -> None:
    """When the answer cannot be stopped, a second Ctrl-C leaves all the same."""
    server = start("serve", str(folder / "agents.py"), "--port", "0", "--store", f"sqlite:///{tmp_path}/x.db")
    chat = start("chat", "--url", serving(server), terminal=True)
    chat.expect("> ")
    chat.type("wait\n")
    chat.expect(r"allow\? \[y/n\] ")
    server.process.kill()
    chat.expect("connection lost, retrying in")
    chat.type("\x03")
    chat.expect("could not be stopped")
    chat.type("\x03")
    chat.expect("the answer goes on; to come back: legato chat")
    assert chat.finish() == 0


def test_ctrl_d_leaves(start: Start, url: str) -> None:
    """Ctrl-D at the prompt leaves, with status 0."""
    chat = start("chat", "--url", url, terminal=True)
    chat.expect("> ")
    chat.type("hello\n")
    chat.expect("You said: hello")
    chat.expect("> ")
    chat.type("\x04")
    chat.expect("to come back: legato chat")
    assert chat.finish() == 0


def test_ctrl_d_at_a_question_leaves_it_open(start: Start, url: str, client: Client) -> None:
    """Leaving a question answers nothing: it can be answered after coming back."""
    chat = start("chat", "--url", url, terminal=True)
    chat.expect("> ")
    chat.type("ask\n")
    chat.expect(r"allow\? \[y/n\] ")
    chat.type("\x04")
    session = chat.expect(r"the answer goes on; to come back: legato chat (\S+)")[1]
    assert chat.finish() == 0
    assert "granted." in run("chat", session, "--url", url, input="y\n").stdout


def test_reconnect_is_shown(start: Start, folder: Path, tmp_path: Path) -> None:
    """When the server dies and comes back, the chat says so and goes on by itself."""
    serve = ["serve", str(folder / "agents.py"), "--store", f"sqlite:///{tmp_path}/x.db", "--port"]
    port = str(free_port())
    server = start(*serve, port)
    url = serving(server)
    chat = start("chat", "--url", url, terminal=True)
    chat.expect("> ")
    chat.type("wait\n")
    chat.expect("before ")
    server.process.kill()
    chat.expect(r"connection lost, retrying in \d+\.\d s…")
    serving(start(*serve, port))
    chat.expect("reconnected")
    chat.expect(r"failed: .*\(interrupted\)")
    chat.type("hello\n")
    chat.expect("You said: hello")


# Send -----------------------------------------------------------------------------------------------------------------


def test_send_prints_the_answer_alone(url: str, client: Client) -> None:
    """Standard output has the answer's text, standard error the session."""
    result = run("send", "tools", "--url", url)
    assert (result.returncode, result.stdout) == (0, "I looked.\n")
    session = re.fullmatch(r"session (\S+)\n", result.stderr)
    assert session is not None
    assert len(client.sessions.messages(session[1])) == 2


def test_a_refusal_is_the_answer(url: str) -> None:
    """Where somebody reads along it is told from an answer by its reason, in `log` by its kind as well."""
    sent = run("send", "refuse", "--url", url)
    assert (sent.returncode, sent.stdout) == (0, "I cannot.\n")
    session = sent.stderr.split()[1]
    assert run("chat", "--url", url, input="refuse\n").stdout.splitlines()[1:3] == ["I cannot.", "ended: refusal"]
    assert "I cannot." in run("log", session, "--url", url).stdout
    raw = run("log", session, "--url", url, "--json").stdout
    assert '"type":"refusal.delta"' in raw.replace(" ", "")


def test_send_reads_standard_input(url: str) -> None:
    """A dash stands for the standard input."""
    assert run("send", "-", "--url", url, input="from a pipe\n").stdout == "You said: from a pipe\n"


def test_send_goes_on_with_a_session(url: str, client: Client) -> None:
    """--session adds to a conversation."""
    session = client.sessions.create().id
    run("send", "one", "--session", session, "--url", url)
    run("send", "two", "--session", session, "--url", url)
    assert len(client.sessions.messages(session)) == 4


def test_send_fails_with_the_run(url: str) -> None:
    """A failed run gives status 1, after what came of the answer."""
    result = run("send", "fail", "--url", url)
    assert (result.returncode, result.stdout) == (1, "half \n")
    assert result.stderr.partition("\n")[2] == "legato: the run failed: It broke.␛[2J (broken)\n"


def test_send_without_waiting(url: str, client: Client) -> None:
    """--no-follow prints the session's id and leaves; the answer is given all the same."""
    result = run("send", "hello", "--no-follow", "--url", url)
    session = result.stdout.strip()
    with client.streaming.stream_events(session_id=session, from_="start") as stream:
        assert next(event.data.content for event in stream if event.event == "complete") == "You said: hello"


def test_send_twice_with_one_key(url: str, client: Client) -> None:
    """The same key and text give the same answer again, and are one message."""
    session = client.sessions.create().id
    args = ("send", "once", "--session", session, "--key", "k1", "--url", url)
    assert [run(*args).stdout for _ in range(2)] == ["You said: once\n"] * 2
    assert len(client.sessions.messages(session)) == 2


def test_key_needs_a_session(url: str) -> None:
    """A key without a session could not do what it promises."""
    result = run("send", "x", "--key", "k", "--url", url)
    assert (
        result.returncode,
        result.stderr,
    ) == (2, "legato: --key needs --session: a key is known within its session\n")


def test_send_tells_who_must_answer(start: Start, url: str, client: Client) -> None:
    """A question of the agent goes to standard error, with the command that answers it."""
    send = start("send", "ask", "--url", url)
    said = send.expect(r"the agent asks: Write: May I write\?\nto answer: legato chat (\S+)", errors=True)
    with client.streaming.stream_events(session_id=said[1]) as stream:
        client.permissions.grant(next(event.data.id for event in stream if event.event == "permission"))
    assert send.finish() == 0
    assert send.output == "granted.\n"


# Tail, log, sessions --------------------------------------------------------------------------------------------------


def test_tail_follows_until_the_session_is_deleted(start: Start, url: str, client: Client) -> None:
    """Every event is one JSON line, the old ones and the new ones, up to the session's end."""
    session = client.sessions.create().id
    client.ask("one", session_id=session).read()
    tail = start("tail", session, "--from", "start", "--json", "--url", url)
    tail.expect('"complete"')
    client.ask("two", session_id=session).read()
    client.sessions.delete(session)
    assert tail.finish() == 0
    events = [json.loads(row) for row in tail.output.splitlines()]
    assert list(range(1, len(events) + 1)) == [event["offset"] for event in events]
    assert [event["event"] for event in events[:3]] == ["session_created", "user_message_created", "run_started"]
    assert [event["data"]["content"] for event in events if event["event"] == "complete"] == [
        "You said: one",
        "You said: two",
    ]
    assert events[-1]["event"] == "session_deleted"


def test_tail_in_words(start: Start, url: str, client: Client) -> None:
    """Without --json a line has the offset, the event's name and what is in it; Ctrl-C ends with status 130."""
    session = client.sessions.create().id
    client.ask("one", session_id=session).read()
    tail = start("tail", session, "--from", "3", "--url", url)
    tail.expect(r"(?m)^     4  content +'You said: one'")
    tail.expect(r"(?m)^     5  complete +'You said: one'.*finishReason=stop")
    tail.process.send_signal(signal.SIGINT)
    assert tail.finish() == 130
    assert tail.errors == ""


def test_tail_tells_of_a_lost_connection(start: Start, folder: Path, tmp_path: Path) -> None:
    """Standard error says that the line was cut and that it is back; standard output goes on without a gap."""
    serve = ["serve", str(folder / "agents.py"), "--store", f"sqlite:///{tmp_path}/x.db", "--port"]
    port = str(free_port())
    server = start(*serve, port)
    url = serving(server)
    with Client(url) as client:
        session = client.sessions.create().id
        client.ask("one", session_id=session).read()
        tail = start("tail", session, "--from", "start", "--url", url, "--json")
        tail.expect('"complete"')
        server.process.kill()
        tail.expect("connection lost, retrying in", errors=True)
        serving(start(*serve, port))
        client.ask("two", session_id=session).read()
        tail.expect("reconnected\n", errors=True)
        client.sessions.delete(session)
    assert tail.finish() == 0
    offsets = [json.loads(row)["offset"] for row in tail.output.splitlines()]
    assert list(range(1, len(offsets) + 1)) == offsets


def test_tail_wants_a_place(url: str) -> None:
    """--from is a word or a number."""
    result = run("tail", "s", "--from", "yesterday", "--url", url)
    assert result.returncode == 2
    assert "expected start, turn, tail or an offset, not 'yesterday'" in result.stderr


def test_log_is_the_whole_log(url: str, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event of the log is printed, whatever the number of pages."""
    session = client.sessions.create().id
    for number in range(3):
        client.ask(f"number {number}", session_id=session).read()
    expected = client.sessions.events(session, limit=1000)
    events = [json.loads(row) for row in run("log", session, "--json", "--url", url).stdout.splitlines()]
    assert [(e.offset, e.type, e.data) for e in expected.events] == [
        (e["offset"], e["type"], e["data"]) for e in events
    ]
    after = run("log", session, "--after", "3", "--url", url).stdout.splitlines()
    assert expected.head - 3 == len(after)
    assert re.match(r"     4  \d\d:\d\d:\d\d\.\d{3}  text\.delta +'You said: number 0'", after[0])


def test_sessions_are_listed(url: str, client: Client) -> None:
    """A session is one line: its id, when it began, how much was said, and its title."""
    session = client.sessions.create(title="About tea").id
    client.ask("one", session_id=session).read()
    listed = run("sessions", "--limit", "1000", "--url", url).stdout
    assert re.search(rf"(?m)^{re.escape(session)} +\d{{4}}-\d\d-\d\d \d\d:\d\d +1 message  About tea$", listed)


# What goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["chat", "send x", "tail s", "log s", "sessions"])
def test_no_server(command: str) -> None:
    """Without a server every command says, at once and in one line, how to get one."""
    result = run(*command.split(), LEGATO_URL="http://127.0.0.1:9")
    assert result.returncode == 1
    assert (
        result.stderr
        == "legato: no server at http://127.0.0.1:9; start one with `legato serve`, or name another with --url\n"
    )


@pytest.mark.parametrize("command", ["chat no.such", "send x --session no.such", "tail no.such", "log no.such"])
def test_no_session(url: str, command: str) -> None:
    """A session that is not there is one line, with the command that lists those that are."""
    result = run(*command.split(), "--url", url)
    assert result.returncode == 1
    assert f"legato: There is no session 'no.such'. `legato sessions` lists those of {url}\n" == (
        result.stderr.removeprefix("session no.such\n")
    )
    assert "to come back" not in result.stdout + result.stderr


def test_bad_url() -> None:
    """An address that is none is a misuse."""
    result = run("sessions", "--url", "localhost:8088")
    assert result.returncode == 2
    assert re.fullmatch(r"legato: A server's address starts with http.*\n", result.stderr)


@pytest.mark.parametrize(
    "url", ["http://u:s3cret@127.0.0.1:9", "http://u:s3cret@[::1", "u:s3cret@h", "http://u:s3/x@h:p"]
)
def test_the_password_of_an_address_is_not_shown(url: str) -> None:
    """Neither where nobody is, nor where it is none."""
    result = run("sessions", "--url", url)
    assert result.returncode in (1, 2)
    assert re.fullmatch(r"legato: .*\n", result.stderr)
    assert "s3" not in result.stderr


# Text and view --------------------------------------------------------------------------------------------------------


def test_safe_keeps_text_and_shows_controls() -> None:
    """Lines, tabs and letters stay; whatever a terminal would obey is made visible."""
    assert safe("a\tb\r\nc é 漢 🎵") == "a\tb\nc é 漢 🎵"
    assert safe("\x1b[31m \x07 \x7f \x9b \u202e") == "␛[31m ␇ ␡ � �"
    assert safe("a\u200bb\u2066c\ufeffd\u2060e") == "a�b�c�d�e"
    assert safe("\u200d \u200c") == "\u200d \u200c"  # which join letters, and emoji
    assert safe("a\rb") == "ab"


def test_typed_can_be_sent() -> None:
    """Bytes on the command line that are no text are replaced."""
    assert typed("a\udcff") == "a\ufffd"


def test_line_is_one_line() -> None:
    """Line ends become blanks, and what is too wide is cut, wide characters counted twice."""
    assert line(" a\n b\tc\u2028") == "a b c"
    assert line("漢字漢字", 6) == "漢字…"
    assert line("abcdef", 6) == "abcdef"


def test_escaped_json_means_the_same() -> None:
    """Escapes stand for what was there."""
    text = json.dumps("\x9b \u202e é", ensure_ascii=False)
    assert not re.search("[\x80-\x9f\u202e]", escaped(text))
    assert json.loads(text) == json.loads(escaped(text))


class Screen:
    """A view whose output can be looked at; ``terminal`` says whether it thinks to have one."""

    def __init__(self, *, terminal: bool = False, thinking: bool = False) -> None:
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, color_system=None, width=60)
        self.view = TerminalView(console, thinking=thinking)

    def show(self, name: str, /, **data: Any) -> None:
        event = decode_event(SSEMessage(data=json.dumps({"type": name, **data}), event=name, id="1"))
        assert event is not None
        self.view.show(event)

    @property
    def text(self) -> str:
        return self.file.getvalue()


def test_view_keeps_blanks_of_pieces() -> None:
    """Pieces are written as they come, blanks at their ends and long ones included."""
    screen = Screen()
    pieces = ["  a ", "word " * 30, " b", "\n", "\n  c "]
    for piece in pieces:
        screen.show("content", content=piece)
    assert "".join(pieces) == screen.text


def test_view_begins_parts_on_new_lines() -> None:
    """Another part or another message begins on a line of its own."""
    screen = Screen()
    screen.show("content", content="one", assistantMessageId="r~a1", part=0)
    screen.show("content", content="two", assistantMessageId="r~a1", part=2)
    screen.show("content", content="three", assistantMessageId="r~a2", part=0)
    screen.show("complete", done=True)
    assert screen.text == "one\ntwo\nthree\n"


def test_view_shows_what_runs_only_while_it_runs() -> None:
    """On a terminal a running tool is a transient line, which its result replaces."""
    screen = Screen(terminal=True)
    screen.show("tool_use_start", id="t", name="Look")
    screen.show("tool_execution_start", toolCallId="t", toolName="Look", progress="Looking")
    assert screen.text.endswith("… Look: Looking")
    screen.show("tool_execution_complete", toolCallId="t", toolName="Look", progress="Seen")
    assert screen.text.endswith("\x1b[2K✓ Look: Seen\n")


def test_view_tool_line_fits() -> None:
    """The arguments get the room that the rest of the line leaves."""
    screen = Screen()
    screen.show("tool_use_parameter_streaming_complete", id="t", name="Look", input=json.dumps({"q": "x" * 500}))
    screen.show("tool_execution_complete", toolCallId="t", toolName="Look", progress="Seen", success=False)
    assert screen.text.startswith('✗ Look {"q": "xxx')
    assert screen.text.endswith("…: Seen\n")
    assert len(screen.text) <= 60


def test_view_history_is_brief() -> None:
    """Only the last messages are shown, each cut to a few lines."""
    screen = Screen()
    messages = [
        BackendMessage(id=str(n), session_id="s", role="user", user_input="\n".join(f"{n}.{m}" for m in range(9)))
        for n in range(8)
    ]
    screen.view.history(messages)
    assert screen.text.startswith("(2 earlier messages)\n> 2.0\n")
    assert screen.text.endswith("\n7.5 …\n")


def test_failure_is_one_line() -> None:
    """Whatever an error's text holds, it is one harmless line."""
    assert Failure("a\nb \x1b[2J").message == "a b ␛[2J"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Needs /dev/full, which Linux has.")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"], ["torture", "--help"]])
def test_an_output_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    """As on a full disk, in place of a traceback; and the status says it."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "legato", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=SAFETY
        )

    assert done.stderr == "legato: the output cannot be written: No space left on device\n"
    assert done.returncode == 1
