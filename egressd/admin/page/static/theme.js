/* Light or dark, before anything is drawn: as the system says, unless the reader chose otherwise here. */
"use strict";
(() => {
  try {
    const chosen = localStorage.getItem("egressd-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    /* Storage may be forbidden; then the system decides. */
  }
})();
