// Everything that a stranger's page can try; what came of each, as text. See tests/test_strangers_page.py.
async ({ base, session, credentials }) => {
    const got = [];
    const note = (what, text) => got.push(`${what}: ${text}`);
    const ask = async (what, path, init = {}) => {
        try {
            const answer = await fetch(base + path, { credentials, signal: AbortSignal.timeout(5000), ...init });
            note(what, answer.type === "opaque" ? "opaque" : `${answer.status} ${(await answer.text()).slice(0, 2000)}`);
        } catch (error) { note(what, error.name); }
    };
    const send = JSON.stringify({ text: "pwned", input: "pwned", content: "pwned", title: "pwned" });
    const READS = ["/api/sessions", `/api/sessions/${session}`, `/api/sessions/${session}/messages`, "/api/inspect",
        `/api/sessions/${session}/export`, `/stream?sessionId=${session}&from=start`, "/v1/models", "/api/auth/whoami"];
    const WRITES = ["/api/sessions", `/api/sessions/${session}/messages`, `/stream/${session}/message`, "/v1/responses",
        "/v1/chat/completions", `/api/sessions/${session}/cancel`, "/tickets", "/api/auth/sign-in", "/api/auth/sign-out"];
    for (const path of READS) {
        await ask(`GET ${path}`, path);
        await ask(`GET no-cors ${path}`, path, { mode: "no-cors" });
    }
    for (const path of WRITES) {
        await ask(`POST json ${path}`, path, { method: "POST", body: send, headers: { "content-type": "application/json" } });
        for (const type of ["text/plain", "application/x-www-form-urlencoded", ""]) {
            const body = new Blob([send], { type });
            await ask(`POST no-cors ${type} ${path}`, path, { method: "POST", body, mode: "no-cors" });
        }
        navigator.sendBeacon(base + path, send);
        navigator.sendBeacon(base + path, new Blob([send], { type: "text/plain" }));
    }
    await ask("DELETE", `/api/sessions/${session}`, { method: "DELETE" });
    for (const [tag, attribute] of [["img", "src"], ["script", "src"], ["link", "href"], ["iframe", "src"], ["video", "src"]]) {
        for (const path of ["/api/sessions", `/stream?sessionId=${session}&from=start`, "/"]) {
            const element = document.createElement(tag);
            if (tag === "link") element.rel = "stylesheet";
            element[attribute] = base + path;
            await new Promise((resolve) => {
                element.onload = element.onerror = resolve;
                setTimeout(resolve, 300);
                document.body.append(element);
            });
            let seen = "nothing";
            try { seen = element.contentDocument?.body?.textContent ?? "nothing"; } catch { seen = "closed"; }
            note(`${tag} ${path}`, seen);
        }
    }
    await new Promise((resolve) => {
        const stream = new EventSource(`${base}/stream?sessionId=${session}&from=start`,
            { withCredentials: credentials === "include" });
        stream.onmessage = ({ data }) => note("EventSource", data);
        stream.addEventListener("connected", ({ data }) => note("EventSource", data));
        stream.addEventListener("content", ({ data }) => note("EventSource", data));
        stream.onerror = () => { note("EventSource", "error"); stream.close(); resolve(); };
        setTimeout(() => { stream.close(); resolve(); }, 1000);
    });
    for (const [path, enctype] of [["/api/sessions", "text/plain"], [`/api/sessions/${session}/messages`, "text/plain"],
            [`/api/sessions/${session}/cancel`, "multipart/form-data"], ["/v1/responses", "application/x-www-form-urlencoded"],
            ["/tickets", "text/plain"]]) {
        const frame = document.createElement("iframe");
        frame.name = "target" + Math.random();
        document.body.append(frame);
        const form = document.createElement("form");
        Object.assign(form, { method: "POST", action: base + path, enctype, target: frame.name });
        const input = document.createElement("input");
        // As text/plain this is one JSON object.
        Object.assign(input, { name: send.slice(0, -1) + ',"x":"', value: '"}' });
        form.append(input);
        document.body.append(form);
        form.submit();
        await new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 300); });
    }
    return got;
}
