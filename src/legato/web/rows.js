/**
 * The log as a table: a row for each stored event, and beside it what that event is on the wire of each dialect. Only
 * the rows in sight are in the page, and only their events are read, a page at a time; so the length of the log does
 * not matter. All rows have one height, but for the chosen one, which shows everything.
 */
import { h } from "./dom.js";
import { number } from "./figures.js";
import { kindOf } from "./outline.js";
import { refusal } from "./resume.js";

/** @typedef {{offset: number, type: string, run: string | null, at: number, data: Record<string, any>, wire: Record<string, string>}} Row */
/** @typedef {{name: string, title: string}} Column */

/** Events in one page. */
const PAGE = 100;
/** Pages that are kept. */
const KEPT = 40;
/** Rows that the table has at most; of a longer log, the newest. Browsers bound the height of an element. */
const MOST = 200_000;
/** Characters of a chosen event that are shown at once. */
const LONG = 20_000;

export class Rows {
  /** @type {Map<number, {rows: Row[], columns: string, at: number}>} */ #pages = new Map();
  /** @type {Set<string>} */ #asked = new Set();
  /** @type {Map<number, HTMLElement>} */ #shown = new Map();
  /** @type {Column[]} */ #columns = [];
  #session = "";
  #length = 0;
  #begin = 0;
  #selected = 0;
  #extra = 0;
  #follow = true;
  #queued = false;
  #scroller;
  #grid = h("div", { role: "grid", tabindex: "0", id: "grid", "aria-label": "Events of the session", "aria-readonly": "true" });
  #head = h("div", { role: "row", class: "heads" });
  #body = h("div", { role: "rowgroup", class: "space" });
  #on;
  #top = 0;
  #drawn = 0;
  #request = new AbortController();

  /**
   * @param {HTMLElement} root
   * @param {object} on
   * @param {(offset: number) => void} on.pick an event has been chosen; 0 for none
   * @param {(follows: boolean) => void} on.follow whether new rows scroll into sight
   * @param {(error: Error | null) => void} on.problem rows cannot be read; null when they can again
   */
  constructor(root, on) {
    this.#on = on;
    this.#scroller = root;
    this.#grid.append(h("div", { role: "rowgroup", class: "sticky" }, this.#head), this.#body);
    root.append(this.#grid);
    root.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#touch()).observe(root);
    this.#grid.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.#body.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      const row = /** @type {HTMLElement} */ (event.target).closest("[data-offset]");
      // Whoever marks text wants to copy it.
      if (row === null || !(getSelection()?.isCollapsed ?? true) || /** @type {HTMLElement} */ (event.target).closest("pre, button")) return;
      const offset = Number(/** @type {HTMLElement} */ (row).dataset.offset);
      this.#on.pick(offset === this.#selected ? 0 : offset);
    });
  }

  /** Another session. @param {string} session @param {Column[]} columns */
  open(session, columns) {
    this.#request.abort();
    this.#request = new AbortController();
    this.#session = session;
    this.#pages.clear();
    this.#asked.clear();
    this.#clear();
    this.#length = this.#selected = this.#extra = 0;
    this.follow(true);
    this.columns(columns);
  }

  /** @param {Column[]} columns */
  columns(columns) {
    this.#columns = columns;
    this.#grid.style.setProperty("--columns", String(columns.length));
    this.#grid.toggleAttribute("data-wire", columns.length > 0);
    this.#grid.setAttribute("aria-colcount", String(4 + columns.length));
    this.#head.replaceChildren(...["#", "Time", "Event", "What it says"].map((title) => h("div", { role: "columnheader" }, title)),
      ...columns.map(({ title }) => h("div", { role: "columnheader" }, title)));
    this.#extra = 0;
    this.#clear();
    this.#touch();
  }

  /** The log has so many events now, and began at `begin` (seconds since the epoch). @param {number} length @param {number} begin */
  grow(length, begin) {
    this.#begin = begin;
    if (length === this.#length) return;
    this.#length = length;
    this.#touch();
  }

  /** Choose an event, and bring it into sight. @param {number} offset @param {boolean} [jump] */
  select(offset, jump = true) {
    // What stood open above closes: the rows below it stay where they are.
    if (this.#selected > 0 && this.#selected < offset) this.#scroller.scrollTop -= this.#extra;
    this.#selected = offset;
    this.#extra = 0;
    if (offset > 0) {
      this.follow(false);
      this.#grid.setAttribute("aria-activedescendant", `event-${offset}`);
    } else this.#grid.removeAttribute("aria-activedescendant");
    this.#clear();
    if (offset > 0 && jump) this.#reveal(offset);
    this.#touch();
  }

  /** @param {number} offset */
  #reveal(offset) {
    const high = this.#high;
    const y = (offset - this.#first) * high;
    const view = this.#scroller.clientHeight - this.#head.offsetHeight;
    this.#body.style.height = `${Math.max((this.#length - this.#first + 1) * high, 0)}px`;
    if (y < this.#scroller.scrollTop || y + high * 3 > this.#scroller.scrollTop + view) this.#scroller.scrollTop = Math.max(y - view / 4, 0);
  }

  /** Whether new rows scroll into sight. @param {boolean} follows */
  follow(follows) {
    if (follows !== this.#follow) this.#on.follow(follows);
    this.#follow = follows;
    if (follows) this.#touch();
  }

  /** What is known of an event, in a few words. @param {number} offset */
  tell(offset) {
    const row = this.#row(offset);
    return row === null ? "" : summary(row);
  }

  /* ---- What is in sight --------------------------------------------------------------------------------------- */

  get #first() {
    return Math.max(this.#length - MOST, 0) + 1;
  }

  get #high() {
    const style = getComputedStyle(this.#grid);
    return parseFloat(style.getPropertyValue("--row")) * parseFloat(style.fontSize);
  }

  #touch() {
    if (this.#queued) return;
    this.#queued = true;
    requestAnimationFrame(() => {
      this.#queued = false;
      this.#draw();
    });
  }

  #clear() {
    for (const element of this.#shown.values()) element.remove();
    this.#shown.clear();
  }

  #draw() {
    const high = this.#high;
    if (high !== this.#drawn) {
      this.#drawn = high; // another width of the page, other rows
      this.#extra = 0;
      this.#clear();
      if (this.#selected > 0) this.#reveal(this.#selected);
    }
    const first = this.#first;
    const count = this.#length - first + 1;
    this.#grid.setAttribute("aria-rowcount", String(this.#length + 1));
    this.#body.style.height = `${Math.max(count, 0) * high + this.#extra}px`;
    const scroller = this.#scroller;
    if (this.#follow) {
      scroller.scrollTop = scroller.scrollHeight;
      this.#top = scroller.scrollTop;
    }
    // Below the chosen row everything is further down by what that has more.
    const below = this.#selected >= first ? (this.#selected - first + 1) * high : Infinity;
    const top = Math.max(scroller.scrollTop - (scroller.scrollTop > below ? this.#extra : 0), 0);
    const from = first + Math.max(Math.floor(top / high) - 6, 0);
    const to = Math.min(first + Math.ceil((top + scroller.clientHeight) / high) + 6, this.#length);
    for (const [offset, element] of this.#shown) {
      if (offset >= from && offset <= to) continue;
      element.remove();
      this.#shown.delete(offset);
    }
    for (let offset = from; offset <= to; offset++) this.#show(offset, high, first);
    this.#read(from, to);
    const chosen = this.#shown.get(this.#selected);
    const extra = chosen === undefined ? this.#extra : Math.max(chosen.offsetHeight - high, 0);
    if (extra !== this.#extra) {
      this.#extra = extra;
      this.#touch();
    }
  }

  /** @param {number} offset @param {number} high @param {number} first */
  #show(offset, high, first) {
    let element = /** @type {HTMLElement} */ (this.#shown.get(offset));
    if (element === undefined) {
      element = /** @type {HTMLElement} */ (h("div", { role: "row", id: `event-${offset}`, "data-offset": String(offset), "aria-rowindex": String(offset + 1) }));
      this.#shown.set(offset, element);
      // In the order of the log, for those who do not see where it is put.
      const after = [...this.#shown.keys()].filter((each) => each > offset).sort((one, other) => one - other)[0];
      this.#body.insertBefore(element, after === undefined ? null : this.#shown.get(after) ?? null);
    }
    const chosen = offset === this.#selected;
    const y = (offset - first) * high + (this.#selected >= first && offset > this.#selected ? this.#extra : 0);
    element.style.transform = `translateY(${y}px)`;
    element.setAttribute("aria-selected", String(chosen));
    if (element.childElementCount === 0 || element.hasAttribute("data-empty")) {
      const row = this.#row(offset);
      element.toggleAttribute("data-empty", row === null);
      element.replaceChildren(...(row === null ? this.#blank(offset) : chosen ? this.#whole(row) : this.#cells(row)));
      if (row !== null) element.dataset.kind = kindOf(row.type);
      if (row !== null) element.dataset.type = row.type;
    }
  }

  /** @param {number} offset */
  #blank(offset) {
    return [h("div", { role: "gridcell" }, number(offset)), ...Array.from({ length: 3 + this.#columns.length }, () => h("div", { role: "gridcell" }))];
  }

  /** @param {Row} row */
  #about(row) {
    return [
      h("div", { role: "gridcell", class: "offset" }, number(row.offset)),
      h("div", { role: "gridcell", class: "time", title: new Date(row.at * 1000).toISOString() }, `${(row.at - this.#begin).toFixed(3)}`),
      h("div", { role: "gridcell", class: "type" }, row.type),
    ];
  }

  /** @param {Row} row */
  #cells(row) {
    return [
      ...this.#about(row),
      h("div", { role: "gridcell", class: "said", dir: "auto" }, summary(row)),
      ...this.#columns.map(({ name, title }) => h("div", { role: "gridcell", class: "wire", "data-dialect": name, "data-title": title, dir: "ltr" }, ...marked(frames(row.wire[name] ?? "").slice(0, 400), row))),
    ];
  }

  /** @param {Row} row */
  #whole(row) {
    const cell = (/** @type {string} */ name, /** @type {string} */ title, /** @type {string} */ text) => h("div", { role: "gridcell", class: "wire", "data-dialect": name, "data-title": title },
      text === "" ? h("p", { class: "fine" }, "Nothing: this dialect is silent about it.")
        : h("pre", { tabindex: "0", role: "group", "aria-label": title }, ...marked(text.slice(0, LONG), row), text.length > LONG ? `\n… ${number(text.length - LONG)} more characters` : ""));
    return [...this.#about(row), cell("log", "Stored", JSON.stringify(row.data, null, 1)), ...this.#columns.map(({ name, title }) => cell(name, title, row.wire[name] ?? ""))];
  }

  /* ---- Reading ------------------------------------------------------------------------------------------------ */

  /** @param {number} offset @returns {Row | null} */
  #row(offset) {
    const page = this.#pages.get(Math.floor((offset - 1) / PAGE));
    if (page === undefined || page.columns !== this.#names) return null;
    return page.rows[(offset - 1) % PAGE] ?? null;
  }

  get #names() {
    return this.#columns.map(({ name }) => name).join();
  }

  /** Read what is in sight and not known. @param {number} from @param {number} to */
  #read(from, to) {
    for (let page = Math.floor((from - 1) / PAGE); page * PAGE < to; page++) {
      const known = this.#pages.get(page);
      const held = known !== undefined && known.columns === this.#names ? known.rows.length : 0;
      const wanted = Math.min((page + 1) * PAGE, this.#length) - page * PAGE;
      if (held < wanted && page >= 0) void this.#fetch(page, held);
    }
  }

  /** @param {number} page @param {number} held rows of it that are known already */
  async #fetch(page, held) {
    const names = this.#names;
    const key = `${this.#session} ${page} ${names}`;
    if (this.#asked.has(key)) return;
    this.#asked.add(key);
    const { signal } = this.#request;
    try {
      const query = new URLSearchParams({ after: String(page * PAGE + held), limit: String(PAGE - held), dialects: names });
      const response = await fetch(`api/inspect/sessions/${encodeURIComponent(this.#session)}/wire?${query}`, { signal, cache: "no-store" });
      if (!response.ok) throw await refusal(response);
      const { rows } = await response.json();
      if (signal.aborted || names !== this.#names) return;
      const before = this.#pages.get(page);
      const known = before?.columns === names ? before.rows : [];
      if (known.length !== held) return; // it has gone meanwhile, or came with other columns: the next look asks anew
      this.#pages.delete(page);
      this.#pages.set(page, { rows: [...known, ...rows], columns: names, at: Date.now() });
      this.#on.problem(null);
      if (this.#pages.size > KEPT) this.#pages.delete(this.#pages.keys().next().value ?? -1);
    } catch (error) {
      if (!signal.aborted) {
        this.#on.problem(/** @type {Error} */ (error));
        await new Promise((resolve) => setTimeout(resolve, 1000)); // the next look at these rows asks again
      }
    } finally {
      this.#asked.delete(key);
      this.#touch();
    }
  }

  /* ---- Scrolling and keys -------------------------------------------------------------------------------------- */

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    if (scrollHeight - clientHeight - scrollTop < 8) {
      if (this.#selected === 0) this.follow(true);
    } else if (scrollTop < this.#top - 1) this.follow(false); // rows come below, so only a reader moves up
    this.#top = scrollTop;
    this.#touch();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.target !== this.#grid || this.#length === 0) return;
    const here = this.#selected || this.#length + 1;
    const page = Math.max(Math.floor(this.#scroller.clientHeight / this.#high) - 1, 1);
    /** @type {Record<string, number>} */
    const steps = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page, Home: this.#first, End: this.#length, Escape: 0 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.#on.pick(event.key === "Escape" ? 0 : Math.min(Math.max(steps[event.key], this.#first), this.#length));
  }
}

/** Frames in one piece, their lines kept and the blank lines left out: rows are low. @param {string} text */
const frames = (text) => text.replace(/\n\n/g, "\n").trimEnd();

/** `text` with what the event says marked in it, where it stands between quotes. @param {string} text @param {Row} row */
function marked(text, { data }) {
  const said = data.text ?? data.arguments;
  if (typeof said !== "string" || said === "") return [text];
  const quoted = JSON.stringify(said);
  const place = text.indexOf(quoted);
  if (place < 0) return [text];
  return [text.slice(0, place + 1), h("mark", {}, quoted.slice(1, -1)), text.slice(place + quoted.length - 1)];
}

/** What an event says, in a line. @param {Row} row */
export function summary({ type, data }) {
  if (type.endsWith(".delta")) return `“${data.text ?? data.arguments}”`;
  if (type === "message.created") return `${data.role}: ${data.text}`.slice(0, 300);
  if (type === "run.completed") return `${data.finish_reason}${data.usage?.output_tokens ? `, ${data.usage.output_tokens} tokens` : ""}`;
  if (type === "run.failed") return `${data.code}: ${data.message}`;
  if (type === "run.started") return `${data.agent}, attempt ${data.attempt}`;
  if (type.startsWith("tool")) return [data.name, data.by && data.by !== "server" ? `run by the ${data.by}` : "", data.progress, data.arguments, data.success === false ? "failed" : "", data.output === undefined ? "" : JSON.stringify(data.output)].filter(Boolean).join(" · ").slice(0, 300);
  if (type === "permission.requested") return `${data.tool}: ${data.description}`;
  if (type === "permission.resolved") return `${data.granted ? "granted" : "denied"} by ${data.by}`;
  if (type === "notification.created") return data.title || data.message;
  const rest = Object.entries(data).filter(([, value]) => typeof value !== "object").map(([name, value]) => `${name} ${value}`);
  return (rest.join(", ") || JSON.stringify(data)).slice(0, 300);
}

