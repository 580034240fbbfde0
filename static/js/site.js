// On every page: what happens when a request does not come back.
// Nothing on the page is touched then; the reader is told, and may try again.

const notice = document.getElementById("connection");

function tell(text) {
  notice.textContent = text;
  notice.hidden = false;
}

document.addEventListener("htmx:error", (event) => {
  if (event.detail.ctx?.request) {
    tell("The connection dropped. Nothing here is lost: try again in a moment.");
  }
});
document.addEventListener("htmx:after:swap", () => { notice.hidden = true; });
window.addEventListener("offline", () => tell("You are offline. Nothing here is lost: go on when the connection is back."));
window.addEventListener("online", () => { notice.hidden = true; });
