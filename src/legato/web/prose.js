/**
 * A text that grows, as Markdown. The server makes HTML of it, beside the stream: blocks that are finished are set once
 * and stay; the last one is set again a few times a second, and the words that came since are added to it as they are,
 * up to the first sign that may be a marker. So text comes at once, and never changes its place or its looks. What is set
 * again is changed only where it differs: a selection, the focus and how far code is scrolled are the reader's.
 *
 * This is the only place where HTML is put into the page, and it takes only what the server's sanitizer has passed.
 */
import { call } from "./core.js";
import { h } from "./dom.js";

/** Milliseconds. */
export const PACE = { between: 150, refresh: 1000, patience: 800 };
const TOGETHER = 100; // texts in a request
/** Characters in a request. A longer text is set as if it grew; a block of it that is longer stays as it is. */
const LONGEST = 150_000;
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
   * Of a text that grows, or of as much of it as another reader has asked for just now; not repeated, since the next one
   * will be asked for soon.
   * @param {string} text @returns {Promise<{blocks: Block[], of: string}>}
   */
  async growing(text) {
    const response = await this.#server.once("POST", "web/markdown", { texts: [text], growing: true });
    if (!response.ok) throw new Error(`Not rendered: ${response.status}.`);
    const { rendered, units } = await response.json();
    return { blocks: rendered[0].blocks, of: text.slice(0, units?.[0]) };
  }

  async #flush() {
    const queue = this.#queue.splice(0);
    while (queue.length > 0) {
      let size = 0;
      const end = queue.findIndex(({ text }, at) => (size += text.length) > LONGEST || at === TOGETHER);
      const some = queue.splice(0, end < 0 ? queue.length : Math.max(end, 1));
      try {
        const body = { texts: some.map(({ text }) => text) };
        const { rendered } = await call(this.#server, { method: "POST", path: "web/markdown", body, repeat: true, attempts: 3 });
        some.forEach(({ text, resolve }, at) => (this.#keep(text, rendered[at].blocks), resolve(rendered[at].blocks)));
      } catch (error) {
        some.forEach(({ reject }) => reject(error));
      }
    }
  }

  /** @param {string} text @param {Block[]} blocks */
  #keep(text, blocks) {
    this.#known.set(text, blocks);
    if (this.#known.size > 300) this.#known.delete(/** @type {string} */ (this.#known.keys().next().value));
  }
}

const LINE_END = /\r\n|\r|\n/g;

/** Where each line begins. @param {string} text */
const lineStarts = (text) => [0, ...Array.from(text.matchAll(LINE_END), (end) => end.index + end[0].length)];

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

/** Make what `parent` has from `at` up to `end` into `made`, and keep each node that can stay. @param {Node} parent @param {Node | null} at @param {Node | null} end @param {Node} made */
function patch(parent, at, end, made) {
  for (const node of [...made.childNodes]) {
    if (at === null || at === end || !alike(at, node)) {
      parent.insertBefore(node, at);
      continue;
    }
    const next = at.nextSibling;
    if (at instanceof CharacterData) rewrite(at, /** @type {CharacterData} */ (node).data);
    else if (at instanceof Element && at.localName !== "button") {
      const [old, wanted] = [at, /** @type {Element} */ (node)];
      for (const name of old.getAttributeNames()) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      patch(old, old.firstChild, null, wanted);
    }
    at = next;
  }
  while (at !== null && at !== end) {
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

export class Prose {
  #text = "";
  #ended = false;
  #begin = 0; // where the unfinished rest begins
  #set = ""; // of the rest, what is shown as HTML
  /** @type {ChildNode | null} */ #finished = null; // the last block that stays
  #settled = false;
  #stuck = -1; // where a block begins that is too long
  #busy = false;
  #last = 0;
  #slow = false;
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
    element.append(this.#plain);
  }

  /** @param {string} text all of it @param {boolean} ended nothing follows */
  update(text, ended) {
    if (text === this.#text && ended === this.#ended) return;
    if (this.#settled || !text.startsWith(this.#text)) this.#restart();
    this.#text = text;
    this.#ended = ended;
    this.#busily(!ended || text !== "");
    if (text === "") return;
    const known = ended && this.#begin === 0 && this.#typesetter.known(text);
    if (known) return this.#settle(known);
    this.#show();
    void this.#ask();
  }

  #restart() {
    this.element.replaceChildren(this.#plain);
    this.#finished = null;
    this.#begin = 0;
    this.#stuck = -1;
    this.#set = "";
    this.#fresh = null;
    this.#settled = false;
  }

  get #rest() {
    return this.#text.slice(this.#begin);
  }

  get #marker() {
    if (!this.#fresh?.closest("pre")) return MARKER;
    return this.#fresh.closest("blockquote, li") ? LINE : FENCE;
  }

  /** What came since the last setting: as much of it as cannot be a marker; all, if the server does not answer. */
  #show() {
    const more = this.#rest.slice(this.#set.length);
    const held = this.#fresh === null ? 0 : more.search(this.#marker);
    const shown = held < 0 ? more : more.slice(0, held);
    if (this.#fresh !== null && this.#fresh.textContent !== shown) this.#fresh.textContent = shown;
    this.#plain.textContent = this.#slow ? more.slice(shown.length) : "";
    return shown.length < more.length;
  }

  async #ask() {
    if (this.#busy || this.#settled || this.#stuck === this.#begin) return;
    const rest = this.#rest.slice(0, LONGEST).replace(HALF, "");
    const whole = this.#ended && rest.length === this.#rest.length;
    if (!this.#ended) {
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
    const begin = this.#begin;
    const anew = whole && begin > 0 && this.#text.length <= LONGEST && DEFINITION.test(this.#text);
    /** @type {Block[] | null} */ let blocks = null;
    let of = rest;
    try {
      if (whole) blocks = await this.#typesetter.whole(anew ? this.#text : rest);
      else ({ blocks, of } = await this.#typesetter.growing(rest));
      this.#slow = false;
    } catch {
      this.#despair();
    }
    clearTimeout(late);
    this.#busy = false;
    this.#last = performance.now();
    const stale = this.#settled || begin !== this.#begin || !this.#text.startsWith(rest, begin) || (whole && rest !== this.#rest);
    if (stale) return void this.#ask(); // the text was replaced meanwhile
    if (blocks !== null && whole) return this.#settle(blocks, anew);
    if (blocks !== null && of.length > this.#set.length) this.#grow(of, blocks);
    const stuck = blocks === null ? this.#ended : begin === this.#begin && of.length < this.#text.length - begin && of.length >= LONGEST - 1;
    if (!stuck) return void this.#ask();
    if (blocks !== null) this.#stuck = begin;
    this.#despair(); // it stays as it came
    this.#busily(!this.#ended);
  }

  #despair() {
    this.#slow = true;
    this.#show();
  }

  /** A growing rest has been set. A block is finished once another one stands on a line of its own, and whole. @param {string} rest @param {Block[]} blocks */
  #grow(rest, blocks) {
    const lines = lineStarts(rest);
    let finished = Math.max(blocks.length - 1, 0);
    while (finished > 0 && blocks[finished].line >= lines.length - 1) finished -= 1;
    const stays = this.#put(blocks, finished);
    const kept = finished > 0 ? lines[blocks[finished].line] : 0;
    this.#begin += kept;
    this.#set = rest.slice(kept);
    this.#finished = stays;
    this.#fresh = this.element.querySelector(".fresh");
    this.#show();
  }

  /** @param {Block[]} blocks @param {boolean} [anew] of the whole text */
  #settle(blocks, anew = false) {
    if (anew) this.#finished = null;
    this.#put(blocks, 0);
    this.#settled = true;
    this.#plain.textContent = "";
    this.#busily(false);
  }

  /** Put blocks behind those that stay; the last node of the first so many of them. @param {Block[]} blocks @param {number} many */
  #put(blocks, many) {
    const all = document.createDocumentFragment();
    let [nodes, stay] = [0, 0];
    blocks.forEach(({ html }, at) => {
      const block = fragment(html);
      this.#decorate(block);
      nodes += block.childNodes.length;
      if (at < many) stay = nodes;
      all.append(block);
    });
    patch(this.element, this.#finished === null ? this.element.firstChild : this.#finished.nextSibling, this.#plain, all);
    let last = this.#finished;
    for (; stay > 0; stay -= 1) last = /** @type {ChildNode | null} */ (last === null ? this.element.firstChild : last.nextSibling);
    return last;
  }

  /** @param {boolean} busy */
  #busily(busy) {
    this.element.setAttribute("aria-busy", String(busy));
  }
}
