// Several tabs in one process: locks, channels whose messages are delivered one at a time, and a server that is a log.
import { SharedStream } from "../../src/legato/web/shared.js";
import { Clock } from "./clock.mjs";

/** Let everything happen that needs no timer and no message. */
export async function settle() {
  for (let round = 0; round < 12; round += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** `navigator.locks`, as far as exclusive locks of one name go. */
export class Locks {
  #holder = null;
  #queue = [];

  request(name, { signal, steal }, act) {
    return new Promise((resolve, reject) => {
      const request = { act, resolve, reject };
      if (signal?.aborted) return reject(signal.reason);
      if (steal) {
        this.#holder?.reject(new DOMException("robbed", "AbortError"));
        return this.#grant(request);
      }
      signal?.addEventListener("abort", () => {
        if (!this.#queue.includes(request)) return;
        this.#queue = this.#queue.filter((each) => each !== request);
        reject(signal.reason);
      });
      this.#queue.push(request);
      queueMicrotask(() => this.#next());
    });
  }

  #grant(request) {
    this.#holder = request;
    void request.act().then((value) => {
      request.resolve(value);
      if (this.#holder !== request) return;
      this.#holder = null;
      this.#next();
    });
  }

  #next() {
    if (this.#holder === null && this.#queue.length > 0) this.#grant(this.#queue.shift());
  }
}

/** BroadcastChannels of one name. A message is delivered when `deliver` says so; in order from each to each. */
export class Bus {
  channels = [];
  queues = new Map();

  open(owner) {
    const channel = {
      owner,
      onmessage: null,
      postMessage: (message) => {
        if (owner.frozen) throw new Error("A frozen tab runs nothing.");
        for (const other of this.channels) {
          if (other === channel) continue;
          const key = [channel, other];
          const pair = [...this.queues.keys()].find(([from, to]) => from === channel && to === other) ?? key;
          if (!this.queues.has(pair)) this.queues.set(pair, []);
          this.queues.get(pair).push(structuredClone(message));
        }
      },
      close: () => {
        this.channels = this.channels.filter((each) => each !== channel);
        for (const pair of this.queues.keys()) if (pair[1] === channel) this.queues.delete(pair);
      },
    };
    this.channels.push(channel);
    return channel;
  }

  /** The pairs of tabs that have a message between them which may be delivered now. */
  waiting() {
    return [...this.queues].filter(([[, to], queue]) => queue.length > 0 && !to.owner.frozen && !to.owner.deaf).map(([pair]) => pair);
  }

  deliver(pair) {
    const data = this.queues.get(pair).shift();
    pair[1].onmessage?.({ data });
  }
}

/** A server of one session: `/stream` over a log of ids, with connections that can be cut. */
export class Server {
  log = []; // ids
  begin = 0; // where a fresh reader is put; the end of the log if null
  connections = new Set();
  requests = [];
  most = 0;
  refusing = null;
  limit = Infinity;
  #encoder = new TextEncoder();
  #queue = [];

  fetch = async (url, { headers, signal }) => {
    const last = headers.get("last-event-id");
    this.requests.push(last ?? "");
    if (signal.aborted) throw signal.reason;
    // As a browser does: beyond the limit, a request waits until another connection is closed.
    while (this.connections.size >= this.limit) {
      await new Promise((resolve, reject) => {
        this.#queue.push(resolve);
        signal.addEventListener("abort", () => reject(signal.reason));
      });
    }
    if (this.refusing !== null) return new Response('{"error":{"message":"No.","reason":"gone"}}', { status: this.refusing });
    const head = this.log.at(-1) ?? 0;
    const known = last !== null && Number(last) <= head;
    const after = known ? Number(last) : (this.begin ?? head);
    const connection = { controller: null, tab: null };
    const body = new ReadableStream({
      start: (controller) => (connection.controller = controller),
      cancel: () => this.#forget(connection),
    });
    signal.addEventListener("abort", () => {
      if (!this.connections.has(connection)) return;
      this.#forget(connection);
      connection.controller.error(signal.reason);
    });
    this.connections.add(connection);
    this.most = Math.max(this.most, this.connections.size);
    const cursor = last === null || known ? "exact" : "reset";
    this.#send(connection, `event: connected\nretry: 100\ndata: {"cursor":"${cursor}"}\nid: ${after}\n\n`);
    for (const id of this.log.filter((each) => each > after)) this.#send(connection, this.frame(id));
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  };

  frame(id) {
    return `event: content\ndata: {"content":"${id}"}\nid: ${id}\n\n`;
  }

  /** Write events to the log, and to everybody. */
  append(count = 1) {
    for (let added = 0; added < count; added += 1) {
      const id = (this.log.at(-1) ?? 0) + 1;
      this.log.push(id);
      for (const connection of this.connections) this.#send(connection, this.frame(id));
    }
  }

  /** An event that these readers are not shown: only a heartbeat moves their cursors over it. */
  hide() {
    const id = (this.log.at(-1) ?? 0) + 1;
    this.hidden = [...(this.hidden ?? []), id];
    return id;
  }

  beat(id = this.log.at(-1) ?? 0) {
    for (const connection of this.connections) this.#send(connection, `event: heartbeat\ndata: {"type":"ping"}\nid: ${id}\n\n`);
  }

  cut(connection = [...this.connections][0]) {
    if (connection === undefined) return;
    this.#forget(connection);
    connection.controller.close();
  }

  #send(connection, text) {
    connection.controller.enqueue(this.#encoder.encode(text));
  }

  #forget(connection) {
    this.connections.delete(connection);
    this.#queue.shift()?.();
  }
}

/** A tab: a shared stream, and what its page has been told. */
export class Tab {
  seen = [];
  greetings = [];
  states = [];
  refused = null;
  failing = false;
  frozen = false;
  deaf = false;
  hold = null; // a promise that the page's handler waits for

  constructor(world, options = {}) {
    const { server, locks, bus } = world;
    const { fetch } = server;
    const own = { request: (...given) => locks.request(...given).finally(() => this.frozen) };
    this.stream = new SharedStream("http://legato.test/stream?sessionId=s", {
      event: async (name, data, id) => {
        if (this.hold !== null) await this.hold;
        if (this.failing && name === "content") throw new TypeError("not now");
        if (name === "connected") this.greetings.push([data.cursor, id]);
        if (data.cursor === "reset") this.seen = [];
        if (name === "content") this.seen.push(Number(id));
      },
      state: (state) => this.states.push(state),
      refused: (error) => (this.refused = error),
    }, { fetch, locks: own, channel: () => bus.open(this), ...options });
    this.over = this.stream.follow();
    this.over.catch(() => {}); // a test asks for it later
  }

  /** Its page takes its time with the next event, until `resume()`. */
  pause() {
    this.hold ??= new Promise((resolve) => (this.release = resolve));
  }

  resume() {
    this.hold = null;
    this.release?.();
  }

  /** Nothing runs in it, until it thaws. */
  freeze() {
    this.frozen = new Promise((resolve) => (this.thaw = () => {
      this.frozen = false;
      resolve();
    }));
  }
}

export class World {
  server = new Server();
  locks = new Locks();
  bus = new Bus();
  tabs = [];
  clock = new Clock();

  constructor() {
    this.clock.install();
  }

  tab(options) {
    const tab = new Tab(this, options);
    this.tabs.push(tab);
    return tab;
  }

  /** Deliver messages until there are none, in the order of `pick`. */
  async flow(pick = (pairs) => pairs[0]) {
    for (let steps = 0; ; steps += 1) {
      if (steps > 200_000) throw new Error("The tabs never stop talking.");
      await settle();
      const pairs = this.bus.waiting();
      if (pairs.length === 0) return;
      this.bus.deliver(pick(pairs));
    }
  }

  /** Let time go by, in steps, with everything that happens meanwhile; the server's heart beats. */
  async pass(milliseconds, step = 500) {
    for (let passed = 0; passed < milliseconds; passed += step) {
      if (passed % 10_000 === 0) this.server.beat();
      this.clock.tick(step);
      await this.flow();
    }
  }

  close() {
    for (const tab of this.tabs) {
      tab.thaw?.();
      tab.resume();
      tab.stream.close();
    }
    this.clock.uninstall();
  }
}
