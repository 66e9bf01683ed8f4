/**
 * `<legato-intercom username="…" base-url="…">`: a floating button, and the chat behind it. `username` is the name of an
 * agent; the server's first one if there is none. The browser keeps which session is its visitor's.
 */
import { ICONS, h, icon } from "./dom.js";
import { uncover } from "./glass.js";
import { INTERCOM_LOOKS } from "./intercom-looks.js";
import { LegatoElement } from "./legato-element.js";
import { sheet, sheets } from "./sheet.js";

const SHEETS = [...sheets, ...sheet(INTERCOM_LOOKS)];

/** Parts of the chat inside, for styles from outside. */
const PARTS = "conversation, turn, question, answer, text, thinking, tool, ask, grant, deny, error, retry, copy, regenerate, replace, keep, continue, " +
  "form, field, send, stop, latest, notice, problem, indicator, file";

export class LegatoIntercom extends LegatoElement {
  static observedAttributes = ["username", "base-url"];

  #title = h("h2", { id: "title", dir: "auto" });
  #avatar = h("span", { id: "avatar", part: "avatar", "aria-hidden": "true" });
  #renew = h("button", { type: "button", class: "plain small", part: "new", click: () => this.#begin() });
  #leave = h("button", { type: "button", class: "plain round", part: "close", click: () => this.close() }, icon(ICONS.close));
  #chat = h("legato-chat", { exportparts: PARTS, hidden: true });
  #trouble = h("p", { id: "trouble", part: "problem", role: "alert", hidden: true });
  #panel = h("div", { id: "panel", part: "panel", role: "dialog", "aria-labelledby": "title", hidden: true },
    h("header", { part: "header" }, this.#avatar, this.#title, this.#renew, this.#leave), this.#chat, this.#trouble);
  #badge = h("span", { id: "badge", part: "badge" });
  #launcher = h("button", { type: "button", id: "launcher", part: "launcher", "aria-expanded": "false", "aria-haspopup": "dialog", click: () => this.toggle() });
  #body = h("div", { id: "body", popover: "manual", "data-state": "idle" }, this.#panel, this.#launcher);
  #checked = false;
  #check = 0; // the number of the check that counts

  get sheets() {
    return SHEETS;
  }

  /** The name of the agent. */
  get username() {
    return this.getAttribute("username") ?? "";
  }
  set username(name) {
    this.reflect("username", name);
  }

  /** Whether the chat is shown. */
  get isOpen() {
    return !this.#panel.hidden;
  }

  constructor() {
    super();
    this.addEventListener("legato-session", (event) => this.#keep(/** @type {CustomEvent} */ (event).detail));
    this.addEventListener("legato-state", (event) => this.#state(/** @type {CustomEvent} */ (event).detail.running));
    this.addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && this.isOpen && this.close());
  }

  connectedCallback() {
    super.connectedCallback();
    this.ownRoot.append(this.#body);
    uncover(this.#body, this.life);
    this.#body.showPopover?.(); // above the page, wherever it stands: what clips, moves or covers an ancestor does not reach it
    this.#label();
    if (this.#kept.running) void this.#connect(); // to say when it is done, also on the page after this one
  }

  attributeChangedCallback() {
    this.#checked = false;
    this.#check += 1;
    if (!this.isConnected) return;
    this.#label();
    if (this.isOpen) void this.#connect();
  }

  /** Show the chat, and put the focus into it. */
  open() {
    if (this.isOpen) return;
    this.#panel.hidden = false;
    this.#body.toggleAttribute("data-open", true);
    if (this.#body.dataset.state === "unread") this.#body.dataset.state = "idle";
    this.#label();
    void this.#connect().then(() => (this.#chat.hidden ? this.#leave.focus() : this.#chat.focus()));
  }

  /** Hide it; what is being answered goes on. The focus goes back to the button. */
  close() {
    this.#panel.hidden = true;
    this.#body.toggleAttribute("data-open", false);
    this.#label();
    this.#launcher.focus();
  }

  toggle() {
    this.isOpen ? this.close() : this.open();
  }

  wordsChanged() {
    this.#label();
    if (this.#chat.isConnected) this.#chat.wordsChanged();
  }

  #label() {
    const { state } = this.#body.dataset;
    const word = this.isOpen ? "close" : state === "running" ? "openRunning" : state === "unread" ? "openUnread" : "open";
    this.#launcher.setAttribute("aria-label", this.word(word));
    this.#launcher.setAttribute("aria-expanded", String(this.isOpen));
    this.#launcher.replaceChildren(icon(this.isOpen ? ICONS.close : ICONS.help), this.#badge);
    this.#leave.setAttribute("aria-label", this.word("close"));
    this.#renew.textContent = this.word("newChat");
    this.#title.textContent = this.username || this.word("title");
    this.#avatar.textContent = [...(this.username || this.word("title"))][0].toUpperCase();
  }

  /** Make sure that there is such an agent, then let the chat in. */
  async #connect() {
    if (this.#checked) return;
    const name = this.username;
    const check = (this.#check += 1);
    try {
      const response = await this.server.once("GET", "health");
      if (!response.ok) throw new Error();
      const { agents } = await response.json();
      if (check !== this.#check) return;
      this.#checked = name === "" || agents.includes(name);
      this.#complain(this.#checked ? "" : this.word("unknownAgent", { name }));
    } catch {
      if (check !== this.#check) return;
      this.#complain(this.word("unreachable"));
    }
    if (!this.#checked) return;
    this.#chat.agent = name;
    this.#chat.session = this.#kept.session ?? ""; // with another name comes another conversation
  }

  /** @param {string} text */
  #complain(text) {
    this.#trouble.textContent = text;
    this.#trouble.hidden = text === "";
    this.#chat.hidden = this.#renew.hidden = text !== "";
  }

  #begin() {
    this.#chat.session = "";
    this.#keep("");
    this.#chat.focus();
  }

  /** @param {boolean} running */
  #state(running) {
    const { dataset } = this.#body;
    const ended = !running && (dataset.state === "running" || this.#kept.running); // perhaps between two pages
    if (running) dataset.state = "running";
    else if (this.isOpen) dataset.state = "idle";
    else if (ended) dataset.state = "unread";
    this.#store({ ...this.#kept, running });
    this.#label();
  }

  // What the browser keeps -------------------------------------------------------------------------------------------

  get #key() {
    return `legato.intercom.${this.server.baseUrl.href}.${this.username}`;
  }

  /** @returns {{session?: string, running?: boolean}} */
  get #kept() {
    try {
      return { ...JSON.parse(localStorage.getItem(this.#key) ?? "{}") };
    } catch {
      return {};
    }
  }

  /** @param {string} session */
  #keep(session) {
    this.#store({ session });
  }

  /** @param {{session?: string, running?: boolean}} kept */
  #store(kept) {
    try {
      localStorage.setItem(this.#key, JSON.stringify(kept));
    } catch {
      // Forbidden: then the next page begins anew.
    }
  }
}
