// An open conversation, when the history does not come or something in the page is mistaken.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Refused } from "../../src/legato/web/errors.js";
import { TIMES } from "../../src/legato/web/resume.js";
import { Talk } from "../../src/legato/web/talk.js";
import { Server, settle } from "./tabs.mjs";

TIMES.first = 1;

/** A conversation over a server whose history is `history()`; `on` are listeners of the page's own. */
async function open(t, history, on = {}) {
  const server = new Server();
  const seen = { problems: [], uncaught: [], turns: 0, server };
  t.mock.method(globalThis, "queueMicrotask", (act) => {
    try {
      act();
    } catch (error) {
      seen.uncaught.push(error.message);
    }
  });
  const request = async () => history();
  const url = (path, query) => new URL(`http://legato.test/${path}?${new URLSearchParams(query)}`);
  const where = { server: { fetch: server.fetch, url, request, wake() {} }, memory: { outbox: [] }, agent: null };
  const nothing = () => {};
  const listener = { turn: nothing, reset: nothing, connection: nothing, problem: (word) => seen.problems.push(word), asked: nothing, ended: nothing,
    unsent: nothing, changed: nothing, ...on };
  seen.talk = new Talk("s", where, listener);
  t.after(() => seen.talk.close());
  await seen.talk.open();
  await settle();
  return seen;
}

test("A history that is refused is a problem that is told once; one that only takes long is asked for again.", async (t) => {
  let asked = 0;
  const gone = await open(t, () => { asked += 1; throw new Refused(404, "No such session."); });
  assert.deepEqual([gone.problems, gone.uncaught, asked, gone.server.connections.size], [["gone"], [], 1, 0]);
  let busy = 2;
  const late = await open(t, () => {
    if (busy-- > 0) throw new Refused(503, "Busy.");
    return [];
  });
  assert.deepEqual([late.problems, late.talk.loaded, late.server.connections.size], [[], true, 1]);
});

test("A mistake in the page is shown there, and is an uncaught error, once.", async (t) => {
  const seen = await open(t, () => [], { reset: () => undefined.x });
  assert.match(seen.problems.join(), /undefined/);
  assert.deepEqual([seen.uncaught, seen.server.connections.size], [seen.problems, 0]);
});
