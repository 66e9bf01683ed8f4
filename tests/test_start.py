"""What is loaded when: modules are counted, since they are what a start costs in time and in memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.client import HTTPConnection
from types import ModuleType
from urllib.parse import urlsplit

import pytest

import legato.client
import legato.provider
from legato import Legato
from legato.errors import InvalidInput
from legato.server import pages
from legato.testing import Driver

HTTP = {"httpx2", "httpcore2", "stamina", "tenacity", "ssl", "email.utils", "importlib.metadata"}
"""What a client needs for its first request."""
RENDERING = {"markdown_it", "pygments", "nh3", "legato.server.markdown"}
"""What no server needs, since it is done in processes of its own."""
PAGES = {"starlette.staticfiles", "starlette.routing", "anyio._backends._asyncio"}
"""What a server needs for its pages, besides modules of ours."""
OUR_PAGES = {"legato.server.pages", "legato.server.openapi"}

# Tells what is loaded for each line on its standard input.
TELLING = """
import sys, threading
def tell():
    for _ in sys.stdin:
        print(*sys.modules, flush=True)
threading.Thread(target=tell, daemon=True).start()
from legato.cli import main
main()
"""


def loaded(code: str) -> set[str]:
    """The modules of a new process that has run ``code``."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())


def test_the_name_of_a_client_loads_no_http() -> None:
    """Whoever names ``legato.Client`` does not load what requests are made with, nor asyncio."""
    assert loaded("import legato; legato.Client") & {*HTTP, "asyncio", "legato.client.aio"} == set()
    assert loaded("import legato; legato.AsyncClient") & {*HTTP - {"ssl"}, "legato.client.sync"} == set()


def test_a_client_loads_http() -> None:
    """The names that are looked for above are those that a client does load."""
    assert loaded("import legato; legato.Client()").issuperset({"httpx2", "ssl", "email.utils", "importlib.metadata"})


def test_help_loads_no_looks() -> None:
    """The help of the whole command is made without what its commands need."""
    run = "import sys; sys.argv = ['legato', '--help']\nfrom legato.cli import main\n"
    assert loaded(f"{run}try: main()\nexcept SystemExit: pass") & {*HTTP, *PAGES, "rich", "asyncio", "uvicorn"} == set()


def test_a_server_loads_its_pages_when_one_is_asked_for() -> None:
    """The first answer of ``legato serve`` needs no renderer, no document, no client and no other command."""
    command = [sys.executable, "-u", "-c", TELLING, "serve", "--port", "0", "--store", "memory:"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin
            assert process.stdout
            url = next(line for line in process.stdout if "http://" in line).split()[-1]
            while not next(process.stdout).startswith("  stop"):
                pass

            def after(path: str) -> set[str]:
                connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
                connection.request("GET", path)
                assert connection.getresponse().status == 200
                connection.close()
                process.stdin.write("\n")
                process.stdin.flush()
                return set(process.stdout.readline().split())

            first = after("/health")
            assert first & {*PAGES, *OUR_PAGES, *HTTP - {"ssl", "email.utils"}, "rich", "legato.client"} == set()
            assert first & {"html.entities", "encodings.idna"} == set()
            assert first & {"legato.cli.chat", "legato.cli.sessions", "legato.agents.upstream"} == set()
            pages = after("/")
            assert pages.issuperset({*PAGES, *OUR_PAGES})
            assert pages.isdisjoint(RENDERING)
        finally:
            process.kill()


def app() -> Legato:
    made = Legato("memory:")

    @made.agent
    def agent(turn: object) -> str:
        return "x"

    return made


async def test_pages_are_loaded_once_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks first and who asks meanwhile get the same pages, also if the first one leaves; the loop goes on."""
    threads, begun, go = [], threading.Event(), threading.Event()
    make = pages.pages

    def slow(*arguments: object) -> object:
        threads.append(threading.current_thread())
        begun.set()
        assert go.wait(60)
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pages, "pages", slow)
    async with Driver(app()) as driver:
        first = asyncio.ensure_future(driver.request("GET", "/"))
        second = asyncio.ensure_future(driver.request("GET", "/docs"))
        await asyncio.to_thread(begun.wait)
        assert (await driver.request("GET", "/health")).status == 200
        first.cancel()
        await asyncio.wait([first])
        go.set()

        assert (await second).status == 200
        assert (await driver.request("GET", "/")).status == 200
        assert len(threads) == 1
        assert threads[0] is not threading.current_thread()


async def test_what_pages_lack_is_missed_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not installed is no surprise for whoever opens a page later; without pages it is not needed."""
    monkeypatch.setitem(sys.modules, "nh3", None)
    with pytest.raises(InvalidInput, match=r"nh3: pip install 'legato\[server\]'"):
        await app().start()

    bare = Legato("memory:", agents=app().agents.values(), page=False)
    await bare.start()
    await bare.stop()


async def test_pages_that_cannot_be_loaded_fail_until_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is an error for whoever asks, with its own name; the API goes on."""

    def broken(*arguments: object) -> object:
        raise ModuleNotFoundError("No module named 'nh3'", name="nh3")

    async with Driver(app()) as driver:
        with monkeypatch.context() as patch:
            patch.setattr(pages, "pages", broken)
            for path in ("/", "/docs"):
                with pytest.raises(ModuleNotFoundError, match="nh3"):
                    await driver.request("GET", path)
        assert (await driver.request("GET", "/health")).status == 200
        assert (await driver.request("GET", "/docs")).status == 200


@pytest.mark.parametrize("package", [legato.client, legato.provider], ids=lambda package: package.__name__)
def test_late_names(package: ModuleType) -> None:
    """Every public name of a package that loads its modules late is there and is listed."""
    names: Sequence[str] = package.__all__

    assert [name for name in names if not hasattr(package, name)] == []
    assert set(names) <= set(dir(package))
    with pytest.raises(AttributeError, match="Cliend"):
        package.Cliend  # noqa: B018
