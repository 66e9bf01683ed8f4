// What is remembered of texts that have been rendered.
import assert from "node:assert/strict";
import { test } from "node:test";

import { KEPT, Typesetter } from "../../src/legato/web/prose.js";

test("What is remembered is bounded by its characters, and is what was asked for last.", async () => {
  const made = new Typesetter({ request: async (_, __, { texts }) => ({ rendered: texts.map((text) => ({ blocks: [{ line: 0, html: `<p>${text}` }] })) }) });
  const size = KEPT / 40; // with its HTML each is a twentieth, and a little more
  const texts = Array.from({ length: 30 }, (_, number) => `${number} `.padEnd(size, "x"));
  for (const text of [texts[0], ...texts, texts.at(-1), texts.at(-1)]) await made.whole(text);
  const known = texts.filter((text) => made.known(text));
  assert.deepEqual(known, texts.slice(-19));
  for (let number = 0; number < 400; number += 1) await made.whole(`short ${number}`);
  assert.deepEqual(texts.filter((text) => made.known(text)).length, 19);
  await made.whole("y".repeat(KEPT));
  assert.equal([...texts, "y".repeat(KEPT)].filter((text) => made.known(text)).length, 0);
});
