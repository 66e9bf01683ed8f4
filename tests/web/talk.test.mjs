// An open conversation, when the history does not come or something in the page is mistaken.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Refused } from "../../src/legato/web/errors.js";
import { TIMES } from "../../src/legato/web/resume.js";
import { Talk } from "../../src/legato/web/talk.js";
import { Server, settle } from "./tabs.mjs";
import { uncaught } from "./uncaught.mjs";

TIMES.first = 1;

/** A conversation over a server whose history is `history()`; `on` are listeners of the page's own. */
async function open(t, history, on = {}) {
  const server = new Server();
  const thrown = uncaught(t);
  const seen = { problems: [], get uncaught() { return thrown.map((error) => error.message); }, turns: 0, server };
  const request = async (_, path, body, key, expect) => history(path, expect);
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

test("Of another's chat that is there no more nobody knows whether it was deleted.", async (t) => {
  for (const [about, word] of [[{ owner: "alice", may: [] }, "unshared"], [{}, "deleted"]]) {
    const seen = await open(t, (path) => (path.endsWith("/s") ? about : []));
    await settle();
    seen.server.refusing = 404;
    seen.server.cut();
    await settle(); // it is seen to be cut
    seen.talk.reconnect();
    await settle();
    assert.deepEqual(seen.problems, [word]);
  }
});

test("Earlier pages are asked for once at a time, and there are more until they are here.", async (t) => {
  const row = (id) => ({ id, role: "user", userInput: id, runId: `s~${id}` });
  const pages = { "": ["c", "2"], 2: ["b", "1"], 1: ["a", null] };
  const asked = [];
  let failing = true;
  const { talk, problems } = await open(t, async (path, expect) => {
    if (path.endsWith("/s")) return {};
    const cursor = new URL(path, "http://legato.test").searchParams.get("cursor") ?? "";
    asked.push(cursor);
    await settle();
    if (cursor && failing) throw new Refused(503, "Busy.");
    const [id, next] = pages[cursor];
    expect([row(id)], { headers: new Headers(next ? { "legato-next": next } : {}) });
    return [row(id)];
  });
  await settle();
  for (const [found, ids, left] of [[null, "c", true], [1, "bc", true], [1, "abc", false]]) {
    const [first, second] = [talk.before(), talk.before()];
    assert.equal(talk.more, true);
    assert.deepEqual(await Promise.all([first, second]), [found, null]);
    assert.deepEqual([talk.conversation.turns.map(({ id }) => id).join(""), talk.more], [ids, left]);
    failing = false;
  }
  assert.deepEqual([asked, problems, await talk.before()], [["", "2", "2", "1"], ["Busy."], null]);
});

test("A mistake in the page is shown there, and is an uncaught error, once.", async (t) => {
  const seen = await open(t, () => [], { reset: () => undefined.x });
  assert.match(seen.problems.join(), /undefined/);
  assert.deepEqual([seen.uncaught, seen.server.connections.size], [seen.problems, 0]);
});

test("A message whose answer is slower than the history is seen once, and keeps its place.", async (t) => {
  const rows = [{ id: "m0", role: "user", userInput: "again", runId: "r0" }, { id: "a0", role: "assistant", runId: "r0", status: "completed" }];
  let answer;
  const answered = new Promise((resolve) => (answer = resolve));
  const { fetch } = new Server();
  const memory = { outbox: [], add() {}, drop() {}, set() {}, get: (_, otherwise) => otherwise };
  const where = { server: { fetch, url: (path, query) => new URL(`http://legato.test/${path}?${new URLSearchParams(query)}`), wake() {},
    request: async (method) => (method === "POST" ? answered : rows) }, memory, agent: null };
  const talk = new Talk("s", where, { turn() {}, reset() {}, connection() {}, problem() {}, asked() {}, ended() {}, unsent() {}, changed() {} });
  t.after(() => talk.close());
  talk.send("again");
  await talk.open();
  await settle();
  assert.deepEqual(talk.conversation.turns.map(({ id }) => id), ["m0", null]); // what was said before is another
  rows.push({ id: "m1", role: "user", userInput: "again", runId: "r1" });
  await talk.open();
  await settle();
  assert.deepEqual(talk.conversation.turns.map(({ id, text }) => [id, text]), [["m0", "again"], ["m1", "again"]]);
  answer({ messageId: "m1", runId: "r1" });
  await settle();
  assert.deepEqual(talk.conversation.turns.map(({ id, text, run }) => [id, text, run]), [["m0", "again", "r0"], ["m1", "again", "r1"]]);
});

/** What a tab remembers. */
class Remembering {
  outbox = [];
  drafts = new Map();
  add(item) { this.outbox.push(item); }
  drop(key) { this.outbox = this.outbox.filter((each) => each.key !== key); }
  draft(session) { return this.drafts.get(session) ?? ""; }
  keep(session, text) { this.drafts.set(session, text); }
}

/** A conversation whose requests are answered when a test says so: `asked` are those so far, each with `answer` and `refuse`. */
function held(t, session, memory = new Remembering()) {
  const asked = [];
  const { fetch } = new Server();
  const request = (method, path, body) => new Promise((answer, refuse) => asked.push({ what: `${method} ${path}`, body, answer, refuse }));
  const url = (path, query) => new URL(`http://legato.test/${path}?${new URLSearchParams(query)}`);
  const seen = { asked, memory, problems: [], unsent: [], resets: 0 };
  const nothing = () => {};
  seen.talk = new Talk(session, { server: { fetch, url, request, wake() {} }, memory, agent: null }, { turn: nothing, connection: nothing, asked: nothing, ended: nothing,
    changed: nothing, reset: () => (seen.resets += 1), problem: (word) => seen.problems.push(word), unsent: (exists, reason) => (seen.unsent.push(exists), seen.problems.push(reason)) });
  t.after(() => seen.talk.close());
  /** The requests of one kind. */
  seen.of = (what) => asked.filter((each) => each.what === what);
  return seen;
}

test("Messages come to the server in the order in which they were sent, behind what begins their session.", async (t) => {
  const seen = held(t, "new1");
  const send = "POST api/sessions/new1/messages";
  seen.talk.send("one", true);
  void seen.talk.open();
  seen.talk.send("two");
  await settle();
  assert.deepEqual(seen.asked.map(({ what }) => what), ["POST api/sessions"]);
  seen.asked[0].answer({ id: "new1" });
  await settle();
  seen.talk.send("three");
  const again = held(t, "new1", seen.memory); // another look at the same chat, before they are there
  void again.talk.open();
  await settle();
  for (const [number, text] of ["one", "two", "three"].entries()) {
    assert.deepEqual(seen.of(send).map(({ body }) => body.text), ["one", "two", "three"].slice(0, number + 1));
    seen.of(send)[number][text === "two" ? "refuse" : "answer"](text === "two" ? new Refused(413, "Too long.") : { messageId: text, runId: text });
    await settle();
  }
  assert.deepEqual([seen.problems, again.problems, seen.memory.outbox, seen.memory.draft("new1")], [["Too long."], ["Too long."], [], "two"]);
  assert.deepEqual(again.of(send), []);
  assert.deepEqual(again.talk.conversation.turns.map(({ id }) => id), ["one", "three"]);
});

test("What was sent to a session that cannot begin is one draft, in order.", async (t) => {
  const seen = held(t, "new2");
  seen.memory.keep("", "old");
  seen.talk.send("one", true);
  void seen.talk.open();
  seen.talk.send("two");
  seen.memory.keep("new2", "three");
  await settle();
  seen.asked[0].refuse(new Refused(403, "No."));
  await settle();
  assert.deepEqual([seen.memory.draft(""), seen.memory.draft("new2"), seen.memory.outbox], ["one\n\ntwo\n\nthree\n\nold", "", []]);
  assert.deepEqual([seen.unsent[0], seen.asked.length, seen.talk.conversation.turns], [false, 1, []]);
});

test("Nothing is kept of a session once what was sent to it is there, or cannot be.", async (t) => {
  const maps = new Map([["new4", new Set()], ["new5", new Set()]]);
  const { set } = Map.prototype;
  t.after(() => (Map.prototype.set = set));
  Map.prototype.set = function (key, value) {
    maps.get(key)?.add(this);
    return set.call(this, key, value);
  };
  for (const [session, of] of maps) {
    const seen = held(t, session);
    seen.talk.send("one", true);
    void seen.talk.open();
    seen.talk.send("two");
    await settle();
    if (session === "new5") seen.asked[0].refuse(new Refused(403, "No."));
    else for (const number of [0, 1, 2]) {
      assert.deepEqual([...of].map((each) => each.has(session)), [true, true]);
      seen.asked.filter(({ what }) => what.startsWith("POST"))[number].answer({ id: session, messageId: `m${number}`, runId: "r" });
      await settle();
    }
    await settle();
    of.delete(seen.memory.drafts);
    assert.deepEqual([[...of].map((each) => each.has(session)), seen.memory.outbox], [[false, false], []]);
  }
});

test("A chat that is left and come back to, while its first message is on its way, has begun.", async (t) => {
  const seen = held(t, "new3");
  seen.talk.send("one", true);
  void seen.talk.open();
  await settle();
  seen.asked[0].answer({ id: "new3" });
  await settle();
  const again = held(t, "new3", seen.memory);
  void again.talk.open();
  await settle();
  seen.of("POST api/sessions/new3/messages")[0].refuse(new Refused(429, "Too many."));
  await settle();
  assert.deepEqual([seen.unsent[0], again.unsent[0], seen.memory.draft("new3"), seen.memory.draft("")], [true, true, "one", ""]);
});

test("An answer that could not be stopped goes on, and can be stopped.", async (t) => {
  const seen = held(t, "s3");
  const stop = "POST api/sessions/s3/cancel";
  const told = (type, data) => seen.talk.conversation.apply(type, { type, runId: "r", ...data });
  told("user_message_created", { messageId: "m", content: "x" });
  told("run_started", { agent: "a" });
  void seen.talk.stop();
  void seen.talk.stop();
  assert.deepEqual([seen.talk.running.state, seen.of(stop).length], ["stopping", 1]);
  seen.of(stop)[0].refuse(new Refused(503, "Busy."));
  await settle();
  assert.deepEqual([seen.talk.running.state, seen.problems], ["running", ["Busy."]]);
  void seen.talk.stop();
  told("complete", { finishReason: "stop" });
  seen.of(stop)[1].refuse(new Refused(503, "Busy."));
  await settle();
  assert.equal(seen.talk.conversation.turns[0].state, "done");
});

test("Whose a chat is, and what may be done there, is as the last look has it.", async (t) => {
  const seen = held(t, "s4");
  const rows = "GET api/sessions/s4/messages?client=legato";
  const look = "GET api/sessions/s4";
  for (const number of [0, 1]) {
    void seen.talk.open();
    await settle();
    seen.of(rows)[number].answer([]);
    await settle();
  }
  seen.of(look)[1].answer({ id: "s4", owner: "ann", may: [] });
  await settle();
  seen.of(look)[0].answer({ id: "s4", owner: "ann", may: ["send"] });
  await settle();
  assert.deepEqual([seen.talk.about.may, seen.resets], [[], 3]);
});
