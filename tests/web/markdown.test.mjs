// What the page makes of an answer's Markdown, and that it makes the same of it however the text was cut.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Markdown } from "../../src/legato/web/markdown.js";
import { fakeDocument } from "./document.mjs";

function render(pieces, { end = true } = {}) {
  const root = fakeDocument.createElement("div");
  const markdown = new Markdown(root);
  for (const piece of pieces) {
    markdown.push(piece);
    markdown.flush();
  }
  if (end) markdown.end();
  return root.html
    .replace(/ rel="noopener noreferrer nofollow"/g, "")
    .replace(/ target="_blank"/g, "")
    .replace(/ tabindex="0"/g, "");
}

const CASES = [
  ["paragraphs", "One\nline.\n\nTwo.", "<p>One line.</p><p>Two.</p>"],
  ["a hard break", "One  \ntwo\\\nthree", "<p>One<br></br>two<br></br>three</p>"],
  ["bold, emphasis, struck", "**b** *e* __b__ _e_ ~~s~~", "<p><strong>b</strong> <em>e</em> <strong>b</strong> <em>e</em> <del>s</del></p>"],
  ["bold at the line's start", "**b** and *e*", "<p><strong>b</strong> and <em>e</em></p>"],
  ["nested", "**b `c` *e***", "<p><strong>b <code>c</code> *e</strong>*</p>"],
  ["no emphasis in words or sums", "snake_case_word 2 * 3 * 4", "<p>snake_case_word 2 * 3 * 4</p>"],
  ["inline code", "`a` ``b ` c`` `**d**`", "<p><code>a</code> <code>b ` c</code> <code>**d**</code></p>"],
  ["escapes", "\\*a\\* \\`b\\` C:\\dir", "<p>*a* `b` C:\\dir</p>"],
  ["headings", "# One\n## Two\ntext", "<h3>One</h3><h4>Two</h4><p>text</p>"],
  ["no heading", "#tag and ####### seven", "<p>#tag and ####### seven</p>"],
  ["a rule", "a\n\n---\n\n***\nb", "<p>a</p><hr></hr><hr></hr><p>b</p>"],
  ["a list", "- a\n- b\n  more\n* c", "<ul><li>a</li><li>b more</li><li>c</li></ul>"],
  ["a numbered list", "3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'],
  ["a nested list", "- a\n  - b\n    1. c\n- d", "<ul><li>a<ul><li>b<ol><li>c</li></ol></li></ul></li><li>d</li></ul>"],
  ["a loose list", "- a\n\n- b\n\n  c\n\nd", "<ul><li>a</li><li>b<p>c</p></li></ul><p>d</p>"],
  ["a list after a paragraph", "a:\n- b", "<p>a:</p><ul><li>b</li></ul>"],
  ["a year is no list", "It was in\n1984. Then", "<p>It was in 1984. Then</p>"],
  ["a bold item", "- **a**: b\n* *c*", "<ul><li><strong>a</strong>: b</li><li><em>c</em></li></ul>"],
  ["a quote", "> a\n> b\n>\n> - c\n\nd", "<blockquote><p>a b</p><ul><li>c</li></ul></blockquote><p>d</p>"],
  ["a table", "a\n\n| x | y |\n| --- | :-: |\n| `1` | p\\|q |\n\nb", "<p>a</p><figure><table><tr><th>x</th><th>y</th></tr><tr><td><code>1</code></td><td>p|q</td></tr></table></figure><p>b</p>"],
  ["a line with bars in a paragraph", "a\n| b | c", "<p>a | b | c</p>"],
  ["a quote in a quote", "> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"],
  ["code", "```js\nlet a = `b`;\n\n  # c\n```\nd", '<figure data-language="js"><pre><code>let a = `b`;\n\n  # c</code></pre></figure><p>d</p>'],
  ["code without end", "```\n- a\n``", "<figure><pre><code>- a\n``</code></pre></figure>"],
  ["code with tildes", "~~~\n```\n~~~", "<figure><pre><code>```</code></pre></figure>"],
  ["code in an item", "- a\n  ```\n  b\n    c\n  ```\n- d", "<ul><li>a<figure><pre><code>b\n  c</code></pre></figure></li><li>d</li></ul>"],
  ["three ticks inline", "```a``` b", "<p><code>a</code> b</p>"],
  ["a link", "[a **b**](https://x.test/y) [c](d/e)", '<p><a href="https://x.test/y">a <strong>b</strong></a> <a href="http://page.test/d/e">c</a></p>'],
  ["an address", "See https://x.test/a?b=1.", '<p>See <a href="https://x.test/a?b=1">https://x.test/a?b=1</a>.</p>'],
  ["an address in signs", "<https://x.test/>", '<p><a href="https://x.test/">https://x.test/</a></p>'],
  ["no link of another scheme", "[a](javascript:alert(1)) [b](data:x)", "<p><span>a</span>) <span>b</span></p>"],
  ["no markup of its own", "<img src=x onerror=alert(1)> & <b>", "<p>&lt;img src=x onerror=alert(1)> &amp; &lt;b></p>"],
  ["no attribute break", '[a](https://x.test/"onclick="b)', '<p><a href="https://x.test/%22onclick=%22b">a</a></p>'],
  ["unclosed marks stay", "**a and `b and [c](d", "<p>**a and `b and [c](d</p>"],
  ["CR LF", "a\r\n\r\nb", "<p>a</p><p>b</p>"],
];

for (const [name, source, expected] of CASES) {
  test(`Markdown: ${name}.`, () => {
    assert.equal(render([source]), expected);
    assert.equal(render(Array.from(source)), expected, "one character at a time");
    for (let place = 1; place < source.length; place += 1) {
      assert.equal(render([source.slice(0, place), source.slice(place)]), expected, `cut at ${place}`);
    }
  });
}

test("What is on its way is shown without its marks.", () => {
  assert.equal(render(["a **bo"], { end: false }), "<p>a <strong>bo</strong></p>");
  assert.equal(render(["a `co"], { end: false }), "<p>a <code>co</code></p>");
  assert.equal(render(["a [te](http://x"], { end: false }), "<p>a <span>te</span></p>");
});

test("A long text is not built again with each piece.", () => {
  const root = fakeDocument.createElement("div");
  const markdown = new Markdown(root);
  let made = 0;
  const count = { ...fakeDocument };
  root.ownerDocument = count;
  count.createTextNode = (data) => ((made += data.length), fakeDocument.createTextNode(data));
  count.createElement = (name) => Object.assign(fakeDocument.createElement(name), { ownerDocument: count });
  const words = "word ".repeat(8);
  for (let step = 0; step < 5000; step += 1) {
    markdown.push(words);
    markdown.flush();
  }
  markdown.end();
  const size = words.length * 5000;
  assert.equal(root.html.length, size - 1 + "<p></p>".length);
  // Built again at most once per piece while it is shorter than the settling length: 4000 / 40 times.
  assert.ok(made < size * 101, `${made} characters built for ${size}`);
});
