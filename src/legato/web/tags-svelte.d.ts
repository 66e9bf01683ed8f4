/** The elements as tags in Svelte's markup: `/// <reference types="legato/tags/svelte" />`. */
import type { HTMLAttributes } from "svelte/elements";
import type { LegatoElements, LegatoListeners, LegatoTags } from "./tags.js";

type Tags = {
  [Name in keyof LegatoElements]: HTMLAttributes<LegatoElements[Name]> & LegatoTags[Name] & LegatoListeners<"on" | "on:">;
};

declare module "svelte/elements" {
  interface SvelteHTMLElements extends Tags {}
}
