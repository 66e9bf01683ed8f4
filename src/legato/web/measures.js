/** The figures of the server, in a table that is asked for while somebody looks at it. */
import { h, write } from "./dom.js";
import { duration, number, size } from "./figures.js";
import { Poll } from "./poll.js";

/** Milliseconds between two looks. */
const EVERY = 2_000;

/** @typedef {{name: string, help: string, labels: Record<string, string>, value: number, mean: number | null, most: number | null}} Fact */

/** A value by the unit at the end of its name. @param {string} name @param {number} value */
function shown(name, value) {
  if (name.endsWith("_seconds")) return duration(value * 1000);
  if (/_bytes(_total)?$/.test(name)) return size(value);
  return Number.isInteger(value) ? number(value) : value.toPrecision(3);
}

/** @param {Fact} fact */
function said(fact) {
  if (fact.mean === null) return shown(fact.name, fact.value);
  const most = fact.most === null ? "" : `, 99 % up to ${shown(fact.name, fact.most)}`;
  return `${number(fact.value)}: ${shown(fact.name, fact.mean)} on average${most}`;
}

export class Measures {
  /** @type {Poll | null} */ #poll = null;
  /** @type {Map<string, {row: HTMLElement, value: HTMLElement}>} */ #rows = new Map();
  #body;

  /** @param {HTMLDetailsElement} details */
  constructor(details) {
    this.#body = h("tbody", {});
    const problem = h("p", { class: "fine", role: "status" });
    details.append(problem, h("table", {}, this.#body));
    details.addEventListener("toggle", () => {
      this.#poll?.close();
      this.#poll = details.open
        ? new Poll({
            ask: () => "api/inspect/measures",
            on: (answer) => this.#show(answer.measures),
            every: () => EVERY,
            trouble: (error) => write(problem, error === null ? "" : "The server does not answer. Trying again…"),
            refused: (error) => write(problem, error.message),
          })
        : null;
    });
  }

  /** @param {Fact[]} facts */
  #show(facts) {
    const keys = new Set();
    for (const fact of facts) {
      if (fact.value === 0 && fact.name.endsWith("_total")) continue; // many, and what has not happened says nothing
      const labels = Object.values(fact.labels).filter((each) => each !== "").join(", ");
      const key = `${fact.name} ${labels}`;
      keys.add(key);
      let item = this.#rows.get(key);
      if (item === undefined) {
        const value = h("td", {});
        const row = h("tr", { title: fact.help }, h("th", { scope: "row" }, fact.name.replace(/^legato_/, "")), h("td", {}, labels), value);
        item = { row, value };
        this.#rows.set(key, item);
        this.#body.append(row);
      }
      write(item.value, said(fact));
    }
    for (const [key, item] of this.#rows) {
      if (keys.has(key)) continue;
      item.row.remove();
      this.#rows.delete(key);
    }
  }
}
