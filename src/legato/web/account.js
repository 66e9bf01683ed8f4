/** On a page of who is signed in: when that is over, the page gives way to the one that signs in. */

async function look() {
  if (document.hidden) return;
  const answer = await fetch("api/auth/whoami", { cache: "no-store" }).catch(() => null);
  if (answer?.status === 401) location.reload(); // what was typed and sent is kept, see `Memory`
}

document.addEventListener("visibilitychange", () => void look());
setInterval(() => void look(), 30_000);
