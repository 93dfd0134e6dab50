/* Whether a pod may reach a destination: the proof step by step, what is open now, and the line that would allow it. */

import { Poller, Problem, ask } from "./client.js";
import { REASONS, badge, stretch, target } from "./format.js";
import { copy, h } from "./dom.js";
import { go } from "./route.js";

const COPIED_MS = 2000;
const PROTOCOLS = ["TCP", "UDP", "SCTP", "ICMP"];

export function explainView() {
  const result = h("div", { class: "result", "aria-live": "polite" });
  const known = h("datalist", { id: "pods" });
  const pod = field("pod", "Pod", "shop/web-0", { list: "pods", required: true, class: "filter" });
  const to = field("to", "Name or address", "api.example.com", { required: true });
  const port = field("port", "Port", "any", { inputmode: "numeric", pattern: "[0-9]{1,5}" });
  const protocol = h(
    "select",
    { id: "explain-protocol" },
    PROTOCOLS.map((each) => h("option", { value: each.toLowerCase() }, each)),
  );
  const form = h(
    "form",
    { class: "explain-form", autocomplete: "off", onsubmit: (event) => submitted(event) },
    pod.element,
    to.element,
    port.element,
    h("div", { class: "field" }, h("label", { for: "explain-protocol" }, "Protocol"), protocol),
    h("button", { type: "submit", class: "button primary" }, "Explain"),
    known,
  );
  let asking = null;

  function submitted(event) {
    event.preventDefault();
    const asked = { pod: pod.input.value.trim(), to: written() };
    go("explain", asked, { instead: true });
    explain(asked);
  }

  /** A port may be given in its own box, or after the name. */
  function written() {
    const name = to.input.value.trim();
    return port.input.value ? target(name, port.input.value, protocol.value) : name;
  }

  async function explain(asked) {
    asking?.abort();
    const { signal } = (asking = new AbortController());
    result.setAttribute("aria-busy", "true");
    try {
      const answer = await ask("explain", asked, signal);
      result.replaceChildren(...proof(asked, answer));
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      result.replaceChildren(h("p", { class: "problem", role: "alert" }, error.message));
    }
    result.removeAttribute("aria-busy");
  }

  function fill(asked) {
    const parts = /^(?:\[(.+)\]|([^:]*)):(\d+)(?:\/(\w+))?$/.exec(asked.to ?? "");
    pod.input.value = asked.pod ?? "";
    to.input.value = parts ? (parts[1] ?? parts[2]) : (asked.to ?? "");
    port.input.value = parts?.[3] ?? "";
    protocol.value = PROTOCOLS.includes(parts?.[4]?.toUpperCase()) ? parts[4].toLowerCase() : "tcp";
  }

  const roster = new Poller(
    (signal) => ask("pods", { limit: 5000 }, signal),
    20000,
    ({ pods }) => {
      known.replaceChildren(
        ...pods.map((each) => h("option", { value: `${each.namespace}/${each.name}` }, each.workload)),
      );
    },
    () => {},
  );

  return {
    element: h("div", { class: "pane" }, h("div", { class: "scroll" }, h("div", { class: "narrow" }, form, result))),
    show(parameters) {
      roster.start();
      if (!result.childElementCount)
        result.append(
          h("p", { class: "empty" }, "Choose a pod and a destination: the answer is the proof, step by step."),
        );
      if (!parameters.pod && !parameters.to) return;
      fill(parameters);
      if (parameters.pod && parameters.to) explain({ pod: parameters.pod, to: parameters.to });
      else (parameters.pod ? to : pod).input.focus();
    },
    hide: () => roster.stop(),
  };
}

function field(name, title, placeholder, attributes) {
  const input = h("input", {
    id: `explain-${name}`,
    name,
    placeholder,
    spellcheck: "false",
    autocapitalize: "none",
    ...attributes,
  });
  return { input, element: h("div", { class: `field field-${name}` }, h("label", { for: input.id }, title), input) };
}

// --------------------------------------------------------------------------------------------------- the proof

function proof(asked, { verdict, reason, policy, rule, steps, grants, shared, allow }) {
  const by = policy ? ` by ${rule ? `rule “${rule}” of ` : ""}${policy}` : "";
  return [
    h(
      "div",
      { class: `verdict v-${verdict}` },
      badge(verdict),
      h(
        "p",
        {},
        h("strong", {}, asked.pod),
        " → ",
        h("strong", {}, asked.to),
        h("br"),
        h("span", { class: "muted" }, `${reason}${by}: ${REASONS[reason] ?? ""}`),
      ),
    ),
    allow ? change(allow) : "",
    h("h2", {}, "Step by step"),
    h(
      "ol",
      { class: "steps" },
      steps.map((step) => h("li", { class: step.startsWith("verdict:") ? `conclusion v-${verdict}` : "" }, step)),
    ),
    grants.length ? h("h2", {}, "Open now") : "",
    grants.length ? opened(grants) : "",
    shared.length ? h("h2", {}, "Who else knows the address") : "",
    shared.length
      ? h(
          "ul",
          { class: "shared" },
          shared.map((each) =>
            h(
              "li",
              {},
              h("code", {}, each.address),
              ` is known to ${each.pod} as `,
              each.names.map((name) => h("code", {}, name)),
            ),
          ),
        )
      : "",
  ];
}

function change({ policy, yaml, note }) {
  if (!yaml) return h("div", { class: "allow" }, h("h2", {}, "What would allow it"), h("p", {}, quoted(note)));
  const button = h("button", { type: "button", class: "button", onclick: copied }, "Copy");
  async function copied() {
    await copy(yaml);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), COPIED_MS);
  }
  return h(
    "div",
    { class: "allow" },
    h("h2", {}, `What would allow it, in ${policy}`),
    h("div", { class: "line" }, h("pre", { tabIndex: 0 }, h("code", {}, yaml)), button),
    h("p", { class: "muted" }, quoted(note)),
  );
}

/** What stands between backticks is code. */
const quoted = (text) => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

function opened(grants) {
  const row = (each) =>
    h(
      "tr",
      {},
      h("td", { class: "name" }, each.name),
      h("td", {}, each.address),
      h("td", {}, each.ports),
      h("td", {}, `another ${stretch(each.remaining_s)}`),
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
          ["Name", "Address", "Ports", "Open for"].map((head) => h("th", { scope: "col" }, head)),
        ),
      ),
      h("tbody", {}, grants.map(row)),
    ),
  );
}
