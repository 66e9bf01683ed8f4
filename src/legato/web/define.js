/** Gives the elements their names: `<script type="module" src="https://…/web/define.js"></script>`. */
import { LegatoChat } from "./chat.js";
import { LegatoFile } from "./file.js";
import { LegatoInProgressMessage, LegatoIncomingMessageIndicator, LegatoMessageStreamError } from "./message.js";

export { setStrings } from "./strings.js";

/** @type {Record<string, CustomElementConstructor>} */
const ELEMENTS = {
  "legato-incoming-message-indicator": LegatoIncomingMessageIndicator,
  "legato-in-progress-message": LegatoInProgressMessage,
  "legato-message-stream-error": LegatoMessageStreamError,
  "legato-file": LegatoFile,
  "legato-chat": LegatoChat,
};
for (const [name, element] of Object.entries(ELEMENTS)) define(name, element);

/** Unless it has been defined, by another copy of this module; or there is no page. @param {string} name @param {CustomElementConstructor} element */
export function define(name, element) {
  if (typeof customElements !== "undefined" && !customElements.get(name)) customElements.define(name, element);
}
