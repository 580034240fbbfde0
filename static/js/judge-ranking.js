// Ranking by drag and keys. The number fields are the truth: moving a text rewrites the numbers,
// typing a number moves the text. What is below the line has no number and is not ranked.

{
  const list = () => document.getElementById("ranking");
  const line = () => list().querySelector(".unranked-line");
  const texts = () => [...list().querySelectorAll(".rankable")];
  const field = (text) => text.querySelector('input[type="number"]');
  const isRanked = (text) => Boolean(text.compareDocumentPosition(line()) & Node.DOCUMENT_POSITION_FOLLOWING);
  const ranked = () => texts().filter(isRanked);

  // From places to numbers, and back

  const showTie = (text) => {
    text.querySelector('[data-move="tie"]')?.setAttribute("aria-pressed", text.classList.contains("tied"));
  };
  const number = () => {
    let rank = 0;
    for (const text of texts()) {
      if (!isRanked(text) || rank === 0) text.classList.remove("tied");
      const tied = text.classList.contains("tied");
      field(text).value = isRanked(text) ? (tied ? rank : ++rank) : "";
      showTie(text);
    }
  };
  // Numbers stay as they are typed: the next one may be meant to come before them.
  const arrange = () => {
    const all = texts();
    const rank = (text) => Number.parseInt(field(text).value, 10) || Infinity;
    const sorted = all.filter((t) => rank(t) < Infinity).sort((a, b) => rank(a) - rank(b));
    const ties = list().dataset.ties === "yes";
    for (const t of all) t.classList.remove("tied");
    sorted.forEach((t, i) => t.classList.toggle("tied", ties && i > 0 && rank(t) === rank(sorted[i - 1])));
    list().append(...sorted, line(), ...all.filter((t) => rank(t) === Infinity));
    for (const t of all) showTie(t);
  };

  // One text moves

  const say = (text) => {
    const rank = field(text).value;
    const tied = text.classList.contains("tied") ? ", tied" : "";
    document.getElementById("announcement").textContent =
      `${text.getAttribute("aria-label")}: ${rank ? `rank ${rank}${tied}` : "not ranked"}`;
  };
  const settle = (text, focused) => {
    number();
    say(text);
    focused?.focus();
    text.scrollIntoView({ block: "nearest" });
  };
  // Who moves leaves a tie; the others of it stay tied among themselves, and never with a newcomer.
  const untie = (text) => text?.classList.remove("tied");
  const lift = (text) => {
    if (!text.classList.contains("tied")) untie(text.nextElementSibling);
    untie(text);
  };
  const land = (text) => untie(text.nextElementSibling);
  const place = (text, put) => {
    const focused = document.activeElement;
    lift(text);
    put();
    land(text);
    settle(text, focused);
  };
  const move = (text, step) => {
    const neighbour = step < 0 ? text.previousElementSibling : text.nextElementSibling;
    if (neighbour) place(text, () => (step < 0 ? neighbour.before(text) : neighbour.after(text)));
  };
  const tie = (text) => {
    if (list().dataset.ties !== "yes" || ranked().indexOf(text) < 1) return;
    text.classList.toggle("tied");
    settle(text, document.activeElement);
  };
  const putAt = (text, rank) => place(text, () => {
    const heads = ranked().filter((t) => t !== text && !t.classList.contains("tied"));
    (heads[rank - 1] ?? line()).before(text);
  });
  const rankAll = () => {
    list().append(line());
    number();
    document.getElementById("announcement").textContent = "All are ranked, in the order in which they stand";
  };
  const takeOut = (text) => place(text, () => list().append(text));

  const toText = (step) => {
    const all = texts();
    const place = all.indexOf(document.activeElement.closest(".rankable"));
    const next = all[place < 0 ? (step > 0 ? 0 : all.length - 1) : place + step];
    next?.focus();
    return true;
  };

  window.rankingKey = (event) => {
    const text = document.activeElement.closest(".rankable");
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const step = event.key === "ArrowUp" ? -1 : 1;
      if (event.shiftKey && text) return move(text, step), true;
      return toText(step);
    }
    if (event.key === "a") return rankAll(), true;
    if (!text) return false;
    if (event.key === "t") return tie(text), true;
    if (event.key === "0") return takeOut(text), true;
    if (/^[1-9]$/.test(event.key)) return putAt(text, Number(event.key)), true;
    return false;
  };

  document.addEventListener("click", (event) => {
    const pressed = event.target.closest("[data-move]");
    if (!pressed) return;
    if (pressed.dataset.move === "all") return rankAll();
    const text = pressed.closest(".rankable");
    if (pressed.dataset.move === "tie") tie(text);
    else move(text, pressed.dataset.move === "up" ? -1 : 1);
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches('.rankable input[type="number"]')) return;
    setTimeout(() => { // once the focus is where the rater goes next: moving a field would take it away
      const focused = document.activeElement;
      arrange();
      focused.focus({ preventScroll: true });
      say(event.target.closest(".rankable"));
    });
  });

  const start = () => {
    if (!list() || list().classList.contains("ready")) return;
    list().classList.add("ready");
    line().hidden = false;
    list().prepend(line());
    for (const text of texts()) text.tabIndex = 0;
    arrange();
    number();
    Sortable.create(list(), {
      draggable: ".rankable, .unranked-line",
      handle: matchMedia("(max-width: 40rem)").matches ? ".handle" : ".rank", // a narrow screen is scrolled there
      filter: "input, button",
      preventOnFilter: false,
      animation: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 120,
      onStart: ({ item }) => lift(item),
      onEnd: ({ item }) => {
        land(item);
        number();
        if (item.matches(".rankable")) say(item);
      },
    });
  };
  document.addEventListener("htmx:after:swap", start);
  document.addEventListener("DOMContentLoaded", start);
}
