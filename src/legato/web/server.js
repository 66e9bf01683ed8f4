/** Requests that are repeated until they are answered, and the memory of what is not confirmed. */
import { LegatoCore, ask } from "./core.js";
import { ConnectionLost, Foreign, Refused, answered, final, fits, refusal, retryAfter } from "./errors.js";
import { backoff } from "./resume.js";

const PATIENCE = 6; // repetitions after answers that say "later"; there is no limit while the network is away
const LONGEST = 60_000; // milliseconds that one attempt may take

export class Server extends LegatoCore {
  /** @type {Set<() => void>} Sleeping retries; a stream that is open again wakes them. */ #waking = new Set();

  /** Told of who answers in the server's place; null: it does itself. @type {(error: Foreign | null) => void} */
  foreign = () => {};

  /** @param {ConstructorParameters<typeof LegatoCore>[0]} options */
  constructor(options) {
    super(options);
    addEventListener("online", () => this.wake());
  }

  /**
   * Only for what may be repeated: reads, deletes, answers to questions (the first one counts), and sends, which carry
   * an Idempotency-Key.
   * @param {any} method @param {string} path @param {any} [body] @param {string} [key]
   * @param {(answer: any, response: Response) => boolean} [expect] whether an answer is what was asked for
   * @param {number} [attempts]
   */
  async request(method, path, body, key, expect = fits.any, attempts = Infinity) {
    for (let attempt = 0; ; attempt += 1) {
      let wait = null;
      try {
        const response = await this.once(method, path, body, key);
        wait = retryAfter(response);
        if (!response.ok) throw await refusal(response);
        const answer = await answered(response, expect);
        this.foreign(null);
        return answer;
      } catch (error) {
        const later = error instanceof Refused && !final(error) && attempt <= PATIENCE;
        if (attempt + 1 >= attempts || (!later && !(error instanceof ConnectionLost))) throw error; // after that, the answer may yet come
        if (error instanceof Foreign) this.foreign(error);
      }
      await this.#sleep(backoff(attempt, { retryAfter: wait }));
    }
  }

  /** @param {any} method @param {string} path @param {any} [body] @param {string} [key] */
  once(method, path, body, key) {
    return ask(this, { method, path, body, key }, AbortSignal.timeout(LONGEST));
  }

  /** The network is back. */
  wake() {
    for (const each of this.#waking) each();
    this.#waking.clear();
  }

  /** @param {number} wait */
  #sleep(wait) {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(undefined), wait);
      this.#waking.add(() => (clearTimeout(timer), resolve(undefined)));
    });
  }
}

const DAY = 86_400_000; // milliseconds

/** What may not be stored, as storage is forbidden or full: then a reload forgets. @type {Map<string, string>} */
const unstored = new Map();

/** What the browser remembers of a server: this tab's drafts, and messages that are not confirmed. */
export class Memory {
  #prefix;

  /** @param {URL} base */
  constructor(base) {
    this.#prefix = base.href === new URL("./", document.baseURI).href ? "legato." : `legato.${base.href}.`;
  }

  /** @param {string} key @param {any} otherwise @param {"sessionStorage" | "localStorage"} area */
  get(key, otherwise, area = "sessionStorage") {
    try {
      return JSON.parse(unstored.get(this.#prefix + key) ?? globalThis[area].getItem(this.#prefix + key) ?? "null") ?? otherwise;
    } catch {
      return otherwise; // storage that is forbidden, or was written by somebody else
    }
  }

  /** @param {string} key @param {any} value @param {"sessionStorage" | "localStorage"} area */
  set(key, value, area = "sessionStorage") {
    const name = this.#prefix + key;
    unstored.delete(name);
    try {
      if (value) globalThis[area].setItem(name, JSON.stringify(value));
      else globalThis[area].removeItem(name);
    } catch {
      if (value) unstored.set(name, JSON.stringify(value));
    }
  }

  /** What was typed and not sent. @param {string} session @returns {string} */
  draft(session) {
    const text = this.get(`draft.${session}`, "");
    return typeof text === "string" ? text : "";
  }

  /** @param {string} session @param {string} text */
  keep(session, text) {
    this.set(`draft.${session}`, text);
  }

  /**
   * The messages on their way, those of tabs that were closed too, so that whoever comes repeats them under the same key;
   * for a day, as nobody expects them to go out after that.
   * @returns {any[]}
   */
  get outbox() {
    const start = `${this.#prefix}outbox.`;
    let names = [...unstored.keys()];
    try {
      names = [...names, ...Object.keys(localStorage)];
    } catch {
      // Storage is forbidden.
    }
    return [...new Set(names)].filter((name) => name.startsWith(start))
      .map((name) => this.get(name.slice(this.#prefix.length), {}, "localStorage"))
      .filter(({ key, session, text, at }) => at > Date.now() - DAY && [key, session, text].every((each) => typeof each === "string"))
      .sort((one, other) => one.at - other.at);
  }

  /** @param {any} item */
  add(item) {
    this.set(`outbox.${item.key}`, { ...item, at: Date.now() }, "localStorage");
  }

  /** @param {string} key */
  drop(key) {
    this.set(`outbox.${key}`, null, "localStorage");
  }
}
