/**
 * One request to the server: headers that are asked for anew each time, so that a token is never stale, and a second
 * try with new ones when the server does not accept them. It knows nothing of streams and retries.
 *
 * @typedef {Record<string, string> | Headers | [string, string][]} HeaderList
 * @typedef {{unauthorized: boolean}} HeadersReason `unauthorized`: the last ones were answered with 401
 * @typedef {HeaderList | ((why: HeadersReason) => HeaderList | Promise<HeaderList>)} HeadersSource
 *   headers, or a function that is asked for them before each request; what it throws counts as a lost connection
 *   (and is tried again), unless it is a `Refused`
 * @typedef {(input: string | URL, init?: RequestInit) => Promise<Response>} Fetch
 * @typedef {object} Access how requests reach the server
 * @property {Fetch} [fetch] in place of the global one, for example to add `credentials`
 * @property {HeadersSource} [headers] for each request, for example `authorization`
 */

/**
 * The response, once its head is there.
 * @param {string | URL} url
 * @param {RequestInit & {signal: AbortSignal, headers: Record<string, string>}} init its headers win over those of
 *   `access`
 * @param {Access} access
 */
export async function send(url, init, { fetch: send = globalThis.fetch, headers = {} }) {
  /** @param {boolean} unauthorized */
  const attempt = async (unauthorized) => {
    const given = typeof headers === "function" ? await until(init.signal, headers({ unauthorized })) : headers;
    const all = new Headers(given);
    for (const [name, value] of Object.entries(init.headers)) all.set(name, value);
    return send(url, { cache: "no-store", ...init, headers: all });
  };
  const response = await attempt(false);
  if (response.status !== 401 || typeof headers !== "function") return response;
  await response.body?.cancel().catch(() => {});
  return attempt(true);
}

/**
 * What the promise gives, unless the signal ends the wait for it.
 * @template T
 * @param {AbortSignal} signal
 * @param {T | Promise<T>} promise
 * @returns {Promise<T>}
 */
export function until(signal, promise) {
  return new Promise((resolve, reject) => {
    const leave = () => reject(signal.reason);
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave);
    void Promise.resolve(promise)
      .then(resolve, reject)
      .finally(() => signal.removeEventListener("abort", leave));
  });
}
