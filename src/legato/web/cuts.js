/**
 * Where a long list, table, quotation or block of code is cut, so that it is set by parts and never holds the page. Loaded with
 * the first text that may have one.
 */
import { h } from "./dom.js";

/** Characters after which a list, a table or a quotation is cut, and a block of code: that has words marked up to there. */
const [PART, CODE] = [8_000, 20_000];

/** Whether a text has many formulas, each of which is many elements. @param {string} text */
export const dense = (text) => text.slice(0, 2_000).split(/\$|\\[([]/).length > 20;

const ITEM = /^(?:[-*+]|\d{1,9}([.)]))[ \t]/;
const FENCED = /^( {0,3})(`{3,}(?=[^`\n]*\n)|~{3,})[^\n]*\n/;
const HEAD = /^(?=.*\|) {0,3}\S.*\n[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*\n/;
const NO_ROW = /^(?!.*\|)|^ {0,3}(?:[-*+>#`~]|\d{1,9}[.)])/m;
const QUOTED = /^>(?! *\[!)/;
const NO_QUOTE = /^(?!>)|^>[ \t>]*(?:```|~~~)/m;

/**
 * A long block can be cut: its items, rows and lines do not change one another.
 * @typedef {{end: number, kind: RegExp, before: string}} Part where it ends, what its HTML begins with, and what is to stand
 *   before the rest of the block
 */

/** Of a text that begins with such a block, the part that is set by itself; by nothing but the text. @param {string} text @returns {Part | null} */
export function part(text) {
  const [, blanks, mark] = FENCED.exec(text) ?? [];
  const item = ITEM.exec(text);
  const each = item?.[1] ? `\\d{1,9}[${item[1]}]` : `[${text[0]}]`;
  const before = mark ? `${blanks}${mark}\n` : item ? "" : HEAD.exec(text)?.[0] ?? "";
  const [kind, rest, other] =
    mark ? [/^<pre/, /\n(?=[^])/g, RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \\t]*$`, "m")]
    : item ? [/^<[uo]l/, RegExp(`\\n(?=${each}[ \\t])`, "g"), RegExp(`^(?!${each}[ \\t]|[ \\t\\n])[^]`, "m")]
    : before ? [/^<table/, /\n(?=.*\|)/g, NO_ROW]
    : QUOTED.test(text) ? [/^<blockquote/, /\n>[ \t]*\n(?=> ?(?!\d{1,9}[.)])[^ \t\n])/g, NO_QUOTE]
    : [/^/, /$^/g, /^/];
  rest.lastIndex = (mark ? CODE : dense(text) ? PART / 2 : PART) - 1;
  const end = rest.exec(text) === null ? 0 : rest.lastIndex;
  return end === 0 || other.test(text.slice(before.length, end - 1)) ? null : { end, kind, before };
}

/** In a table whose rows stand in several boxes the columns are as wide as in the first one. @param {HTMLTableElement} table @param {Element | null | undefined} row the first one of a box */
function fit(table, row) {
  const { cells } = table.rows[0];
  if (!table.matches(".parts")) {
    const wide = table.parentElement?.clientWidth ?? 0;
    const size = parseFloat(getComputedStyle(cells[0]).fontSize);
    const widths = [...cells].map((cell) => cell.getBoundingClientRect().width);
    const sum = widths.reduce((all, each) => all + each);
    widths.forEach((width, at) => {
      const [own, share] = [`${(width + 0.1) / size}em`, `${(100 * width - 9) / sum}cqi`]; // no letter is to be moved by what is rounded
      cells[at].style.width = sum > wide + 1 ? own : sum > wide - 1 ? share : `min(${own}, ${share})`;
    });
    if (sum > wide + 1) table.style.width = `${sum / size + 1}em`;
    table.classList.add("parts");
  }
  [...(row?.children ?? [])].forEach((cell, at) => (/** @type {HTMLElement} */ (cell).style.width = cells[at]?.style.width));
}

/** Where the rest of a table, or of code, goes: a box in it. Else it stands by itself. @param {Part} part that has been set @param {Element} last what it was put into */
export function box(part, last) {
  const into = part.before && (last.closest("table, code") ?? [...last.querySelectorAll("table, pre > code")].pop());
  if (!into) return undefined;
  const table = into instanceof HTMLTableElement;
  // Where nothing is laid out nothing can be measured, and the boxes are as wide as one another by themselves.
  if (table && (into.matches(".parts") || (into.tBodies.length === 1 && into.parentElement?.clientWidth))) fit(into, into.tBodies[0].rows[0]);
  return into.appendChild(h(table ? "tbody" : "span", { class: "part" }));
}

/**
 * Make of a block what goes on from a part: rows and code without what is around them, a list with its numbers.
 * @param {DocumentFragment} block @param {Part} part @param {Element} box where it goes @returns {boolean} whether nothing else is to be made of it
 */
export function rejoin(block, part, box) {
  const [first] = block.children;
  const before = box.previousElementSibling?.lastElementChild;
  const table = box.closest("table");
  if (part.before !== "") {
    const inner = first?.querySelector("tbody, code");
    if (table?.matches(".parts")) fit(table, inner?.firstElementChild);
    block.replaceChildren(...(inner?.childNodes ?? []));
    return true;
  }
  if (first?.matches("ul, ol, blockquote")) first.classList.add("on");
  if (first instanceof HTMLOListElement && before instanceof HTMLOListElement) first.start = before.start + before.children.length;
  return false;
}
