// Readers whose tokens end, for `test_renewal.py`: `renewal.mjs KIND BASE SESSION FOLDER SNIPPET`. FOLDER has
// @microsoft/fetch-event-source, and SNIPPET is what docs/auth.md says of it. Prints the text, once it has ended.

import { createRequire } from "node:module";

import { LegatoCore, streamEvents } from "../../src/legato/web/client.js";

const [kind, base, sessionId, folder, snippet] = process.argv.slice(2);
let asked = 0;
let text = "";
// Every other one is over before it is used, as when a clock goes wrong.
const token = async () => ((asked += 1) % 2 ? "short" : "over");

function show(event, data) {
  if (event === "content") text += JSON.parse(data).content;
  if (event === "complete") process.stdout.write(text, () => process.exit(0));
}

if (kind === "legato") {
  const headers = async () => ({ authorization: `Bearer ${await token()}`, "x-reader": kind });
  for await (const { event, data } of streamEvents(new LegatoCore({ baseUrl: base, headers }), { sessionId, from: "start" }))
    show(event, JSON.stringify(data));
} else {
  globalThis.document ??= Object.assign(new EventTarget(), { hidden: false }); // what the library takes for granted
  globalThis.window ??= globalThis;
  const { fetchEventSource } = createRequire(`${folder}/`)("@microsoft/fetch-event-source");
  const there = globalThis.fetch;
  globalThis.fetch = (url, init) => there(`${base}${url}&from=start`, { ...init, headers: { ...init.headers, "x-reader": kind } });
  const run = Object.getPrototypeOf(async () => {}).constructor;
  await new run("fetchEventSource", "sessionId", "token", "show", snippet)(fetchEventSource, sessionId, token, show);
}
