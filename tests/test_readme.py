"""The README's first screen is true: its commands are run in a fresh copy, its snippets against a real server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from legato import Client
from processes import running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippet(language: str, containing: str) -> str:
    """The README's code block that contains a string."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if containing in block)


@contextmanager
def started(*command: str, cwd: Path) -> Iterator[str]:
    """The address that a command prints, while it is running with all its children."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"ready: (http://\S+)", line):
                yield found[1]
                break
        else:
            raise AssertionError("".join(said))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone would hold, in an empty folder."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_make_serve_in_a_fresh_copy(copy: Path) -> None:
    """``make serve`` installs what it needs and serves the pages and the guide, which answers as the README has it."""
    assert "make serve\n" in snippet("sh", "make serve")
    assert all(said in README for said in ("<http://127.0.0.1:8088>", "<http://127.0.0.1:8088/inspect>", "`/long 400`"))
    legato = [str(copy / ".venv" / "bin" / "legato"), "send"]
    with started("make", "serve", "ARGS=--port 0 --pace 0", cwd=copy) as url:
        done = subprocess.run([*legato, "--url", url, "What is a cursor?"], capture_output=True, text=True, timeout=60)
        long = subprocess.run([*legato, "--url", url, "/long 400"], capture_output=True, text=True, timeout=60)
        pages = [httpx2.get(f"{url}{path}", trust_env=False) for path in ("/", "/inspect")]

    assert (done.returncode, long.returncode) == (0, 0), done.stderr + long.stderr
    assert "glossary.md" in done.stdout
    assert long.stdout.split()[-1].endswith("400")
    assert ["<html" in page.text for page in pages] == [True, True]


def test_the_model_of_the_readme(tmp_path: Path) -> None:
    """The README's command puts a model behind the server; what it does then is in test_serve_model.py."""
    command = snippet("sh", "serve --model").removeprefix(".venv/bin/").split()
    with running(*command, "--port", "0", "--store", "memory:", cwd=tmp_path) as server:
        assert httpx2.get(f"{server.url}/v1/models", trust_env=False).json()["data"][0]["id"] == "llama3.2"


def test_the_agent_of_the_readme(tmp_path: Path) -> None:
    """The README's agent, saved under the README's name, is served and answers."""
    (tmp_path / "my_agent.py").write_text(snippet("python", "async def agent(turn)"), encoding="utf-8")
    assert "serve my_agent.py" in snippet("sh", "my_agent.py")
    with (
        running("legato", "serve", "my_agent.py", "--port", "0", "--store", "memory:", cwd=tmp_path) as server,
        Client(server.url) as client,
    ):
        answer = client.ask("two words")

        assert answer.read() == "You said: two words "


def test_the_client_of_the_readme(tmp_path: Path) -> None:
    """The README's client prints the answer as text."""
    code = snippet("python", "client.ask(")
    with running("legato", "serve", "--port", "0", "--store", "memory:", "--pace", "0", cwd=tmp_path) as server:
        code = code.replace("Client()", f"Client({server.url!r})")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert "cursor" in done.stdout


def test_the_application_of_the_readme(tmp_path: Path) -> None:
    """The README's FastAPI application runs under plain uvicorn, with Legato under its prefix."""
    (tmp_path / "main.py").write_text(snippet("python", "FastAPI("), encoding="utf-8")
    with (
        running("uvicorn", "main:api", "--port", "0", cwd=tmp_path) as server,
        Client(f"{server.url}/chat") as client,
    ):
        assert client.ask("you").read() == "Hello, you!"


def test_the_links_of_the_documents() -> None:
    """Every relative link of the README and the documents leads to a file."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = [
        (str(page.relative_to(ROOT)), target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    broken += [
        ("README.md", target)
        for target in re.findall(r'(?:src|href)="([^"]+)"', re.sub(r"```.*?```", "", README, flags=re.DOTALL))
        if not (ROOT / target).exists()
    ]

    assert broken == []


def test_the_wheel_holds_what_the_server_needs(copy: Path, tmp_path: Path) -> None:
    """The built package has the pages, the guide's documents, the marker for type checkers, and no pictures."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("legato-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = copy / "src" / "legato"
    web = {path.relative_to(source.parent).as_posix() for path in (source / "web").iterdir() if path.is_file()}
    documents = {f"legato/{path.relative_to(copy).as_posix()}" for path in (copy / "docs").rglob("*.md")}

    assert {"legato/py.typed", "legato/web/index.html"} | web | documents <= names
    assert [name for name in names if name.endswith(".png")] == []
