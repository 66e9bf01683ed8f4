/**
 * What the client throws, and what an answer of the server means.
 *
 *     LegatoError          `code` for programs, `message` for people
 *     ├── Refused          the server answered with an error status that no retry can change
 *     ├── ConnectionLost   no whole answer came; what was asked for may have been done or not
 *     ├── Malformed        an answer or an event in a form nobody can use
 *     └── AnswerFailed     the run behind a streamed answer failed
 *
 * A request that its caller aborted rejects with the signal's own reason, as `fetch` does.
 */

export class LegatoError extends Error {
  /** A stable word to branch on, for example `"session_not_found"`. */
  code;

  /** @param {string} message @param {string} code @param {ErrorOptions} [options] */
  constructor(message, code = "error", options) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** An answer that no retry can change, for example 404 for a deleted session. */
export class Refused extends LegatoError {
  /** The HTTP status. */
  status;
  /** The server's word for why; empty if it gave none. */
  reason;

  /** @param {number} status @param {string} message @param {string} reason */
  constructor(status, message, reason = "") {
    super(message, reason || `http_${status}`);
    this.status = status;
    this.reason = reason;
  }
}

/** No whole answer came, however often the request was repeated. */
export class ConnectionLost extends LegatoError {
  /** @param {string} message @param {ErrorOptions} [options] */
  constructor(message, options) {
    super(message, "connection_lost", options);
  }
}

/** An answer or an event that is not of the documented form. */
export class Malformed extends LegatoError {
  /** @param {string} message @param {ErrorOptions} [options] */
  constructor(message, options) {
    super(message, "malformed", options);
  }
}

/** The run behind a streamed answer failed, as the stream itself said. */
export class AnswerFailed extends LegatoError {
  /** Whether asking for the answer anew may help. */
  retryable;

  /** @param {string} message @param {string} code @param {boolean} retryable */
  constructor(message, code, retryable) {
    super(message, code);
    this.retryable = retryable;
  }
}

/**
 * The error that a response of the API stands for.
 * @param {Response} response
 */
export async function refusal(response) {
  const error = (await response.json().catch(() => null))?.error;
  return new Refused(response.status, error?.message ?? `The server answered ${response.status}.`, error?.reason);
}

/**
 * `Retry-After` in milliseconds; null if there is none to understand.
 * @param {Response} response
 */
export function retryAfter(response) {
  const value = response.headers.get("retry-after");
  if (value === null) return null;
  const wait = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(wait) ? null : Math.max(wait, 0);
}

/**
 * For `catch` of what reads from the network: an error is the network's if it was thrown there, whatever it is called.
 * @param {unknown} cause @returns {never}
 */
export function lost(cause) {
  throw new ConnectionLost("The connection was lost.", { cause });
}

/**
 * Tell a listener of something that has happened anyway. What it throws, at once or later, is its own: it is uncaught,
 * where all such errors are seen, and changes nothing here.
 * @param {() => unknown} act
 */
export function tell(act) {
  void (async () => act())().catch(uncaught);
}

/** @param {unknown} error */
export function uncaught(error) {
  queueMicrotask(() => {
    throw error;
  });
}

/** @param {number} status */
export const worthRetrying = (status) => status === 408 || status === 425 || status === 429 || status >= 500;
