/** What TypeScript knows of the elements once `legato/define.js` or `legato/define-intercom.js` is imported. */
import type { LegatoChat } from "./chat.js";
import type { LegatoIntercom } from "./intercom.js";
import type { LegatoIncomingMessageIndicator, LegatoInProgressMessage, LegatoMessageStreamError } from "./message.js";

export { setStrings } from "./strings.js";

declare global {
  interface HTMLElementTagNameMap {
    "legato-chat": LegatoChat;
    "legato-intercom": LegatoIntercom;
    "legato-incoming-message-indicator": LegatoIncomingMessageIndicator;
    "legato-in-progress-message": LegatoInProgressMessage;
    "legato-message-stream-error": LegatoMessageStreamError;
  }
  interface HTMLElementEventMap {
    "legato-session": CustomEvent<string>;
    "legato-state": CustomEvent<{ running: boolean }>;
    "legato-change": CustomEvent<undefined>;
  }
}
