/** The list of chats: newest first, the rest on demand, in step with the other tabs. */
import { h } from "./dom.js";
import { fits } from "./errors.js";

const PAGE = 40;

/**
 * @param {import("./server.js").Server} server
 * @param {{list: HTMLElement, older: HTMLButtonElement, sure: HTMLDialogElement}} elements
 * @param {{visit: (event: MouseEvent, id: string | null) => void, erased: (id: string) => void, failed: (text: string) => void, listed: () => void}} on
 */
export function sessions(server, { list, older, sure }, on) {
  /** @type {any[]} */ let known = [];
  let open = "";
  const others = new BroadcastChannel("legato");
  others.addEventListener("message", () => void load());
  older.addEventListener("click", () => void load(known[known.length - 1]?.updatedAt));

  /** @param {any} session @returns {string} */
  const title = (session) => session.title || session.firstUserMessage || "Untitled chat";

  /** @param {string} [before] a time: list on from there */
  async function load(before) {
    try {
      const page = await server.request("GET", `api/sessions?limit=${PAGE}${before ? `&before=${encodeURIComponent(before)}` : ""}`, undefined, undefined, fits.list);
      known = before ? [...known, ...page] : page;
      older.hidden = page.length < PAGE;
    } catch (/** @type {any} */ error) {
      return on.failed(error.message);
    }
    list.replaceChildren(...known.map((each) => h("li", { "data-id": each.id },
      h("a", { href: `?session=${encodeURIComponent(each.id)}`, dir: "auto", click: (/** @type {MouseEvent} */ event) => on.visit(event, each.id) }, title(each)),
      h("button", { type: "button", class: "plain", "aria-label": `Delete ${title(each)}`, title: "Delete", click: () => ask(each) }, "×"))));
    mark(open);
  }

  /** Ask before a chat is deleted. @param {any} session */
  function ask(session) {
    /** @type {HTMLElement} */ (sure.querySelector("p")).textContent = title(session);
    sure.returnValue = "";
    sure.onclose = async () => {
      if (sure.returnValue !== "delete") return;
      try {
        await server.request("DELETE", `api/sessions/${session.id}`, undefined, undefined, fits.nothing);
      } catch (/** @type {any} */ error) {
        if (error.status !== 404) return on.failed(error.message);
      }
      on.erased(session.id); // only now: this tab may be the one that tells the others
      changed();
    };
    sure.showModal();
  }

  /** Something in it is no longer so, here or in another tab. */
  function changed() {
    others.postMessage("sessions");
    void load();
  }

  /** Show which one is open. @param {string} id */
  function mark(id) {
    open = id;
    for (const item of list.children) {
      const link = /** @type {Element} */ (item.firstElementChild);
      if (/** @type {HTMLElement} */ (item).dataset.id === id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    on.listed();
  }

  /** @param {string} id @returns {string | undefined} */
  const named = (id) => {
    const session = known.find((each) => each.id === id);
    return session && title(session);
  };

  return { load, changed, mark, named };
}
