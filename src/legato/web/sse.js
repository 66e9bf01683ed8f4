/**
 * Server-Sent Events as bytes (WHATWG HTML, section 9.2): the browser's twin of `legato/sse.py`.
 * `tests/vectors/sse.json` holds for both. It knows lines and fields, and nothing of connections.
 *
 * @typedef {{event: string, data: string, id: string}} Message
 */

/** Characters; a server that sends more is broken or hostile. */
const MAX_LINE = 8 * 1024 * 1024;
const MAX_EVENT = 16 * 1024 * 1024;

/** Turns the chunks of one response body, cut anywhere, into messages. Make a new one for each connection. */
export class Decoder {
  /** The id to resume after, as of the last finished block, even if that had no data. */
  lastEventId;
  /** @type {number | null} Reconnection time in milliseconds, from the last valid `retry` line. */
  retry = null;

  // ignoreBOM leaves the mark in the text; exactly one is ours to drop.
  #text = new TextDecoder("utf-8", { ignoreBOM: true });
  #started = false;
  #afterCr = false;
  /** @type {string[]} */ #line = []; // pieces of the unfinished line: each chunk is searched once
  #lineSize = 0;
  #id;
  #event = "";
  /** @type {string[]} */ #data = [];
  #dataSize = 0;

  /** @param {string} [id] what the connection before left: it holds until this one says another, or an empty one */
  constructor(id = "") {
    this.lastEventId = this.#id = id;
  }

  /**
   * The messages that this chunk completes, in order. What the body's end leaves unfinished never counts.
   * @param {Uint8Array} chunk
   * @returns {Message[]}
   */
  feed(chunk) {
    let text = this.#text.decode(chunk, { stream: true });
    /** @type {Message[]} */
    const messages = [];
    if (text === "") return messages;
    if (!this.#started) {
      this.#started = true;
      if (text.charCodeAt(0) === 0xfeff) text = text.slice(1);
    }
    if (this.#afterCr && text !== "") {
      this.#afterCr = false;
      if (text.charCodeAt(0) === 10) text = text.slice(1); // the second half of a CR LF that was cut in two
    }
    const ends = /\r\n|\n|\r/g;
    let begin = 0;
    for (let end = ends.exec(text); end !== null; end = ends.exec(text)) {
      this.#keep(text.slice(begin, end.index));
      begin = ends.lastIndex;
      const line = this.#line.join("");
      this.#line = [];
      this.#lineSize = 0;
      if (line === "") this.#dispatch(messages);
      else this.#field(line);
    }
    this.#keep(text.slice(begin));
    if (text !== "") this.#afterCr = text.charCodeAt(text.length - 1) === 13;
    return messages;
  }

  /** @param {string} piece */
  #keep(piece) {
    if (piece === "") return;
    this.#line.push(piece);
    this.#lineSize += piece.length;
    if (this.#lineSize > MAX_LINE) throw new RangeError(`A line of the stream is longer than ${MAX_LINE} characters.`);
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      this.#dataSize += value.length + 1;
      if (this.#dataSize > MAX_EVENT) throw new RangeError(`An event is longer than ${MAX_EVENT} characters.`);
      this.#data.push(value);
    } else if (name === "event") {
      this.#event = value;
    } else if (name === "id") {
      if (!value.includes("\0")) this.#id = value;
    } else if (name === "retry") {
      // At most 15 digits, as in Python: beyond them a number is not exact. The caller clamps it.
      if (/^0*[0-9]{1,15}$/.test(value)) this.retry = Number(value);
    }
  }

  /** @param {Message[]} messages */
  #dispatch(messages) {
    this.lastEventId = this.#id; // an id counts when its block is whole, not when its line is read
    if (this.#data.length > 0) {
      messages.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
    }
    this.#event = "";
    this.#data = [];
    this.#dataSize = 0;
  }
}
