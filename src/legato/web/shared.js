/**
 * One stream for all tabs of an origin that show the same session: one of them has the connection and tells the others,
 * because a browser gives a host six connections over HTTP/1.1, and the seventh tab would wait without a word.
 *
 * A tab is a cursor, here as on the server. Its position moves in two ways only: by its own connection, or by an entry
 * from the leader that names exactly this position as the one before it. So whatever is lost, doubled, late or out of
 * order between the tabs, and whoever leads when, no tab skips or repeats an event. A tab that cannot go on asks: first
 * the leader, which keeps the newest entries; if those do not reach back far enough, the server, over a connection of
 * its own, until it is in step.
 *
 * The cursor moves when an event has been handled; between it and the position is a bounded inbox. Who lets it run full
 * is behind, and asks when it has been read. A leader that lets it run full resigns.
 *
 * A leader that has gone is replaced by the browser, through the lock; one that does not answer is robbed of it.
 */
import { Election } from "./election.js";
import { LegatoError, Malformed, tell } from "./errors.js";
import { draw } from "./core.js";
import { Stream, TIMES as STREAM_TIMES, fault, parsed } from "./resume.js";
import { Tail, full } from "./tail.js";

/**
 * Milliseconds. `patience`: for an answer of the leader (half as much again at random, so that not all lose it at
 * once). `silence`: after which it is asked whether it is there; it is heard at each heartbeat of the server, 15 s.
 * `glance`: for somebody to say that he is looking.
 */
export const TIMES = { patience: 2_000, silence: 45_000, glance: 1_500 };

/** Entries in one answer of the leader. */
const PAGE = 256;

/**
 * @typedef {import("./resume.js").State} State
 * @typedef {import("./tail.js").Entry} Entry
 *
 * @typedef {{to?: string, term: number, state: State, end: string, history: string}} Told what a leader's messages have
 * @typedef {Told & {kind: "state" | "lack" | "glance"} | Told & {kind: "entry", entry: Entry} | Told & {kind: "have", entries: Entry[]}} FromLeader
 * @typedef {{kind: "want", from: string, after: string, history: string} | {kind: "seen" | "hurry"}} ToLeader
 *
 * @typedef {{postMessage(message: any): void, close(): void, onmessage: ((event: any) => void) | null}} Channel
 *
 * @typedef {object} Sharing
 * @property {string | undefined} [share] who shares: tabs with the same word (for example the user's id); "" by default
 * @property {import("./election.js").Locks | undefined} [locks] `navigator.locks`
 * @property {((name: string) => Channel) | undefined} [channel] `new BroadcastChannel(name)`
 *
 * @typedef {Omit<import("./resume.js").StreamOptions, "method" | "stay"> & Sharing} SharedOptions
 */

/**
 * As `Stream`, but for streams whose events all have ids of their own (`/stream`). Of the listener's functions it
 * calls `event`, `state` and `refused`. Where there are no Web Locks (they need HTTPS or localhost) or no
 * BroadcastChannel, each tab has its own connection.
 */
export class SharedStream {
  /** @type {State} */ state = "closed";
  /** The id of the last event that has been handled; empty before the first. */
  cursor;
  #url;
  #on;
  #options;
  #me = draw();
  #life = new AbortController();
  /** @type {{error: unknown} | null} */ #fault = null; // what the reader threw
  /** @type {Channel | null} */ #channel = null;
  /** @type {Election | null} */ #election = null; // null: we are alone
  /** @type {Stream | null} */ #own = null; // the leader's connection, or that of one who catches up
  #position;
  #greeted = false; // by the server, at least once: a reader is told first where it stands
  /** @type {Entry[]} */ #inbox = [];
  #size = 0;
  /** @type {() => void} */ #arrival = () => {};
  /** @type {() => void} */ #room = () => {};

  // As a leader:
  #term = 0;
  #tail = new Tail("");
  #history = ""; // which log the positions are of: a new one after each reset
  #looking = false; // somebody is, as far as we know

  // As one of the others:
  /** @type {{term: number, state: State} | null} */ #leader = null;
  #attached = false; // in step with the leader
  #behind = false; // the inbox ran full
  #resigned = false; // for that reason, and it has not been empty since
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #asked; // and not answered yet
  #after = ""; // what we asked about
  #heard = 0; // when we heard of it last
  #words = 0; // how often

  /**
   * @param {string | URL} url
   * @param {import("./resume.js").Listener} on
   * @param {SharedOptions} options
   */
  constructor(url, on, options = {}) {
    this.#url = url;
    this.#on = on;
    this.#options = options;
    this.cursor = this.#position = options.lastEventId ?? "";
  }

  /** Follow the stream until `close()`, or until it is refused; call it once. Rejects as that of `Stream` does. */
  async follow() {
    const { signal } = this.#life;
    this.#options.signal?.addEventListener("abort", () => this.close(), { signal });
    if (this.#options.signal?.aborted) return;
    this.#listen(signal);
    this.#set("connecting");
    try {
      this.#enter();
    } catch (error) {
      this.#over(error); // no such address
    }
    await this.#consume(signal);
    if (this.#fault !== null) throw this.#fault.error;
  }

  /** Leave. The run goes on without us, and so do the other tabs. */
  close() {
    if (this.#life.signal.aborted) return;
    this.#life.abort();
    this.#leave();
    this.#arrival();
    this.#set("closed");
  }

  /** Connect now: drop a connection that may be dead, or end the wait for the next. */
  reconnect() {
    if (this.#own !== null) this.#own.reconnect();
    if (this.#leads) return this.#wanted();
    this.#post({ kind: "hurry" });
    this.#ask();
  }

  /** Somebody is looking: see to it that there is a connection. */
  wake() {
    if (this.#own !== null) this.#own.wake();
    if (this.#leads) return this.#wanted();
    this.#post({ kind: "seen" });
    this.#ask();
  }

  get #leads() {
    return this.#election?.won ?? false;
  }

  // Coming and going --------

  #enter() {
    const name = `legato.stream.1 ${this.#options.share ?? ""} ${new URL(this.#url, globalThis.location?.href)}`;
    const locks = this.#options.locks ?? globalThis.navigator?.locks;
    const { channel = typeof BroadcastChannel === "function" ? (name) => new BroadcastChannel(name) : null } = this.#options;
    if (!locks || channel === null) return this.#start();
    try {
      this.#channel = channel(name);
    } catch {
      return this.#start(); // the browser may keep nothing of this site, and lets its tabs not talk
    }
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    this.#election = new Election(locks, name, {
      won: () => this.#lead(),
      lost: () => this.#follower(),
      impossible: () => this.#alone(),
    });
    this.#election.stand();
    if (seen()) this.#post({ kind: "seen" });
    this.#ask();
  }

  #leave() {
    this.#election?.resign();
    this.#election = null;
    this.#drop();
    this.#channel?.close();
    this.#channel = null;
    this.#leader = null;
    this.#attached = false;
    this.#answered();
    this.#room();
    this.#set("waiting");
  }

  #alone() {
    this.#leave();
    this.#start();
  }

  #drop() {
    const own = this.#own;
    this.#own = null;
    own?.close();
  }

  // The way of an event: connection or channel, inbox, listener --------

  /** Have a connection of our own, from where we are. */
  #start() {
    if (this.#own !== null || this.#life.signal.aborted) return;
    const { fetch, headers } = this.#options;
    const stream = new Stream(
      this.#url,
      {
        event: (name, text, id) => this.#receive(stream, name, text, id),
        beat: (id) => this.#own === stream && this.#beat(id),
        state: (state) => this.#own === stream && this.#set(state),
        refused: (error) => this.#own === stream && this.#over(error),
      },
      { fetch, headers, lastEventId: this.#position, stay: this.#election !== null, parse: String },
    );
    this.#own = stream;
    stream.follow().catch((error) => this.#own === stream && this.#over(error));
  }

  /** @param {Stream} stream @param {string} name @param {string} text @param {string} id */
  async #receive(stream, name, text, id) {
    if (full(this.#inbox, this.#size) && this.#leads && !this.#resigned) this.#resign();
    while (full(this.#inbox, this.#size) && this.#own === stream) {
      await new Promise((resolve) => (this.#room = () => resolve(undefined)));
    }
    if (this.#own !== stream) return;
    // From here to the end without a pause: what is taken is taken, and told, before anything else can happen.
    if (name === "connected") this.#greet(text, id);
    else if (id === this.#position) throw new Malformed("A stream that is shared needs an id for each event.");
    else this.#take({ prev: this.#position, id, name, text });
    this.#ask();
  }

  /** The server has said where we stand. @param {string} text @param {string} id */
  #greet(text, id) {
    const entry = { prev: this.#position, id, name: "connected", text };
    this.#greeted = true;
    if (this.#position !== "" && this.#position !== id) return this.#take({ ...entry, reset: true });
    if (this.#position === "") this.#tail = new Tail(id);
    this.#position = id;
    if (!this.#leads) this.#history = ""; // whatever it was, the position is one of the server's log now
    this.#deliver(entry); // it is about our connection, and nobody else's
  }

  /** @param {string} id */
  #beat(id) {
    if (id !== this.#position) this.#take({ prev: this.#position, id, name: null, text: "" });
    else if (this.#leads) this.#tell("state");
    this.#ask();
  }

  /** @param {Entry} entry the next one after our position, or a reset */
  #take(entry) {
    this.#position = entry.id;
    this.#deliver(entry);
    if (entry.reset) this.#history = this.#leads ? draw() : "";
    if (!this.#leads) return;
    if (entry.reset) this.#tail = new Tail(entry.id);
    else this.#tail.push(entry);
    this.#tell("entry", { entry });
  }

  /** @param {Entry} entry */
  #deliver(entry) {
    this.#inbox.push(entry);
    this.#size += entry.text.length;
    this.#arrival();
  }

  /** @param {AbortSignal} signal */
  async #consume(signal) {
    while (!signal.aborted) {
      const entry = this.#inbox[0];
      if (entry === undefined) {
        this.#caughtUp();
        await new Promise((resolve) => (this.#arrival = () => resolve(undefined)));
        continue;
      }
      if (entry.name !== null && !(await this.#handle(entry.name, entry))) return;
      this.#inbox.shift();
      this.#size -= entry.text.length;
      this.cursor = entry.id;
      this.#room();
    }
  }

  /** Whether it has been handled; if not, the stream is over. @param {string} name @param {Entry} entry */
  async #handle(name, { text, id }) {
    let data;
    try {
      data = parsed(text, name, this.#options.parse);
    } catch (error) {
      this.#over(error);
      return false;
    }
    try {
      await this.#on.event(name, data, id);
      return true;
    } catch (error) {
      this.#fault = fault(error, this.#options.signal);
      this.close();
      return false;
    }
  }

  #caughtUp() {
    this.#behind = this.#resigned = false;
    this.#seek();
  }

  /** It cannot go on. @param {unknown} error */
  #over(error) {
    if (this.#life.signal.aborted) return;
    const refused = error instanceof LegatoError;
    if (!refused) this.#fault = { error };
    this.close();
    if (refused) tell(() => this.#on.refused?.(error));
  }

  // Leading --------

  #lead() {
    // Later than any leader before, even if the clock was set back.
    this.#term = Math.max(Date.now(), (this.#leader?.term ?? 0) + 1);
    this.#history ||= draw();
    this.#tail = new Tail(this.#position);
    this.#leader = null;
    this.#attached = this.#behind = false;
    this.#answered();
    this.#start();
    this.#tell("state");
  }

  /** Too slow to lead: let another do it, if there is one. */
  #resign() {
    this.#resigned = true;
    this.#election?.resign();
    this.#follower();
  }

  #follower() {
    if (this.#own !== null) this.#history = ""; // it goes by the server now, and not by what we told
    this.#election?.stand();
    this.#ask();
  }

  /** @param {"state" | "entry" | "have" | "lack" | "glance"} kind @param {object} [more] */
  #tell(kind, more) {
    const state = this.#own?.state ?? "waiting";
    this.#post({ kind, term: this.#term, state, end: this.#tail.end, history: this.#history, ...more });
  }

  /** @param {ToLeader} message */
  #answer(message) {
    if (message.kind === "hurry") {
      this.#own?.reconnect();
      this.#wanted();
    } else if (message.kind === "seen") {
      this.#own?.wake();
      this.#wanted();
    } else if (message.kind === "want") {
      const known = message.after !== "" && (message.history === "" || message.history === this.#history);
      const entries = known ? this.#tail.after(message.after, PAGE) : null;
      if (entries === null) this.#tell("lack", { to: message.from });
      else this.#tell("have", { to: message.from, entries });
    }
  }

  /** Somebody is looking. */
  #wanted() {
    this.#looking = true;
    this.#start();
  }

  /** The leader's tab has been hidden for a while: give the connection back, unless somebody looks at another one. */
  async #glance() {
    if (!this.#leads || this.#own === null || seen()) return;
    this.#looking = false;
    this.#tell("glance");
    await sleep(TIMES.glance, this.#life.signal);
    if (!this.#leads || seen() || this.#looking) return;
    this.#drop();
    this.#set("waiting");
  }

  // Following --------

  /** @param {FromLeader | ToLeader} message */
  #hear(message) {
    if (this.#channel === null) return;
    if (!("term" in message)) {
      if (this.#leads) this.#answer(message);
      return;
    }
    // Of two leaders one has been robbed and does not know it yet; the later one counts.
    if (this.#leads || message.term < (this.#leader?.term ?? this.#term)) return;
    this.#heard = Date.now();
    this.#words += 1;
    if (message.term !== this.#leader?.term) {
      this.#attached = false;
      this.#answered(); // by nobody any more: ask this one
    }
    this.#leader = { term: message.term, state: message.state };
    if (message.kind === "glance") return void (seen() && this.#post({ kind: "seen" }));
    if (message.kind === "entry") return this.#follow(message);
    if (message.to !== undefined && message.to !== this.#me) return;
    if (message.kind === "have") this.#attach(message);
    else if (message.kind === "lack") this.#lacking();
    else this.#compare(message);
  }

  /** One more entry of the leader. @param {Told & {entry: Entry}} message */
  #follow({ entry, history }) {
    if (!this.#attached) return this.#seek();
    const next = entry.reset || (entry.prev === this.#position && history === this.#history);
    if (!next || full(this.#inbox, this.#size)) return this.#detach();
    this.#take(entry);
    this.#history = history;
  }

  /** What the leader has after the position that we asked about. @param {Told & {entries: Entry[]}} message */
  #attach({ entries, end, history, state }) {
    this.#answered();
    if (this.#history !== "" && this.#history !== history) return this.#seek();
    const whole = (entries.at(-1)?.id ?? end) === end;
    if (this.#own !== null && !whole) return this.#nearer();
    const first = entries.findIndex(({ prev }) => prev === this.#position); // our own connection may have gone on
    if (first >= 0) this.#drop(); // from here on it would bring what we have
    for (const entry of first < 0 ? [] : entries.slice(first)) {
      if (full(this.#inbox, this.#size)) return this.#detach();
      this.#take(entry);
    }
    if (this.#position !== end) return this.#own === null ? this.#ask() : this.#nearer();
    this.#history = history;
    this.#attached = true;
    this.#drop();
    this.#set(state);
  }

  /** The leader does not know our position: only the server can bring us on. */
  #lacking() {
    this.#answered();
    if (this.#own !== null) this.#nearer();
    else if (this.#leader?.state === "open") this.#start();
    else this.#set(this.#leader?.state ?? "connecting");
  }

  /** Our own connection brings us on; it may have done so since we asked, and it may have been its last event. */
  #nearer() {
    if (this.#after !== this.#position) this.#ask();
  }

  /** The leader has said how it is. @param {Told} message */
  #compare({ state, end }) {
    if (!this.#attached) return this.#seek();
    this.#set(state);
    if (end !== this.#position) this.#detach();
  }

  #detach() {
    this.#attached = false;
    this.#behind = full(this.#inbox, this.#size);
    this.#seek();
  }

  /** Get in step, if we are not. */
  #seek() {
    if (!this.#attached && !this.#behind) this.#ask();
  }

  /** Ask the leader what it has for us; this also shows whether it is there. */
  #ask() {
    if (this.#election === null || this.#leads || this.#asked !== undefined) return;
    this.#after = this.#greeted ? this.#position : "";
    this.#post({ kind: "want", from: this.#me, after: this.#after, history: this.#history });
    const words = this.#words;
    const patience = TIMES.patience * (1 + Math.random() / 2);
    this.#asked = setTimeout(() => {
      this.#asked = undefined;
      if (this.#words > words) this.#seek();
      else this.#election?.seize();
    }, patience);
  }

  #answered() {
    clearTimeout(this.#asked);
    this.#asked = undefined;
  }

  // The page --------

  /** @param {AbortSignal} signal */
  #listen(signal) {
    const watchdog = setInterval(() => {
      if (!this.#leads && Date.now() - this.#heard > TIMES.silence) this.#ask();
    }, TIMES.silence / 3);
    signal.addEventListener("abort", () => clearInterval(watchdog));
    if (typeof addEventListener === "function") addEventListener("online", () => this.wake(), { signal });
    if (typeof document === "undefined") return;
    // A page that is put to sleep must hold neither the lock nor the connection.
    const sleep = () => this.#leave();
    const rise = () => {
      if (this.#election === null && this.#channel === null && this.#own === null) this.#enter();
      else this.wake();
    };
    addEventListener("pagehide", sleep, { signal });
    addEventListener("pageshow", rise, { signal });
    document.addEventListener("freeze", sleep, { signal });
    document.addEventListener("resume", rise, { signal });
    let changed = Date.now();
    document.addEventListener("visibilitychange", () => {
      changed = Date.now();
      if (seen()) rise();
    }, { signal });
    const glance = setInterval(() => {
      if (Date.now() - changed >= STREAM_TIMES.hidden) void this.#glance();
    }, STREAM_TIMES.hidden / 4);
    signal.addEventListener("abort", () => clearInterval(glance));
  }

  /** @param {FromLeader | ToLeader | object} message */
  #post(message) {
    this.#channel?.postMessage(message);
  }

  /** @param {State} state */
  #set(state) {
    if (this.#leads) this.#tell("state");
    if (state === this.state || (this.#life.signal.aborted && state !== "closed")) return;
    this.state = state;
    tell(() => this.#on.state?.(state));
  }
}

const seen = () => typeof document === "undefined" || !document.hidden;

/** @param {number} time milliseconds @param {AbortSignal} signal ends it early */
function sleep(time, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(wake, time);
    signal.addEventListener("abort", wake);
    function wake() {
      clearTimeout(timer);
      signal.removeEventListener("abort", wake);
      resolve(undefined);
    }
  });
}
