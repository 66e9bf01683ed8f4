/** `<legato-intercom>`, and the elements it is made of. */
import { define } from "./define.js";
import { LegatoIntercom } from "./intercom.js";

export { setStrings } from "./strings.js";

define("legato-intercom", LegatoIntercom);
