/**
 * The looks of Legato's elements. A page changes them by custom properties (--legato-accent and the others below) and by
 * ::part. Colours follow the page's color-scheme. System fonts, and no motion for those who want none. A module, so that
 * it goes wherever the elements go, through any bundler. A `rem` here is the size of the element's own text.
 */
export const LOOKS = `
:host {
  --page: var(--legato-page, light-dark(#fcfcfb, #18181b));
  --card: var(--legato-card, light-dark(#fff, #222226));
  --text: var(--legato-text, light-dark(#1f1f24, #e9e9ee));
  --muted: var(--legato-muted, light-dark(#63636e, #a1a1ad));
  --line: var(--legato-line, light-dark(#e3e3e8, #36363d));
  --accent: var(--legato-accent, light-dark(#4a4fc4, #a9adff));
  --on-accent: var(--legato-on-accent, light-dark(#fff, #15153a));
  --tint: var(--legato-tint, light-dark(color-mix(in srgb, var(--accent) 9%, var(--page)), color-mix(in srgb, var(--accent) 16%, var(--page))));
  --code: var(--legato-code, light-dark(#f5f5f7, #1f1f23));
  --bad: var(--legato-bad, light-dark(#a3211b, #ff9d94));
  --bad-tint: var(--legato-bad-tint, light-dark(#fdf1f0, #35211f));
  --good: var(--legato-good, light-dark(#1a6e3c, #86d9a4));
  --shadow: var(--legato-shadow, 0 1px 2px light-dark(#0000000a, #0004), 0 6px 24px light-dark(#0000000f, #0005));
  --radius: var(--legato-radius, 0.875rem);
  --measure: var(--legato-measure, 44rem);
  --font: var(--legato-font, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Cantarell, "DejaVu Sans", sans-serif);
  --mono: var(--legato-mono, ui-monospace, "Cascadia Code", "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace);
  --legato-rem: 1em;
  display: block;
  font-size: medium; /* what the visitor has chosen, whatever the page makes of it; a page may set its own on the element */
}
/* Here ends what is inherited from the page, whatever it says of all that it has; but for what concerns the visitor, or all of a place. */
.own {
  all: initial;
  display: contents;
  color-scheme: inherit;
  forced-color-adjust: inherit;
  visibility: inherit;
  pointer-events: inherit;
  font-size: inherit;
  -webkit-text-size-adjust: inherit;
  text-size-adjust: inherit;
  -webkit-locale: inherit;
  -webkit-user-select: text;
  user-select: text;
  overflow-wrap: anywhere;
  color: var(--text);
  font-family: var(--font);
  line-height: 1.65;
}
:host([hidden]), [hidden] { display: none !important; }
:host([theme="light"]) { color-scheme: light; }
:host([theme="dark"]) { color-scheme: dark; }
*, ::before, ::after { box-sizing: border-box; }
h2, h3, h4, h5, h6 { line-height: 1.3; text-wrap: balance; }
a[href] { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 0.18em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.quiet { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
#skip { position: absolute; inset: 0.5rem auto auto 0.5rem; z-index: 1; }
#skip:not(:focus) { clip-path: inset(50%); }
.fine, time { margin: 0.25rem 0; color: var(--muted); font-size: 0.8125rem; line-height: 1.45; }

/* ---- Buttons ---- */
button { min-height: 2.25rem; padding: 0.3rem 0.95rem; border: 1px solid var(--line); border-radius: 0.625rem; background: var(--card); color: inherit; font: inherit; font-size: 0.9375rem; line-height: 1.4; cursor: pointer; }
button:hover { border-color: var(--accent); }
button:disabled { opacity: 0.45; cursor: default; }
button.plain { border-color: transparent; background: none; }
button.plain:hover { background: var(--tint); }
button.small { min-height: 1.75rem; padding: 0 0.55rem; border-radius: 0.5rem; color: var(--muted); font-size: 0.8125rem; }
button.small:hover { color: var(--text); }
button.link { min-height: 0; padding: 0; border: 0; background: none; color: var(--accent); text-decoration: underline; }
button.round { display: grid; flex: none; place-items: center; width: 2.25rem; padding: 0; border-radius: 50%; }
.grant, #send { border-color: var(--accent); background: var(--accent); color: var(--on-accent); }
.grant:hover, #send:not(:disabled):hover { filter: brightness(1.1); }
svg { width: 1.2rem; height: 1.2rem; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
#stop svg { fill: currentColor; stroke-width: 1; }

/* ---- A conversation ---- */
:host(legato-chat) { position: relative; display: grid; grid-template-columns: minmax(0, 1fr); grid-template-rows: minmax(0, 1fr) auto; min-width: 0; min-height: 0; height: 100%; background: var(--page); }
#scroll { min-width: 0; overflow-y: auto; overflow-anchor: none; overscroll-behavior: contain; scrollbar-gutter: stable both-edges; scrollbar-width: thin; scrollbar-color: var(--line) transparent; }
#scroll:focus-visible { outline-offset: -2px; }
#content { max-width: var(--measure); min-height: 100%; margin: 0 auto; padding: 1.75rem 1.25rem 2rem; }
#earlier { display: block; margin: 0 auto 1.5rem; color: var(--muted); font-size: 0.8125rem; }
.turn + .turn { margin-top: 2.5rem; }
.question { width: fit-content; max-width: min(88%, 36rem); margin-inline-start: auto; padding: 0.6rem 1.05rem; border-radius: 1.15rem; border-end-end-radius: 0.3rem; background: var(--tint); }
.question > [dir] { unicode-bidi: plaintext; white-space: pre-wrap; }
.who { text-align: end; }
.files { display: flex; flex-wrap: wrap; gap: 0.5rem; margin: 0.35rem 0; }
legato-file { display: block; min-width: 0; max-width: 100%; }
legato-file a { display: inline-block; max-width: 100%; padding: 0.25rem 0.7rem; border: 1px solid var(--line); border-radius: 0.6rem; background: var(--card); font-size: 0.875rem; }
legato-file[image] a { display: grid; place-items: center; min-width: 6rem; height: 11rem; padding: 0; overflow: hidden; }
legato-file[image] span { padding: 0.5rem; text-align: center; }
legato-file img { display: block; max-width: 100%; max-height: calc(11rem - 2px); object-fit: contain; }
.state { text-align: end; }
.state:empty { display: none; }
.answer { display: flow-root; margin-top: 1.35rem; }
.answer:empty { display: none; }
.answer > * { display: block; }
.answer > * + * { margin-top: 0.9rem; }
.answer > details + details { margin-top: 0.15rem; }
.foot { display: flex; flex-wrap: wrap; align-items: center; gap: 0.15rem; min-height: 1.75rem; margin-top: 0.6rem; }
.foot time { margin: 0 0.4rem 0 0; }
.foot > .fine { flex: 0 0 100%; margin: 0 0 0.2rem; }
.foot legato-message-stream-error { flex: 1 1 100%; margin-bottom: 0.35rem; }
.empty { padding-top: min(20vh, 10rem); text-align: center; }
.empty h2 { margin: 0; font-size: 1.6rem; font-weight: 600; letter-spacing: -0.02em; }

/* ---- Text ---- */
.prose { position: relative; }
.prose :is(p, li, h2, h3, h4, h5, h6, td, th) { unicode-bidi: plaintext; text-align: start; }
.stretch { display: flow-root; }
.stretch:first-child > :first-child { margin-top: 0; }
.stretch > :last-child { margin-bottom: 0; }
.long > .stretch, .long > .plain > *, .long .part, .long .raw > * { content-visibility: auto; contain-intrinsic-size: auto 0px auto 90rem; }
.plain, .raw { white-space: pre-wrap; }
.prose :is(p, ul, ol, blockquote), .code, .wide { margin: 0.85em 0; }
.prose :is(ul, ol) { padding-inline-start: 1.6em; }
.prose li { margin: 0.3em 0; }
.prose li > :is(ul, ol, p) { margin: 0.3em 0; }
.prose li::marker { color: var(--muted); }
.prose :is(h2, h3) { margin: 1.5em 0 0.5em; font-size: 1.2rem; letter-spacing: -0.01em; }
.prose h2 { font-size: 1.35rem; }
.prose :is(h4, h5, h6) { margin: 1.3em 0 0.4em; font-size: 1.05rem; }
.prose blockquote { padding-inline-start: 1.1rem; border-inline-start: 3px solid var(--line); }
.prose blockquote > :first-child { margin-top: 0; }
.prose blockquote > :last-child { margin-bottom: 0; }
.prose hr { margin: 1.75em 0; border: 0; border-top: 1px solid var(--line); }
.prose .on, .prose .on > li:first-child, .prose .on > li:first-child > :first-child { margin-top: 0; }
.prose blockquote.on { padding-top: 0.85em; }
span.part { display: block; width: max-content; min-width: 100%; }
.wide { overflow-x: auto; container-type: inline-size; }
.parts, .parts > * { display: block; }
.prose table { border-collapse: collapse; font-size: 0.92em; }
.prose :is(th, td) { padding: 0.4rem 1rem 0.4rem 0; padding-inline: 0 1rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: normal; }
.prose th { font-weight: 600; }
.prose [align="center"] { text-align: center; }
.prose [align="right"] { text-align: right; }
.prose li:has(> input) { position: relative; list-style: none; }
.prose li > input + p { display: inline; }
.prose li > input { position: absolute; inset-block-start: 0.4em; inset-inline-start: -1.5em; margin: 0; accent-color: var(--accent); }
.prose .markdown-alert { margin: 0.85em 0; padding: 0.1rem 1rem; border-inline-start: 3px solid var(--accent); border-radius: 0.3rem; background: var(--tint); }
.prose .markdown-alert-title { margin-bottom: 0.2em; font-weight: 600; }
.prose .markdown-alert-title + p { margin-top: 0; }
.prose .footnote { margin: 0.4em 0; color: var(--muted); font-size: 0.9em; }
.prose .footnote > p:first-of-type { display: inline; }
.prose sup { font-size: 0.75em; line-height: 0; }
.prose math { font-size: 1.1em; }
.prose p:has(> math[display="block"]) { padding-block: 0.4em; overflow: auto hidden; }
code, pre { font-family: var(--mono); font-size: 0.875em; direction: ltr; unicode-bidi: isolate; }
code { padding: 0.12em 0.36em; border-radius: 0.35em; background: var(--code); }
pre { margin: 0; padding: 0.75rem 1rem; overflow-x: auto; border-radius: 0.6rem; background: var(--code); line-height: 1.55; text-align: left; overflow-wrap: normal; white-space: pre; }
pre code { padding: 0; background: none; font-size: 1em; overflow-wrap: normal; }
.code { border: 1px solid var(--line); border-radius: 0.7rem; background: var(--code); overflow: hidden; }
.code pre { padding-top: 0.35rem; border-radius: 0; background: none; }
.code pre:focus-visible { outline-offset: -3px; }
.bar { display: flex; align-items: center; justify-content: space-between; min-height: 2rem; padding-inline: 1rem 0.35rem; color: var(--muted); font: 0.75rem/1.4 var(--mono); }
.bar button { font-family: var(--font); font-size: 0.75rem; }
.fresh::after { content: ""; display: inline-block; width: 0.45em; height: 1em; margin-inline-start: 0.15em; border-radius: 0.1em; background: var(--accent); opacity: 0.75; vertical-align: -0.15em; animation: pulse 1.2s infinite; }

/* Code, by the classes of Pygments: few colours, chosen for contrast in both themes. */
pre :is(.k, .kc, .kd, .kn, .kp, .kr, .ow, .nt) { color: light-dark(#8250a8, #d2a8ff); }
pre .kt, pre :is(.nc, .nf, .fm, .ne, .nd) { color: light-dark(#2f55c7, #9cb8ff); }
pre :is(.s, .s1, .s2, .sa, .sb, .sc, .sd, .se, .si, .sr, .ss, .sx, .dl, .na) { color: light-dark(#1a6e3c, #9adbae); }
pre :is(.m, .mb, .mf, .mh, .mi, .mo, .il, .no, .bp, .nb) { color: light-dark(#9a4a00, #f0b97c); }
pre :is(.c, .c1, .ch, .cm, .cp, .cs) { color: var(--muted); font-style: italic; }
pre .gd { color: var(--bad); }
pre .gi { color: var(--good); }

/* ---- Thinking, tools, questions ---- */
details { font-size: 0.9rem; }
summary::marker { font-size: 0.8em; }
summary { width: fit-content; max-width: 100%; margin-inline-start: -0.4rem; padding: 0.2rem 0.5rem 0.2rem 0.4rem; border-radius: 0.4rem; color: var(--muted); cursor: pointer; }
summary:hover { background: var(--tint); }
details[open] > summary { margin-bottom: 0.4rem; }
.thinking div { padding-inline-start: 1rem; border-inline-start: 3px solid var(--line); color: var(--muted); white-space: pre-wrap; }
.tool pre { max-height: 20rem; margin-bottom: 0.5rem; overflow: auto; }
.tool[data-state="failed"] summary .fine { color: var(--bad); }
.ask { padding: 1rem 1.15rem; border: 1px solid var(--line); border-inline-start: 4px solid var(--accent); border-radius: var(--radius); background: var(--card); box-shadow: var(--shadow); }
.ask:is([data-kind="error"], [data-kind="warning"]) { border-inline-start-color: var(--bad); }
.ask[data-answer] { border-inline-start-color: var(--line); box-shadow: none; }
.ask p { margin: 0.25rem 0; }
.ask .title { margin-top: 0; font-weight: 600; }
.choices, .choices form { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.choices { margin-top: 0.8rem; }
.choices form { flex: 1; }
.ask input { min-width: 0; min-height: 2.25rem; flex: 1 1 12rem; padding: 0.3rem 0.7rem; border: 1px solid var(--line); border-radius: 0.625rem; background: var(--page); color: inherit; font: inherit; }

/* ---- Before, and instead of, an answer ---- */
.typing { display: inline-flex; gap: 0.3rem; padding: 0.5rem 0; }
.typing i { width: 0.45rem; height: 0.45rem; border-radius: 50%; background: var(--muted); animation: bounce 1.2s infinite ease-in-out; }
.typing > :nth-child(2) { animation-delay: 0.15s; }
.typing > :nth-child(3) { animation-delay: 0.3s; }
@keyframes bounce { 0%, 60%, 100% { opacity: 0.35; transform: none; } 30% { opacity: 1; transform: translateY(-0.2rem); } }
.error { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 0.75rem; padding: 0.75rem 1rem; border: 1px solid color-mix(in srgb, var(--bad) 30%, transparent); border-radius: var(--radius); background: var(--bad-tint); font-size: 0.9375rem; line-height: 1.5; }
.error p { flex: 1 1 12rem; margin: 0; }
.error strong { color: var(--bad); }
.error button { background: none; }
.sign { display: grid; flex: none; place-items: center; width: 1.4rem; height: 1.4rem; border: 2px solid var(--bad); border-radius: 50%; color: var(--bad); font-size: 0.8125rem; font-weight: 700; }

/* ---- The field ---- */
#foot { position: relative; width: 100%; max-width: var(--measure); margin: 0 auto; padding: 0 1.25rem 0.75rem; }
#latest { position: absolute; left: 50%; bottom: calc(100% + 0.6rem); display: flex; align-items: center; gap: 0.4rem; padding-inline: 0.75rem 1rem; border-radius: 2rem; box-shadow: var(--shadow); font-size: 0.875rem; white-space: nowrap; transform: translateX(-50%); }
#latest svg { width: 1rem; }
#notice { display: flex; align-items: center; gap: 0.5rem; margin: 0 0 0.5rem 0.25rem; color: var(--muted); font-size: 0.875rem; animation: appear 0.3s 0.4s backwards; }
#notice button { font-size: inherit; }
.pulse { width: 0.55rem; height: 0.55rem; border-radius: 50%; background: light-dark(#b97a10, #e0a73e); animation: pulse 1.4s infinite; }
@keyframes appear { from { opacity: 0; } }
@keyframes pulse { 50% { opacity: 0.25; } }
#problem { margin: 0 0 0.5rem; padding: 0.55rem 1rem; border-radius: var(--radius); background: var(--bad-tint); color: var(--bad); font-size: 0.9rem; }
#whose { margin: 0.5rem 0; text-align: center; }
#form { display: flex; align-items: flex-end; gap: 0.4rem; padding: 0.5rem; border: 1px solid var(--line); border-radius: 1.4rem; background: var(--card); box-shadow: var(--shadow); }
#form:focus-within { border-color: color-mix(in srgb, var(--accent) 60%, var(--line)); }
#message { flex: 1; min-width: 0; max-height: 40vh; padding: 0.3rem 0.75rem; border: 0; outline: 0; background: none; color: inherit; font: inherit; line-height: 1.65rem; resize: none; scrollbar-width: thin; }
#message::placeholder { color: var(--muted); opacity: 1; }

@media (max-width: 40rem) {
  #content, #foot { padding-inline: 0.9rem; }
  .question { max-width: 94%; }
  #scroll { scrollbar-gutter: auto; }
}
/* Safari enlarges the page for who writes in letters of less than 16 pixels. */
@media (hover: none) and (pointer: coarse) {
  #message, .ask input { font-size: max(1em, 16px); }
}
/* A telephone on its side, its keyboard, or a page that is four times as large: what is said comes first. */
@media (max-height: 22rem) {
  #content { padding-block: 0.75rem; }
  #foot { padding-bottom: 0.3rem; }
  #form { padding: 0.2rem; }
  .empty { padding-top: 0; }
}
@media print {
  :host(legato-chat) { display: block; height: auto; }
  #scroll { overflow: visible; }
  #content { max-width: none; padding: 0; }
  #foot, .foot button, .bar button, .typing { display: none; }
  .question, .code, .wide, .ask, math { break-inside: avoid; }
  .long > .stretch, .long > .plain > *, .long .part, .long .raw > * { content-visibility: visible; }
  .parts { display: table; width: auto !important; }
  .parts > thead { display: table-header-group; }
  .parts > tbody { display: table-row-group; }
  span.part { width: auto; }
  pre { white-space: pre-wrap; overflow: visible; }
}
@media (prefers-reduced-motion: reduce) {
  *, ::before, ::after { animation: none !important; transition: none !important; }
}
@media (forced-colors: active) {
  #send, .grant, .ask, .question { border: 1px solid; }
  .typing i, .pulse { background: CanvasText; }
}
`;
