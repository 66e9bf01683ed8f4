"""Markdown as HTML: what an answer looks like, what it cannot do, and how it looks while it grows."""

from __future__ import annotations

import itertools
import re
import time
from html.parser import HTMLParser

import pytest
from pygments.lexers import get_all_lexers
from starlette.testclient import TestClient

from legato import Legato, Turn
from legato.server import colours, formulas, press
from legato.server.markdown import render, render_growing


def html(text: str) -> str:
    return "\n".join(block.html for block in render(text).blocks)


FRESH = '<span class="fresh"></span>'


def growing(text: str) -> str:
    return "\n".join(block.html for block in render_growing(text).blocks)


async def agent(turn: Turn) -> str:
    return turn.message.text


# What it looks like ---------------------------------------------------------------------------------------------------


def test_blocks_and_where_they_begin() -> None:
    """Each top-level block comes by itself, with the line on which it begins."""
    rendered = render("# Tea\n\nWater, *hot*.\n\n- one\n- two\n\n```\nboil\n```\n\n| a |\n|---|\n| b |")

    assert [0, 2, 4, 7, 11] == [block.line for block in rendered.blocks]
    assert ["<h2>", "<p>", "<ul>", "<pre>", "<table>"] == [
        block.html[: block.html.index(">") + 1] for block in rendered.blocks
    ]
    assert "<em>hot</em>" in rendered.blocks[1].html


def test_code_is_coloured_by_classes() -> None:
    """Known languages have their words marked; the text itself is unchanged, and so is that of unknown ones."""
    code = "def tea(water):\n    return 'hot & sweet'\n"
    known, unknown = html(f"```python\n{code}```"), html(f"```tealang\n{code}```")

    assert '<span class="k">def</span>' in known
    assert 'data-language="tealang"' in unknown
    for each in (known, unknown):
        assert code == text_of(each)
    assert "style=" not in known


def test_links_lead_out_and_images_are_links() -> None:
    """A link opens elsewhere, tells nobody where it came from, and is no address of this server."""
    safe = 'target="_blank" rel="noopener noreferrer"'

    assert f'<p><a href="https://tea.test/" {safe}>tea</a></p>' == html("[tea](https://tea.test/)")
    assert f'<p><a href="https://tea.test/x.png" {safe}>a cup</a></p>' == html("![a cup](https://tea.test/x.png)")
    assert f'<p><a href="https://tea.test/" {safe}>a cup</a></p>' == html("[![a cup](x.png)](https://tea.test/)")
    assert f'<p>See <a href="https://tea.test/" {safe}>https://tea.test/</a>.</p>' == html("See https://tea.test/.")
    assert f'<p><a href="tel:+1234" {safe}>Call us</a></p>' == html("[Call us](tel:+1234)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[notes](a%20note.md 'title').", "notes (a note.md)."),
        ("[**all** `of`](/docs)!", "<strong>all</strong> <code>of</code> (/docs)!"),
        ("![a plan](sandbox:/mnt/plan.png)", "a plan (sandbox:/mnt/plan.png)"),
        ("[![a cup](cup.png)](cups.md)", "a cup (cups.md)"),
        ("[tea](//tea.test/a)", "tea (//tea.test/a)"),
        ("[file][1]\n\n[1]: ftp://tea.test/a", "file (ftp://tea.test/a)"),
        ("[page](HTTPS.html) <ftp://tea.test> ![](cup.png)", "page (HTTPS.html) ftp://tea.test cup.png"),
        ("[below](#below), []() and [a dot](data:image/png;base64,AA)", "below,  and a dot"),
        (f"[long](/{'a' * 300})", f"long (/{'a' * 199}…)"),  # however often it is referred to
        ("[run](javascript:alert(1))", "[run](javascript:alert(1))"),
    ],
)
def test_what_leads_nowhere_says_where(text: str, shown: str) -> None:
    """An address that the page does not open is told behind its words; nothing looks like a link that is none."""
    assert f"<p>{shown}</p>" == html(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("|a|b|c|\n|:-:|--:|---|\n|1|2|3|", '<td align="center">1</td>\n<td align="right">2</td>\n<td>3</td>'),
        ("one<br>two<BR />three<br/>", "<p>one<br>\ntwo<br>\nthree<br>\n</p>"),
        ("`<br>`", "<p><code>&lt;br&gt;</code></p>"),
        ("- [ ] a\n- [X] b\n- [y] c", '<li><input disabled="" type="checkbox" checked=""> b</li>\n<li>[y] c</li>'),
        ("> [!WARNING]\n> Hot.", '<p class="markdown-alert-title">Warning</p>\n<p>Hot.</p>'),
        ("> [!TEA]\n> Hot.", "<p>[!TEA]\nHot.</p>"),
        ("See[^1] and [^b].", "<p>See<sup>[1]</sup> and [^b].</p>"),
        ("See[^b].\n\n[^b]: A *note*.", '<div class="footnote"><sup>[b]</sup> <p>A <em>note</em>.</p>\n</div>'),
        ("这是**“粗体”**文字。", "<strong>“粗体”</strong>"),
        ("これは**太字\uff08強調\uff09**です。", "<strong>太字\uff08強調\uff09</strong>"),
        ("**마크다운(Markdown)**은", "<strong>마크다운(Markdown)</strong>"),
        ("中文*\uff08斜体\uff09*文字~~\uff08删\uff09~~字", "<em>\uff08斜体\uff09</em>文字<s>\uff08删\uff09</s>"),
        ("a**(b)**c", "a**(b)**c"),
        ("一_二_三", "一_二_三"),
        (
            "看https://a.test/x_(y)。好\uff08https://b.test/z\uff09",
            '>https://a.test/x_(y)</a>。好\uff08<a href="https://b.test/z"',
        ),
    ],
)
def test_what_models_write_beyond_commonmark(text: str, shown: str) -> None:
    assert shown in html(text)


@pytest.mark.parametrize("text", ["$$x$$.", "\\[\nx\n\\],", "> \\[ x \\];", "\\begin{align}\nx\n\\end{align}."])
def test_the_sign_behind_a_formula_stays(text: str) -> None:
    assert text_of(html(text)).strip() == f"x{text[-1]}"


def tex_of(markup: str) -> list[str]:
    return [str(attributes.get("alttext")) for tag, attributes in parsed(markup).found if tag == "math"]


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        (r"so \(x_1 * y * z_1\) is", "x_1 * y * z_1"),
        (r"so \(\{x\}\) is", r"\{x\}"),
        (r"so $a_b$ and", "a_b"),
        (r"($a$), $a$-b", "a"),
        ("$$x$$", "x"),
        ("so $$x$$ inline", "x"),
        ("Text:\n\\[\na = b \\\\\n- c\n\\]\nmore", "a = b \\\\\n- c"),
        ("- item\n  $$\n  a\n  + b\n  $$", "a\n+ b"),
        ("> \\[ a\n> = b \\].", "a\n= b"),
        ("\\begin{align}\na &= b\n\\end{align}", "\\begin{align}\na &= b\n\\end{align}"),
        ("| a |\n|---|\n| $x$ |", "x"),
        ("**$x$**", "x"),
        (r"\[ f(x) = \begin{cases} 1 & x \\ 0 & \text{else} \end{cases} \]", None),
        (r"$$\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}$$", None),
        (r"$\mathbb{R}^n \to \mathcal{L}$", None),
        (r"$\begin{pmatrix} a & b \\ c & d \end{pmatrix}$", None),
    ],
)
def test_formulas(text: str, formula: str | None) -> None:
    """TeX of each kind of sign becomes MathML, with what it was made of as its text for those who cannot see it."""
    found = tex_of(html(text))

    assert found
    assert formula in (None, found[0])
    assert "\\" not in text_of(html(text))


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5, or $6; US$7 and US$8. 5$ and 6$. $ x $ $$ $",
        "$HOME/bin:$PATH, $A and $B",
        r"\\(x\\) and `\(x\)` and ``$$x$$``",
        r"\(\unknowncommand{x}\) \(\text{a<b}\) $a_b_c$ \(\left(\) $$\frac$$",
        "\\(" + "{" * 3_000 + "\\)",
        "\\(" + "x" * 6_000 + "\\)",
        "```\n$$\nx\n$$\n\\[ y \\]\n```",
    ],
)
def test_what_is_no_formula_stays_as_it_is(text: str) -> None:
    """Prices, variables, code; and what cannot be shown as a formula, or not whole, with all of its signs."""
    shown = html(text)

    assert tex_of(shown) == []
    letters = re.sub(r"```\n|`", "", text)
    assert re.sub(r"\s", "", text_of(shown)) == re.sub(r"\s|\\(?=\\)", "", letters) or text_of(shown) == letters


@pytest.mark.parametrize("kind", ["$", "$$ ", "\\( ", "\\[\n", "$$\n", "\\begin{align}\n", "[^1", "<br"])
def test_unclosed_formulas_take_time_in_proportion(kind: str) -> None:
    """Many that are not closed are looked through once each way, not once each."""
    searched = [0, 0]
    for at, times in enumerate((500, 2_000)):
        begun = time.process_time()
        render(kind * times)
        render_growing(kind * times)
        searched[at] = time.process_time() - begun
    assert searched[1] < 12 * searched[0] + 0.2


def test_code_never_moves_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each language that is known, cut in mid-line and read in pieces: what is shown is the code, and all of it."""
    monkeypatch.setattr(colours, "PIECE", 24)
    code = "def f(x):\n  <a href='b'>&amp; \"c\" // d\n#e /* f */ {g: 1}\n\n\tlet rn = 'x' $y\n"
    for name, aliases, _, _ in get_all_lexers():
        if not aliases or name == "Typographic Number Theory":  # whose lexer never ends: `Press` gives it up
            continue
        for end in (3, 24, 46, len(code) - 8, len(code)):
            shown = growing(f"```{aliases[0]}\n{code[:end]}")
            assert code[:end] == text_of(shown), name


# What it cannot do ----------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)><style>*{display:none}</style></svg>",
    "<a href='javascript:alert(1)' style='position:fixed'>x</a>",
    "<details open ontoggle=alert(1)>",
    r"\(\href{javascript:alert(1)}{x}\)",
    r"\(\text{<img src=x onerror=alert(1)>}\) $$\text{</math><script>alert(1)</script>}$$",
    r"$$\text{<mglyph><style><!--</style><img title=--><img src=x onerror=alert(1)>}$$",
    r"$\color{red\"onclick=alert(1)}x$ and $\class{x}{y}$ $\style{position:fixed}{y}$",
    "- [x] <input onfocus=alert(1) autofocus>\n\n[^1]: <br onclick=alert(1)> <br/onclick=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](<java\nscript:alert(1)>)",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:msgbox)",
    '[x](https://a.test/"onmouseover="alert(1))',
    '[x](https://a.test "\\"onmouseover=alert(1)")',
    "<javascript:alert(1)>",
    "![x](javascript:alert(1))",
    '!["><script>alert(1)</script>](https://a.test/"><script>alert(1)</script>)',
    '```"><script>alert(1)</script>\nx\n```',
    '```html" onclick="alert(1)\n<script>alert(1)</script>\n```',
    "```html\n<script>alert(1)</script>",
    "| <script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "[x]: javascript:alert(1)\n\n[x]",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "\x00<script\x00>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
]


class Tags(HTMLParser):
    """Collects what a browser would make elements of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(markup: str) -> Tags:
    tags = Tags()
    tags.feed(markup)
    tags.close()
    return tags


def text_of(markup: str) -> str:
    return parsed(markup).text


def check_harmless(markup: str) -> None:
    for tag, attributes in parsed(markup).found:
        assert not {"script", "style", "svg", "img", "iframe", "form", "mglyph", "annotation-xml"} & {tag}
        known = {"href", "title", "target", "rel", "start", "data-language", "class"} | formulas.ATTRIBUTES.get(
            tag, set()
        )
        assert attributes.keys() <= known | ({"type", "disabled", "checked"} if tag == "input" else set())
        assert re.match(r"https?:|mailto:", attributes.get("href") or "https:")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text: str) -> None:
    """Nothing that an answer says becomes a program, a style or a request; also not while it grows, at any length."""
    check_harmless(html(text))
    for length in range(1, len(text) + 1):
        check_harmless(growing(text[:length]))
        check_harmless(html(text[:length]))


# While it grows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Tea is **ho", "<p>Tea is <strong>ho</strong></p>"),
        ("Tea is **", "<p>Tea is</p>"),
        ("Tea is **hot*", "<p>Tea is <strong>hot</strong></p>"),
        ("Tea is *ho", "<p>Tea is <em>ho</em></p>"),
        ("Tea is **very *ho", "<p>Tea is <strong>very <em>ho</em></strong></p>"),
        ("Tea `wat", "<p>Tea <code>wat</code></p>"),
        ("Tea `", "<p>Tea</p>"),
        ("Tea [is", "<p>Tea is</p>"),
        ("Tea [is](https://te", "<p>Tea is</p>"),
        ("Tea ![cup](https://te", "<p>Tea</p>"),
        ("Tea [`is` $x$ not](https://te", f"<p>Tea <code>is</code> {html('$x$')[3:-4]} not</p>"),
        ("so $\\frac{a", "<p>so</p>"),
        ("US$5, $6 or $HOME.\n", "<p>US$5, $6 or $HOME.</p>"),
        ("a &am", "<p>a</p>"),
        ("Tea [is][1].\n\n[1]: https://te", "<p>Tea [is][1].</p>"),
        ("[1", ""),
        ("> [!NOTE]\n", ""),
        ("Tea\n\n> [!NOTE]\n> ", "<p>Tea</p>"),
        ("2 * 3", "<p>2 * 3</p>"),
        ("Tea\n-", "<p>Tea</p>"),
        ("Tea\n```", "<p>Tea</p>"),
        ("```py", ""),
        ("| a | b |", ""),
        ("#", ""),
        ("12", ""),
        (r"so \(x *", "<p>so</p>"),
        ("so \\", "<p>so</p>"),
        ("so $$x", "<p>so</p>"),
        ("so\n\\[\n- c\n\n", "<p>so\n[</p>\n<ul>\n<li>c</li>\n</ul>"),
        ("so\n\\[\n- c", "<p>so</p>"),
        ("so\n\\begin{ali", "<p>so</p>"),
        ("- [", ""),
        ("- [x]", ""),
        ("> [!NO", ""),
        ("See[^1", "<p>See</p>"),
        ("[^1", ""),
        ("- tea\n- ", "<ul>\n<li>tea</li>\n</ul>"),
        ("```\nb **\n```\ntext **bo", "<pre><code>b **\n</code></pre>\n<p>text <strong>bo</strong></p>"),
    ],
)
def test_unfinished_markers_are_not_seen(text: str, shown: str) -> None:
    """A marker is shown as what it will mean, or not yet."""
    assert shown == growing(text).replace(FRESH, "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Tea is ", "<p>Tea is |</p>"),
        ("Tea is **ho", "<p>Tea is <strong>ho|</strong></p>"),
        ("Tea is **hot**", "<p>Tea is <strong>hot</strong>|</p>"),
        ("Tea is **hot** ", "<p>Tea is <strong>hot</strong> |</p>"),
        ("Tea is _hot_", "<p>Tea is <em>hot</em>|</p>"),
        ("`wat", "<p><code>wat|</code></p>"),
        ("- tea", "<ul>\n<li>tea|</li>\n</ul>"),
        ("| a |\n|---|\n| b", None),
        ("```\nboi", "<pre><code>boi|</code></pre>"),
        ("```\nboil\n", "<pre><code>boil\n|</code></pre>"),
        ("> ```\n> boil", "<blockquote>\n<pre><code>boil|</code></pre></blockquote>"),
        ("> ```\n> boil\n", "<blockquote>\n<pre><code>boil\n</code></pre></blockquote>"),
        ("> ```\n> boil\n>", "<blockquote>\n<pre><code>boil\n</code></pre></blockquote>"),
        ("- ```\n  boil\n ", "<ul>\n<li>\n<pre><code>boil\n</code></pre></li>\n</ul>"),
        ("Tea\n", "<p>Tea</p>"),
        ("Tea [", "<p>Tea</p>"),
        ("```\nboil\n```", "<pre><code>boil\n</code></pre>"),
        ("```\nboil\n``", "<pre><code>boil\n</code></pre>"),
    ],
)
def test_where_text_goes_on(text: str, shown: str | None) -> None:
    """The place for more is inside what is open and after what is closed; there is none while that is undecided."""
    if shown is None:
        assert f"<td>b{FRESH}</td>" in growing(text)
    else:
        assert shown == growing(text).replace(FRESH, "|")


def test_a_caret_of_its_own_is_left_alone() -> None:
    """A text that has the very character that we put at its end keeps it."""
    assert "<p>Tea\u2e2e and</p>" == growing("Tea\u2e2e and")


GROWN = [
    *("so \\(a_1 * b\\) and $x_1 * y$", "# On `x` and $x^2$", "I paid $20 and $30 and \\$5", "a &lt; b &amp; AT&T"),
    *(
        "- [ ] one\n  - [x] two\n1. [ ] four",
        "> [!NOTE]\n> a\n\n> [!TIP]\n> b\n\n> [!TEA]\n> c",
        "a<br>b <sub>2</sub>, a <b",
    ),
    *(
        "See [the `x` of $y$](https://a.test/b_c)!",
        "See [a](https://a.test/(b)) and https://b.test.",
        "See [*my* notes](docs/a_b.md), ![x](y.png), <ftp://a.test> and [more](tel:12).",
        "One[^1].\n\n[^1]: A note.",
    ),
    *(
        "````md\n```py\nx\n```\n````\nb",
        "1. Do:\n   ```sh\n   ls\n   ```\n2. Then",
        "> ~~~\n> x `\n> ~~~\n> z",
        "a\n\n    b\n\nc",
    ),
    *(
        "| a | b |\n|:-:|--|\n| **c** d | `e` |\n| $f$ | ~~g~~ |\n\nh",
        "T\n===\n\ns\n---\n\nt",
        "a  \nb\\\nc",
        "- a\n\n- b\n- c",
    ),
    *(
        "这是**重点**\uff0c和*斜体*。「**引用**」です",
        "👩‍👩‍👧‍👦 **👍🏽** e\u0301",
        "שלום `code` 123 **מודגש**",
        "\\# no \\* C:\\path \\_",
    ),
]


@pytest.mark.parametrize("text", GROWN)
def test_letters_come_in_their_order(text: str) -> None:
    """Cut anywhere, letters are shown only where they will be in the end."""
    whole = [letter for letter in text_of(html(text)) if letter.isalnum()]
    for length in range(1, len(text) + 1):
        shown = [letter for letter in text_of(growing(text[:length])) if letter.isalnum()]
        assert shown == whole[: len(shown)], text[:length]


@pytest.mark.parametrize(
    "text",
    [
        "a `b",
        "# a `b\n",
        "> a **b",
        "- a [b",
        "| a | b |\n|---|---|\n| `c | d |\n",
        "a ~~~",
        "See $x",
        "| a | b |\n|---|---|\n| `c | d |",
        "*a\n\n> `b",
    ],
)
def test_what_has_ended_is_not_mended(text: str) -> None:
    """A block that has ended with an open marker is shown as it will stay: nothing is added that nobody said."""
    ended = text if text.endswith("\n") else f"{text}\n\n"

    assert html(ended) == growing(ended)


def test_grown_ends_as_whole() -> None:
    """Text that ended well is shown in the end as if it had come at once, and no block is ever taken back."""
    text = "# Tea\n\nIs **hot**, `wet`\n\n1. one\n2. two\n   - a\n\n```py\nx = 1\n```\n\n> *quoted*\n\n"
    text += "| a |\n|---|\n| b |\n\nDone."
    assert html(text) == growing(text).replace(FRESH, "")
    finished: list[str] = []
    for length in range(1, len(text) + 1):
        blocks = render_growing(text[:length]).blocks
        lines = text[:length].count("\n")
        now = [each.html for each, following in itertools.pairwise(blocks) if following.line < lines]
        assert finished == now[: len(finished)], text[:length]
        finished = now
    assert finished == [block.html for block in render(text).blocks][: len(finished)]


# The route ------------------------------------------------------------------------------------------------------------


def test_the_route() -> None:
    """Texts go in, blocks come out, in order; what is too much, or no such thing, is refused."""
    with TestClient(Legato("memory:", agents=[agent])) as client:
        answer = client.post("/web/markdown", json={"texts": ["*a*", "b"]})
        assert [
            {"blocks": [{"line": 0, "html": "<p><em>a</em></p>"}]},
            {"blocks": [{"line": 0, "html": "<p>b</p>"}]},
        ] == answer.json()["rendered"]
        assert client.post("/web/markdown", json={"texts": ["*a"], "growing": True}).json()["rendered"][0]["blocks"]
        assert 413 == client.post("/web/markdown", json={"texts": ["x" * (press.MAX_CHARACTERS + 1)]}).status_code
        assert 413 == client.post("/web/markdown", json={"texts": [""] * (press.MAX_TEXTS + 1)}).status_code
        assert 400 == client.post("/web/markdown", json={"texts": "a"}).status_code
        assert 403 == client.post("/web/markdown", json={"texts": []}, headers={"origin": "https://x.test"}).status_code
