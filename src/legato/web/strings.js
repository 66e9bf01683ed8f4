/**
 * Every word that the elements show or speak. Replace any of them for all elements with `setStrings`, or for one by its
 * `strings` property. `{name}` stands for a value.
 */

/** @type {Record<string, string>} */
const STRINGS = {
  conversation: "Conversation",
  welcome: "What would you like to know?",
  message: "Message",
  placeholder: "Write a message",
  send: "Send",
  stop: "Stop",
  stopping: "Stopping…",
  skip: "Skip to the message field",
  you: "You",
  agentName: "Agent",
  sending: "Sending…",
  waiting: "Waiting for its turn…",
  waitingForPlace: "Waiting for a place…",
  generating: "Generating the answer.",
  typing: "The agent is typing.",
  complete: "The answer is complete.",
  wasStopped: "The answer was stopped.",
  stopped: "Stopped.",
  failed: "The answer ended early.",
  failedUnknown: "The agent failed.",
  retry: "Retry",
  regenerate: "Regenerate",
  replaceAnswer: "Replace this answer by a new one?",
  replace: "Replace",
  keep: "Keep it",
  cutOff: "Cut off: the answer is as long as the model may make it.",
  filtered: "Cut off by a filter of the model.",
  goOn: "Continue",
  goOnMessage: "Continue.",
  empty: "The answer is empty.",
  copyAnswer: "Copy answer",
  copyCode: "Copy code",
  copied: "Copied",
  notCopied: "Could not copy",
  earlier: "Earlier messages",
  latest: "Jump to latest",
  reconnecting: "Reconnecting…",
  tryNow: "Try now",
  gone: "This chat does not exist any more.",
  deleted: "This chat has been deleted.",
  unshared: "This chat has been deleted, or is no longer shared with you.",
  notSent: "Not sent: {reason}",
  foreign: "Something else answers in the server's place.",
  signedOut: "You are no longer signed in. What you sent is kept, and goes out once you are.",
  signIn: "Sign in again",
  image: "Image",
  file: "File",
  notLoaded: "could not be loaded; try again",
  chatOf: "A chat of {owner}.",
  readOnly: "You may read it, and not write in it.",
  othersAnswer: "Others are to answer this.",
  thinking: "Thinking",
  tool: "Tool",
  calling: "preparing…",
  running: "running…",
  done: "done",
  toolFailed: "failed",
  input: "Input",
  result: "Result",
  details: "Details",
  permission: "Permission",
  notification: "Notification",
  mayUse: "May the agent use {tool}?",
  allow: "Allow",
  deny: "Deny",
  allowed: "✓ Allowed.",
  denied: "✗ Denied.",
  over: "No longer open.",
  answered: "✓ Answered.",
  answeredWith: "Answered: {answer}",
  yourAnswer: "Your answer",
  answer: "Answer",
  ok: "OK",
  open: "Open the chat",
  openRunning: "Open the chat: an answer is being given",
  openUnread: "Open the chat: there is a new answer",
  close: "Close the chat",
  title: "Chat",
  newChat: "New chat",
  unknownAgent: "There is nobody called “{name}” here.",
  unreachable: "The chat cannot be reached at the moment.",
};

const changes = new EventTarget();

/** Replace strings for all elements, also those on the page already. @param {Record<string, string>} strings */
export function setStrings(strings) {
  Object.assign(STRINGS, strings);
  changes.dispatchEvent(new Event("change"));
}

/** @param {() => void} changed @param {AbortSignal} signal */
export const onStrings = (changed, signal) => changes.addEventListener("change", changed, { signal });

/** @param {string} name @param {Record<string, string>} own @param {Record<string, string>} values */
export const fill = (name, own, values = {}) =>
  (own[name] ?? STRINGS[name] ?? name).replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
