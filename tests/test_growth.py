"""Long lists, tables and code that grow: made in pieces, and the same as if they were made as a whole."""

from __future__ import annotations

import re
from typing import Any

import pytest

from legato.server import colours, markdown
from legato.server.growth import SMALL, taken_apart

ITEM = "item {n}, of which there is **more** to `say` than [one](https://x.test/{n}) would think"
LONG = {
    "tight": [f"- {ITEM}\n"] * 150,
    "apart": [f"- {ITEM}\n\n"] * 150,
    "numbers": ["{n}. " + ITEM + "\n     - more of {n}\n     - and more\n"] * 90,
    "numbers apart": ["{n}) " + ITEM + "\n\n     in two paragraphs\n\n"] * 90,
    "tasks": [f"- [x] {ITEM}\n"] * 120,
    "code": ["* item {n}\n  ```python\n  x = {n}\n\n  y = 2\n  ```\n"] * 150,
    "formulas": ["+ $x^{n}$ and \\(y_{n}\\) of " + ITEM + "\n"] * 90,
    "table": ["| a | b | c |\n", "|:--|:-:|--:|\n", *["| " + ITEM + " | **b{n}** | `c{n}` |\n"] * 120],
    "bare table": ["a | b\n", "--|--\n", *["cell {n} of " + ITEM + " | b\n"] * 120, "last\n", "\n", "End.\n"],
}
"""Made in pieces."""
OTHERS = {
    "some apart": [*[f"- {ITEM}\n"] * 60, "\n", *[f"- {ITEM}\n"] * 60],
    "lazy": [f"- {ITEM}\n", "and what is not moved in\n"] * 60,
    "a rule": [*[f"- {ITEM}\n"] * 40, "- - -\n", *[f"- {ITEM}\n"] * 60],
    "two lists": [*[f"- {ITEM}\n"] * 70, *[f"* {ITEM}\n"] * 70],
    "text behind": [*[f"- {ITEM}\n"] * 40, "\n", "Text.\n", "\n", *[f"- {ITEM}\n"] * 40],
    "fence": [*[f"- {ITEM}\n"] * 20, "```\n", *["- no item\n"] * 300, "```\n"],
    "nested too little": ["{n}. " + ITEM + "\n   - more of {n}\n"] * 90,
    "addresses": [
        *["- [item {n}][a] is far away, and a lot of words come with it\n"] * 90,
        "\n",
        "[a]: https://a.test\n",
    ],
    "table, then text": ["| a | b |\n", "|---|---|\n", *["| " + ITEM + " | b |\n"] * 60, "\n", *[f"- {ITEM}\n"] * 20],
    "no table": ["| a | b |\n", "|---|\n", *["| " + ITEM + " | b |\n"] * 60],
    "lines of blanks": [f"- {ITEM}\n", "   \n", "  more\n"] * 60,
}


def text_of(lines: list[str]) -> str:
    return "".join(line.replace("{n}", str(number)) for number, line in enumerate(lines, 1))


@pytest.mark.parametrize("kind", [*LONG, *OTHERS])
def test_in_pieces_it_is_the_same(kind: str) -> None:
    """Wherever it is cut."""
    text = text_of({**LONG, **OTHERS}[kind])
    apart = 0
    for end in [*range(SMALL, len(text), 211), len(text)]:
        apart += taken_apart(text[:end]) is not None
        assert markdown.render_growing(text[:end]) == markdown._growing(text[:end], True), end
    assert apart or kind in OTHERS


@pytest.mark.parametrize("kind", LONG)
def test_it_costs_what_is_added(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text that is looked at again and again, far less is read than all of it each time."""
    read = 0

    def count(parser: Any) -> None:
        parse = parser.parse

        def counting(text: str, environment: Any = None) -> Any:
            nonlocal read
            read += len(text)
            return parse(text, environment)

        monkeypatch.setattr(parser, "parse", counting)

    count(markdown._PARSER)
    count(markdown._BLOCKS_ALONE)
    markdown._piece.cache_clear()
    text = text_of(LONG[kind])
    looks = [text[:end] for end in range(SMALL, len(text), 200)]
    for look in looks:
        markdown.render_growing(look)
    pieces, read = read, 0
    for look in looks:
        markdown._growing(look, True)

    assert pieces * 4 < read


# Code -----------------------------------------------------------------------------------------------------------------

FENCES = [
    "```python\ndef f():\n    return '`` x'\n\n``\n  ````\nend\n",
    "~~~~ c++ and more\n~~~\n  int x;\n\n   ~~~~~  \n\nText.\n",
    "```\n    ```\n\t```\n ``` x\n> ``\n\n```\n- a\n",
    "`````no-such-language\n````\n`\n \n\n & <b> \u2e2e \u00a0 \0 é\n",
    "``` `x`\ntext\n```\n",
    " ```js\n let x;\n",
    "```js\r\nlet x = `\r\n\r\n`;\r``\r\n",
    '```"onclick="x\nx\n',
]


def without_colours(rendered: markdown.Rendered) -> list[tuple[int, str]]:
    """Blanks at the end of unfinished code are not seen, and the parser loses some."""
    shown = [(block.line, re.sub("</?span[^>]*>", "", block.html)) for block in rendered.blocks]
    return [(line, re.sub(r"\s*</code>", "</code>", html)) for line, html in shown]


@pytest.mark.parametrize("text", FENCES)
def test_code_alone_is_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a parser, wherever it is cut."""
    monkeypatch.setattr(markdown, "SMALL", 0)
    for end in range(len(text) + 1):
        whole = markdown._growing(text[:end].replace("\r\n", "\n").replace("\r", "\n"), True)
        assert without_colours(markdown.render_growing(text[:end])) == without_colours(whole), end


CODE = {
    "python": 'def f{n}(x):\n    """Words.\n\n    More.\n    """\n    return x + {n}  # why\n\n\n',
    "js": "class A{n} {\n  #x = `a ${{n}}`;\n\n  /** Words. */\n  get x() {\n    return this.#x / 2;\n  }\n}\n",
    "json": '  "{n}": {\n    "a": [1, 2, {n}],\n    "b": "a longer text, and more of it"\n  },\n',
    "html": "<div class='{n}'>\n  <p>Words &amp; <b>words</b></p>\n</div>\n",
    "rust": "fn f{n}<'a>(x: &'a str) -> usize {\n    // words\n    x.len() + {n}\n}\n\n",
    "bash": 'if [ "$a" = {n} ]; then\n  echo "$b" | grep x > /dev/null # words\nfi\n',
    "text": "Words, and {n}\nmore of them.\n",
    "c": "",  # all of it one comment
}


@pytest.mark.parametrize("kind", CODE)
def test_code_costs_what_is_added(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is four times as long costs four times as much until it is so long, by letters read; and all of it that
    can be cut is marked as in the whole."""
    monkeypatch.setattr(colours, "PIECE", 250)
    read = 0
    original = colours._read

    def counting(code: str, language: str) -> Any:
        nonlocal read
        read += len(code)
        return original(code, language)

    monkeypatch.setattr(colours, "_read", counting)
    code = (CODE[kind] and text_of([CODE[kind]] * 150)) or "/* words\n" + "words\n" * 900
    costs = []
    for length in (1_200, 4_800):
        colours._piece.cache_clear()
        colours._cut.cache_clear()
        read = 0
        for end in range(50, length, 50):
            shown = colours.coloured_growing(code[:end], kind)
        costs.append(read)

    assert costs[1] < 6 * costs[0]
    if CODE[kind]:
        assert "".join(shown) == colours.coloured(code[:end], kind)
