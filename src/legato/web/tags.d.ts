/** What TypeScript knows of the elements once `legato/define.js` or `legato/define-intercom.js` is imported. */
import type { LegatoChat } from "./chat.js";
import type { LegatoIntercom } from "./intercom.js";
import type { LegatoIncomingMessageIndicator, LegatoInProgressMessage, LegatoMessageStreamError } from "./message.js";
import type { HeadersSource } from "./request.js";

export { setStrings } from "./strings.js";

export interface LegatoElements {
  "legato-chat": LegatoChat;
  "legato-intercom": LegatoIntercom;
  "legato-incoming-message-indicator": LegatoIncomingMessageIndicator;
  "legato-in-progress-message": LegatoInProgressMessage;
  "legato-message-stream-error": LegatoMessageStreamError;
}

export interface LegatoEvents {
  "legato-session": CustomEvent<string>;
  "legato-state": CustomEvent<{ running: boolean }>;
  "legato-change": CustomEvent<undefined>;
}

/** What stands on every tag: attributes, and properties, which frameworks set where an element has them. */
export interface LegatoTag {
  "base-url"?: string | undefined;
  theme?: "light" | "dark" | "" | undefined;
  headers?: HeadersSource | undefined;
  strings?: Record<string, string> | undefined;
}

/** What stands on each tag. */
export interface LegatoTags {
  "legato-chat": LegatoTag & {
    session?: string | undefined;
    agent?: string | undefined;
    follow?: "start" | "end" | "" | undefined;
  };
  "legato-intercom": LegatoTag & { username?: string | undefined };
  "legato-incoming-message-indicator": LegatoTag;
  "legato-in-progress-message": LegatoTag & { text?: string | undefined; ended?: boolean | undefined };
  "legato-message-stream-error": LegatoTag & { message?: string | undefined; final?: boolean | undefined };
}

/** Listeners to the events, as a framework names them: `on` before each, for example. */
export type LegatoListeners<Before extends string> = {
  [Name in keyof LegatoEvents | "retry" as `${Before}${Name}`]?:
    | ((event: Name extends keyof LegatoEvents ? LegatoEvents[Name] : CustomEvent<null>) => void)
    | undefined;
};

declare global {
  interface HTMLElementTagNameMap extends LegatoElements {}
  interface GlobalEventHandlersEventMap extends LegatoEvents {} // they bubble to the document and the window
}
