"""The custom elements in a real browser: text that grows, what a page can change, and that they are for everybody."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from browser import Server, serving
from node_packages import package
from pages import AXE, rest, said, send, wait_for, wait_for_end, wait_for_words, watching

pytest_plugins = ["page_fixtures"]

ECHO = """
import asyncio
import re
from pathlib import Path
from legato import Agent

async def echo(turn):
    if turn.message.text.startswith("/huge"):
        yield "\\n\\n".join(f"**Part {number}** " + "and more `words` " * 12 for number in range(2_000))
        return
    text = TEA if turn.message.text.startswith("How") else turn.message.text
    told = re.search(r"until (\\S+) is there", text)
    for at in range(0, len(text), 3):
        while told and at > told.end() and not Path(told[1]).exists():
            await asyncio.sleep(0.01)
        yield text[at : at + 3]
        await asyncio.sleep(0.03 if text.startswith("# Tea") else 0.004)

agent = Agent(echo, name="echo")
"""
MARKDOWN = """\
# Tea, *well* made

It takes **three things**: water, leaves and `patience`. See [the garden](https://tea.test/garden) for more.

1. Warm the pot.
2. Wait for *two* minutes:
   - green tea: less
   - black tea: **more**

```python
def brew(leaves, minutes=3):
    # patience
    return pot.pour(leaves) * minutes
```

> Hot *water* only.
>
> ```sh
> boil
> now
> ```

| tea | minutes |
|---|---|
| green | `2` |
| black | **4** |

And that is all.
"""
MODELS = r"""Let \(a_1 * b_1\) be $x^2$, for $5.

\[
E = mc^2 \\\\
- c
\]

- [ ] to do
- [x] done

| left | middle |
|---|:-:|
| a<br>b | **c** |

> [!NOTE]
> See it[^1] and [here].

这是**“粗体”**文字。

[^1]: A note.

[here]: https://tea.test/

```js
return x
```
"""
HOSTILE = """\
<script>window.caught = 1</script> <img src=x onerror="window.caught = 2">

[a](javascript:window.caught=3) ![b](https://elsewhere.test/x.png) <svg onload="window.caught = 4"></svg>

<style>* { display: none }</style>

```html" onmouseover="window.caught = 5
<img src=x onerror="window.caught = 6">
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose agent says everything back, a few letters at a time."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text(f"TEA = {MARKDOWN!r}\n{ECHO}")
    with serving(folder, target=folder / "echo.py") as server:
        httpx2.post(f"{server.url}/web/markdown", json={"texts": ["$x$"]}, timeout=60)  # the first takes its time
        yield server


@pytest.fixture
def chat(browser: Browser, echo: Server) -> Iterator[Page]:
    with watching(browser, echo) as context:
        page = context.new_page()
        page.goto("/")
        yield page


def begin(server: Server, *texts: str) -> str:
    """A session in which these messages have been answered."""
    session = str(httpx2.post(f"{server.url}/api/sessions", json={"title": "A test"}).json()["id"])
    for text in texts:
        httpx2.post(f"{server.url}/api/sessions/{session}/messages", json={"text": text}).raise_for_status()
    wait_for(lambda: sum(e["type"] == "run.completed" for e in server.events(session)) == len(texts))
    return session


# Text that grows ------------------------------------------------------------------------------------------------------

# What the server has not rendered in time is shown as it came. How fast this machine is is not what is looked at.
WATCH = """async () => {
    const { PACE } = await import(new URL('web/prose.js', document.baseURI));
    PACE.patience = 1e9;
    window.seen = [];
    const root = document.querySelector('legato-chat').shadowRoot;
    const look = () => {
        const prose = root.querySelector('.prose');
        if (!prose) return;
        const text = prose.textContent.replace(/\\s/g, '').replaceAll('Copycode', '');
        const last = seen.at(-1);
        if (last?.text === text) return;
        const outside = prose.cloneNode(true);
        outside.querySelectorAll('.code').forEach(each => each.remove());
        seen.push({text, height: prose.offsetHeight, outside: outside.textContent});
    };
    new MutationObserver(look).observe(root, {childList: true, characterData: true, subtree: true});
}"""


def test_text_never_jumps(chat: Page) -> None:
    """Whatever is shown of a growing answer stays: words are only added, its height only grows, no marker is seen."""
    chat.evaluate(WATCH)
    chat.locator("#message").fill(MARKDOWN)
    chat.locator("#message").press("Enter")
    wait_for_end(chat)

    seen = chat.evaluate("seen")
    assert len(seen) > 3
    for before, after in itertools.pairwise(seen):
        assert after["text"].startswith(before["text"])
        assert after["height"] >= before["height"] - 2, after["text"]
    assert not [each["outside"] for each in seen if re.search(r"[#*`|\[\]]", each["outside"])]


GROWING = """- One *item*
- and another one

```js
const line = `${"and so on ".repeat(3)} which is so long a line that nobody sees its end without scrolling to the side`;
"""
LINES = "".join(f"let value{number} = {number}; // and more\n" for number in range(40))


def test_a_growing_block_leaves_its_reader_alone(chat: Page, tmp_path: Path) -> None:
    """A selection, the focus and the place on the side are the reader's, however often the block is set again."""
    chat.locator("#message").fill(f"{GROWING}let first = 0; // until {tmp_path / 'go'} is there\n{LINES}")
    chat.locator("#message").press("Enter")
    block = chat.locator(".prose pre")
    expect(block.locator("span", has_text=re.compile("^first$"))).to_be_visible()
    chat.evaluate("""() => {
        const pre = document.querySelector('legato-chat').shadowRoot.querySelector('.prose pre');
        const copy = pre.closest('.code').querySelector('button');
        const words = [...pre.querySelectorAll('span')].find(each => each.textContent === 'line');
        window.kept = {pre, copy, words, changes: 0};
        getSelection().setBaseAndExtent(words.firstChild, 0, words.firstChild, words.firstChild.length);
        pre.scrollLeft = 50;
        copy.focus();
        copy.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true, composed: true}));
        const all = {childList: true, subtree: true, characterData: true};
        new MutationObserver(found => (kept.changes += found.length)).observe(pre, all);
    }""")
    (tmp_path / "go").touch()
    expect(block).to_contain_text("let value30 ")
    seen = chat.evaluate("""() => {
        const {pre, copy, words, changes} = window.kept;
        return {
            same: pre.isConnected && copy.isConnected && words.isConnected,
            focus: pre.getRootNode().activeElement === copy,
            left: pre.scrollLeft,
            selected: getSelection().anchorNode === words.firstChild && getSelection().toString(),
            changes,
        };
    }""")
    wait_for_end(chat)

    assert seen["changes"] > 0
    assert (seen["same"], seen["focus"], seen["left"]) == (True, True, 50)
    assert "line" in seen["selected"]
    assert chat.evaluate("kept.pre.isConnected && kept.pre.scrollLeft === 50")  # at the end as well
    assert chat.evaluate("kept.copy.getRootNode().activeElement === kept.copy")


def test_a_long_answer_is_not_slowed(chat: Page) -> None:
    """Finished blocks stay the same elements; and little is asked of the server beside the stream."""
    requests: list[str] = []
    chat.on(
        "request", lambda each: requests.append(each.post_data_json["texts"][0]) if "markdown" in each.url else None
    )
    text = "\n\n".join(f"Paragraph {number} with **bold** words in it." for number in range(60))
    chat.locator("#message").fill(text)
    chat.locator("#message").press("Enter")
    first = chat.locator(".prose p").first
    expect(first).to_have_text("Paragraph 0 with bold words in it.")
    element = first.element_handle()
    wait_for_end(chat)

    expect(chat.locator(".prose p")).to_have_count(60)
    assert chat.evaluate("([a, b]) => a === b", [element, first.element_handle()])
    paragraphs = [[int(number) for number in re.findall(r"Paragraph (\d+)", text)] for text in requests]
    for before, after in itertools.pairwise(each for each in paragraphs if each):
        assert after[0] >= before[-1] - 1  # only ever the unfinished end
    times = """performance.getEntriesByType('resource').filter((each) => each.name.endsWith('web/markdown'))
        .map((each) => each.startTime)"""
    begun = chat.evaluate(times)
    assert len(begun) > 1
    assert all(after - before > 140 for before, after in itertools.pairwise(begun[:-1]))  # the last one is due at once


def test_history_looks_like_what_was_streamed(chat: Page, shoot: Callable[[Page, str], None]) -> None:
    """A reload gives the same elements as the stream had given."""
    chat.set_viewport_size({"width": 1080, "height": 1010})
    send(chat, "How is tea made?")
    wait_for_words(chat, 20)
    shoot(chat, "growing")
    wait_for_end(chat)
    streamed = chat.locator(".prose").inner_html()

    chat.reload()

    wait_for_end(chat)
    shoot(chat, "markdown")
    assert streamed == chat.locator(".prose").inner_html()
    assert {"h2", "p", "ol", "ul", "pre", "blockquote", "table", "strong", "em", "a"} <= set(
        chat.locator(".prose *").evaluate_all("all => all.map(each => each.localName)")
    )


def test_what_models_write_looks_the_same_after_a_reload(chat: Page, shoot: Callable[[Page, str], None]) -> None:
    """Formulas, tasks, alignment, alerts, notes and addresses that are defined further down; none is seen half made."""
    chat.set_viewport_size({"width": 1080, "height": 1010})
    chat.evaluate(WATCH)
    chat.locator("#message").fill(MODELS)
    chat.locator("#message").press("Enter")
    wait_for_end(chat)
    streamed = chat.locator(".prose").inner_html()
    raw = [each["outside"] for each in chat.evaluate("seen")]

    chat.reload()

    wait_for_end(chat)
    assert streamed == chat.locator(".prose").inner_html()
    shoot(chat, "models-markdown")
    assert not [text for text in raw if re.search(r"[\\|#]|\*\*|\$x|\[[ x]\]|\[!|\[\^|<br", text)]
    expect(chat.locator(".prose math")).to_have_count(3)
    expect(chat.locator(".prose input:checked")).to_have_count(1)
    expect(chat.locator(".prose a", has_text="here")).to_have_attribute("href", "https://tea.test/")
    expect(chat.locator(".prose td").last).to_have_css("text-align", "center")
    formula = chat.locator(".prose math").last.bounding_box()
    assert formula is not None
    assert formula["height"] > 40  # of two lines


def test_a_huge_answer_is_the_same_after_a_reload(chat: Page) -> None:
    """450,000 characters at once: all of it is Markdown, then and later."""
    send(chat, "/huge")
    for _ in range(2):
        wait_for_end(chat)
        expect(chat.locator(".prose p strong")).to_have_count(2_000, timeout=60_000)
        expect(chat.locator(".prose > .plain")).to_have_text("")
        chat.reload()


def test_hostile_text_stays_text(chat: Page) -> None:
    """Scripts, handlers, styles and images of an answer are words; while they come, at the end, and after a reload."""
    chat.locator("#message").fill(HOSTILE)
    chat.locator("#message").press("Enter")
    wait_for_end(chat)
    for _ in range(2):
        expect(chat.locator(".prose")).to_contain_text("<script>window.caught = 1</script>")
        assert chat.locator(".prose").locator("script, img, svg, style, iframe").count() == 0
        assert chat.evaluate("window.caught") is None
        allowed = {"class", "dir", "href", "target", "rel", "tabindex", "data-language", "type", "part", "aria-busy"}
        names = "all => all.flatMap(each => each.getAttributeNames())"
        assert set(chat.locator(".prose *").evaluate_all(names)) <= allowed
        chat.reload()
        wait_for_end(chat)


def test_without_markdown_text_is_plain(unlucky: Page) -> None:
    """A server that renders nothing (or an answer that is too long for it) leaves the text as it is, whole."""
    unlucky.route("**/web/markdown", lambda route: route.fulfill(status=404))
    send(unlucky, "/long 60")
    wait_for_words(unlucky, 10)
    wait_for_end(unlucky)

    assert said(unlucky) == " ".join(f"note-{number}" for number in range(1, 61))


# What a page can change -----------------------------------------------------------------------------------------------


def test_elements_by_themselves(chat: Page) -> None:
    """Each of the three small elements works alone in a page, with a root of its own."""
    chat.goto("/docs")
    expect(chat.locator("#schemas")).to_be_attached()  # the page's own script is done with it
    chat.evaluate("""async () => {
        await import(new URL('web/define.js', document.baseURI));
        document.body.replaceChildren();
        for (const [name, attributes] of [
            ['legato-incoming-message-indicator', {}],
            ['legato-in-progress-message', {}],
            ['legato-message-stream-error', {message: 'The kettle is empty.'}],
        ]) {
            const element = document.createElement(name);
            for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
            document.body.append(element);
        }
        document.querySelector('legato-message-stream-error').addEventListener('retry', () => (window.retried = true));
    }""")
    message = chat.locator("legato-in-progress-message")
    expect(chat.get_by_role("status")).to_have_text("The agent is typing.")
    message.evaluate("each => { each.add('Tea is **ho'); each.add('t** and'); }")
    expect(message.locator("strong")).to_have_text("hot")
    message.evaluate("each => { each.add(' *sweet*.'); each.ended = true; }")
    expect(message.locator("p")).to_have_text("Tea is hot and sweet.")
    expect(message.locator("em")).to_have_text("sweet")
    expect(chat.get_by_role("alert")).to_contain_text("The kettle is empty.")
    chat.get_by_role("button", name="Retry").click()
    assert chat.evaluate("window.retried")


def test_what_is_set_before_its_class_is_here_holds(chat: Page, echo: Server) -> None:
    """Frameworks, and pages whose modules come late, give an element its properties before it has them."""
    asked: list[str | None] = []
    chat.on("request", lambda each: asked.append(each.headers.get("x-tea")) if "/api/" in each.url else None)
    chat.goto("/docs")
    expect(chat.locator("#schemas")).to_be_attached()
    asked.clear()
    chat.evaluate(
        """async session => {
            const chat = document.createElement('legato-chat');
            const message = document.createElement('legato-in-progress-message');
            Object.assign(chat, { session, headers: { 'x-tea': 'hot' }, strings: { placeholder: 'Say it' } });
            message.text = 'Tea is **hot**.';
            document.body.replaceChildren(chat, message);
            await import(new URL('web/define.js', document.baseURI));
        }""",
        begin(echo, "Tea"),
    )
    expect(chat.locator(".question")).to_have_text("Tea")
    expect(chat.get_by_placeholder("Say it")).to_be_visible()
    expect(chat.locator("body > legato-in-progress-message strong")).to_have_text("hot")
    assert set(asked) == {"hot"}


def test_what_frameworks_set_can_be_taken_back(chat: Page) -> None:
    """They look for setters of the class, and say with undefined, null or an empty text that there is nothing."""
    wrong = chat.evaluate("""async () => {
        await import(new URL('web/define-intercom.js', document.baseURI));
        const given = {baseUrl: '/x', theme: 'dark', headers: {a: 'b'}, strings: {send: 'Go'}};
        const tags = {
            'legato-chat': {...given, session: 's', agent: 'a', follow: 'start'},
            'legato-intercom': {...given, username: 'a'},
            'legato-incoming-message-indicator': given,
            'legato-in-progress-message': {...given, text: 'Tea', ended: true},
            'legato-message-stream-error': {...given, message: 'Cold', final: true},
        };
        const wrong = [];
        for (const [tag, properties] of Object.entries(tags)) {
            const element = document.createElement(tag);
            for (const [name, value] of Object.entries(properties)) {
                for (const nothing of [undefined, null, '']) {
                    const before = JSON.stringify(element[name]);
                    element[name] = value;
                    if (element[name] === before || Object.hasOwn(element, name)) wrong.push([tag, name]);
                    element[name] = nothing;
                    const kept = element.attributes.length > 0 || JSON.stringify(element[name]) !== before;
                    if (kept) wrong.push([tag, name, nothing]);
                }
            }
        }
        return wrong;
    }""")
    assert wrong == []


def test_a_chat_that_is_moved_goes_on(chat: Page) -> None:
    """In another place of the page it shows what it showed, at its end, and asks for nothing again."""
    text = "\n\n".join(f"Word {number}." for number in range(120))
    send(chat, text)
    expect(chat.locator(".prose p").nth(19)).to_be_visible()
    asked: list[str] = []
    chat.on("request", lambda each: asked.append(each.url) if re.search("/stream|/messages", each.url) else None)
    shown = chat.evaluate("""() => {
        const chat = document.querySelector('legato-chat');
        const place = document.createElement('div');
        place.style.cssText = 'position: fixed; inset: 0 0 auto; height: 300px';
        document.body.append(place);
        place.append(chat);
        const scroll = chat.shadowRoot.querySelector('#scroll');
        return [chat.shadowRoot.querySelectorAll('.prose p').length > 9, scroll.scrollTop > 100];
    }""")
    assert shown == [True, True]
    expect(chat.locator(".prose p")).to_have_count(120)
    wait_for_end(chat)
    assert asked == []
    expect(chat.locator(".prose p").last).to_be_in_viewport()


def test_all_words_can_be_replaced(chat: Page) -> None:
    """For all elements by ``setStrings``, for one by its property; what is on the page already changes, too."""
    send(chat, "Tea")
    wait_for_end(chat)
    chat.evaluate("""async () => {
        const { setStrings } = await import(new URL('web/define.js', document.baseURI));
        setStrings({copyAnswer: 'Antwort kopieren', send: 'Senden', regenerate: 'Neu antworten'});
        document.querySelector('legato-chat').strings = {placeholder: 'Schreib etwas', send: 'Ab die Post'};
    }""")

    expect(chat.get_by_role("button", name="Antwort kopieren")).to_be_visible()
    expect(chat.get_by_role("button", name="Neu antworten")).to_be_visible()
    expect(chat.locator("#send")).to_have_attribute("aria-label", "Ab die Post")
    expect(chat.locator("#message")).to_have_attribute("placeholder", "Schreib etwas")
    expect(chat.locator(".prose")).to_have_text("Tea")


def test_looks_can_be_changed(chat: Page) -> None:
    """By custom properties, by parts, and to one theme whatever the page has."""
    chat.evaluate("""() => {
        const sheet = new CSSStyleSheet();
        sheet.replaceSync(`legato-chat { --legato-tint: rgb(1, 2, 3) }
                           legato-chat::part(question) { color: rgb(4, 5, 6) }`);
        document.adoptedStyleSheets = [sheet];
        document.querySelector('legato-chat').setAttribute('theme', 'dark');
    }""")
    send(chat, "Tea")

    expect(chat.locator(".question")).to_have_css("background-color", "rgb(1, 2, 3)")
    expect(chat.locator(".question")).to_have_css("color", "rgb(4, 5, 6)")
    expect(chat.locator("legato-chat")).to_have_css("background-color", "rgb(24, 24, 27)")


def test_a_long_history_comes_as_it_is_needed(chat: Page, echo: Server) -> None:
    """The newest turns are shown first, at the end; those before them when the reader goes up."""
    mine = begin(echo, *(f"Message {number}" for number in range(70)))
    chat.goto(f"/?session={mine}")
    wait_for_end(chat)
    expect(chat.locator(".turn")).to_have_count(30)
    expect(chat.locator(".question").last).to_be_in_viewport()

    chat.locator("#scroll").hover()
    for _ in range(400):
        chat.mouse.wheel(0, -3000)
        if chat.locator(".turn").count() == 70:
            break
        chat.wait_for_timeout(50)

    expect(chat.locator(".question")).to_have_text([f"Message {number}" for number in range(70)])
    expect(chat.locator("#earlier")).to_be_hidden()


# For everybody --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark", "forced"])
def test_axe_finds_nothing(browser: Browser, server: Server, shoot: Callable[[Page, str], None], scheme: str) -> None:
    """axe-core has no complaint about the page: empty, with all kinds of parts, running, with an error, and narrow."""
    axe = (package(AXE) / "node_modules" / "axe-core" / "axe.min.js").read_text()

    def check(page: Page, what: str) -> None:
        found = page.evaluate("() => axe.run({resultTypes: ['violations']})")["violations"]
        assert [(what, each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []

    colours: Any = {"forced_colors": "active"} if scheme == "forced" else {"color_scheme": scheme}
    with browser.new_context(base_url=server.url, bypass_csp=True, **colours) as context:
        page = context.new_page()
        page.goto("/")
        page.add_script_tag(content=axe)
        rest(page)
        check(page, "empty")
        send(page, "/tools")
        wait_for_end(page)
        for summary in page.locator("summary").all():
            summary.click()
        check(page, "tools")
        send(page, "/fail")
        wait_for_end(page)
        check(page, "error")
        send(page, "How is tea made?")
        wait_for_end(page)
        send(page, "/permission")
        expect(page.get_by_role("button", name="Allow")).to_be_visible()
        check(page, "permission")
        page.set_viewport_size({"width": 320, "height": 640})
        page.locator("#menu").click()
        expect(page.get_by_role("button", name="New chat")).to_be_visible()
        rest(page)
        check(page, "narrow")
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 320, "height": 200})  # 1280 by 800, four times as large
        assert (
            page.locator("#scroll").evaluate("each => each.clientHeight") > 60
        )  # and what is said is still to be seen
        check(page, "four times as large")
        page.evaluate("document.documentElement.dir = 'rtl'")
        check(page, "right to left")
        page.get_by_role("button", name="Deny").click()
        wait_for_end(page)


def test_by_keyboard_alone(browser: Browser, server: Server) -> None:
    """Send, stop, allow, open details, copy, regenerate and delete a chat, without a pointer."""
    with watching(browser, server) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#message")).to_be_focused()

        def tab_to(name: str, back: bool = False) -> None:
            for _ in range(60):
                here = """() => {
                    let at = document.activeElement;
                    while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
                    return at.getAttribute('aria-label') ?? at.textContent.trim();
                }"""
                if page.evaluate(here) == name:
                    return
                page.keyboard.press("Shift+Tab" if back else "Tab")
            raise AssertionError(f"Not reached by Tab: {name}")

        page.keyboard.type("/long 2000")
        page.keyboard.press("Enter")
        wait_for_words(page, 5)
        tab_to("Stop")
        page.keyboard.press("Enter")
        expect(page.locator(".turn").last).to_contain_text("Stopped.")
        expect(page.locator("#message")).to_be_focused()
        page.keyboard.type("/permission")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Allow")).to_be_visible()
        tab_to("Allow", back=True)
        page.keyboard.press("Space")
        wait_for_end(page)
        expect(page.locator("#message")).to_be_focused()
        tab_to("Tool PretendToWrite done", back=True)
        page.keyboard.press("Enter")
        expect(page.locator("details.tool")).to_have_attribute("open", "")
        tab_to("Regenerate")
        page.keyboard.press("Enter")
        tab_to("Replace", back=True)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Deny")).to_be_visible()
        tab_to("Deny", back=True)
        page.keyboard.press("Enter")
        wait_for_end(page)
        assert "Permission was denied" in said(page)
        tab_to("Conversation", back=True)
        page.keyboard.press("Home")
        tab_to("Delete /long 2000", back=True)
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator(".turn")).to_have_count(0)


def test_right_to_left(chat: Page, shoot: Callable[[Page, str], None]) -> None:
    """In a page that is written from right to left the layout is mirrored; each text has its own direction."""
    chat.evaluate("document.documentElement.dir = 'rtl'")
    text = "الشاي `a.b(-1)` يحتاج إلى ماء ساخن.\n\nThis is English.\n\n```py\nx = 1\n```"
    chat.locator("#message").fill(text)
    chat.locator("#message").press("Enter")
    wait_for_end(chat)
    shoot(chat, "rtl")

    question, column = chat.locator(".question").bounding_box(), chat.locator("#content").bounding_box()
    assert question is not None
    assert column is not None
    assert question["x"] - column["x"] < 40  # the visitor's words stand at the end of the line: on the left
    sides = chat.locator(".question").evaluate("""each => ['rtl', 'ltr'].map(way => {
        document.documentElement.dir = way;
        const [box, column] = [each, each.closest('#content')].map(one => one.getBoundingClientRect());
        return column.right - box.right > box.left - column.left;
    })""")
    assert [True, False] == sides  # by the page, and not by what they are written in
    chat.evaluate("document.documentElement.dir = 'rtl'")
    edges = chat.locator(".prose p").evaluate_all("""all => all.map(each => {
        const range = document.createRange();
        range.selectNodeContents(each);
        const [text, box] = [range.getBoundingClientRect(), each.getBoundingClientRect()];
        return [text.left - box.left < 2, box.right - text.right < 2];
    })""")
    assert [[False, True], [True, False]] == edges
    expect(chat.locator(".prose pre")).to_have_css("direction", "ltr")
    places = chat.locator(".prose p code").evaluate("""code => [0, 2, 4, 5].map(at => {
        const range = document.createRange();
        range.setStart(code.firstChild, at), range.setEnd(code.firstChild, at + 1);
        return range.getBoundingClientRect().left;
    })""")
    assert places == sorted(places)  # as code is read, whatever is written around it
    chat.set_viewport_size({"width": 320, "height": 640})
    assert 320 == chat.evaluate("document.documentElement.scrollWidth")


def test_no_motion_for_those_who_want_none(browser: Browser, server: Server) -> None:
    """Dots and carets stand still."""
    with browser.new_context(base_url=server.url, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto("/")
        send(page, "/long 300")
        wait_for_words(page, 5)
        moving = "() => document.querySelector('legato-chat').shadowRoot.getAnimations().length"
        assert 0 == page.evaluate(moving)
        page.locator("#stop").click()
        wait_for_end(page)
