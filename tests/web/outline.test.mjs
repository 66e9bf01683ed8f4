// A log in columns: what the picture is drawn from.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Outline, kindOf } from "../../src/legato/web/outline.js";

/** An outline of rows [type, run or null, at, size], added in pages of `size`. */
function outline(rows, size = rows.length) {
  const made = new Outline();
  for (let after = 0; after < rows.length; after += size) made.add(page(rows.slice(after, after + size), after));
  return made;
}

/** A page as the server tells it: names once, places in the columns. */
function page(rows, after) {
  const types = [...new Set(rows.map((row) => row[0]))];
  const runs = [...new Set(rows.map((row) => row[1]).filter((run) => run !== null))];
  return {
    after, types, runs,
    type: rows.map((row) => types.indexOf(row[0])),
    run: rows.map((row) => (row[1] === null ? -1 : runs.indexOf(row[1]))),
    at: rows.map((row) => row[2]),
    size: rows.map((row) => row[3] ?? 0),
  };
}

const TURN = [
  ["session.created", null, 0],
  ["message.created", "a", 100],
  ["run.started", "a", 110],
  ["text.delta", "a", 200, 8],
  ["message.created", "b", 250],
  ["text.delta", "a", 2200, 4],
  ["run.started", "a", 4000],
  ["tool_call.started", "a", 4100],
  ["tool.completed", "a", 4300],
  ["run.completed", "a", 4400],
  ["run.started", "b", 4500],
];
const ALL = { first: 1, last: TURN.length, from: 0, to: 5000 };

for (const size of [1, 2, 3, TURN.length]) {
  test(`pages of ${size} join to the same log`, () => {
    const made = outline(TURN, size);
    assert.equal(made.length, TURN.length);
    TURN.forEach(([type, run, at, characters], place) => {
      assert.equal(made.type(place + 1), type);
      assert.equal(made.run(place + 1)?.id ?? null, run);
      assert.equal(made.at(place + 1), at);
      assert.equal(made.size(place + 1), characters ?? 0);
    });
    assert.deepEqual(made.runs, [
      { id: "a", number: 1, first: 2, last: 10, attempts: [3, 7], end: "run.completed" },
      { id: "b", number: 2, first: 5, last: 11, attempts: [11], end: "" },
    ]);
  });
}

test("a page that does not join changes nothing", () => {
  const made = outline(TURN);
  assert.equal(made.add(page(TURN.slice(2), 2)), false);
  assert.equal(made.add(page(TURN, 20)), false);
  assert.equal(made.length, TURN.length);
});

test("the first event that is not before a time", () => {
  const made = outline(TURN);
  assert.deepEqual([-5, 0, 1, 200, 201, 4500, 4501].map((at) => made.since(at)), [1, 1, 2, 4, 5, 11, 12]);
  assert.equal(new Outline().since(0), 1);
});

test("bins hold every event once, and its characters", () => {
  const made = outline(TURN);
  const { counts, characters } = made.bins(ALL, 10, null);
  assert.equal(Object.values(counts).reduce((sum, each) => sum + each.reduce((one, other) => one + other, 0), 0), TURN.length);
  assert.deepEqual([...counts.text], [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
  assert.deepEqual([...characters], [8, 0, 0, 0, 4, 0, 0, 0, 0, 0]);
  assert.equal(made.bins(ALL, 10, made.runs[1]).counts.text.reduce((one, other) => one + other, 0), 0);
});

test("gaps are silences of a run, the last one open", () => {
  const made = outline(TURN);
  assert.deepEqual(made.gaps(ALL, made.runs[0], 1000, false), [{ after: 4, from: 200, to: 2200 }, { after: 6, from: 2200, to: 4000 }]);
  assert.deepEqual(made.gaps(ALL, made.runs[1], 400, true).map((gap) => gap.to), [4500, 5000]);
});

test("spans last until what began has ended, or its attempt did", () => {
  const made = outline(TURN);
  assert.deepEqual(made.spans(ALL, null, ["tool_call.started"], ["tool.completed"]), [{ from: 4100, to: 4300 }]);
  const crashed = outline([["tool_call.started", "a", 10], ["run.started", "a", 50]]);
  assert.deepEqual(crashed.spans({ first: 1, last: 2, to: 90 }, null, ["tool_call.started"], ["tool.completed"]), [{ from: 10, to: 50 }]);
  const open = outline([["tool_call.started", "a", 10]]);
  assert.deepEqual(open.spans({ first: 1, last: 1, to: 90 }, null, ["tool_call.started"], ["tool.completed"]), [{ from: 10, to: 90 }]);
});

test("the rate is of the last moments only", () => {
  assert.equal(outline(TURN).rate(2300, 1000), 4);
  assert.equal(outline(TURN).rate(9000, 1000), 0);
});

test("a hundred thousand events are few bytes and one walk", () => {
  const rows = Array.from({ length: 100_000 }, (_, place) => ["text.delta", "a", place, 5]);
  const made = outline(rows, 5000);
  const { characters } = made.bins({ first: 1, last: 100_000, from: 0, to: 100_000 }, 1000, made.runs[0]);
  assert.ok(characters.every((each) => each === 500));
});

test("every event has a lane", () => {
  const lanes = Object.fromEntries(["thinking.delta", "text.delta", "tool_call.delta", "tool.started", "permission.requested", "notification.resolved", "run.failed", "session.created"].map((type) => [type, kindOf(type)]));
  assert.deepEqual(Object.values(lanes), ["thinking", "text", "tools", "tools", "asks", "asks", "run", "run"]);
});
