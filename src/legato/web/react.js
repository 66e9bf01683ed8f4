/**
 * `useStreamResponse`: one streamed answer in a React component. A thin hook on `StreamResponse`; React 18 or newer is
 * yours to bring, under the bare name "react".
 */
"use client";

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { LegatoCore } from "./core.js";
import { StreamResponse } from "./stream-response.js";

/**
 * @typedef {object} StreamResponseOptions
 * @property {string | undefined} messageId the user's message that is to be answered; nothing is sent without one
 * @property {string | undefined} threadId its thread (session)
 * @property {string | URL | undefined} [baseUrl] where the API begins; by default the page's own address
 * @property {import("./request.js").HeadersSource | undefined} [headers] for each request, for example a token; may be another
 *   function on each render: the newest is asked
 * @property {import("./request.js").Fetch | undefined} [fetch]
 * @property {((message: import("./types.js").Message) => void) | undefined} [onMessage] once, with the stored answer
 *
 * @typedef {import("./stream-response.js").Snapshot & {retry: () => Promise<void>, stop: () => Promise<void>}} StreamResponseState
 */

/**
 * The answer to `messageId` as it is written. The component is rendered anew as it grows; leaving the page or mounting
 * twice (StrictMode) neither stops the answer nor begins a second one.
 * @param {StreamResponseOptions} options
 * @returns {StreamResponseState}
 */
export function useStreamResponse({ messageId, threadId, baseUrl, ...rest }) {
  const latest = useRef(rest);
  useEffect(() => {
    latest.current = rest;
  });
  const base = baseUrl === undefined ? undefined : String(baseUrl);
  const response = useMemo(() => {
    const core = new LegatoCore({
      baseUrl: base,
      fetch: (input, init) => (latest.current.fetch ?? globalThis.fetch)(input, init),
      headers: (why) => {
        const { headers = {} } = latest.current;
        return typeof headers === "function" ? headers(why) : headers;
      },
    });
    return new StreamResponse(core, { messageId, threadId, onMessage: (message) => latest.current.onMessage?.(message) });
  }, [messageId, threadId, base]);
  useEffect(() => {
    response.start();
    return response.close;
  }, [response]);
  const snapshot = useSyncExternalStore(response.subscribe, response.getSnapshot, response.getSnapshot);
  return useMemo(() => ({ ...snapshot, retry: response.retry, stop: response.stop }), [snapshot, response]);
}
