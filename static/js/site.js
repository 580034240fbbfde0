// On every page: what happens when a request does not come back as it should.
// Nothing on the page is touched then; the reader is told, and can send the same thing again.

{
  const notice = document.getElementById("connection");

  const tell = (text, ctx) => {
    notice.textContent = text;
    const form = ctx?.request?.form;
    if (form?.isConnected) {
      const again = document.createElement("button");
      again.type = "button";
      again.textContent = "Try again";
      again.addEventListener("click", () => form.requestSubmit(ctx.request.submitter ?? null));
      notice.append(" ", again);
    }
    notice.hidden = false;
  };
  const hush = () => { notice.hidden = true; };

  const cookie = (name) => document.cookie.split("; ").find((c) => c.startsWith(name + "="))?.slice(name.length + 1);

  // Signing in again in another tab changes the token: send the present one, not the page's.
  document.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
    const token = cookie("csrftoken");
    if (!token) return;
    ctx.request.headers["X-CSRFToken"] = token;
    if (ctx.request.body?.has?.("csrfmiddlewaretoken")) ctx.request.body.set("csrfmiddlewaretoken", token);
  });

  // A session that ended answers with the page for signing in: it must not replace what was entered.
  document.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail;
    if (ctx.response.raw.redirected && new URL(ctx.response.raw.url).pathname.endsWith("/login/")) {
      event.preventDefault();
      tell("You are signed out. Sign in again in another tab; what you entered stays here.", ctx);
    } else {
      hush();
    }
  });
  document.addEventListener("htmx:response:error", ({ detail: { ctx } }) => {
    if ([409, 422].includes(ctx.response.status)) return; // these bring a page that says what is wrong
    tell("The server could not take that. What you entered is still here.", ctx);
  });
  document.addEventListener("htmx:error", ({ detail: { ctx } }) => {
    if (ctx?.request) tell("The connection dropped. What you entered is still here.", ctx);
  });
  window.addEventListener("offline", () => tell("You are offline. What you entered stays here."));
  window.addEventListener("online", hush);
}
