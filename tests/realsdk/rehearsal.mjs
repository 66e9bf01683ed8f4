// Readers for the deploy rehearsal (`test_rehearsal.py`), in Node.js: our client, and @microsoft/fetch-event-source.
// `rehearsal.mjs KIND FOLDER`, with what to read on standard input; FOLDER has the library. It prints `open` when each
// reader has a connection, and then what each was told, as JSON.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

import { LegatoCore, streamEvents } from "../../src/legato/web/client.js";

const [kind, folder] = process.argv.slice(2);
const LAST = "<last>"; // in the text of the answer at whose end a reader leaves

class Reader {
  told = [];
  connections = 0;
  over = false;
  #last = false;

  take(event, id, data) {
    const text = event === "content" ? data.content : "";
    if (event === "connected") this.connections += 1;
    if (event === "" || event === "connected" || event === "heartbeat") return;
    this.told.push([event, id, text]);
    this.#last ||= text.includes(LAST);
    this.over ||= this.#last && event === "complete";
  }
}

async function legato(reader, base, sessionId) {
  const core = new LegatoCore({ baseUrl: base });
  for await (const { event, id, data } of streamEvents(core, { sessionId, from: "start" })) {
    reader.take(event, id, data);
    if (reader.over) return;
  }
}

async function fetchEventSource(reader, base, sessionId) {
  // What the library takes for granted.
  globalThis.document ??= Object.assign(new EventTarget(), { hidden: false });
  globalThis.window ??= globalThis;
  const library = createRequire(`${folder}/`)("@microsoft/fetch-event-source");
  const left = new AbortController();
  await library.fetchEventSource(`${base}/stream?sessionId=${sessionId}&client=legato&from=start`, {
    signal: left.signal,
    openWhenHidden: true,
    onmessage({ event, id, data }) {
      reader.take(event, id, data === "" ? {} : JSON.parse(data));
      if (reader.over) left.abort();
    },
    onclose() {
      throw new Error("Come back."); // it takes the end of a stream for its own
    },
  });
}

const [line] = await new Promise((resolve) => createInterface(process.stdin).once("line", (line) => resolve([line])));
const wanted = JSON.parse(line);
const readers = wanted.map(() => new Reader());
const read = { legato, fetchEventSource }[kind];
const all = Promise.all(wanted.map(([base, session], index) => read(readers[index], base, session)));
while (readers.some((reader) => reader.connections === 0)) await Promise.race([all, new Promise((resolve) => setTimeout(resolve, 20))]);
console.log("open");
await all;
const told = JSON.stringify(readers.map(({ told, connections }) => [told, connections]));
process.stdout.write(`${told}\n`, () => process.exit(0)); // the library may leave a timer behind
