/* The map: who asks for what. What is to be seen is in the address; the rest is asked for again while somebody looks. */

import { MapCanvas } from "./canvas.js";
import { Poller, ask } from "./client.js";
import { VERDICTS, count, plural } from "./format.js";
import { build, wanted } from "./graph.js";
import { fillSelect, filterBox, h, icon } from "./dom.js";
import { detail } from "./edgelist.js";
import { go } from "./route.js";
import { verdictToggles } from "./toggles.js";

const EVERY_MS = 3000;
const LIMIT = 10000;
const ROWS = 60;
const HOUR = "1h";
/** Whole days, UTC, as history keeps them, the last one by hours, too; the number is how many there are before today. */
const SPANS = [
  [HOUR, 0],
  ["today", 0],
  ["2d", 1],
  ["7d", 6],
];
const TITLES = {
  [HOUR]: "This hour and the one before",
  today: "Today",
  "2d": "Yesterday and today",
  "7d": "Today and the six days before",
};
const DEFAULT_SPAN = "2d";

export function mapView() {
  const view = new MapView();
  return {
    element: view.element,
    show: (parameters) => view.show(parameters),
    hide: () => view.asking.stop(),
    escape: () => view.focus({}),
  };
}

/** When a span begins, as the daemon is asked for it. */
function beginning(span) {
  const day = new Date();
  if (span === HOUR) day.setUTCHours(day.getUTCHours() - 1, 0, 1, 0); // a second late, lest it be a midnight
  else day.setUTCHours(0, 0, 0, 0);
  day.setUTCDate(day.getUTCDate() - new Map(SPANS).get(span));
  return day.toISOString().replace(".000Z", "Z");
}

class MapView {
  constructor() {
    this.answer = { edges: [], truncated: false };
    this.pods = [];
    this.most = { left: ROWS, right: ROWS };
    this.seen = this.read({});
    this.canvas = new MapCanvas(
      (row) => this.chosen(row),
      (side) => this.more(side),
    );
    this.element = this.build();
    this.asking = new Poller(
      (signal) =>
        Promise.all([
          ask("map", { since: beginning(this.seen.since), limit: LIMIT }, signal),
          ask("pods", { limit: LIMIT }, signal).catch(() => ({ pods: [] })),
        ]),
      EVERY_MS,
      ([answer, { pods }]) => this.answered(answer, pods),
      (problem) => this.refused(problem),
    );
  }

  build() {
    this.filter = filterBox("Filter the map", "Workload or name", (q) => this.choose({ q }));
    this.namespace = h("select", {
      "aria-label": "Namespace",
      onchange: () => this.choose({ namespace: this.namespace.value }),
    });
    fillSelect(this.namespace, [["", "all namespaces"]], "");
    this.spans = h(
      "div",
      { class: "segments", role: "group", "aria-label": "How far back" },
      SPANS.map(([span]) =>
        h(
          "button",
          {
            type: "button",
            "data-span": span,
            title: `${TITLES[span]}; days begin at 00:00 UTC`,
            onclick: () => this.choose({ since: span }, true),
          },
          span,
        ),
      ),
    );
    this.toggles = verdictToggles((verdicts) => this.choose({ verdicts }));
    this.noise = h("input", { type: "checkbox", onchange: () => this.choose({ noise: !this.noise.checked }) });
    this.note = h("p", { class: "note", role: "status" });
    this.thin = h("p", { class: "thin" });
    this.crumbs = h("div", { class: "crumbs" });
    this.detail = h("aside", { class: "detail", "aria-label": "What is in focus", hidden: true });
    this.nothing = h("div", { class: "empty big", hidden: true });
    const bar = h(
      "div",
      { class: "toolbar" },
      this.filter,
      this.namespace,
      this.spans,
      this.toggles.element,
      h("label", { class: "check" }, this.noise, "hide search noise"),
    );
    return h(
      "div",
      { class: "pane" },
      bar,
      this.crumbs,
      this.note,
      h(
        "div",
        { class: "split" },
        h("div", { class: "map-area" }, this.nothing, this.canvas.element, this.thin),
        this.detail,
      ),
    );
  }

  // ------------------------------------------------------------------------------------------- what is to be seen

  read(parameters) {
    return {
      q: parameters.q ?? "",
      namespace: parameters.namespace ?? "",
      since: SPANS.some(([span]) => span === parameters.since) ? parameters.since : DEFAULT_SPAN,
      verdicts: parameters.verdict ? VERDICTS.filter((each) => parameters.verdict.split(",").includes(each)) : VERDICTS,
      noise: parameters.noise === "1",
      focus: { workload: parameters.workload ?? "", name: parameters.name ?? "", group: parameters.group ?? "" },
    };
  }

  written({ q, namespace, since, verdicts, noise, focus }) {
    const some = verdicts.length < VERDICTS.length ? verdicts.join(",") || "none" : "";
    return {
      q,
      namespace,
      since: since === DEFAULT_SPAN ? "" : since,
      verdict: some,
      noise: noise ? "1" : "",
      ...focus,
    };
  }

  show(parameters) {
    const before = this.seen;
    this.seen = this.read(parameters);
    if (JSON.stringify(before.focus) !== JSON.stringify(this.seen.focus)) this.most = { left: ROWS, right: ROWS };
    const { q, namespace, since, verdicts, noise } = this.seen;
    const box = this.filter.querySelector("input");
    if (box !== document.activeElement) box.value = q;
    this.noise.checked = !noise;
    this.toggles.set(verdicts);
    this.choices(namespace);
    for (const each of this.spans.children) each.setAttribute("aria-pressed", each.dataset.span === since);
    if (before.since !== since) this.asking.again();
    this.asking.start();
    this.draw();
  }

  choose(change, again = false) {
    this.seen = { ...this.seen, ...change };
    this.most = { left: ROWS, right: ROWS };
    go("map", this.written(this.seen), { instead: true });
    for (const each of this.spans.children) each.setAttribute("aria-pressed", each.dataset.span === this.seen.since);
    if (again) this.asking.again();
    else this.draw();
  }

  /** Put something into focus, or with {} nothing: a step that Back undoes. */
  focus(change) {
    const none = { workload: "", name: "", group: "" };
    go(
      "map",
      this.written({ ...this.seen, focus: Object.keys(change).length ? { ...this.seen.focus, ...change } : none }),
    );
  }

  chosen(row) {
    const { focus } = this.seen;
    if (row.workload) this.focus({ workload: focus.workload === row.key ? "" : row.key });
    else if (row.group) this.focus({ group: row.group });
    else this.focus({ name: focus.name === row.name ? "" : row.name });
  }

  more(side) {
    this.most[side] += ROWS;
    this.draw();
  }

  // ---------------------------------------------------------------------------------------------- what is there

  answered(answer, pods) {
    this.answer = answer;
    this.pods = pods;
    this.problem = null;
    this.choices(this.seen.namespace);
    if (!this.element.matches(":active")) this.draw(); // what is being clicked on stays where it is
  }

  refused(problem) {
    this.problem = problem;
    this.draw();
  }

  choices(current) {
    const names = [...new Set(this.answer.edges.map((edge) => edge.namespace))].sort();
    fillSelect(this.namespace, [["", "all namespaces"], ...names.map((name) => [name, name])], current);
  }

  draw() {
    const edges = wanted(this.answer.edges, this.seen);
    const graph = build(edges, this.most, this.seen.focus);
    this.canvas.draw(graph, this.seen.focus);
    const cut = this.answer.truncated
      ? `There is more than fits: these are ${count(LIMIT)} edges; choose a shorter time. `
      : "";
    const thin =
      this.canvas.left > 0
        ? `${plural(this.canvas.left, "line")} of little traffic are not drawn; choose a row to see all of its lines. `
        : "";
    this.thin.textContent = thin;
    this.note.textContent = cut + (this.problem?.status && this.answer.edges.length ? this.problem.message : "");
    this.empty(edges);
    this.chips();
    detail(this.detail, edges, this.seen.focus, this.pods, (change) => this.focus(change));
  }

  empty(edges) {
    const off = this.problem && (this.problem.status === 503 || this.problem.status === 404);
    this.nothing.hidden = edges.length > 0;
    this.canvas.element.hidden = edges.length === 0;
    if (edges.length) return;
    if (off)
      this.nothing.replaceChildren(
        h("h2", {}, "There is no history"),
        h("p", {}, this.problem.message),
        h(
          "p",
          {},
          "The map is drawn from it: ",
          h("code", {}, "history.file"),
          " in the settings says where it is kept.",
        ),
      );
    else if (this.problem) this.nothing.replaceChildren(h("h2", {}, "No map"), h("p", {}, this.problem.message));
    else if (this.answer.edges.length)
      this.nothing.replaceChildren(
        h("h2", {}, "Nothing matches"),
        h("p", {}, `${plural(this.answer.edges.length, "edge")} are hidden by the filters.`),
        h("button", { type: "button", class: "button", onclick: () => this.clear() }, "Clear the filters"),
      );
    else if (this.answer.since)
      this.nothing.replaceChildren(h("h2", {}, "Nothing yet"), h("p", {}, "No pod has asked for a name in this time."));
    else this.nothing.replaceChildren(h("p", {}, "…"));
  }

  clear() {
    go("map", { since: this.seen.since });
  }

  chips() {
    const { focus } = this.seen;
    const chip = (text, change) =>
      h(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-label": `No longer only ${text}`,
          onclick: () => this.focus({ ...focus, ...change }),
        },
        text,
        icon("close"),
      );
    if (this.crumbs.dataset.state === JSON.stringify(focus)) return;
    this.crumbs.dataset.state = JSON.stringify(focus);
    this.crumbs.hidden = !(focus.workload || focus.name || focus.group);
    this.crumbs.replaceChildren(
      h("button", { type: "button", class: "chip all", onclick: () => this.focus({}) }, "← Whole map"),
      focus.workload ? chip(focus.workload, { workload: "" }) : "",
      focus.group ? chip(focus.group === "addresses" ? "addresses" : `*.${focus.group}`, { group: "", name: "" }) : "",
      focus.name ? chip(focus.name, { name: "" }) : "",
    );
  }
}
