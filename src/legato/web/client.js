/**
 * The functions of the client. Each takes a `LegatoCore` and one object; each rejects with an error of `errors.js`, or
 * with the reason of its `signal`. `funcs.js` has the same functions for those who would rather not catch.
 */
import { call } from "./call.js";
import { LegatoCore, at, draw } from "./core.js";
import { Refused, fits } from "./errors.js";
import { Stream } from "./resume.js";

export { LegatoCore };
export { AnswerFailed, ConnectionLost, Foreign, LegatoError, Malformed, Refused } from "./errors.js";

/** @typedef {{signal?: AbortSignal | undefined}} Options */

// The names that this client knows; else the server would take it for another and leave out what that one does not know.
const CLIENT = { client: "legato" };

/**
 * A new session. Repeated safely: the session gets its id here.
 * @param {LegatoCore} core
 * @param {{title?: string | undefined, agent?: string | undefined, id?: string | undefined} & Options} request `id`: your own, `[A-Za-z0-9._-]`, at most
 *   128; with one of your own, 409 may also mean that an attempt whose answer was lost has created it
 * @returns {Promise<import("./types.js").Session>}
 */
export async function createSession(core, { signal, id = undefined, ...fields } = {}) {
  const body = { ...fields, id: id ?? `s_${draw()}` };
  try {
    return await call(core, { method: "POST", path: "api/sessions", body, repeat: true, expect: fits.session, signal });
  } catch (error) {
    if (id !== undefined || !(error instanceof Refused) || error.status !== 409) throw error;
    return getSession(core, { sessionId: body.id, signal });
  }
}

/**
 * @param {LegatoCore} core
 * @param {{sessionId: string} & Options} request
 * @returns {Promise<import("./types.js").Session>}
 */
export async function getSession(core, { sessionId, signal }) {
  return call(core, { method: "GET", path: at`api/sessions/${sessionId}`, expect: fits.session, signal });
}

/**
 * The sessions, those last written to first.
 * @param {LegatoCore} core
 * @param {{limit?: number | undefined, before?: string | undefined} & Options} request `before`: an RFC 3339 time, for the next page
 * @returns {Promise<import("./types.js").Session[]>}
 */
export async function listSessions(core, { limit, before, signal } = {}) {
  return call(core, { method: "GET", path: "api/sessions", query: { limit, before }, expect: fits.list, signal });
}

/**
 * Delete a session with its history. Its streams end, its id is never used again.
 * @param {LegatoCore} core
 * @param {{sessionId: string} & Options} request
 * @returns {Promise<void>}
 */
export async function deleteSession(core, { sessionId, signal }) {
  try {
    await call(core, { method: "DELETE", path: at`api/sessions/${sessionId}`, expect: fits.nothing, signal });
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) throw error;
  }
}

/**
 * A session's history, oldest first: the newest messages, as many as fit into 4 MiB. `messagePage` leads further back.
 * @param {LegatoCore} core
 * @param {{sessionId: string} & Options} request
 * @returns {Promise<import("./types.js").StoredMessage[]>}
 */
export async function messages(core, request) {
  return (await messagePage(core, request)).messages;
}

/**
 * A page of a session's history, oldest first: the newest messages, or those before another page. No more than fit into
 * 4 MiB. A cursor whose message is gone, as after a retry, is `Refused` as `cursor_invalid`: begin again without it.
 * @param {LegatoCore} core
 * @param {{sessionId: string, limit?: number | undefined, cursor?: string | undefined} & Options} request `limit`: at most
 *   so many messages, 1 to 10,000; `cursor`: the `older` of a page of this session
 * @returns {Promise<{messages: import("./types.js").StoredMessage[], older: string | undefined}>} `older`: the cursor of
 *   the page before this one; undefined if this one has the first message
 */
export async function messagePage(core, { sessionId, limit, cursor, signal }) {
  /** @type {string | undefined} */ let older;
  /** @param {any} answer @param {Response} response */
  const expect = (answer, response) => {
    older = response.headers.get("legato-next") ?? undefined;
    return fits.list(answer);
  };
  const path = at`api/sessions/${sessionId}/messages`;
  const found = await call(core, { method: "GET", path, query: { ...CLIENT, limit, cursor }, expect, signal });
  return { messages: found, older };
}

/**
 * A file that came in a message of the session. `hash` is the SHA-256 of its bytes, which the session's log has.
 * @param {LegatoCore} core
 * @param {{sessionId: string, hash: string} & Options} request
 * @returns {Promise<Blob>} with the type that it came with, if browsers may show that, else `application/octet-stream`
 */
export async function getBlob(core, { sessionId, hash, signal }) {
  const path = at`api/sessions/${sessionId}/blobs/${hash}`;
  return call(core, { method: "GET", path, headers: { accept: "*/*" }, file: true, signal });
}

/**
 * Send a message; its answer comes on the stream, or to a `StreamResponse`. Repeated safely, however often: the key
 * makes it the same message.
 * @param {LegatoCore} core
 * @param {{sessionId: string, text: string, agent?: string | undefined, metadata?: Record<string, any> | undefined, key?: string | undefined} & Options} request
 *   `key`: 1 to 255 visible ASCII characters; keep one of your own to send again after a reload. `metadata` reaches the
 *   agent as `turn.message.metadata`
 * @returns {Promise<import("./types.js").Sent>}
 */
export async function sendMessage(core, { sessionId, text, agent, metadata, key = draw(), signal }) {
  const path = at`api/sessions/${sessionId}/messages`;
  return call(core, { method: "POST", path, query: CLIENT, body: { ...metadata, text, agent }, key, expect: fits.sent, signal });
}

/**
 * Answer the last message anew: its run failed or was cancelled, or somebody wants another answer. Only ever because a
 * person asked for it: each call may cost an answer.
 * @param {LegatoCore} core
 * @param {{sessionId: string, messageId: string, runId?: string | undefined} & Options} request `runId`: the run whose end was
 *   seen, whose answer is replaced
 * @returns {Promise<import("./types.js").Sent>}
 */
export async function retryMessage(core, { sessionId, messageId, runId, signal }) {
  const path = at`api/sessions/${sessionId}/messages/${messageId}/retry`;
  return call(core, { method: "POST", path, body: { runId }, key: draw(), expect: fits.sent, signal });
}

/**
 * Ask for the end of what is being answered. The end itself comes on the stream.
 * @param {LegatoCore} core
 * @param {{sessionId: string, runId?: string | undefined} & Options} request `runId`: only this run; without it, all that is
 *   running or waiting
 * @returns {Promise<boolean>} whether there was anything to stop
 */
export async function cancel(core, { sessionId, runId, signal }) {
  const path = at`api/sessions/${sessionId}/cancel`;
  const key = draw(); // without a run, a late repetition could hit the next message's
  return (await call(core, { method: "POST", path, body: { runId }, key, expect: fits.cancelled, signal })).cancelled;
}

/**
 * Answer a permission. The first answer holds, whoever gave it.
 * @param {LegatoCore} core
 * @param {{id: string, grant: boolean} & Options} request
 * @returns {Promise<boolean>} the answer that holds: whether it is granted
 */
export async function resolvePermission(core, { id, grant, signal }) {
  const path = grant ? at`api/permissions/${id}/grant` : at`api/permissions/${id}/deny`;
  const { granted, denied } = await call(core, { method: "POST", path, repeat: true, expect: fits.resolved, signal });
  return granted ?? !denied;
}

/**
 * Answer a notification. 404 if somebody has answered it before.
 * @param {LegatoCore} core
 * @param {{id: string, type?: "acknowledge" | "text" | "choice" | undefined, value?: string | undefined} & Options} request
 * @returns {Promise<void>}
 */
export async function respondToNotification(core, { id, type = "acknowledge", value, signal }) {
  const path = at`api/notifications/${id}/respond`;
  await call(core, { method: "POST", path, body: { type, value }, repeat: true, expect: fits.nothing, signal });
}

/**
 * @typedef {object} StreamRequest
 * @property {string} sessionId
 * @property {string | undefined} [lastEventId] go on behind this event
 * @property {"start" | "tail" | undefined} [from] where to begin without one; otherwise with the answer that is being written, or
 *   with what comes next
 * @property {AbortSignal | undefined} [signal] ends the iteration, quietly
 * @property {boolean | undefined} [stay] keep the connection of a page that is hidden for long
 * @property {((state: import("./resume.js").State) => void) | undefined} [onState]
 */

/**
 * Everything that happens in a session, for as long as you iterate. It reconnects by itself, without losing or
 * repeating anything; leaving the loop closes the connection, and nothing else. While the loop's body is busy, the
 * server is not read: nothing piles up. An event is done with when the loop asks for the next one or is left, and only
 * then does the cursor move.
 *
 * `connected` comes first on each connection; `heartbeat` never comes. Throws `Refused` when the server does not let
 * it go on, for example 404 after the session was deleted, and a `TypeError` if the request can never be sent.
 *
 * @param {LegatoCore} core
 * @param {StreamRequest} request
 * @returns {EventStream}
 */
export function streamEvents(core, request) {
  return new EventStream(core, request);
}

/** What `streamEvents` gives: to be iterated once. @implements {AsyncIterable<import("./types.js").StreamEvent>} */
export class EventStream {
  #stream;
  /** @type {IteratorResult<import("./types.js").StreamEvent, undefined> | null} */ #next = null; // offered, not taken
  #over = false;
  /** @type {Error | null} */ #error = null;
  /** @type {Promise<void> | null} */ #following = null;
  /** @type {() => void} */ #offer = () => {};
  /** @type {() => void} */ #done = () => {};
  /** @type {() => void} */ #drop = () => {};

  /** @param {LegatoCore} core @param {StreamRequest} request */
  constructor(core, { sessionId, from, onState, ...request }) {
    if (typeof sessionId !== "string" || sessionId === "") throw new TypeError("streamEvents needs a sessionId.");
    this.#stream = new Stream(
      core.url("stream", { sessionId, from, ...CLIENT }),
      {
        event: (event, data, id) => this.#hand(/** @type {any} */ ({ event, data, id })),
        state: onState,
        refused: (error) => (this.#error = error),
      },
      { ...request, fetch: core.fetch, headers: core.headers },
    );
  }

  /** The id of the last event that you are done with: what `lastEventId` takes, now or after a reload. */
  get cursor() {
    return this.#stream.cursor;
  }

  /** @returns {import("./resume.js").State} */
  get state() {
    return this.#stream.state;
  }

  /** End the iteration. What was taken from it counts as done with. */
  close() {
    this.#over = true;
    this.#stream.close();
    if (this.#next === null) this.#done();
    else this.#drop();
    this.#offer();
  }

  /** Connect now instead of waiting, or instead of a connection that may be dead. */
  reconnect() {
    this.#stream.reconnect();
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /**
   * Put back what `next()` gave last, so that it is given again.
   * @param {IteratorResult<import("./types.js").StreamEvent, undefined>} next
   */
  unread(next) {
    if (!next.done) this.#next = next;
    return this;
  }

  /** @returns {Promise<IteratorResult<import("./types.js").StreamEvent, undefined>>} */
  async next() {
    if (!this.#over) this.#following ??= this.#follow();
    if (this.#next === null) this.#done(); // with the one before
    while (this.#next === null && !this.#over) {
      await new Promise((resolve) => (this.#offer = () => resolve(undefined)));
    }
    const next = this.#over ? null : this.#next;
    this.#next = null;
    if (next !== null) return next;
    if (this.#error === null) return { done: true, value: undefined };
    const error = this.#error;
    this.#error = null;
    throw error;
  }

  /** @returns {Promise<IteratorResult<import("./types.js").StreamEvent, undefined>>} */
  async return() {
    this.close();
    await this.#following; // so that the cursor stands where it will stay
    return { done: true, value: undefined };
  }

  async #follow() {
    try {
      await this.#stream.follow();
    } catch (error) {
      if (!this.#over) this.#error = /** @type {Error} */ (error); // else it is only our own, of `#drop`
    }
    this.close();
  }

  /** Offer an event; resolves when it is done with. @param {import("./types.js").StreamEvent} value */
  #hand(value) {
    this.#next = { done: false, value };
    this.#offer();
    return /** @type {Promise<void>} */ (new Promise((resolve, reject) => {
      this.#done = () => resolve();
      this.#drop = () => reject(new Error("The iteration ended before this event was taken."));
    }));
  }
}
