/**
 * A stream that outlives its connections. It reads one SSE resource by fetch, and after every end of a connection,
 * clean or not, comes back with `Last-Event-ID`: the end of a connection is not the end of a stream.
 *
 * It knows when to connect, when to give a connection up and what the cursor is; it knows no event but `connected`
 * and `heartbeat`. The rule: the cursor moves only after the event has been handled, so nothing is skipped.
 */
import { Decoder } from "./sse.js";

/** Milliseconds. The server beats every 15 s, so 45 s of silence is a dead connection that nobody has noticed. */
export const TIMES = { silence: 45_000, first: 1_000, longest: 30_000, healthy: 30_000, hidden: 60_000 };

/** An answer that no retry can change, for example 404 for a deleted session. */
export class Refused extends Error {
  /** @param {number} status @param {string} message @param {string} reason */
  constructor(status, message, reason = "") {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

/**
 * Milliseconds to wait before the given attempt (0 = the first after a good connection). The server's `retry` is
 * jittered by the server; beyond it the wait doubles, with half of it random, so that a thousand pages do not return
 * at the same instant.
 * @param {number} attempt
 * @param {number | null} retry
 * @param {() => number} random
 */
export function backoff(attempt, retry, random = Math.random) {
  const base = Math.min(Math.max(retry ?? TIMES.first, 100), TIMES.longest);
  if (attempt === 0) return retry === null ? base * (0.5 + random() / 2) : base;
  return Math.min(base * 2 ** attempt, TIMES.longest) * (0.5 + random() / 2);
}

/**
 * `Retry-After` in milliseconds, or null.
 * @param {Response} response
 */
export function retryAfter(response) {
  const value = response.headers.get("retry-after");
  if (value === null) return null;
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(wait) ? null : Math.min(Math.max(wait, 0), 5 * 60_000);
}

/**
 * The error that a response of the API stands for.
 * @param {Response} response
 */
export async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  return new Refused(response.status, error?.message ?? `The server answered ${response.status}.`, error?.reason);
}

/** @param {number} status */
export const worthRetrying = (status) => status === 408 || status === 425 || status === 429 || status >= 500;

/** @typedef {"connecting" | "open" | "waiting" | "closed"} State */

export class Stream {
  /** @type {State} */ state = "closed";
  cursor = "";
  #url;
  #on;
  #life = new AbortController(); // ends with close()
  #connection = new AbortController(); // ends with each connection
  #attempt = 0;
  /** @type {number | null} */ #retry = null;
  #heard = 0;
  #hurry = false;
  /** @type {() => void} */ #wake = () => {};

  /**
   * @param {string | URL} url
   * @param {object} on
   * @param {(name: string, data: any, id: string) => void | Promise<void>} on.event awaited, so a slow reader holds
   *   the connection back instead of piling up events; what it throws ends the connection, and the event comes again
   * @param {(state: State) => void} [on.state]
   * @param {(error: Error) => void} [on.refused] the stream is over
   */
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
  }

  /** Follow the stream until `close()`, or until it is refused. */
  async follow() {
    const { signal } = this.#life;
    this.#listen(signal);
    while (!signal.aborted) {
      let wait = null;
      try {
        wait = await this.#connect();
      } catch (error) {
        if (signal.aborted) break;
        if (error instanceof Refused || error instanceof RangeError) {
          this.#set("closed");
          this.#life.abort();
          this.#on.refused?.(error);
          return;
        }
        // Everything else is the network's, or the page's own error about an event: it comes again.
        if (error?.name !== "TypeError" && error?.name !== "AbortError") console.warn(error);
      }
      if (signal.aborted) break;
      this.#set("waiting");
      if (!this.#hurry) await this.#sleep(wait ?? backoff(this.#attempt, this.#retry));
      this.#attempt = this.#hurry ? 0 : this.#attempt + 1;
      this.#hurry = false;
    }
    this.#set("closed");
  }

  /** Leave. The run goes on without us. */
  close() {
    this.#life.abort();
    this.#connection.abort();
    this.#wake();
  }

  /** Connect now: drop a connection that may be dead, or end the wait for the next. */
  reconnect() {
    this.#hurry = true;
    this.#connection.abort();
    this.#wake();
  }

  /** One connection, from request to end. Returns the wait that the server asked for, or null. */
  async #connect() {
    this.#set("connecting");
    this.#connection = new AbortController();
    const { signal } = this.#connection;
    if (this.#life.signal.aborted) return null;
    this.#heard = Date.now();
    const begun = this.#heard;
    // A timer of the page, not of the request: it is checked again on every wake-up, since timers sleep with the tab.
    const watchdog = setInterval(() => this.#silent(TIMES.silence) && this.#connection.abort(), TIMES.silence / 45);
    try {
      /** @type {Record<string, string>} */
      const headers = { accept: "text/event-stream" };
      if (this.cursor !== "") headers["last-event-id"] = this.cursor;
      const response = await fetch(this.#url, { headers, signal, cache: "no-store" });
      this.#heard = Date.now();
      if (!response.ok) {
        if (worthRetrying(response.status)) return retryAfter(response);
        throw await refusal(response);
      }
      const type = response.headers.get("content-type") ?? "";
      if (!type.startsWith("text/event-stream") || response.body === null) {
        throw new Refused(response.status, `Expected an event stream, got ${type || "nothing"}.`);
      }
      await this.#read(response.body.getReader(), begun);
    } finally {
      clearInterval(watchdog);
      this.#connection.abort();
    }
    return null;
  }

  /** @param {ReadableStreamDefaultReader<Uint8Array>} reader @param {number} begun */
  async #read(reader, begun) {
    const { signal } = this.#connection;
    const decoder = new Decoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.#heard = Date.now();
      const messages = decoder.feed(value);
      this.#retry = decoder.retry ?? this.#retry;
      for (const { event, data, id } of messages) {
        if (event === "connected") this.#set("open");
        else if (event !== "heartbeat") this.#attempt = 0;
        if (event !== "heartbeat") await this.#on.event(event, JSON.parse(data), id);
        if (signal.aborted) return; // the rest of this chunk comes again, after the cursor
        this.cursor = id;
      }
      if (decoder.lastEventId !== "") this.cursor = decoder.lastEventId;
      if (Date.now() - begun > TIMES.healthy) this.#attempt = 0;
    }
  }

  /** @param {number} limit */
  #silent(limit) {
    return Date.now() - this.#heard > limit;
  }

  /** @param {AbortSignal} signal */
  #listen(signal) {
    if (typeof document === "undefined") return;
    const wake = () => {
      // 20 s: the machine slept, and one heartbeat is missing already.
      if (this.state === "waiting" || this.#silent(20_000)) this.reconnect();
    };
    let hidden = 0;
    const visibility = () => {
      clearTimeout(hidden);
      // Browsers give one host six connections over HTTP/1.1; a hidden tab gives its own back. The cursor stays, so it
      // costs nothing: on return the log is read from there.
      if (document.hidden) hidden = setTimeout(() => this.#connection.abort(), TIMES.hidden);
      else wake();
    };
    addEventListener("online", wake, { signal });
    addEventListener("pageshow", wake, { signal });
    document.addEventListener("visibilitychange", visibility, { signal });
    signal.addEventListener("abort", () => clearTimeout(hidden));
  }

  /** Sleep until the time has come, or `reconnect()`; a hidden page sleeps until it is seen. @param {number} wait */
  #sleep(wait) {
    return new Promise((resolve) => {
      const hidden = () => typeof document !== "undefined" && document.hidden;
      const timer = setTimeout(() => hidden() || this.#wake(), wait);
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = () => {};
        resolve(undefined);
      };
    });
  }

  /** @param {State} state */
  #set(state) {
    if (state === this.state) return;
    this.state = state;
    this.#on.state?.(state);
  }
}
