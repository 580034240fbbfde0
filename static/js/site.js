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
  let unsaved = null; // what was sent and did not arrive
  const keep = (text, ctx) => {
    if (ctx.request.form) unsaved = ctx;
    tell(text, ctx);
  };

  const cookie = (name) => document.cookie.split("; ").find((c) => c.startsWith(name + "="))?.slice(name.length + 1);

  // Signing in again in another tab changes the token: send the present one, not the page's.
  document.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
    ctx.request.headers["X-Page-Of"] = document.body.dataset.user ?? "";
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
      keep("You are signed out. Sign in again in another tab; what you entered stays here.", ctx);
    } else if (ctx.sourceElement.id !== "lease") {
      unsaved = null;
      hush();
    }
  });
  document.addEventListener("htmx:response:error", ({ detail: { ctx } }) => {
    if ([409, 422].includes(ctx.response.status)) return; // these bring a page that says what is wrong
    keep(reason(ctx), ctx);
  });
  // 403 comes with a word of ours, or from the check against forged forms.
  const reason = ({ response, text }) => {
    const isWord = response.status === 403 && response.raw.headers.get("Content-Type")?.startsWith("text/plain");
    if (isWord && text) return text;
    if (response.status === 403) return "The server refused that. You may be signed out: sign in again in another tab, then try again.";
    return "The server could not take that. What you entered is still here.";
  };

  // What is no answer of ours (a proxy's page, a hotel's network) must not replace a rater's task.
  document.addEventListener("htmx:before:swap", (event) => {
    const { ctx } = event.detail;
    const isTask = ctx.sourceElement?.closest?.("#task") && ctx.sourceElement.id !== "lease";
    if (!isTask || ctx.swap === "none" || ctx.text?.includes('id="task"')) return;
    event.preventDefault();
    if (ctx.response.status < 400) keep("That was no answer of this server. What you entered is still here.", ctx);
  });

  document.addEventListener("htmx:error", ({ detail: { ctx } }) => {
    if (ctx?.request) keep("The connection dropped. What you entered is still here.", ctx);
  });
  window.addEventListener("offline", () => tell("You are offline. What you entered stays here.", unsaved));
  window.addEventListener("online", () => {
    if (unsaved) tell("You are online again. Your last answer is not saved yet.", unsaved);
    else hush();
  });
}
