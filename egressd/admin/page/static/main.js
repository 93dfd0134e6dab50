/* The page: tabs, the views behind them, and the keys that work everywhere. */

import { explainView } from "./explain.js";
import { grantsView } from "./grants.js";
import { header } from "./header.js";
import { here, link } from "./route.js";
import { logView } from "./log.js";
import { mapView } from "./map.js";
import { policiesView } from "./policies.js";
import { h } from "./dom.js";

const VIEWS = [
  ["map", "Map", mapView],
  ["log", "Log", logView],
  ["policies", "Policies", policiesView],
  ["grants", "Grants", grantsView],
  ["explain", "Explain", explainView],
];

const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const made = new Map();
let current = null;

/** A view is made when it is first looked at: `{element, show(parameters), hide()}`. */
function view(id) {
  if (!made.has(id)) {
    const [, title, make] = VIEWS.find(([each]) => each === id);
    const built = make();
    const panel = h(
      "section",
      { id: `view-${id}`, class: `view view-${id}`, role: "tabpanel", "aria-label": title, hidden: true },
      built.element,
    );
    main.append(panel);
    made.set(id, { ...built, panel });
  }
  return made.get(id);
}

function route() {
  const { view: wanted, parameters } = here();
  const id = VIEWS.some(([each]) => each === wanted) ? wanted : "map";
  const next = view(id);
  if (current && current !== next) {
    current.hide();
    current.panel.hidden = true;
  }
  current = next;
  next.panel.hidden = false;
  for (const tab of tabs.children) {
    const chosen = tab.dataset.view === id;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) document.title = `${tab.textContent} – egressd`;
  }
  next.show(parameters);
}

function makeTabs() {
  for (const [id, title] of VIEWS) {
    tabs.append(
      h(
        "a",
        { role: "tab", href: link(id), "data-view": id, "aria-controls": `view-${id}`, draggable: "false" },
        title,
      ),
    );
  }
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = [...tabs.children].indexOf(document.activeElement);
    const next =
      event.key === "Home"
        ? 0
        : event.key === "End"
          ? VIEWS.length - 1
          : step
            ? (at + step + VIEWS.length) % VIEWS.length
            : -1;
    if (at < 0 || next < 0) return;
    event.preventDefault();
    tabs.children[next].focus();
    tabs.children[next].click();
  });
}

/** `/` goes to the filter; Escape leaves it, or closes what the view has open. */
function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "/" && !typing) {
    const box = current?.panel.querySelector(".filter");
    if (!box) return;
    event.preventDefault();
    box.focus();
    box.select();
  } else if (event.key === "Escape") {
    if (typing) event.target.blur();
    else current?.escape?.();
  }
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
makeTabs();
header();
window.addEventListener("hashchange", route);
document.addEventListener("keydown", keys);
route();
