/* Audit records as the log shows them: one line of JSON in, what each column needs out. */

import { target } from "./format.js";

/** A record, flattened for the table; null for a line that is none. `text` is what the filter looks through. */
export function parse(line) {
  let raw;
  try {
    raw = JSON.parse(line);
  } catch {
    return null;
  }
  if (raw === null || typeof raw !== "object") return null;
  const { query, destination, pod } = raw;
  const who = pod?.name ? `${pod.namespace}/${pod.name}` : (pod?.ip ?? "");
  const { what, detail } =
    raw.event === "flow" ? flow(destination) : raw.event === "dns" ? question(query) : other(raw);
  const rule = raw.policy ? (raw.rule ? `${raw.policy} · ${raw.rule}` : raw.policy) : "";
  const row = {
    raw,
    line,
    who,
    what,
    detail,
    rule,
    time: raw.time ?? "",
    verdict: raw.verdict ?? "",
    reason: raw.reason ?? raw.event,
  };
  row.answer = answer(raw);
  const inside = raw.reason === "in-cluster" || row.what.endsWith(".cluster.local");
  row.search = raw.search === true || (inside && raw.response?.rcode === "NXDOMAIN" && raw.verdict !== "denied");
  row.text = [
    who,
    what,
    detail,
    rule,
    row.reason,
    row.verdict,
    pod?.workload,
    ...(destination?.names ?? []),
    destination?.ip,
  ]
    .join(" ")
    .toLowerCase();
  return row;
}

function question(query) {
  return { what: query?.name ?? "(no question)", detail: query?.type ?? "" };
}

function flow(destination) {
  const { names = [], ip = "", port, protocol = "" } = destination ?? {};
  const place = `${port ?? ""}${port === undefined ? "" : "/"}${protocol.toUpperCase()}`;
  return { what: names[0] ?? ip, detail: names.length ? `${ip} ${place}` : place };
}

function other(raw) {
  if (raw.event === "policy")
    return { what: `policy ${raw.policy ?? ""} ${raw.change ?? ""}`, detail: raw.error ?? "" };
  if (raw.dropped) return { what: `${raw.dropped} records lost here`, detail: "" };
  return { what: raw.event ?? "?", detail: "" };
}

function answer(raw) {
  if (raw.event === "flow") return `${raw.packets ?? 1} packet${raw.packets === 1 ? "" : "s"}`;
  const { rcode, addresses = [] } = raw.response ?? {};
  if (!rcode) return raw.error ?? "";
  if (rcode !== "NOERROR") return rcode;
  const more = addresses.length > 1 ? ` +${addresses.length - 1}` : "";
  return addresses.length ? `${addresses[0]}${more}` : "no address";
}

/** What to ask `explain` for a record, or null where nothing can be asked. */
export function explainable(row) {
  const { raw } = row;
  if (!raw.pod?.name) return null;
  if (raw.event === "dns" && raw.query?.name) return { pod: row.who, to: raw.query.name };
  if (raw.event === "flow")
    return { pod: row.who, to: target(raw.destination.ip, raw.destination.port, raw.destination.protocol) };
  return null;
}

/** Every field of a record with its path, for the detail view. */
export function fields(value, path = "") {
  if (Array.isArray(value)) return value.length ? [[path, value.join(", ")]] : [];
  if (value === null || typeof value !== "object") return [[path, String(value)]];
  return Object.entries(value).flatMap(([key, each]) => fields(each, path ? `${path}.${key}` : key));
}
