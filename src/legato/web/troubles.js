/**
 * What is wrong, in sentences: pure functions of what the server tells. Nothing here is a guess about the
 * reason; each sentence says what is seen, and what will come of it.
 */
import { count, duration, named, number } from "./figures.js";

/** Seconds that a reader's writes may wait before it is said; the server cuts it off after 60. */
const STALLED = 2;
const CUT = 60;
/** Milliseconds that the oldest event a reader has not got may be old: till then it is on its way, then it is told. */
const ON_ITS_WAY = 1_000;
const LATE = 3_000;
/** Milliseconds in which a run says nothing, asks nothing and uses no tool. */
const SILENT = 10_000;

/**
 * @typedef {object} Trouble
 * @property {"bad" | "warn"} level
 * @property {string} text
 * @property {string} [session]
 * @property {number} [offset] of the event it is about
 */

/** @typedef {{session: string, run: string, offset: number, started: boolean, here: boolean, epoch: number, lease: number | null}} OpenRun */
/** @typedef {{number: number, session: string, dialect: string, cursor: number, waiting: number, since: number, bytes: number}} Reader */

/**
 * Of the whole server.
 * @param {{draining: boolean, streams: number, maxStreams: number, stalled: Reader[], openRuns: OpenRun[]}} server
 * @param {string} here the session that `ofSession` tells of
 * @returns {Trouble[]}
 */
export function ofServer(server, here) {
  /** @type {Trouble[]} */
  const troubles = [];
  if (server.draining) troubles.push({ level: "warn", text: "The server is stopping: it takes no new messages, and lets runs finish." });
  if (server.streams > server.maxStreams * 0.8) troubles.push({ level: "warn", text: `${number(server.streams)} of ${number(server.maxStreams)} streams are open; then readers are refused.` });
  for (const reader of server.stalled.filter((each) => each.session !== here).slice(0, 5)) troubles.push(stalled(reader));
  for (const run of server.openRuns.filter((each) => each.session !== here && lapsed(each)).slice(0, 5)) troubles.push(orphaned(run));
  return troubles;
}

/**
 * Of the session that is looked at.
 * @param {{runs: OpenRun[], readers: Reader[]}} session
 * @param {import("./outline.js").Outline} outline
 * @param {number} now milliseconds since the session's first event
 * @returns {Trouble[]}
 */
export function ofSession(session, outline, now) {
  /** @type {Trouble[]} */
  const troubles = [];
  for (const reader of session.readers.slice(0, 5)) {
    if (reader.waiting > STALLED) troubles.push(stalled(reader));
    else if (lateness(reader, outline, now) > LATE) {
      const behind = outline.length - reader.cursor;
      troubles.push({ level: "warn", text: `${who(reader)} is ${count(behind, "event")} behind, by ${duration(lateness(reader, outline, now))}.`, offset: reader.cursor || 1 });
    }
  }
  for (const run of session.runs) if (lapsed(run)) troubles.push(orphaned(run));
  const open = outline.runs.find((run) => run.id === session.runs[0]?.run);
  if (open && open.attempts.length > 0) {
    if (open.attempts.length > 1) troubles.push({ level: "warn", text: `This is attempt ${open.attempts.length} of the run: the process of the one before died.`, offset: open.attempts.at(-1) });
    const silence = now - outline.at(open.last);
    const last = outline.type(open.last);
    const waits = last === "permission.requested" || last === "notification.created" || last.startsWith("tool");
    if (silence > SILENT && !waits) troubles.push({ level: "warn", text: `The run has said nothing for ${duration(silence)}.`, offset: open.last });
    if (silence > SILENT && waits) troubles.push({ level: "warn", text: `The run waits for ${last.startsWith("tool") ? "a tool" : "an answer to what it asked"}, for ${duration(silence)} so far.`, offset: open.last });
  }
  const ended = outline.runs.findLast((run) => run.end !== "");
  if (ended?.end === "run.failed" && ended === outline.runs.at(-1)) troubles.push({ level: "bad", text: "The last run failed.", offset: ended.last });
  return troubles;
}

/** Since when the oldest event that a reader has not got is there, in milliseconds. @param {{cursor: number}} reader @param {import("./outline.js").Outline} outline @param {number} now */
const lateness = ({ cursor }, outline, now) => (cursor < outline.length ? now - outline.at(cursor + 1) : 0);

/**
 * How a reader is doing: what was stored a moment ago is on its way, and no sign of anything.
 * @param {{cursor: number, waiting: number}} reader @param {import("./outline.js").Outline} outline @param {number} now
 * @returns {"live" | "behind" | "stalled"}
 */
export function stateOf(reader, outline, now) {
  if (reader.waiting > STALLED) return "stalled";
  return lateness(reader, outline, now) > ON_ITS_WAY ? "behind" : "live";
}

/** @param {Reader} reader */
const who = (reader) => `Reader ${reader.number} (${named(reader.dialect)})`;

/** @param {OpenRun} run */
const lapsed = (run) => run.lease !== null && run.lease < 0;

/** @param {Reader} reader @returns {Trouble} */
function stalled(reader) {
  const left = Math.max(CUT - reader.waiting, 0);
  return { level: "bad", text: `${who(reader)} has taken nothing for ${duration(reader.waiting * 1000)}; it is cut off in ${duration(left * 1000)}, and can come back.`, session: reader.session, offset: reader.cursor || 1 };
}

/** @param {OpenRun} run @returns {Trouble} */
function orphaned(run) {
  return { level: "bad", text: "Whoever drove this run is gone. It is taken over, or ended, within seconds.", session: run.session, offset: run.offset };
}
