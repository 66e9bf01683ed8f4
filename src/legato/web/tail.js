/**
 * The newest events of a stream, for those who come a little late: a chain in which each entry names the cursor before
 * it. Bounded; who is further behind asks the server.
 *
 * @typedef {object} Entry
 * @property {string} prev the cursor after which this is the next thing
 * @property {string} id the cursor after it
 * @property {string | null} name of the event; null if only the cursor moves
 * @property {string} text the event's data, as it came
 * @property {boolean} [reset] the log before it is void
 */

/** Entries, and characters of their data. */
export const BOUNDS = { entries: 1024, characters: 4 * 1024 * 1024 };

/** Whether one more would be too much. @param {Entry[]} entries @param {number} size characters in them */
export const full = (entries, size) => entries.length >= BOUNDS.entries || size >= BOUNDS.characters;

export class Tail {
  /** The cursor after the last entry. */
  end;
  /** @type {Entry[]} */ #entries = [];
  #size = 0;

  /** @param {string} end where it begins, with nothing in it */
  constructor(end) {
    this.end = end;
  }

  /** @param {Entry} entry */
  push(entry) {
    this.#entries.push(entry);
    this.#size += entry.text.length;
    this.end = entry.id;
    while (this.#entries.length > 1 && full(this.#entries, this.#size)) {
      this.#size -= this.#entries[0].text.length;
      this.#entries.shift();
    }
  }

  /** What follows the cursor, at most `limit` entries; null if the cursor is not in here. @param {string} cursor @param {number} limit */
  after(cursor, limit) {
    if (cursor === this.end) return [];
    const first = this.#entries.findIndex(({ prev }) => prev === cursor);
    return first < 0 ? null : this.#entries.slice(first, first + limit);
  }
}
