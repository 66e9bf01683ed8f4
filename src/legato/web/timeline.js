/**
 * The picture of a log: time from left to right, a lane for each kind of event, what comes per second as a curve, the
 * silences with their length, and every reader where its cursor is. Drawn on a canvas in as many columns as there are
 * pixels, so a hundred thousand events cost one walk over their columns; the readers and the tip are elements.
 *
 * It is a slider over events: the arrow keys go from one to the next, a click takes the nearest.
 */
import { h } from "./dom.js";
import { duration, number } from "./figures.js";
import { Flags } from "./flags.js";
import { KINDS, TOKEN, kindOf } from "./outline.js";

/** @typedef {import("./outline.js").Outline} Outline */
/** @typedef {import("./outline.js").Run} Run */
/** @typedef {import("./troubles.js").Reader} Reader */
/**
 * @typedef {object} View
 * @property {Outline} outline
 * @property {Run | null} run whose events are shown; null for all
 * @property {boolean} live whether it goes on
 * @property {Reader[]} readers
 * @property {number} more readers that are not in the list
 * @property {() => number} now milliseconds since the session's first event
 * @property {number} selected offset; 0 for none
 */

const CURVE = 64;
const LANE = 26;
const AXIS = 22;
const NAMES = { run: "Run", thinking: "Thinking", text: "Text", tools: "Tools", asks: "Asks" };
/** Milliseconds: a shorter silence is a pause, not a gap. */
const GAP = 750;
const COLORS = ["text", "quiet", "line", "page", "bad", "good", "accent", ...KINDS.map((kind) => `kind-${kind}`)];

export class Timeline {
  /** @type {View | null} */ #view = null;
  /** @type {Record<string, string>} */ #colors = {};
  #canvas = /** @type {HTMLCanvasElement} */ (
    h("canvas", { tabindex: "0", role: "slider", "aria-label": "Events in time", "aria-valuemin": "1", "aria-valuenow": "1", "aria-valuemax": "1" })
  );
  #flags = new Flags();
  #tip = h("div", { class: "tip", hidden: true });
  #hover = 0;
  #pick;
  #tell;
  #range = { first: 1, last: 0, from: 0, to: 1 };
  #dirty = false;
  #drawn = 0;
  #still = matchMedia("(prefers-reduced-motion: reduce)");

  /**
   * @param {HTMLElement} root
   * @param {(offset: number) => void} pick an event has been chosen
   * @param {(offset: number) => string} tell what an event says, as far as that is known
   */
  constructor(root, pick, tell) {
    this.#pick = pick;
    this.#tell = tell;
    root.append(this.#canvas, this.#flags.element, this.#tip);
    new ResizeObserver(() => this.#touch()).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#colors = {};
      this.#touch();
    });
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerleave", () => this.#unpoint());
    this.#canvas.addEventListener("click", (event) => {
      const offset = this.#nearest(event);
      if (offset > 0) this.#pick(offset);
    });
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("focus", () => this.#touch());
    this.#canvas.addEventListener("blur", () => this.#unpoint());
  }

  /** @param {View} view */
  show(view) {
    this.#view = view;
    this.#touch();
  }

  #touch() {
    if (this.#dirty) return;
    this.#dirty = true;
    requestAnimationFrame((time) => {
      this.#dirty = false;
      this.#drawn = time;
      this.#draw();
    });
  }

  /** Time goes on between two answers of the server, too. @param {number} time */
  tick(time) {
    if (this.#view?.live && !this.#still.matches && time - this.#drawn > 90) this.#touch();
  }

  /* ---- Geometry ---------------------------------------------------------------------------------------------- */

  get #gutter() {
    return this.#canvas.clientWidth < 520 ? 70 : 84;
  }

  get #width() {
    return Math.max(Math.floor(this.#canvas.clientWidth - this.#gutter - 10), 40);
  }

  /** @param {number} at */
  #x(at) {
    const { from, to } = this.#range;
    return this.#gutter + ((at - from) / (to - from)) * this.#width;
  }

  /** Where a reader is that has read up to and with `cursor`. @param {number} cursor */
  #cursor(cursor) {
    const { outline, live } = /** @type {View} */ (this.#view);
    const { first, last, from, to } = this.#range;
    if (cursor >= outline.length && live) return this.#x(to);
    const known = Math.min(Math.max(cursor, first), last);
    return this.#x(known >= 1 && outline.length > 0 ? Math.max(outline.at(known), from) : from);
  }

  /** @param {string} kind */
  #y(kind) {
    return CURVE + 8 + KINDS.indexOf(/** @type {any} */ (kind)) * LANE;
  }

  #measure() {
    const { outline, run, live, now } = /** @type {View} */ (this.#view);
    const first = run?.first ?? 1;
    const last = run?.last ?? outline.length;
    const from = outline.length ? outline.at(first) : 0;
    const end = outline.length ? outline.at(last) : 0;
    const to = live ? Math.max(now(), end) : end;
    this.#range = { first, last, from, to: Math.max(to, from + 250) };
  }

  /* ---- Drawing ----------------------------------------------------------------------------------------------- */

  #draw() {
    const canvas = this.#canvas;
    const view = this.#view;
    if (view === null || canvas.clientWidth === 0) return;
    this.#measure();
    const top = CURVE + 8 + KINDS.length * LANE + AXIS;
    const flags = this.#flags.place(view, { top, left: this.#gutter, wide: this.#width, whole: canvas.clientWidth, x: (cursor) => this.#cursor(cursor) });
    const height = top + flags + (flags ? 8 : 0);
    const ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.style.height = `${height}px`;
    const [width, tall] = [Math.round(canvas.clientWidth * ratio), Math.round(height * ratio)];
    if (canvas.width !== width || canvas.height !== tall) [canvas.width, canvas.height] = [width, tall];
    const paint = canvas.getContext("2d");
    if (paint === null) return;
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, canvas.clientWidth, height);
    const style = getComputedStyle(canvas);
    if (this.#colors.text === undefined) this.#colors = Object.fromEntries(COLORS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    paint.font = `12px ${style.fontFamily}`;
    paint.textBaseline = "middle";
    this.#lanes(paint);
    if (view.outline.length === 0) return;
    const bins = view.outline.bins(this.#range, this.#width, view.run);
    this.#gaps(paint, view);
    this.#curve(paint, bins.characters);
    this.#runs(paint, view);
    this.#spans(paint, view);
    for (const kind of KINDS) this.#density(paint, kind, bins.counts[kind]);
    this.#axis(paint);
    if (view.live) this.#now(paint);
    for (const [offset, strong] of [[this.#hover, false], [view.selected, true]]) this.#cross(paint, Number(offset), Boolean(strong));
    this.#describe(view);
  }

  /** @param {CanvasRenderingContext2D} paint */
  #lanes(paint) {
    const right = this.#gutter + this.#width;
    paint.fillStyle = this.#colors.quiet;
    paint.textAlign = "right";
    paint.fillText("Tokens/s", this.#gutter - 10, CURVE - 12);
    for (const kind of KINDS) {
      const y = this.#y(kind);
      paint.fillStyle = this.#colors.quiet;
      paint.fillText(NAMES[kind], this.#gutter - 10, y + LANE / 2);
      paint.fillStyle = this.#colors.line;
      paint.fillRect(this.#gutter, y + LANE - 0.5, right - this.#gutter, 1);
    }
    paint.fillStyle = this.#colors.line;
    paint.fillRect(this.#gutter, CURVE + 7.5, right - this.#gutter, 1);
  }

  /** @param {CanvasRenderingContext2D} paint @param {View} view */
  #gaps(paint, view) {
    const { from, to } = this.#range;
    const least = Math.max(GAP, (to - from) / 40);
    paint.textAlign = "center";
    for (const gap of view.outline.gaps(this.#range, view.run, least, view.live)) {
      const [left, right] = [this.#x(gap.from), this.#x(gap.to)];
      paint.save();
      paint.globalAlpha = 0.09;
      paint.fillStyle = this.#colors.text;
      paint.fillRect(left, 0, right - left, CURVE + 8 + KINDS.length * LANE);
      paint.restore();
      if (right - left < 34) continue;
      paint.fillStyle = this.#colors.quiet;
      paint.fillText(duration(gap.to - gap.from), (left + right) / 2, 10);
    }
  }

  /** @param {CanvasRenderingContext2D} paint @param {Float64Array} characters by column */
  #curve(paint, characters) {
    const { from, to } = this.#range;
    const width = characters.length;
    const column = (to - from) / width / 1000;
    // Half a second, at least seven columns: single tokens are no rate.
    const half = Math.max(3, Math.min(Math.round(0.25 / column), Math.round(width / 60)));
    const rates = new Float64Array(width);
    let sum = 0;
    for (let i = -half; i < width; i++) {
      if (i + half < width) sum += characters[i + half];
      if (i - half - 1 >= 0) sum -= characters[i - half - 1];
      if (i >= 0) rates[i] = Math.max(sum, 0) / TOKEN / (column * (2 * half + 1));
    }
    const most = Math.max(...rates);
    if (most <= 0) return;
    const y = (/** @type {number} */ rate) => CURVE + 7 - (rate / most) * (CURVE - 22);
    paint.beginPath();
    paint.moveTo(this.#gutter, CURVE + 7);
    rates.forEach((rate, i) => paint.lineTo(this.#gutter + i + 0.5, y(rate)));
    paint.lineTo(this.#gutter + width, CURVE + 7);
    paint.closePath();
    paint.save();
    paint.fillStyle = this.#colors["kind-text"];
    paint.globalAlpha = 0.16;
    paint.fill();
    paint.restore();
    paint.beginPath();
    rates.forEach((rate, i) => (i ? paint.lineTo(this.#gutter + i + 0.5, y(rate)) : paint.moveTo(this.#gutter + 0.5, y(rate))));
    paint.strokeStyle = this.#colors["kind-text"];
    paint.lineWidth = 1.5;
    paint.stroke();
    paint.fillStyle = this.#colors.text;
    paint.textAlign = "right";
    paint.fillText(`≈ ${number(Math.round(most))}`, this.#gutter - 10, 22);
  }

  /** The life of each run: waiting, its attempts, the time between a crash and the next, the end. @param {CanvasRenderingContext2D} paint @param {View} view */
  #runs(paint, view) {
    const { outline } = view;
    const top = this.#y("run") + 5;
    const high = LANE - 11;
    for (const run of view.run === null ? outline.runs : [view.run]) {
      if (run.last < this.#range.first || run.first > this.#range.last || run.first === 0) continue;
      const end = run.end === "" ? this.#range.to : outline.at(run.last);
      const starts = run.attempts.map((offset) => outline.at(offset));
      const color = run.end === "run.failed" ? this.#colors.bad : run.end === "run.cancelled" ? this.#colors.quiet : run.end === "" ? this.#colors.accent : this.#colors.good;
      this.#bar(paint, outline.at(run.first), starts[0] ?? end, top, high, this.#colors.quiet, true);
      run.attempts.forEach((offset, i) => {
        const next = run.attempts[i + 1];
        // An attempt that died ends with the last event before the next one began.
        const died = next === undefined ? end : outline.at(this.#before(run, next));
        this.#bar(paint, starts[i], died, top, high, next === undefined ? color : this.#colors.bad, false);
        if (next !== undefined) this.#bar(paint, died, starts[i + 1], top, high, this.#colors.bad, true);
        if (run.attempts.length > 1) this.#caption(paint, `attempt ${i + 1}`, starts[i], died, top + high / 2);
      });
      if (run.attempts.length === 1) this.#caption(paint, this.#called(view, run), starts[0], end, top + high / 2);
    }
  }

  /** @param {View} view @param {Run} run */
  #called(view, run) {
    const state = run.end === "" ? "running" : run.end.slice(4);
    return view.run === null ? `${run.number} ${state}` : state;
  }

  /** The run's event before the one at `offset`. @param {Run} run @param {number} offset */
  #before(run, offset) {
    const { outline } = /** @type {View} */ (this.#view);
    let before = offset - 1;
    while (before > run.first && outline.run(before) !== run) before--;
    return before;
  }

  /** @param {CanvasRenderingContext2D} paint @param {string} text @param {number} from @param {number} to @param {number} y */
  #caption(paint, text, from, to, y) {
    const [left, right] = [this.#x(from), this.#x(to)];
    if (paint.measureText(text).width + 12 > right - left) return;
    paint.fillStyle = this.#colors.page;
    paint.textAlign = "left";
    paint.fillText(text, left + 6, y + 0.5);
  }

  /** @param {CanvasRenderingContext2D} paint @param {number} from @param {number} to @param {number} y @param {number} high @param {string} color @param {boolean} hatched */
  #bar(paint, from, to, y, high, color, hatched) {
    const left = this.#x(from);
    const wide = Math.max(this.#x(to) - left, hatched ? 0 : 3);
    if (wide < 1) return;
    paint.save();
    paint.beginPath();
    paint.roundRect(left, y, wide, high, Math.min(4, wide / 2));
    paint.fillStyle = color;
    if (hatched) {
      paint.globalAlpha = 0.18;
      paint.fill();
      paint.clip();
      paint.globalAlpha = 0.75;
      paint.strokeStyle = color;
      paint.lineWidth = 1;
      paint.beginPath();
      for (let x = left - high; x < left + wide; x += 6) {
        paint.moveTo(x, y + high);
        paint.lineTo(x + high, y);
      }
      paint.stroke();
    } else paint.fill();
    paint.restore();
  }

  /** @param {CanvasRenderingContext2D} paint @param {View} view */
  #spans(paint, view) {
    const pairs = /** @type {const} */ ([
      ["tools", ["tool_call.started"], ["tool.completed"]],
      ["asks", ["permission.requested", "notification.created"], ["permission.resolved", "notification.resolved"]],
    ]);
    for (const [kind, begins, ends] of pairs) {
      paint.save();
      paint.globalAlpha = 0.28;
      paint.fillStyle = this.#colors[`kind-${kind}`];
      for (const span of view.outline.spans(this.#range, view.run, [...begins], [...ends])) {
        paint.beginPath();
        paint.roundRect(this.#x(span.from), this.#y(kind) + 6, Math.max(this.#x(span.to) - this.#x(span.from), 2), LANE - 13, 4);
        paint.fill();
      }
      paint.restore();
    }
  }

  /** @param {CanvasRenderingContext2D} paint @param {string} kind @param {Uint32Array} counts by column */
  #density(paint, kind, counts) {
    if (kind === "run") return; // drawn as what it means
    const most = counts.reduce((one, other) => Math.max(one, other), 0);
    if (most === 0) return;
    paint.save();
    paint.fillStyle = this.#colors[`kind-${kind}`];
    const y = this.#y(kind);
    counts.forEach((each, column) => {
      if (each === 0) return;
      paint.globalAlpha = 0.45 + 0.55 * (each / most);
      const high = (LANE - 11) * (0.55 + 0.45 * (each / most));
      paint.fillRect(this.#gutter + column - 0.25, y + 5 + (LANE - 11 - high) / 2, kind === "tools" || kind === "asks" ? 3 : 1.5, high);
    });
    paint.restore();
  }

  /** @param {CanvasRenderingContext2D} paint */
  #axis(paint) {
    const { from, to } = this.#range;
    const y = CURVE + 8 + KINDS.length * LANE;
    const least = ((to - from) * 76) / this.#width;
    const step = [100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5, 108e5, 432e5, 864e5].find((each) => each >= least) ?? Math.ceil(least / 864e5) * 864e5;
    paint.textAlign = "center";
    for (let at = 0; at <= to - from; at += step) {
      const x = this.#x(from + at);
      paint.fillStyle = this.#colors.line;
      paint.fillRect(x, y, 1, 5);
      paint.fillStyle = this.#colors.quiet;
      if (x < this.#gutter + this.#width - (/** @type {View} */ (this.#view).live ? 48 : 14)) paint.fillText(at === 0 ? "0" : step < 1000 ? `${(at / 1000).toFixed(1)} s` : duration(at), Math.max(x, this.#gutter + 4), y + 13);
    }
  }

  /** @param {CanvasRenderingContext2D} paint */
  #now(paint) {
    const x = this.#gutter + this.#width;
    paint.fillStyle = this.#colors.accent;
    paint.fillRect(x - 1, 0, 2, CURVE + 8 + KINDS.length * LANE + 4);
    paint.textAlign = "right";
    paint.fillText("now", x - 5, CURVE + 8 + KINDS.length * LANE + 13);
  }

  /** @param {CanvasRenderingContext2D} paint @param {number} offset @param {boolean} strong */
  #cross(paint, offset, strong) {
    const { outline } = /** @type {View} */ (this.#view);
    if (offset < this.#range.first || offset > this.#range.last) return;
    const x = this.#x(outline.at(offset));
    const kind = kindOf(outline.type(offset));
    paint.save();
    paint.fillStyle = this.#colors.text;
    paint.globalAlpha = strong ? 0.9 : 0.4;
    paint.fillRect(x - 0.75, 0, 1.5, CURVE + 8 + KINDS.length * LANE);
    paint.globalAlpha = 1;
    paint.beginPath();
    paint.arc(x, this.#y(kind) + LANE / 2 - 0.5, strong ? 5 : 4, 0, 7);
    paint.fillStyle = this.#colors[`kind-${kind}`];
    paint.strokeStyle = this.#colors.page;
    paint.lineWidth = 2;
    paint.fill();
    paint.stroke();
    paint.restore();
  }

  /* ---- Pointing ----------------------------------------------------------------------------------------------- */

  /** The event nearest to the pointer, those of the lane it is in before others. @param {MouseEvent} event */
  #nearest(event) {
    const view = this.#view;
    if (view === null || view.outline.length === 0) return 0;
    const { outline, run } = view;
    const { first, last, from, to } = this.#range;
    const box = this.#canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - this.#gutter, event.clientY - box.top];
    const at = from + (Math.min(Math.max(x, 0), this.#width) / this.#width) * (to - from);
    const lane = KINDS[Math.floor((y - CURVE - 8) / LANE)];
    const middle = Math.min(Math.max(outline.since(at), first), last);
    let best = 0;
    let distance = Infinity;
    const look = (/** @type {number} */ offset) => {
      if (run !== null && outline.run(offset) !== run) return true;
      // An event of another lane counts as 12 pixels further away.
      const away = Math.abs(outline.at(offset) - at) + (lane && kindOf(outline.type(offset)) !== lane ? ((to - from) / this.#width) * 12 : 0);
      if (away < distance) [best, distance] = [offset, away];
      return Math.abs(outline.at(offset) - at) < distance;
    };
    for (let offset = middle; offset <= last && look(offset); offset++);
    for (let offset = middle - 1; offset >= first && look(offset); offset--);
    return best;
  }

  /** @param {PointerEvent} event */
  #point(event) {
    this.#hover = this.#nearest(event);
    this.#touch();
    this.#showTip(this.#hover);
  }

  #unpoint() {
    this.#hover = 0;
    this.#tip.hidden = true;
    this.#touch();
  }

  /** @param {number} offset */
  #showTip(offset) {
    const view = this.#view;
    this.#tip.hidden = offset === 0 || view === null;
    if (offset === 0 || view === null) return;
    const { outline } = view;
    const lines = [h("strong", {}, `${number(offset)} ${outline.type(offset)}`), h("span", {}, `${duration(outline.at(offset) - this.#range.from)} after the beginning`)];
    const said = this.#tell(offset);
    if (said) lines.push(h("span", { class: "said", dir: "auto" }, said));
    this.#tip.replaceChildren(...lines);
    const x = this.#x(outline.at(offset));
    const wide = this.#tip.offsetWidth;
    this.#tip.style.transform = `translate(${Math.round(Math.min(Math.max(x - wide / 2, 4), this.#canvas.clientWidth - wide - 4))}px, ${this.#y(kindOf(outline.type(offset))) + LANE + 4}px)`;
  }

  /** What a slider says of itself. @param {View} view */
  #describe(view) {
    const { first, last } = this.#range;
    const offset = Math.min(Math.max(view.selected || last, first), last);
    for (const [name, value] of [["min", first], ["max", last], ["now", offset]]) this.#canvas.setAttribute(`aria-value${name}`, String(value));
    this.#canvas.setAttribute("aria-valuetext", offset ? `Event ${offset}, ${view.outline.type(offset)}, ${duration(view.outline.at(offset) - this.#range.from)} after the beginning` : "No event");
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const view = this.#view;
    if (view === null || view.outline.length === 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const { first, last } = this.#range;
    const here = view.selected || last;
    /** @type {Record<string, number>} */
    const steps = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, PageUp: here + 50, PageDown: here - 50, Home: first, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const step = Math.sign(steps[event.key] - here) || 1;
    let offset = Math.min(Math.max(steps[event.key], first), last);
    while (view.run !== null && view.outline.run(offset) !== view.run && offset + step >= first && offset + step <= last) offset += step;
    this.#pick(offset);
  }
}
