// The playground: answers come over a WebSocket, one for each side that was asked, as the policy writes them.
// Until an answer is whole its words are only ever set as text; then the side is asked for anew, rendered.

import { showCopying } from "./copying.js";

const open = new Map(); // id of a side -> its socket

const listen = (side) => {
  const words = side.querySelector("[data-words]");
  const status = side.querySelector("[data-status]");
  const trouble = side.querySelector("[data-error]");
  const stop = side.querySelector("[data-stops]");
  const again = side.querySelector("[data-again]");
  const began = performance.now();
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}${side.dataset.socket}`);
  let told = false;

  const fail = (text) => {
    told = true;
    trouble.textContent = text;
    trouble.hidden = false;
    status.hidden = true;
    stop.hidden = true;
    again.hidden = false;
    side.querySelector(".coming").setAttribute("aria-busy", "false");
  };
  again.hidden = true;
  stop.hidden = false;
  stop.addEventListener("click", () => {
    stop.disabled = true;
    socket.send("stop");
  });
  socket.addEventListener("message", ({ data }) => {
    const said = JSON.parse(data);
    if (said.status) status.textContent = said.status;
    if (said.error) fail(said.error);
    if (said.text) {
      if (!words.textContent) status.textContent = `First words after ${Math.round(performance.now() - began)} ms`;
      const list = side.querySelector(".said");
      const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
      words.textContent += said.text;
      if (atEnd) list.scrollTop = list.scrollHeight;
    }
    if (said.done) {
      told = true;
      side.dispatchEvent(new CustomEvent("answered"));
    }
  });
  socket.addEventListener("close", () => {
    open.delete(side.id);
    if (!told && side.isConnected) fail("The connection dropped before the answer was whole. Ask again.");
  });
  open.set(side.id, { socket, side });
};

const look = () => {
  for (const [id, { socket, side }] of open) {
    if (!side.isConnected) {
      open.delete(id);
      socket.close();
    }
  }
  for (const side of document.querySelectorAll(".side[data-socket]")) {
    if (!open.has(side.id) && !side.dataset.heard) {
      side.dataset.heard = "yes";
      listen(side);
    }
  }
  showCopying();
  for (const list of document.querySelectorAll(".said:not([data-shown])")) { // an answer that is whole brings a new list
    list.dataset.shown = "yes";
    list.scrollTop = list.scrollHeight;
  }
  for (const hint of document.querySelectorAll(".keys-hint[hidden]")) hint.hidden = false;
};

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  const form = event.target.closest?.("[data-sends]");
  if (!form) return;
  event.preventDefault();
  form.requestSubmit();
});

// The new message is written where the old one was: the hand stays on the keys.
document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
  look();
  if (!ctx?.sourceElement?.matches?.("[data-sends]")) return;
  document.querySelector("[data-sends] textarea")?.focus({ preventScroll: true });
  const coming = document.querySelector(".coming");
  const list = coming?.closest(".said");
  if (list && list.scrollHeight <= list.clientHeight + 1) coming.scrollIntoView({ block: "nearest" });
});
window.addEventListener("pagehide", () => { for (const { socket } of open.values()) socket.close(); });
new MutationObserver(look).observe(document.getElementById("main"), { childList: true, subtree: true });
look();
