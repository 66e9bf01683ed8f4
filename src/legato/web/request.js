/**
 * One request to the server: headers that are asked for anew each time, so that a token is never stale, and a second
 * try with new ones when the server does not accept them. It knows nothing of streams and retries.
 *
 * @typedef {Record<string, string> | Headers | [string, string][]} HeaderList
 * @typedef {{unauthorized: boolean}} HeadersReason `unauthorized`: the last ones were answered with 401
 * @typedef {HeaderList | ((why: HeadersReason) => HeaderList | Promise<HeaderList>)} HeadersSource
 *   headers, or a function that is asked for them before each request; what it throws counts as a lost connection
 *   (the console is told of it, and it is tried again), unless it is a `Refused`
 * @typedef {(input: string | URL, init?: RequestInit) => Promise<Response>} Fetch
 * @typedef {object} Access how requests reach the server
 * @property {Fetch | undefined} [fetch] in place of the global one, for example to add `credentials`
 * @property {HeadersSource | undefined} [headers] for each request, for example `authorization`
 */
import { Refused, lost } from "./errors.js";

/**
 * The response, once its head is there. Rejects with `ConnectionLost` after an error of `fetch` or of a function for
 * headers, or when the signal ends the wait; with `Refused` if such a function does. Anything else is a mistake in what is
 * to be sent, which no repetition mends.
 * @param {string | URL} url
 * @param {RequestInit & {signal: AbortSignal, headers: Record<string, string>}} init its headers win over those of
 *   `access`
 * @param {Access} access
 */
export async function send(url, init, { fetch = globalThis.fetch, headers = {} }) {
  /** @param {boolean} unauthorized */
  const attempt = async (unauthorized) => {
    const all = new Headers(typeof headers === "function" ? await ask(init.signal, headers, { unauthorized }) : headers);
    for (const [name, value] of Object.entries(init.headers)) all.set(name, value);
    if (fetch === globalThis.fetch) new Request(url); // throws if the address is none
    // A write that is led elsewhere is not done there: followed, a POST would become a GET, and its answer a success.
    const redirect = (init.method ?? "GET") === "GET" ? "follow" : "manual";
    return ask(init.signal, fetch, url, { cache: "no-store", redirect, ...init, headers: all });
  };
  const response = await attempt(false);
  if (response.status !== 401 || typeof headers !== "function") return response;
  await response.body?.cancel().catch(() => {});
  return attempt(true);
}

/** Functions of the page's that have failed, and not worked since. @type {WeakSet<Function>} */
const failing = new WeakSet();

/**
 * What a function gives that asks the network. What it throws is a lost connection; but if it is the page's own, it may
 * be a mistake as well, so the console is told, once until it works again.
 * @template {any[]} A
 * @template T
 * @param {AbortSignal} signal @param {(...given: A) => T | Promise<T>} act @param {A} given
 * @returns {Promise<T>}
 */
async function ask(signal, act, ...given) {
  try {
    const value = await until(signal, act(...given));
    failing.delete(act);
    return value;
  } catch (error) {
    if (error instanceof Refused) throw error;
    if (/** @type {unknown} */ (act) !== globalThis.fetch && !signal.aborted && !failing.has(act)) {
      failing.add(act);
      console.warn("Legato tries again after", error);
    }
    return lost(error);
  }
}

/**
 * What the promise gives, unless the signal ends the wait for it.
 * @template T
 * @param {AbortSignal} signal
 * @param {T | Promise<T>} promise
 * @returns {Promise<T>}
 */
function until(signal, promise) {
  return new Promise((resolve, reject) => {
    const leave = () => reject(signal.reason);
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave);
    void Promise.resolve(promise)
      .then(resolve, reject)
      .finally(() => signal.removeEventListener("abort", leave));
  });
}
