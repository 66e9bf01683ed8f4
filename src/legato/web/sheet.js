/** Style sheets, shared by the shadow roots of all elements; constructed, so a page's policy needs no `unsafe-inline`. */
import { LOOKS } from "./looks.js";

const ABLE = "replaceSync" in (globalThis.CSSStyleSheet?.prototype ?? {}); // a server has none, jsdom only those of tags

if (ABLE) {
  try {
    // A length, or each text inside would measure its own.
    CSS.registerProperty({ name: "--legato-rem", syntax: "<length>", inherits: true, initialValue: "16px" });
  } catch {
    // another copy has
  }
}

/** @param {string} looks in which a `rem` is the size of the element's own text @returns {CSSStyleSheet[]} */
export function sheet(looks) {
  if (!ABLE) return [];
  const made = new CSSStyleSheet();
  made.replaceSync(looks.replace(/^(?!@media).*$/gm, (line) => line.replace(/([\d.]+)rem\b/g, "calc($1 * var(--legato-rem))")));
  return [made];
}

export const sheets = sheet(LOOKS);
