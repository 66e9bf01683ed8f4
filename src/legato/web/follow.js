/**
 * Keeps the end of a growing text in view until its reader goes up, which what the reader does tells: text that is set
 * anew may move the page by itself.
 */

const UP = new Set(["ArrowUp", "PageUp", "Home"]);
const NEAR = 40; // pixels from the end that count as the end

export class Follow {
  /** Whether the end is kept in view. */
  pinned = true;
  #box;
  #changed;
  #touched = 0;
  #top = 0;
  #dragging = false;

  /** @param {HTMLElement} box that scrolls @param {HTMLElement} content that grows in it @param {(pinned: boolean) => void} changed */
  constructor(box, content, changed) {
    this.#box = box;
    this.#changed = changed;
    const passive = { passive: true };
    box.addEventListener("wheel", (event) => event.deltaY < 0 && this.#pause(), passive);
    box.addEventListener("touchstart", (event) => (this.#touched = event.touches[0].clientY), passive);
    box.addEventListener("touchmove", (event) => event.touches[0].clientY > this.#touched + 4 && this.#pause(), passive);
    box.addEventListener("keydown", (event) => {
      const typing = /** @type {Element} */ (event.composedPath()[0]).localName === "input";
      if (!typing && (UP.has(event.key) || (event.key === " " && event.shiftKey))) this.#pause();
    });
    // The scroll bar is the box's own; a press on it has no other target.
    box.addEventListener("pointerdown", (event) => (this.#dragging = event.target === box));
    addEventListener("pointerup", () => (this.#dragging = false));
    box.addEventListener("focusin", () => requestAnimationFrame(() => this.#below() > box.clientHeight && this.#pause()));
    box.addEventListener("scroll", () => this.#scrolled(), passive);
    const sizes = new ResizeObserver(() => this.pinned && this.toEnd());
    sizes.observe(box);
    sizes.observe(content);
  }

  /** Go to the end, and stay there. */
  toEnd() {
    this.#box.scrollTop = this.#box.scrollHeight;
    this.#set(true);
  }

  #below() {
    return this.#box.scrollHeight - this.#box.clientHeight - this.#box.scrollTop;
  }

  #pause() {
    if (this.#box.scrollHeight > this.#box.clientHeight && this.#box.scrollTop > 0) this.#set(false);
  }

  #scrolled() {
    const below = this.#below();
    const { scrollTop } = this.#box;
    if (this.#dragging && below > NEAR) this.#set(false);
    else if (below < 2 && scrollTop > this.#top) this.#set(true); // gone back to the end
    this.#top = scrollTop;
  }

  /** @param {boolean} pinned */
  #set(pinned) {
    if (pinned === this.pinned) return;
    this.pinned = pinned;
    this.#changed(pinned);
  }
}
