// The stream that outlives its connections, against a small server that cuts them.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";

import { ConnectionLost, Malformed } from "../../src/legato/web/errors.js";
import { Refused, Stream, TIMES, backoff, worthRetrying } from "../../src/legato/web/resume.js";
import { settle } from "./tabs.mjs";
import { uncaught } from "./uncaught.mjs";

const LAW = JSON.parse(readFileSync(new URL("../vectors/waits.json", import.meta.url), "utf8"));
const CURSORS = JSON.parse(readFileSync(new URL("../vectors/cursors.json", import.meta.url), "utf8")).cases;

const { first } = TIMES;
TIMES.first = 1; // the waits between connections, where the server names none

/** Serve `answers` one after another; each gets (request, response). The last one is repeated. */
async function serving(answers, use) {
  const requests = [];
  const server = createServer((request, response) => {
    requests.push(request.headers["last-event-id"] ?? "");
    answers[Math.min(requests.length, answers.length) - 1](request, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    return await use(`http://127.0.0.1:${server.address().port}/stream`, requests);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const HEAD = { "content-type": "text/event-stream; charset=utf-8" };
const hello = (id) => `event: connected\nretry: 100\ndata: {"sessionId":"s"}\nid: ${id}\n\n`;
const token = (id, text) => `event: content\ndata: {"type":"content","content":"${text}"}\nid: ${id}\n\n`;
const plain = (body) => (_, response) => response.writeHead(200, HEAD).end(body);
/** The server's own word. */
const refuse = (status, reason = "session_not_found") => (_, response) =>
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify({ error: { code: status, message: "No such session.", reason } }));
/** Somebody else's. */
const foreign = (status, body, headers = {}) => (_, response) => response.writeHead(status, { "content-type": "text/html", ...headers }).end(body);
const endless = (body) => (_, response) => response.writeHead(200, HEAD).write(body);

/** Follow until `count` contents have come, or the stream is refused. */
async function follow(url, count, on = {}, options = {}) {
  const seen = [];
  const states = [];
  let refused = null;
  const stream = new Stream(url, {
    event: async (name, data, id) => {
      await on.event?.(name, data, id, stream);
      if (name === "content") seen.push(data.content);
      if (seen.length === count) stream.close();
    },
    state: (state) => states.push(state),
    refused: (error) => (refused = error),
  }, options);
  await stream.follow();
  return { seen, states, refused, cursor: stream.cursor };
}

test("A clean end, a cut inside a frame, and a cut before any frame: it comes back where it was.", async () => {
  const answers = [
    plain(hello(4) + token(5, "a") + token(6, "b")),
    (_, response) => {
      response.writeHead(200, HEAD).write(hello(6) + token(7, "c") + "event: content\ndata: {\"cont");
      setTimeout(() => response.destroy(), 20);
    },
    (_, response) => response.destroy(),
    endless(hello(7) + token(8, "d")),
  ];
  await serving(answers, async (url, requests) => {
    const { seen, states } = await follow(url, 4);
    assert.deepEqual(seen, ["a", "b", "c", "d"]);
    assert.deepEqual(requests, ["", "6", "7", "7"]);
    assert.equal(states.at(-1), "closed");
    assert.equal(states.filter((state) => state === "waiting").length, 3);
  });
});

test("With a cursor goes where it is from: the incarnation on whose connection it came.", async () => {
  const from = [];
  const told = (incarnation, body) => (request, response) => {
    from.push(request.headers["legato-incarnation"] ?? "");
    response.writeHead(200, incarnation ? { ...HEAD, "legato-incarnation": incarnation } : HEAD).end(body);
  };
  const answers = [told("one", hello(4) + token(5, "a")), told("two", ""), told("two", hello(2) + token(3, "b")), told("", hello(3) + token(4, "c"))];
  await serving([...answers, told("", hello(4) + token(5, "d"))], async (url) => {
    assert.deepEqual((await follow(url, 4)).seen, ["a", "b", "c", "d"]);
    assert.deepEqual(from, ["", "one", "one", "two", ""]);
  });
});

test("What becomes of the cursor is as in browsers.", async () => {
  for (const { name, given, bodies, sent } of CURSORS) {
    const asked = [];
    const stream = new Stream("http://legato.test/stream", {
      event: () => {},
      state: (state) => state === "waiting" && stream.reconnect(),
    }, {
      lastEventId: given,
      fetch: async (_, { headers }) => {
        const id = new Headers(headers).get("last-event-id");
        asked.push(id && Buffer.from(id, "latin1").toString()); // it is UTF-8
        if (asked.length === sent.length) stream.close();
        return new Response(bodies[asked.length - 1] ?? "", { headers: HEAD });
      },
    });
    await stream.follow();
    assert.deepEqual(asked, sent, name);
  }
});

test("Cut at every single byte, it loses nothing and doubles nothing.", async () => {
  const words = ["a", "b", "ü🎵", "d"];
  const frames = words.map((word, index) => token(index + 1, word));
  const whole = Buffer.byteLength(hello(0) + frames.join(""));
  let length = 0;
  const answer = (request, response) => {
    const after = Number(request.headers["last-event-id"] ?? 0);
    const body = Buffer.from(hello(after) + frames.slice(after).join(""));
    response.writeHead(200, HEAD);
    if (length <= 0) return response.write(body);
    response.write(body.subarray(0, length), () => response.destroy());
    length = 0; // the next connection is whole
  };
  await serving([answer], async (url) => {
    for (let cut = 1; cut < whole; cut += 1) {
      length = cut;
      const seen = [];
      const stream = new Stream(url, {
        event: (name, data) => {
          if (name === "content") seen.push(data.content);
          if (seen.length === words.length) stream.close();
        },
        state: (state) => state === "waiting" && stream.reconnect(), // without the wait
      });
      await stream.follow();
      assert.deepEqual(seen, words, `cut after ${cut} bytes`);
    }
  });
});

test("What the handler of an event throws is told once, whatever it is, and another stream goes on with that event.", async () => {
  const errors = [new TypeError("undefined.x"), new RangeError("too deep"), new DOMException("", "AbortError"), new Refused(404, "another server's"),
    new ConnectionLost("another request's"), new Malformed("another answer's"), "no error at all", undefined];
  for (const error of errors) for (const late of [false, true]) {
    await serving([endless(hello(0) + token(1, "a") + token(2, "b"))], async (url, requests) => {
      const states = [];
      let refused = false;
      const on = {
        event: (name, data, id) => {
          if (id !== "2") return;
          if (late) return Promise.reject(error);
          throw error;
        },
        state: (state) => states.push(state),
        refused: () => (refused = true),
      };
      const stream = new Stream(url, on);
      const thrown = await stream.follow().then(() => assert.fail("no error"), (thrown) => ({ thrown }));
      assert.equal(thrown.thrown, error);
      assert.deepEqual([stream.cursor, states, refused, requests.length], ["1", ["connecting", "open", "closed"], false, 1]);
      const { seen } = await follow(url, 2, {}, { lastEventId: stream.cursor });
      assert.deepEqual([seen, requests], [["a", "b"], ["", "1"]]);
    });
  }
});

test("It is told, too, if the stream was closed meanwhile; not if it is only the reason of that.", async () => {
  await serving([endless(hello(0) + token(1, "a"))], async (url) => {
    const error = new TypeError("undefined.x");
    const closed = new Stream(url, { event: () => { closed.close(); throw error; } });
    await assert.rejects(closed.follow(), error);
    const leaving = new AbortController();
    const left = new Stream(url, { event: () => { leaving.abort(); leaving.signal.throwIfAborted(); } }, { signal: leaving.signal });
    await left.follow();
    assert.deepEqual([closed.cursor, left.cursor, left.state], ["", "", "closed"]);
  });
});

test("A listener may be an object of a class.", async () => {
  class Reader {
    told = [];
    event(name) { this.told.push(name); }
    state(state) { this.told.push(state); }
    open({ status }) { this.told.push(status); }
    refused({ status }) { this.told.push(status); }
  }
  const reader = new Reader();
  await serving([plain(hello(0)), refuse(404)], (url) => new Stream(url, reader).follow());
  assert.deepEqual(reader.told, ["connecting", 200, "open", "connected", "waiting", "connecting", "closed", 404]);
});

test("What the other listeners throw is an uncaught error, and nothing else.", async (t) => {
  const seen = uncaught(t);
  const beat = 'event: heartbeat\ndata: {}\nid: 1\n\n';
  for (const fail of [(word) => { throw new TypeError(word); }, (word) => Promise.reject(new TypeError(word))]) {
    await serving([plain(hello(0) + token(1, "a") + beat), refuse(404)], async (url, requests) => {
      const contents = [];
      const event = (name, data) => void (name === "content" && contents.push(data.content));
      const on = { event, state: fail, open: () => fail("open"), beat: () => fail("beat"), refused: () => fail("refused") };
      const stream = new Stream(url, on);
      await stream.follow();
      await new Promise((resolve) => setTimeout(resolve));
      assert.deepEqual([contents, requests, stream.state], [["a"], ["", "1"], "closed"]);
      const told = ["connecting", "open", "open", "beat", "waiting", "connecting", "closed", "refused"];
      assert.deepEqual(seen.splice(0).map(({ message }) => message), told);
    });
  }
});

test("A slow reader holds the connection back; events never overtake each other.", async () => {
  await serving([endless(hello(0) + token(1, "a") + token(2, "b") + token(3, "c"))], async (url) => {
    let inside = 0;
    const on = { event: async () => {
      inside += 1;
      assert.equal(inside, 1);
      await new Promise((resolve) => setTimeout(resolve, 5));
      inside -= 1;
    } };
    assert.deepEqual((await follow(url, 3, on)).seen, ["a", "b", "c"]);
  });
});

test("503 with Retry-After and 429 are waited out; the server's own 404 ends it.", async () => {
  const busy = (status) => (_, response) => response.writeHead(status, { "retry-after": "0" }).end();
  await serving([busy(503), busy(429), endless(hello(0) + token(1, "a"))], async (url, requests) => {
    assert.deepEqual((await follow(url, 1)).seen, ["a"]);
    assert.equal(requests.length, 3);
  });
  await serving([refuse(404)], async (url, requests) => {
    const { refused } = await follow(url, 1);
    assert.deepEqual([refused.status, refused.message, refused.reason], [404, "No such session.", "session_not_found"]);
    assert.equal(requests.length, 1);
  });
  await serving([(_, response) => response.writeHead(204).end()], async (url) => {
    assert.equal((await follow(url, 1)).refused.status, 204);
  });
});

test("What somebody else answers in the server's place is waited out, whatever it is.", async () => {
  const bodies = ["", "null", "[]", "<p>", '{"error":null}', '{"error":"not found"}', '{"detail":"Not Found"}', '{"message":"Forbidden"}'];
  const answers = bodies.map((body) => foreign(404, body));
  for (const status of [400, 401, 403, 404, 405, 409, 410, 413, 421, 425, 451, 502]) answers.push(foreign(status, "<title>Sign in</title>"));
  answers.push(foreign(200, "hello"), foreign(200, "{}", { "content-type": "application/json" }), foreign(302, "", { location: "/elsewhere" }));
  for (const method of ["GET", "POST"]) {
    for (const answer of method === "GET" ? answers : answers.slice(-4)) {
      await serving([plain("retry: 1\n\n" + token(1, "a")), answer, endless(hello(1) + token(2, "b"))], async (url, requests) => {
        assert.deepEqual((await follow(url, 2, {}, { method })).seen, ["a", "b"]);
        assert.equal(requests[2], "1");
      });
    }
  }
});

test("Headers are asked for anew for each connection, and once more when they are not accepted.", async () => {
  const tokens = [];
  const guarded = (good, body) => (request, response) => {
    tokens.push(request.headers.authorization);
    if (request.headers.authorization !== good) return response.writeHead(401).end();
    return body === null ? response.destroy() : response.writeHead(200, HEAD).write(body);
  };
  const answers = [guarded("t1", hello(0) + token(1, "a")), guarded("t3", ""), guarded("t3", hello(1) + token(2, "b"))];
  let count = 0;
  const asked = [];
  const headers = async ({ unauthorized }) => {
    asked.push(unauthorized);
    count += 1;
    return { authorization: `t${count}` };
  };
  await serving(answers, async (url) => {
    const on = { event: (name, data, id, stream) => { if (id === "1" && name === "content") stream.reconnect(); } };
    assert.deepEqual((await follow(url, 2, on, { headers })).seen, ["a", "b"]);
  });
  assert.deepEqual(tokens, ["t1", "t2", "t3"]);
  assert.deepEqual(asked, [false, false, true]);
});

test("A token that is refused twice, or cannot be asked for anew, ends the stream.", async () => {
  const closed = refuse(401, "token_expired");
  await serving([closed], async (url, requests) => {
    const { refused } = await follow(url, 1, {}, { headers: () => ({ authorization: "old" }) });
    assert.deepEqual([refused.status, refused.code, requests.length], [401, "token_expired", 2]);
  });
  await serving([closed], async (url, requests) => {
    assert.equal((await follow(url, 1, {}, { headers: { authorization: "old" } })).refused.status, 401);
    assert.equal(requests.length, 1);
  });
});

test("A failure to get headers is waited out, and told once until they come; a Refused from there ends the stream.", async (t) => {
  const told = t.mock.method(console, "warn", () => {}).mock;
  await serving([endless(hello(0) + token(1, "a"))], async (url) => {
    let failures = 2;
    const headers = () => {
      if (failures-- > 0) throw new TypeError("no network");
      return {};
    };
    for (const count of [1, 2]) {
      assert.deepEqual((await follow(url, 1, {}, { headers })).seen, ["a"]);
      assert.deepEqual([told.callCount(), told.calls.at(-1).arguments.at(-1).message], [count, "no network"]);
      failures = 2;
    }
    const gone = () => { throw new Refused(401, "Logged out.", "logged_out"); };
    assert.equal((await follow(url, 1, {}, { headers: gone })).refused.code, "logged_out");
    assert.equal(told.callCount(), 2);
  });
});

test("So is a failure of a fetch of one's own.", async (t) => {
  const told = t.mock.method(console, "warn", () => {}).mock;
  await serving([endless(hello(0) + token(1, "a"))], async (url, requests) => {
    const failures = [() => undefined.x, async () => undefined.x];
    const fetch = (...given) => (failures.shift() ?? globalThis.fetch)(...given);
    assert.deepEqual((await follow(url, 1, {}, { fetch })).seen, ["a"]);
    assert.deepEqual([told.callCount(), requests.length], [1, 1]);
  });
});

test("What can never be sent is no lost connection: it is told at once.", async () => {
  await serving([endless(hello(0))], async (url, requests) => {
    const mistakes = [{ headers: { "no name": "x" } }, { headers: async () => ({ authorization: "Bearer ☕" }) }, { lastEventId: "a\nb" },
      { fetch: async () => {} }];
    for (const options of mistakes) await assert.rejects(follow(url, 1, {}, options), TypeError, JSON.stringify(options));
    assert.equal(requests.length, 0);
  });
  await assert.rejects(follow("/stream", 1), TypeError); // of which page?
});

test("A signal closes the stream, also while its headers never come; an aborted one sends nothing.", async () => {
  await serving([endless(hello(0))], async (url, requests) => {
    assert.deepEqual((await follow(url, 1, {}, { signal: AbortSignal.abort() })).states, []);
    const leaving = new AbortController();
    const headers = () => new Promise(() => setTimeout(() => leaving.abort(), 5));
    assert.deepEqual((await follow(url, 1, {}, { signal: leaving.signal, headers })).states, ["connecting", "closed"]);
    assert.equal(requests.length, 0);
  });
});

test("Any fetch will do, even one that ignores signals.", async () => {
  const encoder = new TextEncoder();
  const calls = [];
  const fetch = async (url, init) => {
    calls.push([String(url), init.headers.get("last-event-id"), init.method]);
    const start = (controller) => controller.enqueue(encoder.encode(hello(7) + token(8, "a")));
    return new Response(new ReadableStream({ start }), { headers: HEAD });
  };
  const options = { fetch, lastEventId: "7", method: "POST" };
  const { seen, cursor } = await follow("http://nowhere.test/stream", 1, {}, options);
  assert.deepEqual([seen, cursor, calls], [["a"], "8", [["http://nowhere.test/stream", "7", "POST"]]]);
});

test("What was handled does not come again, whatever becomes of the connection meanwhile.", async () => {
  await serving([endless(hello(0) + token(1, "a") + token(2, "b")), endless(hello(1) + token(2, "b"))], async (url, requests) => {
    const on = { event: (name, data, id, stream) => { if (name === "content" && id === "1") stream.reconnect(); } };
    const { seen } = await follow(url, 2, on);
    assert.deepEqual([seen, requests], [["a", "b"], ["", "1"]]);
  });
});

/** Time that passes, and connections on which something comes, when the test says so. */
function still(t) {
  let now = Date.now();
  let watch = () => {};
  t.mock.method(Date, "now", () => now);
  t.mock.method(globalThis, "setInterval", (act) => void (watch = act));
  const pass = async (milliseconds) => {
    now += milliseconds;
    watch();
    await settle();
  };
  const connections = [];
  const start = (controller) => connections.push(controller);
  const fetch = async () => new Response(new ReadableStream({ start }), { headers: HEAD });
  const say = async (text) => (connections.at(-1).enqueue(new TextEncoder().encode(text)), await settle());
  return { pass, connections, fetch, say };
}

test("A reader that takes its time is no silent server.", async (t) => {
  const { pass, connections, fetch, say } = still(t);
  const on = { event: () => pass(10 * TIMES.silence) };
  const following = follow("http://legato.test/stream", 2, on, { fetch });
  await settle();
  await say(hello(0) + token(1, "a") + token(2, "b"));
  assert.deepEqual((await following).seen, ["a", "b"]);
  assert.equal(connections.length, 1);
});

test("An event that cannot be read is asked for again; one that stays so ends the stream.", async () => {
  const spoilt = "event: content\ndata: {oops\nid: 1\n\n";
  await serving([plain(hello(0) + spoilt), endless(hello(0) + token(1, "a"))], async (url) => {
    assert.deepEqual((await follow(url, 1)).seen, ["a"]);
  });
  await serving([plain(hello(0) + spoilt)], async (url, requests) => {
    const { refused } = await follow(url, 1);
    assert.deepEqual([refused.code, requests.length], ["malformed", 3]);
  });
  await serving([plain(hello(0))], async (url, requests) => {
    const error = new TypeError("undefined.x");
    const names = [];
    const parse = (text, name) => { names.push(name); throw error; };
    const { refused } = await follow(url, 1, {}, { parse });
    assert.deepEqual([refused.code, refused.cause, requests.length, names], ["malformed", error, 3, Array(3).fill("connected")]);
  });
});

test("A silent connection is given up, and heartbeats keep one alive.", async (t) => {
  const { pass, connections, fetch, say } = still(t);
  const following = follow("http://legato.test/stream", 1, {}, { fetch });
  await settle();
  await say(hello(0));
  await pass(TIMES.silence + 1);
  while (connections.length < 2) await new Promise((resolve) => setTimeout(resolve, 5)); // it comes back
  await say(hello(0));
  for (let beats = 0; beats < 8; beats += 1) {
    await pass(TIMES.silence - 1);
    await say(beats % 2 ? ":\n" : 'event: heartbeat\ndata: {"type":"ping"}\nid: 0\n\n');
  }
  await say(token(1, "a"));
  assert.deepEqual((await following).seen, ["a"]);
  assert.equal(connections.length, 2);
});

test("Reconnecting by hand ends the wait.", async () => {
  const slow = (_, response) => response.writeHead(503, { "retry-after": "60" }).end();
  await serving([slow, endless(hello(0) + token(1, "a"))], async (url) => {
    const stream = new Stream(url, {
      event: (name) => { if (name === "content") stream.close(); },
      state: (state) => { if (state === "waiting") setTimeout(() => stream.reconnect(), 10); },
    });
    await stream.follow();
    assert.equal(stream.cursor, "1"); // closed while its event was handled, so it has been handled
  });
});

test("Waits are those of the law, whose table holds for the Python client, too.", (t) => {
  TIMES.first = first;
  t.after(() => (TIMES.first = 1));
  for (const { attempt, retry, random, retry_after: retryAfter, wait } of LAW.waits) {
    const given = { retry, retryAfter, random: () => random };
    assert.equal(backoff(attempt, given), wait, JSON.stringify([attempt, given, random]));
  }
  assert.deepEqual(LAW.final.filter(worthRetrying), []);
  assert.deepEqual(LAW.passing.filter(worthRetrying), LAW.passing);
});

/** The waits between the connections of a stream until it has made `count` of them. */
async function waits(t, url, count, event = () => {}) {
  const waits = [];
  const { setTimeout } = globalThis;
  t.mock.method(Math, "random", () => 1);
  const stream = new Stream(url, {
    event,
    state: (state) => {
      if (state !== "waiting") return;
      t.mock.method(globalThis, "setTimeout", (act, wait) => {
        t.mock.restoreAll();
        t.mock.method(Math, "random", () => 1);
        if (waits.push(wait) === count) stream.close();
        return setTimeout(act, 0);
      });
    },
  });
  await stream.follow();
  return waits;
}

test("A greeting or a heartbeat alone is no progress; an event is, and a connection that is heard for long.", async (t) => {
  const { healthy } = TIMES;
  const beat = 'event: heartbeat\ndata: {"type":"ping"}\nid: 0\n\n';
  await serving([plain(hello(0) + beat)], async (url) => assert.deepEqual(await waits(t, url, 3), [100, 200, 400]));
  await serving([plain(hello(0)), plain(hello(0) + token(1, "a"))], async (url) => assert.deepEqual(await waits(t, url, 3), [100, 100, 100]));
  let more = () => {}; // once the greeting has been heard
  const long = (_, response) => {
    more = () => setTimeout(() => response.end(":\n"), 60);
    response.writeHead(200, HEAD).write(hello(0));
  };
  TIMES.healthy = 30;
  await serving([plain(hello(0)), long], async (url) => assert.deepEqual(await waits(t, url, 3, () => void more()), [100, 100, 100]));
  TIMES.healthy = healthy;
});

test("What a server in trouble asks for is waited for, and more.", async (t) => {
  const busy = (_, response) => response.writeHead(503, { "retry-after": "7" }).end();
  await serving([plain(hello(0)), busy], async (url) => assert.deepEqual(await waits(t, url, 3), [100, 7200, 7400]));
});
