/**
 * The style sheet of all elements, fetched once and shared by their shadow roots. It is a constructed sheet, so a page's
 * Content-Security-Policy needs no `unsafe-inline` for it.
 */

/** @type {CSSStyleSheet[]} Empty where there are no pages: a server may import the elements, and not use them. */
export const sheets = [];

if (typeof CSSStyleSheet !== "undefined") {
  const css = await fetch(new URL("elements.css", import.meta.url)).then(
    (response) => (response.ok ? response.text() : ""),
    () => "", // a chat without looks is still a chat
  );
  sheets.push(new CSSStyleSheet());
  sheets[0].replaceSync(css);
}
