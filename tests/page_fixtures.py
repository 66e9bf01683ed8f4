"""Fixtures of the tests of pages. A module says ``pytest_plugins = ["page_fixtures"]`` to have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from browser import Server, browsing, serving
from pages import watching

SCREENSHOTS = Path(os.environ.get("LEGATO_SCREENSHOTS") or Path(__file__).parents[1] / ".cache" / "screenshots")

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # One module long: while it lives, Playwright keeps an event loop in this thread, which async tests cannot have.
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture
def context(browser: Browser, server: Server) -> Iterator[BrowserContext]:
    with watching(browser, server) as context:
        yield context


@pytest.fixture
def unlucky(browser: Browser, server: Server) -> Iterator[Page]:
    """A page whose requests may fail, which the browser itself reports as errors."""
    with watching(browser, server, allowed="Failed to load resource") as context:
        page = context.new_page()
        page.goto("/")
        yield page


@pytest.fixture
def page(context: BrowserContext) -> Page:
    page = context.new_page()
    page.goto("/")
    return page


@pytest.fixture
def shoot() -> Callable[[Page, str], None]:
    """Takes a picture into the folder that LEGATO_SCREENSHOTS names, by default one that git ignores."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled") and None
