// The library that Deva's SDK streams with, in Node.js: reads an answer as the arguments say and prints the states.

import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

import { read } from './deva_hook.mjs';

const [folder, mode, options] = process.argv.slice(2);

// What the library takes for granted in a browser. It waits for a second or more before it comes back; here not at all.
globalThis.document = Object.assign(new EventTarget(), { hidden: false });
globalThis.window = { fetch, clearTimeout, setTimeout: (callback) => setTimeout(callback, 0) };

const { fetchEventSource } = createRequire(`${folder}/`)('@microsoft/fetch-event-source');
const settings = { accessToken: 'token', ...JSON.parse(options) };
const once = (extra = {}, enough = undefined) => read(fetchEventSource, { ...settings, ...extra }, enough);

const show = (shown) => {
  document.hidden = !shown;
  document.dispatchEvent(new Event('visibilitychange'));
};

const modes = {
  read: () => once(),
  // The tab is hidden at a piece of text, and shown again a moment later, five times.
  async hide() {
    let times = 0;
    const rendered = ({ isDone }) => {
      if (isDone || document.hidden || ++times > 5) return;
      show(false);
      setTimeout(() => show(true), 30);
    };
    return once({ rendered });
  },
  // A component that is mounted twice.
  async twice() {
    const both = await Promise.all([once(), once()]);
    if (JSON.stringify(both[0].at(-1)) !== JSON.stringify(both[1].at(-1))) throw new Error('two readers differ');
    return both[0];
  },
  // The user walks away at the first piece of text, and comes back. The answer waits for that at a file.
  async leave() {
    const before = await once({}, () => true);
    if (before.at(-1).isDone) throw new Error('it was over before anybody left');
    writeFileSync(settings.left, '');
    return once();
  },
};
console.log(JSON.stringify(await modes[mode]()));
process.exit(0); // the library may leave a timer behind
