/** The chat page: the list of chats, the address, the menu of narrow screens. */
import "./define.js";
import { h } from "./dom.js";
import { uncover } from "./glass.js";
import { sessions } from "./sessions.js";

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

/** @type {import("./chat.js").LegatoChat} */
const chat = $("chat");
const list = sessions(chat.server, { list: $("list"), older: $("older"), sure: $("sure") }, {
  visit,
  erased: (id) => id === chat.session && go(null),
  failed: (text) => ($("trouble").textContent = text),
  listed: name,
});

/** @param {MouseEvent} event @param {string | null} id */
function visit(event, id) {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(id);
  chat.focus();
}

/** @param {string | null} id */
function go(id) {
  if (id !== (chat.session || null)) history.pushState(null, "", id === null ? "./" : `?session=${encodeURIComponent(id)}`);
  show();
}

/** Show the chat of the address. */
function show() {
  menu(false);
  $("trouble").textContent = "";
  chat.session = new URLSearchParams(location.search).get("session") ?? "";
  void list.look(chat.session);
}

function name() {
  const title = list.named(chat.session) ?? (chat.session === "" ? "New chat" : "Chat");
  $("title").textContent = title;
  document.title = chat.session === "" ? "Legato" : `${title} · Legato`;
}

chat.addEventListener("legato-session", (event) => {
  const id = /** @type {CustomEvent<string>} */ (event).detail;
  if (id === "") history.replaceState(null, "", "./");
  else history.pushState(null, "", `?session=${id}`);
  list.mark(id);
});
chat.addEventListener("legato-change", () => list.changed());
$("new").addEventListener("click", (/** @type {MouseEvent} */ event) => visit(event, null));
addEventListener("popstate", show);
document.addEventListener("visibilitychange", () => document.hidden || void list.load());

/** @param {boolean} open */
function menu(open) {
  document.body.toggleAttribute("data-menu", open);
  $("menu").setAttribute("aria-expanded", String(open));
}

/** By the visitor's hand. @param {boolean} open */
function turn(open) {
  menu(open);
  (open ? $("new") : $("menu")).focus();
}
$("menu").addEventListener("click", () => turn(!document.body.hasAttribute("data-menu")));
$("shade").addEventListener("click", () => turn(false));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.hasAttribute("data-menu")) turn(false);
});

$("skip").addEventListener("click", (/** @type {Event} */ event) => (event.preventDefault(), chat.focus()));

/** What the server answers with. The guide, which needs explaining, gets a few questions to begin with. */
async function introduce() {
  const { agents = [] } = await chat.server.request("GET", "health");
  if (agents.length > 0) $("agent").textContent = `Agent: ${agents[0]}.`;
  if (agents[0] !== "guide") return;
  const ideas = ["What is Legato?", "How do I write my own agent?", "/long 300", "/permission"];
  $("promise").hidden = false;
  const say = (/** @type {string} */ text) => (chat.send(text), chat.focus());
  $("ideas").replaceChildren(...ideas.map((text) => h("button", { type: "button", click: () => say(text) }, text)));
}

uncover(document.body);
show();
void list.load();
void introduce().catch(() => {}); // only words of greeting
if (matchMedia("(hover: hover)").matches) chat.focus();
