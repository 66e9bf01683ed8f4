// A clock that stands until it is told to go on. (The mock timers of Node.js 20 lost timers that nobody had cleared.)
const REAL = { setTimeout, clearTimeout, setInterval, clearInterval, now: Date.now };

export class Clock {
  #now = 1_000_000;
  #timers = new Map();
  #count = 0;

  install() {
    const set = (repeats) => (act, wait = 0) => {
      const every = Math.max(wait, 1);
      this.#timers.set((this.#count += 1), { act, at: this.#now + every, every: repeats ? every : null });
      return this.#count;
    };
    const clear = (timer) => void this.#timers.delete(timer);
    Object.assign(globalThis, { setTimeout: set(false), setInterval: set(true), clearTimeout: clear, clearInterval: clear });
    Date.now = () => this.#now;
  }

  uninstall() {
    const { now, ...timers } = REAL;
    Object.assign(globalThis, timers);
    Date.now = now;
  }

  /** Let time go by, and everything happen that was to happen then. */
  tick(milliseconds) {
    const end = this.#now + milliseconds;
    for (;;) {
      const [id, timer] = [...this.#timers].sort(([a, { at }], [b, { at: other }]) => at - other || a - b)[0] ?? [];
      if (timer === undefined || timer.at > end) break;
      this.#now = timer.at;
      if (timer.every === null) this.#timers.delete(id);
      else timer.at += timer.every;
      timer.act();
    }
    this.#now = end;
  }
}
