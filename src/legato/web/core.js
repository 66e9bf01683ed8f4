/**
 * Where the server is and how to reach it (`LegatoCore`), and a request that is repeated until it is answered (`call`).
 * Everything else is functions that take a core first, so that a page carries only those it uses.
 *
 * The rule: nothing is repeated that could be carried out twice.
 */
import { ConnectionLost, Foreign, Refused, answered, final, fits, refusal, retryAfter } from "./errors.js";
import { send } from "./request.js";
import { backoff } from "./resume.js";

/** Attempts, and milliseconds that one may take. All of them together are patient for about a minute and a half. */
export const PATIENCE = { attempts: 7, attempt: 60_000 };

/** A server, and how its requests are made. Make one, and use it everywhere. */
export class LegatoCore {
  /** Where the API begins. */
  baseUrl;
  /** @type {import("./request.js").Fetch | undefined} */ fetch;
  /** @type {import("./request.js").HeadersSource | undefined} */ headers;

  /**
   * @param {{baseUrl?: string | URL} & import("./request.js").Access} options `baseUrl`: where Legato is mounted; by
   *   default the page's own address, and `http://localhost:8088` where there is no page
   */
  constructor({ baseUrl, fetch, headers } = {}) {
    const url = new URL(baseUrl ?? here(), here());
    if (!url.pathname.endsWith("/")) url.pathname += "/";
    this.baseUrl = url;
    this.fetch = fetch;
    this.headers = headers;
  }

  /**
   * An address of the API. Ids in `path` are to be encoded already, see `at`.
   * @param {string} path
   * @param {Record<string, string | number | boolean | undefined>} query without what is undefined
   */
  url(path, query = {}) {
    const url = new URL(path, this.baseUrl);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined) url.searchParams.set(name, String(value));
    }
    return url;
  }
}

function here() {
  if (typeof document !== "undefined") return new URL("./", document.baseURI);
  // A worker's own address is that of its script, which says nothing of where the API is mounted.
  const origin = typeof location === "undefined" ? "null" : location.origin;
  return new URL(origin.startsWith("http") ? `${origin}/` : "http://localhost:8088/");
}

/**
 * A path with ids in it, which must not lead elsewhere: `DELETE /api/sessions/` is not what was meant.
 * @param {TemplateStringsArray} words @param {string[]} ids
 */
export function at(words, ...ids) {
  return words.reduce((path, word, index) => {
    const id = ids[index - 1];
    if (typeof id !== "string" || id === "" || id === "." || id === "..") {
      throw new TypeError(`An id is expected, not ${JSON.stringify(id)}.`);
    }
    return path + encodeURIComponent(id) + word;
  });
}

/** A new random key or id: 128 bits. */
export function draw() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @typedef {object} Call
 * @property {"GET" | "POST" | "DELETE"} method
 * @property {string} path
 * @property {Record<string, string | number | boolean | undefined>} [query]
 * @property {unknown} [body] sent as JSON
 * @property {Record<string, string>} [headers]
 * @property {string} [key] an idempotency key, which makes a POST repeatable
 * @property {boolean} [repeat] whether it may be carried out twice; by default only without POST, or with a key
 * @property {number} [attempts] instead of `PATIENCE.attempts`
 * @property {(answer: any) => boolean} [expect] whether an answer is what was asked for, see `fits`
 * @property {AbortSignal} [signal]
 */

/**
 * The answer's JSON (undefined if it has none). Repeats what may be repeated, with growing waits or as long as the
 * server says, at once when the network is back.
 *
 * Rejects with `Refused`, `ConnectionLost` (or `Foreign`), or the signal's reason; with a `TypeError` if it can never be
 * sent.
 *
 * @param {LegatoCore} core
 * @param {Call} request
 * @returns {Promise<any>}
 */
export async function call(core, request) {
  const { method, key, repeat = method !== "POST" || key !== undefined, attempts = PATIENCE.attempts, signal } = request;
  for (let attempt = 0; ; attempt += 1) {
    const outcome = await once(core, request);
    signal?.throwIfAborted();
    if ("answer" in outcome) return outcome.answer;
    if (!repeat || attempt + 1 >= attempts || final(outcome.error)) throw outcome.error;
    await pause(backoff(attempt, { retryAfter: outcome.wait }), signal);
  }
}

/**
 * @param {LegatoCore} core
 * @param {Call} request
 * @returns {Promise<{answer: any} | {error: Error, wait?: number | null}>}
 */
async function once(core, { signal, expect = fits.any, ...request }) {
  const attempt = new AbortController();
  const leave = () => attempt.abort(signal?.reason);
  if (signal?.aborted) leave();
  signal?.addEventListener("abort", leave);
  const timer = setTimeout(() => attempt.abort(), PATIENCE.attempt);
  try {
    const response = await ask(core, request, attempt.signal);
    if (!response.ok) return { wait: retryAfter(response), error: await refusal(response) };
    return { answer: await answered(response, /** @type {(answer: any) => boolean} */ (expect)) };
  } catch (error) {
    if (error instanceof Refused || error instanceof Foreign) return { error };
    if (!(error instanceof ConnectionLost)) throw error;
    return { error: new ConnectionLost(`No whole answer came from ${core.baseUrl.origin}.`, { cause: error.cause }) };
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", leave);
  }
}

/**
 * One request, and its response, whatever that says.
 * @param {LegatoCore} core
 * @param {Call} request
 * @param {AbortSignal} signal
 */
export function ask(core, { method, path, query, body, key, ...request }, signal) {
  /** @type {Record<string, string>} */
  const headers = { accept: "application/json", ...request.headers };
  if (method === "POST") headers["content-type"] = "application/json";
  if (key !== undefined) headers["idempotency-key"] = key;
  return send(core.url(path, query), { method, headers, body: body === undefined ? null : JSON.stringify(body), signal }, core);
}

/** @param {number} wait milliseconds, or until the network is back @param {AbortSignal | undefined} signal */
async function pause(wait, signal) {
  const awake = new AbortController();
  await new Promise((resolve) => {
    const wake = () => resolve(undefined);
    const timer = setTimeout(wake, wait);
    const until = { signal: awake.signal };
    if (typeof addEventListener === "function") addEventListener("online", wake, until);
    signal?.addEventListener("abort", wake, until);
    awake.signal.addEventListener("abort", () => clearTimeout(timer));
  });
  awake.abort();
  signal?.throwIfAborted();
}
