/** Making elements. Text becomes text, never markup; attributes are set, never parsed. */

/** @typedef {Node | string | number | null | false | undefined} Child */

/**
 * @param {string} name
 * @param {Record<string, any>} attributes functions become listeners; false and null are left out
 * @param {Child[]} children
 * @returns {any} the element, whose kind the caller knows from `name`
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(.../** @type {(Node | string)[]} */ (children.filter((child) => child !== null && child !== undefined && child !== false && child !== "")));
  return /** @type {any} */ (element);
}

/** Observes nothing. A DOM that lays nothing out, as jsdom, in which people test their pages, has no observers and no media. */
const Blind = /** @type {any} */ (class {
  observe() {}
  unobserve() {}
  disconnect() {}
});

/** @param {ResizeObserverCallback} act @returns {ResizeObserver} */
export const sizes = (act) => new (globalThis.ResizeObserver ?? Blind)(act);

/** @param {IntersectionObserverCallback} act @param {IntersectionObserverInit} [options] @returns {IntersectionObserver} */
export const nearing = (act, options) => new (globalThis.IntersectionObserver ?? Blind)(act, options);

/** @param {string} query */
export const media = (query) => globalThis.matchMedia?.(query).matches ?? false;

/** Set text only where it changes: writing the same again would still cost a layout. @param {Element} element @param {string} text */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Of a word, so much without a sign or a letter that a line may end at. */
const UNBROKEN = /[!-,.-~\u00ae-\u02ff\u0370-\u058f]{400}/g;

/**
 * Let lines end in long words, where nobody sees, copies or finds it: else WebKit would look for a place to break through
 * all of the word for each of its lines. What is there of a word stays as it is when the word grows.
 * @param {Node} root
 */
export function breakable(root) {
  if ((root.textContent ?? "").search(UNBROKEN) < 0) return;
  const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  /** @type {Text[]} */ const all = [];
  while (texts.nextNode()) all.push(/** @type {Text} */ (texts.currentNode));
  for (let text of all) {
    if (text.parentElement?.closest("pre, table, math")) continue; // lines do not end in words there
    let begin = 0;
    for (const { index, 0: { length } } of text.data.matchAll(UNBROKEN)) {
      text = text.splitText(index + length - begin);
      text.before(h("wbr"));
      begin = index + length;
    }
  }
}

/** A drawing of one line, in the text's colour. @param {string} path of a 24 by 24 box */
export function icon(path) {
  const names = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(names, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(names, "path"));
  svg.firstElementChild?.setAttribute("d", path);
  return svg;
}

export const ICONS = {
  send: "M12 19V5M5.5 11.5 12 5l6.5 6.5",
  stop: "M7 7h10v10H7z",
  down: "M12 5v14M5.5 12.5 12 19l6.5-6.5",
  close: "M6 6l12 12M18 6 6 18",
  help: "M9.2 9.2a2.9 2.9 0 1 1 4.2 2.6c-.9.5-1.4 1.1-1.4 2.2M12 17.6v.1",
};

/** Text that somebody decides by: what reorders it, or is not seen, stands as U+FFFD. @param {unknown} text */
export const plain = (text) =>
  String(text).replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g, "\ufffd");
