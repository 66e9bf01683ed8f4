/**
 * A safe and small subset of Markdown, built as the text comes: paragraphs, headings, lists, block quotes, tables, code,
 * bold, emphasis, links. Elements are made by name and text by `textContent`, so no answer can bring its own markup.
 *
 * The kind of a line is decided by its first characters, which are held back until no further character can change the
 * decision. From then on its text only grows. So nothing is ever taken back, how the text was cut makes no difference,
 * and only one stretch of inline text is built again when more arrives.
 */

/** Inline text beyond this many characters is settled at a blank: the part that is built again stays short. */
const SETTLE = 4000;

/** A prefix that could still become something else. */
const UNDECIDED = /^\s*(?:#{1,6}\s*|[-*_](?:\s*[-*_])*\s*|\+\s*|\d{1,9}[.)]?\s*|`{1,2}|`{3,}[^`]*|~{1,2}|~{3,}.*|>|\|.*)?$/;

const FENCE = /^(\s*)(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^\s*(#{1,6})(?:\s+|$)/;
const RULE = /^\s*([-*_])(?:\s*\1){2,}\s*$/;
const ROW = /^\s*\|(.*)\|\s*$/;
const ITEM = /^(\s*)([-*+]|(\d{1,9})[.)])(?:\s+|$)/;

/** A container of blocks: an answer, a block quote. */
export class Markdown {
  /** @type {Element} */ #root;
  /** @type {Document} */ #document;
  #held = ""; // the line's beginning, while its kind is open
  #decided = false;
  /** @type {Inline | null} */ #inline = null;
  /** @type {{text: Text, mark: string, indent: number, lines: number} | null} */ #code = null;
  /** @type {Markdown | null} */ #quote = null;
  /** @type {{list: Element, item: Element, indent: number, kind: string}[]} */ #lists = [];
  /** @type {{element: Element, rows: number} | null} */ #table = null;
  #blank = false; // a blank line came before
  #heading = false; // its line's end is its own

  /** @param {Element} root */
  constructor(root) {
    this.#root = root;
    this.#document = root.ownerDocument;
  }

  /** Add text, cut anywhere. Call `flush()` to see it. @param {string} text */
  push(text) {
    let begin = 0;
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", begin)) {
      this.#text(text.slice(begin, end));
      this.#newline();
      begin = end + 1;
    }
    this.#text(text.slice(begin));
  }

  /** Show what has been pushed, except the few characters that are held back. */
  flush() {
    this.#inline?.render(false);
    this.#quote?.flush();
  }

  /** Nothing follows. */
  end() {
    if (!this.#decided && this.#held !== "") this.#decide(true);
    this.#quote?.end();
    this.#close();
    this.#held = "";
  }

  /** @param {string} text */
  #text(text) {
    if (text === "") return;
    if (this.#decided) return this.#sink(text);
    this.#held += text;
    const open = this.#code === null ? UNDECIDED : /^\s*(?:`*|~*)\s*$/;
    const most = /^\s*\|/.test(this.#held) ? SETTLE : 400; // a table's row is built when it is whole
    if (this.#held.length > most || !open.test(this.#held)) this.#decide(false);
  }

  #newline() {
    if (!this.#decided) this.#decide(true);
    if (this.#quote !== null) this.#quote.#newline();
    else if (this.#heading) this.#closeInline();
    else this.#inline?.text("\n");
    this.#held = "";
    this.#decided = false;
  }

  /** Text of a line whose kind is known. @param {string} text */
  #sink(text) {
    if (this.#code !== null) this.#code.text.appendData(text);
    else if (this.#quote !== null) this.#quote.#text(text);
    else this.#inline?.text(text);
  }

  /** @param {boolean} whole the line is over */
  #decide(whole) {
    this.#decided = true;
    const line = this.#held;
    if (this.#code !== null) return this.#codeLine(line, whole);
    if (line.trim() === "") return this.#blankLine();
    const quote = /^\s{0,3}> ?/.exec(line);
    if (quote !== null) return this.#quoteLine(line.slice(quote[0].length));
    this.#leaveQuote();
    const row = whole ? ROW.exec(line) : null;
    if (row !== null && (this.#table !== null || this.#inline === null)) return this.#row(row[1]);
    this.#table = null;
    const indent = /^\s*/.exec(line)?.[0].length ?? 0;
    let match = whole ? FENCE.exec(line) : null;
    if (match !== null) return this.#openCode(match[2], match[3], indent);
    if (whole && RULE.test(line)) {
      this.#close();
      this.#root.append(this.#make("hr"));
    } else if ((match = HEADING.exec(line)) !== null) {
      this.#close();
      const level = Math.min(match[1].length + 2, 6); // the page's own headings come first
      this.#open(this.#root, `h${level}`, line.slice(match[0].length));
      this.#heading = true;
    } else if ((match = ITEM.exec(line)) !== null && this.#begins(match, line)) {
      this.#item(indent, match[3], line.slice(match[0].length));
    } else {
      this.#paragraph(indent, line.trimStart());
    }
    this.#blank = false;
  }

  /** Whether it is a list item: a line of a paragraph may begin with a year and a full stop. */
  #begins(match, line) {
    if (this.#inline === null || this.#lists.length > 0) return true;
    return (match[3] ?? "1") === "1" && match[0].length < line.length;
  }

  #blankLine() {
    this.#leaveQuote();
    this.#table = null;
    this.#closeInline();
    this.#blank = true;
  }

  #leaveQuote() {
    this.#quote?.end();
    this.#quote = null;
  }

  /** @param {string} rest */
  #quoteLine(rest) {
    if (this.#quote === null) {
      this.#close();
      const element = this.#make("blockquote");
      this.#root.append(element);
      this.#quote = new Markdown(element);
    }
    this.#blank = false;
    this.#quote.#text(rest);
  }

  /** A row of a table, the first being its head. @param {string} cells */
  #row(cells) {
    if (this.#table === null) {
      this.#closeInline();
      const figure = this.#make("figure");
      figure.setAttribute("tabindex", "0"); // as a wide block of code
      const element = this.#make("table");
      figure.append(element);
      this.#home().append(figure);
      this.#table = { element, rows: 0 };
    }
    const table = this.#table;
    table.rows += 1;
    this.#blank = false;
    if (table.rows === 2 && /^[\s|:-]+$/.test(cells)) return;
    const row = this.#make("tr");
    for (const text of cells.split(/(?<!\\)\|/)) {
      const cell = this.#make(table.rows === 1 ? "th" : "td");
      const inline = new Inline(cell);
      inline.text(text.trim().replaceAll("\\|", "|"));
      inline.render(true);
      row.append(cell);
    }
    table.element.append(row);
  }

  /** @param {string} mark @param {string} language @param {number} indent */
  #openCode(mark, language, indent) {
    this.#closeInline();
    if (indent < 2) this.#lists = [];
    const figure = this.#make("figure");
    const pre = this.#make("pre");
    const code = this.#make("code");
    const text = this.#document.createTextNode("");
    if (language) figure.setAttribute("data-language", language);
    pre.setAttribute("tabindex", "0"); // a wide block scrolls, and the keyboard must be able to
    code.append(text);
    pre.append(code);
    figure.append(pre);
    this.#home().append(figure);
    this.#code = { text, mark, indent, lines: 0 };
    this.#blank = false;
  }

  /** @param {string} line @param {boolean} whole */
  #codeLine(line, whole) {
    const code = /** @type {NonNullable<typeof this.#code>} */ (this.#code);
    const close = line.trim();
    if (whole && close.length >= code.mark.length && close === code.mark[0].repeat(close.length)) {
      this.#code = null;
    } else {
      const indent = Math.min(line.length - line.trimStart().length, code.indent);
      code.text.appendData((code.lines > 0 ? "\n" : "") + line.slice(indent));
      code.lines += 1;
    }
  }

  /** @param {number} indent @param {string | undefined} number @param {string} text */
  #item(indent, number, text) {
    this.#closeInline();
    const kind = number === undefined ? "ul" : "ol";
    while (this.#lists.length > 0 && this.#lists[this.#lists.length - 1].indent > indent + 1) this.#lists.pop();
    let top = this.#lists[this.#lists.length - 1];
    const nested = top !== undefined && indent > top.indent + 1;
    if (top !== undefined && !nested && top.kind !== kind) {
      this.#lists.pop();
      top = undefined;
    }
    const item = this.#make("li");
    if (top === undefined || nested) {
      const list = this.#make(kind);
      if (number !== undefined && Number(number) !== 1) list.setAttribute("start", String(Number(number)));
      this.#home().append(list);
      list.append(item);
      this.#lists.push({ list, item, indent, kind });
    } else {
      top.list.append(item);
      top.item = item;
      top.indent = Math.min(top.indent, indent);
    }
    this.#inline = new Inline(item);
    this.#inline.text(text);
  }

  /** @param {number} indent @param {string} text */
  #paragraph(indent, text) {
    if (this.#inline !== null) return this.#inline.text(text);
    if (this.#blank && indent < 2) this.#lists = [];
    this.#open(this.#home(), "p", text);
  }

  /** Where a block goes: the list item that is open, or the container itself. */
  #home() {
    return this.#lists.length > 0 ? this.#lists[this.#lists.length - 1].item : this.#root;
  }

  /** @param {Element} parent @param {string} name @param {string} text */
  #open(parent, name, text) {
    this.#closeInline();
    const element = this.#make(name);
    parent.append(element);
    this.#inline = new Inline(element);
    this.#inline.text(text);
  }

  #closeInline() {
    this.#inline?.render(true);
    this.#inline = null;
    this.#heading = false;
  }

  #close() {
    this.#closeInline();
    this.#table = null;
    this.#lists = [];
    this.#code = null;
  }

  /** @param {string} name */
  #make(name) {
    return this.#document.createElement(name);
  }
}

/** A stretch of inline text in an element, of which only the last, unsettled part is built again. */
class Inline {
  #source = "";
  /** @type {Node[]} */ #open = [];

  /** @param {Element} element */
  constructor(element) {
    this.element = element;
  }

  /** @param {string} text */
  text(text) {
    this.#source += text;
    while (this.#source.length > SETTLE) {
      const blank = this.#source.lastIndexOf(" ", SETTLE);
      const cut = blank > SETTLE / 2 ? blank : SETTLE;
      this.#build(this.#source.slice(0, cut), true);
      this.#open = [];
      this.#source = this.#source.slice(cut);
    }
  }

  /** @param {boolean} final */
  render(final) {
    this.#build(final ? this.#source.trimEnd() : this.#source, final);
  }

  /** @param {string} source @param {boolean} final */
  #build(source, final) {
    for (const node of this.#open) node.remove();
    this.#open = new Builder(this.element.ownerDocument, !final, 0).build(source);
    this.element.append(...this.#open);
  }
}

const SPECIAL = /[\\`*_[!~<h\n]| {2,}\n/g;
const ADDRESS = String.raw`https?:\/\/[^\s<>()[\]` + "`" + String.raw`"'*]*[^\s<>()[\]` + "`" + String.raw`"'*.,;:!?]`;

/**
 * What begins with one of `signs`, in the order in which it is tried. `edge`: not inside a word. `open`: only at the end
 * of a text that still grows; it shows what is on its way as it will be, without its marks.
 * @type {{signs: string, pattern: RegExp, edge?: boolean, open?: boolean, make: (m: RegExpExecArray, to: Builder) => void}[]}
 */
const RULES = [
  { signs: "\\ ", pattern: /(?:\\| {2,})\n/y, make: (_, to) => to.element("br", "") },
  { signs: "\n", pattern: /\n/y, make: (_, to) => to.text(" ") },
  { signs: "\\", pattern: /\\([!-/:-@[-`{-~])/y, make: (m, to) => to.text(m[1]) },
  { signs: "`", pattern: /(`+)(?!`)([^]*?[^`])\1(?!`)/y, make: (m, to) => to.code(m[2]) },
  { signs: "`", pattern: /(`{1,2})([^`]+)$/y, open: true, make: (m, to) => to.code(m[2]) },
  { signs: "*_", pattern: /(\*\*|__)(?=\S)([^]*?\S)\1/y, edge: true, make: (m, to) => to.element("strong", m[2]) },
  { signs: "*", pattern: /\*\*(?=\S)([^]+)$/y, open: true, make: (m, to) => to.element("strong", m[1]) },
  { signs: "*_", pattern: /([*_])(?=[^\s*_])([^]*?[^\s*_])\1(?![*_\w])/y, edge: true, make: (m, to) => to.element("em", m[2]) },
  { signs: "~", pattern: /~~(?=\S)([^]*?\S)~~/y, make: (m, to) => to.element("del", m[1]) },
  {
    signs: "[!",
    pattern: /!?\[((?:[^\][]|\[[^\]]*\])*)\]\(\s*<?([^\s)>]*)>?(?:\s+"[^"]*")?\s*\)/y,
    make: (m, to) => to.link(m[2], m[1]),
  },
  { signs: "[", pattern: /\[([^\]\n]*)(?:\](?:\([^)\s]*)?)?$/y, open: true, make: (m, to) => to.element("span", m[1]) },
  { signs: "<", pattern: /<(https?:\/\/[^\s<>]+)>/y, make: (m, to) => to.link(m[1]) },
  { signs: "h", pattern: new RegExp(ADDRESS, "y"), edge: true, make: (m, to) => to.link(m[0]) },
];

/** Makes the nodes of one stretch of inline text. */
class Builder {
  /** @type {Node[]} */ nodes = [];
  #plain = "";

  /** @param {Document} document @param {boolean} open more text may come @param {number} depth */
  constructor(document, open, depth) {
    this.document = document;
    this.open = open;
    this.depth = depth;
  }

  /** @param {string} source */
  build(source) {
    let at = 0;
    for (;;) {
      SPECIAL.lastIndex = at;
      const place = SPECIAL.exec(source)?.index ?? source.length;
      this.text(source.slice(at, place));
      if (place === source.length) break;
      at = place + (this.#rule(source, place) || this.text(source[place]));
    }
    this.#settle();
    return this.nodes;
  }

  /** Apply the first rule that fits at `place`. Returns the characters it has used. */
  #rule(source, place) {
    const word = place > 0 && /\w/.test(source[place - 1]);
    for (const rule of RULES) {
      if (!rule.signs.includes(source[place]) || (rule.open && !this.open)) continue;
      if (rule.edge && word && source[place] !== "*") continue;
      rule.pattern.lastIndex = place;
      const match = rule.pattern.exec(source);
      if (match === null) continue;
      rule.make(match, this);
      return match[0].length;
    }
    return 0;
  }

  /** @param {string} text */
  text(text) {
    this.#plain += text;
    return text.length;
  }

  #settle() {
    if (this.#plain !== "") this.nodes.push(this.document.createTextNode(this.#plain));
    this.#plain = "";
  }

  /** @param {string} name @param {string} source */
  element(name, source) {
    this.#settle();
    const made = this.document.createElement(name);
    if (this.depth > 6) made.append(source);
    else made.append(...new Builder(this.document, this.open, this.depth + 1).build(source));
    this.nodes.push(made);
    return made;
  }

  /** @param {string} text */
  code(text) {
    this.#settle();
    const made = this.document.createElement("code");
    made.append(text.replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1"));
    this.nodes.push(made);
  }

  /** @param {string} href @param {string} [source] its text; without one, the address itself */
  link(href, source) {
    const safe = address(href, this.document.baseURI);
    const made = this.element(safe === null ? "span" : "a", source ?? "");
    if (source === undefined) made.append(href);
    if (safe === null) return;
    made.setAttribute("href", safe.href);
    made.setAttribute("rel", "noopener noreferrer nofollow");
    if (safe.outside) made.setAttribute("target", "_blank");
  }
}

/** The address of a link if following it can do nothing but open a page. */
function address(href, base) {
  if (href === "") return null;
  try {
    const url = new URL(href, base);
    if (url.protocol !== "http:" && url.protocol !== "https:") return null;
    return { href: url.href, outside: url.origin !== new URL(base).origin };
  } catch {
    return null;
  }
}
