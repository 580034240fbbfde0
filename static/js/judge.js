// A rater's keys, the time a task takes, and where the focus goes when the next one comes.
// Every key presses a button or moves the focus: without this file the same page works by mouse and touch.

{
  const IDLE_AFTER = 60_000; // longer without a sign of life is not time on the task
  const UNREAD = 400; // ms: sooner nobody has read the next task, so the same press again is the old one, doubled
  const task = () => document.getElementById("task");
  const button = (key) => task().querySelector(`button[data-key="${CSS.escape(key)}"]:not(:disabled)`);
  const announce = (text) => { document.getElementById("announcement").textContent = text; };
  let busy = false;
  let shownAt = -Infinity;
  let pressed = ""; // the key or place that the present task came from

  // Time on the task

  let seconds = 0;
  let seen = performance.now();
  const live = () => {
    const now = performance.now();
    if (!document.hidden && now - seen < IDLE_AFTER) seconds += (now - seen) / 1000;
    seen = now;
  };
  for (const sign of ["pointermove", "pointerdown", "keydown", "scroll", "visibilitychange"]) {
    document.addEventListener(sign, live, { passive: true, capture: true });
  }
  const fillIn = () => {
    live();
    const field = document.querySelector('#answer [name="seconds"]');
    if (field) field.value = seconds.toFixed(1);
  };
  document.addEventListener("submit", fillIn, { capture: true });

  // The next task

  const toTheLatestTurn = () => {
    const earlier = task().querySelector(".earlier");
    if (earlier) earlier.scrollTop = earlier.scrollHeight;
  };
  const shown = () => {
    seconds = 0;
    seen = shownAt = performance.now();
    announce(task().dataset.announcement);
    toTheLatestTurn();
    task().focus({ preventScroll: true });
    window.scrollTo({ top: 0, behavior: "instant" });
  };
  document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
    if (ctx.sourceElement.id === "lease") return;
    busy = false; // the task on the screen can be answered from this moment on
    shown();
  });
  document.addEventListener("htmx:before:request", (event) => {
    const { id } = event.detail.ctx.sourceElement;
    if (id !== "lease") busy = true;
    else if (document.hidden) event.preventDefault(); // nobody looks at it: let the lease run out
  });
  document.addEventListener("htmx:finally:request", () => { busy = false; });
  document.addEventListener("visibilitychange", () => {
    const lease = document.getElementById("lease");
    if (!document.hidden && lease && window.htmx) htmx.trigger(lease, "seen");
  });

  // Guidelines stay as the rater left them

  const guidelines = document.getElementById("guidelines");
  if (guidelines) {
    const isSmall = matchMedia("(max-width: 56rem)").matches; // there they would hide the task
    if (isSmall) guidelines.open = false;
    try {
      const left = localStorage.getItem("guidelines");
      if (left) guidelines.open = left === "open";
      let asShown = guidelines.open; // what was done here is told as a toggle too, and is no choice of the rater
      guidelines.addEventListener("toggle", () => {
        if (guidelines.open === asShown) return;
        asShown = guidelines.open;
        localStorage.setItem("guidelines", asShown ? "open" : "closed");
      });
    } catch { /* storage may be switched off */ }
  }

  // Keys

  const keys = document.getElementById("keys");
  const toggleKeys = () => (keys.open ? keys.close() : keys.showModal());
  const press = (target) => {
    if (!target) return false;
    target.click();
    return true;
  };

  const skip = () => document.getElementById("skip");
  const openSkip = () => {
    if (!skip()) return false;
    skip().open = !skip().open;
    (skip().open ? skip().querySelector("button") : task()).focus();
    return true;
  };
  for (const sign of ["pointerdown", "focusin"]) {
    document.addEventListener(sign, ({ target }) => {
      if (skip()?.open && !skip().contains(target)) skip().open = false;
    });
  }

  const alongScale = (step) => {
    const answers = [...task().querySelectorAll(".scale button")];
    const place = answers.indexOf(document.activeElement);
    const start = step > 0 ? -1 : answers.length;
    const next = answers[(place < 0 ? start : place) + step];
    next?.focus();
    return Boolean(next);
  };

  const criteria = () => [...task().querySelectorAll(".criterion")];
  const openCriterion = () =>
    document.activeElement.closest?.(".criterion") ?? criteria().find((c) => !c.querySelector(":checked")) ?? criteria()[0];
  const toCriterion = (criterion) => {
    (criterion?.querySelector(":checked") ?? criterion?.querySelector("input"))?.focus();
    return Boolean(criterion);
  };
  const score = (digit) => {
    const criterion = openCriterion();
    const chosen = criterion?.querySelector(`input[value="${digit}"]`);
    if (!chosen) return false;
    chosen.checked = true;
    announce(`${criterion.dataset.name}: ${digit}`);
    const all = criteria();
    const next = all.slice(all.indexOf(criterion) + 1).find((c) => !c.querySelector(":checked"));
    if (next) toCriterion(next);
    else chosen.focus();
    return true;
  };
  const save = () => {
    document.getElementById("answer").requestSubmit();
    return true;
  };

  const name = ({ key }) => (key.length === 1 ? key.toLowerCase() : key); // caps lock is no other key

  const onKey = {
    comparison: (event) => {
      if (event.key === "ArrowLeft") return alongScale(-1);
      if (event.key === "ArrowRight") return alongScale(1);
      return /^[1-9tb]$/.test(name(event)) && press(button(name(event)));
    },
    rating: (event) => {
      const all = criteria();
      const place = all.indexOf(document.activeElement.closest?.(".criterion"));
      if (event.key === "ArrowUp") return toCriterion(all[place < 0 ? 0 : place - 1]);
      if (event.key === "ArrowDown") return toCriterion(all[place + 1]);
      if (event.key === "Enter" && !document.activeElement.closest("button, a, summary")) return save();
      return /^[0-9]$/.test(event.key) && score(event.key);
    },
    ranking: (event) => {
      if (event.key === "Enter" && !document.activeElement.closest("button, a, summary")) return save();
      return window.rankingKey?.(event) ?? false;
    },
    nothing: () => false,
  };

  const onSkipKey = (event) => {
    if (event.key === "Escape") return openSkip();
    return press(task().querySelector(`[data-skip-key="${CSS.escape(event.key)}"]`));
  };

  const handle = (event) => {
    if (event.key === "?") return toggleKeys() ?? true;
    if (keys.open || !task()) return false;
    if (skip()?.open) return onSkipKey(event) || (name(event) === "s" && openSkip());
    if (name(event) === "g" && guidelines) return (guidelines.open = !guidelines.open), true;
    if (name(event) === "s") return openSkip();
    if (name(event) === "u") return press(button("u"));
    return onKey[task().dataset.kind](event);
  };

  // The second half of a double press or double click would answer a task that nobody has read.
  const isDoubled = (what) => what === pressed && performance.now() - shownAt < UNREAD;
  document.addEventListener("click", (event) => {
    if (event.detail === 0 || !event.target.closest("#task button")) return; // 0: pressed by a key, not a pointer
    const place = `${Math.round(event.clientX / 16)},${Math.round(event.clientY / 16)}`;
    if (isDoubled(place) || (event.detail > 1 && performance.now() - shownAt < 2 * UNREAD)) {
      event.preventDefault();
      event.stopPropagation();
    } else {
      pressed = place;
    }
  }, { capture: true });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const isText = event.target.matches('textarea, input:not([type="radio"], [type="number"])') && event.key !== "Escape";
    const isDigitInField = event.target.matches('[type="number"]') && !event.shiftKey && !/^(Arrow|Enter|[a-z?])/.test(event.key);
    if (isText || isDigitInField) return;
    if (busy && event.key !== "?") {
      if (/^([0-9a-z]|Enter)$/.test(event.key)) event.preventDefault();
      return;
    }
    const isArrow = event.key.startsWith("Arrow");
    if (isDoubled(name(event)) && !isArrow) return event.preventDefault();
    if (event.repeat && !isArrow) return;
    pressed = name(event);
    if (handle(event)) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest('[data-key="?"]')) toggleKeys();
  });
  toTheLatestTurn();
}
