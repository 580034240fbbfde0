// Buttons that copy: what their answer says, or the element that data-copies names.

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copies]");
  if (!button) return;
  const name = button.dataset.copies;
  const source = name ? document.getElementById(name) : button.closest(".answer").querySelector(".prose");
  const before = button.dataset.before ?? (button.dataset.before = button.textContent);
  try {
    await navigator.clipboard.writeText(source.innerText.trim());
    button.textContent = "Copied";
  } catch { // no permission, or a page that is not served safely: the reader copies by hand
    getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl C";
  }
  setTimeout(() => { button.textContent = before; }, 1500);
});

export const showCopying = () => {
  for (const copies of document.querySelectorAll("[data-copies][hidden]")) copies.hidden = false;
};
showCopying();
