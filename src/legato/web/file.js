/** A file that came with a message: an image is shown, whatever else is a link by its name. Only `<legato-chat>` makes it. */
import { at } from "./core.js";
import { h, nearing, plain } from "./dom.js";
import { filed, refusal } from "./errors.js";
import { LegatoElement } from "./legato-element.js";
import { send } from "./request.js";

/** What a browser shows and never runs: no SVG, which is a document. */
const SHOWN = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"]);

/** Bytes of an image that is shown without being asked for. */
const LARGEST = 16 * 2 ** 20;

export class LegatoFile extends LegatoElement {
  session = "";
  /** @type {import("./types.js").Attachment} */ file = {};
  #address = ""; // of the bytes, while they are here
  #life = new AbortController();
  #failed = false;
  /** @type {IntersectionObserver | null} */ #nearing = null;

  connectedCallback() {
    super.connectedCallback();
    this.#life = new AbortController();
    this.wordsChanged();
    if (!this.#shown) return;
    this.#nearing = nearing((seen) => seen.some((each) => each.isIntersecting) && void this.#load());
    this.#nearing.observe(this);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#nearing?.disconnect();
    this.#life.abort();
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = "";
  }

  get #shown() {
    const { type = "", bytes = 0, hash, url = "" } = this.file;
    return SHOWN.has(type) && bytes <= LARGEST && (hash !== undefined || url.startsWith("data:"));
  }

  get #elsewhere() {
    return this.file.hash === undefined && !this.file.url?.startsWith("data:");
  }

  /** What it is called. */
  get #name() {
    const { name, url = "", type = "" } = this.file;
    if (name) return plain(name);
    if (this.#elsewhere) return plain(url.length > 60 ? `${url.slice(0, 59)}…` : url);
    return this.word(type.startsWith("image/") ? "image" : "file");
  }

  wordsChanged() {
    const { type = "", bytes = 0, hash = "", url = "" } = this.file;
    const href = this.#elsewhere ? url : hash ? this.server.url(at`api/sessions/${this.session}/blobs/${hash}`).href : "#";
    const label = [this.#name, type, bytes && size(bytes)].filter(Boolean).join(", ");
    /** @type {HTMLAnchorElement} */
    const link = h("a", { href, part: "file", target: this.#elsewhere || this.#shown ? "_blank" : null, rel: "noopener noreferrer", title: label,
      download: this.#elsewhere || this.#shown ? null : this.#name });
    if (!this.#elsewhere) link.addEventListener("click", (event) => void this.#open(event));
    this.toggleAttribute("image", this.#shown);
    if (this.#shown && this.#address && !this.#failed) {
      link.href = this.#address;
      link.append(h("img", { src: this.#address, alt: this.#name, error: () => this.#fail() }));
    } else {
      const rest = [bytes && size(bytes), this.#failed && this.word("notLoaded")].filter(Boolean).map((each) => ` · ${each}`);
      link.append(h("span", {}, h("bdi", {}, this.#name), ...rest));
    }
    this.inside.replaceChildren(link);
  }

  /** Its bytes have an address that can be opened with a click as it is; else they are fetched first, as each request is: with what signs in. @param {MouseEvent} event */
  async #open(event) {
    if (this.#shown && this.#address && !this.#failed) return;
    event.preventDefault();
    this.#failed = false;
    if (this.#shown) return void (await this.#load());
    const address = await this.#fetch("application/octet-stream");
    if (address === "") return this.#fail();
    h("a", { href: address, download: this.#name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }

  async #load() {
    this.#nearing?.disconnect();
    const { signal } = this.#life;
    const address = await this.#fetch(String(this.file.type));
    if (signal.aborted) return URL.revokeObjectURL(address);
    if (address === "") return this.#fail();
    this.#failed = false;
    this.#address = address;
    this.wordsChanged();
  }

  #fail() {
    if (this.#life.signal.aborted) return;
    this.#failed = true;
    this.wordsChanged();
  }

  /** An address of its bytes in this page, as of this type; "" if they are not to be had. @param {string} type */
  async #fetch(type) {
    try {
      return URL.createObjectURL(new Blob([await this.#bytes()], { type }));
    } catch {
      return "";
    }
  }

  /** @returns {Promise<BlobPart>} */
  async #bytes() {
    const { hash, url = "" } = this.file;
    if (hash === undefined) return Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (each) => each.charCodeAt(0));
    const { server } = this;
    const address = server.url(at`api/sessions/${this.session}/blobs/${hash}`);
    const response = await send(address, { method: "GET", headers: {}, signal: this.#life.signal, cache: "default" }, server);
    if (!response.ok) throw await refusal(response);
    return filed(response);
  }
}

/** @param {number} bytes */
const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
