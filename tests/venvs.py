"""Cached virtual environments for software that the tests run against but this project must not depend on.

Each stands in ``.cache/venvs/NAME`` with exactly the requirements asked for. A marker file is written last, so what an
interrupted run left behind is made anew, and a lock file lets test processes that run side by side wait for each
other. ``python tests/venvs.py`` makes all of them beforehand.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import fcntl
except ImportError:  # Windows: two test processes at once may then build the same environment
    fcntl = None  # type: ignore[assignment]

CACHE = Path(__file__).parents[1] / ".cache" / "venvs"
MIX_VERSIONS = ("0.8.1", "0.7.3", "0.6.4", "0.5.7")
# All that a model server and its model need; exactly these, so that the weights are always the same.
LLAMA = ("xllamacpp==2026.10.11549", "gguf==0.19.0", "numpy==2.4.6")
# ASGI servers that are not ours.
HOSTS = ("gunicorn==27.0.1", "uvicorn-worker==0.4.0", "hypercorn==0.18.0")
# Seconds; a cold download of one SDK takes about ten.
PATIENCE = 300
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Besides what the extra itself asks for.
FRAMEWORKS = {
    "pydantic-ai": ["pydantic-ai-slim[openai,anthropic]"],
    "openai-agents": [],
    "langgraph": ["langchain-openai>=1.0", "langchain-anthropic>=1.0", "langgraph-checkpoint-sqlite>=3"],
}
# Who asks a server, side by side in one environment: it takes longer to load them than to use them.
AGENT_CLIENTS = (
    "openai-agents==0.24.0",
    "langchain==1.5.2",
    "langchain-openai==1.7.4",
    "pydantic-ai-slim[openai]==2.68.0",
    "litellm==1.110.2",
    "openai==3.57.0",
)
# Those of them that want another openai.
CHAT_CLIENTS = ("instructor==1.17.0", "llm==0.36", "openai==3.3.0")


def mix_python(version: str) -> Path:
    """The Python of an environment that holds ``mix-python-sdk`` of this version; skips the test without one."""
    return python_with(f"mix-{version}", f"mix-python-sdk=={version}")


def llama_python() -> Path:
    """The Python of an environment that holds llama.cpp's server; skips the test without one."""
    return python_with("llama", *LLAMA)


def framework_python(extra: str) -> Path:
    """The Python of an environment with this checkout, as ``legato[server]`` and this extra."""
    return python_with(extra, *_framework_requirements(extra))


def host_python() -> Path:
    """The Python of an environment with other ASGI servers, and with what this project needs to be served by them."""
    return python_with("hosts", *_host_requirements())


def _host_requirements() -> list[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [*HOSTS, *project["dependencies"], *project["optional-dependencies"]["server"]]


def _framework_requirements(extra: str) -> list[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    # What the project asks for is named, too: the environment is made anew when that changes.
    asked = [*project["dependencies"], *extras["server"], *extras[extra]]
    return ["-e", f"{PROJECT.parent}[server,{extra}]", *asked, *FRAMEWORKS[extra]]


def python_with(name: str, *requirements: str) -> Path:
    """The Python of the environment ``name`` with ``requirements``; skips the test when it cannot be made."""
    python, trouble = _environment(name, requirements)
    if trouble:
        pytest.skip(
            f"{' '.join(requirements)} is not installed and could not be: {trouble}. "
            "Run `python tests/venvs.py` once where a Python package index can be reached."
        )
    return python


@functools.cache  # a failure too: one slow attempt per test run, not one per test
def _environment(name: str, requirements: tuple[str, ...]) -> tuple[Path, str]:
    folder = CACHE / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    marker = folder / "requirements.installed"
    wanted = "\n".join((sys.version, *requirements))
    with one_process(name):
        if python.exists() and marker.exists() and marker.read_text() == wanted:
            return python, ""
        trouble = ""
        for commands in _ways(folder, python, requirements):
            shutil.rmtree(folder, ignore_errors=True)
            if not (trouble := _run(commands)):
                marker.write_text(wanted)
                break
    return python, trouble


def _run(commands: list[list[str]]) -> str:
    """Run them; why one of them failed, if one did."""
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.CalledProcessError as error:
        # One line, though uv wraps its sentences.
        return " ".join(error.stderr.split())[:400].rstrip(".") or "no reason given"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _ways(folder: Path, python: Path, requirements: tuple[str, ...]) -> list[list[list[str]]]:
    """uv is much faster; pip knows the index that this machine is set up for, if uv does not."""
    uv = _uv()
    pip = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
    ]
    if not uv:
        return [pip]
    quick = [
        [*uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--quiet", "--python", str(python), *requirements],
    ]
    return [quick, pip]


def _uv() -> list[str]:
    for command in ([sys.executable, "-m", "uv"], ["uv"]):
        with contextlib.suppress(OSError):
            if subprocess.run([*command, "--version"], check=False, capture_output=True).returncode == 0:
                return command
    return []


@contextlib.contextmanager
def one_process(name: str) -> Iterator[None]:
    """Let one process of the tests at a time do what ``name`` stands for."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    wanted = {f"mix-{each}": (f"mix-python-sdk=={each}",) for each in MIX_VERSIONS} | {"llama": LLAMA}
    wanted |= {"hosts": tuple(_host_requirements())}
    wanted |= {each: tuple(_framework_requirements(each)) for each in FRAMEWORKS} | {"agent-clients": AGENT_CLIENTS}
    wanted["chat-clients"] = CHAT_CLIENTS
    for name, requirements in wanted.items():
        where, why = _environment(name, requirements)
        print(f"{name}: {why or where}")
