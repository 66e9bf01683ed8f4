/** The looks of the floating chat, beside those of all elements. */
export const INTERCOM_LOOKS = `
#body { --below: max(1.25rem, env(safe-area-inset-bottom)); position: fixed; inset: auto; inset-block-end: calc(var(--below) + var(--covered-below, 0px)); inset-inline-end: 1.25rem; z-index: 2147483000; width: auto; height: auto; margin: 0; padding: 0; border: 0; overflow: visible; background: none; color: inherit; }
#launcher { position: relative; display: grid; place-items: center; width: 3.5rem; height: 3.5rem; margin-inline-start: auto; padding: 0; border: 0; border-radius: 50%; background: var(--accent); color: var(--on-accent); box-shadow: 0 2px 6px #0003, 0 8px 28px #0003; transition: transform 0.15s; }
#launcher:hover { transform: scale(1.05); }
#launcher svg { width: 1.75rem; height: 1.75rem; }
#badge { position: absolute; inset-block-start: -0.1rem; inset-inline-end: -0.1rem; width: 1.1rem; height: 1.1rem; border: 3px solid light-dark(#fff, #18181b); border-radius: 50%; background: var(--muted); }
[data-state="unread"] #badge { background: var(--bad); }
[data-state="running"] #badge { background: light-dark(#b97a10, #e0a73e); animation: pulse 1.4s infinite; }
[data-state="idle"] #badge { display: none; }
#panel { position: fixed; inset: auto; inset-block-end: calc(4.5rem + var(--below) + var(--covered-below, 0px)); inset-inline-end: 1.25rem; display: grid; grid-template-rows: auto minmax(0, 1fr); width: min(25rem, 100% - 2.5rem); height: min(40rem, 100% - 7.5rem - var(--covered-above, 0px) - var(--covered-below, 0px)); overflow: hidden; border: 1px solid var(--line); border-radius: 1.1rem; background: var(--page); box-shadow: 0 4px 12px #0000001a, 0 16px 56px #0000002e; animation: rise 0.16s ease-out; }
@keyframes rise { from { opacity: 0; transform: translateY(0.6rem); } }
#panel > header { display: flex; align-items: center; gap: 0.7rem; padding: 0.8rem 0.6rem 0.8rem 1rem; padding-inline: 1rem 0.6rem; border-bottom: 1px solid var(--line); }
#panel h2 { flex: 1; min-width: 0; margin: 0; overflow: hidden; font-size: 1rem; font-weight: 600; text-overflow: ellipsis; white-space: nowrap; }
#avatar { display: grid; flex: none; place-items: center; width: 2rem; height: 2rem; border-radius: 50%; background: var(--tint); color: var(--accent); font-weight: 650; }
#trouble { align-self: center; padding: 1.5rem; text-align: center; }
#panel legato-chat { --legato-measure: none; min-height: 0; }

@media (max-width: 30rem), (max-height: 30rem) {
  #panel { inset-block: var(--covered-above, 0px) var(--covered-below, 0px); inset-inline-end: 0; height: auto; padding: env(safe-area-inset-top) env(safe-area-inset-right) max(env(safe-area-inset-bottom) - var(--covered-below, 0px), 0px) env(safe-area-inset-left); border-width: 0; border-radius: 0; }
  [data-open] #launcher { visibility: hidden; }
}
@media (max-width: 30rem) {
  #panel { inset-inline-start: 0; width: auto; }
}
@media (max-height: 22rem) {
  #panel > header { padding-block: 0.2rem; }
}
@media (forced-colors: active) {
  #launcher { border: 1px solid; }
  #badge { background: CanvasText; }
}
`;
