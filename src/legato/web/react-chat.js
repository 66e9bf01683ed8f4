/**
 * `<LegatoChat>` and `<LegatoIntercom>`: the elements as React components. React 18 or newer is yours to bring, under the
 * bare name "react". On a server they render an empty place; the element comes with the browser.
 */
"use client";

import { createElement, useEffect, useRef } from "react";
import "./define-intercom.js";

/**
 * @typedef {object} ElementProps
 * @property {string | URL | undefined} [baseUrl] where the server is; by default the page's own address, or where `web/define.js` came from
 * @property {"light" | "dark" | undefined} [theme] whatever the page is
 * @property {import("./request.js").HeadersSource | undefined} [headers] for each request, for example a token; may be another
 *   function on each render: the newest is asked
 * @property {Record<string, string> | undefined} [strings] words of this element's own
 * @property {string | undefined} [className] of the box around the element
 * @property {import("react").CSSProperties | undefined} [style] of the box around the element, for example its height
 *
 * @typedef {object} ChatProps
 * @property {string | undefined} [session] that is shown; without one the chat is empty, and its first message begins one
 * @property {string | undefined} [agent] who answers in sessions that begin here
 * @property {"end" | "start" | undefined} [follow] what of a long answer is kept in view: its end, or its beginning
 * @property {((session: string) => void) | undefined} [onSession] a session has begun; an empty string if it could not
 * @property {((state: {running: boolean}) => void) | undefined} [onState] an answer is being given, or not any more
 * @property {(() => void) | undefined} [onChange] a session was begun or deleted
 *
 * @typedef {object} IntercomProps
 * @property {string | undefined} [username] the agent's name
 */

/** A whole conversation; it fills the box that it stands in. @param {ElementProps & ChatProps} props */
export function LegatoChat({ session, agent, follow, onSession, onState, onChange, ...props }) {
  return useElement("legato-chat", { session, agent, follow }, { "legato-session": onSession, "legato-state": onState, "legato-change": onChange }, props);
}

/** A floating button, and the chat behind it. @param {ElementProps & IntercomProps} props */
export function LegatoIntercom({ username, ...props }) {
  return useElement("legato-intercom", { username }, {}, props);
}

/**
 * The element is made here and not by React, so that it has its headers before it asks for anything, in each version.
 * @param {string} name
 * @param {Record<string, string | undefined>} attributes
 * @param {Record<string, ((detail: any) => void) | undefined>} listeners
 * @param {ElementProps} props
 */
function useElement(name, attributes, listeners, { baseUrl, theme, headers, strings, className, style }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const element = useRef(/** @type {any} */ (null));
  const latest = useRef({ listeners, headers });
  const given = useRef(/** @type {Record<string, string | undefined>} */ ({})); // what has been set: a chat begins sessions by itself
  const all = { ...attributes, "base-url": baseUrl === undefined ? undefined : String(baseUrl), theme };
  const apply = () => {
    for (const [key, value] of Object.entries(all)) {
      if (value === given.current[key]) continue;
      if (value === undefined) element.current.removeAttribute(key);
      else element.current.setAttribute(key, value);
    }
    given.current = all;
  };
  useEffect(() => {
    latest.current = { listeners, headers };
    if (element.current) apply();
  });
  useEffect(() => {
    const made = (element.current = document.createElement(name));
    given.current = {};
    element.current.headers = (/** @type {any} */ why) => {
      const { headers: now = {} } = latest.current;
      return typeof now === "function" ? now(why) : now;
    };
    for (const event of Object.keys(listeners)) {
      made.addEventListener(event, (told) => latest.current.listeners[event]?.(/** @type {CustomEvent} */ (told).detail));
    }
    apply();
    place.current?.append(made);
    return () => {
      made.remove();
      element.current = null;
    };
  }, [name]);
  useEffect(() => {
    if (element.current && strings) element.current.strings = strings;
  }, [strings]);
  return createElement("div", { ref: place, className, style });
}
