/* The grants that are alive: which name opened which address, for whom, and for how long yet. */

import { Poller, ask } from "./client.js";
import { clock, count, plural } from "./format.js";
import { fillSelect, filterBox, h } from "./dom.js";
import { Table } from "./table.js";
import { go } from "./route.js";

const EVERY_MS = 5000;
const TICK_MS = 1000;
const LIMIT = 5000;
const SOON_S = 10;

const left = (row) => (row.until - performance.now()) / 1000;

const COLUMNS = [
  { title: "Name", name: "name", cell: (row) => h("span", { class: "name" }, row.name) },
  { title: "Address", name: "address", cell: (row) => row.address },
  { title: "Ports", name: "ports", cell: (row) => row.ports },
  { title: "Policies", name: "policies", cell: (row) => row.policies.join(", ") },
  { title: "Expires in", name: "left", cell: (row) => countdown(row) },
];

function countdown(row) {
  const seconds = left(row);
  return h(
    "span",
    { class: seconds <= 0 ? "gone" : seconds < SOON_S ? "soon" : "" },
    seconds <= 0 ? "expired" : clock(seconds),
  );
}

export function grantsView() {
  let wanted = { q: "", pod: "" };
  let rows = [];
  const table = new Table({ label: "Grants", columns: COLUMNS, empty: "No grant is alive." });
  const note = h("p", { class: "note", role: "status" });
  const filter = filterBox("Filter the grants", "Name, address, policy", (q) => choose({ q }));
  const pods = h("select", { "aria-label": "Pod", onchange: () => choose({ pod: pods.value }) });
  fillSelect(pods, [["", "all pods"]], "");

  function choose(change) {
    const before = wanted.pod;
    Object.assign(wanted, change);
    go("grants", wanted, { instead: true });
    if (before !== wanted.pod) grants.again();
    draw();
  }

  function draw() {
    const words = wanted.q.toLowerCase().split(/\s+/);
    const shown = rows.filter((row) => words.every((word) => row.text.includes(word)));
    table.show(shown);
    table.empty(rows.length ? "No grant matches the filter." : "No grant is alive.");
    counts.textContent =
      shown.length === rows.length
        ? plural(rows.length, "grant")
        : `${count(shown.length)} of ${plural(rows.length, "grant")}`;
  }

  function answered({ grants: found, truncated }) {
    const now = performance.now();
    const before = new Map(rows.map((row) => [row.key, row]));
    const same = (key) => before.get(key) ?? { key }; // a row that stays is the same row, for whoever looks at it
    rows = found.map((each) =>
      Object.assign(same(`${each.name} ${each.address} ${each.ports} ${each.policies}`), each, {
        until: now + each.remaining_s * 1000,
        text: `${each.name} ${each.address} ${each.ports} ${each.policies.join(" ")}`.toLowerCase(),
      }),
    );
    rows.sort((one, other) =>
      one.name < other.name ? -1 : one.name > other.name ? 1 : one.address < other.address ? -1 : 1,
    );
    note.textContent = truncated ? `There are more than ${count(LIMIT)}; choose a pod to see all of its grants.` : "";
    draw();
  }

  const grants = new Poller(
    (signal) => ask("grants", { limit: LIMIT, pod: wanted.pod }, signal),
    EVERY_MS,
    answered,
    (problem) => (note.textContent = problem.message),
  );
  const roster = new Poller(
    (signal) => ask("pods", { limit: 2000 }, signal),
    4 * EVERY_MS,
    ({ pods: found }) => {
      const names = found.filter((each) => each.policies.length).map((each) => `${each.namespace}/${each.name}`);
      fillSelect(pods, [["", "all pods"], ...names.map((name) => [name, name])], wanted.pod);
    },
    () => {},
  );
  const counts = h("span", { class: "rate" });
  const bar = h("div", { class: "toolbar" }, filter, pods, h("span", { class: "spring" }), counts);
  let timer = null;

  return {
    element: h("div", { class: "pane" }, bar, note, table.element),
    show(parameters) {
      wanted = { q: parameters.q ?? "", pod: parameters.pod ?? "" };
      const box = filter.querySelector("input");
      if (box !== document.activeElement) box.value = wanted.q;
      if (wanted.pod && ![...pods.options].some((each) => each.value === wanted.pod))
        pods.append(h("option", { value: wanted.pod }, wanted.pod));
      pods.value = wanted.pod;
      grants.start();
      roster.start();
      timer ??= setInterval(
        () => table.each((row, element) => element.lastElementChild.replaceChildren(countdown(row))),
        TICK_MS,
      );
      draw();
    },
    hide() {
      grants.stop();
      roster.stop();
      clearInterval(timer);
      timer = null;
    },
  };
}
