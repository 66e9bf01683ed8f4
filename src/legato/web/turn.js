/**
 * A conversation as a fold: of history rows and of stream events, in either order and as often as they come.
 *
 * It knows no document and no network. The rules: an event that comes twice changes nothing (a delta names its part
 * and its place in it), and nothing changes a turn that has ended.
 *
 * @typedef {{kind: "text" | "thinking", key: string, text: string, message: string, of?: string}} TextPart
 * @typedef {{kind: "tool", key: string, id: string, name: string, input: string, points: number,
 *   state: "calling" | "running" | "done" | "failed", progress: string, result: string}} ToolPart
 * @typedef {{kind: "permission" | "notification", key: string, id: string, data: any, answer: string | null}} AskPart
 * @typedef {TextPart | ToolPart | AskPart} Part
 */

/** A delta that begins beyond what is here: something is missing, and the conversation has to be loaded anew. */
export class Gap extends Error {}

/** One question and its answer. */
export class Turn {
  /** @type {string | null} The user message's id; null until the server has taken it. */
  id = null;
  /** @type {string | null} */
  run = null;
  /** @type {"sending" | "unsent" | "waiting" | "running" | "stopping" | "done" | "stopped" | "failed"} */
  state = "waiting";
  /** @type {"waiting" | "waitingForPlace"} What a turn that waits is told to wait for. */
  waits = "waiting";
  error = "";
  /** @type {Date | null} When it ended. */
  at = null;
  /** Whether the stream has told of it, and not the history alone. */
  live = false;
  /** Whether it has its place in the log. */
  placed = false;
  /** Why it ended, as the agent says it: `stop`, `length` ... */
  reason = "";
  /** @type {string | null} Who wrote the question, where the server knows that. */
  author = null;
  /** @type {import("./types.js").Attachment[]} What came with the question. */
  files = [];
  /** @type {Part[]} */
  parts = [];
  /** @type {Record<string, number>} Code points so far of each part of the wire. */
  points = {};

  /** @param {string} text @param {string} [key] the Idempotency-Key under which it is being sent */
  constructor(text, key) {
    this.text = text;
    this.key = key;
    if (key !== undefined) this.state = "sending";
  }

  get ended() {
    return this.state === "done" || this.state === "stopped" || this.state === "failed";
  }

  /** Whether it has ended well, with nothing to be seen. */
  get empty() {
    return this.state === "done" && this.parts.every((part) => part.kind === "thinking" || (part.kind === "text" && !part.text.trim()));
  }

  /** The word for what an answer lacks that has not failed; "" if it is whole. */
  get lack() {
    return this.empty ? "empty" : this.state === "done" ? (CUT.get(this.reason) ?? "") : "";
  }

  /** The answer's text, as one would copy it. */
  get answer() {
    return this.parts.map((part) => (part.kind === "text" ? part.text : "")).filter(Boolean).join("\n\n");
  }

  /** @param {string} key @param {() => any} make @returns {any} */
  part(key, make) {
    let part = this.parts.find((each) => each.key === key);
    if (part === undefined) this.parts.push((part = { key, ...make() }));
    return part;
  }
}

/** Why an answer ended before its end, by its reason. */
const CUT = new Map([["length", "cutOff"], ["max_tokens", "cutOff"], ["max_output_tokens", "cutOff"], ["content_filter", "filtered"]]);

/** The run of an assistant message: its id is `<run>~a<step>`, and a run's own id may hold such letters, too. */
const runOf = (/** @type {string} */ message) => message.replace(/~a\d+$/, "");

/** How many Unicode code points `text` has: offsets on the wire count those, JavaScript UTF-16 units. @param {string} text */
export function codePoints(text) {
  if (!/[\ud800-\udfff]/.test(text)) return text.length;
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

/**
 * What of `delta`, which stands at `start`, goes beyond the `have` code points that are here already.
 * @param {string} delta @param {number | undefined} start @param {number} have
 */
function beyond(delta, start, have) {
  if (start === undefined || start === have) return delta;
  if (start > have) throw new Gap(`Text from ${have} to ${start} is missing.`);
  return Array.from(delta).slice(have - start).join("");
}

export class Conversation {
  /** @type {Turn[]} */
  turns = [];
  agent = "";

  /** A message that is on its way to the server. @param {string} text @param {string} key */
  send(text, key) {
    const turn = new Turn(text, key);
    this.turns.push(turn);
    return turn;
  }

  /**
   * The server has taken it. Returns the turn that it is: another one if the stream was quicker and could not tell.
   * @param {Turn} turn @param {string} id @param {string | null} [run] @returns {Turn}
   */
  sent(turn, id, run) {
    const known = this.turns.find((each) => each.id === id);
    if (known !== undefined && known !== turn) {
      if (turn.id === null) this.turns.splice(this.turns.indexOf(turn), 1);
      return known;
    }
    if (turn.id !== null && turn.id !== id) return this.#user(id, turn.text, run); // another tab said the same words
    turn.id = id;
    if (run) turn.run = run;
    if (turn.state === "sending" || turn.state === "unsent") turn.state = "waiting";
    return turn;
  }

  /** Take a whole history; it may know more or less than what the stream has brought. @param {any[]} rows */
  load(rows) {
    /** @type {Turn | undefined} */
    let turn;
    for (const row of rows) {
      if (row.role === "user") {
        turn = this.#told(this.#user(row.id, row.userInput, row.runId, row));
      } else {
        const run = row.runId ?? runOf(row.id);
        turn = this.turns.find((each) => each.run === run) ?? turn ?? this.#told(this.#user(row.id, ""));
        this.#answer(turn, run, row);
      }
    }
  }

  /** Take a page of the history that stands before all that is here. How many turns are new. @param {any[]} rows */
  before(rows) {
    const older = new Conversation();
    older.load(rows);
    const [first] = this.turns;
    const last = older.turns[older.turns.length - 1];
    // Where the page ended between a question and its answer, the answer stands here without a question.
    if (first && last && first.text === "" && first.files.length === 0 && last.parts.length === 0) {
      [first.id, first.text, first.files, first.author] = [last.id, last.text, last.files, last.author];
      older.turns.pop();
    }
    for (const turn of older.turns) turn.placed = true;
    this.turns = [...older.turns, ...this.turns];
    return older.turns.length;
  }

  /**
   * Take over the messages that are on their way: they do not know their ids yet. One may be among what was loaded, where
   * the history is faster than the answer to the message; it is to be seen once all the same.
   * @param {Turn[]} before the turns of the conversation so far
   */
  expect(before) {
    for (const turn of before) {
      if (turn.id !== null) continue;
      const known = (/** @type {Turn} */ each) => each.ended || each.key !== undefined || before.some((old) => old.id === each.id);
      const stored = this.turns.find((each) => each.text === turn.text && !known(each));
      if (stored === undefined) this.turns.push(turn);
      else stored.key = turn.key;
    }
  }

  /** @param {Turn} turn @param {string} run @param {any} row */
  #answer(turn, run, row) {
    if (turn.ended && turn.run === run && turn.live) return; // told by the stream, event by event
    turn.run = run;
    for (const part of row.parts ?? wholeParts(row)) {
      const key = `${row.id}:${turn.parts.length}`;
      if (part.type === "tool_call") turn.parts.push({ kind: "tool", key, ...wholeCall(part) });
      else if (typeof part.text === "string") turn.parts.push({ kind: part.type === "thinking" ? "thinking" : "text", key, text: part.text, message: row.id });
    }
    turn.at = row.createdAt ? new Date(row.createdAt) : null;
    turn.reason = row.finishReason ?? "";
    turn.error = row.error?.message ?? row.error ?? "";
    turn.state = turn.error || row.status === "failed" ? "failed" : row.status === "cancelled" ? "stopped" : "done";
  }

  /** Apply one event of the stream. Returns the turn that may have changed, or null. @param {string} name @param {any} data */
  apply(name, data) {
    const handler = EVENTS[name];
    if (handler === undefined || data.type === undefined) return null;
    if (name === "user_message_created") return this.#told(this.#user(data.messageId, data.content, data.runId, data));
    const turn = this.#turn(data);
    if (turn === null || turn.ended) return turn;
    turn.live = true;
    if (!BEFORE.has(name) && turn.state === "waiting") turn.state = "running";
    handler(turn, data, this);
    return turn;
  }

  /** The session is deleted: nothing is being answered any more. */
  stop() {
    for (const turn of this.turns) if (turn.id !== null && !turn.ended) end(turn, "stopped");
  }

  /** The log tells of messages in order: what it tells of now stands behind what it told of before. @param {Turn} turn */
  #told(turn) {
    if (turn.placed) return turn;
    turn.placed = true;
    this.turns.splice(this.turns.indexOf(turn), 1);
    this.turns.splice(this.turns.findLastIndex((each) => each.placed) + 1, 0, turn);
    return turn;
  }

  /** @param {string} id @param {string} text @param {string | null} [run] @param {{files?: Turn["files"], author?: string}} [about] @returns {Turn} */
  #user(id, text, run, { files, author } = {}) {
    let turn = this.turns.find((each) => each.id === id);
    if (turn === undefined) {
      turn = this.turns.find((each) => each.id === null && each.text === text);
      if (turn === undefined) this.turns.push((turn = new Turn(text)));
      this.sent(turn, id, run);
    }
    if (run) turn.run = run;
    if (files) turn.files = files;
    if (author) turn.author = author;
    return turn;
  }

  /** The turn that an event belongs to: by run, else (a run we have not seen begin) the first that waits for one. @param {any} data */
  #turn(data) {
    const run = data.runId ?? (data.assistantMessageId === undefined ? null : runOf(data.assistantMessageId));
    let turn = run === null ? undefined : this.turns.find((each) => each.run === run);
    if (turn === undefined && run !== null) turn = this.turns.find((each) => each.run === null && each.id !== null);
    if (turn === undefined && run === null) turn = this.turns.find((each) => !each.ended && each.state !== "waiting");
    if (turn !== undefined && run !== null) turn.run = run;
    return turn ?? null;
  }
}

/** The parts of a history row that has only the fields of the Mix API: their order is not known. @param {any} row @returns {any[]} */
function wholeParts(row) {
  return [
    { type: "thinking", text: row.reasoning },
    ...(row.toolCalls ?? []).map((/** @type {any} */ call) => ({
      type: "tool_call", id: call.id, name: call.name, arguments: call.input, output: call.result,
      success: call.finished ? !call.isError : undefined,
    })),
    { type: "text", text: row.assistantResponse ?? row.userInput },
  ].filter((part) => part.type === "tool_call" || part.text);
}

/** @param {any} call @returns {Omit<ToolPart, "kind" | "key">} */
function wholeCall({ id, name, arguments: input, output = "", success }) {
  const result = typeof output === "string" ? output : JSON.stringify(output);
  return { id, name, input, points: -1, state: success ? "done" : "failed", progress: "", result };
}

/** @param {"text" | "thinking"} kind */
const text = (kind) => (/** @type {Turn} */ turn, /** @type {any} */ data) => {
  const message = data.assistantMessageId ?? "";
  const key = data.part === undefined ? `${kind}:${message}` : `part:${data.part}`;
  const have = turn.points[key] ?? 0;
  const fresh = beyond(data.content, data.start, have);
  if (fresh === "") return;
  turn.points[key] = have + codePoints(fresh);
  // A question of the agent may stand in the middle of a part of the wire; on the page the text goes on below it.
  /** @type {any} */
  let part = turn.parts[turn.parts.length - 1];
  if (part?.of !== key) turn.parts.push((part = { key: `${key}:${have}`, of: key, kind, text: "", message }));
  part.text += fresh;
};

/** @param {Turn} turn @param {string} id @param {string} [name] @returns {ToolPart} */
const tool = (turn, id, name) =>
  turn.part(`tool:${id}`, () => ({
    kind: "tool", id, name: name ?? "", input: "", points: 0, state: "calling", progress: "", result: "",
  }));

/** @param {"permission" | "notification"} kind */
const ask = (kind) => (/** @type {Turn} */ turn, /** @type {any} */ data) => turn.part(`ask:${data.id}`, () => ({ kind, id: data.id, data, answer: null }));

/** @param {Turn} turn @param {string} id @param {string} answer */
const answered = (turn, id, answer) => {
  const part = turn.parts.find((each) => each.key === `ask:${id}`);
  if (part !== undefined && "answer" in part) part.answer = answer; // whatever a reply has said
};

/** An ended run answers no questions any more. @param {Turn} turn @param {Turn["state"]} state */
const end = (turn, state) => {
  turn.state = state;
  turn.at = new Date();
  for (const part of turn.parts) {
    if ("answer" in part && part.answer === null) part.answer = "over";
    if (part.kind === "tool" && (part.state === "calling" || part.state === "running")) part.state = "failed";
  }
};

/** What may come of a turn before its agent is asked. */
const BEFORE = new Set(["run_waiting", "run_started", "cancel_requested"]);

/** @type {Record<string, (turn: any, data: any, conversation: any) => void>} */
const EVENTS = {
  user_message_created: () => {},
  run_waiting: (turn) => {
    turn.waits = "waitingForPlace";
    if (turn.state === "running") turn.state = "waiting"; // its node is gone, and no other has room
  },
  run_started: (turn, data, conversation) => {
    conversation.agent = data.agent ?? conversation.agent;
    if (turn.state !== "stopping") turn.state = "running";
  },
  content: text("text"),
  thinking: text("thinking"),
  tool_use_start: (turn, data) => tool(turn, data.id, data.name),
  tool_use_parameter_delta: (turn, data) => {
    const part = tool(turn, data.toolCallId);
    if (part.state !== "calling" || part.points < 0) return;
    const fresh = beyond(data.input, data.start, part.points);
    part.input += fresh;
    part.points += codePoints(fresh);
  },
  tool_use_parameter_streaming_complete: (turn, data) => {
    const part = tool(turn, data.id, data.name);
    part.input = data.input;
    part.points = -1; // whole: later deltas are repeats
  },
  tool_execution_start: (turn, data) => {
    const part = tool(turn, data.toolCallId, data.toolName);
    if (part.state === "calling") part.state = "running";
    part.progress = data.progress;
  },
  tool_execution_complete: (turn, data) => {
    const part = tool(turn, data.toolCallId, data.toolName);
    part.state = data.success ? "done" : "failed";
    if (data.output !== undefined) part.result = typeof data.output === "string" ? data.output : JSON.stringify(data.output);
  },
  permission: ask("permission"),
  notification: ask("notification"),
  permission_resolved: (turn, data) => answered(turn, data.id, data.granted ? "allowed" : data.by === "user" ? "denied" : "over"),
  notification_resolved: (turn, data) => answered(turn, data.id, data.by === "user" ? (data.value ?? "done") : "over"),
  cancel_requested: (turn) => (turn.state = "stopping"),
  complete: (turn, data) => {
    // Deltas of a finished run may be gone from the log; the last event carries the whole message.
    const said = turn.parts.filter((/** @type {Part} */ part) => part.kind === "text" && part.message === data.messageId);
    if (data.content && said.map((/** @type {any} */ part) => part.text).join("") !== data.content) {
      turn.parts = turn.parts.filter((/** @type {Part} */ part) => !said.includes(part));
      turn.parts.push({ kind: "text", key: `whole:${data.messageId}`, text: data.content, message: data.messageId });
    }
    turn.reason = data.finishReason ?? "";
    end(turn, data.finishReason === "cancelled" ? "stopped" : "done");
  },
  error: (turn, data) => {
    turn.error = data.error;
    turn.code = data.type;
    end(turn, "failed");
  },
};
