// The fold of history and events: the same turns in whatever order, and however often, they come.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Conversation, Gap, codePoints } from "../../src/legato/web/turn.js";

const RUN = "s1~abc~a1"; // the server makes up such ids
const amid = `${RUN}~a1`;
const user = { type: "user_message_created", messageId: "m1", content: "Hi", runId: RUN };
const content = (start, text, part = 0) => ({ type: "content", content: text, part, start, assistantMessageId: amid });

function fold(events, conversation = new Conversation()) {
  for (const data of events) conversation.apply(data.event ?? data.type, data);
  return conversation;
}

const shape = (conversation) =>
  conversation.turns.map(({ id, text, state, error, parts }) => ({
    id, text, state, error, parts: parts.map(({ key, points, message, ...rest }) => rest),
  }));

const ANSWER = [
  user,
  { type: "run_started", runId: RUN, agent: "guide", attempt: 1 },
  { type: "thinking", content: "Hm", part: 0, start: 0, assistantMessageId: amid },
  { type: "tool_use_start", id: "t1", name: "Look", assistantMessageId: amid },
  { type: "tool_use_parameter_delta", toolCallId: "t1", input: '{"a"', start: 0, assistantMessageId: amid },
  { type: "tool_use_parameter_delta", toolCallId: "t1", input: ": 1}", start: 4, assistantMessageId: amid },
  { type: "tool_use_parameter_streaming_complete", id: "t1", name: "Look", input: '{"a": 1}', assistantMessageId: amid },
  { type: "tool_execution_start", toolCallId: "t1", toolName: "Look", progress: "Looking" },
  { type: "permission", id: "p1", toolName: "Look", description: "?", action: "look", runId: RUN },
  { type: "permission_resolved", id: "p1", granted: true, by: "user", runId: RUN },
  { type: "tool_execution_complete", toolCallId: "t1", toolName: "Look", progress: "", success: true, output: "seen" },
  content(0, "a🎵", 2),
  content(2, "b", 2),
  { type: "complete", done: true, content: "a🎵b", messageId: amid, runId: RUN, finishReason: "stop" },
];

test("An answer is its parts in order.", () => {
  const [turn] = fold(ANSWER).turns;
  assert.deepEqual(turn.parts.map((part) => part.kind), ["thinking", "tool", "permission", "text"]);
  assert.deepEqual([turn.state, turn.answer, turn.parts[1].input, turn.parts[1].result], ["done", "a🎵b", '{"a": 1}', "seen"]);
  assert.equal(turn.parts[2].answer, "allowed");
});

test("Every event may come twice, and any stretch of them again.", () => {
  const once = shape(fold(ANSWER));
  assert.deepEqual(shape(fold(ANSWER.flatMap((event) => [event, event]))), once);
  for (let cut = 0; cut <= ANSWER.length; cut += 1) {
    assert.deepEqual(shape(fold([...ANSWER.slice(0, cut), ...ANSWER])), once, `again after ${cut} events`);
  }
});

test("A delta that overlaps adds only what is new, counted in code points.", () => {
  const [turn] = fold([user, content(0, "a🎵b"), content(1, "🎵bc"), content(3, "cd")]).turns;
  assert.equal(turn.answer, "a🎵bcd");
  assert.equal(codePoints("a🎵b"), 3);
});

test("A delta beyond the end is a gap, never silently joined.", () => {
  assert.throws(() => fold([user, content(0, "a"), content(5, "b")]), Gap);
});

test("A turn that the history has whole is not added to by its events.", () => {
  const conversation = new Conversation();
  conversation.load([
    { id: "m1", role: "user", userInput: "Hi", runId: RUN },
    { id: amid, role: "assistant", userInput: "a🎵b", assistantResponse: "a🎵b", status: "completed", runId: RUN },
  ]);
  const before = shape(conversation);
  assert.deepEqual(shape(fold(ANSWER, conversation)), before);
});

test("A question in the history, its answer from the stream.", () => {
  for (const runId of [RUN, undefined]) {
    const conversation = new Conversation();
    conversation.load([{ id: "m1", role: "user", userInput: "Hi", runId }]);
    assert.equal(conversation.turns[0].state, "waiting");
    assert.deepEqual(shape(fold(ANSWER, conversation)), shape(fold(ANSWER)));
    const late = new Conversation();
    late.load([{ id: "m1", role: "user", userInput: "Hi", runId }]);
    assert.equal(fold(ANSWER.slice(1), late).turns[0].answer, "a🎵b", "also without its user_message_created");
  }
});

test("History rows: failed, cancelled, several steps, a fork's copies.", () => {
  const conversation = new Conversation();
  conversation.load([
    { id: "m1", role: "user", userInput: "1", runId: "r1" },
    { id: "r1~a1", role: "assistant", userInput: "x", assistantResponse: "x", status: "failed", runId: "r1", error: { message: "No." } },
    { id: "m2", role: "user", userInput: "2", runId: "r2" },
    { id: "m3", role: "user", userInput: "3", runId: "r3" },
    { id: "r2~a2", role: "assistant", userInput: "y", assistantResponse: "y", status: "cancelled", runId: "r2", parts: [
      { type: "text", text: "w" }, { type: "tool_call", id: "t", name: "T", arguments: "{}", output: { n: 1 }, success: true }, { type: "text", text: "y" },
    ] },
    { id: "m4", role: "user", userInput: "4" },
    { id: "r9~a1", role: "assistant", userInput: "z", assistantResponse: "z", reasoning: "h", toolCalls: [
      { id: "t", name: "T", input: "{}", type: "function", finished: true, isError: true, result: "e" },
    ] },
  ]);
  assert.deepEqual(conversation.turns.map((turn) => [turn.text, turn.state, turn.answer, turn.error]), [
    ["1", "failed", "x", "No."], ["2", "stopped", "w\n\ny", ""], ["3", "waiting", "", ""], ["4", "done", "z", ""],
  ]);
  assert.deepEqual(conversation.turns[3].parts.map((part) => part.kind), ["thinking", "tool", "text"]);
});

test("A refusal is shown as text, live and from history, and told once.", () => {
  const conversation = new Conversation();
  const parts = [{ type: "refusal", step: 1, text: "I cannot." }];
  conversation.load([
    { id: "m1", role: "user", userInput: "1", runId: "r1" },
    { id: "r1~a1", role: "assistant", userInput: "I cannot.", assistantResponse: "I cannot.", status: "completed", runId: "r1", parts },
  ]);
  conversation.apply("user_message_created", { type: "user_message_created", messageId: "m2", content: "2", runId: "r2" });
  const content = { type: "content", content: "No.", part: 0, start: 0, refusal: true, assistantMessageId: "r2~a1" };
  conversation.apply("content", content);
  conversation.apply("complete", { type: "complete", done: true, content: "No.", messageId: "r2~a1", runId: "r2", finishReason: "refusal" });
  assert.deepEqual(conversation.turns.map((turn) => [turn.answer, turn.state, turn.parts.length]), [["I cannot.", "done", 1], ["No.", "done", 1]]);
});

test("A sent message and the stream's word of it are one turn, whichever comes first.", () => {
  const early = new Conversation();
  const mine = early.send("Hi", "k1");
  assert.equal(mine.state, "sending");
  assert.equal(fold([user], early).turns.length, 1);
  assert.equal(early.sent(mine, "m1", RUN), mine);

  const late = new Conversation();
  const sent = late.send("Hi", "k1");
  late.sent(sent, "m1", RUN);
  assert.equal(fold([user], late).turns.length, 1);
  assert.equal(late.turns[0].state, "waiting");
});

test("The same words sent twice are two turns.", () => {
  const conversation = new Conversation();
  const [one, two] = [conversation.send("Hi", "k1"), conversation.send("Hi", "k2")];
  fold([user, { ...user, messageId: "m2", runId: "r2" }], conversation);
  conversation.sent(two, "m2", "r2");
  conversation.sent(one, "m1", "r1");
  assert.deepEqual(conversation.turns.map((turn) => turn.id), ["m1", "m2"]);
});

test("The same words from another tab do not take a message's place for good.", () => {
  const conversation = new Conversation();
  const mine = conversation.send("Hi", "k1");
  fold([{ ...user, messageId: "other", runId: "r0" }], conversation); // taken for ours
  conversation.sent(mine, "m1", RUN); // but ours is another
  fold([user], conversation);
  assert.deepEqual(conversation.turns.map((turn) => turn.id).sort(), ["m1", "other"]);
});

test("Two runs: what comes for one does not touch the other.", () => {
  const conversation = fold([user, { ...user, messageId: "m2", content: "Ho", runId: "r2" }, ...ANSWER.slice(1)]);
  assert.deepEqual(conversation.turns.map((turn) => turn.state), ["done", "waiting"]);
  fold([
    { type: "run_started", runId: "r2", agent: "guide", attempt: 1 },
    { ...content(0, "x"), assistantMessageId: "r2~a1" },
    { event: "error", type: "interrupted", error: "Stopped.", runId: "r2" },
  ], conversation);
  assert.deepEqual([conversation.turns[1].state, conversation.turns[1].answer, conversation.turns[1].error], ["failed", "x", "Stopped."]);
});

test("A run that ends leaves no question and no tool open.", () => {
  const [turn] = fold([...ANSWER.slice(0, 9), { event: "error", type: "interrupted", error: "x", runId: RUN }]).turns;
  assert.deepEqual([turn.parts[1].state, turn.parts[2].answer], ["failed", "over"]);
});

test("A complete answer whose deltas are gone from the log is taken from its end.", () => {
  const [turn] = fold([user, ANSWER.at(-1)]).turns;
  assert.deepEqual([turn.state, turn.answer], ["done", "a🎵b"]);
});

test("Cancelled, asked for and done.", () => {
  const conversation = fold([...ANSWER.slice(0, 3), { type: "cancel_requested", runId: RUN }]);
  assert.equal(conversation.turns[0].state, "stopping");
  fold([{ ...ANSWER.at(-1), content: "", finishReason: "cancelled" }], conversation);
  assert.equal(conversation.turns[0].state, "stopped");
});

test("Events that it does not know are nothing, and a plain Mix server's (no parts, no runs) still read.", () => {
  const conversation = fold([
    { type: "user_message_created", messageId: "m1", content: "Hi" },
    { type: "surprise", x: 1 },
    { type: "thinking", content: "h", assistantMessageId: "a" },
    { type: "content", content: "x", assistantMessageId: "a" },
    { type: "content", content: "y", assistantMessageId: "a" },
    { type: "complete", done: true, content: "xy", messageId: "a" },
  ]);
  assert.deepEqual([conversation.turns.length, conversation.turns[0].answer, conversation.turns[0].state], [1, "xy", "done"]);
});

test("Text goes on below a question that stands in the middle of it.", () => {
  const events = [
    user, content(0, "Choose. "), { type: "notification", id: "n1", title: "?", message: "?", responseType: "choice", choices: ["a"], runId: RUN },
    content(8, "You chose"), content(17, " a."), { ...ANSWER.at(-1), content: "Choose. You chose a." },
  ];
  const [turn] = fold([...events.slice(0, 4), ...events]).turns;
  assert.deepEqual(turn.parts.map((part) => part.text ?? part.kind), ["Choose. ", "notification", "You chose a."]);
});

test("A turn that waits for a place says so, until its agent is asked.", () => {
  const waiting = fold([user, { type: "run_waiting", for: "place", runId: RUN }]);
  assert.deepEqual([waiting.turns[0].state, waiting.turns[0].waits], ["waiting", "waitingForPlace"]);
  assert.equal(fold(ANSWER.slice(1, 2), waiting).turns[0].state, "running");
});

test("Turns stand as the log has them, whatever was seen first; what is on its way stands behind them.", () => {
  const told = (id, text) => ({ type: "user_message_created", messageId: id, content: text, runId: `s1~${id}` });
  for (const answered of [false, true]) {
    const conversation = fold([told("m1", "one")]);
    const mine = conversation.send("mine", "k1");
    if (answered) conversation.sent(mine, "m3", "s1~m3"); // the answer to the message is quicker than the stream
    const other = conversation.send("later", "k2");
    fold([told("m2", "theirs"), told("m3", "mine")], conversation);
    assert.deepEqual(conversation.turns.map(({ text }) => text), ["one", "theirs", "mine", "later"]);
    assert.equal(conversation.turns[3], other);
    fold([told("m4", "again"), told("m2", "theirs")], conversation);
    assert.deepEqual(conversation.turns.map(({ id }) => id), ["m1", "m2", "m3", "m4", null]);
  }
});

test("An answer with nothing in it is empty; one of tools, or that still goes on, is not.", () => {
  const end = { type: "complete", done: true, content: "", messageId: amid, runId: RUN, finishReason: "length" };
  const thought = { type: "thinking", content: "Hm", part: 0, start: 0, assistantMessageId: amid };
  const empty = (events) => fold(events).turns[0].empty;
  assert.deepEqual([empty([user]), empty([user, end]), empty([user, thought, end]), empty([user, content(0, " \n"), end])], [false, true, true, true]);
  assert.deepEqual([empty(ANSWER), empty(ANSWER.slice(0, 4).concat(end))], [false, false]);
  assert.equal(fold([user, end]).turns[0].reason, "length");
});

test("A turn that waits for a place in the middle of its answer says so, too; what follows goes on below.", () => {
  const half = fold([user, { type: "run_started", runId: RUN, agent: "a" }, content(0, "One ")]);
  fold([{ type: "run_waiting", for: "place", runId: RUN }], half);
  assert.deepEqual([half.turns[0].state, half.turns[0].waits], ["waiting", "waitingForPlace"]);
  fold([{ type: "run_started", runId: RUN, agent: "a" }, content(4, "two")], half);
  assert.deepEqual([half.turns[0].state, half.turns[0].answer], ["running", "One two"]);
});

test("Files come with their question, from the stream and from the history; a part of an unknown kind is no text.", () => {
  const files = [{ type: "image/png", bytes: 5000, hash: "ab" }];
  assert.deepEqual(fold([{ ...user, files }]).turns[0].files, files);
  const conversation = new Conversation();
  conversation.load([{ id: "m1", role: "user", userInput: "", runId: RUN, files }, { id: `${RUN}~a1`, role: "assistant", runId: RUN, parts: [{ type: "sketch", data: 1 }, { type: "text", text: "A cat." }] }]);
  assert.deepEqual([conversation.turns[0].files, conversation.turns[0].answer], [files, "A cat."]);
});

test("Pages of a history fit together, wherever they are cut.", () => {
  const rows = ["a", "b", "c"].flatMap((name) => [{ id: name, role: "user", userInput: name, runId: `s~${name}` }, { id: `s~${name}~a1`, role: "assistant", runId: `s~${name}`, assistantResponse: `${name}!` }]);
  for (let cut = 0; cut <= rows.length; cut += 1) {
    const conversation = new Conversation();
    conversation.load(rows.slice(cut));
    conversation.before(rows.slice(0, cut));
    assert.deepEqual(conversation.turns.map(({ id, text, answer }) => [id, text, answer]), ["a", "b", "c"].map((name) => [name, name, `${name}!`]));
    fold([{ type: "user_message_created", messageId: "d", content: "d", runId: "s~d" }], conversation);
    assert.equal(conversation.turns.at(-1).text, "d");
  }
});

test("What an answer lacks is told by one word, by whatever reason it ended.", () => {
  const lacks = [["length", "cutOff"], ["max_output_tokens", "cutOff"], ["content_filter", "filtered"], ["stop", ""], ["constructor", ""], [undefined, ""]];
  for (const [finishReason, lack] of lacks) {
    const [turn] = fold([user, content(0, "One"), { ...ANSWER.at(-1), content: "One", finishReason }]).turns;
    assert.equal(turn.lack, lack, finishReason);
  }
});

test("A question has its author, from history and stream alike, also where its page ends behind it.", () => {
  const told = fold([{ ...user, author: "ann" }]);
  const read = new Conversation();
  read.load([{ id: "m1", role: "user", userInput: "Hi", runId: RUN, author: "ann" }]);
  const late = new Conversation();
  late.load([{ id: amid, role: "assistant", runId: RUN, status: "completed" }]);
  late.before([{ id: "m1", role: "user", userInput: "Hi", runId: RUN, author: "ann" }]);
  const sent = new Conversation();
  sent.sent(sent.send("Hi", "k"), "m1", RUN);
  assert.deepEqual([...told.turns, ...read.turns, ...late.turns, ...sent.turns].map(({ author }) => author), ["ann", "ann", "ann", null]);
  assert.equal(fold([{ ...user, author: "ann" }], sent).turns[0].author, "ann");
});

test("What became of a question of the agent is as the log has it, whatever a reply has said before.", () => {
  const asked = fold(ANSWER.slice(0, 9));
  asked.turns[0].parts[2].answer = "over"; // the reply to a request that came twice
  assert.equal(fold(ANSWER.slice(9), asked).turns[0].parts[2].answer, "allowed");
});
