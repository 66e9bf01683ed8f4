"""The npm package: packed, installed in an empty folder, imported, type-checked by somebody else's TypeScript."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from browser import node
from legato import Legato, __version__
from live_server import serving
from node_packages import types

ROOT = Path(__file__).parent.parent
WEB = ROOT / "src/legato/web"

CONSUMER = """
import { LegatoCore, createSession, messagePage, sendMessage, streamEvents, Refused } from "legato";
import "legato/define.js";
import * as funcs from "legato/funcs.js";
import { useStreamResponse } from "legato/react.js";
import { Stream, type State } from "legato/resume.js";
import { SharedStream } from "legato/shared.js";
import { StreamResponse, type Snapshot } from "legato/stream-response.js";
import type { StreamEvent } from "legato/types.js";

const headers = async ({ unauthorized }: { unauthorized: boolean }) => ({ authorization: String(unauthorized) });
const core = new LegatoCore({ baseUrl: "http://localhost:8088", headers });

export async function say(sessionId: string): Promise<string> {
  const { cursor } = await sendMessage(core, { sessionId, text: "Hello" });
  let text = "";
  for await (const event of streamEvents(core, { sessionId, lastEventId: cursor })) {
    if (event.event === "content") text += event.data.content;
    if (event.event === "permission") console.log(event.data.toolName.toUpperCase());
    if (event.event === "complete") return event.data.content ?? text;
  }
  return text;
}

export async function list(): Promise<string[]> {
  const result = await funcs.listSessions(core);
  if (!result.ok) throw result.error instanceof Refused && result.error.status === 401 ? "Log in." : result.error;
  return result.value.map((session) => session.title);
}

export function Answer({ messageId }: { messageId?: string }): string | null {
  const { message, error, ...more } = useStreamResponse({ messageId, threadId: "t" });
  void [more.isStreaming, more.isDone, more.isReconnecting, more.retry, more.stop];
  return error?.message ?? message?.text ?? null;
}

export async function history(sessionId: string, cursor?: string): Promise<string[]> {
  const { messages, older } = await messagePage(core, { sessionId, cursor });
  return [...(older === undefined ? [] : await history(sessionId, older)), ...messages.map((each) => each.userInput)];
}

const absent: { title?: string | undefined; headers?: undefined; id?: string | undefined } = {};
void createSession(new LegatoCore(absent), absent);

export const snapshot: Snapshot = new StreamResponse(core, { threadId: "t", messageId: "m" }).getSnapshot();
// Either kind of stream will do.
export const follow = (kind: typeof Stream | typeof SharedStream): State =>
  new kind("/stream?sessionId=s", { event: (name: string, data: any, id: string) => {} }).state;
export const name: StreamEvent["event"] = "content";

const chat = document.querySelector("legato-chat");
chat?.send("Hello");
chat?.addEventListener("legato-session", (event) => event.detail.toUpperCase());
window.addEventListener("legato-state", (event) => event.detail.running);
document.createElement("legato-intercom").open();

// @ts-expect-error: a session is needed
void sendMessage(core, { text: "Hello" });
// @ts-expect-error: before `ok` is known, there may be no value
void funcs.listSessions(core).then(({ value }) => value.length);
// @ts-expect-error: there is no such event
export const wrong: StreamEvent["event"] = "contents";
"""
PROGRAM = """
import { LegatoCore, streamEvents } from "legato";
import * as funcs from "legato/funcs.js";
import { SharedStream } from "legato/shared.js";
import { StreamResponse } from "legato/stream-response.js";

for await (const event of streamEvents(new LegatoCore(), { sessionId: "s" })) {
  if (event.event === "content") process.stdout.write(event.data.content);
}
export { funcs, SharedStream, StreamResponse };
"""


def npm(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["npm", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody who has installed the package, and TypeScript beside it."""
    node()
    tools = types() / "node_modules"
    # A copy, so that no other test sees the files that packing leaves for a moment.
    source = tmp_path_factory.mktemp("source") / "a/b/c/web"
    shutil.copytree(WEB, source)
    shutil.copy(ROOT / "LICENSE", source.parents[2])
    (source.parents[2] / "node_modules").symlink_to(tools)
    packed = json.loads(npm("pack", "--json", cwd=source))
    folder = tmp_path_factory.mktemp("consumer")
    (folder / "package.json").write_text('{"type": "module"}')
    npm("install", "--offline", "--no-audit", "--no-fund", str(source / packed[0]["filename"]), cwd=folder)
    for name in ("typescript", "@typescript", "@types", "csstype", "react", "undici-types"):
        (folder / "node_modules" / name).symlink_to(tools / name)
    return folder


def manifest() -> dict[str, object]:
    return dict(json.loads((WEB / "package.json").read_text()))


JSDOM = "globalThis.HTMLElement = class {}; globalThis.CSSStyleSheet = class {};"  # without what it lacks


@pytest.mark.parametrize("page", ["", JSDOM], ids=["node", "jsdom"])
def test_every_entry_can_be_imported(installed: Path, page: str) -> None:
    """Each of the package's ``exports`` loads in Node.js, and exports something unless it is types only."""
    entries = [f"legato{name.removeprefix('.')}" for name in manifest()["exports"] if name.endswith((".", ".js"))]  # type: ignore[attr-defined]
    script = "for (const name of JSON.parse(process.argv[1])) console.log(name, Object.keys(await import(name)).length)"
    done = subprocess.run(
        [node(), "--input-type=module", "-e", page + script, json.dumps(entries)],
        cwd=installed,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert list(counts) == entries
    assert [name for name, count in counts.items() if count == "0"] == ["legato/types.js"]


@pytest.mark.parametrize(
    ("code", "known", "lib"),
    [(CONSUMER, "", "es2023,dom,dom.iterable"), (PROGRAM, "node", "es2023")],
    ids=["page", "node"],
)
def test_typescript_knows_the_package(installed: Path, code: str, known: str, lib: str) -> None:
    """A strict consumer compiles, in a page or without one, and its mistakes are found."""
    (installed / "consumer.ts").write_text(code)
    options = [
        "--noEmit",
        "--strict",
        "--exactOptionalPropertyTypes",
        "--target",
        "es2022",
        "--module",
        "nodenext",
        "--lib",
        lib,
    ]
    command = [str(installed / "node_modules/typescript/bin/tsc"), *options, "--types", known, "consumer.ts"]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout


def test_the_package_is_whole_and_small(installed: Path) -> None:
    """All modules that its modules import, their types, the licence; nothing of the pages, nothing to install."""
    package = installed / "node_modules/legato"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}

    assert {"LICENSE", "README.md", "client.js", "types/client.d.ts", "types/tail.d.ts"} <= files
    assert not {"page.js", "sessions.js", "index.html", "tsconfig.json"} & files
    assert "dependencies" not in manifest()
    assert manifest()["version"] == __version__


async def tea(turn: Any) -> AsyncIterator[str]:
    """Answers the examples' question."""
    yield "With "
    yield "water."


@pytest.mark.parametrize("page", [WEB / "README.md", ROOT / "docs/browser.md"], ids=lambda page: page.name)
def test_the_first_example_runs(installed: Path, page: Path) -> None:
    """The JavaScript that a reader sees first does what it says."""
    example = re.search(r"```js\n(.*?)```", page.read_text(), re.DOTALL)
    assert example
    app = Legato("memory:", agents=[tea])
    app.drain_on_signal = False
    with serving(app) as url:
        (installed / "example.mjs").write_text(example[1].replace("http://localhost:8088", url))
        done = subprocess.run([node(), "example.mjs"], cwd=installed, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "With water."), done.stderr
