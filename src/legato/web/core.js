/**
 * Where the server is and how to reach it (`LegatoCore`). Everything else is functions that take a core first, so that a
 * page carries only those it uses.
 */
import { send } from "./request.js";

/** A server, and how its requests are made. Make one, and use it everywhere. */
export class LegatoCore {
  /** Where the API begins. */
  baseUrl;
  /** @type {import("./request.js").Fetch | undefined} */ fetch;
  /** @type {import("./request.js").HeadersSource | undefined} */ headers;

  /**
   * @param {{baseUrl?: string | URL | undefined} & import("./request.js").Access} options `baseUrl`: where Legato is mounted; by
   *   default the page's own address, and `http://localhost:8088` where there is no page
   */
  constructor({ baseUrl, fetch, headers } = {}) {
    const url = new URL(baseUrl ?? here(), here());
    if (!url.pathname.endsWith("/")) url.pathname += "/";
    this.baseUrl = url;
    this.fetch = fetch;
    this.headers = headers;
  }

  /**
   * An address of the API. Ids in `path` are to be encoded already, see `at`.
   * @param {string} path
   * @param {Record<string, string | number | boolean | undefined>} query without what is undefined
   */
  url(path, query = {}) {
    const url = new URL(path, this.baseUrl);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined) url.searchParams.set(name, String(value));
    }
    return url;
  }
}

function here() {
  if (typeof document !== "undefined") return new URL("./", document.baseURI);
  // A worker's own address is that of its script, which says nothing of where the API is mounted.
  const origin = typeof location === "undefined" ? "null" : location.origin;
  return new URL(origin.startsWith("http") ? `${origin}/` : "http://localhost:8088/");
}

/**
 * A path with ids in it, which must not lead elsewhere: `DELETE /api/sessions/` is not what was meant.
 * @param {TemplateStringsArray} words @param {string[]} ids
 */
export function at(words, ...ids) {
  return words.reduce((path, word, index) => {
    const id = ids[index - 1];
    if (typeof id !== "string" || id === "" || id === "." || id === "..") {
      throw new TypeError(`An id is expected, not ${JSON.stringify(id)}.`);
    }
    return path + encodeURIComponent(id) + word;
  });
}

/** A new random key or id: 128 bits. */
export function draw() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * One request, and its response, whatever that says.
 * @param {LegatoCore} core
 * @param {import("./call.js").Call} request
 * @param {AbortSignal} signal
 */
export function ask(core, { method, path, query, body, key, ...request }, signal) {
  /** @type {Record<string, string>} */
  const headers = { accept: "application/json", ...request.headers };
  if (method === "POST") headers["content-type"] = "application/json";
  if (key !== undefined) headers["idempotency-key"] = key;
  return send(core.url(path, query), { method, headers, body: body === undefined ? null : JSON.stringify(body), signal }, core);
}
