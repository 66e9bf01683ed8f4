/** The elements of one streamed answer: before its first words, while it grows, and if it fails. */
import { h } from "./dom.js";
import { LegatoElement } from "./legato-element.js";
import { Prose, Typesetter } from "./prose.js";

/** `<legato-incoming-message-indicator>`: three dots, from the start of a stream to its first words. */
export class LegatoIncomingMessageIndicator extends LegatoElement {
  connectedCallback() {
    super.connectedCallback();
    this.wordsChanged();
  }

  wordsChanged() {
    // Inside a chat, the chat's own status says it.
    const role = this.outer === null ? "status" : null;
    this.inside.replaceChildren(
      h("span", { class: "typing", part: "indicator", role }, h("i"), h("i"), h("i"), h("span", { class: "quiet" }, this.word("typing"))),
    );
  }
}

/**
 * `<legato-in-progress-message>`: a text that grows, as Markdown; it stays when it has ended. Set `text`, or `add` to it;
 * the attribute `ended` says that nothing follows.
 */
export class LegatoInProgressMessage extends LegatoElement {
  static observedAttributes = ["ended"];
  #text = "";
  #due = false;
  /** @type {Prose | null} */ #prose = null;
  #element = h("div", { class: "prose", part: "text" });

  /** All of the text so far. */
  get text() {
    return this.#text;
  }
  set text(text) {
    this.#text = text ?? "";
    this.#update();
  }

  get ended() {
    return this.hasAttribute("ended");
  }
  set ended(ended) {
    this.toggleAttribute("ended", Boolean(ended));
  }

  /** @param {string} delta */
  add(delta) {
    this.text += delta;
  }

  connectedCallback() {
    super.connectedCallback();
    if (this.#prose === null) {
      this.#prose = new Prose(this.#element, typesetter(this.server), (block) => this.#decorate(block));
      this.inside.append(this.#element);
    }
    this.#update();
  }

  attributeChangedCallback() {
    this.#update();
  }

  /** Once for all that is changed in one go. */
  #update() {
    if (this.#due) return;
    this.#due = true;
    queueMicrotask(() => {
      this.#due = false;
      this.#prose?.update(this.#text, this.ended);
    });
  }

  /** Code says its language, can be copied, and be scrolled by the keyboard. @param {DocumentFragment} block */
  #decorate(block) {
    for (const pre of block.querySelectorAll("pre")) {
      const language = pre.dataset.language ?? "";
      pre.tabIndex = 0;
      pre.dir = "ltr";
      const frame = h("div", { class: "code" }, h("div", { class: "bar" }, h("span", {}, language), copyButton(this, "copyCode", () => pre.textContent ?? "")));
      pre.replaceWith(frame);
      frame.append(pre);
    }
    for (const table of block.querySelectorAll("table")) {
      const frame = h("div", { class: "wide", tabindex: 0 });
      table.replaceWith(frame);
      frame.append(table);
    }
  }
}

/** `<legato-message-stream-error message="…">`: why an answer ended early. Fires `retry` when its button is pressed. */
export class LegatoMessageStreamError extends LegatoElement {
  static observedAttributes = ["message", "final"];

  /** Why, for people. */
  get message() {
    return this.getAttribute("message") ?? "";
  }
  set message(message) {
    this.reflect("message", message);
  }

  /** Whether trying again is of no use. */
  get final() {
    return this.hasAttribute("final");
  }
  set final(final) {
    this.toggleAttribute("final", Boolean(final));
  }

  connectedCallback() {
    super.connectedCallback();
    this.wordsChanged();
  }

  attributeChangedCallback() {
    if (this.isConnected) this.wordsChanged();
  }

  /** `final`: no button. `past`: it is part of a history, so it is not called out. */
  wordsChanged() {
    const retry = () => this.tell("retry");
    this.inside.replaceChildren(
      h("div", { class: "error", part: "error", role: this.hasAttribute("past") ? null : "alert" },
        h("span", { class: "sign", "aria-hidden": "true" }, "!"),
        h("p", { dir: "auto" }, h("strong", {}, this.word("failed")), " ", this.message || this.word("failedUnknown")),
        this.final ? null : h("button", { type: "button", part: "retry", click: retry }, this.word("retry"))),
    );
  }
}

/** @type {WeakMap<import("./server.js").Server, Typesetter>} */
const typesetters = new WeakMap();

/** @param {import("./server.js").Server} server */
function typesetter(server) {
  const known = typesetters.get(server) ?? new Typesetter(server);
  typesetters.set(server, known);
  return known;
}

/** @param {LegatoElement} element @param {string} name of its word @param {() => string} text */
export function copyButton(element, name, text) {
  /** @param {string} said */
  const say = (said) => (button.textContent = element.word(said));
  const button = h("button", { type: "button", class: "plain small", part: "copy", click: () => {
    copy(text(), button).then(() => say("copied"), () => say("notCopied"));
    setTimeout(say, 1500, name);
  } }, element.word(name));
  return button;
}

/** @param {string} text @param {HTMLElement} button has the focus again afterwards */
async function copy(text, button) {
  try {
    return await navigator.clipboard.writeText(text);
  } catch {
    // There is none over plain http, and none for a page in another site's frame; there is only this.
  }
  const field = h("textarea", { readonly: true, "aria-hidden": "true" });
  field.value = text;
  field.style.cssText = "position: fixed; opacity: 0";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  button.focus();
  if (!done) throw new Error("The browser copies nothing here.");
}
