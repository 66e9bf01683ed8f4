// The store of one streamed answer: every row of its table, against a server that is a script.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { LegatoCore } from "../../src/legato/web/core.js";
import { TIMES } from "../../src/legato/web/resume.js";
import { StreamResponse, TRANSITIONS } from "../../src/legato/web/stream-response.js";
import { uncaught } from "./uncaught.mjs";

TIMES.first = 1; // the waits between repetitions

const encoder = new TextEncoder();
const frame = (name, data, id = "") => `event: ${name}\ndata: ${JSON.stringify(data)}\n${id && `id: ${id}\n`}\n`;
const MESSAGE = { id: "a", text: "Hello.", persona_id: "p", thread_id: "t", created_at: 1, author_type: "BOT" };

/** A server that answers streams by hand: each request is a connection with `send`, `end` and `lose`. */
class Server {
  connections = [];
  posts = [];
  answers = {}; // by the last part of the path: a status
  losing = 0; // so many of the other requests
  heads = []; // for the next connections: {status, headers}

  constructor() {
    this.core = new LegatoCore({ baseUrl: "http://legato.test/", fetch: this.fetch });
  }

  fetch = async (url, { method, headers, signal }) => {
    const { pathname } = new URL(url);
    const last = pathname.split("/").at(-1);
    if (last !== "stream") {
      this.posts.push(headers.has("last-event-id") ? `${pathname} ${headers.get("last-event-id")}` : pathname);
      if (this.losing-- > 0) throw new TypeError("no network");
      return new Response('{"error":{"message":"No.","reason":"no"}}', { status: this.answers[last] ?? 200 });
    }
    const { status = 200, ...more } = this.heads.shift() ?? {};
    if (status !== 200) return new Response('{"error":{"message":"No.","reason":"no"}}', { status });
    const connection = { method, pathname, headers, cursor: headers.get("last-event-id"), aborted: signal.aborted };
    const body = new ReadableStream({
      start: (controller) => {
        connection.send = async (...frames) => {
          // A connection that the client has left takes nothing any more.
          if (!connection.aborted) controller.enqueue(encoder.encode(`retry: 1\n${frames.join("")}`));
          await quiet();
        };
        connection.raw = (bytes) => controller.enqueue(bytes);
        connection.end = async () => (controller.close(), await quiet());
        connection.lose = async () => (controller.error(new TypeError("terminated")), await quiet());
      },
    });
    signal.addEventListener("abort", () => (connection.aborted = true));
    this.connections.push(connection);
    return new Response(body, { headers: { "content-type": "text/event-stream", ...more } });
  };

  /** The newest connection, once there are so many. */
  async connection(count) {
    for (let round = 0; this.connections.length < count; round += 1) {
      if (round > 2000) throw new Error(`${this.connections.length} of ${count} connections came.`);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await quiet();
    return this.connections[count - 1];
  }
}

/** Let everything happen that needs no timer. */
async function quiet() {
  for (let round = 0; round < 10; round += 1) await new Promise((resolve) => setImmediate(resolve));
}

const all = [];
afterEach(() => all.splice(0).forEach((response) => response.close())); // whatever failed: an open one keeps Node running

function begun(options = {}, server = new Server()) {
  const response = new StreamResponse(server.core, { threadId: "t", messageId: "m/1", ...options });
  all.push(response);
  response.start();
  return { server, response, state: () => brief(response.getSnapshot()) };
}

const brief = ({ message, isStreaming, isDone, isReconnecting, error }) =>
  [message?.text ?? null, isStreaming ? "streaming" : isDone ? "done" : "idle", isReconnecting, error?.code ?? null];

test("An answer from its first piece to its last word.", async () => {
  const finished = [];
  const { server, response, state } = begun({ onMessage: (message) => finished.push(message) });
  assert.deepEqual(state(), [null, "streaming", false, null]);
  const first = await server.connection(1);
  assert.deepEqual([first.method, first.pathname], ["POST", "/api/sdk/chat/t/messages/m%2F1/query/stream"]);
  await first.send(frame("content", "Hel", "1.0"));
  assert.deepEqual(state(), ["Hel", "streaming", false, null]);
  assert.deepEqual(response.getSnapshot().message, { text: "Hel", thread_id: "t", author_type: "BOT" });
  await first.send(frame("content", "lo.", "2.0"), frame("completion", { finish_reason: "stop" }, "3.0"), frame("news", 1, "3.1"));
  assert.deepEqual(state(), ["Hello.", "streaming", false, null]);
  await first.send(frame("response_message", MESSAGE, "3.2"));
  assert.deepEqual(state(), ["Hello.", "done", false, null]);
  assert.deepEqual([response.getSnapshot().message, finished, first.aborted], [MESSAGE, [MESSAGE], true]);
});

test("Lost, ended too early, or refused for now: it comes back where it was, and says so meanwhile.", async () => {
  const { server, response, state } = begun();
  const busy = Array(20).fill([{ status: 503 }, { status: 429 }]).flat(); // so it stays away until it has been looked at
  await (await server.connection(1)).send(frame("content", "a", "1.0"));
  server.heads = [...busy];
  await server.connections[0].lose();
  assert.deepEqual(state(), ["a", "streaming", true, null]);
  server.heads = [];
  const second = await server.connection(2);
  assert.equal(second.cursor, "1.0");
  assert.deepEqual(state(), ["a", "streaming", false, null]);
  await second.send(frame("content", "b", "2.0"), frame("completion", {}, "3.0"));
  server.heads = [...busy];
  await second.end();
  assert.deepEqual(state(), ["ab", "streaming", true, null]);
  response.close();
});

test("Whatever comes after the end is dropped.", async () => {
  const { server, state } = begun();
  const first = await server.connection(1);
  await first.send(frame("content", "a", "1.0"), frame("response_message", MESSAGE, "2.0"), frame("content", "b", "3.0"),
    frame("error", { code: "late" }, "4.0"), frame("response_message", { ...MESSAGE, text: "Twice." }, "5.0"));
  assert.deepEqual(state(), ["Hello.", "done", false, null]);
});

test("An error keeps the text so far; retrying asks for the answer anew.", async () => {
  const { server, response, state } = begun();
  const first = await server.connection(1);
  await first.send(frame("content", "a", "1.0"), frame("error", { code: "agent_error", message: "It broke.", retryable: true }, "2.0"),
    frame("content", "b", "3.0"));
  assert.deepEqual(state(), ["a", "done", false, "agent_error"]);
  assert.deepEqual([response.getSnapshot().error.message, response.getSnapshot().error.retryable, first.aborted], ["It broke.", true, true]);
  server.losing = 1;
  await response.retry();
  assert.deepEqual(state(), [null, "streaming", false, null]);
  assert.deepEqual(server.posts, Array(2).fill("/api/sdk/chat/t/messages/m%2F1/retry 2.0")); // the failed answer's last id
  const second = await server.connection(2);
  assert.equal(second.cursor, null);
  await second.send(frame("content", "c", "9.0"), frame("response_message", MESSAGE, "10.0"));
  assert.deepEqual(state(), ["Hello.", "done", false, null]);
  await response.retry(); // complete: nothing to retry
  assert.equal(server.posts.length, 2);
});

test("Errors in whatever form, since no form is documented.", async () => {
  const forms = [
    ["event: error\ndata: It broke.\n\n", "The answer failed.", "error"],
    [frame("error", "It broke."), "It broke.", "error"],
    [frame("error", { code: "cancelled", message: "Stopped." }), "Stopped.", "cancelled"],
    [frame("error", null), "The answer failed.", "error"],
  ];
  for (const [text, message, code] of forms) {
    const { server, response } = begun();
    await (await server.connection(1)).send(text);
    const { error } = response.getSnapshot();
    assert.deepEqual([error.message, error.code, error.retryable], [message, code, true]);
  }
});

test("A refusal is an error, and retrying then looks for the same answer where it was.", async () => {
  const { server, response, state } = begun();
  await (await server.connection(1)).send(frame("content", "a", "1.0"));
  server.heads.push({ status: 403 });
  await server.connections[0].end();
  for (let round = 0; response.getSnapshot().error === null && round < 2000; round += 1) await new Promise((done) => setTimeout(done, 1));
  assert.deepEqual(state(), ["a", "done", false, "no"]);
  await response.retry();
  assert.deepEqual(state(), ["a", "streaming", false, null]);
  assert.equal((await server.connection(2)).cursor, "1.0");
  assert.deepEqual(server.posts, []);
  response.close();
});

test("What is not an event stream is waited out.", async () => {
  const { server, response, state } = begun({}, Object.assign(new Server(), { heads: [{ "content-type": "text/html" }] }));
  await (await server.connection(2)).send(frame("content", "a", "1.0"));
  assert.deepEqual(state(), ["a", "streaming", false, null]);
  response.close();
});

test("A frame that nobody can read is asked for again; one that stays so is an error, and so is what can never be sent.", async () => {
  const { server, response, state } = begun();
  for (const count of [1, 2, 3]) {
    assert.equal(state()[3], null);
    await (await server.connection(count)).send(frame("content", { no: "text" }, "1.0"));
  }
  assert.equal(response.getSnapshot().error.code, "malformed");
  assert.match(response.getSnapshot().error.cause.message, /JSON string/);
  const other = new Server();
  other.core.headers = { "no name": "x" };
  const mistaken = begun({}, other).response;
  await quiet();
  assert.equal(mistaken.getSnapshot().error.name, "TypeError");
});

test("A retry that the server does not allow is an error again; one that it does not know, or that came first, attaches.", async () => {
  for (const [status, after] of [[400, "done"], [404, "streaming"], [405, "streaming"], [409, "streaming"]]) {
    const { server, response, state } = begun();
    await (await server.connection(1)).send(frame("error", {}));
    server.answers.retry = status;
    await response.retry();
    assert.equal(state()[1], after, String(status));
    response.close();
  }
});

test("Without ids, the answer comes from its start again, and replaces what there was.", async () => {
  const { server, response, state } = begun();
  await (await server.connection(1)).send(frame("content", "Hel"));
  await server.connections[0].lose();
  const second = await server.connection(2);
  assert.equal(second.cursor, null);
  assert.deepEqual(state(), ["Hel", "streaming", false, null]); // it stays to be seen until then
  await second.send(frame("content", "Hello"));
  assert.deepEqual(state(), ["Hello", "streaming", false, null]);
  response.close();
});

test("A cursor that cannot be continued: the same, when the server says so.", async () => {
  const { server, response, state } = begun();
  await (await server.connection(1)).send(frame("content", "old", "7.0"));
  server.heads.push({ "legato-cursor": "reset" });
  await server.connections[0].lose();
  await (await server.connection(2)).send(frame("content", "new", "1.0"), frame("content", "er", "2.0"));
  assert.deepEqual(state(), ["newer", "streaming", false, null]);
  response.close();
});

test("Left and come back, as StrictMode does: nothing changes while away, nothing comes twice.", async () => {
  const { server, response, state } = begun();
  const told = [];
  response.subscribe(() => told.push(state()[0]));
  response.close();
  response.start();
  response.start();
  const second = await server.connection(2);
  assert.equal(server.connections[0].aborted, true);
  await second.send(frame("content", "a", "1.0"));
  void second.send(frame("content", "ghost", "2.0")); // on its way when we leave
  response.close();
  await quiet();
  assert.equal(second.aborted, true);
  assert.deepEqual(state(), ["a", "streaming", false, null]);
  response.start();
  const third = await server.connection(3);
  assert.equal(third.cursor, "1.0");
  await third.send(frame("content", "b", "2.0"));
  assert.deepEqual(state(), ["ab", "streaming", false, null]);
  response.close();
  await new Promise((resolve) => setTimeout(resolve, 40));
  assert.ok(!told.includes("ab"), "told after it was left");
});

test("Nothing is sent without both ids, or with a signal that was given up.", async () => {
  for (const options of [{ threadId: undefined }, { messageId: "" }, { signal: AbortSignal.abort() }]) {
    const { server, response, state } = begun(options);
    await response.retry();
    await response.stop();
    await quiet();
    assert.deepEqual([state(), server.connections.length, server.posts.length], [[null, "idle", false, null], 0, 0]);
  }
});

test("Stopping asks the server; the end comes on the stream.", async () => {
  const { server, response, state } = begun();
  await (await server.connection(1)).send(frame("content", "a", "1.0"));
  await response.stop();
  assert.deepEqual([server.posts, state()[1]], [["/api/sdk/chat/t/messages/m%2F1/stop"], "streaming"]);
  await server.connections[0].send(frame("error", { code: "cancelled", message: "The answer was stopped.", retryable: true }, "2.0"));
  assert.deepEqual(state(), ["a", "done", false, "cancelled"]);
});

test("Listeners are told of text at most once a frame, of everything else at once, and the state is the same object until it changes.", async (t) => {
  const { server, response } = begun();
  let told = 0;
  const leave = response.subscribe(() => (told += 1));
  const first = await server.connection(1);
  t.mock.timers.enable({ apis: ["setTimeout"] }); // a frame is over when we say so
  await first.send(...Array.from({ length: 50 }, (_, index) => frame("content", "x", `${index + 1}.0`)));
  assert.equal(told, 0);
  assert.equal(response.getSnapshot(), response.getSnapshot());
  t.mock.timers.tick(40);
  assert.equal(told, 1);
  await first.send(frame("content", "y", "51.0"), frame("response_message", MESSAGE, "52.0"));
  assert.equal(told, 2);
  leave();
});

test("A listener that fails is reported, and the text is whole.", async (t) => {
  const { server, response, state } = begun();
  const thrown = uncaught(t);
  response.subscribe(() => { throw new Error("my own fault"); });
  response.subscribe(async () => { throw new Error("and mine"); });
  const first = await server.connection(1);
  await first.send(frame("content", "a", "1.0"), frame("response_message", MESSAGE, "2.0"));
  assert.deepEqual([state(), thrown.map((error) => error.message)], [["Hello.", "done", false, null], ["my own fault", "and mine"]]);
  assert.equal(server.connections.length, 1);
});

test("Cut at every byte, the text is whole.", async () => {
  const words = ["Hel", "lo, ", "ü🎵", "."];
  const frames = [...words.map((word, index) => frame("content", word, `${index + 1}.0`)), frame("completion", {}, "5.0"),
    frame("response_message", { ...MESSAGE, text: words.join("") }, "5.1")];
  const whole = encoder.encode(frames.join(""));
  for (let cut = 0; cut <= whole.length; cut += 1) {
    const { server, response } = begun();
    const texts = new Set();
    const first = await server.connection(1);
    first.raw(encoder.encode("retry: 0\n"));
    first.raw(whole.slice(0, cut));
    await first.end();
    if (!response.getSnapshot().isDone) {
      texts.add(response.getSnapshot().message?.text);
      const { cursor, send } = await reconnected(server, response);
      await send(...frames.slice(cursor === null ? 0 : frames.findIndex((each) => each.includes(`id: ${cursor}\n`)) + 1));
      for (let round = 0; !response.getSnapshot().isDone && round < 2000; round += 1) await quiet(); // on a busy machine
    }
    const { message, isDone } = response.getSnapshot();
    assert.deepEqual([message.text, isDone], [words.join(""), true], `cut after ${cut} bytes`);
    for (const text of texts) assert.ok(text === undefined || words.join("").startsWith(text), text);
  }
});

/** Its next connection, without the wait for it; one that was made meanwhile has been left. */
async function reconnected(server, response) {
  response.close();
  response.start();
  for (let count = 2; ; count += 1) {
    const connection = await server.connection(count);
    if (!connection.aborted) return connection;
  }
}

test("What is not in the table is ignored.", () => {
  assert.deepEqual(TRANSITIONS.complete, {});
  for (const moves of Object.values(TRANSITIONS)) for (const phase of Object.values(moves)) assert.ok(phase in TRANSITIONS);
});
