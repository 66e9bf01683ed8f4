/** The elements as tags in Solid's JSX: `/// <reference types="legato/tags/solid" />`. */
import type { JSX as Solid } from "solid-js";
import type { LegatoElements, LegatoListeners, LegatoTags } from "./tags.js";

type Tags = {
  [Name in keyof LegatoElements]: Solid.HTMLAttributes<LegatoElements[Name]> & LegatoTags[Name] & LegatoListeners<"on:">;
};

declare module "solid-js" {
  namespace JSX {
    interface IntrinsicElements extends Tags {}
  }
}
