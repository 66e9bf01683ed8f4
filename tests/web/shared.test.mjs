// Many tabs, one connection: each interleaving that could lose, double or reorder an event is built here.
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { SharedStream } from "../../src/legato/web/shared.js";
import { BOUNDS } from "../../src/legato/web/tail.js";
import { World, settle } from "./tabs.mjs";
import { uncaught } from "./uncaught.mjs";

let world;
beforeEach(() => (world = new World()));
afterEach(() => world.close());

/** So many tabs in step, the first of them leading. */
async function tabs(count) {
  const made = [];
  for (let index = 0; index < count; index += 1) {
    made.push(world.tab());
    await world.flow();
  }
  return made;
}

/** Every tab has everything from where it began, once and in order; and one connection is open. */
function inStep(connections = 1) {
  for (const [index, tab] of world.tabs.entries()) {
    if (tab.stream.state === "closed") continue;
    const [, begun] = tab.greetings.find(([cursor]) => cursor === "reset") ?? tab.greetings[0];
    assert.deepEqual(tab.seen, world.server.log.filter((id) => id > Number(begun)), `tab ${index}`);
    assert.equal(tab.stream.cursor, String(world.server.log.at(-1) ?? 0), `cursor of tab ${index}`);
  }
  assert.equal(world.server.connections.size, connections);
}

test("Eight tabs have one connection, and all of them everything.", async () => {
  await tabs(8);
  world.server.append(3);
  await world.flow();
  inStep();
  assert.deepEqual(world.tabs.map((tab) => tab.stream.state), Array(8).fill("open"));
});

test("Eight tabs that are opened in one moment, in a browser that gives a host six connections, end with one.", async () => {
  world.server.limit = 6;
  world.server.append(5);
  for (let index = 0; index < 8; index += 1) world.tab();
  await world.flow();
  await world.pass(4000);
  world.server.append(2);
  await world.flow();
  inStep();
  assert.deepEqual(world.tabs[7].seen, [1, 2, 3, 4, 5, 6, 7]);
});

test("A tab that comes in the middle gets what it missed from the leader, after one short request.", async () => {
  const [leader] = await tabs(2);
  world.server.append(40);
  await world.flow();
  world.server.begin = 10; // where the answer that is being written began
  const late = world.tab();
  await world.flow();
  inStep();
  assert.deepEqual(late.greetings, [["exact", "10"]]);
  assert.equal(late.seen[0], 11);
  assert.deepEqual(world.server.requests, ["", "", ""]);
  assert.equal(leader.stream.state, "open");
});

test("A tab that the leader's memory does not reach reads from the server until it is in step.", async () => {
  await tabs(2);
  for (let round = 0; round < 5; round += 1) {
    world.server.append(500);
    await world.flow();
  }
  const late = world.tab();
  await world.flow();
  assert.ok(world.server.log.length > BOUNDS.entries);
  assert.equal(late.seen.length, world.server.log.length);
  inStep();
});

test("A tab with a cursor goes on from there, and is told so first.", async () => {
  await tabs(2);
  world.server.append(10);
  await world.flow();
  const back = world.tab({ lastEventId: "6" });
  await world.flow();
  assert.deepEqual([back.greetings, back.seen], [[["exact", "6"]], [7, 8, 9, 10]]);
  inStep();
});

test("When the leader closes, the next goes on where it was, and the others follow.", async () => {
  const [leader] = await tabs(4);
  world.server.append(3);
  await world.flow();
  leader.stream.close();
  await world.flow();
  world.server.append(3);
  await world.flow();
  inStep();
  assert.equal(world.server.requests.at(-1), "3");
});

test("The leader's last words reached some of the tabs only, and one that missed them leads now.", async () => {
  const [leader, next, other] = await tabs(3);
  world.server.append(2);
  await world.flow();
  next.deaf = true;
  world.server.append(2);
  await world.flow();
  assert.deepEqual([next.seen, other.seen], [[1, 2], [1, 2, 3, 4]]);
  leader.stream.close();
  next.deaf = false;
  for (const pair of world.bus.waiting()) if (pair[1].owner === next) world.bus.queues.delete(pair); // lost with it
  await world.flow();
  world.server.append(2);
  await world.flow();
  assert.deepEqual(other.seen, [1, 2, 3, 4, 5, 6]);
  inStep();
});

test("The leader's last words arrive after the next leader's first: nothing comes twice.", async () => {
  const [leader, next, other] = await tabs(3);
  other.deaf = true;
  world.server.append(3);
  await world.flow();
  const late = [...world.bus.queues].filter(([[, to]]) => to.owner === other);
  leader.stream.close();
  await world.flow();
  world.server.append(2);
  await world.flow();
  other.deaf = false;
  await world.flow((pairs) => pairs.find((pair) => !late.some(([each]) => each === pair)) ?? pairs[0]);
  inStep();
  assert.deepEqual(next.seen, [1, 2, 3, 4, 5]);
});

test("A leader that is frozen is robbed; when it thaws, it follows.", async () => {
  const [leader, , other] = await tabs(3);
  world.server.append(2);
  await world.flow();
  leader.freeze();
  const { connections } = world.server;
  const [stuck] = connections;
  connections.delete(stuck); // what the server sends it, nobody reads
  other.stream.wake(); // somebody looks at another tab
  await world.pass(4000);
  world.server.append(2);
  await world.flow();
  assert.deepEqual(other.seen, [1, 2, 3, 4]);
  assert.deepEqual(leader.seen, [1, 2]);
  leader.thaw();
  stuck.controller.enqueue(new TextEncoder().encode(world.server.frame(3))); // it was in the socket
  connections.add(stuck);
  await world.flow();
  await world.pass(4000);
  world.server.append(1);
  await world.flow();
  inStep();
});

test("Silence makes a tab ask; a leader that answers stays.", async () => {
  const [leader, other] = await tabs(2);
  await world.pass(120_000, 5000);
  assert.equal(world.server.requests.filter((each) => each === "").length, 2);
  assert.equal(leader.states.filter((state) => state === "waiting").length, other.states.filter((state) => state === "waiting").length);
  world.server.append();
  await world.flow();
  inStep();
});

test("A lost message is noticed with the next one, or with the next heartbeat.", async () => {
  const [, first, second] = await tabs(3);
  const lose = async (tab) => {
    tab.deaf = true;
    world.server.append(2);
    await world.flow();
    for (const pair of world.bus.queues.keys()) if (pair[1].owner === tab) world.bus.queues.get(pair).length = 0;
    tab.deaf = false;
  };
  await lose(first);
  world.server.append();
  await world.flow();
  inStep();
  await lose(second);
  world.server.beat();
  await world.flow();
  inStep();
  assert.equal(world.server.requests.length, 3);
});

test("A cursor that moves without an event, by a heartbeat, moves in all tabs.", async () => {
  await tabs(3);
  world.server.append();
  world.server.log[0] = 1;
  await world.flow();
  world.server.beat(5); // 2 to 5 have no name for these readers
  await world.flow();
  assert.deepEqual(world.tabs.map((tab) => tab.stream.cursor), ["5", "5", "5"]);
  world.server.log.push(5);
  world.server.append();
  await world.flow();
  assert.deepEqual(world.tabs.map((tab) => tab.seen), Array(3).fill([1, 6]));
  assert.equal(world.server.requests.length, 3);
});

test("A cut connection comes back, and the others never notice more than a wait.", async () => {
  const [, other] = await tabs(2);
  world.server.append(2);
  await world.flow();
  world.server.cut();
  await world.flow();
  assert.equal(other.stream.state, "waiting");
  world.server.append(2);
  await world.pass(2000);
  assert.equal(other.stream.state, "open");
  inStep();
  assert.deepEqual(other.greetings, [["exact", "0"]]);
});

test("A tab that is slow keeps a bounded inbox, and holds nobody up.", async () => {
  const [, slow, quick] = await tabs(3);
  slow.pause();
  for (let round = 0; round < 30; round += 1) {
    world.server.append(100);
    await world.flow();
  }
  assert.equal(quick.seen.length, 3000);
  assert.deepEqual(slow.seen, []);
  assert.equal(world.server.connections.size, 1);
  slow.resume();
  await world.flow();
  await world.pass(3000);
  inStep();
});

test("A leader that is slow lets another lead.", async () => {
  const [slow, quick] = await tabs(2);
  slow.pause();
  for (let round = 0; round < 15; round += 1) {
    world.server.append(100);
    await world.flow();
  }
  assert.equal(quick.seen.length, 1500);
  slow.resume();
  await world.flow();
  await world.pass(3000);
  inStep();
});

test("What the handler of an event throws is told once, and ends the stream of that tab only, whoever leads.", async () => {
  for (const clumsy of await tabs(3)) {
    clumsy.failing = true;
    world.server.append(2);
    await world.flow();
    await assert.rejects(clumsy.over, { name: "TypeError", message: "not now" });
    assert.deepEqual([clumsy.stream.state, clumsy.refused, clumsy.stream.cursor], ["closed", null, String(clumsy.seen.at(-1) ?? 0)]);
    await world.flow();
    if (clumsy !== world.tabs[2]) inStep();
  }
  assert.deepEqual(world.tabs.map(({ seen }) => seen), [[], [1, 2], [1, 2, 3, 4]]);
  const { cursor } = world.tabs[0].stream;
  const back = world.tab({ lastEventId: cursor });
  await world.flow();
  assert.deepEqual(back.seen, [1, 2, 3, 4, 5, 6]);
});

test("What the other listeners throw is an uncaught error, and no tab falls out of step.", async (t) => {
  const thrown = uncaught(t);
  for (const tab of [world.tab(), world.tab()]) tab.states.push = (state) => { throw new TypeError(state); };
  await world.flow();
  world.server.append(2);
  await world.flow();
  world.server.cut();
  await world.pass(3000);
  inStep();
  assert.deepEqual(thrown.map((error) => error.message).sort(), ["connecting", "connecting", "open", "open", "open", "open", "waiting", "waiting"]);
});

test("An event that cannot be read, or that has no id of its own, ends the stream; so does what can never be sent.", async () => {
  const error = new TypeError("undefined.x");
  const spoilt = world.tab({ parse: () => { throw error; } });
  await world.flow();
  await spoilt.over;
  assert.deepEqual([spoilt.refused.code, spoilt.refused.cause, spoilt.stream.state], ["malformed", error, "closed"]);
  const twin = world.tab();
  await world.flow();
  world.server.append(1);
  for (const connection of world.server.connections) connection.controller.enqueue(new TextEncoder().encode(world.server.frame(1)));
  await world.flow();
  await twin.over;
  assert.deepEqual([twin.refused.code, twin.seen], ["malformed", [1]]);
  const mistaken = world.tab({ headers: { "no name": "x" } });
  await world.flow();
  await assert.rejects(mistaken.over, TypeError);
  assert.equal(mistaken.stream.state, "closed");
  const nowhere = new SharedStream("/stream", { event: () => {} }, { locks: null });
  await assert.rejects(nowhere.follow(), TypeError);
  assert.equal(nowhere.state, "closed");
});

test("A log that is not the one they read: every tab is told, and reads the new one.", async () => {
  await tabs(3);
  world.server.append(9);
  await world.flow();
  world.server.log = [1, 2, 3];
  world.server.cut();
  await world.pass(3000);
  world.server.append(2);
  await world.flow();
  assert.deepEqual(world.tabs.map((tab) => tab.greetings.at(-1)), Array(3).fill(["reset", "0"]));
  assert.deepEqual(world.tabs.map((tab) => tab.seen), Array(3).fill([1, 2, 3, 4, 5]));
  inStep();
});

test("A stream that is refused ends in every tab.", async () => {
  await tabs(3);
  world.server.refusing = 404;
  world.server.cut();
  await world.pass(9000);
  assert.deepEqual(world.tabs.map((tab) => [tab.refused?.status, tab.stream.state]), Array(3).fill([404, "closed"]));
  assert.equal(world.server.connections.size, 0);
});

test("Reconnecting by hand, from any tab, ends the leader's wait.", async () => {
  const [, other] = await tabs(2);
  world.server.cut();
  await world.flow();
  assert.equal(other.stream.state, "waiting");
  other.stream.reconnect();
  await world.flow();
  assert.equal(other.stream.state, "open");
});

test("Without locks or channels, each tab has its own connection.", async () => {
  world.tab({ locks: null });
  world.tab({ channel: null });
  world.server.append(2);
  await settle();
  inStep(2);
});

test("A signal closes it, and closing in a handler counts the event as handled.", async () => {
  const leaving = new AbortController();
  const tab = world.tab({ signal: leaving.signal });
  await world.flow();
  world.server.append();
  await world.flow();
  leaving.abort();
  await tab.over;
  assert.deepEqual([tab.stream.state, tab.stream.cursor, world.server.connections.size], ["closed", "1", 0]);
  const never = world.tab({ signal: AbortSignal.abort() });
  await never.over;
  assert.equal(world.server.requests.length, 1);
});

test("Whatever order things happen in, every tab ends with everything once.", async (t) => {
  const dice = Math.random;
  t.after(() => (Math.random = dice));
  for (let seed = 1; seed <= Number(process.env.LEGATO_SEEDS ?? 100); seed += 1) {
    world.close();
    world = new World();
    let state = seed;
    const random = (below) => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return Math.floor((state / 2147483648) * below);
    };
    Math.random = () => random(1000) / 1000; // so that a seed tells everything
    const alive = () => world.tabs.filter((tab) => tab.stream.state !== "closed");
    const acts = [
      () => world.server.append(1 + random(3)),
      () => world.server.append(1),
      () => alive().length < 5 && world.tab(),
      () => alive().length > 1 && alive()[random(alive().length)].stream.close(),
      () => world.server.cut([...world.server.connections][random(world.server.connections.size)]),
      () => (alive()[random(alive().length)].deaf ^= true),
      () => alive()[random(alive().length)].stream.reconnect(),
      () => alive()[random(alive().length)].stream.wake(),
      () => world.clock.tick(random(4000)),
      () => world.server.beat(),
      () => alive()[random(alive().length)].pause(),
      () => alive()[random(alive().length)].resume(),
    ];
    world.tab();
    for (let step = 0; step < 60; step += 1) {
      acts[random(acts.length)]();
      for (let count = random(4); count > 0; count -= 1) {
        if (random(2)) await new Promise((resolve) => setImmediate(resolve));
        const pairs = world.bus.waiting();
        if (pairs.length > 0) world.bus.deliver(pairs[random(pairs.length)]);
      }
    }
    for (const tab of world.tabs) {
      tab.deaf = false;
      tab.resume();
    }
    await world.flow((pairs) => pairs[random(pairs.length)]);
    await world.pass(40_000, 1000);
    world.server.append();
    await world.flow();
    try {
      inStep();
    } catch (error) {
      t.diagnostic(`seed ${seed}`);
      throw error;
    }
  }
});
