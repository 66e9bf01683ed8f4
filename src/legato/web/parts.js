/** How each kind of part of an answer looks: text, thinking, a tool call, a question to the user. */
import { h, plain, write } from "./dom.js";
import { fits } from "./errors.js";

/** @typedef {import("./chat.js").LegatoChat} Chat */
/** @typedef {{element: HTMLElement, update: (part: any, turn: any) => void}} PartView */

/** @type {Record<string, (part: any, chat: Chat) => PartView>} */
export const PARTS = {
  text: () => {
    const element = h("legato-in-progress-message");
    /** @param {any} part @param {any} turn */
    const update = (part, turn) => {
      element.ended = turn.ended || turn.parts[turn.parts.length - 1] !== part;
      element.text = part.text;
    };
    return { element, update };
  },

  thinking: (part, chat) => {
    const text = document.createTextNode("");
    const element = h("details", { class: "thinking", part: "thinking" },
      h("summary", {}, chat.word("thinking")), h("div", { dir: "auto" }, text));
    /** @param {any} part */
    const update = (part) => part.text.length > text.length && text.appendData(part.text.slice(text.length));
    return { element, update };
  },

  tool: (part, chat) => {
    const name = h("code");
    const state = h("span", { class: "fine" });
    const input = h("pre", { tabindex: 0, dir: "ltr" });
    const result = h("pre", { tabindex: 0, dir: "auto" });
    const output = h("div", {}, h("p", { class: "fine" }, chat.word("result")), result);
    const element = h("details", { class: "tool", part: "tool", toggle: () => show() },
      h("summary", {}, `${chat.word("tool")} `, name, " ", state), h("p", { class: "fine" }, chat.word("input")), input, output);
    let now = part;
    // Built only while it is seen: the arguments of a tool may be long, and they grow.
    const show = () => {
      if (!element.open) return;
      input.textContent = now.state === "calling" ? now.input : pretty(now.input);
      result.textContent = pretty(now.result);
    };
    /** @param {any} part */
    const update = (part) => {
      now = part;
      element.dataset.state = part.state;
      name.textContent = plain(part.name);
      // What it said of its progress is not in the history, so it goes when the tool is done.
      const progress = part.state === "running" && part.progress;
      state.textContent = progress ? `${progress}…` : chat.word(part.state === "failed" ? "toolFailed" : part.state);
      output.hidden = part.result === "";
      show();
    };
    return { element, update };
  },

  permission: (part, chat) => asking("permission", part, chat, (act) => ["grant", "deny"].map((verb) =>
    h("button", { type: "button", class: verb, part: verb, click: act(async () => {
      const answer = await chat.server.request("POST", `api/permissions/${encodeURIComponent(part.id)}/${verb}`, undefined, undefined, fits.resolved);
      return answer.granted ?? !answer.denied ? "allowed" : "denied";
    }) }, chat.word(verb === "grant" ? "allow" : "deny")))),

  notification: (part, chat) => asking("notification", part, chat, (act) => {
    const { choices = [], responseType } = part.data;
    /** @param {string} type @param {() => string} [value] */
    const respond = (type, value) => async () => {
      await chat.server.request("POST", `api/notifications/${encodeURIComponent(part.id)}/respond`, { type, value: value?.() }, undefined, fits.nothing);
      return value?.() ?? "done";
    };
    if (responseType === "choice") {
      return choices.map((/** @type {string} */ choice) =>
        h("button", { type: "button", dir: "auto", click: act(respond("choice", () => choice)) }, plain(choice)));
    }
    if (responseType === "text") {
      const field = h("input", { "aria-label": chat.word("yourAnswer"), dir: "auto" });
      return [h("form", { submit: act(respond("text", () => field.value)) }, field, h("button", {}, chat.word("answer")))];
    }
    return [h("button", { type: "button", click: act(respond("acknowledge")) }, chat.word("ok"))];
  }),
};

/** @param {string} text */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/**
 * A question of the agent: buttons, or what was answered.
 * @param {string} kind @param {any} part @param {Chat} chat
 * @param {(act: (action: () => Promise<string>) => (event: Event) => void) => Node[]} choices
 * @returns {PartView}
 */
function asking(kind, part, chat, choices) {
  const { data } = part;
  const body = h("div", { class: "choices" });
  const others = h("p", { class: "fine" }, chat.word("othersAnswer"));
  const note = h("p", { class: "fine", role: "alert" });
  const said = h("p", { class: "fine answered" });
  const title = data.title ?? chat.word("mayUse", { tool: String(data.toolName).replaceAll("\n", " ") });
  const element = h("section", { class: "ask", part: "ask", "data-kind": data.notificationType ?? kind, "aria-label": chat.word(kind) },
    h("p", { class: "title", dir: "auto" }, plain(title)),
    h("p", { dir: "auto" }, plain(data.message ?? data.description)),
    data.path && h("p", { class: "fine" }, h("code", {}, plain(data.path))),
    data.params && h("details", {}, h("summary", {}, chat.word("details")), h("pre", { tabindex: 0 }, plain(JSON.stringify(data.params, null, 2)))),
    body, others, note);
  /** @param {boolean} disabled */
  const disable = (disabled) => body.querySelectorAll("button, input").forEach((/** @type {any} */ each) => (each.disabled = disabled));
  /** @param {() => Promise<string>} action @returns {(event: Event) => Promise<void>} */
  const act = (action) => async (event) => {
    event.preventDefault();
    const focused = body.contains(event.target);
    disable(true);
    try {
      const answer = await action();
      part.answer ??= answer; // the log may have been faster
    } catch (/** @type {any} */ error) {
      if (error.status === 404) part.answer ??= "over";
      else note.textContent = error.message;
    }
    disable(false);
    update(part);
    if (focused && part.answer !== null) chat.focus();
  };
  /** @param {any} part */
  const update = ({ answer }) => {
    body.hidden = !chat.may("answer");
    others.hidden = !body.hidden || answer !== null;
    if (answer === null || element.dataset.answer === answer) return;
    element.setAttribute("data-answer", answer);
    const word = { allowed: "allowed", denied: "denied", over: "over", done: "answered" }[String(answer)] ?? "answeredWith";
    write(said, chat.word(word, { answer }));
    body.replaceWith(said);
  };
  body.append(...choices(act));
  return { element, update };
}
