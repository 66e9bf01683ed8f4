/** The style sheet of all elements, shared by their shadow roots; constructed, so a page's policy needs no `unsafe-inline`. */
import { LOOKS } from "./looks.js";

/** @type {CSSStyleSheet[]} Empty on a server. */
export const sheets = [];

if (typeof CSSStyleSheet !== "undefined") {
  try {
    // A length, or each text inside would measure its own.
    CSS.registerProperty({ name: "--legato-rem", syntax: "<length>", inherits: true, initialValue: "16px" });
  } catch {
    // another copy has
  }
  sheets.push(new CSSStyleSheet());
  sheets[0].replaceSync(LOOKS.replace(/^(?!@media).*$/gm, (line) => line.replace(/([\d.]+)rem\b/g, "calc($1 * var(--legato-rem))")));
}
