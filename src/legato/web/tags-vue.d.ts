/** The elements as tags in Vue's templates: `/// <reference types="legato/tags/vue" />`. */
import type { HTMLAttributes, PublicProps } from "vue";
import type { LegatoElements, LegatoEvents, LegatoTags } from "./tags.js";

interface Listeners {
  onLegatoSession?: ((event: LegatoEvents["legato-session"]) => void) | undefined;
  onLegatoState?: ((event: LegatoEvents["legato-state"]) => void) | undefined;
  onLegatoChange?: ((event: LegatoEvents["legato-change"]) => void) | undefined;
  onRetry?: ((event: CustomEvent<null>) => void) | undefined;
}

type Components = {
  [Name in keyof LegatoElements]: new () => LegatoElements[Name] & {
    $props: HTMLAttributes & PublicProps & LegatoTags[Name] & Listeners & { baseUrl?: string | undefined };
  };
};

declare module "vue" {
  interface GlobalComponents extends Components {}
}
