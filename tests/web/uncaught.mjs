// What becomes of a listener's error: each is thrown where all uncaught ones are.

/** The errors that are uncaught from now on until the end of the test `t`. */
export function uncaught(t) {
  const seen = [];
  t.mock.method(globalThis, "queueMicrotask", (act) => {
    try {
      act();
    } catch (error) {
      seen.push(error);
    }
  });
  return seen;
}
