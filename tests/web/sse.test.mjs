// The browser's decoder against the vectors it shares with the Python one.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Decoder } from "../../src/legato/web/sse.js";

const { cases } = JSON.parse(readFileSync(new URL("../vectors/sse.json", import.meta.url), "utf8"));

/** A text of the vectors: a string, or [string, count] pairs. */
const text = (value) => (typeof value === "string" ? value : value.map(([part, count]) => part.repeat(count)).join(""));

/** The bytes of a case. */
const bytes = (c) =>
  c.input_hex === undefined ? new TextEncoder().encode(text(c.input)) : Uint8Array.from(Buffer.from(c.input_hex, "hex"));

function run(chunks) {
  const decoder = new Decoder();
  const events = chunks.flatMap((chunk) => decoder.feed(chunk));
  return { events, last_event_id: decoder.lastEventId, retry: decoder.retry };
}

function cut(input, places) {
  const ends = [...places.filter((place) => place < input.length), input.length];
  return ends.map((end, index) => input.subarray(index ? ends[index - 1] : 0, end));
}

for (const c of cases) {
  const input = bytes(c);
  const expected = {
    events: c.events.map((event) => ({ event: event.event, data: text(event.data), id: text(event.id) })),
    last_event_id: text(c.last_event_id),
    retry: c.retry,
  };
  test(`${c.name}: ${c.why}`, () => {
    assert.deepEqual(run([input]), expected);
    if (c.chunks) assert.deepEqual(run(cut(input, c.chunks)), expected);
    if (input.length <= 70_000) assert.deepEqual(run(Array.from(input, (_, i) => input.subarray(i, i + 1))), expected);
    if (input.length <= 200) {
      for (let place = 1; place < input.length; place += 1) assert.deepEqual(run(cut(input, [place])), expected);
    }
  });
}

test("A line without end is refused, not kept for ever.", () => {
  const decoder = new Decoder();
  const chunk = new Uint8Array(1024 * 1024).fill(120);
  assert.throws(() => {
    for (let count = 0; count < 9; count += 1) decoder.feed(chunk);
  }, RangeError);
});
