// A page of questions and answers in React, with the hook `useStreamResponse`.
//
//     legato serve                          in one terminal
//     npm start --prefix examples/react     in another; then open http://127.0.0.1:8090
//
// Another server: http://127.0.0.1:8090/?server=http://localhost:9000. Reload in the middle of an answer, open the page
// twice, stop the server and start it again: the answers go on where they were.
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { LegatoCore, createSession, messages, sendMessage } from "legato";
import { useStreamResponse } from "legato/react.js";

const place = new URL(location.href);
const core = new LegatoCore({ baseUrl: place.searchParams.get("server") ?? "http://localhost:8088" });

function Answer({ threadId, messageId }) {
  const { message, isStreaming, error, isReconnecting, retry, stop } = useStreamResponse({
    threadId,
    messageId,
    baseUrl: core.baseUrl,
    // headers: async () => ({ authorization: `Bearer ${await token()}` }), asked for anew with each request
  });
  return (
    <div aria-busy={isStreaming}>
      <p className="answer">{message?.text ?? (isStreaming ? "…" : "")}</p>
      {isReconnecting && <p role="status">Reconnecting…</p>}
      {isStreaming && <button onClick={stop}>Stop</button>}
      {error?.code === "cancelled" ? <p>Stopped.</p> : error && <p role="alert">{error.message}</p>}
      {error && <button onClick={retry}>Try again</button>}
    </div>
  );
}

function Page() {
  const [threadId, setThreadId] = useState(place.searchParams.get("thread") ?? undefined);
  const [questions, setQuestions] = useState([]);
  const [problem, setProblem] = useState("");

  useEffect(() => {
    if (threadId === undefined || questions.length > 0) return;
    const leaving = new AbortController();
    messages(core, { sessionId: threadId, signal: leaving.signal })
      .then((all) => setQuestions(all.filter(({ role }) => role === "user").map(({ id, userInput }) => ({ id, text: userInput }))))
      .catch((error) => leaving.signal.aborted || setProblem(error.message));
    return () => leaving.abort();
  }, [threadId]);

  async function ask(event) {
    event.preventDefault();
    const form = event.currentTarget;
    const text = new FormData(form).get("question");
    form.reset();
    try {
      const thread = threadId ?? (await createSession(core, { title: text.slice(0, 80) })).id;
      const { messageId } = await sendMessage(core, { sessionId: thread, text });
      place.searchParams.set("thread", thread);
      history.replaceState(null, "", place);
      setQuestions((before) => [...before, { id: messageId, text }]);
      setThreadId(thread);
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
  }

  return (
    <>
      <h1>Ask</h1>
      {questions.map(({ id, text }) => (
        <article key={id}>
          <p className="question">{text}</p>
          <Answer threadId={threadId} messageId={id} />
        </article>
      ))}
      {problem && <p role="alert">{problem}</p>}
      <form onSubmit={ask}>
        <input name="question" aria-label="Your question" required autoComplete="off" />
        <button>Ask</button>
      </form>
    </>
  );
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <Page />
  </StrictMode>,
);
