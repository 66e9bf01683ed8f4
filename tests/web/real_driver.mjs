// What the client's modules make of a real server, told as JSON; `tests/test_web_client.py` judges it.
//     node real_driver.mjs TASK URL [PROXY]
import { LegatoCore, createSession, deleteSession, messages, sendMessage, streamEvents } from "../../src/legato/web/client.js";
import * as funcs from "../../src/legato/web/funcs.js";
import { Stream } from "../../src/legato/web/resume.js";
import { StreamResponse } from "../../src/legato/web/stream-response.js";

const [, , task, url, proxy] = process.argv;
const core = new LegatoCore({ baseUrl: url });

/** A session with one answered message; the events of it. */
async function answered(text) {
  const session = await createSession(core, { title: "Real" });
  const sent = await sendMessage(core, { sessionId: session.id, text });
  const events = [];
  for await (const event of streamEvents(core, { sessionId: session.id, from: "start" })) {
    events.push(event);
    if (event.event === "complete" || event.event === "error") break;
  }
  return { session: session.id, sent, events };
}

const text = (events) => events.filter(({ event }) => event === "content").map(({ data }) => data.content).join("");

const tasks = {
  /** The client's functions, one after another. */
  async client() {
    const { session, sent, events } = await answered("hello");
    const again = await sendMessage(core, { sessionId: session, text: "two", key: "k" });
    const repeated = await sendMessage(core, { sessionId: session, text: "two", key: "k" });
    const kept = await messages(core, { sessionId: session });
    const listed = await funcs.listSessions(core, { limit: 10 });
    const misused = await funcs.sendMessage(core, { sessionId: session, text: "three", key: "k" });
    await deleteSession(core, { sessionId: session });
    const gone = await funcs.streamEvents(core, { sessionId: session });
    return {
      names: [...new Set(events.map(({ event }) => event))],
      text: text(events),
      same: again.runId === repeated.runId && again.runId !== sent.runId,
      roles: kept.map(({ role }) => role).slice(0, 2),
      listed: listed.ok && listed.value.some(({ id }) => id === session),
      misused: misused.error.code,
      gone: gone.error.code,
    };
  },

  /** /stream, its answer cut after each number of bytes, until one is whole. */
  async cuts() {
    const { session, events } = await answered("hello");
    const wanted = JSON.stringify(events.slice(1));
    for (let cut = 0; ; cut += 1) {
      const seen = [];
      let connections = 0;
      const on = {
        event: (event, data, id) => {
          if (event === "connected") connections += 1;
          else seen.push({ event, data, id });
          if (event === "complete") stream.close();
        },
        state: (state) => state === "waiting" && stream.reconnect(), // without the wait
      };
      const stream = new Stream(`${proxy}/stream?sessionId=${session}&from=start&client=legato`, on, { headers: { "x-cut": String(cut) } });
      await stream.follow();
      if (JSON.stringify(seen) !== wanted) return { cut, seen, wanted };
      if (connections === 1 && cut > 1000) return { cuts: cut, text: text(events) };
    }
  },

  /** The answer's own stream, cut in the same way. */
  async answers() {
    const { session, sent, events } = await answered("hello");
    const through = (cut) => new LegatoCore({ baseUrl: proxy, headers: { "x-cut": String(cut) } });
    for (let cut = 0; ; cut += 1) {
      const response = new StreamResponse(through(cut), { threadId: session, messageId: sent.messageId });
      const texts = [];
      let again = 0;
      await new Promise((resolve) => {
        response.subscribe(() => {
          const { message, isReconnecting, isDone } = response.getSnapshot();
          texts.push(message?.text ?? "");
          if (isDone) return resolve();
          if (!isReconnecting || again >= 2) return;
          again += 1;
          response.close(); // without the wait
          response.start();
        });
        response.start();
      });
      const { message, error } = response.getSnapshot();
      const grew = texts.every((each) => text(events).startsWith(each));
      if (error !== null || message.text !== text(events) || !grew) return { cut, message, error, texts };
      if (again === 0 && cut > 1000) return { cuts: cut, message };
    }
  },

  /** Followed while the test kills the server and starts it again. Says each word as it comes. */
  async follow() {
    const { session, sent } = JSON.parse(process.env.TASK);
    const words = [];
    for await (const { event, data } of streamEvents(core, { sessionId: session, lastEventId: sent })) {
      if (event === "content") words.push(data.content);
      if (event === "content") process.stderr.write(`${data.content}\n`);
      if (event === "complete") return { text: words.join("") };
      if (event === "error") return { error: data, text: words.join("") };
    }
  },

  /** A failed answer, retried; one that is stopped. */
  async retry() {
    const session = (await createSession(core)).id;
    const ended = (response) => new Promise((resolve) => response.subscribe(() => response.getSnapshot().isDone && resolve(response.getSnapshot())));
    const begin = async (words) => {
      const { messageId } = await sendMessage(core, { sessionId: session, text: words });
      const response = new StreamResponse(core, { threadId: session, messageId });
      response.start();
      return response;
    };
    const failing = await begin("fail once");
    const first = await ended(failing);
    void failing.retry();
    const second = await ended(failing);
    const endless = await begin("go on");
    await new Promise((resolve) => endless.subscribe(() => endless.getSnapshot().message && resolve()));
    void endless.stop();
    const stopped = await ended(endless);
    const brief = ({ message, error }) => [message?.text ?? null, error?.code ?? null];
    return { first: brief(first), second: brief(second), stopped: [stopped.message.text.slice(0, 3), stopped.error.code] };
  },
};

console.log(JSON.stringify((await tasks[task]()) ?? null));
