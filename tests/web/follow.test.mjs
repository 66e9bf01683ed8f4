// The end that is kept in view, over a box whose steps are made one by one.
import assert from "node:assert/strict";
import { test } from "node:test";

import { media, nearing } from "../../src/legato/web/dom.js";
import { Follow } from "../../src/legato/web/follow.js";

/** A box of 100 pixels over a text of 1000, and what happens to it. */
function over(t) {
  const box = Object.assign(new EventTarget(), { scrollTop: 0, scrollHeight: 1000, clientHeight: 100, getBoundingClientRect: () => ({ top: 0 }) });
  let above = 0;
  const content = { children: [], isConnected: true, getBoundingClientRect: () => ({ top: above - box.scrollTop }) };
  let resized = () => {};
  let now = 5000;
  t.mock.method(performance, "now", () => now);
  globalThis.addEventListener = () => {};
  globalThis.ResizeObserver = class {
    constructor(act) {
      resized = act;
    }
    observe() {}
  };
  const seen = { pinned: true };
  const follow = new Follow(box, content, (pinned) => (seen.pinned = pinned));
  const end = () => box.scrollHeight - box.clientHeight;
  Object.defineProperty(box, "scrollTop", {
    get: () => seen.top ?? 0,
    set: (top) => (seen.top = Math.max(Math.min(top, end()), 0)),
  });
  follow.toEnd();
  const scroll = (top, after = 16) => {
    now += after;
    box.scrollTop = top;
    box.dispatchEvent(new Event("scroll"));
  };
  const grow = (by = 30) => {
    box.scrollHeight += by;
    resized();
  };
  const insert = (by) => {
    above += by;
    grow(by);
  };
  return { box, seen, end, grow, insert, scroll };
}

test("The end is followed until the reader goes elsewhere.", (t) => {
  const { box, seen, end, grow, scroll } = over(t);
  grow();
  assert.equal(box.scrollTop, end());
  scroll(end() - 5);
  grow();
  assert.deepEqual([seen.pinned, box.scrollTop], [false, end() - 35]);
});

for (const steps of [1, 2, 8, 20]) {
  test(`Who goes down to where the end was is back at it, though it has grown meanwhile (${steps} steps).`, (t) => {
    const { box, seen, end, grow, scroll } = over(t);
    scroll(100);
    for (let step = 0; step < 90; step += 1) {
      grow(20);
      scroll(0);
    }
    const goal = end(); // a key scrolls smoothly to here
    for (let step = 1; step <= steps && !seen.pinned; step += 1) { // once we set the place, a browser's way is over
      grow(40);
      scroll((goal * step) / steps);
    }
    assert.equal(seen.pinned, true);
    grow();
    assert.equal(box.scrollTop, end());
  });
}

test("Who reads on downwards, for long or with rests, is left alone.", (t) => {
  for (const rest of [50, 500]) {
    const { seen, end, grow, scroll } = over(t);
    scroll(100);
    for (let top = 110; top < 1500; top += 10) {
      grow(12);
      scroll(top, rest);
      assert.equal(seen.pinned, false);
    }
    assert.equal(end() > 1500, true);
  }
});

for (const after of [16, 400, 600, 5000]) {
  test(`Who has gone up in a chat and goes a bit down again is left alone, whatever has come above (${after} ms later).`, (t) => {
    const { box, seen, insert, scroll } = over(t);
    for (const top of [600, 500, 400]) scroll(top, after);
    scroll(420, after);
    assert.equal(seen.pinned, false);
    insert(3000); // earlier messages
    assert.equal(box.scrollTop, 3420);
    for (let top = 3430; top < 3800; top += 10) scroll(top, after);
    assert.equal(seen.pinned, false);
    scroll(3880, after);
    assert.equal(seen.pinned, true);
  });
}

test("Where nothing is laid out, as in jsdom, there are no observers and no media, and nothing fails.", (t) => {
  const { box, end } = over(t);
  delete globalThis.ResizeObserver;
  new Follow(box, { children: [], isConnected: true }, () => {}).toEnd();
  nearing(() => {}, {}).observe(box);
  assert.deepEqual([box.scrollTop, media("(pointer: coarse)")], [end(), false]);
});
