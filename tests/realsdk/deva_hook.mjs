// The stream hook of Deva's documentation, without React: its request and its handlers are the documented ones, around
// the real library. What it would render goes to `render`, state after state.

export function useStreamResponse(fetchEventSource, { baseUrl, accessToken, threadId, messageId }, render) {
  const controllerRef = { current: new AbortController() };
  const state = { message: null, isStreaming: true, error: null, isDone: false };
  const set = (change) => render({ ...Object.assign(state, change) });
  let accumulatedContent = '';

  const url = `${baseUrl}/api/sdk/chat/${threadId}/messages/${messageId}/query/stream`;
  const done = fetchEventSource(url, {
    method: 'POST',
    headers: {
      Authorization: `Bearer ${accessToken}`,
      'Content-Type': 'application/json',
      Accept: 'text/event-stream',
    },
    signal: controllerRef.current.signal,
    onmessage(msg) {
      const type = msg.event;
      if (type === 'content') {
        const chunk = JSON.parse(msg.data);
        accumulatedContent += chunk;
        set({ message: { ...state.message, text: accumulatedContent } });
      }
      if (type === 'response_message') {
        set({ message: JSON.parse(msg.data), isDone: true, isStreaming: false });
        controllerRef.current?.abort();
      }
      if (type === 'error') {
        set({ error: msg.data, isStreaming: false, isDone: true });
        controllerRef.current?.abort();
      }
    },
  });
  return { done, leave: () => controllerRef.current.abort() };
}

/** Reads an answer to its end, or until `enough(state)`. Gives all states, the last one last, and what was asked for. */
export async function read(fetchEventSource, options, enough = () => false) {
  const states = [];
  let hook = null;
  let left = false;
  const render = (state) => {
    states.push(state);
    options.rendered?.(state);
    left ||= enough(state);
    if (left) hook?.leave();
  };
  hook = useStreamResponse(fetchEventSource, options, render);
  await hook.done;
  return states;
}
