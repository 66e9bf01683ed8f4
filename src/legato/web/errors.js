/**
 * What the client throws, and what an answer of the server means.
 *
 *     LegatoError          `code` for programs, `message` for people
 *     ├── Refused          the server answered with an error status that no retry can change
 *     ├── ConnectionLost   no whole answer came; what was asked for may have been done or not
 *     │   └── Foreign      somebody else answered in the server's place: a gateway, a page to sign in
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

/**
 * Somebody else answered in the server's place, whatever the status: a gateway without a server behind it, a page to sign
 * in, a redirect. It says nothing of what was asked for, so it is waited for, as a lost connection is.
 */
export class Foreign extends ConnectionLost {
  /** The HTTP status; 0 of a redirect, which browsers do not tell. */
  status;
  /** Whether signing in again may help. */
  signIn;

  /** @param {Response} response @param {ErrorOptions} [options] */
  constructor(response, options) {
    const { status, ok, type, redirected, headers } = response;
    const led = type === "opaqueredirect" || (status >= 300 && status < 400) || redirected;
    const signIn = led || [401, 403, 407].includes(status) || (ok && headers.get("content-type")?.startsWith("text/html") === true);
    const what = led ? "led elsewhere" : `answered ${status}, and not by the server`;
    const advice = signIn ? "Sign in again." : "Perhaps a proxy has no server behind it now.";
    super(`The request was ${what}. ${advice}`, options);
    this.code = "foreign_answer";
    this.status = status;
    this.signIn = signIn;
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
 * The error that a response stands for that is not ok: the server's own word, if it is of the documented form.
 * @param {Response} response
 */
export async function refusal(response) {
  const error = (await response.json().catch(() => null))?.error;
  const own = typeof error?.message === "string" && (typeof error.reason === "string" || typeof error.code === "number");
  return own ? new Refused(response.status, error.message, error.reason) : new Foreign(response);
}

/**
 * What a response says that is ok: its JSON, or undefined where there is nothing to say (204). Rejects with `Foreign` if
 * that is not what the server would say, and with `ConnectionLost` if it does not come whole.
 * @param {Response} response
 * @param {(answer: any, response: Response) => boolean} fits whether it is what was asked for
 * @returns {Promise<any>}
 */
export async function answered(response, fits) {
  if (response.status === 204 && fits(undefined, response)) return undefined;
  const text = await response.text().catch(lost);
  let value;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new Foreign(response, { cause });
  }
  if (!fits(value, response)) throw new Foreign(response);
  return value;
}

/**
 * The file that a response is. Rejects with `Foreign` if it is none of the server's, which never change and say so, and
 * with `ConnectionLost` if it does not come whole.
 * @param {Response} response
 */
export async function filed(response) {
  if (!response.headers.get("cache-control")?.includes("immutable")) throw new Foreign(response);
  return response.blob().catch(lost);
}

/** Whether an answer is what was asked for. @type {Record<string, (answer: any) => boolean>} */
export const fits = {
  nothing: (answer) => answer === undefined,
  list: Array.isArray,
  session: (answer) => typeof answer?.id === "string",
  sent: (answer) => typeof answer?.messageId === "string",
  cancelled: (answer) => typeof answer?.cancelled === "boolean",
  resolved: (answer) => typeof (answer?.granted ?? answer?.denied) === "boolean",
  any: () => true,
};

/** Whether asking again is of no use. @param {unknown} error @returns {error is Refused} */
export const final = (error) => error instanceof Refused && !worthRetrying(error.status);

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
