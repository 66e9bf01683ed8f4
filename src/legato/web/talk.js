/**
 * One conversation that is open: its stream, its history, and the messages on their way. It keeps nothing that matters: it
 * is a fold of the server's log, so a reload, a second tab and a lost connection all end in the same picture.
 *
 * Between history and stream nothing is lost or doubled: the stream is opened first. Once its first frame says where this
 * reader stands, the history is fetched, and the stream is not read on until it is here. What both have is the same turn
 * by its run and its message ids: `Conversation` takes nothing twice.
 */
import { at, draw } from "./core.js";
import { LegatoError, Refused, final, fits, uncaught } from "./errors.js";
import { SharedStream } from "./shared.js";
import { Conversation, Gap } from "./turn.js";

/**
 * @typedef {import("./turn.js").Turn} Turn
 * @typedef {object} Listener
 * @property {(turn: Turn) => void} turn it has changed
 * @property {() => void} reset everything may have changed
 * @property {(state: import("./resume.js").State) => void} connection
 * @property {(word: string, values?: Record<string, string>) => void} problem a word of `strings.js`
 * @property {(data: any) => void} asked the agent has put a question
 * @property {(turn: Turn) => void} ended while it was watched
 * @property {(exists: boolean, reason: string) => void} unsent a message was not taken, and is a draft again, also after `close`; does the session exist?
 * @property {() => void} changed a session was begun or deleted
 */

/** The messages that this page brings to the server, by their keys. @type {Map<string, Promise<any>>} */
const underway = new Map();
/** Of each session the last of them: they come in the order in which they were sent. @type {Map<string, Promise<any>>} */
const lines = new Map();
/** The sessions that this page begins, until what was sent to them is there. @type {Map<string, Promise<any>>} */
const births = new Map();

export class Talk {
  conversation = new Conversation();
  /** Whether the history is here. */
  loaded = false;
  /** @type {{id?: string, owner?: string, may?: string[], you?: string}} Once it is known: whose it is, if another's, what may be done here, if not all, and who looks. */
  about = {};
  /** Whether there are messages before those that are here. */
  get more() {
    return this.#older !== null;
  }
  /** @type {string | null} The page of the history before what is here. */ #older = null;
  /** @type {Conversation | null} For which that page is on its way. */ #reading = null;
  /** @type {SharedStream | null} */ #stream = null;
  #closed = false;
  #server;
  #memory;
  #on;

  /**
   * @param {string} session
   * @param {{server: import("./server.js").Server, memory: import("./server.js").Memory, agent: string | null}} where
   * @param {Listener} on
   */
  constructor(session, { server, memory, agent }, on) {
    this.session = session;
    this.agent = agent;
    this.#server = server;
    this.#memory = memory;
    this.#on = on;
  }

  /** Send what was not confirmed, and follow the stream. */
  async open() {
    const left = this.#memory.outbox.filter((item) => item.session === this.session);
    const deliveries = left.map((item) => this.#deliver(item));
    // There is no stream of a session that does not exist yet.
    const creating = left.findIndex((item) => item.create);
    this.#exists = creating < 0;
    if (creating < 0 || (await Promise.race([this.#born.promise, deliveries[creating]]))) this.#follow();
  }

  /** Leave. Runs go on, and messages on their way arrive. */
  close() {
    this.#closed = true;
    this.#stream?.close();
  }

  /** Do not wait for the next attempt to connect. */
  reconnect() {
    this.#stream?.reconnect();
  }

  /** @param {string} text @param {boolean} create with it begins the session */
  send(text, create = false) {
    const item = { key: draw(), session: this.session, text, create, agent: this.agent };
    this.#memory.add(item);
    if (!create) void this.#deliver(item);
  }

  /** Ask the run that is going on to stop. */
  async stop() {
    const turn = this.running;
    if (turn === undefined || turn.state === "stopping") return;
    const { state } = turn;
    turn.state = "stopping";
    this.#on.turn(turn);
    if (await this.#try(() => this.#server.request("POST", `${this.#path}/cancel`, { runId: turn.run ?? undefined }, draw()))) return;
    if (turn.state === "stopping") turn.state = state; // it goes on, and can be stopped
    this.#on.turn(turn);
  }

  /** Have the last message answered anew. The run that was seen goes along, so asking twice begins one. @param {Turn} turn */
  async again(turn) {
    const path = at`api/sessions/${this.session}/messages/${turn.id ?? ""}/retry`;
    await this.#try(() => this.#server.request("POST", path, { runId: turn.run ?? undefined }, draw()));
  }

  /** The turn that is being answered, or would be if there were a place. */
  get running() {
    return this.conversation.turns.find(({ state, waits }) => state === "running" || state === "stopping" || (state === "waiting" && waits === "waitingForPlace"));
  }

  get #path() {
    return at`api/sessions/${this.session}`;
  }

  #follow() {
    if (this.#closed) return;
    this.#stream?.close();
    const { fetch, headers } = this.#server;
    /** @type {SharedStream} */
    const stream = new SharedStream(this.#server.url("stream", { sessionId: this.session, client: "legato" }), {
      event: (name, data) => (stream === this.#stream ? this.#heard(name, data) : undefined),
      state: (state) => {
        if (stream !== this.#stream || this.#closed) return;
        if (state === "open") this.#server.wake();
        this.#on.connection(state);
      },
      refused: (error) => stream === this.#stream && this.#over(error),
    }, { fetch, headers });
    this.#stream = stream;
    this.loaded = false;
    stream.follow().catch((error) => {
      if (!(error instanceof LegatoError)) uncaught(error); // a mistake, which is to be seen where all are
      if (stream === this.#stream && !this.#closed) this.#over(error);
    });
  }

  /** The stream will not go on. @param {any} error */
  #over(error) {
    const away = this.about.owner !== undefined ? "unshared" : this.loaded ? "deleted" : "gone"; // nobody is told which, of another's
    this.#on.problem(error?.status === 404 ? away : String(error?.message ?? error));
  }

  /** One event of the stream. What it throws ends the stream. @param {string} name @param {any} data */
  async #heard(name, data) {
    if (this.#closed) return;
    if (name === "connected") {
      if (!this.loaded || data.cursor === "reset") await this.#load();
    } else if (name === "session_deleted") {
      this.#stream?.close(); // not all of this: a message that is sent now comes back, with the reason
      this.conversation.stop();
      this.#on.reset();
      this.#on.problem("deleted");
      this.#on.changed();
    } else if (name === "session_rewound") {
      this.#follow(); // an answer was taken back: the history says what is left
    } else {
      this.#apply(name, data);
    }
  }

  async #load() {
    const stream = this.#stream;
    const page = await this.#page().catch((/** @type {unknown} */ error) => {
      if (final(error) || !(error instanceof Refused)) throw error;
      return null; // the server is busy, and for long
    });
    if (this.#closed || stream !== this.#stream) return;
    if (page === null) return this.#follow();
    const { rows } = page;
    this.#older = page.older;
    const next = new Conversation();
    next.load(rows);
    const before = this.conversation.turns;
    // What has ended and is the same stays the same, down to what the reader has opened in it.
    next.turns = next.turns.map((turn) => before.find((old) => old.ended && old.id === turn.id && old.run === turn.run && turn.ended) ?? turn);
    next.expect(before);
    next.agent ||= this.conversation.agent;
    this.conversation = next;
    this.loaded = true;
    this.#on.reset();
    void this.#look();
  }

  #looks = 0;

  async #look() {
    const look = (this.#looks += 1);
    const about = await this.#server.request("GET", this.#path, undefined, undefined, fits.session, 5).catch(() => null);
    if (about === null || this.#closed || look !== this.#looks) return; // a later one knows better
    const told = (/** @type {Talk["about"]} */ { id, owner, may, you }) => JSON.stringify([id, owner, may, you]);
    const same = told(about) === told(this.about);
    this.about = about;
    if (!same) this.#on.reset();
  }

  /**
   * A page of the history: the newest, or the one that `cursor` leads to.
   * @param {string} [cursor] @returns {Promise<{rows: any[], older: string | null}>}
   */
  async #page(cursor) {
    let older = null;
    const path = `${this.#path}/messages?client=legato${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`;
    const rows = await this.#server.request("GET", path, undefined, undefined, (/** @type {any} */ answer, /** @type {Response} */ response) => {
      older = response.headers.get("legato-next");
      return fits.list(answer);
    });
    return { rows, older };
  }

  /** Read the page before what is here. How many turns are new; null if none could be read. */
  async before() {
    const { conversation } = this;
    if (this.#older === null || this.#reading === conversation) return null;
    this.#reading = conversation; // asked for once
    try {
      const { rows, older } = await this.#page(this.#older);
      if (this.#closed || conversation !== this.conversation) return null; // read anew meanwhile
      this.#older = older;
      return conversation.before(rows);
    } catch (/** @type {any} */ error) {
      this.#on.problem(error.message);
      return null;
    } finally {
      if (this.#reading === conversation) this.#reading = null;
    }
  }

  /** @param {string} name @param {any} data */
  #apply(name, data) {
    try {
      const turn = this.conversation.apply(name, data);
      if (turn !== null) this.#on.turn(turn);
      if (turn?.ended && (name === "complete" || name === "error")) this.#on.ended(turn);
      if (name === "permission" || name === "notification") this.#on.asked(data);
    } catch (error) {
      if (!(error instanceof Gap)) throw error;
      this.#follow(); // never seen; but a page that might have a hole in it loads everything again
    }
  }

  #exists = true; // false from the first message of a new session until the server has begun it
  #born = resolvers();

  /** Bring one message to the server, however long it takes. Whether it arrived. @param {any} item */
  async #deliver(item) {
    this.#on.turn(this.conversation.send(item.text, item.key));
    try {
      const answer = await bring(this.#server, this.#memory, item, () => this.#began());
      this.#exists = true;
      const { turns } = this.conversation;
      const turn = turns.find((each) => each.key === item.key);
      if (turn === undefined) return true;
      const kept = this.conversation.sent(turn, answer.messageId, answer.runId);
      if (!turns.includes(turn)) this.#on.reset();
      this.#on.turn(kept);
      return true;
    } catch (/** @type {any} */ error) {
      this.conversation.turns = this.conversation.turns.filter((each) => each.key !== item.key);
      if (!this.#closed) this.#on.reset();
      this.#on.unsent(this.#exists, error.message);
      return false;
    }
  }

  #began() {
    this.#exists = true;
    this.#born.resolve(true);
    this.#on.changed();
  }

  /** Whether it was done. @param {() => Promise<any>} request */
  async #try(request) {
    try {
      await request();
      return true;
    } catch (/** @type {any} */ error) {
      this.#on.problem(error.message);
      return false;
    }
  }
}

/**
 * Bring a message to the server, and its session if it begins one: once, whoever asks for it, and behind what was sent
 * before it. If it is not taken, it is a draft again.
 * @param {import("./server.js").Server} server @param {import("./server.js").Memory} memory @param {any} item @param {() => void} began
 */
function bring(server, memory, item, began) {
  const { key, session } = item;
  const known = underway.get(key);
  if (known !== undefined) {
    void births.get(session)?.then(began, () => {});
    return known;
  }
  /** @type {Promise<any>} */
  const brought = put(server, memory, item, began, lines.get(session)).finally(() => {
    if (lines.get(session) !== brought) return;
    lines.delete(session);
    births.delete(session);
  });
  underway.set(key, brought);
  lines.set(session, brought);
  return brought;
}

/**
 * @param {import("./server.js").Server} server @param {import("./server.js").Memory} memory @param {any} item @param {() => void} began
 * @param {Promise<any>} [before] what was sent before it
 */
async function put(server, memory, item, began, before) {
  const { key, session, text, create, agent } = item;
  let begun = false;
  try {
    await before?.catch(() => {}); // told to whoever sent that
    if (create) births.set(session, begin(server, { id: session, title: text.trim().slice(0, 80), ...(agent && { agent }) }));
    await births.get(session);
    begun = true;
    if (create) began();
    return await server.request("POST", at`api/sessions/${session}/messages`, { text }, key, fits.sent);
  } catch (error) {
    giveBack(memory, item, begun);
    throw error;
  } finally {
    underway.delete(key);
    memory.drop(key);
  }
}

/** @param {import("./server.js").Server} server @param {any} body */
async function begin(server, body) {
  await server.request("POST", "api/sessions", body, undefined, fits.session).catch((/** @type {any} */ error) => {
    if (error.status !== 409) throw error; // it exists: an earlier attempt got through
  });
}

/**
 * What was not taken is a draft again, and so is all that was sent to a session that cannot begin: nothing typed is lost.
 * @param {import("./server.js").Memory} memory @param {any} item @param {boolean} begun
 */
function giveBack(memory, item, begun) {
  const { session } = item;
  const [back, places] = begun ? [[item], [session]] : [memory.outbox.filter((each) => each.session === session), [session, ""]];
  const drafts = [...back.map(({ text }) => text), ...places.map((place) => memory.draft(place))];
  for (const { key } of back) memory.drop(key);
  if (!begun) memory.keep(session, "");
  memory.keep(begun ? session : "", drafts.filter(Boolean).join("\n\n"));
}

/**
 * Bring to the server what tabs that were closed have left, but for what belongs to `session`, which is open.
 * @param {import("./server.js").Server} server @param {import("./server.js").Memory} memory @param {string} session @param {() => void} began
 * @param {() => void} unsent one is a draft again
 */
export function bringLeft(server, memory, session, began, unsent) {
  for (const item of memory.outbox) {
    if (item.session !== session) bring(server, memory, item, began).catch(unsent);
  }
}

/** `Promise.withResolvers`, which browsers before 2024 do not have. */
function resolvers() {
  /** @type {(value: boolean) => void} */ let resolve = () => {};
  const promise = new Promise((each) => (resolve = each));
  return { promise, resolve };
}
