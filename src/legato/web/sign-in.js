/** The page that signs in and out. The key goes to the server, which keeps it in a cookie that no script can read. */

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

/** @param {string} method @param {string} path @param {any} [body] */
function ask(method, path, body) {
  const headers = method === "POST" ? { "content-type": "application/json" } : undefined;
  return fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
}

/** Show who is signed in, or the form. */
async function look() {
  const answer = await ask("GET", "api/auth/whoami").catch(() => null);
  const who = answer?.ok ? await answer.json() : null;
  $("form").hidden = who !== null;
  $("who").hidden = who === null;
  if (who === null) return $("key").focus();
  $("name").textContent = `Signed in as ${who.subject}`;
  const scopes = who.scopes === null ? "" : `This key is good for: ${who.scopes.join(", ")}. `;
  $("until").textContent = scopes + (who.expiresAt ? `It is good until ${new Date(who.expiresAt).toLocaleString()}.` : "");
}

/** @param {SubmitEvent} event */
async function enter(event) {
  event.preventDefault();
  $("trouble").textContent = "";
  try {
    const answer = await ask("POST", "api/auth/sign-in", { token: $("key").value.trim() });
    if (answer.ok) {
      if (location.pathname.endsWith("/sign-in")) location.assign("./");
      else location.reload(); // it stands in the place of the page that was asked for
      return;
    }
    $("trouble").textContent = (await answer.json()).error?.message ?? `The server answered ${answer.status}.`;
  } catch {
    $("trouble").textContent = "The server does not answer; try again.";
  }
  $("key").select();
}

async function leave() {
  const answer = await ask("POST", "api/auth/sign-out").catch(() => null);
  if (answer?.ok) return look();
  $("until").textContent = "The server does not answer; you are still signed in.";
}

$("form").addEventListener("submit", enter);
$("out").addEventListener("click", () => void leave());
void look();
