/**
 * Keeps the end of a growing text in view until its reader goes elsewhere: any place that we have not set is the reader's
 * will, whatever led there (a wheel, a search, a selection). From then on what is in view stays there, whatever grows above
 * it; browsers do not all see to that themselves.
 */
import { sizes } from "./dom.js";

const NEAR = 24; // pixels above the end at which who comes down is back at it
const LAG = 500; // milliseconds after which what was the end is it no more for who goes there
const UP = new Set(["ArrowUp", "PageUp", "Home"]);

export class Follow {
  /** Whether the end is kept in view. */
  pinned = true;
  #box;
  #content;
  #changed;
  #touched = 0;
  #top = 0; // where we have put it, or the reader has
  #end = 0; // how far it could be scrolled then
  /** And how far before, on the reader's way down: once and twice `LAG` ago at most. Keys and wheels go slowly to where the end was. */
  #ends = [0, 0];
  #since = 0;
  #held = false; // a button is pressed in it, so nothing moves below it
  /** @type {Element | null} */ #stop = null; // not further than to the start of this
  /** @type {{element: Element, top: number} | null} */ #anchor = null;

  /** @param {HTMLElement} box that scrolls @param {HTMLElement} content that grows in it @param {(pinned: boolean) => void} changed */
  constructor(box, content, changed) {
    this.#box = box;
    this.#content = content;
    this.#changed = changed;
    const passive = { passive: true };
    // What is done away from this thread is told late, and would be undone meanwhile.
    box.addEventListener("wheel", (event) => event.deltaY < 0 && this.#pause(), passive);
    box.addEventListener("touchstart", (event) => (this.#touched = event.touches[0].clientY), passive);
    box.addEventListener("touchmove", (event) => event.touches[0].clientY > this.#touched + 4 && this.#pause(), passive);
    box.addEventListener("keydown", (event) => {
      const typing = /** @type {Element} */ (event.composedPath()[0]).localName === "input";
      if (!typing && (UP.has(event.key) || (event.key === " " && event.shiftKey))) this.#pause();
    });
    box.addEventListener("pointerdown", () => (this.#held = true), passive);
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => this.#held && this.#let(), passive);
    box.addEventListener("scroll", () => this.#scrolled(), passive);
    const observer = sizes(() => this.keep());
    observer.observe(box);
    observer.observe(content);
  }

  /** Go to the end, and stay there. */
  toEnd() {
    this.#stop = null;
    this.#set(true);
    this.#go(this.#box.scrollHeight);
  }

  /** Follow until the start of this is at the top. @param {Element} element */
  toStart(element) {
    this.toEnd();
    this.#stop = element;
    this.keep();
  }

  /** The content has changed, or the box: what was in view is to be in view. */
  keep() {
    if (this.#held) return;
    this.look();
    if (this.pinned) this.#follow();
    else if (this.#anchor?.element.isConnected) this.#move(this.#from(this.#anchor.element) - this.#anchor.top);
  }

  /** So much has been put in above what is in view. @param {number} by */
  #move(by) {
    this.#ends = this.#ends.map((end) => end + by);
    this.#go(this.#box.scrollTop + by);
  }

  /** The box has been moved in the document, and forgotten its place. */
  back() {
    this.#go(this.pinned ? this.#box.scrollHeight : this.#top);
  }

  /** Look where the reader is, before the content is changed: browsers tell of it later. */
  look() {
    if (Math.abs(this.#box.scrollTop - this.#top) > 1) this.#scrolled();
  }

  #follow() {
    const room = this.#stop === null ? Infinity : this.#from(this.#stop);
    if (room >= this.#below()) return this.#go(this.#box.scrollHeight);
    this.#stop = null;
    this.#go(this.#box.scrollTop + room);
    this.#set(false);
  }

  #below() {
    return this.#box.scrollHeight - this.#box.clientHeight - this.#box.scrollTop;
  }

  /** How far below the top of the box an element begins. @param {Element} element */
  #from(element) {
    return element.getBoundingClientRect().top - this.#box.getBoundingClientRect().top;
  }

  /** @param {number} top */
  #go(top) {
    if (Math.abs(top - this.#box.scrollTop) >= 1) this.#box.scrollTop = top;
    this.#saw();
  }

  #saw() {
    const { scrollTop, scrollHeight, clientHeight } = this.#box;
    this.#top = scrollTop;
    const now = performance.now();
    if (now - this.#since > LAG) [this.#ends, this.#since] = [[this.#end, this.#ends[0]], now];
    this.#end = scrollHeight - clientHeight;
  }

  /** Whoever goes down from now on has not gone to an end of before. */
  #begin() {
    this.#ends = [this.#end, this.#end];
    this.#since = performance.now();
  }

  #pause() {
    if (this.#box.scrollHeight > this.#box.clientHeight && this.#box.scrollTop > 0) this.#set(false);
  }

  #let() {
    this.#held = false;
    this.keep();
  }

  #scrolled() {
    const below = this.#below();
    const { scrollTop } = this.#box;
    const up = scrollTop < this.#top;
    if (this.pinned && Math.abs(scrollTop - this.#top) > 1 && below > 1) this.#set(false);
    else if (scrollTop > this.#top && (below < NEAR || scrollTop > this.#ends[1] - NEAR)) this.#set(true); // back at the end
    this.#saw();
    if (up) this.#begin();
    if (!this.pinned) this.#mark(); // else each piece of an answer would look through the page
  }

  /** Remember what is at the top, as small as it can be told. */
  #mark() {
    /** @type {Element | undefined} */
    let next = this.#content;
    /** @type {Element} */
    let element = this.#content;
    const { top } = this.#box.getBoundingClientRect();
    while (next !== undefined) {
      element = next;
      next = [...(element.shadowRoot ?? element).children].find((each) => {
        const { bottom, height } = each.getBoundingClientRect();
        return height > 0 && bottom > top && !getComputedStyle(each).display.startsWith("inline"); // a line's parts move
      });
    }
    this.#anchor = { element, top: this.#from(element) };
  }

  /** @param {boolean} pinned */
  #set(pinned) {
    if (pinned === this.pinned) return;
    this.pinned = pinned;
    if (!pinned) {
      this.#begin();
      this.#mark();
    }
    this.#changed(pinned);
  }
}
