/**
 * A session's log in columns: what the picture is drawn from, at about 14 bytes for each event. It knows order, time,
 * kind and size; what an event says is read page by page when somebody looks at it.
 *
 * The rule: offsets are dense, so entry `i` is the event with offset `i + 1`, and a page that does not join is refused.
 */

/** @typedef {"thinking" | "text" | "tools" | "asks" | "run"} Kind */

/** The lanes of the picture, from above. */
export const KINDS = /** @type {Kind[]} */ (["run", "thinking", "text", "tools", "asks"]);

/** Characters that are taken for one token, roughly what they are for English. */
export const TOKEN = 4;

const ENDS = new Set(["run.completed", "run.failed", "run.cancelled"]);

/** Which lane an event belongs to. @param {string} type @returns {Kind} */
export function kindOf(type) {
  if (type.startsWith("thinking.")) return "thinking";
  if (type.startsWith("text.") || type.startsWith("refusal.")) return "text";
  if (type.startsWith("tool")) return "tools";
  if (type.startsWith("permission.") || type.startsWith("notification.")) return "asks";
  return "run";
}

/**
 * @typedef {object} Run
 * @property {string} id
 * @property {number} number from 1, in the order of their messages
 * @property {number} first offset of its message
 * @property {number} last offset of its newest event
 * @property {number[]} attempts offsets of `run.started`
 * @property {string} end type of its terminal event, or empty
 */

/** An array of numbers that grows. */
class Column {
  /** @param {Uint8Array | Uint32Array | Float64Array | Int32Array} values */
  constructor(values) {
    this.values = values;
  }

  /** @param {number} place @param {number} value */
  set(place, value) {
    if (place >= this.values.length) {
      const Grown = /** @type {any} */ (this.values.constructor);
      const grown = new Grown(Math.max(1024, this.values.length * 2));
      grown.set(this.values);
      this.values = grown;
    }
    this.values[place] = value;
  }
}

export class Outline {
  length = 0;
  /** @type {string[]} */ types = [];
  /** @type {Run[]} */ runs = [];
  #type = new Column(new Uint8Array(1024));
  #run = new Column(new Int32Array(1024));
  #at = new Column(new Float64Array(1024));
  #size = new Column(new Uint32Array(1024));
  /** @type {Map<string, number>} */ #places = new Map();
  /** @type {Map<string, number>} */ #byRun = new Map();

  /**
   * Add the page of the server's outline that follows. Returns whether it joined: a page that begins elsewhere changes
   * nothing.
   * @param {{after: number, types: string[], runs: string[], type: number[], run: number[], at: number[], size: number[]}} page
   */
  add(page) {
    if (page.after !== this.length) return false;
    const types = page.types.map((type) => this.#place(type));
    const runs = page.runs.map((id) => this.#runOf(id));
    for (let i = 0; i < page.type.length; i++) {
      const place = this.length++;
      const run = page.run[i] < 0 ? -1 : runs[page.run[i]];
      this.#type.set(place, types[page.type[i]]);
      this.#run.set(place, run);
      this.#at.set(place, page.at[i]);
      this.#size.set(place, page.size[i]);
      if (run >= 0) this.#note(this.runs[run], page.types[page.type[i]], place + 1);
    }
    return true;
  }

  /** @param {string} type */
  #place(type) {
    let place = this.#places.get(type);
    if (place === undefined) {
      place = this.types.push(type) - 1;
      this.#places.set(type, place);
    }
    return place;
  }

  /** @param {string} id */
  #runOf(id) {
    let place = this.#byRun.get(id);
    if (place === undefined) {
      place = this.runs.push({ id, number: this.runs.length + 1, first: 0, last: 0, attempts: [], end: "" }) - 1;
      this.#byRun.set(id, place);
    }
    return place;
  }

  /** @param {Run} run @param {string} type @param {number} offset */
  #note(run, type, offset) {
    run.first ||= offset;
    run.last = offset;
    if (type === "run.started") run.attempts.push(offset);
    else if (ENDS.has(type)) run.end = type;
  }

  /** @param {number} offset */
  type(offset) {
    return this.types[this.#type.values[offset - 1]];
  }

  /** Milliseconds since the session's first event. @param {number} offset */
  at(offset) {
    return this.#at.values[offset - 1];
  }

  /** Characters of a delta. @param {number} offset */
  size(offset) {
    return this.#size.values[offset - 1];
  }

  /** @param {number} offset @returns {Run | null} */
  run(offset) {
    return this.runs[this.#run.values[offset - 1]] ?? null;
  }

  /** The first offset whose time is not before `at`; one more than there are if none. @param {number} at */
  since(at) {
    let low = 1;
    let high = this.length + 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at(middle) < at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /**
   * What a picture of so many columns needs: events by lane and column, and characters by column. One walk, whatever
   * the number of events.
   * @param {{first: number, last: number, from: number, to: number}} view offsets, and milliseconds
   * @param {number} width columns
   * @param {Run | null} run only its events
   */
  bins(view, width, run) {
    const counts = Object.fromEntries(KINDS.map((kind) => [kind, new Uint32Array(width)]));
    const characters = new Float64Array(width);
    const kinds = this.types.map(kindOf);
    const only = run === null ? -2 : run.number - 1;
    const scale = width / Math.max(view.to - view.from, 1);
    for (let offset = view.first; offset <= view.last; offset++) {
      if (only !== -2 && this.#run.values[offset - 1] !== only) continue;
      const column = Math.min(Math.max(Math.floor((this.at(offset) - view.from) * scale), 0), width - 1);
      counts[kinds[this.#type.values[offset - 1]]][column]++;
      characters[column] += this.size(offset);
    }
    return { counts: /** @type {Record<Kind, Uint32Array>} */ (counts), characters };
  }

  /**
   * The silences of at least `least` milliseconds between neighbouring events.
   * @param {{first: number, last: number, to: number}} view @param {Run | null} run @param {number} least
   * @param {boolean} open whether the time after the last event is one, too
   */
  gaps(view, run, least, open) {
    /** @type {{after: number, from: number, to: number}[]} */
    const gaps = [];
    let last = 0;
    const only = run === null ? -2 : run.number - 1;
    const look = (/** @type {number} */ to) => {
      if (last > 0 && to - this.at(last) >= least) gaps.push({ after: last, from: this.at(last), to });
    };
    for (let offset = view.first; offset <= view.last; offset++) {
      if (only !== -2 && this.#run.values[offset - 1] !== only) continue;
      look(this.at(offset));
      last = offset;
    }
    if (open) look(view.to);
    return gaps;
  }

  /**
   * Stretches in which something of a kind had begun and not ended (tools that work, questions that wait).
   * @param {{first: number, last: number, to: number}} view @param {Run | null} run
   * @param {string[]} begins @param {string[]} ends types
   */
  spans(view, run, begins, ends) {
    /** @type {{from: number, to: number}[]} */
    const spans = [];
    const only = run === null ? -2 : run.number - 1;
    let open = 0;
    let from = 0;
    for (let offset = view.first; offset <= view.last; offset++) {
      if (only !== -2 && this.#run.values[offset - 1] !== only) continue;
      const type = this.type(offset);
      const begun = begins.includes(type);
      // What is open when a run ends, or begins anew after a crash, will not be closed by anything of its own.
      const over = type === "run.started" || ENDS.has(type);
      if (begun && open++ === 0) from = this.at(offset);
      else if (open > 0 && (over || (ends.includes(type) && --open === 0))) {
        open = 0;
        spans.push({ from, to: this.at(offset) });
      }
    }
    if (open > 0) spans.push({ from, to: view.to });
    return spans;
  }

  /**
   * Characters per second in the `span` milliseconds before `now`.
   * @param {number} now milliseconds since the session's first event @param {number} span
   */
  rate(now, span) {
    let characters = 0;
    for (let offset = this.length; offset >= 1 && this.at(offset) > now - span; offset--) characters += this.size(offset);
    return (characters * 1000) / span;
  }
}
