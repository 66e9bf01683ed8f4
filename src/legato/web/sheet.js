/**
 * The style sheet of all elements, shared by their shadow roots. It is a constructed sheet, so a page's
 * Content-Security-Policy needs no `unsafe-inline` for it.
 */
import { LOOKS } from "./looks.js";

/** @type {CSSStyleSheet[]} Empty where there are no pages: a server may import the elements, and not use them. */
export const sheets = [];

if (typeof CSSStyleSheet !== "undefined") {
  try {
    // A length, so that all that is inside measures the element's own text, not its own.
    CSS.registerProperty({ name: "--legato-rem", syntax: "<length>", inherits: true, initialValue: "16px" });
  } catch {
    // by another copy of this module
  }
  sheets.push(new CSSStyleSheet());
  sheets[0].replaceSync(LOOKS.replace(/^(?!@media).*$/gm, (line) => line.replace(/([\d.]+)rem\b/g, "calc($1 * var(--legato-rem))")));
}
