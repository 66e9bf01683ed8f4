/**
 * A stream that outlives its connections. It reads one SSE resource by fetch, and after every end of a connection,
 * clean or not, comes back with `Last-Event-ID`: the end of a connection is not the end of a stream.
 *
 * It knows when to connect, when to give a connection up and what the cursor is; it knows no event but `connected`
 * and `heartbeat`. The rule: the cursor moves when the event has been handled, and only then, so nothing is skipped
 * and nothing comes twice. An error is the network's if it was thrown by reading from it, and the reader's own if the
 * reader's function threw it; what it is called says nothing.
 *
 * It runs in pages, workers, Node.js 20 and newer, and Deno.
 */
import { ConnectionLost, Foreign, LegatoError, Malformed, Refused } from "./errors.js";
import { final, lost, refusal, retryAfter, tell, worthRetrying } from "./errors.js";
import { send } from "./request.js";
import { Decoder } from "./sse.js";

export { Refused, refusal, retryAfter, worthRetrying };

/**
 * Milliseconds. The server beats every 15 s, so 45 s of silence is a dead connection that nobody has noticed. A connection
 * that is heard for longer than `healthy` is progress, though nothing happens in the session.
 */
export const TIMES = { silence: 45_000, first: 1_000, longest: 30_000, asked: 60_000, healthy: 30_000, hidden: 60_000 };

/** An event that cannot be read may have been spoilt on its way; one that comes spoilt this often is so in the log. */
const SPOILT = 3;

/**
 * Milliseconds to wait before coming back, by the law of docs/concepts.md; `tests/vectors/waits.json` holds here and in
 * `legato/client/resume.py`. Half of a wait is random, so that a thousand pages do not return at the same instant.
 * @param {number} attempt how many were made since the last progress
 * @param {{retry?: number | null, retryAfter?: number | null, random?: () => number}} given `retry`: the stream's, which
 *   the server has spread itself, so the first attempt waits exactly so long; `retryAfter`: of the answer before, which is
 *   waited for besides, up to a minute
 */
export function backoff(attempt, { retry = null, retryAfter = null, random = Math.random } = {}) {
  const base = Math.min(retry === null ? TIMES.first : Math.max(retry, 100), TIMES.longest);
  const most = Math.min(base * 2 ** attempt, TIMES.longest);
  const wait = attempt === 0 && retry !== null ? base : (most * (1 + random())) / 2;
  return wait + Math.min(retryAfter ?? 0, TIMES.asked);
}

/**
 * @typedef {"connecting" | "open" | "waiting" | "closed"} State
 *
 * @typedef {object} Listener
 * @property {(name: string, data: any, id: string) => void | Promise<void>} event awaited, so a slow reader holds the
 *   connection back instead of piling up events; what it throws ends the stream, with the cursor before the event. (What
 *   the others throw is uncaught, and changes nothing.)
 * @property {((state: State) => void) | undefined} [state]
 * @property {((error: LegatoError) => void) | undefined} [refused] the stream is over
 * @property {((response: Response) => void) | undefined} [open] the head of each good answer; its body is not yours
 * @property {((id: string) => void) | undefined} [beat] after each heartbeat, with the cursor
 *
 * @typedef {object} StreamSettings
 * @property {"GET" | "POST" | undefined} [method]
 * @property {string | undefined} [lastEventId] the cursor to begin after; without one the server decides
 * @property {AbortSignal | undefined} [signal] closes the stream
 * @property {boolean | undefined} [stay] keep the connection while the page is hidden; otherwise it is left after a minute
 * @property {((text: string, name: string) => any) | undefined} [parse] of an event's data; JSON by default. What it throws says that
 *   the event cannot be read
 *
 * @typedef {import("./request.js").Access & StreamSettings} StreamOptions
 */

export class Stream {
  /** @type {State} */ state = "closed";
  /** The id of the last event that has been handled; empty before the first. */
  cursor;
  #url;
  #on;
  #options;
  #life = new AbortController(); // ends with close()
  #connection = new AbortController(); // ends with each connection
  #attempt = 0;
  /** @type {number | null} */ #retry = null;
  #incarnation = ""; // the server's, on this connection
  #from = ""; // the one that the cursor is from
  #heard = 0;
  #handling = false;
  #spoilt = 0;
  /** @type {{error: unknown} | null} */ #fault = null; // what the reader threw
  #hurry = false;
  /** @type {() => void} */ #wake = () => {};

  /**
   * @param {string | URL} url
   * @param {Listener} on
   * @param {StreamOptions} options
   */
  constructor(url, on, options = {}) {
    this.#url = url;
    this.#on = on;
    this.#options = options;
    this.cursor = options.lastEventId ?? "";
  }

  /**
   * Follow the stream until `close()`, or until it is refused; call it once. Rejects with what `event` threw (a new
   * stream may go on from the cursor, with that event), or with a `TypeError` if the request can never be sent.
   */
  async follow() {
    const { signal } = this.#life;
    /** @type {LegatoError | null} */
    let refused = null;
    this.#listen(signal);
    while (!signal.aborted) {
      let wait = null;
      try {
        wait = await this.#connect();
      } catch (error) {
        if (!signal.aborted && this.#final(error)) {
          if (error instanceof LegatoError) refused = error;
          else this.#fault = { error };
          this.close();
        }
      }
      if (signal.aborted) break;
      this.#set("waiting");
      if (!this.#hurry) await this.#sleep(backoff(this.#attempt, { retry: this.#retry, retryAfter: wait }));
      this.#attempt = this.#hurry ? 0 : this.#attempt + 1;
      this.#hurry = false;
    }
    this.#set("closed");
    if (refused !== null) tell(() => this.#on.refused?.(refused));
    if (this.#fault !== null) throw this.#fault.error;
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

  /** Somebody is looking: connect now if there is no connection, or one that has missed a heartbeat. */
  wake() {
    // 20 s: the machine slept, and one heartbeat is missing already.
    if (this.state === "waiting" || this.#silent(20_000)) this.reconnect();
  }

  /** One connection, from request to end. Returns the wait that the server asked for, or null. */
  async #connect() {
    this.#set("connecting");
    this.#connection = new AbortController();
    const { signal } = this.#connection;
    if (this.#life.signal.aborted) return null;
    this.#heard = Date.now();
    // A timer of the page, not of the request: it is checked again on every wake-up, since timers sleep with the tab.
    const watchdog = setInterval(() => this.#silent(TIMES.silence) && this.#connection.abort(), TIMES.silence / 45);
    try {
      const response = await send(this.#url, this.#request(signal), this.#options);
      if (signal.aborted) return null; // at the last moment
      this.#heard = Date.now();
      if (response.status === 204) throw new Refused(204, "The server has nothing more to say.");
      const type = response.headers.get("content-type") ?? "";
      if (!response.ok || !type.startsWith("text/event-stream") || response.body === null) {
        const error = response.ok ? new Foreign(response) : await refusal(response);
        if (final(error)) throw error;
        return retryAfter(response);
      }
      this.#incarnation = response.headers.get("legato-incarnation") ?? "";
      tell(() => this.#on.open?.(response));
      this.#set("open");
      await this.#read(response.body.getReader(), signal);
    } finally {
      clearInterval(watchdog);
      this.#connection.abort();
    }
    return null;
  }

  /** @param {AbortSignal} signal */
  #request(signal) {
    /** @type {Record<string, string>} */
    const headers = { accept: "text/event-stream" };
    // In UTF-8, as browsers send it: a header takes text of which each character is a byte.
    if (this.cursor !== "") headers["last-event-id"] = String.fromCharCode(...new TextEncoder().encode(this.cursor));
    // Where it is from: a server put back from a backup may have given the same ids to other events.
    if (this.cursor !== "" && this.#from !== "") headers["legato-incarnation"] = this.#from;
    const method = this.#options.method ?? "GET";
    // A POST without a body, but of a type that a foreign page may not send unasked.
    if (method === "POST") headers["content-type"] = "application/json";
    return { method, headers, signal };
  }

  /** @param {ReadableStreamDefaultReader<Uint8Array>} reader @param {AbortSignal} signal */
  async #read(reader, signal) {
    const begun = Date.now();
    signal.addEventListener("abort", () => void reader.cancel().catch(() => {}));
    const decoder = new Decoder(this.cursor);
    for (;;) {
      const { done, value } = await reader.read().catch(lost);
      if (done || signal.aborted) return;
      this.#heard = Date.now();
      if (this.#heard - begun > TIMES.healthy) this.#attempt = 0;
      const messages = this.#decode(decoder, value);
      this.#retry = decoder.retry ?? this.#retry;
      for (const message of messages) {
        await this.#handle(message);
        if (signal.aborted) return; // the rest of this chunk comes again, after the cursor
      }
      this.cursor = decoder.lastEventId;
    }
  }

  /** @param {Decoder} decoder @param {Uint8Array} chunk */
  #decode(decoder, chunk) {
    try {
      return decoder.feed(chunk);
    } catch (cause) {
      this.#spoilt = SPOILT; // beyond all bounds: it is not asked for again
      throw new Malformed(/** @type {Error} */ (cause).message, { cause });
    }
  }

  /** @param {import("./sse.js").Message} message */
  async #handle({ event, data, id }) {
    if (event !== "heartbeat") {
      const value = parsed(data, event, this.#options.parse);
      this.#handling = true; // a silence that we make ourselves
      try {
        await this.#on.event(event, value, id);
      } catch (error) {
        this.#fault = fault(error, this.#options.signal);
        return this.close();
      } finally {
        this.#handling = false;
        this.#heard = Date.now();
      }
      if (event !== "connected") this.#attempt = this.#spoilt = 0; // a greeting alone is no progress
    }
    this.cursor = id;
    this.#from = this.#incarnation;
    if (event === "heartbeat") tell(() => this.#on.beat?.(this.cursor));
  }

  /** Whether coming back is of no use. @param {unknown} error */
  #final(error) {
    if (error instanceof Malformed) return (this.#spoilt += 1) >= SPOILT;
    return !(error instanceof ConnectionLost);
  }

  /** @param {number} limit */
  #silent(limit) {
    return !this.#handling && Date.now() - this.#heard > limit;
  }

  /** @param {AbortSignal} signal */
  #listen(signal) {
    const outer = this.#options.signal;
    if (outer?.aborted) this.close();
    outer?.addEventListener("abort", () => this.close(), { signal });
    const wake = () => this.wake();
    if (typeof addEventListener === "function") {
      addEventListener("online", wake, { signal });
      addEventListener("pageshow", wake, { signal });
    }
    if (typeof document === "undefined") return;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let hidden;
    const visibility = () => {
      clearTimeout(hidden);
      // Browsers give one host six connections over HTTP/1.1; a hidden tab gives its own back. The cursor stays, so it
      // costs nothing: on return the log is read from there.
      if (!document.hidden) wake();
      else if (!this.#options.stay) hidden = setTimeout(() => this.#connection.abort(), TIMES.hidden);
    };
    document.addEventListener("visibilitychange", visibility, { signal });
    signal.addEventListener("abort", () => clearTimeout(hidden));
  }

  /** Sleep until the time has come, or `reconnect()`; a hidden page sleeps until it is seen. @param {number} wait */
  #sleep(wait) {
    return new Promise((resolve) => {
      const hidden = () => !this.#options.stay && typeof document !== "undefined" && document.hidden;
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
    tell(() => this.#on.state?.(state));
  }
}

/**
 * An event's data, read.
 * @param {string} text @param {string} name @param {StreamOptions["parse"]} parse
 */
export function parsed(text, name, parse = (text) => JSON.parse(text)) {
  try {
    return parse(text, name);
  } catch (cause) {
    throw new Malformed(`An event's data cannot be read: ${text.slice(0, 60)}`, { cause });
  }
}

/**
 * What a reader threw, which is its fault unless it is only the reason of the signal by which the reader has left.
 * @param {unknown} error @param {AbortSignal | undefined} signal
 */
export function fault(error, signal) {
  return signal?.aborted && error === signal.reason ? null : { error };
}
