/* The four verdicts as switches, each with its sign, its word and the line that stands for it on the map. */

import { VERDICTS } from "./format.js";
import { h, icon, svg } from "./dom.js";

/** `changed` is given the verdicts that are on, in their order. */
export function verdictToggles(changed) {
  const buttons = VERDICTS.map((verdict) =>
    h(
      "button",
      {
        type: "button",
        class: `toggle v-${verdict}`,
        "data-verdict": verdict,
        "aria-pressed": "true",
        onclick: (event) => flip(event.currentTarget),
      },
      icon(verdict),
      h("span", {}, verdict),
      svg(
        "svg",
        { class: "sample", viewBox: "0 0 26 6", "aria-hidden": "true" },
        svg("path", { d: "M1 3H25", class: `edge e-${verdict}`, "stroke-width": 2.5 }),
      ),
    ),
  );
  const on = () =>
    buttons.filter((each) => each.getAttribute("aria-pressed") === "true").map((each) => each.dataset.verdict);
  const flip = (button) => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    changed(on());
  };
  const set = (verdicts) =>
    buttons.forEach((each) => each.setAttribute("aria-pressed", verdicts.includes(each.dataset.verdict)));
  return { element: h("div", { class: "toggles", role: "group", "aria-label": "Verdicts" }, buttons), set };
}
