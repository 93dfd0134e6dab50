/* What is in focus, edge by edge: how often, on which ports, by which rule, since when, and whether it was really used. */

import { VERDICTS, badge, count, plural, target, when } from "./format.js";
import { h, icon } from "./dom.js";
import { link } from "./route.js";
import { ADDRESSES, volume, workloadKey } from "./graph.js";

const MOST = 150;
/** Reasons that a rule alone says enough about. */
const DECIDED = new Set(["rule", "deny-rule"]);

/** Fill `panel` with the edges in focus, or hide it where nothing is. `focus(change)` changes what is. */
export function detail(panel, edges, now, pods, focus) {
  panel.hidden = !(now.workload || now.name || now.group);
  if (panel.hidden) return;
  const sorted = [...edges].sort((one, other) => rank(one) - rank(other) || volume(other) - volume(one));
  const state = JSON.stringify([now, sorted.slice(0, MOST), sorted.length]);
  if (panel.dataset.state === String(digest(state))) return;
  panel.dataset.state = digest(state);
  const at = panel.scrollTop;
  panel.replaceChildren(
    ...head(now, sorted, focus),
    h(
      "ul",
      { class: "edges" },
      sorted.slice(0, MOST).map((edge) => item(edge, now, pods, focus)),
    ),
    rest(sorted.length),
  );
  panel.scrollTop = at;
}

const rank = (edge) => (edge.verdict === "allowed" ? 1 : 0);
const rest = (number) =>
  number > MOST ? h("p", { class: "muted" }, `… and ${count(number - MOST)} more, filter to see them`) : "";

function digest(text) {
  let sum = 0;
  for (let index = 0; index < text.length; index++) sum = (Math.imul(sum, 31) + text.charCodeAt(index)) | 0;
  return sum;
}

function head(now, edges, focus) {
  const title =
    now.name || (now.group ? (now.group === ADDRESSES ? "Addresses without a name" : `*.${now.group}`) : now.workload);
  const totals = VERDICTS.map((verdict) => [verdict, edges.filter((edge) => edge.verdict === verdict).length]).filter(
    ([, number]) => number,
  );
  const between =
    now.workload && title !== now.workload ? h("p", { class: "detail-sub" }, `asked for by ${now.workload}`) : "";
  return [
    h(
      "div",
      { class: "detail-head" },
      h("h2", {}, title),
      h(
        "button",
        { type: "button", class: "icon-button", "aria-label": "Back to the whole map", onclick: () => focus({}) },
        icon("close"),
      ),
    ),
    between,
    h(
      "p",
      { class: "totals" },
      totals.map(([verdict, number]) => h("span", {}, badge(verdict), h("b", {}, count(number)))),
    ),
  ];
}

function item(edge, now, pods, focus) {
  const other = now.workload ? edge.name : workloadKey(edge);
  const change = now.workload ? { name: edge.name } : { workload: workloadKey(edge) };
  const counts = [
    edge.queries ? plural(edge.queries, "query", "queries") : "",
    edge.flows ? plural(edge.flows, "connection") : "",
    edge.packets ? plural(edge.packets, "packet") : "",
  ]
    .filter(Boolean)
    .join(", ");
  const why = edge.policy
    ? `${edge.rule ? `rule ${edge.rule} of ` : ""}${edge.policy}${DECIDED.has(edge.reason) ? "" : `, ${edge.reason}`}`
    : edge.reason;
  const asked = explainable(edge, pods);
  return h(
    "li",
    {},
    h("button", { type: "button", class: "link name", onclick: () => focus(change) }, other),
    h(
      "p",
      {},
      badge(edge.verdict),
      h("b", {}, counts),
      edge.ports.length ? ` on ${edge.ports.join(", ")}` : "",
      edge.search ? h("span", { class: "tag" }, "search noise") : "",
    ),
    h("p", { class: "muted" }, `${usedText(edge)} · ${why}`),
    h(
      "p",
      { class: "muted" },
      "first ",
      when(edge.first_seen),
      ", last ",
      when(edge.last_seen),
      asked ? h("a", { class: "more", href: link("explain", asked) }, "Explain") : "",
    ),
  );
}

/** Whether more than DNS came of it; of allowed connections there are records only where the settings ask for them. */
function usedText(edge) {
  if (!edge.queries)
    return edge.verdict === "denied" ? "tried without asking for a name" : "used without asking for a name";
  if (edge.flows) return edge.verdict === "denied" ? "asked for, and tried" : "asked for, and used";
  return "only asked for";
}

/** A question for `explain`: any pod of the workload that is on this node now. */
function explainable(edge, pods) {
  if (edge.folded) return null;
  const [kind, short] = edge.workload.split("/");
  const pod = pods.find(
    (each) =>
      each.namespace === edge.namespace &&
      (each.workload ? each.workload === edge.workload : kind === "Pod" && each.name === short),
  );
  if (!pod) return null;
  const [port, protocol] = edge.ports.length === 1 ? edge.ports[0].split("/") : [];
  return {
    pod: `${pod.namespace}/${pod.name}`,
    to: target(edge.name, /^[0-9]+$/.test(port ?? "") ? port : "", protocol ?? ""),
  };
}
