/* How numbers, times and verdicts are written. Values in, texts and small elements out. */

import { h, icon } from "./dom.js";

/** The four verdicts, in the order in which they are shown. */
export const VERDICTS = ["allowed", "denied", "would-deny", "would-allow"];

export const REASONS = {
  rule: "an allow rule names it",
  "deny-rule": "a deny rule names it",
  "no-rule": "no allow rule names it",
  "in-cluster": "it is inside the cluster",
  unselected: "no policy selects the pod",
  "unknown-pod": "the client is no known pod",
  "foreign-resolver": "the pod asked a resolver of its own",
  rebinding: "an outside name led to an inside address",
  "rate-limit": "the pod asked too fast",
  malformed: "the message was no valid query",
  "upstream-failed": "no upstream answered",
  "sni-mismatch": "the connection named another server",
};

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (number) => (number < 10000 ? whole.format(number) : short.format(number));
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A stretch of time in its two largest units: 3 d 4 h, 2 min, 8 s. */
export function stretch(seconds) {
  const total = Math.max(0, Math.floor(seconds));
  const units = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const first = units.findIndex(([, size]) => total >= size);
  if (first < 0) return "0 s";
  const [name, size] = units[first];
  const [next, step] = units[first + 1] ?? [];
  const rest = step ? Math.floor((total % size) / step) : 0;
  return `${Math.floor(total / size)} ${name}${rest ? ` ${rest} ${next}` : ""}`;
}

/** A stretch of time as a clock shows it: 0:08, 2:01, 1:00:00. */
export function clock(seconds) {
  const total = Math.max(0, Math.ceil(seconds));
  const parts = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}

export function ago(text, now = Date.now()) {
  const moment = Date.parse(text);
  if (Number.isNaN(moment)) return "never";
  const seconds = (now - moment) / 1000;
  return seconds < 5 ? "just now" : `${stretch(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

/** A time element that says how long ago it was, and the moment itself on demand. */
export const when = (text) =>
  text ? h("time", { datetime: text, title: text }, ago(text)) : h("span", { class: "muted" }, "never");

/** A verdict as sign and word. */
export const badge = (verdict) =>
  h(
    "span",
    { class: `badge v-${VERDICTS.includes(verdict) ? verdict : "none"}` },
    icon(VERDICTS.includes(verdict) ? verdict : "none"),
    verdict || "none",
  );

/** A destination as `explain` takes it; an IPv6 address with a port stands in brackets. */
export function target(name, port, protocol) {
  const host = name.includes(":") && port ? `[${name}]` : name;
  return `${host}${port ? `:${port}${protocol ? `/${protocol.toLowerCase()}` : ""}` : ""}`;
}
