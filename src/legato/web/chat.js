/**
 * `<legato-chat session="…" base-url="…" agent="…" follow="…">`: a whole conversation. Without `session` it is empty, and
 * the first message begins one. With `follow="start"` an answer that is longer than the box stays at its beginning. Events, which bubble: `legato-session` (the id of the session that was begun),
 * `legato-change` (one was begun or deleted), `legato-state` (`{running}`, also once a session's history is here).
 */
import { draw } from "./core.js";
import { ICONS, h, icon, media, nearing, plain, write } from "./dom.js";
import { Follow } from "./follow.js";
import { LegatoElement } from "./legato-element.js";
import { Memory } from "./server.js";
import { Talk, bringLeft } from "./talk.js";
import { TurnView } from "./turn-view.js";

const PAGE = 30; // turns that are shown before the reader goes further up

/** Keys on glass have no Shift to hold, so there Enter begins a line. */
const GLASS = "(hover: none) and (pointer: coarse)";

export class LegatoChat extends LegatoElement {
  static observedAttributes = ["session", "base-url"];

  /** @type {Talk | null} */ #talk = null;
  /** @type {import("./server.js").Server | null} */ #asked = null; // what the talk is with
  /** @type {Map<any, TurnView>} */ #views = new Map();
  /** @type {Set<any>} */ #dirty = new Set();
  #first = 0; // the turns before it are not shown yet
  #frame = 0;
  #built = false;
  #step = ""; // what was told of the answer last
  /** @type {boolean | undefined} */ #running = false; // undefined until the session's history tells
  /** @type {IntersectionObserver | null} */ #nearing = null;
  #sent = false; // here, and it is not on the page yet

  #earlier = h("button", { type: "button", class: "plain", id: "earlier", hidden: true, click: () => this.#showEarlier() });
  #turns = h("div", { id: "talk" });
  #welcome = h("h2");
  #empty = h("div", { class: "empty", hidden: true }, this.#welcome, h("slot", { name: "empty" }));
  #skip = h("button", { type: "button", id: "skip", click: () => this.focus() });
  #content = h("div", { id: "content" }, this.#earlier, this.#turns, this.#empty);
  #scroll = h("div", { id: "scroll", part: "conversation", role: "region", tabindex: 0 }, this.#content);
  #latest = h("button", { type: "button", id: "latest", part: "latest", hidden: true, click: () => this.#toLatest() }, icon(ICONS.down), h("span"));
  #notice = h("p", { id: "notice", part: "notice", hidden: true }, h("span", { class: "pulse", "aria-hidden": "true" }), h("span"), " ",
    h("button", { type: "button", class: "link", click: () => this.#talk?.reconnect() }));
  #problem = h("p", { id: "problem", part: "problem", role: "alert", hidden: true });
  #field = h("textarea", { id: "message", part: "field", rows: 1, dir: "auto", autocomplete: "off",
    input: () => this.#typed(), keydown: (/** @type {KeyboardEvent} */ event) => this.#key(event) });
  /** @type {{signIn: boolean} | null} */ #foreign = null;
  #stop = h("button", { type: "button", id: "stop", part: "stop", class: "round", hidden: true, click: () => this.#stopped() }, icon(ICONS.stop));
  #send = h("button", { id: "send", part: "send", class: "round" }, icon(ICONS.send));
  #whose = h("p", { id: "whose", class: "fine", dir: "auto", hidden: true });
  #form = h("form", { id: "form", part: "form", submit: (/** @type {Event} */ event) => this.#submit(event) }, this.#field, this.#stop, this.#send);
  #status = h("p", { id: "status", class: "quiet", role: "status" });
  #follow = new Follow(this.#scroll, this.#content, (pinned) => (this.#latest.hidden = pinned));

  /** The id of the session that is open; empty before the first message. */
  get session() {
    return this.getAttribute("session") ?? "";
  }
  set session(session) {
    this.reflect("session", session);
  }

  /** The name of the agent that answers in sessions that begin here; the server's first one if empty. */
  get agent() {
    return this.getAttribute("agent") ?? "";
  }
  set agent(agent) {
    this.reflect("agent", agent);
  }

  /** What of a long answer is kept in view: `start`, or its end if empty. */
  get follow() {
    return this.getAttribute("follow") ?? "";
  }
  set follow(place) {
    this.reflect("follow", place);
  }

  /** Send a message, as if it had been typed. @param {string} text */
  send(text) {
    this.#complain("");
    const begins = this.#talk === null;
    const talk = this.#talk ?? this.#make(draw());
    talk.send(text, begins);
    if (begins) {
      this.#talk = talk;
      this.session = talk.session;
      this.#restore();
      void talk.open();
      this.tell("legato-session", talk.session);
    }
    this.#toSent();
    this.#paintSoon();
  }

  /** Ask the answer that is being given to stop. */
  stop() {
    return this.#talk?.stop();
  }

  /** Have the last message answered anew. @param {import("./turn.js").Turn} turn */
  again(turn) {
    this.focus();
    this.#toSent();
    return this.#talk?.again(turn);
  }

  #toSent() {
    this.#sent = true;
    this.#follow.toEnd();
  }

  /** What the agent of this conversation is called. */
  get agentName() {
    return this.#talk?.conversation.agent || this.agent || this.word("agentName");
  }

  /** Whether this visitor may `send`, `cancel`, `answer` here. @param {string} action */
  may(action) {
    return this.#talk?.about.may?.includes(action) ?? true;
  }

  /** The name of who asked, if it is another than this visitor, and known. @param {import("./turn.js").Turn} turn */
  other({ author }) {
    const { id, you } = this.#talk?.about ?? {};
    return author === null || id === undefined || author === you ? "" : plain(author);
  }

  /** Who asked; no name where it may be one of several. @param {import("./turn.js").Turn} turn */
  asker(turn) {
    const owner = this.#talk?.about.owner;
    const mine = turn.author !== null || turn.key !== undefined || owner === undefined;
    return this.other(turn) || (mine ? this.word("you") : this.may("send") ? this.word("message") : plain(owner));
  }

  /** Into the message field, if there is one. */
  focus() {
    if (this.#form.hidden) return this.#scroll.focus({ preventScroll: true });
    this.#field.focus({ preventScroll: true });
  }

  get inside() {
    return this.ownRoot; // wherever it stands: it is a box of its own
  }

  connectedCallback() {
    super.connectedCallback();
    addEventListener("beforeprint", this.#whole);
    if (this.#talk !== null && this.#talk.session === this.session && this.#asked === this.server) return this.#follow.back(); // it was moved
    if (!this.#built) this.#build();
    this.wordsChanged();
    this.#open();
  }

  /** On paper there is nowhere to go further up. */
  #whole = () => {
    while (this.#first > 0) this.#showEarlier();
  };

  disconnectedCallback() {
    super.disconnectedCallback();
    removeEventListener("beforeprint", this.#whole);
    queueMicrotask(() => this.isConnected || this.#close()); // it may be on its way to another place
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (this.isConnected && this.#built && before !== now && (name !== "session" || this.session !== (this.#talk?.session ?? ""))) this.#open();
  }

  #build() {
    this.#built = true;
    const foot = h("div", { id: "foot" }, this.#latest, this.#notice, this.#problem, this.#whose, this.#form, h("slot", { name: "footer" }));
    this.#field.enterKeyHint = media(GLASS) ? "enter" : "send";
    this.ownRoot.append(this.#skip, this.#scroll, foot, this.#status);
    this.#nearing = nearing(([each]) => each.isIntersecting && this.#showEarlier(), { root: this.#scroll, rootMargin: "600px" });
    this.#nearing.observe(this.#earlier);
  }

  wordsChanged() {
    /** @type {[Element, string, string][]} */
    const labels = [[this.#scroll, "aria-label", "conversation"], [this.#field, "aria-label", "message"], [this.#field, "placeholder", "placeholder"],
      [this.#send, "aria-label", "send"], [this.#send, "title", "send"]];
    for (const [element, attribute, word] of labels) element.setAttribute(attribute, this.word(word));
    /** @type {[Element, string][]} */
    const texts = [[this.#skip, "skip"], [this.#earlier, "earlier"], [this.#welcome, "welcome"], [this.#latest.lastChild, "latest"], [this.#notice.children[1], "reconnecting"], [this.#notice.lastChild, "tryNow"]];
    for (const [element, word] of texts) element.textContent = this.word(word);
    this.#forget();
    this.#paintSoon();
  }

  // What is open -----------------------------------------------------------------------------------------------------

  #open() {
    this.#close();
    this.#complain("");
    this.#notice.hidden = true;
    this.#say("");
    this.#forget();
    this.#first = 0;
    this.#follow.toEnd();
    this.#talk = this.session === "" ? null : this.#make(this.session);
    if (this.#talk !== null) this.#running = undefined;
    this.#restore();
    this.#paintSoon();
    void this.#talk?.open();
    bringLeft(this.server, this.#memory, this.session, () => this.tell("legato-change"), () => this.session === "" && this.#restore());
  }

  #close() {
    this.#talk?.close();
    this.#talk = null;
  }

  get #memory() {
    return new Memory(this.server.baseUrl);
  }

  /** @param {string} session */
  #make(session) {
    this.#asked = this.server;
    this.server.foreign = (error) => this.#outside(error);
    /** @type {Talk} */
    const talk = new Talk(session, { server: this.server, memory: this.#memory, agent: this.agent || null }, {
      turn: (turn) => talk === this.#talk && (this.#dirty.add(turn), this.#paintSoon()),
      reset: () => talk === this.#talk && this.#reset(),
      connection: (state) => talk === this.#talk && this.#connection(state),
      problem: (word, values) => talk === this.#talk && this.#complain(this.word(word, values)),
      asked: (data) => this.#say(`${data.title ?? this.word("permission")}: ${data.message ?? data.description}`),
      ended: (turn) => this.#say(turn.state === "failed" ? `${this.word("failed")} ${turn.error}` : this.word(turn.state === "stopped" ? "wasStopped" : turn.lack || "complete")),
      unsent: (exists, reason) => this.#unsent(talk, exists, reason),
      changed: () => this.tell("legato-change"),
    });
    return talk;
  }

  /** Who answers in the server's place; null: it does itself. @param {{signIn: boolean} | null} error */
  #outside(error) {
    if (!error === !this.#foreign) return;
    this.#foreign = error;
    this.#complain(error ? this.word(error.signIn ? "signedOut" : "foreign") : "");
    if (error?.signIn) this.#problem.append(" ", h("button", { class: "link", click: () => location.reload() }, this.word("signIn")));
  }

  /** @param {Talk} talk @param {boolean} exists @param {string} reason */
  #unsent(talk, exists, reason) {
    const here = talk === this.#talk;
    if (here && !exists) {
      this.session = "";
      this.tell("legato-session", "");
    } else if (here || this.session === "") this.#restore();
    if (here) this.#complain(this.word("notSent", { reason }));
  }

  /** @param {import("./resume.js").State} state */
  #connection(state) {
    if (state === "connecting") return;
    this.#notice.hidden = state !== "waiting";
    if (state === "waiting") this.#say(this.word("reconnecting"));
    else if (this.#status.textContent === this.word("reconnecting")) this.#say("");
  }

  // Painting: at most once per frame ---------------------------------------------------------------------------------

  #paintSoon() {
    this.#frame ||= requestAnimationFrame(() => this.#paint());
  }

  #reset() {
    const turns = this.#talk?.conversation.turns ?? [];
    const shown = turns.findIndex((turn) => this.#views.has(turn));
    this.#first = shown < 0 ? Math.max(turns.length - PAGE, 0) : Math.min(this.#first, shown);
    for (const [turn, view] of this.#views) {
      if (turns.includes(turn)) continue;
      view.element.remove();
      this.#views.delete(turn);
    }
    turns.slice(this.#first).forEach((turn) => this.#dirty.add(turn));
    this.#paintSoon();
  }

  #forget() {
    this.#turns.replaceChildren();
    this.#views.clear();
    this.#talk?.conversation.turns.forEach((turn) => this.#dirty.add(turn));
  }

  #showEarlier() {
    const turns = this.#talk?.conversation.turns ?? [];
    const end = this.#first;
    if (end === 0) return void this.#readEarlier();
    this.#first = Math.max(end - PAGE, 0);
    turns.slice(this.#first, end).forEach((turn) => this.#dirty.add(turn));
    this.#paint();
    this.#look();
  }

  /** What the server has not given yet, since a page of its has only so many bytes. */
  async #readEarlier() {
    const talk = this.#talk;
    const conversation = talk?.conversation;
    const before = conversation?.turns[0];
    const count = await talk?.before();
    if (talk !== this.#talk || conversation !== talk?.conversation || count === null || count === undefined) return;
    this.#first += count;
    if (before) this.#dirty.add(before);
    this.#paint();
    if (count > 0) this.#showEarlier();
    else this.#look();
  }

  /** It may be near still, of which one is told only once. */
  #look() {
    this.#nearing?.unobserve(this.#earlier);
    this.#nearing?.observe(this.#earlier);
  }

  #paint() {
    this.#frame = 0;
    this.#follow.look();
    const turns = this.#talk?.conversation.turns ?? [];
    const last = turns[turns.length - 1];
    turns.slice(this.#first).forEach((turn, at) => this.#place(turn, at, turn === last));
    this.#dirty.clear();
    this.#earlier.hidden = (this.#first === 0 && !this.#talk?.more) || turns.length === 0;
    this.#empty.hidden = !(this.#talk === null || (this.#talk.loaded && turns.length === 0));
    this.#turns.hidden = turns.length === 0;
    this.#showRunning(this.#talk?.running);
    this.#showWhose();
    const view = this.#views.get(last);
    if (this.#sent && view && this.follow === "start") this.#follow.toStart(view.element);
    else this.#follow.keep();
    this.#sent &&= !view;
  }

  /** @param {import("./turn.js").Turn} turn @param {number} at @param {boolean} last */
  #place(turn, at, last) {
    let view = this.#views.get(turn);
    const same = view !== undefined && !this.#dirty.has(turn) && last === view.last;
    if (view === undefined) this.#views.set(turn, (view = new TurnView(turn, this)));
    if (this.#turns.children[at] !== view.element) this.#turns.insertBefore(view.element, this.#turns.children[at] ?? null);
    if (same) return;
    view.last = last;
    view.update();
  }

  /** @param {import("./turn.js").Turn | undefined} turn */
  #showRunning(turn) {
    const label = this.word(turn?.state === "stopping" ? "stopping" : "stop");
    this.#stop.hidden = turn === undefined || !this.may("cancel");
    this.#stop.disabled = turn?.state === "stopping";
    this.#stop.setAttribute("aria-label", label);
    this.#stop.title = label;
    this.#turns.setAttribute("aria-busy", String(turn !== undefined));
    const running = turn !== undefined;
    const step = turn?.state === "waiting" ? turn.waits : "generating";
    if (running && step !== this.#step) this.#say(this.word(step));
    this.#step = running ? step : "";
    if (running === this.#running) return;
    const { loaded = true, conversation } = this.#talk ?? {};
    if (this.#running === undefined && !running && !(loaded && conversation?.turns.every((each) => each.ended))) return;
    this.#running = running;
    this.tell("legato-state", { running });
  }

  /** Whose it is, and whether one may only watch. */
  #showWhose() {
    const writes = this.may("send");
    const owner = this.#talk?.about.owner;
    if (!writes && this.#field.matches(":focus")) this.#scroll.focus(/** @type {FocusOptions} */ ({ preventScroll: true, focusVisible: false }));
    this.#field.hidden = this.#send.hidden = this.#skip.hidden = !writes;
    this.#form.hidden = !writes && this.#stop.hidden;
    this.#whose.hidden = writes && owner === undefined;
    const said = [owner === undefined ? "" : this.word("chatOf", { owner: plain(owner) }), writes ? "" : this.word("readOnly")];
    write(this.#whose, said.filter(Boolean).join(" "));
  }

  #toLatest() {
    this.#follow.toEnd();
    this.#scroll.focus({ preventScroll: true });
  }

  /** For those who listen: one sentence for each step, never the tokens. @param {string} text */
  #say(text) {
    if (this.#status.textContent !== text) this.#status.textContent = text;
  }

  /** @param {string} text */
  #complain(text) {
    this.#problem.hidden = text === "";
    this.#problem.textContent = text;
  }

  // The field --------------------------------------------------------------------------------------------------------

  #restore() {
    this.#field.value = this.#memory.draft(this.session);
    this.#grow();
  }

  #typed() {
    this.#memory.keep(this.session, this.#field.value);
    this.#grow();
  }

  #grow() {
    this.#send.disabled = this.#field.value.trim() === "";
    this.#field.style.height = "auto";
    if (this.#field.value !== "") this.#field.style.height = `${this.#field.scrollHeight}px`;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    // While an input method composes, Enter chooses a word; Safari reports that only by the key code 229.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    if (media(GLASS) && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.#form.requestSubmit();
  }

  /** @param {Event} event */
  #submit(event) {
    event.preventDefault();
    const text = this.#field.value;
    if (text.trim() === "") return;
    this.#field.value = "";
    this.#typed();
    this.send(text);
  }

  #stopped() {
    this.focus();
    void this.stop();
  }
}
