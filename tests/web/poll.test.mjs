// Asking the server again and again, politely.
import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { uncaught } from "./uncaught.mjs";

/** What the module needs of a page. */
globalThis.document = Object.assign(new EventTarget(), { hidden: false });
globalThis.addEventListener = () => {};
globalThis.removeEventListener = () => {};
const { Poll } = await import("../../src/legato/web/poll.js");

const settle = async () => {
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
};

function hide(hidden) {
  document.hidden = hidden;
  document.dispatchEvent(new Event("visibilitychange"));
}

/** A poll against `answers`; the last one is repeated. An answer is a function, or a JSON value. */
async function polling(answers, use) {
  mock.timers.enable({ apis: ["setTimeout"] });
  const seen = { asked: 0, answers: [], troubles: [], refused: null };
  globalThis.fetch = async (url, { signal }) => {
    seen.asked++;
    seen.url = url;
    const answer = answers[Math.min(seen.asked, answers.length) - 1];
    return typeof answer === "function" ? answer(signal) : new Response(JSON.stringify(answer));
  };
  const poll = new Poll({
    ask: () => `page?after=${seen.answers.length}`,
    on: (answer) => void seen.answers.push(answer),
    every: () => 1000,
    trouble: (error) => void (error && seen.troubles.push(error.message)),
    refused: (error) => void (seen.refused = error),
  });
  try {
    for (let turn = 0; turn < 5; turn++) await settle();
    await use(seen, poll, async (ms) => {
      mock.timers.tick(ms);
      for (let turn = 0; turn < 5; turn++) await settle();
    });
  } finally {
    poll.close();
    hide(false);
    mock.timers.reset();
  }
}

const status = (code, headers) => () => new Response(JSON.stringify({ error: { code, message: `no: ${code}`, reason: "x" } }), { status: code, headers });

test("it asks at once, then after each wait, from where it stands", () =>
  polling([1, 2, 3], async (seen, _, pass) => {
    assert.deepEqual([seen.asked, seen.answers], [1, [1]]);
    await pass(999);
    assert.equal(seen.asked, 1);
    await pass(1);
    assert.deepEqual([seen.asked, seen.url], [2, "page?after=1"]);
  }));

test("while nobody looks it asks nothing; and at once when somebody does", () =>
  polling([1], async (seen, _, pass) => {
    hide(true);
    await pass(60_000);
    assert.equal(seen.asked, 1);
    hide(false);
    await pass(0);
    assert.equal(seen.asked, 2);
  }));

test("a page that is hidden while an answer is under way asks no more", () =>
  polling([() => new Promise((resolve) => setTimeout(() => resolve(new Response("1")), 500))], async (seen, _, pass) => {
    hide(true);
    await pass(500);
    await pass(60_000);
    assert.equal(seen.asked, 1);
  }));

test("a server that does not answer is asked again, later and later, and then as before", () =>
  polling([() => Promise.reject(new TypeError("down")), () => Promise.reject(new TypeError("down")), 7], async (seen, _, pass) => {
    assert.deepEqual(seen.troubles, ["down"]);
    await pass(1000);
    assert.equal(seen.asked, 2);
    await pass(2000);
    assert.deepEqual([seen.asked, seen.answers], [3, [7]]);
    await pass(1000);
    assert.equal(seen.asked, 4);
  }));

test("what the page does with an answer is not the server's fault", async (t) => {
  const thrown = uncaught(t);
  await polling([1, 2], async (seen, _, pass) => {
    seen.answers.push = (answer) => { throw new TypeError(`mistaken ${answer}`); };
    await pass(1000);
    await pass(1000);
    assert.deepEqual([seen.asked, seen.troubles, thrown.map(String)], [3, [], ["TypeError: mistaken 2", "TypeError: mistaken 2"]]);
  });
});

test("a busy server says when", () =>
  polling([status(503, { "retry-after": "5" }), 7], async (seen, _, pass) => {
    await pass(5499);
    assert.equal(seen.asked, 1);
    await pass(501);
    assert.deepEqual(seen.answers, [7]);
  }));

test("what is refused is over", () =>
  polling([status(404)], async (seen, _, pass) => {
    assert.equal(seen.refused.status, 404);
    await pass(100_000);
    assert.equal(seen.asked, 1);
  }));

test("an answer that comes after the end is not taken", () =>
  polling([1, () => new Promise((resolve) => setTimeout(() => resolve(new Response("2")), 500))], async (seen, poll, pass) => {
    await pass(1000);
    poll.close();
    await pass(500);
    assert.deepEqual(seen.answers, [1]);
  }));

test("a refusal that is read after the end is nobody's", () => {
  let say;
  const slow = new Response(new ReadableStream({ start: (body) => (say = () => (body.enqueue(new TextEncoder().encode('{"error": {"message": "x", "reason": "x"}}')), body.close())) }), { status: 404 });
  return polling([() => slow], async (seen, poll, pass) => {
    poll.close();
    say();
    await pass(0);
    assert.deepEqual([seen.refused, seen.troubles], [null, []]);
  });
});
