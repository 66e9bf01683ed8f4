// What is wrong, in sentences.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Outline } from "../../src/legato/web/outline.js";
import { ofServer, ofSession, stateOf } from "../../src/legato/web/troubles.js";

const SERVER = { draining: false, streams: 3, maxStreams: 10_000, stalled: [], openRuns: [] };
const reader = (given) => ({ number: 7, session: "s", dialect: "mix/python-0.8.1", cursor: 3, waiting: 0, since: 0, bytes: 0, ...given });
const run = (given) => ({ session: "s", run: "a", offset: 1, started: true, here: true, epoch: 1, lease: 9, ...given });

/** A log of one run with these events at these milliseconds. */
function log(...events) {
  const made = new Outline();
  made.add({ after: 0, types: events.map(([type]) => type), runs: ["a"], type: events.map((_, place) => place), run: events.map(() => 0), at: events.map(([, at]) => at), size: events.map(() => 0) });
  return made;
}

const BEGUN = [["message.created", 0], ["run.started", 1], ["text.delta", 2], ["text.delta", 3]];
const said = (troubles) => troubles.map(({ text }) => text).join("\n");

test("nothing is wrong with a server that works", () => {
  assert.deepEqual(ofServer(SERVER, "s"), []);
  assert.deepEqual(ofSession({ runs: [run()], readers: [reader({ cursor: 4 })] }, log(...BEGUN), 500), []);
});

test("a server that stops, or is nearly full, says so", () => {
  assert.match(said(ofServer({ ...SERVER, draining: true }, "s")), /takes no new messages/);
  assert.match(said(ofServer({ ...SERVER, streams: 9000 }, "s")), /9,000 of 10,000/);
});

test("a stalled reader of another session leads there", () => {
  const [trouble, ...rest] = ofServer({ ...SERVER, stalled: [reader({ session: "other", waiting: 12 }), reader({ waiting: 12 })] }, "s");
  assert.deepEqual(rest, []);
  assert.equal(trouble.session, "other");
  assert.match(trouble.text, /^Reader 7 \(Mix · python-0.8.1\) has taken nothing for 12 s; it is cut off in 48 s/);
});

test("a reader that lags is told with how much, and where it is", () => {
  const [trouble] = ofSession({ runs: [run()], readers: [reader({ cursor: 2 })] }, log(...BEGUN), 8002);
  assert.match(trouble.text, /is 2 events behind, by 8.0 s/);
  assert.equal(trouble.offset, 2);
});

test("what was stored a moment ago is on its way to a reader", () => {
  assert.equal(stateOf(reader({ cursor: 3 }), log(...BEGUN), 900), "live");
  assert.equal(stateOf(reader({ cursor: 3 }), log(...BEGUN), 1100), "behind");
  assert.equal(stateOf(reader({ cursor: 4 }), log(...BEGUN), 90_000), "live");
  assert.equal(stateOf(reader({ cursor: 4, waiting: 3 }), log(...BEGUN), 900), "stalled");
});

test("a run whose owner is gone", () => {
  assert.match(said(ofSession({ runs: [run({ lease: -1 })], readers: [] }, log(...BEGUN), 100)), /Whoever drove this run is gone/);
});

test("a silent run, and one that has reasons to be", () => {
  assert.match(said(ofSession({ runs: [run()], readers: [] }, log(...BEGUN), 20_003)), /said nothing for 20 s/);
  assert.match(said(ofSession({ runs: [run()], readers: [] }, log(...BEGUN, ["permission.requested", 4]), 20_004)), /waits for an answer to what it asked, for 20 s/);
  assert.match(said(ofSession({ runs: [run()], readers: [] }, log(...BEGUN, ["tool.started", 4]), 20_004)), /waits for a tool/);
});

test("a second attempt, and a failure that nothing has followed", () => {
  const again = ofSession({ runs: [run({ epoch: 2 })], readers: [] }, log(...BEGUN, ["run.started", 50]), 100);
  assert.match(said(again), /attempt 2 of the run/);
  assert.equal(again[0].offset, 5);
  const [failed] = ofSession({ runs: [], readers: [] }, log(...BEGUN, ["run.failed", 50]), 100);
  assert.deepEqual(failed, { level: "bad", text: "The last run failed.", offset: 5 });
});
