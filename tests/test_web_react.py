"""The React example in a real browser: the hook in StrictMode, begun with the example's own command."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from browser import browsing, node
from legato import AgentError, Legato
from live_server import cutting, serving

ROOT = Path(__file__).parent.parent

expect.set_options(timeout=60_000)


class Talker:
    """Counts as far as it is told to; fails at the first attempt to answer "fail"."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    async def __call__(self, turn: Any) -> AsyncIterator[str]:
        text = turn.message.text
        self.runs.append(text)
        yield "So: "
        if text == "fail" and self.runs.count("fail") == 1:
            raise AgentError("Not today.", code="moody")
        for number in range(1, int(text) + 1 if text.isdigit() else 1):
            yield f"{number} "
            await asyncio.sleep(0.01)
        yield "done."


def counted(count: int) -> str:
    return " ".join(["So:", *(str(number) for number in range(1, count + 1)), "done."])


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the example, a copy of it, started as its head says."""
    node()
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "examples/react", folder / "examples/react", ignore=shutil.ignore_patterns("node_modules"))
    (folder / "src/legato").mkdir(parents=True)
    (folder / "src/legato/web").symlink_to(ROOT / "src/legato/web")
    # Its output is a pipe of ours, and so is its input: esbuild ends with it.
    process = subprocess.Popen(
        ["npm", "start", "--prefix", "examples/react", "--", "--serve=127.0.0.1:0"],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"Local:\s+(http://[\d.:]+)", line):
                yield found[1]
                break
        else:
            pytest.skip(f"The example needs react and esbuild from npm, which gave: {''.join(said)[-400:]}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def talker() -> Talker:
    return Talker()


@pytest.fixture
def url(talker: Talker) -> Iterator[str]:
    app = Legato("memory:", agents=[talker])
    app.drain_on_signal = False
    with serving(app) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    errors: list[str] = []
    with browser.new_context() as context:
        context.on("weberror", lambda error: errors.append(str(error.error)))
        yield context.new_page()
    assert errors == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.get_by_role("button", name="Ask").click()


def test_an_answer_grows_and_ends(example: str, url: str, page: Page, talker: Talker, tmp_path: Path) -> None:
    """In StrictMode, which mounts twice: one run, one text, which only ever grows."""
    page.goto(f"{example}/?server={url}")
    page.evaluate("""() => {
        window.texts = [];
        const look = () => {
            window.texts.push(document.querySelector(".answer")?.textContent ?? "");
            window.stoppable ||= [...document.querySelectorAll("button")].some((each) => each.textContent === "Stop");
        };
        new MutationObserver(look).observe(document.body, { childList: true, characterData: true, subtree: true });
    }""")
    ask(page, "120")
    expect(page.locator(".answer")).to_have_text(counted(120))

    texts = [text for text in page.evaluate("window.texts") if text not in ("", "…")]
    assert len(texts) > 2
    assert page.evaluate("window.stoppable")
    assert all(after.startswith(before) for before, after in pairwise(texts))
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert talker.runs == ["120"]
    page.screenshot(path=Path(os.environ.get("LEGATO_SCREENSHOTS") or tmp_path) / "react.png")


def test_reload_and_second_tab_in_the_middle(example: str, url: str, page: Page, talker: Talker) -> None:
    """Both come to the same text, and nothing is generated twice."""
    page.goto(f"{example}/?server={url}")
    ask(page, "200")
    page.wait_for_function("() => document.querySelector('.answer')?.textContent.includes(' 20 ')")
    page.reload()
    second = page.context.new_page()
    second.goto(page.url)
    for each in (page, second):
        expect(each.locator(".answer")).to_have_text(counted(200))
    assert talker.runs == ["200"]


def test_cut_again_and_again(example: str, url: str, page: Page, talker: Talker) -> None:
    """Over connections that are cut after some hundred bytes, the text is whole, and it says that it reconnects."""
    left = [700, 300, 1500]

    def allowance(request: bytes) -> int | None:
        streams = b"query/stream" in request and request.startswith(b"POST")
        return left.pop() if streams and left else None

    with cutting(url, allowance) as proxy:
        page.goto(f"{example}/?server={proxy}")
        page.evaluate("""() => {
            const said = () => document.querySelector("[role=status]")?.textContent;
            const look = () => (window.away ||= said() === "Reconnecting…");
            new MutationObserver(look).observe(document.body, { childList: true, characterData: true, subtree: true });
        }""")
        ask(page, "150")
        page.wait_for_function("window.away")
        expect(page.locator(".answer")).to_have_text(counted(150), timeout=40_000)
        expect(page.get_by_role("status")).to_have_count(0)
    assert left == []
    assert talker.runs == ["150"]


def test_failed_and_tried_again(example: str, url: str, page: Page, talker: Talker) -> None:
    """The text so far stays with the error; the button asks for one new answer."""
    page.goto(f"{example}/?server={url}")
    ask(page, "fail")
    expect(page.get_by_role("alert")).to_have_text("Not today.")
    expect(page.locator(".answer")).to_have_text("So:")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_text("So: done.")
    expect(page.get_by_role("alert")).to_have_count(0)
    assert talker.runs == ["fail", "fail"]


def test_stopped(example: str, url: str, page: Page) -> None:
    """The stop button ends the run, and what was said stays."""
    page.goto(f"{example}/?server={url}")
    ask(page, "5000")
    page.wait_for_function("() => document.querySelector('.answer')?.textContent.includes(' 20 ')")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.locator(".answer")).to_contain_text("So: 1 2 3")
