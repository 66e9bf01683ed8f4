/**
 * A text that grows, as Markdown. The server makes HTML of it, beside the stream: blocks that are finished are set once
 * and stay; the last one is set again a few times a second, and the words that came since are added to it as they are,
 * up to the first sign that may be a marker. So text comes at once, and never changes its place or its looks. What is set
 * again is changed only where it differs: a selection, the focus and how far code is scrolled are the reader's.
 *
 * This is the only place where HTML is put into the page, and it takes only what the server's sanitizer has passed.
 */
import { breakable, h, write } from "./dom.js";

/** Milliseconds. */
export const PACE = { between: 150, refresh: 1000, patience: 800 };
const TOGETHER = 100; // texts in a request
/** Characters in a request. A longer text is set as if it grew; a block of it that is longer stays as it is. */
const LONGEST = 150_000;
/** Characters that are set at one go, if a block ends in them; more would hold the page. */
const SLICE = 10_000;
/** Characters that are shown behind what is set. */
const FRESH = 4_000;
/** Characters of a paragraph that are set; more of one would hold the page. */
const PARAGRAPH = 40_000;
/** Characters of texts, and of their HTML, that are remembered. */
export const KEPT = 4 * 1024 * 1024;
/** Characters from which on a text may have a block that is to be cut. */
const CUT = 4_000;
/** Characters of a text from which on a browser need not lay out what is far from view. */
const LONG = 50_000;
const HALF = /[\ud800-\udbff]$/; // of a character

/** A character that may be, or may become, a marker of Markdown. */
const MARKER = /[\n*_`~[\]!<|\\&$]/;
/** In code, only a fence is; */
const FENCE = /\n[ \t]*[`~]/;
/** and in code within a quotation or a list, what each line begins with. */
const LINE = /\n/;

/** What is said in one block and holds for others: an address, or a note with a name. */
const DEFINITION = /^ {0,3}\[[^\]\n]+\]:/m;

/** @typedef {{line: number, html: string}} Block */

/** Asks the server for HTML. */
export class Typesetter {
  /** @type {Map<string, Block[]>} */ #known = new Map();
  #size = 0; // characters in it
  /** @type {{text: string, resolve: (blocks: Block[]) => void, reject: (error: any) => void}[]} */ #queue = [];
  #server;

  /** @param {import("./server.js").Server} server */
  constructor(server) {
    this.#server = server;
  }

  /** Blocks of a whole text if they are known already. @param {string} text */
  known(text) {
    return this.#known.get(text);
  }

  /** Of a whole text; those of one moment are asked for together. @param {string} text @returns {Promise<Block[]>} */
  whole(text) {
    return new Promise((resolve, reject) => {
      if (this.#queue.length === 0) queueMicrotask(() => void this.#flush());
      this.#queue.push({ text, resolve, reject });
    });
  }

  /**
   * Of a text that goes on, or of as much of it as another reader has asked for just now; not repeated while it grows,
   * since the next one will be asked for soon.
   * @param {string} text @param {boolean} ended @returns {Promise<{blocks: Block[], of: string}>}
   */
  async growing(text, ended) {
    const { rendered, units } = await this.#render({ texts: [text], growing: true }, ended ? 3 : 1);
    return { blocks: rendered[0].blocks, of: text.slice(0, units?.[0]) };
  }

  /** @param {any} body @param {number} attempts */
  #render(body, attempts) {
    return this.#server.request("POST", "web/markdown", body, undefined, (answer) => Array.isArray(answer?.rendered), attempts);
  }

  async #flush() {
    const queue = this.#queue.splice(0);
    while (queue.length > 0) {
      let size = 0;
      const end = queue.findIndex(({ text }, at) => (size += text.length) > LONGEST || at === TOGETHER);
      const some = queue.splice(0, end < 0 ? queue.length : Math.max(end, 1));
      try {
        const { rendered } = await this.#render({ texts: some.map(({ text }) => text) }, 3);
        some.forEach(({ text, resolve }, at) => (this.#keep(text, rendered[at].blocks), resolve(rendered[at].blocks)));
      } catch (error) {
        some.forEach(({ reject }) => reject(error));
      }
    }
  }

  /** @param {string} text @param {Block[]} blocks */
  #keep(text, blocks) {
    this.#forget(text);
    this.#known.set(text, blocks);
    this.#size += weight(text, blocks);
    for (const [oldest] of this.#known) {
      if (this.#size <= KEPT) break;
      this.#forget(oldest);
    }
  }

  /** @param {string} text */
  #forget(text) {
    this.#size -= weight(text, this.#known.get(text));
    this.#known.delete(text);
  }
}

/** @param {string} text @param {Block[] | undefined} blocks */
const weight = (text, blocks) => blocks?.reduce((sum, { html }) => sum + html.length, text.length) ?? 0;

/** Characters of a piece of a text that is shown as it came. */
const PIECE = 4_000;
/** Where a paragraph ends: at a blank line, or where a block begins that needs none before it. */
const OVER = /\n(?=[ \t]*\n| {0,3}(?:`{3,}[^`\n]*\n|~{3}|#{1,6}[ \t]|>|(?:[-*+]|1[.)])[ \t]+\S))/g;

/** Where such a piece begins: after a line's end, else a word's. @param {string} text @param {number} piece its number */
function cut(text, piece) {
  const at = piece * PIECE;
  const some = text.slice(at, at + PIECE);
  return at + (at && (some.indexOf("\n") + 1 || some.search(/\s/) + 1));
}

/** Its lines end as they do in Markdown's own view; of an end in two characters the first one tells nothing yet. @param {string} text */
const lined = (text) => (text.includes("\r") ? text.replace(/\r$/, "").replace(/\r\n?/g, "\n") : text);

/** Where each line begins. @param {string} text */
const lineStarts = (text) => [0, ...Array.from(text.matchAll(/\n/g), (end) => end.index + 1)];

/** Where a page asks for Trusted Types, ours are of the policy `legato`. @type {{createHTML: (html: string) => string}} */
let policy = { createHTML: (html) => html };
try {
  policy = /** @type {any} */ (globalThis).trustedTypes?.createPolicy("legato", policy) ?? policy;
} catch {
  // the page allows no such policy: what it says about HTML is said when there is some
}

/** @param {string} html that the server's sanitizer has passed */
function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = policy.createHTML(html);
  return template.content;
}

/** @param {Node} old @param {Node} made */
const alike = (old, made) => old.nodeName === made.nodeName && (made.nodeName !== "DIV" || /** @type {Element} */ (old).className === /** @type {Element} */ (made).className);

/** Make what `parent` has from `at` on into `made`, and keep each node that can stay. @param {Node} parent @param {Node | null} at @param {Node} made */
function patch(parent, at, made) {
  const added = document.createDocumentFragment(); // at one go: for each, WebKit looks at all that is there
  for (const node of [...made.childNodes]) {
    if (at === null || !alike(at, node)) {
      added.append(node);
      continue;
    }
    parent.insertBefore(added, at);
    const next = at.nextSibling;
    if (at instanceof CharacterData) rewrite(at, /** @type {CharacterData} */ (node).data);
    else if (at instanceof Element && at.localName !== "button") {
      const [old, wanted] = [at, /** @type {Element} */ (node)];
      for (const name of old.getAttributeNames()) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      patch(old, old.firstChild, wanted);
    }
    at = next;
  }
  parent.insertBefore(added, at);
  while (at !== null) {
    const next = at.nextSibling;
    parent.removeChild(at);
    at = next;
  }
}

/** Adding to a text, or cutting its end, leaves alone what is selected in it. @param {CharacterData} node @param {string} text */
function rewrite(node, text) {
  const { data } = node;
  if (text.startsWith(data)) node.appendData(text.slice(data.length));
  else if (data.startsWith(text)) node.deleteData(text.length, data.length - text.length);
  else node.data = text;
}

const LETTER = /\p{L}/u;
/** Of a script that is written from right to left. */
const LEFTWARD = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/**
 * Which way a text runs, by its first letter that is not of code, as `dir="auto"` has it: for that WebKit would look
 * again at all of a long answer with each block that is put in.
 * @param {Node} root
 */
function direction(root) {
  const texts = document.createTreeWalker(root, NodeFilter.SHOW_ALL, (node) =>
    node instanceof Text ? NodeFilter.FILTER_ACCEPT : node instanceof Element && node.className === "code" ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_SKIP);
  while (texts.nextNode() !== null) {
    const letter = LETTER.exec(/** @type {Text} */ (texts.currentNode).data);
    if (letter !== null) return LEFTWARD.test(letter[0]) ? "rtl" : "ltr";
  }
  return "";
}

/** What a text without long blocks has no need of. @type {typeof import("./cuts.js") | null} */
let cuts = null;

/** Some blocks in a row. Of those that are far from view a browser makes nothing, however many there are. */
const stretch = () => h("div", { class: "stretch" });

export class Prose {
  #text = "";
  #ended = false;
  #begin = 0; // where the unfinished rest begins
  /** @type {import("./cuts.js").Part | null} */ #part = null; // the one behind which that is the rest of a block
  #paragraph = false; // what is stuck is one
  #uncut = -1; // where a block begins that is not what it looks like
  #set = ""; // of the rest, what is shown as HTML
  #stretch = stretch();
  #filled = 0; // characters that stay in it
  /** @type {ChildNode | null} */ #finished = null; // of it, the last block that stays
  #settled = false;
  #slice = SLICE; // more where a block is longer
  #stuck = -1; // where a block begins that is too long
  #directed = false; // which way it runs is known
  #busy = false;
  #last = 0;
  #slow = false;
  #piece = 0; // the number of the first one that is shown as it came
  /** @type {HTMLElement | null} */ #fresh = null;
  /** @type {number | undefined} */ #timer;
  #plain = h("div", { class: "plain" });
  #typesetter;
  #decorate;

  /**
   * @param {HTMLElement} element
   * @param {Typesetter} typesetter
   * @param {(block: DocumentFragment) => void} decorate adds what a page adds to a block
   */
  constructor(element, typesetter, decorate = () => {}) {
    this.element = element;
    this.#typesetter = typesetter;
    this.#decorate = decorate;
    element.append(this.#stretch, this.#plain);
  }

  /** @param {string} text all of it @param {boolean} ended nothing follows */
  update(text, ended) {
    text = lined(text);
    if (text === this.#text && ended === this.#ended) return;
    if (this.#settled || !text.startsWith(this.#text)) this.#restart();
    this.#text = text;
    this.#ended = ended;
    this.element.classList.toggle("long", text.length > LONG);
    this.#busily(!ended || text !== "");
    if (text === "") return;
    const known = ended && this.#begin === 0 && this.#typesetter.known(text);
    if (known && this.#long(text, known) < 0) return this.#settle(known);
    this.#show();
    void this.#ask();
  }

  #restart() {
    this.element.replaceChildren(this.#plain);
    this.#begun();
    this.#begin = 0;
    this.#stuck = this.#uncut = -1;
    this.#part = null;
    this.#set = "";
    this.#fresh = null;
    this.#settled = false;
    this.#directed = false;
  }

  get #rest() {
    return this.#text.slice(this.#begin);
  }

  /** How much of it is set first. */
  get #first() {
    return cuts?.dense(this.#rest) ? SLICE / 3 : SLICE;
  }

  /** What is to stand before it where it is asked for. */
  get #before() {
    return this.#part?.before ?? "";
  }

  get #marker() {
    if (!this.#fresh?.closest("pre")) return MARKER;
    return this.#fresh.closest("blockquote, li") ? LINE : FENCE;
  }

  /** What came since the last setting: as much of it as cannot be a marker; all, if the server does not answer. */
  #show() {
    const more = this.#rest.slice(this.#set.length);
    const held = this.#fresh === null ? 0 : more.search(this.#marker);
    const shown = more.slice(0, held < 0 ? FRESH : Math.min(held, FRESH));
    if (this.#fresh !== null && this.#fresh.textContent !== shown) this.#fresh.textContent = shown;
    this.#raw(this.#slow ? this.#begin + this.#set.length + shown.length : this.#text.length);
    return shown.length < more.length;
  }

  /** Show the text from there on as it came, below what is set: some more of it with each frame. @param {number} from */
  #raw(from) {
    const text = this.#text;
    const { children } = this.#plain;
    let first = Math.floor(from / PIECE);
    if (cut(text, first) > from) first -= 1;
    for (; this.#piece < first && children.length > 0; this.#piece += 1) children[0].remove();
    if (this.#piece !== first) this.#plain.replaceChildren();
    this.#piece = first;
    const most = children.length + 5;
    let at = 0;
    for (let begin = from; begin < text.length && at < most; at += 1) {
      const end = cut(text, first + at + 1);
      const piece = text.slice(begin, end);
      if (children[at]) write(children[at], piece);
      else this.#plain.append(h("div", {}, piece));
      begin = end;
    }
    if (at === most) requestAnimationFrame(() => this.#show());
    while (children.length > at) children[at].remove();
    this.#direct();
  }

  #direct() {
    if (this.#directed) return;
    const way = this.#stretch.closest("pre") ? "" : direction(this.#stretch);
    this.#directed = way !== "";
    this.element.dir = way || direction(this.#plain);
  }

  async #ask() {
    if (this.#busy || this.#settled) return;
    if (this.#stuck === this.#begin && !(this.#paragraph && this.#skip())) return this.#busily(!this.#ended);
    if (cuts === null && this.#text.length > CUT) {
      this.#busy = true;
      cuts = await import("./cuts.js").catch(() => ({ dense: () => false, part: () => null, rejoin: () => false, box() {} }));
      this.#busy = false;
      return void this.#ask();
    }
    const begin = this.#begin;
    const before = this.#before;
    const cut = this.#uncut === begin ? null : cuts?.part(before + this.#rest.slice(0, LONGEST)) ?? null;
    const whole = cut === null && this.#ended && this.#rest.length <= this.#slice;
    const rest = whole ? this.#rest : this.#rest.slice(0, cut === null ? this.#slice : cut.end - before.length).replace(HALF, "");
    if (!this.#ended && (cut === null || this.#slow)) {
      const due = this.#last + (this.#show() ? PACE.between : PACE.refresh) - performance.now();
      if (rest === this.#set) return;
      if (due > 0) {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => void this.#ask(), due);
        return;
      }
    }
    this.#busy = true;
    const late = setTimeout(() => this.#despair(), PACE.patience);
    const anew = whole && begin > 0 && this.#text.length <= LONGEST && DEFINITION.test(this.#text);
    /** @type {Block[] | null} */ let blocks = null;
    let of = rest;
    try {
      if (whole || cut !== null) blocks = await this.#typesetter.whole(anew ? this.#text : before + rest);
      else {
        ({ blocks, of } = await this.#typesetter.growing(before + rest, this.#ended));
        of = of.slice(before.length);
      }
      if (before !== "" && !anew && !blocks[0]?.html.match(/** @type {import("./cuts.js").Part} */ (this.#part).kind)) throw new Error("It is shown as it is.");
    } catch {
      blocks = null;
      this.#despair();
    }
    clearTimeout(late);
    this.#busy = false;
    this.#last = performance.now();
    const stale = this.#settled || begin !== this.#begin || !this.#text.startsWith(rest, begin) || (whole && rest !== this.#rest);
    if (stale) return void this.#ask(); // the text was replaced meanwhile
    if (blocks !== null && cut !== null) {
      if (blocks.length === 1 && cut.kind.test(blocks[0].html)) this.#putPart(blocks, cut, rest);
      else this.#uncut = begin; // it is not what it looks like
      return void this.#ask();
    }
    if (blocks !== null && whole && (anew || this.#long(before + rest, blocks) < 0)) return this.#settle(blocks, anew);
    const filled = of.length >= this.#slice - 1 && of.length < this.#text.length - begin; // there is more than was asked for
    if (blocks !== null) this.#slow &&= filled; // else what follows would come and go
    if (blocks !== null && of.length > this.#set.length) this.#grow(of, blocks);
    this.#slice = begin !== this.#begin ? this.#first : filled ? Math.min(4 * this.#slice, LONGEST) : this.#slice;
    const most = blocks?.[0]?.html.startsWith("<p>") ? PARAGRAPH : LONGEST;
    const stuck = blocks === null ? this.#ended : begin === this.#begin && filled && of.length >= most - 1;
    if (!stuck) return void this.#ask();
    this.#despair(); // it stays as it came
    if (blocks === null) return this.#busily(!this.#ended);
    this.#stuck = begin;
    this.#paragraph = most === PARAGRAPH;
    void this.#ask(); // what follows a paragraph can be set
  }

  #despair() {
    this.#slow = true;
    this.#show();
  }

  /** A growing rest has been set. A block is finished once another one stands on a line of its own, and whole. @param {string} rest @param {Block[]} blocks */
  #grow(rest, blocks) {
    const before = this.#before;
    const lines = lineStarts(before + rest);
    const long = this.#long(before + rest, blocks);
    let finished = long > 0 ? long : Math.max(blocks.length - 1, 0);
    const least = before === "" ? 0 : 1; // behind rows or code nothing becomes a part of them
    while (finished > least && finished !== long && blocks[finished]?.line >= lines.length - 1) finished -= 1;
    const kept = finished > 0 ? lines[blocks[finished].line] - before.length : 0;
    if (long > 0) blocks = blocks.slice(0, long);
    if (before !== "" && finished > 0) {
      [blocks, finished] = [this.#over(blocks), finished - 1];
    }
    this.#filled += kept;
    const full = kept > 0 && this.#filled >= SLICE;
    this.#put(full ? blocks.slice(0, finished) : blocks, finished);
    if (kept > 0) this.#part = null;
    if (full) {
      this.#begun();
      this.#put(blocks.slice(finished), 0);
    }
    this.#begin += kept;
    this.#set = long > 0 ? "" : rest.slice(kept);
    this.#fresh = this.#stretch.querySelector(".fresh");
    this.#show();
  }

  /** Which block behind the first one is to be cut, if any is. @param {string} text @param {Block[]} blocks */
  #long(text, blocks) {
    const lines = lineStarts(text);
    return blocks.findIndex(({ line }, at) => at > 0 && cuts?.part(text.slice(lines[line], lines[blocks[at + 1]?.line])));
  }

  /** The last part of a table, or of code, is put where it belongs; what follows is put elsewhere. @param {Block[]} blocks @returns {Block[]} that follow */
  #over(blocks) {
    this.#put(blocks.slice(0, 1), 1);
    this.#part = null;
    this.#begun();
    return blocks.slice(1);
  }

  /** A part of a block has been set. @param {Block[]} blocks @param {import("./cuts.js").Part} cut @param {string} rest */
  #putPart(blocks, cut, rest) {
    this.#put(blocks, 1);
    this.#begun(cuts?.box(cut, this.#stretch));
    this.#part = cut;
    this.#goOn(this.#begin + rest.length);
  }

  /** What is too long of a paragraph stays as it came, and what follows the paragraph can be set, if its end is known. */
  #skip() {
    let at = this.#begin + this.#set.length;
    OVER.lastIndex = at - 1;
    const over = OVER.exec(this.#text);
    if (over === null) return false;
    this.#fresh?.remove();
    this.#begun();
    this.#stretch.classList.add("raw");
    while (at <= over.index) {
      const next = Math.min(cut(this.#text, Math.floor(at / PIECE) + 1), over.index + 1);
      this.#stretch.append(h("div", {}, this.#text.slice(at, next)));
      at = next;
    }
    this.#begun();
    this.#goOn(at);
    return true;
  }

  /** @param {number} begin of what is not set yet */
  #goOn(begin) {
    [this.#begin, this.#set, this.#fresh] = [begin, "", null];
    this.#slice = this.#first;
    this.#show();
  }

  /** What is set from now on stands in a new stretch, or in this box. @param {HTMLElement} [box] */
  #begun(box) {
    if (box === undefined) this.#plain.before((box = stretch()));
    this.#stretch = box;
    this.#filled = 0;
    this.#finished = null;
  }

  /** @param {Block[]} blocks @param {boolean} [anew] of the whole text */
  #settle(blocks, anew = false) {
    if (anew) {
      this.element.replaceChildren(this.#plain);
      this.#part = null;
      this.#begun();
    } else if (this.#before !== "") blocks = this.#over(blocks);
    while (blocks.length > 0) {
      let size = 0;
      const end = blocks.findIndex(({ html }) => (size += html.length) > 3 * SLICE) + 1 || blocks.length;
      this.#put(blocks.slice(0, end), 0);
      blocks = blocks.slice(end);
      if (blocks.length > 0) this.#begun();
    }
    this.#settled = true;
    this.#slow = false;
    this.#raw(this.#text.length);
    this.#busily(false);
  }

  /** Put blocks behind those that stay; the first so many of them stay, too. @param {Block[]} blocks @param {number} many */
  #put(blocks, many) {
    const all = document.createDocumentFragment();
    let [nodes, stay] = [0, 0];
    blocks.forEach(({ html }, at) => {
      const block = fragment(html);
      if (at > 0 || this.#part === null || !cuts?.rejoin(block, this.#part, this.#stretch)) {
        this.#decorate(block);
        breakable(block);
      }
      nodes += block.childNodes.length;
      if (at < many) stay = nodes;
      all.append(block);
    });
    patch(this.#stretch, this.#finished === null ? this.#stretch.firstChild : this.#finished.nextSibling, all);
    for (; stay > 0; stay -= 1) this.#finished = /** @type {ChildNode | null} */ (this.#finished === null ? this.#stretch.firstChild : this.#finished.nextSibling);
  }

  /** @param {boolean} busy */
  #busily(busy) {
    this.element.setAttribute("aria-busy", String(busy));
  }
}
