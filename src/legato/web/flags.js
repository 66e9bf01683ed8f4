/** The readers in the picture: a flag for each where its cursor is, with who it is and how far behind. */
import { h, write } from "./dom.js";
import { duration, named, number } from "./figures.js";
import { stateOf } from "./troubles.js";

/** @typedef {import("./troubles.js").Reader} Reader */
/** @typedef {{dialect: string, cursor: number, waiting: number, state: "live" | "behind" | "stalled", numbers: number[]}} Group */
/**
 * @typedef {object} Place
 * @property {number} top pixels above the first flag
 * @property {number} left pixels before the beginning of time
 * @property {number} wide pixels of time
 * @property {number} whole pixels in all
 * @property {(cursor: number) => number} x where a cursor is
 */

const HIGH = 24;
const MOST = 6; // rows; the rest is counted

export class Flags {
  element = h("ul", { class: "flags", "aria-label": "Readers" });
  /** @type {Map<string, HTMLElement>} */ #flags = new Map();

  /**
   * Put the readers where their cursors are; returns the height that they take, in pixels.
   * @param {{outline: import("./outline.js").Outline, readers: Reader[], more: number, now: () => number}} view @param {Place} place
   */
  place({ outline, readers, more, now }, place) {
    const groups = grouped(readers, (reader) => stateOf(reader, outline, now()));
    const shown = groups.slice(0, MOST);
    const keys = new Set(shown.map((group) => group.numbers.join()));
    this.element.style.setProperty("--room", `${place.whole}px`);
    shown.forEach((group, row) => this.#show(group, outline.length - group.cursor, place, place.top + row * HIGH));
    for (const [key, flag] of this.#flags) {
      if (keys.has(key)) continue;
      flag.remove();
      this.#flags.delete(key);
    }
    const rest = groups.slice(MOST).reduce((sum, group) => sum + group.numbers.length, 0) + more;
    this.element.dataset.rest = rest > 0 ? `and ${number(rest)} more` : "";
    this.element.style.setProperty("--rest", `${place.top + shown.length * HIGH}px`);
    return (shown.length + (rest > 0 ? 1 : 0)) * HIGH;
  }

  /** @param {Group} group @param {number} behind events @param {Place} place @param {number} y */
  #show(group, behind, place, y) {
    const key = group.numbers.join();
    const flag = this.#flags.get(key) ?? h("li", {}, h("span"));
    if (!this.#flags.has(key)) {
      this.#flags.set(key, flag);
      this.element.append(flag);
    }
    const x = place.x(group.cursor);
    flag.dataset.state = group.state;
    flag.dataset.side = x > place.left + place.wide / 2 ? "left" : "right";
    flag.style.transform = `translate(${Math.round(x)}px, ${y}px)`;
    flag.style.setProperty("--rise", `${y + 4}px`);
    const label = /** @type {HTMLElement} */ (flag.firstChild);
    write(label, said(group, behind, place.whole < 520));
    // On the side that has room, and within the picture.
    const wide = label.offsetWidth;
    const left = flag.dataset.side === "left" ? x - wide : x;
    label.style.left = `${Math.round(Math.min(Math.max(left, 2), place.whole - wide) - x)}px`;
  }
}

/** @param {Group} group @param {number} behind @param {boolean} short */
function said(group, behind, short) {
  const { numbers, cursor, waiting, state } = group;
  const dialect = short ? "" : ` (${named(group.dialect)})`;
  const who = numbers.length > 1 ? `${numbers.length} readers${dialect}` : `Reader ${numbers[0]}${dialect}`;
  const where = state === "live" ? "up to date" : `at ${number(cursor)}, ${number(behind)} behind`;
  return `${who}: ${where}${state === "stalled" ? `, takes nothing for ${duration(waiting * 1000)}` : ""}`;
}

/** Where there are many, readers of one dialect at one place are one flag. @param {Reader[]} readers @param {(reader: Reader) => Group["state"]} stateOf @returns {Group[]} */
function grouped(readers, stateOf) {
  /** @type {Map<string, Group>} */
  const groups = new Map();
  for (const reader of readers) {
    const { number, dialect, cursor, waiting } = reader;
    const state = stateOf(reader);
    const key = readers.length > MOST ? `${dialect} ${cursor} ${state}` : `${number}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { dialect, cursor, waiting, state, numbers: [number] });
    else {
      group.numbers.push(number);
      group.waiting = Math.max(group.waiting, waiting);
    }
  }
  return [...groups.values()];
}
