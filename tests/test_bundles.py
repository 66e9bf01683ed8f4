"""The npm package in other people's bundles, opened in Chromium; and in pages with styles and rules of their own."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, expect

from browser import browsing, node
from legato import Legato
from live_server import serving
from node_packages import packages, types

ROOT = Path(__file__).parent.parent
WEB = ROOT / "src/legato/web"
SCREENSHOTS = ROOT / ".cache" / "screenshots"
TOOLS = (
    *("vite@8.4.0", "webpack@5.113.0", "webpack-cli@7.3.1", "esbuild@0.28.2", "react@19.3.1", "react-dom@19.3.1"),
    *("typescript@5.9.3", "@types/react@19.3.0"),
)
PLAIN = """
import "legato/define.js";
const chat = document.createElement("legato-chat");
chat.setAttribute("base-url", "SERVER");
document.getElementById("root").append(chat);
"""
REACT = """
import { createElement, StrictMode, useEffect, useState } from "react";
IMPORT
import { LegatoChat } from "legato/react-chat.js";

function App() {
  const [session, setSession] = useState("");
  useEffect(() => { document.title = session; }, [session]);
  return createElement(LegatoChat, {
    baseUrl: "SERVER",
    style: { height: "90vh" },
    headers: () => ({ authorization: "Bearer tea" }),
    strings: { placeholder: "Say it" },
    onSession: setSession,
  });
}
EXPORT
"""
ROOTED = {
    "IMPORT": 'import { createRoot } from "react-dom/client";',
    "EXPORT": 'createRoot(document.getElementById("root")).render(createElement(StrictMode, {}, createElement(App)));',
}
PAGED = {"IMPORT": "", "EXPORT": "export default App;"}  # of Next's, which is strict by its configuration
NEXT = ("next@16.4.6", "react@19.3.1", "react-dom@19.3.1")
NEXT_CONFIG = """
import path from "node:path";
export default { output: "export", reactStrictMode: true, turbopack: { root: path.resolve("..") } };
"""
NEXT_LAYOUT = """
import { LegatoIntercom } from "legato/react-chat.js";

export default function Layout({ children }) { // on the server, to which what is the browser's has to be named
  return <html lang="en"><body>{children}<LegatoIntercom /></body></html>;
}
"""
COMPONENTS = """
/** @jsxImportSource react */
/// <reference types="legato/tags/react" />
import { useRef } from "react";
import { LegatoChat, LegatoIntercom } from "legato/react-chat.js";

export function Page({ session }: { session?: string | undefined }) {
  const chat = useRef<HTMLElementTagNameMap["legato-chat"]>(null);
  return (
    <main onClick={() => chat.current?.send("Hello")}>
      <LegatoChat session={session} theme="dark" onState={({ running }) => running || 1} />
      <LegatoIntercom username="guide" style={{ height: 3 }} />
      <legato-chat ref={chat} session={session} base-url="/api" follow="start" className="wide" style={{ height: 3 }}
        headers={() => ({ authorization: "x" })} onlegato-session={(event) => event.detail.toUpperCase()}>
        <p slot="empty">Nothing yet.</p>
      </legato-chat>
      <legato-in-progress-message text="Tea" ended />
      <legato-message-stream-error message="Cold" final onretry={() => {}} />
      {/* @ts-expect-error: there is no such theme */}
      <LegatoChat theme="blue" />
      {/* @ts-expect-error: there is no such place */}
      <legato-chat follow="middle" />
    </main>
  );
}
"""
JSX = """
/** @jsxImportSource SOURCE */
/// <reference types="legato/tags/FRAMEWORK" />
export function Page(props: { session?: string | undefined }) {
  let chat!: HTMLElementTagNameMap["legato-chat"] | null;
  return (
    <main onClick={() => chat?.send("Hello")}>
      <legato-chat ref={(made) => { chat = made; }} session={props.session} base-url="/api" class="wide"
        headers={{ authorization: "x" }} LISTENlegato-state={({ detail }) => detail.running} />
      {/* @ts-expect-error: there is no such place */}
      <legato-chat follow="middle" />
    </main>
  );
}
"""
MARKUP = """
/// <reference types="legato/tags/svelte" />
/// <reference types="legato/tags/vue" />
import type { SvelteHTMLElements } from "svelte/elements";
import type { GlobalComponents } from "vue";

type Made = InstanceType<GlobalComponents["legato-chat"]>;
type Tag = SvelteHTMLElements["legato-chat"];
export const vue: Made["$props"] = { session: undefined, baseUrl: "/", onLegatoState: (event) => event.detail.running };
export const send = (chat: Made) => chat.send("Hello");
export const svelte: Tag = { session: undefined, "onlegato-state": (event) => event.detail.running };
// @ts-expect-error: there is no such place
export const one: Made["$props"] = { follow: "middle" };
// @ts-expect-error: there is no such place
export const other: Tag = { follow: "middle" };
"""
HTML = '<!doctype html><html lang="en"><title>A page</title><body><div id="root" style="height: 90vh"></div>'


async def echo(turn: Any) -> AsyncIterator[str]:
    yield f"You said **{turn.message.text}**."


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    app = Legato("memory:", agents=[echo])
    app.drain_on_signal = False
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        context.set_default_timeout(60_000)
        yield context.new_page()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, server: str) -> Path:
    """A project with the package and the bundlers, and two pages: the elements, and React."""
    node()
    tools = packages("bundlers", *TOOLS) / "node_modules"
    source = tmp_path_factory.mktemp("source") / "a/b/web"  # as in a fresh checkout
    shutil.copytree(WEB, source)
    shutil.copy(ROOT / "LICENSE", source.parents[2])
    subprocess.run(["npm", "pack", "--silent"], cwd=source, check=True, capture_output=True, timeout=300)
    (archive,) = source.glob("*.tgz")
    folder = tmp_path_factory.mktemp("project")
    modules = folder / "node_modules"
    modules.mkdir()
    for each in tools.iterdir():
        (modules / each.name).symlink_to(each)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (folder / "package").rename(modules / "legato")
    (folder / "package.json").write_text('{"type": "module"}')
    pages = {"plain": PLAIN, "react": _filled(REACT, ROOTED), "next": '"use client";' + _filled(REACT, PAGED)}
    for name, code in pages.items():
        (folder / f"{name}.js").write_text(code.replace("SERVER", server))
        (folder / f"{name}.html").write_text(f'{HTML}<script type="module" src="/{name}.js"></script>')
    return folder


def _filled(code: str, words: dict[str, str]) -> str:
    for word, text in words.items():
        code = code.replace(word, text)
    return code


def run(project: Path, *command: str) -> None:
    done = subprocess.run(
        ["npx", "--no-install", *command], cwd=project, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def files(folder: Path) -> Iterator[str]:
    """Serve a folder, as any web server does."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()


@contextlib.contextmanager
def esbuild(project: Path, name: str, form: str = "esm") -> Iterator[str]:
    out = project / f"out-esbuild-{form}"
    run(project, "esbuild", f"{name}.js", "--bundle", f"--format={form}", "--minify", f"--outfile={out}/{name}.js")
    module = ' type="module"' if form == "esm" else ""
    (out / f"{name}.html").write_text(f'{HTML}<script{module} src="{name}.js"></script>')
    with files(out) as url:
        yield f"{url}/{name}.html"


@contextlib.contextmanager
def webpack(project: Path, name: str) -> Iterator[str]:
    out = project / "out-webpack"
    run(project, "webpack", f"./{name}.js", "--mode=production", f"--output-path={out}", f"--output-filename={name}.js")
    (out / f"{name}.html").write_text(f'{HTML}<script src="{name}.js"></script>')
    with files(out) as url:
        yield f"{url}/{name}.html"


@contextlib.contextmanager
def vite(project: Path, name: str) -> Iterator[str]:
    shutil.copy(project / f"{name}.html", project / "index.html")
    run(project, "vite", "build", f"--outDir=out-vite-{name}", "--logLevel=error")
    with files(project / f"out-vite-{name}") as url:
        yield url


@contextlib.contextmanager
def vite_dev(project: Path, name: str) -> Iterator[str]:
    command = ["npx", "--no-install", "vite", "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if found := re.search(r"(http://127\.0\.0\.1:)\S*?(\d+)", re.sub(r"\x1b\[[\d;]*m", "", line)):
                    yield f"{found[1]}{found[2]}/{name}.html"
                    return
            raise AssertionError(said)
        finally:
            process.terminate()


@contextlib.contextmanager
def next_build(project: Path, name: str) -> Iterator[str]:
    """A page of Next's, exported. What it reads must be below one folder, so it is built beside Next."""
    with tempfile.TemporaryDirectory(dir=packages("next", *NEXT), prefix="page-") as made:
        folder = Path(made)
        shutil.copytree(project / "node_modules/legato", folder / "node_modules/legato")
        (folder / "package.json").write_text("{}")
        (folder / "next.config.mjs").write_text(NEXT_CONFIG)
        (folder / "app").mkdir()
        (folder / "app/layout.jsx").write_text(NEXT_LAYOUT)
        (folder / "app/page.jsx").write_text((project / f"{name}.js").read_text())
        command = [node(), "../node_modules/next/dist/bin/next", "build"]
        environment = {**os.environ, "NEXT_TELEMETRY_DISABLED": "1"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with files(folder / "out") as url:
            yield url


BUNDLERS: dict[str, Callable[[Path, str], contextlib.AbstractContextManager[str]]] = {
    "esbuild": esbuild,
    "esbuild-iife": functools.partial(esbuild, form="iife"),
    "webpack": webpack,
    "vite": vite,
    "vite-dev": vite_dev,
    "next": next_build,
}


def check_chat(page: Page, placeholder: str) -> None:
    """It has its looks, it answers, and its text is Markdown."""
    field = page.get_by_placeholder(placeholder)
    field.fill("Hello")
    field.press("Enter")
    expect(page.locator("legato-chat .prose strong")).to_have_text("Hello")
    expect(page.locator("legato-chat .question")).to_have_css("border-top-left-radius", "18.4px")


@pytest.mark.parametrize("bundler", [each for each in BUNDLERS if each != "next"])
def test_a_bundle_of_the_elements(project: Path, page: Page, bundler: str) -> None:
    """The elements in a page of their own, on another origin than the server, built by each bundler as it comes."""
    with BUNDLERS[bundler](project, "plain") as url:
        page.goto(url)
        check_chat(page, "Write a message")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"bundle-{bundler}.png")


@pytest.mark.parametrize("bundler", ["webpack", "vite-dev", "next"])
def test_a_bundle_of_the_react_components(project: Path, page: Page, bundler: str) -> None:
    """In StrictMode: one element, with its headers from the first request on, and its events."""
    requests: list[str | None] = []
    page.on("request", lambda each: requests.append(each.headers.get("authorization")) if "/api/" in each.url else None)
    with BUNDLERS[bundler](project, "next" if bundler == "next" else "react") as url:
        page.goto(url)
        check_chat(page, "Say it")
        expect(page.locator("legato-chat:not([hidden])")).to_have_count(1)
        expect(page).to_have_title(re.compile(r"\S{8,}"))
    assert requests
    assert set(requests) == {"Bearer tea"}


def check_types(project: Path, version: str, sources: dict[str, str], *options: str) -> None:
    """By a strict TypeScript of this version, in a folder that has the package and what its types speak of."""
    folder = project / f"types-{version}-{len(sources)}"
    folder.mkdir()
    (folder / "node_modules").mkdir()
    for each in (types() / "node_modules").iterdir():
        (folder / "node_modules" / each.name).symlink_to(each)
    (folder / "node_modules/legato").symlink_to(project / "node_modules/legato")
    for name, code in sources.items():
        (folder / name).write_text(code)
    compiler = packages("bundlers", *TOOLS) if version == "5.9" else types()
    strict = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--jsx", "preserve", "--preserveSymlinks"]
    library = ["--target", "es2022", "--lib", "es2023,dom,dom.iterable"]
    done = subprocess.run(
        [node(), str(compiler / "node_modules/typescript/bin/tsc"), *strict, *library, *options, *sources],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", ["5.9", "7.0"])
def test_types_of_the_react_components(project: Path, version: str) -> None:
    """TypeScript of both generations knows what the components and the tags take: the old one as it finds modules by
    default, the fast one, which has but the new way, looks into all types besides."""
    old = ["--module", "esnext", "--moduleResolution", "node10", "--skipLibCheck", "--types", "react"]
    check_types(project, version, {"page.tsx": COMPONENTS}, *(old if version == "5.9" else ["--module", "nodenext"]))


def test_types_of_the_tags(project: Path) -> None:
    """So do those of the other frameworks, whose own types are not looked into: that takes longer than all the rest."""
    sources = {
        "preact.tsx": _filled(JSX, {"SOURCE": "preact", "FRAMEWORK": "preact", "LISTEN": "on"}),
        "solid.tsx": _filled(JSX, {"SOURCE": "solid-js", "FRAMEWORK": "solid", "LISTEN": "on:"}),
        "markup.ts": MARKUP,
    }
    check_types(project, "7.0", sources, "--module", "nodenext", "--skipLibCheck")


LEAKS = """
html { font-size: 62.5%; }
body { font: italic 700 40px/3 fantasy; color: red; text-transform: uppercase; letter-spacing: 5px; text-align: right; }
* { color: red; font-family: fantasy; line-height: 4; text-indent: 9px; word-spacing: 9px; user-select: none; }
* { -webkit-text-fill-color: red; text-shadow: 3px 3px; word-break: break-all; font-variant: small-caps; cursor: wait; }
html { writing-mode: vertical-rl; tab-size: 40; list-style: square inside; border-spacing: 20px; caret-color: red; }
#root { width: 1248px; writing-mode: horizontal-tb; }
"""
LOOK = """() => {
    const root = document.querySelector('legato-chat').shadowRoot;
    const seen = {};
    for (const css of ['.question', '.prose p', '#message', 'button.small']) {
        const {width, height} = root.querySelector(css).getBoundingClientRect();
        const style = getComputedStyle(root.querySelector(css));
        const names = ['color', 'fontSize', 'fontFamily', 'fontStyle', 'fontWeight', 'lineHeight', 'letterSpacing',
            'wordSpacing', 'textTransform', 'textAlign', 'textIndent', 'paddingLeft', 'minHeight',
            'webkitTextFillColor', 'textShadow', 'wordBreak', 'fontVariant', 'cursor', 'tabSize', 'listStyle',
            'caretColor', 'writingMode'];
        seen[css] = [width, height].map(Math.round).concat(names.map(each => style[each]));
        seen[css].push(style.userSelect === 'none');
    }
    return seen;
}"""


def test_the_page_around_it_does_not_leak_in(project: Path, browser: Browser) -> None:
    """With or without styles of a page that reach for everything, sizes, colours and fonts are the same."""
    looks = []
    with esbuild(project, "plain") as url:
        for css in ("/* nothing */", LEAKS):
            with browser.new_context() as context:
                page = context.new_page()
                page.goto(url)
                page.add_style_tag(content=css)
                check_chat(page, "Write a message")
                expect(page.get_by_role("button", name="Copy answer")).to_be_visible()
                looks.append(page.evaluate(LOOK))
    assert looks[0] == looks[1]


def test_a_page_with_trusted_types(project: Path, page: Page) -> None:
    """Where a page lets only trusted HTML in, it names our policy, and answers are seen."""
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.context.on("weberror", lambda error: errors.append(str(error.error)))
    rules = "require-trusted-types-for 'script'; trusted-types legato"
    with esbuild(project, "plain") as url:
        name = "out-esbuild-esm/plain.html"
        plain = (project / name).read_text()
        rule = f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
        (project / name).write_text(plain.replace("<title>", f"{rule}<title>"))
        page.goto(url)
        check_chat(page, "Write a message")
        assert not [text for text in errors if "rusted" in text]
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<p>anybody</p>'")
