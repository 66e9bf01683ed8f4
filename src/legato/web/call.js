/**
 * A request that is repeated until it is answered. The rule: nothing is repeated that could be carried out twice.
 *
 * @typedef {object} Call
 * @property {"GET" | "POST" | "DELETE"} method
 * @property {string} path
 * @property {Record<string, string | number | boolean | undefined>} [query]
 * @property {unknown} [body] sent as JSON
 * @property {Record<string, string>} [headers]
 * @property {string} [key] an idempotency key, which makes a POST repeatable
 * @property {boolean} [repeat] whether it may be carried out twice; by default only without POST, or with a key
 * @property {number} [attempts] instead of `PATIENCE.attempts`
 * @property {(answer: any, response: Response) => boolean} [expect] whether an answer is what was asked for, see `fits`
 * @property {boolean} [file] the answer is a file as the server has them, and no JSON
 * @property {AbortSignal} [signal]
 */
import { ask } from "./core.js";
import { ConnectionLost, Foreign, Refused, answered, filed, final, fits, refusal, retryAfter } from "./errors.js";
import { backoff } from "./resume.js";

/** Attempts, and milliseconds that one may take. All of them together are patient for about a minute and a half. */
export const PATIENCE = { attempts: 7, attempt: 60_000 };

/**
 * The answer's JSON (undefined if it has none). Repeats what may be repeated, with growing waits or as long as the
 * server says, at once when the network is back.
 *
 * Rejects with `Refused`, `ConnectionLost` (or `Foreign`), or the signal's reason; with a `TypeError` if it can never be
 * sent.
 *
 * @param {import("./core.js").LegatoCore} core
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
 * @param {import("./core.js").LegatoCore} core
 * @param {Call} request
 * @returns {Promise<{answer: any} | {error: Error, wait?: number | null}>}
 */
async function once(core, { signal, expect = fits.any, file = false, ...request }) {
  const attempt = new AbortController();
  const leave = () => attempt.abort(signal?.reason);
  if (signal?.aborted) leave();
  signal?.addEventListener("abort", leave);
  const timer = setTimeout(() => attempt.abort(), PATIENCE.attempt);
  try {
    const response = await ask(core, request, attempt.signal);
    if (!response.ok) return { wait: retryAfter(response), error: await refusal(response) };
    return { answer: file ? await filed(response) : await answered(response, expect) };
  } catch (error) {
    if (error instanceof Refused || error instanceof Foreign) return { error };
    if (!(error instanceof ConnectionLost)) throw error;
    return { error: new ConnectionLost(`No whole answer came from ${core.baseUrl.origin}.`, { cause: error.cause }) };
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", leave);
  }
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
