/** The elements as tags in React's JSX: `/// <reference types="legato/tags/react" />`. */
import type { ClassAttributes, HTMLAttributes } from "react";
import type { LegatoElements, LegatoListeners, LegatoTags } from "./tags.js";

type Tags = {
  [Name in keyof LegatoElements]: ClassAttributes<LegatoElements[Name]> & HTMLAttributes<LegatoElements[Name]> & LegatoTags[Name] & LegatoListeners<"on">;
};

declare module "react" {
  namespace JSX {
    interface IntrinsicElements extends Tags {}
  }
}
