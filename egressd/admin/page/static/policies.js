/* Policies: whether each is in force, what is wrong with its text, whom it selects, and what its rules were used for. */

import { Poller, ask } from "./client.js";
import { count, plural, when } from "./format.js";
import { filterBox, h, icon } from "./dom.js";
import { go, link } from "./route.js";

const EVERY_MS = 5000;
const MANY = 8;
const MAX_PODS = 30;
const SIGNS = { True: "allowed", False: "denied", Unknown: "would-deny" };

export function policiesView() {
  let query = "";
  let policies = [];
  let selected = new Map();
  let drawn = "";
  const list = h("div", { class: "cards" });
  const note = h("p", { class: "note", role: "status" });
  const total = h("span", { class: "rate" });
  const filter = filterBox("Filter the policies", "Policy, rule, name", (q) => {
    query = q;
    go("policies", { q }, { instead: true });
    draw();
  });

  function draw() {
    const words = query.toLowerCase().split(/\s+/);
    const shown = policies.filter((each) => words.every((word) => text(each).includes(word)));
    const state = JSON.stringify([shown, [...selected]]);
    total.textContent =
      shown.length === policies.length
        ? plural(policies.length, "policy", "policies")
        : `${shown.length} of ${plural(policies.length, "policy", "policies")}`;
    if (state === drawn) return;
    drawn = state;
    const before = new Map([...list.querySelectorAll("details")].map((each) => [each.dataset.policy, each.open]));
    const focused = document.activeElement?.closest?.("details")?.dataset.policy;
    list.replaceChildren(
      ...shown.map((each) => card(each, selected.get(each.name) ?? [], before.get(each.name) ?? opened(each, shown))),
    );
    if (!shown.length)
      list.append(
        h(
          "p",
          { class: "empty" },
          policies.length ? "No policy matches the filter." : "There is no policy: every pod reaches everything.",
        ),
      );
    if (focused)
      [...list.querySelectorAll("details")]
        .find((each) => each.dataset.policy === focused)
        ?.querySelector("summary")
        .focus();
  }

  const asking = new Poller(
    (signal) => Promise.all([ask("policies", { limit: 5000 }, signal), ask("pods", { limit: 5000 }, signal)]),
    EVERY_MS,
    answered,
    (problem) => (note.textContent = problem.message),
  );
  function answered([found, { pods }]) {
    policies = [...found.policies].sort((one, other) => ailing(other) - ailing(one));
    selected = new Map();
    for (const pod of pods)
      for (const name of pod.policies)
        selected.set(name, [...(selected.get(name) ?? []), `${pod.namespace}/${pod.name}`]);
    note.textContent = found.truncated ? "There are more policies than are shown." : "";
    draw();
  }

  return {
    element: h(
      "div",
      { class: "pane" },
      h("div", { class: "toolbar" }, filter, h("span", { class: "spring" }), total),
      note,
      h("div", { class: "scroll" }, list),
    ),
    show(parameters) {
      query = parameters.q ?? "";
      const box = filter.querySelector("input");
      if (box !== document.activeElement) box.value = query;
      asking.start();
      draw();
    },
    hide: () => asking.stop(),
  };
}

const ailing = (policy) => policy.problems.length > 0 || policy.conditions.some(({ status }) => status !== "True");
const opened = (policy, shown) => shown.length <= MANY || ailing(policy);
const text = (policy) =>
  [policy.name, policy.mode, ...policy.rules.flatMap((rule) => [rule.name, rule.action, ...rule.to])]
    .join(" ")
    .toLowerCase();

// -------------------------------------------------------------------------------------------------- one policy

function card(policy, pods, open) {
  const mode = policy.mode
    ? h("span", { class: `tag mode-${policy.mode.toLowerCase()}` }, policy.mode)
    : h("span", { class: "tag" }, "never in force");
  const summary = h(
    "summary",
    {},
    h("span", { class: "name" }, policy.name),
    mode,
    h("span", { class: "muted" }, plural(policy.pods, "pod")),
    h("span", { class: "spring" }),
    policy.conditions.map(condition),
  );
  return h(
    "details",
    { class: "card", "data-policy": policy.name, open },
    summary,
    policy.problems.length ? problems(policy.problems) : "",
    policy.rules.length ? rules(policy) : h("p", { class: "chosen" }, "No rule of it is in force."),
    chosen(pods),
    modes(policy),
  );
}

function condition({ type, status, reason, message, since }) {
  const sign = SIGNS[status] ?? "none";
  return h(
    "span",
    { class: `condition v-${sign}`, title: `${reason}: ${message} (since ${since})` },
    icon(sign),
    status === "True" ? type : `${type}: ${status === "False" ? "no" : "unknown"}`,
  );
}

function problems(found) {
  const place = ({ file, line, column }) =>
    [file, line || "", line ? column || "" : ""].filter((part) => part !== "").join(":");
  return h(
    "ul",
    { class: "problems" },
    found.map((each) =>
      h(
        "li",
        { class: each.severity },
        h("code", {}, place(each)),
        " ",
        h("strong", {}, each.severity),
        " ",
        each.message,
      ),
    ),
  );
}

function rules(policy) {
  const recorded = policy.rules.some((rule) => rule.uses !== undefined);
  const heads = ["", "Rule", "To", "Ports", ...(recorded ? ["Uses", "Last used"] : [])];
  const row = (rule) =>
    h(
      "tr",
      { class: recorded && !rule.uses ? "unused" : "" },
      h(
        "td",
        { class: "r-action" },
        h(
          "span",
          { class: `badge v-${rule.action === "deny" ? "denied" : "allowed"}` },
          icon(rule.action === "deny" ? "denied" : "allowed"),
          rule.action,
        ),
      ),
      h("td", { class: "r-name" }, rule.name, rule.line ? h("span", { class: "muted" }, ` line ${rule.line}`) : ""),
      h(
        "td",
        { class: "r-to" },
        rule.to.map((peer) => h("code", {}, peer)),
        rule.allow_private ? h("span", { class: "tag" }, "private addresses too") : "",
      ),
      h("td", { class: "r-ports" }, rule.ports),
      recorded
        ? [h("td", { class: "r-uses" }, count(rule.uses ?? 0)), h("td", { class: "r-last" }, when(rule.last_used))]
        : [],
    );
  return h(
    "div",
    { class: "rules-scroll" },
    h(
      "table",
      { class: "rules" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((head) => h("th", { scope: "col" }, head)),
        ),
      ),
      h("tbody", {}, policy.rules.map(row)),
    ),
  );
}

function chosen(pods) {
  if (!pods.length) return h("p", { class: "chosen muted" }, "Selects no pod of this node.");
  const more = pods.length - MAX_PODS;
  return h(
    "p",
    { class: "chosen" },
    h("span", { class: "muted" }, "Selects "),
    pods.slice(0, MAX_PODS).map((pod) => h("a", { class: "pod", href: link("explain", { pod }) }, pod)),
    more > 0 ? h("span", { class: "muted" }, `and ${count(more)} more`) : "",
  );
}

const modes = (policy) =>
  policy.mode
    ? h(
        "p",
        { class: "chosen muted" },
        `DNS of what is denied: ${policy.dns}. Connections of a rule that is gone: ${policy.on_revoke}.`,
      )
    : "";
