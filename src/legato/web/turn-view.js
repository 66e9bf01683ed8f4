/** A turn on the page: what was asked, the parts of the answer, and what can be done with it. */
import { breakable, h, write } from "./dom.js";
import { copyButton } from "./message.js";
import { PARTS } from "./parts.js";

export class TurnView {
  /** @type {Map<string, import("./parts.js").PartView>} */ #parts = new Map();
  #state = "";
  #asked = "";
  #asking = false; // whether the answer is to be replaced
  #sending = h("p", { class: "fine state" });
  #answer = h("div", { class: "answer", part: "answer" });
  #foot = h("div", { class: "foot" });
  #other = h("bdi");
  #who = h("p", { class: "fine who", "aria-hidden": "true", hidden: true }, this.#other); // the question is named by it
  #question = h("div", { class: "question", part: "question", role: "article" });
  #said = h("div", { class: "said", role: "article" }, this.#answer, this.#foot);

  /** @param {import("./turn.js").Turn} turn @param {import("./chat.js").LegatoChat} chat */
  constructor(turn, chat) {
    this.turn = turn;
    this.chat = chat;
    this.element = h("div", { class: "turn", part: "turn" }, this.#who, this.#question, this.#sending, this.#said);
  }

  /** Whether no turn comes after it. */
  last = false;

  /** What was asked, which is told late where a page of the history ends behind it. */
  #show() {
    const { turn, chat } = this;
    const asker = chat.asker(turn);
    write(this.#other, chat.other(turn));
    this.#who.hidden = this.#other.textContent === "";
    const asked = `${turn.text} ${turn.files.length} ${asker}`;
    if (asked === this.#asked) return;
    this.#asked = asked;
    this.#question.hidden = !turn.text && turn.files.length === 0;
    this.#question.setAttribute("aria-label", asker);
    const files = turn.files.map((file) => Object.assign(h("legato-file"), { session: chat.session, file }));
    this.#question.replaceChildren(...(turn.text ? [h("div", { dir: "auto" }, turn.text)] : []), ...(files.length ? [h("div", { class: "files" }, ...files)] : []));
    breakable(this.#question);
  }

  update() {
    const { turn, chat, last } = this;
    this.#show();
    for (const part of turn.parts) {
      let view = this.#parts.get(part.key);
      if (view === undefined) {
        this.#parts.set(part.key, (view = PARTS[part.kind](part, chat)));
        this.#answer.append(view.element);
      }
      view.update(part, turn);
    }
    for (const [key, view] of this.#parts) {
      if (turn.parts.some((part) => part.key === key)) continue;
      view.element.remove();
      this.#parts.delete(key);
    }
    const part = turn.parts[turn.parts.length - 1];
    const asked = part !== undefined && "answer" in part && part.answer === null;
    const typing = turn.state === "running" && part?.kind !== "text" && !asked;
    const state = `${turn.state} ${turn.waits} ${typing} ${turn.id} ${last} ${this.#asking} ${chat.agentName} ${chat.may("send")}`;
    if (state === this.#state) return;
    this.#state = state;
    this.#said.setAttribute("aria-label", chat.agentName);
    this.#said.hidden = turn.parts.length === 0 && !typing && !turn.ended; // nothing is said yet
    const waits = turn.state === "waiting" && turn.parts.length === 0;
    this.#sending.textContent = turn.state === "sending" ? chat.word("sending") : waits ? chat.word(turn.waits) : "";
    this.#foot.replaceChildren(...this.#footing(typing));
  }

  /** @param {boolean} typing @returns {Iterable<Node>} */
  *#footing(typing) {
    const { turn, chat, last } = this;
    const again = last && turn.id !== null && chat.may("send") && (() => void chat.again(turn));
    /** @param {string} word @param {string} part @param {() => void} click */
    const button = (word, part, click) => h("button", { type: "button", class: "plain small", part, click }, chat.word(word));
    if (typing) yield h("legato-incoming-message-indicator");
    if (turn.state === "waiting" && turn.parts.length > 0) yield h("p", { class: "fine" }, chat.word(turn.waits));
    if (turn.state === "failed") {
      yield h("legato-message-stream-error", { message: turn.error, final: !again, past: !turn.live, retry: again || null });
    }
    if (!turn.ended) return;
    const word = turn.state === "stopped" ? "stopped" : turn.lack;
    if (word) yield h("p", { class: "fine" }, chat.word(word));
    if (again && word === "cutOff") yield button("goOn", "continue", () => chat.send(chat.word("goOnMessage")));
    if (turn.at) yield time(turn.at);
    const copy = turn.answer && copyButton(chat, "copyAnswer", () => turn.answer);
    if (copy) yield copy;
    if (!again || turn.state === "failed") return;
    if (!this.#asking) return yield button("regenerate", "regenerate", () => this.#ask(true));
    yield h("p", { class: "fine" }, chat.word("replaceAnswer"));
    yield button("replace", "replace", again);
    yield button("keep", "keep", () => this.#ask(false));
  }

  /** Ask, or do not, whether the answer is to go. @param {boolean} asking */
  #ask(asking) {
    this.#asking = asking;
    this.update();
    /** @type {HTMLElement | null} */ (this.#foot.querySelector(asking ? "[part=keep]" : "[part=regenerate]"))?.focus();
  }
}

/** @param {Date} at */
function time(at) {
  const today = at.toDateString() === new Date().toDateString();
  const day = today ? {} : /** @type {const} */ ({ day: "numeric", month: "short" });
  const said = at.toLocaleString([], { ...day, hour: "2-digit", minute: "2-digit" });
  return h("time", { datetime: at.toISOString(), dir: "auto", title: at.toLocaleString() }, said);
}
