/**
 * What Legato's elements have in common: the sheet, the words, the server. An element that stands inside another one of
 * Legato's has no shadow root: a text that is cut into many roots cannot be selected in one go.
 */
import { h } from "./dom.js";
import { Server } from "./server.js";
import { sheets } from "./sheet.js";
import { fill, onStrings } from "./strings.js";

/** The server: where `web/…` came from, else the page's own. */
const HOME = /^(.*\/)web\/[\w-]+\.js$/.exec(import.meta.url)?.[1] ?? "/"; // no new URL(): bundlers look for a file there

/** A server has no elements, but may import them. @type {typeof HTMLElement} */
const Element = globalThis.HTMLElement ?? Object;

export class LegatoElement extends Element {
  /** What was set on it before its class was here. */ #early = early(this);
  /** @type {Record<string, string>} */ #strings = {};
  /** @type {import("./request.js").HeadersSource} */ #headers = {};
  /** @type {Server | null} */ #server = null;
  #life = new AbortController();

  /** The Legato element around this one. @returns {LegatoElement | null} */
  get outer() {
    const host = /** @type {any} */ (this.getRootNode()).host;
    return host !== undefined && "words" in host && "server" in host ? host : null; // perhaps of another copy of this module
  }

  /** Where the element's own content goes. @returns {HTMLElement} */
  get inside() {
    return this.outer === null ? this.ownRoot : this;
  }

  get sheets() {
    return sheets;
  }

  /** Within the shadow root, where inheritance from the page ends, see `looks.js`. @returns {HTMLElement} */
  get ownRoot() {
    if (this.shadowRoot === null) {
      const root = this.attachShadow({ mode: "open" });
      root.adoptedStyleSheets = this.sheets;
      root.append(h("div", { class: "own" }));
    }
    return /** @type {any} */ (this.shadowRoot?.firstElementChild);
  }

  // Each property has a setter on the prototype: that is where frameworks look for what they can set.

  /** Headers for each request, or a function that makes them, see `request.js`. */
  get headers() {
    return this.#headers;
  }
  set headers(headers) {
    this.#headers = headers || {};
  }

  /** Address of the server: the attribute `base-url`, else where the elements were loaded from. */
  get baseUrl() {
    return this.getAttribute("base-url") ?? "";
  }
  set baseUrl(url) {
    this.reflect("base-url", url);
  }

  /** `light` or `dark`, whatever the page is. */
  get theme() {
    return this.getAttribute("theme") ?? "";
  }
  set theme(theme) {
    this.reflect("theme", theme);
  }

  /** Frameworks say with undefined, null or "" that there is none. @param {string} name @param {string | null | undefined} value */
  reflect(name, value) {
    if (value) this.setAttribute(name, value);
    else this.removeAttribute(name);
  }

  /** @returns {Server} */
  get server() {
    const base = new URL((this.baseUrl || HOME).replace(/\/*$/, "/"), document.baseURI);
    const outer = this.baseUrl === "" && this.outer;
    if (outer) return outer.server;
    if (this.#server?.baseUrl.href !== base.href) {
      this.#server = new Server({ baseUrl: base, headers: (why) => (typeof this.headers === "function" ? this.headers(why) : this.headers) });
    }
    return this.#server;
  }

  /** Words of this element's own, see `strings.js`. Those that are not given stay as they are. */
  get strings() {
    return this.#strings;
  }
  set strings(strings) {
    this.#strings = { ...strings };
    if (this.isConnected) this.wordsChanged();
  }

  /** Its own words, and those of the elements around it. @returns {Record<string, string>} */
  get words() {
    return { ...this.outer?.words, ...this.#strings };
  }

  /** @param {string} name @param {Record<string, string>} [values] */
  word(name, values) {
    return fill(name, this.words, values);
  }

  connectedCallback() {
    this.#life = new AbortController();
    onStrings(() => this.wordsChanged(), this.#life.signal);
    Object.assign(this, this.#early);
    this.#early = {};
  }

  disconnectedCallback() {
    this.#life.abort();
  }

  /** Aborted once it is taken out of the document. */
  get life() {
    return this.#life.signal;
  }

  /** Say everything again. */
  wordsChanged() {}

  /** @param {string} type @param {any} [detail] */
  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
  }
}

/**
 * Take from an element what hides the properties of its class: frameworks, and pages whose modules come late, set them
 * before there is one.
 * @param {any} element @returns {Record<string, any>}
 */
function early(element) {
  const given = Object.entries(element).filter(([name]) => name in Object.getPrototypeOf(element));
  for (const [name] of given) delete element[name];
  return Object.fromEntries(given);
}
