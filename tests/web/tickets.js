// An EventSource for each of two tickets, and each of them a second time.
async ({ session, token }) => {
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    let last = "";
    const texts = [];
    for (let n = 0; n < 2; n += 1) {
        const body = JSON.stringify({ sessionId: session });
        const { ticket } = await (await fetch("/tickets", { method: "POST", headers, body, credentials: "omit" })).json();
        const query = new URLSearchParams({ sessionId: session, ticket, client: "legato", from: "start", lastEventId: last });
        const stream = new EventSource(`/stream?${query}`);
        texts.push(await new Promise((resolve) => {
            stream.addEventListener("complete", (event) => { last = event.lastEventId; resolve(event.type); });
            stream.addEventListener("connected", (event) => { if (last) resolve(JSON.parse(event.data).sessionId); });
            stream.onerror = () => resolve("lost");
        }));
        stream.close();
        const again = new EventSource(`/stream?${query}`);
        texts.push(await new Promise((resolve) => {
            again.onopen = () => resolve("opened");
            again.onerror = () => resolve(again.readyState);
        }));
        again.close();
    }
    return texts;
}
