/** The words for figures. */

const whole = new Intl.NumberFormat("en");
/** @param {number} value */
export const number = (value) => whole.format(value);

/** @param {number} value @param {string} one @param {string} [many] */
export const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

/** A length of time, in milliseconds, in two digits or so. @param {number} ms */
export function duration(ms) {
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  const minutes = seconds / 60;
  if (minutes < 99.5) return `${Math.round(minutes)} min`;
  const hours = minutes / 60;
  return hours < 47.5 ? `${Math.round(hours)} h` : `${Math.round(hours / 24)} days`;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 999_500 ? `${(bytes / 1000).toFixed(bytes < 9950 ? 1 : 0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** The name of a dialect as people say it. @param {string} dialect */
export function named(dialect) {
  const [kind, client] = dialect.split("/");
  const name = { mix: "Mix", responses: "Responses", chat: "Chat Completions", deva: "Deva" }[kind] ?? (kind || "Stream");
  return client === undefined ? name : `${name} · ${client}`;
}
