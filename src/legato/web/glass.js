/**
 * A keyboard on glass makes the page smaller in some browsers, and covers its end in others (Safari; by default, Chrome,
 * too). There, what is fixed to the page learns from custom properties how much of it is out of sight: `--covered-above` and
 * `--covered-below`.
 */

const LEAST = 80; // pixels that are no keyboard's, but a bar's of the browser

/** @param {HTMLElement} element has the properties while it is covered @param {AbortSignal} [signal] */
export function uncover(element, signal) {
  const view = globalThis.visualViewport;
  if (!view) return;
  const fit = () => {
    const below = document.documentElement.clientHeight - view.height - view.offsetTop;
    const covered = view.scale === 1 && below + view.offsetTop > LEAST; // who has zoomed in goes where they like
    for (const [name, value] of [["--covered-above", view.offsetTop], ["--covered-below", Math.max(below, 0)]]) {
      if (covered) element.style.setProperty(String(name), `${value}px`);
      else element.style.removeProperty(String(name));
    }
  };
  for (const event of ["resize", "scroll"]) view.addEventListener(event, fit, { signal });
  fit();
}
