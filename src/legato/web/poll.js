/**
 * Asks the server again and again, politely: one request at a time, none while nobody looks at the page, and longer
 * waits while it does not answer. What has been seen is not asked for again: whoever asks says where it stands.
 */
import { answered, final, fits, refusal, retryAfter, tell, uncaught } from "./errors.js";
import { backoff } from "./resume.js";

/** Milliseconds after which an answer is no longer waited for. */
const PATIENCE = 15_000;

export class Poll {
  #ask;
  #on;
  #every;
  #failures = 0;
  #over = false;
  #generation = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  /** @type {AbortController} */ #request = new AbortController();
  #look = () => this.now();

  /**
   * @param {object} what
   * @param {() => string | URL} what.ask the address, asked for before each request
   * @param {(answer: any) => void | Promise<void>} what.on awaited before the next request
   * @param {() => number} what.every milliseconds until the next request
   * @param {(error: Error | null) => void} [what.trouble] the server does not answer; null when it does again
   * @param {(error: import("./resume.js").Refused) => void} [what.refused] it never will: this is over
   */
  constructor({ ask, on, every, trouble = () => {}, refused = () => {} }) {
    this.#ask = ask;
    this.#on = { on, trouble, refused };
    this.#every = every;
    document.addEventListener("visibilitychange", this.#look);
    addEventListener("online", this.#look);
    this.now();
  }

  /** Ask at once, whatever the wait. */
  now() {
    clearTimeout(this.#timer);
    if (this.#over || document.hidden) return;
    this.#request.abort();
    this.#request = new AbortController();
    void this.#turn(++this.#generation);
  }

  /** Ask no more. */
  close() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#request.abort();
    document.removeEventListener("visibilitychange", this.#look);
    removeEventListener("online", this.#look);
  }

  /** @param {number} generation */
  async #turn(generation) {
    let wait;
    try {
      wait = await this.#once();
    } catch (error) {
      if (this.#over || generation !== this.#generation) return;
      wait = backoff(this.#failures++);
      tell(() => this.#on.trouble(/** @type {Error} */ (error)));
    }
    if (this.#over || generation !== this.#generation || document.hidden) return;
    this.#timer = setTimeout(() => this.now(), wait);
  }

  async #once() {
    const { signal } = this.#request;
    const response = await fetch(this.#ask(), {
      signal: AbortSignal.any([signal, AbortSignal.timeout(PATIENCE)]),
      cache: "no-store",
    });
    if (!response.ok) {
      const error = await refusal(response);
      if (signal.aborted) return 0;
      if (final(error)) {
        this.close();
        tell(() => this.#on.refused(error));
        return 0;
      }
      tell(() => this.#on.trouble(error));
      return backoff(this.#failures++, { retryAfter: retryAfter(response) });
    }
    const answer = await answered(response, fits.any);
    if (signal.aborted) return 0;
    tell(() => this.#on.trouble(null));
    try {
      await this.#on.on(answer);
      this.#failures = 0;
      return this.#every();
    } catch (error) {
      uncaught(error); // the page's, and not the server's
      return backoff(this.#failures++);
    }
  }
}
