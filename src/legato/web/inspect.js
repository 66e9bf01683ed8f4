/**
 * The inspector: what the server does now, one session's log in time, and the same events on each dialect's wire. It
 * only looks: it opens no stream, so that it is no reader of what it shows, and asks nothing while nobody sees it.
 */
import { h, write } from "./dom.js";
import { count, duration, named, number, size } from "./figures.js";
import { Measures } from "./measures.js";
import { Outline, TOKEN, kindOf } from "./outline.js";
import { Poll } from "./poll.js";
import { Rows } from "./rows.js";
import { Timeline } from "./timeline.js";
import { ofServer, ofSession, stateOf } from "./troubles.js";

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

/** Events of the outline in one answer. */
const STRETCH = 5_000;
/** Milliseconds between two looks: while something goes on, and else. */
const LIVELY = 300;
const CALM = 1_500;
/** What can stand beside the log; those that are on at first are marked. */
const DIALECTS = [
  { name: "mix/python-0.8.1", title: "Mix", on: true },
  { name: "mix/python-0.6.5", title: "Mix, older SDKs", on: false },
  { name: "mix/legato", title: "Mix, Legato's own", on: false },
  { name: "responses", title: "Responses", on: true },
  { name: "chat", title: "Chat Completions", on: true },
  { name: "deva", title: "Deva", on: true },
];

/** @type {any} */ let server = null;
/** @type {any} */ let session = null;
let id = "";
let outline = new Outline();
let selected = 0;
/** @type {string} */ let shown = "last"; // a run's id, "all", or the last run, whichever that is
let ahead = 0; // the server's clock before ours, in milliseconds
/** @type {Poll | null} */ let poll = null;
/** @type {Map<string, string>} */ const names = new Map();
const down = new Set();

const now = () => (session === null ? 0 : Date.now() + ahead - session.session.createdAt * 1000);

/* ---- The server -------------------------------------------------------------------------------------------------- */

const overview = new Poll({
  ask: () => "api/inspect?limit=60",
  on: (answer) => {
    server = answer;
    if (id === "" && server.sessions.length > 0) open(server.sessions[0].id, false);
    facts();
    list();
    void learn();
  },
  every: () => (server.running > 0 || server.streams > 0 ? 1_000 : 2_500),
  trouble: (error) => reachable("server", error),
  refused: (error) => problem(error.message),
});

/** @param {string} what @param {Error | null} error */
function reachable(what, error) {
  if (error === null) down.delete(what);
  else down.add(what);
  facts();
}

function facts() {
  const state = down.size > 0 ? "down" : server === null ? "asking" : server.draining ? "draining" : "up";
  const words = { asking: "Asking the server…", down: "The server does not answer. Trying again…", draining: "Stopping", up: "Up" };
  $("health").dataset.state = state;
  write($("health").lastElementChild, state === "up" ? `Up for ${duration((server.now - server.startedAt) * 1000)}` : words[state]);
  document.body.toggleAttribute("data-down", state === "down");
  if (server === null) return;
  const { store } = server;
  const cached = store.tail_bytes === undefined ? "" : `, ${size(store.tail_bytes)} of recent events in memory`;
  const said = [
    [count(server.openRuns.length, "open run"), `${count(server.running, "run")} driven by this process`],
    [count(server.streams, "reader"), `of ${number(server.maxStreams)} at most`],
    [`${store.kind}${store.durability ? `, ${store.durability}` : ""}`, `The store${cached}`],
    [`Legato ${server.version}`, `Agents: ${server.agents.join(", ")}`],
  ];
  $("facts").replaceChildren(...said.map(([text, title]) => h("li", { title }, text)));
}

/* ---- Sessions ---------------------------------------------------------------------------------------------------- */

/** Sessions without a name, by how many events they had when it was asked for. @type {Map<string, number>} */
const nameless = new Map();
let learning = false;

/** What people said first is what they know a session by; it is asked for only when a session is new, or has grown without one. */
async function learn() {
  const unknown = server.sessions.filter((/** @type {any} */ each) => !names.has(each.id) && nameless.get(each.id) !== each.head);
  if (unknown.length === 0 || learning) return;
  learning = true;
  for (const each of unknown) if (each.title) names.set(each.id, each.title);
  try {
    const response = await fetch("api/sessions?limit=60", { cache: "no-store" });
    if (!response.ok) return;
    for (const each of await response.json()) {
      const name = each.title || each.firstUserMessage;
      if (name) names.set(each.id, name.slice(0, 200));
    }
    for (const each of unknown) nameless.set(each.id, each.head);
    list();
  } catch {
    // without names, ids are shown
  } finally {
    learning = false;
  }
}

/** @type {Map<string, {element: HTMLElement, name: HTMLElement, about: HTMLElement, link: HTMLElement}>} */
const items = new Map();

function list() {
  const ul = $("sessions").querySelector("ul");
  const ids = new Set(server.sessions.map((/** @type {any} */ each) => each.id));
  for (const [key, item] of items) {
    if (ids.has(key)) continue;
    item.element.remove();
    items.delete(key);
  }
  server.sessions.forEach((/** @type {any} */ each, /** @type {number} */ place) => {
    let item = items.get(each.id);
    if (item === undefined) {
      const name = h("span", { class: "name", dir: "auto" });
      const about = h("span", { class: "about" });
      const link = h("a", { href: `?session=${encodeURIComponent(each.id)}`, click: (/** @type {MouseEvent} */ event) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey) return;
        event.preventDefault();
        open(each.id);
      } }, h("span", { class: "dot", "aria-hidden": "true" }), name, about);
      item = { element: h("li", {}, link), name, about, link };
      items.set(each.id, item);
    }
    if (ul.children[place] !== item.element) ul.insertBefore(item.element, ul.children[place] ?? null);
    write(item.name, names.get(each.id) ?? each.id);
    const readers = each.readers > 0 ? `, ${count(each.readers, "reader")}` : "";
    write(item.about, `${each.runs > 0 ? `${each.runs === 1 ? "running" : `${each.runs} runs`}, ` : ""}${count(each.head, "event")}${readers}`);
    item.element.toggleAttribute("data-running", each.runs > 0);
    if (each.id === id) item.link.setAttribute("aria-current", "page");
    else item.link.removeAttribute("aria-current");
  });
  $("nothing").hidden = id !== "";
  document.body.toggleAttribute("data-empty", id === "");
}

/** @param {string} next @param {boolean} [visit] whether it becomes a place to come back to */
function open(next, visit = true) {
  if (next === id) return;
  poll?.close();
  id = next;
  session = null;
  outline = new Outline();
  selected = 0;
  shown = "last";
  problem("");
  down.delete("session");
  if (visit) history.pushState(null, "", `?session=${encodeURIComponent(id)}`);
  rows.open(id, columns());
  if (server !== null) list();
  poll = new Poll({
    ask: () => `api/inspect/sessions/${encodeURIComponent(id)}?after=${outline.length}&limit=${STRETCH}`,
    on: take,
    every: () => (outline.length < (session?.session.head ?? 0) ? 0 : session.runs.length > 0 || session.readers.some((/** @type {any} */ each) => each.cursor < outline.length) ? LIVELY : CALM),
    trouble: (error) => reachable("session", error),
    refused: (error) => problem(error.status === 404 ? "This session is not there, or not any more." : error.message),
  });
}

/** @param {any} answer */
function take(answer) {
  if (answer.session.head < outline.length) {
    outline = new Outline(); // a store that was set back: the log is another one
    rows.open(id, columns());
  } else outline.add(answer.outline);
  session = answer;
  ahead = answer.now * 1000 - Date.now();
  rows.grow(answer.session.head, answer.session.createdAt);
  if (asked > 0 && outline.length >= asked) pick(asked);
  draw();
}

/** @param {string} text */
function problem(text) {
  $("refusal").hidden = text === "";
  write($("refusal"), text);
}

/* ---- The session ------------------------------------------------------------------------------------------------- */

const timeline = new Timeline($("timeline"), (offset) => pick(offset), (offset) => rows.tell(offset));
const rows = new Rows($("rows"), {
  pick: (offset) => pick(offset, false),
  follow: (follows) => ($("newest").hidden = follows),
  problem: (error) => {
    if (session !== null) problem(error === null ? "" : `Some events cannot be read: ${error.message}`);
  },
});

function run() {
  if (shown === "all") return null;
  const running = outline.runs.find((each) => each.id === session.runs[0]?.run);
  return (shown === "last" ? running ?? outline.runs.at(-1) : outline.runs.find((each) => each.id === shown)) ?? null;
}

function draw() {
  const here = run();
  const live = here === null ? session.runs.length > 0 : here.end === "" && session.runs.length > 0;
  const rest = session.reading - session.readers.length;
  timeline.show({ outline, run: here, live, readers: session.readers, more: rest, now, selected });
  choices();
  flow();
  const all = [...(server === null ? [] : ofServer(server, id)), ...ofSession(session, outline, now())].sort((one, other) => Number(other.level === "bad") - Number(one.level === "bad"));
  troubles(all);
  const first = here?.first ?? 1;
  const last = here?.last ?? outline.length;
  const loading = outline.length < session.session.head ? `, reading ${Math.round((outline.length / session.session.head) * 100)} %` : "";
  write($("span"), outline.length === 0 ? "" : `events ${number(first)} to ${number(last)}, ${duration(outline.at(last) - outline.at(first))}${loading}`);
}

function choices() {
  const select = $("run");
  const label = (/** @type {import("./outline.js").Run} */ each) => `Run ${each.number}: ${each.end === "" ? (each.attempts.length ? "running" : "waiting") : each.end.slice(4)}${each.attempts.length > 1 ? `, ${each.attempts.length} attempts` : ""}`;
  const wanted = [["last", "the newest run"], ["all", "the whole session"], ...outline.runs.slice(-200).map((each) => [each.id, label(each)]).reverse()];
  if (wanted.length !== select.options.length) select.replaceChildren(...wanted.map(([value]) => h("option", { value })));
  wanted.forEach(([value, text], place) => {
    select.options[place].value = value;
    write(select.options[place], text);
  });
  if (select.value !== shown) select.value = shown;
}

function flow() {
  const going = session.runs[0];
  const at = now();
  const rate = outline.rate(at, 2_000) / TOKEN;
  const last = outline.runs.at(-1);
  const waits = session.runs.length > 1 ? `, ${session.runs.length - 1} waiting` : "";
  const state = going === undefined ? { "": "Idle", "run.completed": "Idle: it is done", "run.failed": "Idle: it failed", "run.cancelled": "Idle: it was stopped" }[last?.end ?? ""] : !going.started ? "A message waits" : rate >= 1 ? `≈ ${number(Math.round(rate))} tokens/s` : asking() ? "Waits for an answer" : "Working";
  write($("agent").querySelector(".big"), `${state}${waits}`);
  $("agent").toggleAttribute("data-live", going !== undefined);
  write($("store").querySelector(".big"), count(session.session.head, "event"));
  strip();
  const behind = session.readers.filter((/** @type {any} */ each) => stateOf(each, outline, at) !== "live");
  const slowest = behind.length > 0 ? Math.max(...behind.map((/** @type {any} */ each) => outline.length - each.cursor)) : 0;
  const late = session.reading === 1 ? `${number(slowest)} behind` : `${behind.length > 1 ? `${behind.length} up to` : "one"} ${number(slowest)} behind`;
  write($("watchers").querySelector(".big"), session.reading === 0 ? "Nobody reads" : `${number(session.reading)}, ${behind.length === 0 ? "up to date" : late}`);
  $("watchers").toggleAttribute("data-live", session.reading > 0);
}

const asking = () => {
  const type = outline.length ? outline.type(outline.length) : "";
  return type === "permission.requested" || type === "notification.created";
};

/** The newest events, one square each. */
function strip() {
  const canvas = /** @type {HTMLCanvasElement} */ ($("store").querySelector("canvas"));
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const width = canvas.clientWidth;
  if (width === 0) return;
  [canvas.width, canvas.height] = [width * ratio, 14 * ratio];
  const paint = canvas.getContext("2d");
  if (paint === null) return;
  paint.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const room = Math.floor(width / 9);
  for (let place = 0; place < room; place++) {
    const offset = outline.length - (room - 1 - place) + Math.max(room - outline.length, 0);
    paint.fillStyle = offset > outline.length || offset < 1 ? style.getPropertyValue("--line") : style.getPropertyValue(`--kind-${kindOf(outline.type(offset))}`);
    paint.beginPath();
    paint.roundRect(place * 9, 2, 7, 10, 2);
    paint.fill();
  }
}

/** @param {import("./troubles.js").Trouble[]} all */
function troubles(all) {
  const root = $("troubles");
  root.hidden = all.length === 0;
  all.forEach((trouble, place) => {
    let button = /** @type {HTMLElement} */ (root.children[place]);
    if (button === undefined) {
      button = h("button", { type: "button", class: "trouble" });
      root.append(button);
    }
    button.dataset.level = trouble.level;
    button.onclick = () => {
      if (trouble.session !== undefined) open(trouble.session);
      if (trouble.offset !== undefined) pick(trouble.offset);
    };
    write(button, trouble.text);
  });
  while (root.children.length > all.length) root.lastElementChild.remove();
}

/* ---- Choosing an event --------------------------------------------------------------------------------------------- */

let asked = 0;

/** @param {number} offset 0 for none @param {boolean} [jump] */
function pick(offset, jump = true) {
  asked = 0;
  if (offset > outline.length) {
    asked = offset; // it is on its way
    return;
  }
  selected = offset;
  const its = offset > 0 ? outline.run(offset) : null;
  if (its !== null && shown !== "all" && its !== run()) shown = its.id;
  rows.select(offset, jump || offset > 0);
  const query = new URLSearchParams({ session: id });
  if (offset > 0) query.set("event", String(offset));
  history.replaceState(null, "", `?${query}`);
  if (session !== null) draw();
}

new Measures($("measures"));

/* ---- The columns --------------------------------------------------------------------------------------------------- */

/** @type {Set<string>} */
const on = new Set(DIALECTS.filter((each) => each.on).map((each) => each.name));
const columns = () => DIALECTS.filter((each) => on.has(each.name));

for (const { name, title } of DIALECTS) {
  $("columns").append(h("label", { title: named(name) }, h("input", { type: "checkbox", checked: on.has(name), change: (/** @type {Event} */ event) => {
    if (/** @type {HTMLInputElement} */ (event.target).checked) on.add(name);
    else on.delete(name);
    rows.columns(columns());
  } }), ` ${title}`));
}

$("newest").addEventListener("click", () => {
  pick(0, false);
  rows.follow(true);
  $("rows").querySelector("[role=grid]").focus({ preventScroll: true });
});
$("run").addEventListener("change", () => {
  shown = $("run").value;
  const here = run();
  if (here !== null && shown !== "last") pick(here.first);
  draw();
});

/* ---- The page ------------------------------------------------------------------------------------------------------ */

function go() {
  const query = new URLSearchParams(location.search);
  const event = Number(query.get("event"));
  const wanted = query.get("session");
  if (wanted !== null) open(wanted, false);
  if (Number.isInteger(event) && event > 0) asked = event;
}
addEventListener("popstate", go);
go();

function frame(/** @type {number} */ time) {
  if (session !== null) timeline.tick(time);
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
void overview;
