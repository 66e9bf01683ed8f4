/**
 * Which of several tabs leads, by a Web Lock: the browser gives it to one, and to the next when that one is gone,
 * however it went. A leader that is there but does not answer (frozen, stopped in a debugger) can be robbed of it.
 */

/**
 * The part of `navigator.locks` that is used. Node's types know nothing of it.
 * @typedef {{signal?: AbortSignal, steal?: boolean}} LockOptions
 * @typedef {{request(name: string, options: LockOptions, act: () => Promise<unknown>): Promise<unknown>}} Locks
 */

export class Election {
  #locks;
  #name;
  #on;
  /** @type {object | null} */ #candidacy = null; // since we asked for the lock
  #withdrawal = new AbortController();
  /** @type {(() => void) | null} */ #release = null; // since we have it

  /**
   * @param {Locks} locks
   * @param {string} name
   * @param {object} on
   * @param {() => void} on.won
   * @param {() => void} on.lost robbed; not after `resign()`
   * @param {() => void} on.impossible there are no locks here after all
   */
  constructor(locks, name, on) {
    this.#locks = locks;
    this.#name = name;
    this.#on = on;
  }

  /** Whether we lead. */
  get won() {
    return this.#release !== null;
  }

  /** Lead when all who asked before are gone. Idempotent. */
  stand() {
    if (this.won || this.#candidacy !== null) return;
    this.#withdrawal = new AbortController();
    this.#request({ signal: this.#withdrawal.signal });
  }

  /** Lead now; whoever leads is robbed. */
  seize() {
    if (this.won) return;
    this.#withdraw();
    this.#request({ steal: true });
  }

  /** Neither lead nor wait for it any more. */
  resign() {
    this.#withdraw();
    const release = this.#release;
    this.#release = null;
    release?.();
  }

  #withdraw() {
    this.#candidacy = null;
    this.#withdrawal.abort();
  }

  /** @param {LockOptions} options */
  #request(options) {
    const candidacy = (this.#candidacy = {});
    /** @type {(() => void) | null} */
    let held = null;
    const hold = () =>
      /** @type {Promise<void>} */ (new Promise((resolve) => {
        if (this.#candidacy !== candidacy) return resolve(); // withdrawn at the last moment
        this.#candidacy = null;
        this.#release = held = resolve;
        this.#on.won();
      }));
    const over = () => {
      if (held !== null && this.#release === held) {
        this.#release = null;
        this.#on.lost();
      } else if (this.#candidacy === candidacy) {
        this.#candidacy = null;
        this.#on.impossible();
      }
    };
    this.#locks.request(this.#name, options, hold).then(over, over);
  }
}
