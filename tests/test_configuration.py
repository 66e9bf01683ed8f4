"""Settings of ``legato serve``: one table, and four places where they may be said."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from legato.cli.group import group
from legato.cli.serve import serve
from legato.cli.settings import settings, toml, variable

DOCS = Path(__file__).parent.parent / "docs" / "cli.md"
TABLE = settings(serve)
SAMPLES = {
    "target": ("a.py", "b.py"),
    "host": ("127.0.0.2", "127.0.0.3"),
    "docs": (".", ".."),
    "background": (True, False),
}


def samples(key: str) -> tuple[object, object]:
    """Two values that a setting may have."""
    kind = TABLE[key].type
    if key in SAMPLES:
        return SAMPLES[key]
    if isinstance(kind, click.Choice):
        return tuple(map(str, kind.choices[:2]))  # type: ignore[return-value]
    if isinstance(kind, click.types.BoolParamType):
        return True, True
    if isinstance(kind, click.IntRange | click.FloatRange):
        least = int(kind.min or 0)
        return least + 1, least + 2
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return 1, 2
    return (("one",), ("two",)) if getattr(TABLE[key], "multiple", False) else ("one", "two")


def said(value: object) -> str:
    """A value as an option or a variable has it."""
    return (
        " ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if value is True else str(value)
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for key in TABLE:
        monkeypatch.delenv(variable(key), raising=False)
    return tmp_path


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(group, arguments, env=env, prog_name="legato")


def in_force(result: Result) -> dict[str, tuple[object, str]]:
    """What ``legato config`` printed: each value, and where it is from."""
    assert result.exit_code == 0, result.output
    values = tomllib.loads(result.stdout)
    where = {line.partition(" = ")[0]: line.rpartition("  # ")[2] for line in result.stdout.splitlines()}
    return {key: (value, where[key]) for key, value in values.items()}


def options(key: str, value: object) -> list[str]:
    param = TABLE[key]
    if isinstance(param, click.Argument):
        return [str(value)]
    if isinstance(param, click.Option) and param.is_flag:
        return [param.opts[0] if value else param.secondary_opts[0]]
    return [part for each in (value if isinstance(value, tuple) else [value]) for part in (f"--{key}", str(each))]


@pytest.mark.parametrize("key", TABLE)
def test_each_setting_may_be_said_in_each_place(folder: Path, key: str) -> None:
    """An option wins over its variable, that over the file, and that over the default; it is told which it was."""
    first, second = samples(key)
    shown = [list(each) if isinstance(each, tuple) else each for each in (first, second)]
    (folder / "my.toml").write_text(f"{key} = {toml(second)}\n")

    assert in_force(run("config", "--config", "my.toml"))[key] == (shown[1], "my.toml")
    both = in_force(run("config", "--config", "my.toml", **{variable(key): said(first)}))
    assert both[key] == (shown[0], variable(key))
    three = in_force(run("config", "--config", "my.toml", *options(key, second), **{variable(key): said(first)}))
    assert three[key][0] == shown[1]
    assert three[key][1] in (f"--{key}", "command line", *TABLE[key].secondary_opts)


@pytest.mark.parametrize("key", ["metrics", "keep", "keep-pieces"])
def test_a_text_that_is_a_number_may_be_one(folder: Path, key: str) -> None:
    """In a file, as it may be without a mark in a variable and behind an option."""
    (folder / "my.toml").write_text(f"{key} = 86400\nport = 1\n".replace("metrics = 86400", "metrics = 9464"))
    result = run("config", "--config", "my.toml")
    assert in_force(result)[key][0] == ("9464" if key == "metrics" else "86400")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("host", "port", "metrics"),
    [
        ("127.0.0.1", "9", "10"),
        ("127.0.0.1", "0", "0"),
        ("127.0.0.2", "9", "127.0.0.3:9"),
        ("::1", "9", "127.0.0.1:9"),
    ],
)
def test_two_addresses_are_two(folder: Path, host: str, port: str, metrics: str) -> None:
    """Of one port, or both to be found; metrics may stand beside the server."""
    result = run("config", "--host", host, "--port", port, "--metrics", metrics)
    assert "metrics" not in result.stderr


def test_the_documents_have_each_setting() -> None:
    """The table of docs/cli.md has a row for each option, and no other."""
    section = DOCS.read_text("utf-8").partition("\n## Serve\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `--([a-z-]+)", section, re.MULTILINE)

    assert sorted(named) == sorted(key for key in TABLE if key != "target")


def test_what_is_printed_can_be_read_again(folder: Path) -> None:
    """What ``legato config`` prints says the same as a file; what ``--example`` prints does, once it is no comment."""
    (folder / "my.toml").write_text('port = 9\ncors = ["https://a.example", "https://b.example"]\ngrace = 0.5\n')
    printed = run("config", "--config", "my.toml")
    (folder / "again.toml").write_text(printed.stdout)
    values = {key: value for key, (value, _) in in_force(printed).items()}
    assert {key: value for key, (value, _) in in_force(run("config", "--config", "again.toml")).items()} == values

    example = run("config", "--example").stdout
    assert tomllib.loads(example) == {}
    (folder / "DIRECTORY").mkdir()
    whole = re.sub(r"^# (?=[a-z-]+ = )", "", example, flags=re.MULTILINE)
    (folder / "whole.toml").write_text(whole)
    assert tomllib.loads(whole).keys() == TABLE.keys()
    assert in_force(run("config", "--config", "whole.toml")).keys() == TABLE.keys()


WRONG = [
    ("port = '8088'", 'port: expected a whole number from 0 to 65535, got "8088".'),
    ("port = 99999", "port: expected a whole number from 0 to 65535, got 99999."),
    ("port = true", "port: expected a whole number from 0 to 65535, got true."),
    ("port = 8088.5", "port: expected a whole number from 0 to 65535, got 8088.5."),
    ("grace = -1", "grace: expected a number, 0 or more, got -1."),
    ("grace = nan", "grace: expected a number, 0 or more, got nan."),
    ("grace = inf", "grace: expected a number, 0 or more, got inf."),
    ("grace = 2026-11-29", "grace: expected a number, 0 or more, got 2026-11-29."),
    ("host = 127", "host: expected text, got 127."),
    ("host = []", "host: expected text, got a list."),
    ("metrics = true", "metrics: expected a whole number or text, got true."),
    ("keep = 0.5", "keep: expected a whole number or text, got 0.5."),
    ("store = 5", "store: expected text, got 5."),
    ("cors = [1]", "cors: expected text, or a list of such, got 1."),
    ("cors = ['x', ['y']]", "cors: expected text, or a list of such, got a list."),
    ("docs = 'nowhere'", 'docs: expected the path of a folder that exists, got "nowhere".'),
    ("background = 'yes'", 'background: expected true or false, got "yes".'),
    ("log-level = 'loud'", 'log-level: expected one of debug, info, warning, error, got "loud".'),
    ("allow-hosts = ['x']", "allow-hosts: there is no such setting; did you mean allow-host?"),
    ("[serve]\nport = 1", "serve: there is no such setting"),
    ("[port]\nx = 1", "port: expected a whole number from 0 to 65535, got a table."),
    ("debug = true", "debug: there is no such setting"),
    ("config = 'x'", "config: there is no such setting"),
    ('host = "a\\u0000b"', 'host: expected text, got "a\\u0000b".'),
    ("port 8088", "expected TOML such as port = 8088, got something else: "),
    ("allow-host = ['a']\nallow_host = ['b']", "allow_host: it is said twice, also as allow-host."),
    ("base_url = 'http://a'\nbase-url = 'http://b'", "base-url: it is said twice"),
    ("port = 1\nport = 2", "expected TOML such as port = 8088, got something else: "),
    (b"host = '\xff'", "expected TOML such as port = 8088, got something else: "),
]


@pytest.mark.parametrize(("content", "told"), WRONG, ids=[str(row[0]) for row in WRONG])
def test_what_is_wrong_in_a_file_is_told(folder: Path, content: str | bytes, told: str) -> None:
    """Each fault names the file, the key, what was expected and what came; nothing is served."""
    (folder / "my.toml").write_bytes(content if isinstance(content, bytes) else content.encode())

    for command in ("config", "serve"):
        result = run(command, "--config", "my.toml")
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith(f"legato: my.toml: {told}")
        assert result.stderr.count("\n") == 1


def test_all_faults_are_told_at_once(folder: Path) -> None:
    """Those of the environment and those of the file, a line for each."""
    (folder / "my.toml").write_text("prot = 1\nport = 'x'\ngrace = 'y'\nhost = 'fine'\n")

    result = run("serve", "--config", "my.toml", LEGATO_HEARTBEAT="never", LEGATO_PACE="-1", LEGATO_WAIT="nan")

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        'legato: LEGATO_PACE: expected a number, 0 or more, got "-1".',
        'legato: LEGATO_WAIT: expected a number, 0 or more, got "nan".',
        'legato: LEGATO_HEARTBEAT: expected a number from 0.1 to 3600, got "never".',
        "legato: my.toml: prot: there is no such setting; did you mean port?",
        'legato: my.toml: port: expected a whole number from 0 to 65535, got "x".',
        'legato: my.toml: grace: expected a number, 0 or more, got "y".',
    ]


def test_no_file_is_read_that_nobody_named(folder: Path) -> None:
    """A folder that somebody else has filled says nothing about what is served there; that it would is told."""
    file = folder / "legato.toml"
    file.write_text("port = 1\n")

    result = run("config")
    assert in_force(result)["port"] == (8088, "default")
    assert result.stderr == "legato: legato.toml is not read; --config legato.toml reads it.\n"
    assert in_force(run("config", LEGATO_CONFIG="legato.toml"))["port"] == (1, "legato.toml")
    assert run("serve", "--config", "none.toml").stderr.startswith("legato: none.toml: it cannot be read: No such file")

    file.chmod(0o666)
    assert "anybody on this machine can change it" in run("serve", "--config", "legato.toml").stderr


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ida:sesame@db/legato", "postgresql://ida:***@db/legato"),
        ("rediss://:sesame@cache:6379/0", "rediss://:***@cache:6379/0"),
        ("postgresql://db/legato?user=ida&password=sesame", "postgresql://db/legato?user=ida&password=***"),
        ("postgresql://db/legato?sslpassword=sesame&x=1", "postgresql://db/legato?sslpassword=***&x=1"),
        ("rediss://ida:ses@sesame/@cache/0", "rediss://ida:***@cache/0"),
        ("redis://cache:6379/?password=a@sesame", "redis://cache:6379/?password=***"),
        ("redis://:sesame", "redis://:***"),
        ("redis://ida:open sesame@cache/0", "redis://ida:***@cache/0"),
        ("redis://ida:open sesame/0", "redis://ida:***"),
        ("redis://cache/?password=open sesame", "redis://cache/?password=***"),
        ("ida:sesame@db/legato", "ida:***@db/legato"),
        ("postgresql:ida:sesame@db", "postgresql:ida:***@db"),
        ("sqlite://ida:sesame@db", "sqlite://ida:***@db"),
        ("https://sesame@db", "https://***@db"),
        ("HTTPS://sesame@db", "HTTPS://***@db"),
        ("postgresql//ida:sesame@db/x", "postgresql//ida:***@db/x"),
        ("postgresql://ida:sesame/db", "postgresql://ida:***"),
        ("postgresql://ida@db:sesame/x", "postgresql://ida@db:***"),
        ("postgresql://ida@db/legato", "postgresql://ida@db/legato"),
        ("sqlite:////srv/a.db?durability=full", "sqlite:////srv/a.db?durability=full"),
        ("redis://cache:6379", "redis://cache:6379"),
        (
            "redis+cluster://[::1]:6379,cache:1/?durability=always",
            "redis+cluster://[::1]:6379,cache:1/?durability=always",
        ),
    ],
)
def test_passwords_are_not_shown(folder: Path, url: str, shown: str) -> None:
    """Not where what holds is printed, nor where something is wrong; a file with one is for its user alone."""
    (folder / "my.toml").write_text(f'store = "{url}"\n')
    (folder / "my.toml").chmod(0o644)
    result = run("config", "--config", "my.toml")

    assert in_force(result)["store"] == (shown, "my.toml")
    assert "sesame" not in result.output
    assert ("anybody on this machine can read it" in result.stderr) == ("sesame" in url)
    assert "sesame" not in run("config", LEGATO_PORT=url).output
    assert "sesame" not in run("config", "--model", "chat:x", "--base-url", url).output
    assert "sesame" not in run("config", LEGATO_KEYS="lg_sesame", LEGATO_OPEN=url).output


@pytest.mark.parametrize(
    "text",
    [
        "Our API is at http://localhost:8080/x.\nWrite to help@example.com",
        "see http://intranet and write to me@x.org",
        "Ask (http://localhost:8080), [here](http://[::1]:8080) or http://host:8080; else ida@x.org.",
        '{"api": "http://localhost:8080/x","mail":"ida@x.org"}',
        "Siehe http://localhost:8080\u3002help@example.com",
        "Times are 10:30, and R&D: ida@x.org; answer with key=value.",
    ],
)
def test_instructions_are_shown_as_they_are(folder: Path, text: str) -> None:
    """An address in one place of a text, and mail in another, are no password."""
    (folder / "my.toml").write_text(f"model = ['ollama:x']\ninstructions = {json.dumps(text)}\n")
    (folder / "my.toml").chmod(0o644)
    result = run("config", "--config", "my.toml")
    assert in_force(result)["instructions"][0] == text
    assert "anybody on this machine can read it" not in result.stderr


def test_passwords_in_instructions_are_not_shown(folder: Path) -> None:
    """Of each address by itself; what is around it stays."""
    text = "Use redis://ida:sesame@db/0, https://sesame@x.org or GET /x?token=sesame; http://ida:sesame\nMail b@x.org."
    told = "Use redis://ida:***@db/0, https://***@x.org or GET /x?token=***; http://ida:***\nMail b@x.org."
    assert in_force(run("config", "--model", "ollama:x", "--instructions", text))["instructions"][0] == told


def test_what_an_environment_has_of_others(folder: Path) -> None:
    """Kubernetes tells where a service named legato is, in a variable of ours; a slip of the pen is told."""
    assert in_force(run("config", LEGATO_PORT="tcp://10.0.0.7:8088", LEGATO_SERVICE_HOST="10.0.0.7"))["port"] == (
        8088,
        "default",
    )
    result = run(
        "config", LEGATO_ALLOW_HOTS="chat.example.com", LEGATO_URL="http://x", LEGATO_KEY="k", LEGATO_SEEDS="3"
    )
    assert result.stderr == "legato: LEGATO_ALLOW_HOTS is no setting; did you mean LEGATO_ALLOW_HOST?\n"


def test_what_is_refused_later_is_named_as_it_was_said(folder: Path) -> None:
    """Also what fits by itself, and not beside what else was said."""
    (folder / "my.toml").write_text("base-url = 'http://x/v1'\n")

    assert run("serve", "--config", "my.toml").stderr.startswith("legato: base-url in my.toml is for a model")
    assert run("serve", LEGATO_BASE_URL="http://x/v1").stderr.startswith("legato: LEGATO_BASE_URL is for a model")
    assert run("serve", "--base-url", "http://x/v1").stderr.startswith("legato: --base-url is for a model")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--store", "mysql://x"], ["A store is 'memory:'"]),
        (["--store", "sqlite:///x.db?nope=1"], ["A SQLite store has the option"]),
        (["--allow-host", "http://x", "--allow-host", "a b"], ["A host is a name alone"] * 2),
        (["--blobs", "ftp://x"], ["Blobs are in a folder"]),
        (["--metrics", "there"], ["--metrics wants a port"]),
        (["--metrics", "8088"], ["--metrics 8088 is where the server listens, too (port 8088)"]),
        (["--metrics", "0.0.0.0:9", "--port", "9"], ["--metrics 0.0.0.0:9 is where the server listens"]),
        (["--metrics", "9", "--port", "9", "--host", "localhost"], ["--metrics 9 is where the server listens"]),
        (["--host", "0.0.0.0"], ["--host 0.0.0.0 lets other machines in; say by which names"]),
        (["--host", "0.0.0.0", "--allow-host", "x"], ["--host 0.0.0.0 lets other machines in, and nobody is asked"]),
        (["--model", "ollama:x", "--base-url", "there"], ["A model's address starts with"]),
        (["--model", "ollama:x", "--base-url", "http://h:65536"], ["A model's address names a host"]),
        (["--model", "ollama:x", "--base-url", "http://h:x", "--store", "x:"], ["A store is", "A model's address"]),
        (["--model", "ollama:x", "--base-url", "http://u:pw@[::1"], ["A model's address names a host"]),
        (["--store", "redis://u:pw@[::1"], ["A Redis store has hosts"]),
        (["--blobs", "s3://u:pw@[::1"], ["Blobs are in a folder"]),
        (["--model", "ollama:x", "--docs", "."], ["--docs is for the guide"]),
        (["--store", ""], ["--store is empty"]),
        (["--model", "ollama:x", "--base-url", ""], ["--base-url is empty"]),
        (["--store", "x:", "--limit", "connections=0", "--keep", "soon"], ["A store is", "--keep", "--limit"]),
    ],
    ids=lambda each: " ".join(each) if each[0].startswith("--") else "",
)
def test_what_would_not_start_is_told_before(folder: Path, options: list[str], told: list[str]) -> None:
    """By `legato config`, in the words of `legato serve`, which ends with them."""
    said = [
        line.partition("`legato serve` would not start: ")[2] for line in run("config", *options).stderr.splitlines()
    ]
    assert [line[: len(begin)] for line, begin in zip(said, told, strict=True)] == told
    served = run("serve", *options)
    assert served.exit_code == 2
    assert served.stderr.splitlines() == [f"legato: {line}" for line in said]


# Of an application in Python ------------------------------------------------------------------------------------------

WRONG_ARGUMENTS = {
    "heartbeat=0": "heartbeat is a number from 0.001 on, got 0.",
    "heartbeat='soon'": "heartbeat is a number from 0.001 on, got 'soon'.",
    "grace=-1": "grace is a number from 0 on, got -1.",
    "lock_wait=None": "lock_wait is a number from 0 on, got None.",
    "lease_ttl=float('nan')": "lease_ttl is a number from 1 to 3600, got nan.",
    "max_body=1.5": "max_body is a whole number from 0 on, got 1.5.",
    "max_streams=True": "max_streams is a whole number from 0 on, got True.",
    "limits=Limits(run_seconds=-5)": "limits: run_seconds is a number from 0 on, got -5.",
    "limits=Limits(owner_sends='many')": "limits: owner_sends is a number from 0 on, got 'many'.",
    "limits={}": "limits is a Limits, got a dict.",
    "traffic=Traffic(head_seconds=[])": "traffic: head_seconds is a number from 0 on, got a list.",
    "client='mine'": "client is 'legato', 'python-X.Y.Z' or 'typescript-X.Y.Z', got 'mine'.",
    "client=3": "client is a text such as 'python-0.8.1', got 3.",
    "cors='a.example'": "cors has origins such as https://app.example.com, as browsers send them, got 'a.example'.",
    "cors=5": "cors is a text or a list of such, got 5.",
    "hosts=['a b']": "A host is a name alone, such as chat.example.com, or '*' for all; got 'a b'.",
    "hosts=[b'x']": "hosts is a text or a list of such, got a list.",
    "retention=90": "retention is a Retention, got 90.",
    "retention=Retention(sessions=1)": "sessions are kept for 60 seconds at least, or 0: ever; got 1.",
    "may='all'": "may is a function, got 'all'.",
    "shared=[]": "shared is a function, got a list.",
}


def app_file(folder: Path, *arguments: str) -> None:
    text = "from legato import Legato, Limits\nfrom legato.retention import Retention\n"
    text += "from legato.server.traffic import Traffic\n\nasync def agent(turn):\n    yield 'x'\n\n"
    (folder / "shop.py").write_text(f"{text}app = Legato({', '.join(['agents=[agent]', *arguments])})\n")


def test_all_that_is_wrong_with_an_application_is_told_at_once(folder: Path) -> None:
    """With its line, and with what is wrong with options; of each argument one mistake at a time fits in one start."""
    rows = list(WRONG_ARGUMENTS.items())
    while rows:
        some = {each.partition("=")[0]: (each, told) for each, told in reversed(rows)}
        rows = [row for row in rows if row not in some.values()]
        app_file(folder, *(each for each, _ in some.values()))
        result = run("serve", "shop.py", "--limit", "owner_send=60", "--keep", "never")
        assert result.exit_code == 2
        first, second, *others = result.stderr.splitlines()
        assert ("--keep" in first, "owner_sends" in second) == (True, True)
        assert all(re.match(r"legato: /.*shop\.py:8: ", line) for line in others), others
        assert sorted(line.partition(".py:8: ")[2] for line in others) == sorted(told for _, told in some.values())
        assert "shop.py:8: " in run("config", "shop.py").stderr


def test_of_an_application_it_is_shown_what_it_says_itself(folder: Path) -> None:
    """As comments, so that what is printed can be read again; what wins over it does."""
    app_file(folder, "heartbeat=5", "hosts='chat.example.com'", "grace=3", "limits=Limits(owner_sends=7)", "max_body=9")
    printed = run("config", "shop.py", "--store", "memory:")
    own = {
        key.removeprefix("# "): value
        for key, _, value in (line.partition(" = ") for line in printed.stdout.splitlines())
        if value.endswith("  # Legato(...) of shop.py")
    }
    said = {key: tomllib.loads(f"x = {value}")["x"] for key, value in own.items()}
    assert (said["heartbeat"], said["grace"], said["allow-host"]) == (5, 3, ["chat.example.com"])
    assert (said["limit"], said["keys"], said["keep"]) == (["owner_sends=7", "max_body=9"], False, "0")
    assert in_force(printed)["store"] == ("memory:", "--store")
    (folder / "again.toml").write_text(printed.stdout)
    again = run("config", "--config", "again.toml")
    assert (again.exit_code, again.stderr) == (0, "")
    twice = run("config", "shop.py", "--heartbeat", "3")
    assert "it sets --heartbeat itself" in twice.stderr
