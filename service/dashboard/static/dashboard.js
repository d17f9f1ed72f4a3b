// What htmx does not do by itself. Pages are whole without any of this.
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // A part that is refreshed keeps what somebody has opened, is writing, or is listening to.
  Object.assign(Idiomorph.defaults.callbacks, {
    beforeAttributeUpdated: (name, node) => !(name === "open" && node.localName === "details"),
    beforeNodeMorphed: (node) => !(node.localName === "form" && node.matches(":focus-within, [data-touched]")),
  });
  document.addEventListener("input", (event) => event.target.form?.setAttribute("data-touched", ""));

  const liveness = (words) => {
    const shown = document.getElementById("liveness");
    if (shown && shown.textContent !== words) shown.textContent = words;
  };
  if (document.querySelector("#live[hx-get]")) liveness("Live");
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden || !document.getSelection().isCollapsed) event.preventDefault(); // nobody looks, or somebody copies
  });
  document.addEventListener("htmx:afterRequest", (event) => liveness(event.detail.successful ? "Live" : "Not live: no answer"));

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch { // a page that is not https has no clipboard: select what is to be copied instead
      getSelection().selectAllChildren(button.previousElementSibling);
      if (!document.execCommand("copy")) return;
      getSelection().removeAllRanges();
    }
    button.classList.add("copied");
    const label = button.getAttribute("aria-label");
    button.setAttribute("aria-label", "Copied");
    setTimeout(() => { button.classList.remove("copied"); button.setAttribute("aria-label", label); }, 1500);
  });
})();
