// The client's functions against a small server: what is repeated, what is not, and what becomes of errors.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import * as client from "../../src/legato/web/client.js";
import { PATIENCE } from "../../src/legato/web/call.js";
import { LegatoCore, at } from "../../src/legato/web/core.js";
import { ConnectionLost, Foreign, LegatoError, Refused } from "../../src/legato/web/errors.js";
import * as funcs from "../../src/legato/web/funcs.js";
import { TIMES } from "../../src/legato/web/resume.js";

TIMES.first = 1; // the waits between repetitions

/** Serve `answers` one after another; the last one is repeated. */
async function serving(answers, use, options = {}) {
  const requests = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    const { method, url, headers } = request;
    requests.push({ method, url, headers, body: body === "" ? undefined : JSON.parse(body) });
    answers[Math.min(requests.length, answers.length) - 1](response, request);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const core = new LegatoCore({ baseUrl: `http://127.0.0.1:${server.address().port}/chat`, ...options });
    return await use(core, requests);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const json = (status, body, headers = {}) => (response) =>
  response.writeHead(status, { "content-type": "application/json", ...headers }).end(body === undefined ? "" : JSON.stringify(body));
const error = (status, reason) => json(status, { error: { code: status, message: `It is ${reason}.`, reason } });
const cut = (response) => response.destroy();
const SENT = { status: "processing", sessionId: "s", runId: "r", messageId: "m", cursor: "4" };

test("A message is sent until it is answered, always under the same key.", async () => {
  await serving([cut, json(503, {}, { "retry-after": "0" }), cut, json(202, SENT)], async (core, requests) => {
    assert.deepEqual(await client.sendMessage(core, { sessionId: "s/1", text: "hi", metadata: { plan_mode: true } }), SENT);
    assert.equal(requests.length, 4);
    const keys = new Set(requests.map(({ headers }) => headers["idempotency-key"]));
    assert.equal(keys.size, 1);
    assert.match([...keys][0], /^[0-9a-f]{32}$/);
    assert.deepEqual([requests[0].method, requests[0].url], ["POST", "/chat/api/sessions/s%2F1/messages?client=legato"]);
    assert.deepEqual(requests[3].body, { plan_mode: true, text: "hi" });
  });
});

test("What could meet something that has come since is repeated under one key.", async () => {
  for (const runId of [undefined, "r"]) {
    for (const [act, told, wanted] of [[client.cancel, { cancelled: true }, true], [client.retryMessage, SENT, SENT]]) {
      await serving([cut, json(200, told)], async (core, requests) => {
        assert.deepEqual(await act(core, { sessionId: "s", messageId: "m", runId }), wanted);
        assert.deepEqual(requests.map(({ body }) => body.runId), [runId, runId]);
        const keys = requests.map(({ headers }) => headers["idempotency-key"]);
        assert.match(keys[0], /^[0-9a-f]{32}$/);
        assert.equal(keys[0], keys[1]);
      });
    }
  }
});

test("A session is created once, though the first answer was lost.", async () => {
  const answers = [cut, error(409, "session_exists"), json(200, { id: "made" })];
  await serving(answers, async (core, requests) => {
    assert.deepEqual(await client.createSession(core, { title: "Tea" }), { id: "made" });
    const { id, title } = requests[0].body;
    assert.deepEqual([requests[1].body.id, requests[2].url, title], [id, `/chat/api/sessions/${id}`, "Tea"]);
  });
  await serving([error(409, "session_exists")], async (core) => {
    await assert.rejects(client.createSession(core, { id: "mine" }), { status: 409, reason: "session_exists" });
  });
});

test("A file is given as it is, and only the server's own.", async () => {
  const kept = { "content-type": "image/png", "cache-control": "private, max-age=31536000, immutable" };
  const file = (response) => response.writeHead(200, kept).end(Buffer.from([0, 255, 10]));
  const short = (response) => response.writeHead(200, { ...kept, "content-length": "9" }).write("a", () => response.destroy());
  const page = (response) => response.writeHead(200, { "content-type": "text/html" }).end("<p>Sign in");
  await serving([short, page, cut, json(503, {}), file], async (core, requests) => {
    const blob = await client.getBlob(core, { sessionId: "s/1", hash: "ab" });
    assert.deepEqual([blob.type, [...new Uint8Array(await blob.arrayBuffer())]], ["image/png", [0, 255, 10]]);
    assert.deepEqual([requests.length, requests[0].url], [5, "/chat/api/sessions/s%2F1/blobs/ab"]);
  });
  await serving([error(404, "blob_not_found")], async (core) => {
    const { ok, error: why } = await funcs.getBlob(core, { sessionId: "s", hash: "ab" });
    assert.deepEqual([ok, why.code], [false, "blob_not_found"]);
  });
});

test("The other functions ask what they say.", async () => {
  const calls = [
    [client.listSessions, { limit: 2, before: "2026-01-01T00:00:00Z" }, [], "GET", "/chat/api/sessions?limit=2&before=2026-01-01T00%3A00%3A00Z"],
    [client.messages, { sessionId: "s" }, [], "GET", "/chat/api/sessions/s/messages?client=legato"],
    [client.resolvePermission, { id: "p", grant: true }, { granted: true }, "POST", "/chat/api/permissions/p/grant", true],
    [client.resolvePermission, { id: "p", grant: false }, { denied: false }, "POST", "/chat/api/permissions/p/deny", true],
    [client.respondToNotification, { id: "n", type: "text", value: "yes" }, undefined, "POST", "/chat/api/notifications/n/respond", undefined],
    [client.deleteSession, { sessionId: "s" }, undefined, "DELETE", "/chat/api/sessions/s", undefined],
  ];
  for (const [act, request, answer, method, url, given = answer] of calls) {
    await serving([json(answer === undefined ? 204 : 200, answer)], async (core, requests) => {
      assert.deepEqual(await act(core, request), given);
      assert.deepEqual([requests[0].method, requests[0].url], [method, url]);
    });
  }
  await serving([error(404, "session_not_found")], (core) => client.deleteSession(core, { sessionId: "gone" }));
});

test("A history is read page by page, to its first message.", async () => {
  const pages = [cut, json(200, [2], { "legato-next": "7" }), json(503, {}), json(200, [1])];
  await serving(pages, async (core, requests) => {
    const page = await client.messagePage(core, { sessionId: "s", limit: 1 });
    assert.deepEqual(page, { messages: [2], older: "7" });
    const first = await funcs.messagePage(core, { sessionId: "s", limit: 1, cursor: page.older });
    assert.deepEqual(first, { ok: true, value: { messages: [1], older: undefined } });
    const asked = ["limit=1", "limit=1", "limit=1&cursor=7", "limit=1&cursor=7"];
    assert.deepEqual(requests.map(({ url }) => url), asked.map((query) => `/chat/api/sessions/s/messages?client=legato&${query}`));
  });
});

test("Errors are typed; the functions of funcs.js give them as values.", async () => {
  await serving([error(404, "session_not_found")], async (core, requests) => {
    await assert.rejects(client.messages(core, { sessionId: "s" }), (thrown) => thrown instanceof Refused && thrown.code === "session_not_found");
    const { ok, value, error } = await funcs.messages(core, { sessionId: "s" });
    assert.deepEqual([ok, value, error.status, error.message], [false, undefined, 404, "It is session_not_found."]);
    assert.equal(requests.length, 2);
  });
  await serving([json(200, [1])], async (core) => {
    assert.deepEqual(await funcs.messages(core, { sessionId: "s" }), { ok: true, value: [1] });
    assert.deepEqual((await funcs.messages(core, { sessionId: ".." })).error.code, "invalid_input");
    assert.deepEqual((await funcs.messages(core, { sessionId: "s", signal: AbortSignal.abort() })).error.code, "aborted");
    assert.deepEqual((await funcs.streamEvents(core, { sessionId: "" })).error.code, "invalid_input");
  });
  await serving([(response) => response.end("<p>")], async (core, requests) => {
    const { attempts } = PATIENCE;
    PATIENCE.attempts = 2;
    await assert.rejects(client.messages(core, { sessionId: "s" }), Foreign);
    PATIENCE.attempts = attempts;
    assert.equal(requests.length, 2);
  });
  await serving([error(503, "busy")], async (core, requests) => {
    const { attempts } = PATIENCE;
    PATIENCE.attempts = 3;
    const { error } = await funcs.messages(core, { sessionId: "s" });
    PATIENCE.attempts = attempts;
    assert.deepEqual([error instanceof LegatoError, error.status, requests.length], [true, 503, 3]);
  });
});

test("A signal ends a request, also while it waits for its next attempt.", async () => {
  await serving([json(503, {}, { "retry-after": "60" })], async (core) => {
    const leaving = new AbortController();
    const asked = client.messages(core, { sessionId: "s", signal: leaving.signal });
    setTimeout(() => leaving.abort(), 20);
    await assert.rejects(asked, { name: "AbortError" });
  });
});

test("A token is asked for with each request, and once more when it is not accepted.", async () => {
  const answer = (response, { headers }) => (headers.authorization === "Bearer 2" ? json(200, [])(response) : error(401, "token_expired")(response));
  let asked = 0;
  const headers = async () => ({ authorization: `Bearer ${(asked += 1)}` });
  await serving([answer], async (core) => {
    assert.deepEqual(await client.messages(core, { sessionId: "s" }), []);
    await assert.rejects(client.messages(core, { sessionId: "s" }), { status: 401 });
    assert.equal(asked, 4);
  }, { headers });
});

test("What can never be sent is not sent again and again, and is no lost connection.", async () => {
  const loop = {};
  loop.loop = loop;
  await serving([json(202, SENT)], async (core, requests) => {
    await assert.rejects(client.sendMessage(core, { sessionId: "s", text: "hi", metadata: loop }), TypeError);
    assert.equal((await funcs.sendMessage(core, { sessionId: "s", text: "hi", metadata: loop })).error.code, "invalid_input");
    const mistaken = new LegatoCore({ baseUrl: core.baseUrl, headers: { "no name": "x" } });
    await assert.rejects(client.messages(mistaken, { sessionId: "s" }), TypeError);
    await assert.rejects(client.streamEvents(mistaken, { sessionId: "s" }).next(), TypeError);
    assert.equal(requests.length, 0);
  });
});

test("What a function for headers throws is the cause of the lost connection.", async (t) => {
  const told = t.mock.method(console, "warn", () => {}).mock;
  const error = new TypeError("undefined.x");
  await serving([json(200, [])], async (core) => {
    await assert.rejects(client.cancel(core, { sessionId: "s" }), (thrown) => thrown instanceof ConnectionLost && thrown.cause === error);
    assert.equal(told.callCount(), 1);
  }, { headers: () => { throw error; } });
});

test("Ids cannot lead elsewhere.", () => {
  assert.equal(at`a/${"b c"}/d/${"e/f"}`, "a/b%20c/d/e%2Ff");
  for (const id of ["", ".", "..", undefined]) assert.throws(() => at`a/${id}`, TypeError);
});

/* ---- Streams --------------------------------------------------------------------------------------------------- */

const HEAD = { "content-type": "text/event-stream" };
const frame = (name, id, data = {}) => `event: ${name}\ndata: ${JSON.stringify(data)}\nid: ${id}\n\n`;
const stream = (...frames) => (response) => response.writeHead(200, HEAD).write(`retry: 1\n${frames.join("")}`);
const ending = (...frames) => (response) => response.writeHead(200, HEAD).end(`retry: 1\n${frames.join("")}`);

test("A stream is iterated over cuts; its cursor moves when the loop asks for the next event.", async () => {
  const answers = [
    ending(frame("connected", 3), frame("content", 4, { content: "a" })),
    stream(frame("connected", 4), frame("heartbeat", 4), frame("content", 5, { content: "b" }), frame("complete", 6), frame("content", 7)),
  ];
  await serving(answers, async (core, requests) => {
    const events = client.streamEvents(core, { sessionId: "s", from: "start" });
    const seen = [];
    for await (const { event, id, data } of events) {
      seen.push([event, id, data.content, events.cursor]);
      if (event === "complete") break;
    }
    assert.deepEqual(seen, [
      ["connected", "3", undefined, ""], ["content", "4", "a", "3"], ["connected", "4", undefined, "4"],
      ["content", "5", "b", "4"], ["complete", "6", undefined, "5"],
    ]);
    assert.equal(events.cursor, "6"); // taken, and the loop was left: done with
    assert.equal(events.state, "closed");
    assert.equal(requests[0].url, "/chat/stream?sessionId=s&from=start&client=legato");
    assert.equal(requests[1].headers["last-event-id"], "4");
  });
});

test("A loop that is busy holds the connection back.", async () => {
  const text = "x".repeat(1000);
  let written = 0;
  const flood = (response) => {
    response.writeHead(200, HEAD);
    const more = () => {
      while (written < 200_000) if (!response.write(frame("content", (written += 1), { content: text }))) return;
    };
    response.on("drain", more);
    more();
  };
  await serving([flood], async (core) => {
    let taken = 0;
    for await (const _ of client.streamEvents(core, { sessionId: "s" })) {
      taken += 1;
      if (taken === 1) await new Promise((resolve) => setTimeout(resolve, 300)); // time enough to read it all
      if (taken === 3) break;
    }
    // What is under way is in buffers of the kernel and of fetch, some megabytes; without end it would be 200 MB.
    assert.ok(written < 50_000, `${written} events were written`);
  });
});

test("A stream that may not go on throws; one that is left is over.", async () => {
  await serving([ending(frame("connected", 1)), error(404, "session_not_found")], async (core) => {
    const events = client.streamEvents(core, { sessionId: "s" });
    await events.next();
    await assert.rejects(events.next(), { code: "session_not_found" });
    assert.deepEqual(await events.next(), { done: true, value: undefined });
  });
  await serving([stream(frame("connected", 1))], async (core) => {
    const leaving = new AbortController();
    const events = client.streamEvents(core, { sessionId: "s", signal: leaving.signal });
    await events.next();
    setTimeout(() => leaving.abort(), 5);
    assert.deepEqual(await events.next(), { done: true, value: undefined });
  });
});

test("Closed while an event waits to be taken: it was not, and comes again.", async () => {
  await serving([stream(frame("connected", 1), frame("content", 2))], async (core) => {
    const events = client.streamEvents(core, { sessionId: "s" });
    await events.next();
    const waiting = new Promise((resolve) => setTimeout(resolve, 50)); // until "content" has been offered
    const { value } = await events.next();
    assert.equal(value.id, "2");
    events.unread({ done: false, value });
    await waiting;
    events.close();
    await events.return();
    assert.equal(events.cursor, "1");
  });
});

test("The opened stream as a value has its first event still to come.", async () => {
  await serving([stream(frame("connected", 1), frame("content", 2))], async (core) => {
    const { ok, value } = await funcs.streamEvents(core, { sessionId: "s" });
    assert.equal(ok, true);
    const names = [];
    for await (const { event } of value) if (names.push(event) === 2) break;
    assert.deepEqual(names, ["connected", "content"]);
  });
  await serving([error(404, "session_not_found")], async (core) => {
    assert.equal((await funcs.streamEvents(core, { sessionId: "s" })).error.status, 404);
  });
});
