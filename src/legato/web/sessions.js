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
  /** @type {any} One that is open and not in the list. */ let extra = null;
  let open = "";
  let first = true; // the list has not come yet
  let further = false;
  /** @type {Promise<void>} Ends with the list that is asked for last. */ let last = Promise.resolve();
  /** @type {Promise<void> | null} One that has not begun, and serves all who ask until then. */ let queued = null;
  /** @type {BroadcastChannel | null} */ let others = null;
  try {
    others = new BroadcastChannel("legato");
    others.onmessage = () => void load();
  } catch {
    // The browser may keep nothing of this site, and lets its tabs not talk.
  }
  older.addEventListener("click", () => void load(true));

  /** @param {any} session @returns {string} */
  const title = (session) => session.title || session.firstUserMessage || "Untitled chat";

  /** List anew, as far as the list goes; with `more`, a page further. One after the other: an older answer replaces no newer one. */
  function load(more = false) {
    further ||= more;
    const begin = () => {
      const goes = further;
      [further, queued] = [false, null];
      return renew(goes);
    };
    return queued ??= last = last.then(begin, begin);
  }

  /** @param {boolean} more */
  async function renew(more) {
    const wanted = known.length + (more ? PAGE : 0);
    /** @type {any[]} */ let next = [];
    try {
      for (let page; !page || (page.length === PAGE && next.length < wanted); next = [...next, ...page]) {
        const before = next.length ? `&before=${encodeURIComponent(next[next.length - 1].updatedAt)}` : "";
        page = await server.request("GET", `api/sessions?limit=${PAGE}${before}`, undefined, undefined, fits.list);
        older.hidden = page.length < PAGE;
      }
    } catch (/** @type {any} */ error) {
      return on.failed(error.message);
    }
    known = next;
    const focused = [...list.children].findIndex((each) => each.contains(document.activeElement));
    const id = /** @type {HTMLElement | undefined} */ (list.children[focused])?.dataset.id;
    const name = known.some((each) => each.id === id) ? document.activeElement?.localName : "a";
    list.replaceChildren(...known.map((each) => h("li", { "data-id": each.id },
      h("a", { href: `?session=${encodeURIComponent(each.id)}`, dir: "auto", click: (/** @type {MouseEvent} */ event) => on.visit(event, each.id) }, title(each), each.owner && h("bdi", { class: "fine" }, each.owner)),
      each.may && !each.may.includes("change") ? null : h("button", { type: "button", class: "plain", "aria-label": `Delete ${title(each)}`, title: "Delete", click: () => ask(each) }, "×"))));
    /** @type {HTMLElement | undefined | null} */ (list.children[Math.min(focused, known.length - 1)]?.querySelector(name ?? "a"))?.focus();
    const begins = first;
    first = false;
    if (begins) void look(open);
    else mark(open);
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
      await changed();
      if (document.activeElement === document.body) list.querySelector("a")?.focus();
    };
    sure.showModal();
  }

  /** Something in it is no longer so, here or in another tab. */
  function changed() {
    others?.postMessage("sessions");
    return load();
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

  /** It is opened, and may be further down than the list goes. @param {string} id */
  async function look(id) {
    mark(id);
    if (id === "" || first || named(id) !== undefined || id === extra?.id) return;
    extra = { id };
    const found = await server.request("GET", `api/sessions/${encodeURIComponent(id)}`, undefined, undefined, fits.session).catch(() => null);
    if (found === null || extra.id !== id) return;
    extra = found;
    on.listed();
  }

  /** @param {string} id @returns {string | undefined} */
  function named(id) {
    const session = known.find((each) => each.id === id) ?? (extra?.createdAt && extra.id === id ? extra : undefined);
    return session && title(session);
  }

  return { load, changed, mark, look, named };
}
