// A rater's keys, the time a task takes, and where the focus goes when the next one comes.
// Every key presses a button or moves the focus: without this file the same page works by mouse and touch.

{
  const IDLE_AFTER = 60_000; // longer without a sign of life is not time on the task
  const task = () => document.getElementById("task");
  const button = (key) => task().querySelector(`button[data-key="${CSS.escape(key)}"]:not(:disabled)`);
  let busy = false;

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

  const shown = () => {
    seconds = 0;
    seen = performance.now();
    document.getElementById("announcement").textContent = task().dataset.announcement;
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
    try {
      if (localStorage.getItem("guidelines") === "closed") guidelines.open = false;
      guidelines.addEventListener("toggle", () => {
        localStorage.setItem("guidelines", guidelines.open ? "open" : "closed");
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

  const openSkip = () => {
    const skip = document.getElementById("skip");
    if (!skip) return false;
    skip.open = !skip.open;
    (skip.open ? skip.querySelector("button") : task()).focus();
    return true;
  };

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

  const onKey = {
    comparison: (event) => {
      if (event.key === "ArrowLeft") return alongScale(-1);
      if (event.key === "ArrowRight") return alongScale(1);
      return /^[1-9tb]$/.test(event.key) && press(button(event.key));
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
    if (keys.open) return false;
    if (document.activeElement.closest("#skip[open]")) return onSkipKey(event) || (event.key === "s" && openSkip());
    if (event.key === "g" && guidelines) return (guidelines.open = !guidelines.open), true;
    if (event.key === "s") return openSkip();
    if (event.key === "u") return press(button("u"));
    return onKey[task().dataset.kind](event);
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const isText = event.target.matches('textarea, input:not([type="radio"], [type="number"])');
    const isDigitInField = event.target.matches('[type="number"]') && !event.shiftKey && !/^(Arrow|Enter|[a-z?])/.test(event.key);
    if (isText || isDigitInField) return;
    if (busy && event.key !== "?") {
      if (/^([0-9a-z]|Enter)$/.test(event.key)) event.preventDefault();
      return;
    }
    if (event.repeat && !event.key.startsWith("Arrow")) return;
    if (handle(event)) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest('[data-key="?"]')) toggleKeys();
  });
}
