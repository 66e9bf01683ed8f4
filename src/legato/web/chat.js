/**
 * The chat page. It keeps nothing that matters: a conversation is a fold of the server's log, so a reload, a second tab
 * and a lost connection all end in the same picture.
 *
 * How nothing is lost or doubled between history and stream: the stream is opened first. Its first frame says where this
 * reader stands (the start of the turn that is running, else the end of the log); only then is the history fetched,
 * and the stream is not read on until it is here. So the history covers at least everything before the stream's place,
 * the stream brings everything after it, and what both have (a turn that ended in between) is the same turn by its run
 * and its message ids: `Conversation` takes nothing twice.
 */
import { Markdown } from "./markdown.js";
import { Refused, Stream, backoff, refusal, retryAfter, worthRetrying } from "./resume.js";
import { Conversation, Gap } from "./turn.js";

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);
const url = (path) => new URL(path, document.baseURI);
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** An element: attributes, listeners (functions), children (nodes and texts; never markup). */
function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

/* ---- The server ---------------------------------------------------------------------------------------------- */

const waking = new Set(); // sleeping retries; a stream that is open again wakes them

/**
 * A request that is repeated until the server has answered it, so only for those that may be: reads, deletes, answers
 * to questions (the first one counts), and sends, which carry an Idempotency-Key.
 */
async function request(method, path, body, key) {
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key !== undefined) headers["idempotency-key"] = key;
  for (let attempt = 0; ; attempt += 1) {
    let wait = null;
    try {
      const response = await fetch(url(path), { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
      if (response.ok) return response.status === 204 ? null : await response.json();
      if (!worthRetrying(response.status) || attempt > 6) throw await refusal(response);
      wait = retryAfter(response);
    } catch (error) {
      if (error instanceof Refused) throw error; // anything else is the network: the answer may yet come
    }
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, wait ?? backoff(attempt, null));
      waking.add(() => (clearTimeout(timer), resolve(undefined)));
    });
  }
}

function wake() {
  for (const each of waking) each();
  waking.clear();
}
addEventListener("online", wake);

/* ---- What this tab remembers -------------------------------------------------------------------------------- */

const memory = {
  get: (key, otherwise) => JSON.parse(sessionStorage.getItem(`legato.${key}`) ?? "null") ?? otherwise,
  set: (key, value) => (value ? sessionStorage.setItem(`legato.${key}`, JSON.stringify(value)) : sessionStorage.removeItem(`legato.${key}`)),
};

/** Messages that the server has not confirmed, so that a reload repeats them under the same key. */
const outbox = {
  all: () => memory.get("outbox", []),
  add: (item) => memory.set("outbox", [...outbox.all(), item]),
  drop: (key) => memory.set("outbox", outbox.all().filter((item) => item.key !== key)),
};

/* ---- The conversation that is open --------------------------------------------------------------------------- */

/** @type {string | null} */
let session = null;
let talk = new Conversation();
/** @type {Stream | null} */
let stream = null;
/** @type {Map<any, TurnView>} */
const views = new Map();
let loaded = false;

/** Open a conversation, or an empty page. */
async function open(id) {
  stream?.close();
  stream = null;
  session = id;
  loaded = false;
  show(new Conversation());
  problem("");
  $("notice").hidden = true;
  restore();
  mark();
  document.body.removeAttribute("data-menu");
  if (id === null) return;
  const created = outbox.all().find((item) => item.session === id && item.create);
  for (const item of outbox.all().filter((each) => each.session === id)) void deliver(item);
  if (created !== undefined) await born.get(id); // there is no stream of a session that does not exist yet
  if (session !== id) return;
  const mine = new Stream(url(`stream?sessionId=${encodeURIComponent(id)}&client=legato`), {
    event: (name, data) => (mine === stream ? heard(name, data) : undefined),
    state: (state) => mine === stream && connection(state),
    refused: (error) => mine === stream && problem(error.status === 404 ? "This chat does not exist any more." : error.message),
  });
  stream = mine;
  void mine.follow();
}

/** One event of the stream. What it throws ends the connection, and the event comes again. */
async function heard(name, data) {
  const id = session;
  if (name === "connected") {
    if (loaded && data.cursor !== "reset") return;
    const response = await fetch(url(`api/sessions/${id}/messages?client=legato`), { cache: "no-store" });
    if (!response.ok) throw new Error(`The history could not be read: ${response.status}.`);
    const rows = await response.json();
    if (id !== session) return;
    const next = new Conversation();
    next.load(rows);
    next.turns.push(...talk.turns.filter((turn) => turn.id === null)); // on their way; they do not know their ids yet
    loaded = true;
    show(next);
  } else if (name === "session_deleted") {
    stream?.close();
    problem("This chat has been deleted.");
    changed();
  } else if (name === "session_rewound") {
    void open(id);
  } else {
    try {
      const turn = talk.apply(name, data);
      if (turn !== null) touch(turn);
      if (turn?.ended) announce(turn);
      if (name === "permission" || name === "notification") say(`${data.title ?? "Permission needed"}: ${data.message ?? data.description}`);
    } catch (error) {
      if (!(error instanceof Gap)) throw error;
      void open(id); // never seen; but a page that might have a hole in it loads everything again
    }
  }
}

/** @param {import("./resume.js").State} state */
function connection(state) {
  if (state === "open") wake();
  if (state === "waiting" || state === "open" || state === "closed") {
    $("notice").hidden = state !== "waiting";
    say(state === "waiting" ? "Reconnecting." : "");
  }
}

/** Send what the field holds. */
function send(text) {
  const create = session === null;
  const id = session ?? random();
  const item = { key: random(), session: id, text, create };
  outbox.add(item);
  pinned = true;
  if (create) {
    history.pushState(null, "", `?session=${id}`);
    void open(id);
  } else {
    void deliver(item);
  }
}

/** Sessions whose first message is on its way: resolved once they exist. @type {Map<string, Promise<void>>} */
const born = new Map();

/** Bring one message to the server, however long it takes. */
async function deliver(item) {
  touch(talk.send(item.text, item.key));
  const path = `api/sessions/${item.session}`;
  try {
    if (item.create) {
      const creation = request("POST", "api/sessions", { id: item.session, title: item.text.trim().slice(0, 80) }).catch((error) => {
        if (error.status !== 409) throw error; // it exists: an earlier attempt got through
      });
      born.set(item.session, creation.then(changed, () => {}));
      await creation;
    }
    const answer = await request("POST", `${path}/messages`, { text: item.text }, item.key);
    outbox.drop(item.key);
    const turn = talk.turns.find((each) => each.key === item.key);
    if (turn === undefined) return;
    const kept = talk.sent(turn, answer.messageId, answer.runId);
    if (!talk.turns.includes(turn)) remove(turn);
    touch(kept);
  } catch (error) {
    outbox.drop(item.key);
    const draft = `draft.${item.session}`;
    memory.set(draft, [item.text, memory.get(draft, "")].filter(Boolean).join("\n\n")); // nothing typed is lost
    if (item.session !== session) return;
    talk.turns.filter((each) => each.key === item.key).forEach(remove);
    restore();
    problem(`Not sent: ${error.message}`);
  }
}

/* ---- Painting: at most once per frame ------------------------------------------------------------------------ */

const dirty = new Set();
let frame = 0;

function touch(turn) {
  dirty.add(turn);
  frame ||= requestAnimationFrame(paint);
}

function show(next) {
  talk = next;
  for (const view of views.values()) view.element.remove();
  views.clear();
  dirty.clear();
  pinned = true;
  talk.turns.forEach(touch);
  frame ||= requestAnimationFrame(paint);
}

function remove(turn) {
  talk.turns = talk.turns.filter((each) => each !== turn);
  views.get(turn)?.element.remove();
  views.delete(turn);
  touch(turn); // no longer there, but the rest of the page may change
}

function paint() {
  frame = 0;
  for (const turn of dirty) {
    if (!talk.turns.includes(turn)) continue;
    if (!views.has(turn)) {
      const view = new TurnView(turn);
      views.set(turn, view);
      $("talk").append(view.element);
    }
    views.get(turn)?.update();
  }
  dirty.clear();
  const busy = talk.turns.find((turn) => turn.state === "running" || turn.state === "stopping");
  $("stop").hidden = busy === undefined;
  $("stop").disabled = busy?.state === "stopping";
  $("stop").textContent = busy?.state === "stopping" ? "Stopping…" : "Stop";
  $("talk").setAttribute("aria-busy", String(busy !== undefined));
  $("agent").textContent = talk.agent || agents[0] ? `Agent: ${talk.agent || agents[0]}.` : "";
  document.body.toggleAttribute("data-empty", session === null || (loaded && talk.turns.length === 0));
  if (pinned) toEnd();
}

/** A turn on the page. */
class TurnView {
  #parts = new Map();

  constructor(turn) {
    this.turn = turn;
    this.question = h("div", { class: "question", dir: "auto" }, turn.text);
    this.sending = h("p", { class: "fine state" });
    this.answer = h("div", { class: "answer" });
    this.foot = h("div", { class: "foot" });
    this.state = "";
    this.element = h("article", { class: "turn", "aria-label": "Message and answer" }, turn.text ? this.question : null, this.sending, this.answer, this.foot);
  }

  update() {
    const { turn } = this;
    for (const part of turn.parts) {
      let view = this.#parts.get(part.key);
      if (view === undefined) {
        view = PARTS[part.kind](part);
        this.#parts.set(part.key, view);
        this.answer.append(view.element);
      }
      view.update(part, turn);
    }
    for (const [key, view] of this.#parts) {
      if (turn.parts.some((part) => part.key === key)) continue;
      view.element.remove();
      this.#parts.delete(key);
    }
    const last = turn.parts[turn.parts.length - 1];
    const typing = turn.state === "running" && last?.kind !== "text" && last?.answer !== null;
    const state = `${turn.state} ${typing} ${turn.id}`;
    if (state === this.state) return;
    this.state = state;
    this.sending.textContent = turn.state === "sending" ? "Sending…" : turn.state === "waiting" ? "Waiting for its turn…" : "";
    this.foot.replaceChildren(...this.#foot(typing));
  }

  *#foot(typing) {
    const { turn } = this;
    if (typing) yield h("p", { class: "typing" }, h("span"), h("span"), h("span"), h("span", { class: "quiet" }, "The agent is working."));
    if (turn.state === "stopped") yield h("p", { class: "fine" }, "Stopped.");
    if (turn.state === "failed") {
      yield h("div", { class: "error" }, h("strong", {}, "The answer ended early. "), turn.error || "The agent failed.", " ",
        turn.text ? h("button", { type: "button", click: () => send(turn.text) }, "Ask again") : null);
    }
    if (turn.ended && turn.answer && navigator.clipboard) yield copyButton("Copy answer", () => turn.answer);
  }
}

function copyButton(label, text) {
  const button = h("button", { type: "button", class: "plain copy", click: async () => {
    await navigator.clipboard.writeText(text()).then(() => (button.textContent = "Copied"), () => (button.textContent = "Could not copy"));
    setTimeout(() => (button.textContent = label), 1500);
  } }, label);
  return button;
}

/** A part that only grows: `grow` gets what is new. */
function growing(element, grow, end = () => {}) {
  let seen = 0;
  return {
    element,
    update(part, turn) {
      if (part.text.length > seen) grow(part.text.slice(seen));
      seen = part.text.length;
      if (turn.ended || turn.parts[turn.parts.length - 1] !== part) end();
    },
  };
}

const pretty = (text) => {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
};

/** What happens to a question that the agent asks: buttons, or what was answered. */
function asking(kind, part, choices) {
  const { data } = part;
  const body = h("div", { class: "choices" });
  const note = h("p", { class: "fine", role: "alert" });
  const element = h("section", { class: "ask", "data-kind": data.notificationType ?? kind, "aria-label": kind },
    h("h3", { dir: "auto" }, data.title ?? `May the agent use ${data.toolName}?`),
    h("p", { dir: "auto" }, data.message ?? data.description),
    data.path ? h("p", { class: "fine" }, h("code", {}, data.path)) : null,
    data.params ? h("details", {}, h("summary", {}, "Details"), h("pre", { tabindex: 0 }, JSON.stringify(data.params, null, 2))) : null,
    body, note);
  const act = (action) => async (event) => {
    event.preventDefault();
    body.querySelectorAll("button, input").forEach((each) => (each.disabled = true));
    try {
      part.answer ??= await action();
    } catch (error) {
      if (error.status === 404) part.answer ??= "over";
      else note.textContent = error.message;
    }
    body.querySelectorAll("button, input").forEach((each) => (each.disabled = false));
    views.forEach((view) => view.turn.parts.includes(part) && touch(view.turn));
  };
  body.append(...choices(act));
  const update = () => {
    if (part.answer === null || element.hasAttribute("data-answer")) return;
    const hadFocus = body.contains(document.activeElement);
    element.setAttribute("data-answer", part.answer);
    body.replaceWith(h("p", { class: "fine answered" }, ANSWERS[part.answer] ?? `Answered: ${part.answer}`));
    if (hadFocus) $("message").focus({ preventScroll: true });
  };
  return { element, update };
}

const ANSWERS = { allowed: "✓ Allowed.", denied: "✗ Denied.", over: "No longer open.", done: "✓ Answered." };

/** How each kind of part looks. */
const PARTS = {
  text: () => {
    const element = h("div", { class: "prose", dir: "auto" });
    const markdown = new Markdown(element);
    return growing(element, (fresh) => (markdown.push(fresh), markdown.flush()), () => markdown.end());
  },
  thinking: () => {
    const text = document.createTextNode("");
    return growing(h("details", { class: "thinking" }, h("summary", {}, "Thinking"), h("div", { dir: "auto" }, text)), (fresh) => text.appendData(fresh));
  },
  tool: () => {
    const name = h("code");
    const state = h("span", { class: "fine" });
    const input = h("pre", { tabindex: 0 });
    const result = h("pre", { tabindex: 0 });
    const output = h("div", {}, h("p", { class: "fine" }, "Result"), result);
    const element = h("details", { class: "tool" }, h("summary", {}, "Tool ", name, " ", state), h("p", { class: "fine" }, "Input"), input, output);
    const update = (part) => {
      const words = { calling: "preparing…", running: "running…", done: "done", failed: "failed" };
      element.setAttribute("data-state", part.state);
      name.textContent = part.name;
      // What it said of its progress is not in the history, so it goes when the tool is done.
      state.textContent = part.state === "running" && part.progress ? `${part.progress}…` : words[part.state];
      // Built only while it is seen: the arguments of a tool may be long, and they grow.
      if (element.open) [input.textContent, result.textContent] = [part.state === "calling" ? part.input : pretty(part.input), pretty(part.result)];
      output.hidden = part.result === "";
      latest = part;
    };
    let latest = null;
    element.addEventListener("toggle", () => latest && update(latest));
    return { element, update };
  },
  permission: (part) => asking("Permission", part, (act) => ["grant", "deny"].map((verb) => h("button", {
    type: "button",
    class: verb,
    click: act(async () => {
      const answer = await request("POST", `api/permissions/${encodeURIComponent(part.id)}/${verb}`);
      return answer.granted ?? !answer.denied ? "allowed" : "denied";
    }),
  }, verb === "grant" ? "Allow" : "Deny"))),
  notification: (part) => asking("Notification", part, (act) => {
    const respond = (type, value) => async () => {
      await request("POST", `api/notifications/${encodeURIComponent(part.id)}/respond`, { type, value: value?.() });
      return value?.() ?? "done";
    };
    if (part.data.responseType === "choice") {
      return part.data.choices.map((choice) => h("button", { type: "button", click: act(respond("choice", () => choice)) }, choice));
    }
    if (part.data.responseType === "text") {
      const field = h("input", { "aria-label": "Your answer", dir: "auto" });
      return [h("form", { submit: act(respond("text", () => field.value)) }, field, h("button", {}, "Answer"))];
    }
    return [h("button", { type: "button", click: act(respond("acknowledge")) }, "OK")];
  }),
};

/* ---- Words for those who listen: one sentence per step, never the tokens ------------------------------------- */

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

function announce(turn) {
  say({ done: "The answer is complete.", stopped: "The answer was stopped.", failed: `The answer ended early: ${turn.error}` }[turn.state]);
}

function problem(text) {
  $("problem").hidden = text === "";
  $("problem").textContent = text;
}

/* ---- Scrolling: follow the text, unless the reader has gone up ------------------------------------------------ */

const scroll = $("scroll");
let pinned = true;
let top = 0;

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
  top = scroll.scrollTop;
  $("latest").hidden = true;
}

scroll.addEventListener("scroll", () => {
  const below = scroll.scrollHeight - scroll.clientHeight - scroll.scrollTop;
  if (below < 40) pinned = true; // the text grows downwards, so only a reader moves up
  else if (scroll.scrollTop < top - 1) pinned = false;
  top = scroll.scrollTop;
  $("latest").hidden = pinned;
}, { passive: true });
new ResizeObserver(() => pinned && toEnd()).observe(scroll);
$("latest").addEventListener("click", () => {
  pinned = true;
  toEnd();
  scroll.focus({ preventScroll: true });
});

/* ---- The list of chats ----------------------------------------------------------------------------------------- */

let known = [];
const others = new BroadcastChannel("legato");
others.addEventListener("message", () => void list());

function changed() {
  others.postMessage("sessions");
  void list();
}

/** @param {string} [before] a time: list on from there */
async function list(before) {
  try {
    const page = await request("GET", `api/sessions?limit=40${before ? `&before=${encodeURIComponent(before)}` : ""}`);
    known = before ? [...known, ...page] : page;
    $("older").hidden = page.length < 40;
  } catch (error) {
    return problem(error.message);
  }
  $("list").replaceChildren(...known.map((each) => {
    const title = each.title || each.firstUserMessage || "Untitled chat";
    return h("li", { "data-id": each.id },
      h("a", { href: `?session=${encodeURIComponent(each.id)}`, dir: "auto", click: (event) => visit(event, each.id) }, title),
      h("button", { type: "button", class: "plain", "aria-label": `Delete ${title}`, title: "Delete", click: () => erase(each.id, title) }, "×"));
  }));
  mark();
}

function visit(event, id) {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  if (id !== session) history.pushState(null, "", id === null ? "./" : `?session=${encodeURIComponent(id)}`);
  void open(id);
  $("message").focus();
}

/** Show which chat is open. */
function mark() {
  for (const item of $("list").children) {
    const here = item.dataset.id === session;
    if (here) item.firstChild.setAttribute("aria-current", "page");
    else item.firstChild.removeAttribute("aria-current");
  }
  const about = known.find((each) => each.id === session);
  $("title").textContent = about?.title || about?.firstUserMessage || (session === null ? "New chat" : "Chat");
  document.title = session === null ? "Legato" : `${$("title").textContent} · Legato`;
}

function erase(id, title) {
  const sure = $("sure");
  sure.querySelector("p").textContent = title;
  sure.returnValue = "";
  sure.onclose = async () => {
    if (sure.returnValue !== "delete") return;
    try {
      if (id === session) visit(new Event("click"), null);
      await request("DELETE", `api/sessions/${id}`);
    } catch (error) {
      if (error.status !== 404) problem(error.message);
    }
    changed();
  };
  sure.showModal();
}

/* ---- The field, and the rest of the page -------------------------------------------------------------------------- */

const field = $("message");

function restore() {
  field.value = memory.get(`draft.${session ?? ""}`, "");
  grow();
}

function grow() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

field.addEventListener("input", () => {
  memory.set(`draft.${session ?? ""}`, field.value);
  grow();
});
field.addEventListener("keydown", (event) => {
  // While an input method composes, Enter chooses a word; Safari reports that only by the key code 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = field.value;
  if (text.trim() === "") return;
  field.value = "";
  field.dispatchEvent(new Event("input"));
  problem("");
  send(text);
});
$("stop").addEventListener("click", async () => {
  const turn = talk.turns.find((each) => each.state === "running");
  if (turn === undefined) return;
  turn.state = "stopping";
  touch(turn);
  field.focus({ preventScroll: true });
  await request("POST", `api/sessions/${session}/cancel`, { runId: turn.run ?? undefined }).catch((error) => problem(error.message));
});
$("notice").querySelector("button").addEventListener("click", () => stream?.reconnect());
$("new").addEventListener("click", (event) => visit(event, null));
$("older").addEventListener("click", () => void list(known[known.length - 1]?.updatedAt));

function menu(open) {
  document.body.toggleAttribute("data-menu", open);
  $("menu").setAttribute("aria-expanded", String(open));
  (open ? $("new") : $("menu")).focus();
}
$("menu").addEventListener("click", () => menu(!document.body.hasAttribute("data-menu")));
$("shade").addEventListener("click", () => menu(false));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.hasAttribute("data-menu")) menu(false);
});

/** What the server answers with. The guide, which needs explaining, gets a few questions to begin with. */
let agents = [];
async function introduce() {
  agents = (await request("GET", "health")).agents ?? [];
  touch(null);
  if (agents[0] !== "guide") return;
  const ideas = ["What is Legato?", "How do I write my own agent?", "/long 300", "/permission"];
  $("ideas").replaceChildren(...ideas.map((text) => h("button", { type: "button", click: () => send(text) }, text)));
}

const here = () => new URLSearchParams(location.search).get("session");
addEventListener("popstate", () => void open(here()));
document.addEventListener("visibilitychange", () => document.hidden || void list());
void list();
void introduce().catch(() => {}); // only words of greeting
void open(here());
if (matchMedia("(hover: hover)").matches) field.focus();
