/* The head of the page: which node, how it fares, and a banner as long as the daemon is away. */

import { Poller, ask, onContact } from "./client.js";
import { count, plural, stretch, when } from "./format.js";
import { h } from "./dom.js";

const EVERY_MS = 2000;
const REFUSED_FOR_MS = 2500;
const SILENT_FOR_MS = 8000;
const THEMES = ["", "light", "dark"];
const THEME_NAMES = { "": "as the system says", light: "light", dark: "dark" };

const byId = (id) => document.getElementById(id);
let answeredAt = performance.now();
let refused = false;
let away = false;

export function header() {
  theme();
  const poller = new Poller(
    (signal) => ask("status", {}, signal),
    EVERY_MS,
    shown,
    (problem) => problem.status && waiting(problem.message),
  );
  onContact((reached) => {
    refused = !reached;
    if (reached) answeredAt = performance.now();
    contact();
  });
  document.addEventListener("visibilitychange", () => (answeredAt = performance.now()));
  setInterval(contact, 1000);
  poller.start();
}

function shown(status) {
  byId("node").textContent = status.node;
  byId("node").title = `node ${status.node}`;
  byId("version").textContent = status.version;
  condense(status.ready ? "good" : "bad", status.ready ? "ready" : "not ready");
  byId("counters").replaceChildren(
    counter(
      `${count(status.pods_selected)}/${count(status.pods)}`,
      "pods",
      "pods that a policy selects, of all on this node",
    ),
    counter(count(status.policies.in_force), "policies", "policies in force"),
    status.policies.refused
      ? counter(count(status.policies.refused), "refused", "documents whose latest text is refused", "warn")
      : "",
    counter(count(status.grants.alive), "grants", "addresses that are open now"),
    counter(
      count(status.queries.denied + status.flows.denied),
      "denied",
      "queries and connections since the data path started",
    ),
  );
  if (status.ready || away) clearBanner();
  else
    banner(
      "not-ready",
      "The daemon is not ready: ",
      status.reasons.map((each) => `${each.reason} (${each.detail})`).join("; "),
    );
  byId("condition").replaceChildren(...condition(status));
}

/** The whole state in a word; changed only when it changes, since readers of the screen hear it. */
function condense(kind, word) {
  const ready = byId("ready");
  if (ready.textContent === word) return;
  ready.className = `ready ${kind}`;
  ready.replaceChildren(h("span", { class: "dot", "aria-hidden": "true" }), word);
}

function counter(value, name, title, kind = "") {
  return h("span", { class: `counter ${kind}`, title }, h("b", {}, value), " ", name);
}

function waiting(message) {
  banner("not-ready", "The daemon answers with a problem: ", message);
}

// ------------------------------------------------------------------------------------------------- the popover

function condition(status) {
  const { queries, flows, cache, audit, source } = status;
  const hits = cache.hits + cache.misses ? Math.round((100 * cache.hits) / (cache.hits + cache.misses)) : 0;
  const rows = [
    ["Up since", status.started ? when(status.started) : "not yet"],
    ["Objects from", `${source.kind}${source.up ? "" : ", which is behind"}`],
    ["Queries", `${count(queries.total)}: ${count(queries.denied)} denied, ${count(queries.would_deny)} would be`],
    ["Connections told of", `${count(flows.total)}: ${count(flows.denied)} denied`],
    ["Cache", `${plural(cache.entries, "answer")}, ${hits} % hits`],
    ["Grants", `${count(status.grants.alive)} of at most ${count(status.grants.limit)}`],
    ["Audit records", `${count(audit.written)} written, ${count(audit.dropped)} lost`],
    ["Restarts of the control side", count(status.control_restarts)],
    ...status.upstreams.map((each) => [
      `Upstream ${each.upstream}`,
      each.healthy ? "answers" : `fails (${each.failures} in a row)`,
    ]),
  ];
  const notes = [
    ...status.reasons.map((each) => `${each.reason}: ${each.detail}`),
    ...source.ailments,
    ...source.facts,
  ];
  return [
    h("h2", {}, `Node ${status.node}`),
    notes.length
      ? h(
          "ul",
          { class: "notes" },
          notes.map((note) => h("li", {}, note)),
        )
      : "",
    h(
      "dl",
      { class: "facts" },
      rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
  ];
}

// -------------------------------------------------------------------------------------------------- the banner

function contact() {
  const silent = performance.now() - answeredAt;
  if (document.visibilityState !== "visible") return;
  if (silent > (refused ? REFUSED_FOR_MS : SILENT_FOR_MS)) {
    away = true;
    document.documentElement.dataset.away = "";
    condense("bad", "away");
    banner(
      "away",
      `The daemon has not answered for ${stretch(silent / 1000)}. `,
      "What is shown is old; the page goes on by itself when it is back.",
    );
  } else if (away) {
    away = false;
    delete document.documentElement.dataset.away;
    clearBanner();
  }
}

function banner(kind, title, text) {
  const box = byId("banner");
  if (box.hidden || box.dataset.kind !== kind || box.textContent !== title + text)
    box.replaceChildren(h("strong", {}, title), text);
  box.dataset.kind = kind;
  box.hidden = false;
}

function clearBanner() {
  byId("banner").hidden = true;
}

// --------------------------------------------------------------------------------------------------- the theme

function theme() {
  const button = byId("theme");
  const label = () => {
    const now = document.documentElement.dataset.theme ?? "";
    button.title = `Colours: ${THEME_NAMES[now]}`;
    button.setAttribute("aria-label", `Colours: ${THEME_NAMES[now]}; press to change`);
  };
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    try {
      localStorage.setItem("egressd-theme", next);
    } catch {
      // Storage may be forbidden; the choice then holds for this page.
    }
    label();
  });
  label();
}
