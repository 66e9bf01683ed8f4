/**
 * One streamed answer as a small store: its state now (`getSnapshot`), word when it has changed (`subscribe`), and what
 * a person can do about it (`retry`, `stop`). It speaks the Deva chat stream, and knows no framework.
 *
 * What may happen when is a table, `TRANSITIONS`; what is not in it is ignored. So an answer that is complete stays as
 * it is, whatever an old connection may still bring. The end of a connection before the stored message or an error is
 * no end: the stream comes back, and goes on where it was.
 */
import { call } from "./call.js";
import { LegatoCore, at } from "./core.js";
import { AnswerFailed, Foreign, Malformed, Refused, tell } from "./errors.js";
import { Stream } from "./resume.js";

/**
 * @typedef {import("./types.js").Message} Message
 * @typedef {Partial<Message> & {text: string}} AnswerMessage the text so far; when done, the whole stored message
 *
 * @typedef {object} Snapshot
 * @property {AnswerMessage | null} message null until there is any text; after an error, what came before it
 * @property {boolean} isStreaming
 * @property {Error | null} error
 * @property {boolean} isDone
 * @property {boolean} isReconnecting the connection is lost for now; it comes back by itself, so this is no error
 *
 * @typedef {"idle" | "streaming" | "complete" | "error"} Phase
 * @typedef {"content" | "completion" | "response_message" | "error"} Frame an event of the stream
 * @typedef {"start" | "lost" | "opened" | "replayed" | "refused" | "again"} Turn what happens besides
 */

/** @type {Record<Phase, Partial<Record<Frame | Turn, Phase>>>} */
export const TRANSITIONS = {
  idle: { start: "streaming" },
  streaming: {
    lost: "streaming",
    opened: "streaming",
    replayed: "streaming",
    content: "streaming",
    completion: "streaming",
    response_message: "complete",
    error: "error",
    refused: "error",
  },
  complete: {},
  error: { again: "streaming" },
};

/** @type {ReadonlySet<string>} */
const FRAMES = new Set(["content", "completion", "response_message", "error"]);

/** @type {Record<Phase, {isStreaming: boolean, isDone: boolean}>} */
const FLAGS = {
  idle: { isStreaming: false, isDone: false },
  streaming: { isStreaming: true, isDone: false },
  complete: { isStreaming: false, isDone: true },
  error: { isStreaming: false, isDone: true },
};

/** @type {Snapshot} */
const EMPTY = Object.freeze({ message: null, error: null, isReconnecting: false, ...FLAGS.idle });

/** Milliseconds: text that comes faster than a screen shows it is told of together. */
const FRAME = 16;

export class StreamResponse {
  #core;
  #ids;
  #signal;
  #onMessage;
  /** @type {Phase} */ #phase = "idle";
  /** @type {Snapshot} */ #snapshot = EMPTY;
  /** @type {Set<() => void>} */ #listeners = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #telling;
  /** @type {Stream | null} */ #stream = null; // the one we listen to; what others bring is dropped
  #run = 0; // each time that we leave or begin anew
  #cursor = "";
  #replay = false; // the next text is the answer's first

  /**
   * It sends nothing until `start()`, and nothing at all unless both ids are there.
   * @param {LegatoCore} core
   * @param {object} request
   * @param {string | undefined} [request.threadId] a session's id
   * @param {string | undefined} [request.messageId] the user's message that is to be answered
   * @param {AbortSignal | undefined} [request.signal] does what `close()` does
   * @param {((message: Message) => void) | undefined} [request.onMessage] once, with the stored answer
   */
  constructor(core, { threadId, messageId, signal, onMessage }) {
    this.#core = core;
    this.#ids = threadId && messageId ? { threadId, messageId } : null;
    this.#signal = signal;
    this.#onMessage = onMessage;
    signal?.addEventListener("abort", this.close);
  }

  // The methods are bound, so that they can be handed on: useSyncExternalStore(response.subscribe, response.getSnapshot).

  /** The state: the same object as long as nothing changes. */
  getSnapshot = () => this.#snapshot;

  /** Be told of changes. Returns how to end it. @param {() => void} listener */
  subscribe = (listener) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  /** Attach to the answer, which begins if it has not; also after `close()`, and then where it was. Idempotent. */
  start = () => {
    if (this.#ids === null || this.#stream !== null || this.#signal?.aborted) return;
    this.#move("start");
    if (this.#phase === "streaming") this.#follow(this.#ids);
  };

  /** Leave. The answer goes on being written, and nothing here changes any more until `start()`. */
  close = () => {
    this.#run += 1;
    this.#stream?.close();
    this.#stream = null;
    clearTimeout(this.#telling);
    this.#telling = undefined;
  };

  /** After an error: have the answer anew if its run failed, else look for it again. Resolves when that has begun. */
  retry = async () => {
    const { error } = this.#snapshot;
    if (this.#ids === null || this.#phase !== "error") return;
    const failed = error instanceof AnswerFailed;
    const run = (this.#run += 1);
    const ended = this.#cursor;
    this.#move("again", failed);
    if (failed) this.#cursor = "";
    try {
      if (failed) await this.#ask("retry", ended);
    } catch (refused) {
      if (run === this.#run) this.#move("refused", refused);
      return;
    }
    if (run === this.#run) this.start();
  };

  /** Ask for the end of the answer; it comes on the stream, with what was said until then. */
  stop = async () => {
    if (this.#ids !== null && this.#phase === "streaming") await this.#ask("stop");
  };

  /** @param {"retry" | "stop"} what @param {string} [ended] the last id of the answer that is to be replaced */
  async #ask(what, ended = "") {
    const { threadId, messageId } = /** @type {{threadId: string, messageId: string}} */ (this.#ids);
    const path = at`api/sdk/chat/${threadId}/messages/${messageId}/` + what;
    // Which answer it is that has failed makes a retry repeatable: a second one does not replace the new answer.
    /** @type {Record<string, string>} */
    const headers = ended === "" ? {} : { "last-event-id": ended };
    const repeat = what === "stop" || ended !== "";
    try {
      await call(this.#core, { method: "POST", path, headers, repeat, signal: this.#signal });
    } catch (error) {
      // 409: it is being answered already, or has been. 404, 405: a server without this request. Looking tells more.
      if (!(error instanceof Refused || error instanceof Foreign) || ![404, 405, 409].includes(error.status)) throw error;
    }
  }

  /** @param {{threadId: string, messageId: string}} ids */
  #follow({ threadId, messageId }) {
    const url = this.#core.url(at`api/sdk/chat/${threadId}/messages/${messageId}/query/stream`);
    const { fetch, headers } = this.#core;
    /** @param {(...given: any[]) => void} act */
    const mine = (act) => (/** @type {any[]} */ ...given) => {
      if (this.#stream === stream) act(...given);
    };
    const stream = new Stream(
      url,
      {
        event: mine((name, data, id) => this.#receive(name, data, id)),
        open: mine((response) => this.#opened(response, stream.cursor)),
        state: mine((state) => state === "waiting" && this.#move("lost")),
        refused: mine((error) => this.#end("refused", error)),
      },
      { method: "POST", fetch, headers, lastEventId: this.#cursor, parse: checked },
    );
    this.#stream = stream;
    stream.follow().catch(mine((error) => this.#end("refused", error)));
  }

  /** @param {Response} response @param {string} cursor what was asked for */
  #opened(response, cursor) {
    // Without a cursor, or with one that cannot be continued, everything comes from the start: it replaces what we have.
    const replay = cursor === "" || response.headers.get("legato-cursor") === "reset";
    this.#move(replay ? "replayed" : "opened");
  }

  /** @param {string} name @param {any} data @param {string} id */
  #receive(name, data, id) {
    if (!FRAMES.has(name)) return;
    const frame = /** @type {Frame} */ (name);
    this.#cursor = id; // with the text, in one go: neither is ever ahead of the other
    if (frame === "response_message" || frame === "error") this.#end(frame, data);
    else this.#move(frame, data);
  }

  /** @param {"response_message" | "error" | "refused"} how @param {any} data */
  #end(how, data) {
    const stream = this.#stream;
    this.#stream = null;
    this.#move(how, data);
    stream?.close();
    if (how === "response_message") tell(() => this.#onMessage?.(data));
  }

  /** @param {Frame | Turn} what @param {any} [data] */
  #move(what, data) {
    const phase = TRANSITIONS[this.#phase][what];
    if (phase === undefined) return;
    this.#phase = phase;
    if (what === "replayed") this.#replay = true;
    const before = this.#snapshot.message?.text ?? "";
    const text = what === "content" ? (this.#replay ? data : before + data) : before;
    if (what === "content") this.#replay = false;
    const changes = CHANGES[what]?.(data, { text, threadId: this.#ids?.threadId }) ?? {};
    const next = { ...this.#snapshot, ...FLAGS[phase], ...changes };
    if (SAME.every((key) => next[key] === this.#snapshot[key])) return;
    this.#snapshot = Object.freeze(next);
    if (what !== "content") this.#tell();
    else this.#telling ??= setTimeout(this.#tell, FRAME);
  }

  #tell = () => {
    clearTimeout(this.#telling);
    this.#telling = undefined;
    for (const listener of [...this.#listeners]) tell(listener);
  };
}

/** @type {(keyof Snapshot)[]} */
const SAME = ["message", "isStreaming", "error", "isDone", "isReconnecting"];

/** What each does to the state. @type {Partial<Record<Frame | Turn, (data: any, now: {text: string, threadId?: string}) => Partial<Snapshot>>>} */
const CHANGES = {
  lost: () => ({ isReconnecting: true }),
  opened: () => ({ isReconnecting: false }),
  replayed: () => ({ isReconnecting: false }),
  content: (_, { text, threadId }) => ({ message: { text, thread_id: threadId, author_type: "BOT" }, isReconnecting: false }),
  response_message: (message) => ({ message, isReconnecting: false }),
  error: (data) => ({ error: failure(data), isReconnecting: false }),
  refused: (error) => ({ error, isReconnecting: false }),
  again: (anew) => (anew ? { error: null, message: null } : { error: null }),
};

/** What a frame must be to be of use. @type {Partial<Record<Frame, (data: any) => void>>} */
const CHECKS = {
  content: (data) => {
    if (typeof data !== "string") throw new Malformed(`A piece of text is a JSON string, got ${show(data)}.`);
  },
  response_message: (data) => {
    if (typeof data?.text !== "string") throw new Malformed(`A message has a text, got ${show(data)}.`);
  },
};

/** @param {any} data */
const show = (data) => (data instanceof Malformed ? data.message : JSON.stringify(data).slice(0, 60));

/** Deva documents no data of `completion` and `error`, so those may be anything. @param {string} text */
function lenient(text) {
  try {
    return JSON.parse(text);
  } catch (cause) {
    return new Malformed(`not JSON: ${text.slice(0, 60)}`, { cause });
  }
}

/** @param {string} text @param {string} name */
function checked(text, name) {
  const data = lenient(text);
  CHECKS[/** @type {Frame} */ (name)]?.(data);
  return data;
}

/** @param {any} data */
function failure(data) {
  const { message, code, retryable } = typeof data === "object" && data !== null && !(data instanceof Error) ? data : {};
  const words = message ?? (typeof data === "string" && data ? data : "The answer failed.");
  return new AnswerFailed(String(words), String(code ?? "error"), retryable !== false);
}
