/** A turn on the page: what was asked, the parts of the answer, and what can be done with it. */
import { h } from "./dom.js";
import { copyButton } from "./message.js";
import { PARTS } from "./parts.js";

export class TurnView {
  /** @type {Map<string, import("./parts.js").PartView>} */ #parts = new Map();
  #state = "";
  #sending = h("p", { class: "fine state" });
  #answer = h("div", { class: "answer", part: "answer" });
  #foot = h("div", { class: "foot" });

  /** @param {import("./turn.js").Turn} turn @param {import("./chat.js").LegatoChat} chat */
  constructor(turn, chat) {
    this.turn = turn;
    this.chat = chat;
    const question = turn.text && h("div", { class: "question", part: "question", dir: "auto" }, turn.text);
    this.element = h("article", { class: "turn", part: "turn", "aria-label": chat.word("turn") }, question, this.#sending, this.#answer, this.#foot);
  }

  /** Whether no turn comes after it. */
  last = false;

  update() {
    const { turn, chat, last } = this;
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
    const state = `${turn.state} ${turn.waits} ${typing} ${turn.id} ${last}`;
    if (state === this.#state) return;
    this.#state = state;
    this.#sending.textContent = turn.state === "sending" ? chat.word("sending") : turn.state === "waiting" ? chat.word(turn.waits) : "";
    this.#foot.replaceChildren(...this.#footing(typing));
  }

  /** @param {boolean} typing @returns {Iterable<Node>} */
  *#footing(typing) {
    const { turn, chat, last } = this;
    const again = last && turn.id !== null && (() => void chat.again(turn));
    if (typing) yield h("legato-incoming-message-indicator");
    if (turn.state === "failed") {
      yield h("legato-message-stream-error", { message: turn.error, final: !again, past: !turn.live, retry: again || null });
    }
    if (!turn.ended) return;
    if (turn.state === "stopped") yield h("p", { class: "fine" }, chat.word("stopped"));
    if (turn.at) yield time(turn.at);
    const copy = turn.answer && copyButton(chat, "copyAnswer", () => turn.answer);
    if (copy) yield copy;
    if (again && turn.state !== "failed") {
      yield h("button", { type: "button", class: "plain small", part: "regenerate", click: again }, chat.word("regenerate"));
    }
  }
}

/** @param {Date} at */
function time(at) {
  const today = at.toDateString() === new Date().toDateString();
  const day = today ? {} : /** @type {const} */ ({ day: "numeric", month: "short" });
  const said = at.toLocaleString([], { ...day, hour: "2-digit", minute: "2-digit" });
  return h("time", { datetime: at.toISOString(), title: at.toLocaleString() }, said);
}
