/** The elements as tags in Preact's JSX: `/// <reference types="legato/tags/preact" />`. */
import type { HTMLAttributes } from "preact";
import type { LegatoElements, LegatoListeners, LegatoTags } from "./tags.js";

type Tags = {
  [Name in keyof LegatoElements]: HTMLAttributes<LegatoElements[Name]> & LegatoTags[Name] & LegatoListeners<"on">;
};

declare module "preact" {
  namespace createElement.JSX {
    interface IntrinsicElements extends Tags {}
  }
}
