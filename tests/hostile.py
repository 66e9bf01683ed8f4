"""Texts that cost more than their length says, to whoever reads Markdown or colours code without care.

Each is made for a size, so that what it costs can be compared with what one of half the size costs.
"""

from __future__ import annotations

from collections.abc import Callable


def filled(piece: str, before: str = "", after: str = "") -> Callable[[int], str]:
    """A text of about so many characters: ``piece`` again and again."""
    return lambda size: before + piece * (size // len(piece)) + after


def _growing_runs(sign: str) -> Callable[[int], str]:
    return lambda size: "".join("a" + sign * length for length in range(1, int((2 * size) ** 0.5)))


def _deeper(piece: str) -> Callable[[int], str]:
    return lambda size: "\n".join(piece * depth + "a" for depth in range(1, int((2 * size / len(piece)) ** 0.5)))


def _wide_table(size: int) -> str:
    columns = int((size / 4) ** 0.5)
    return "|a" * columns + "|\n" + "|-" * columns + "|\n" + "|\n" * (size // 4)


def _definitions(size: int) -> str:
    return "".join(f"[a{each}]: https://a.test/{each}\n" for each in range(size // 30)) + "\n" + "[a1] " * (size // 10)


PROSE: dict[str, Callable[[int], str]] = {
    "brackets": filled("["),
    "brackets that close": lambda size: "[" * (size // 3) + "]x" * (size // 3),
    "brackets, closed": filled("]"),
    "brackets in pairs": filled("[]"),
    "brackets around brackets": lambda size: "[" * (size // 2) + "]" * (size // 2),
    "links in links": filled("[a]("),
    "links without an end": filled("[a](<b"),
    "links with titles": filled('[a](b "'),
    "links, closed again": lambda size: "[a](" * (size // 5) + ")" * (size // 5),
    "addresses in parentheses": filled("(", "[a](", ")"),
    "references": filled("[a][b]"),
    "references without an end": filled("[a]["),
    "definitions": _definitions,
    "definitions without an end": filled("[a]: <b\n"),
    "definitions over lines": filled("[a\n"),
    "images": filled("!["),
    "images in images": filled("![a]("),
    "images of links": filled("[![a](b)"),
    "backticks, growing": _growing_runs("`"),
    "backticks, growing, at the end": lambda size: _growing_runs("`")(size) + " `",
    "backticks": filled("`"),
    "backticks, alone": filled("` a "),
    "backticks in pairs": filled("``a` "),
    "backticks, escaped": filled("\\`"),
    "stars": filled("*"),
    "stars before a word": filled("*", after="x"),
    "stars that open": filled("*a "),
    "stars that close": filled("a* "),
    "stars that do both": filled("a*a"),
    "stars, growing": _growing_runs("*"),
    "bold that opens": filled("**a "),
    "bold in emphasis": filled("*a **b "),
    "bold and emphasis": filled("***a*"),
    "underlines": filled("_a "),
    "underlines and stars": filled("_a*b "),
    "deletions": filled("~~a "),
    "deletions and more": filled("~~a *b **c "),
    "quotes in quotes": filled(">"),
    "quotes in quotes, spaced": filled("> "),
    "quotes, deeper": _deeper("> "),
    "quotes of lists": filled("> - "),
    "lists in lists": filled("- "),
    "lists, deeper": _deeper("  - "),
    "lists of numbers": filled("1. "),
    "lists, long": filled("- a\n"),
    "lists of quotes of lists": filled("- > 1. "),
    "lists with blank lines": filled("- a\n\n"),
    "tables, long": filled("|x|y|z|\n", "|a|b|c|\n|-|-|-|\n"),
    "tables, wide": filled("|a", after="\n"),
    "tables, wide and short": _wide_table,
    "tables, begun": filled("|\n"),
    "tables, escaped": filled("\\|", "|a|\n|-|\n|"),
    "rules of tables": filled("|-", "|a|\n"),
    "tags, open": filled("<a "),
    "tags, closed": filled("</a>"),
    "tags that begin": filled("<"),
    "tags with attributes": filled(" a=''", "<a", ">"),
    "comments": filled("<!--"),
    "comments in a line": filled("a <!-- "),
    "instructions": filled("<?"),
    "declarations": filled("<!A "),
    "data": filled("<![CDATA["),
    "blocks of HTML": filled("<div>\n"),
    "entities": filled("&amp;"),
    "entities that begin": filled("&"),
    "entities, long": filled("a", "&"),
    "entities of numbers": filled("&#1;"),
    "addresses in brackets": filled("<http://"),
    "addresses": filled("http://a.test/ "),
    "addresses in a row": filled("http://"),
    "addresses, long": filled("/a", "http://a.test"),
    "addresses with parentheses": filled("(", "http://a.test/"),
    "addresses of mail": filled("a@a."),
    "names with dots": filled("a."),
    "names with dashes": filled("-a", "http://a"),
    "colons": filled(":"),
    "slashes": filled("//"),
    "backslashes": filled("\\"),
    "headings": filled("#"),
    "headings, many": filled("# a\n"),
    "headings, spaced": filled(" ", "# a", "#a"),
    "headings that are underlined": filled("a\n=\n"),
    "underlinings": filled("=", "a\n", "x"),
    "rules": filled("- - "),
    "rules, broken": filled("* ", after="a"),
    "fences": filled("```\n"),
    "fences in one another": _deeper("`"),
    "fences without an end": filled("a\n", "```\n"),
    "fences, long": lambda size: "`" * (size // 2) + "\na\n" + "`" * (size // 2 - 1),
    "fences of tildes": filled("~", after="`"),
    "fences with words": filled("a ", "```"),
    "spaces": filled(" "),
    "spaces before a word": filled(" ", after="x"),
    "spaces after a word": filled(" ", "x"),
    "spaces and signs": filled(" >", after="x"),
    "tabs": filled("\t", after="x"),
    "lines": filled("\n"),
    "lines, returned": filled("\r\n\r"),
    "lines with spaces": filled("a  \n"),
    "zeros": filled("\0"),
    "one word": filled("a"),
    "one word of many letters": filled("\u0301", "e"),
    "right to left": filled("\u202e"),
    "smiles": filled("\U0001f600"),
    "carets": filled("\u2e2e"),
    "everything": filled("*a [b](c `d` <e> &f; ~~g\n> - h\n"),
}
"""By name. Some are cheap with today's parser, and may not be with tomorrow's."""

LANGUAGES = [
    *("python", "pycon", "javascript", "typescript", "html", "css", "scss", "xml", "json", "yaml", "toml", "ini"),
    *("bash", "console", "make", "docker", "sql", "c", "cpp", "java", "kotlin", "scala", "rust", "go", "ruby", "perl"),
    *("php", "swift", "haskell", "ocaml", "erlang", "elixir", "clojure", "lua", "r", "julia", "matlab", "latex"),
    *("markdown", "rst", "diff", "nginx", "apache", "powershell", "vim", "groovy", "graphql", "protobuf", "awk"),
]

CODE: dict[str, Callable[[int], str]] = {
    "one word": filled("a"),
    "spaces": filled(" ", after="x"),
    "quotes": filled('"\\'),
    "brackets": filled("({[<"),
    "words": filled("x "),
    "signs": filled("$:=-"),
}
"""Of a code block, by name."""


def code(language: str, kind: str, size: int) -> str:
    """A code block in a language."""
    return f"```{language}\n{CODE[kind](size)}\n```"
