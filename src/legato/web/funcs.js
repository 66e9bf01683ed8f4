/**
 * The functions of `client.js` as functions that never reject: they give `{ok: true, value}` or `{ok: false, error}`,
 * and a type checker knows after `if (result.ok)` which of the two is there.
 *
 * Each is a module-level constant that nothing else needs, so a bundler keeps only those that are used.
 */
import * as client from "./client.js";
import { LegatoError } from "./errors.js";

export { LegatoCore } from "./core.js";

/**
 * @template T
 * @typedef {{ok: true, value: T, error?: undefined} | {ok: false, value?: undefined, error: LegatoError}} Result
 */

/**
 * @template {any[]} A
 * @template T
 * @param {(core: client.LegatoCore, ...request: A) => Promise<T>} act
 * @returns {(core: client.LegatoCore, ...request: A) => Promise<Result<T>>}
 */
function result(act) {
  return async (core, ...request) => {
    try {
      return { ok: true, value: await act(core, ...request) };
    } catch (error) {
      return { ok: false, error: known(error) };
    }
  };
}

/** @param {unknown} error */
function known(error) {
  if (error instanceof LegatoError) return error;
  const { name, message } = error instanceof Error ? error : { name: "", message: String(error) };
  const code = name === "TypeError" ? "invalid_input" : name === "AbortError" ? "aborted" : "error";
  return new LegatoError(message, code, { cause: error });
}

export const createSession = /* @__PURE__ */ result(client.createSession);
export const getSession = /* @__PURE__ */ result(client.getSession);
export const listSessions = /* @__PURE__ */ result(client.listSessions);
export const deleteSession = /* @__PURE__ */ result(client.deleteSession);
export const messages = /* @__PURE__ */ result(client.messages);
export const messagePage = /* @__PURE__ */ result(client.messagePage);
export const getBlob = /* @__PURE__ */ result(client.getBlob);
export const sendMessage = /* @__PURE__ */ result(client.sendMessage);
export const retryMessage = /* @__PURE__ */ result(client.retryMessage);
export const cancel = /* @__PURE__ */ result(client.cancel);
export const resolvePermission = /* @__PURE__ */ result(client.resolvePermission);
export const respondToNotification = /* @__PURE__ */ result(client.respondToNotification);

/**
 * Opens the stream: the result is there with its first connection, or with the answer that there will be none. A
 * stream that has to end later throws from its iteration.
 */
export const streamEvents = /* @__PURE__ */ result(open);

/** @param {client.LegatoCore} core @param {client.StreamRequest} request */
async function open(core, request) {
  const events = client.streamEvents(core, request);
  const first = await events.next();
  request.signal?.throwIfAborted();
  return events.unread(first);
}
