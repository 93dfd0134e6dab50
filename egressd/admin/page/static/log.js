/* The live log: records as they come, newest first, filtered, bounded, and drawn a few times a second at most. */

import { MAX_PENDING, Stream } from "./stream.js";
import { REASONS, VERDICTS, badge, count } from "./format.js";
import { explainable, fields, parse } from "./records.js";
import { filterBox, h, icon } from "./dom.js";
import { go, link } from "./route.js";
import { Table } from "./table.js";
import { verdictToggles } from "./toggles.js";

export const MAX_ROWS = 2000;
const DRAW_MS = 200;
const RATE_OVER_S = 5;
const STATES = {
  connecting: "connecting…",
  live: "live",
  away: "lost; trying again",
  problem: "refused; trying again",
};

const COLUMNS = [
  { title: "Time (UTC)", name: "time", cell: (row) => row.time.slice(11, 23) },
  { title: "Verdict", name: "verdict", cell: (row) => badge(row.verdict || row.raw.event) },
  { title: "Pod", name: "pod", cell: (row) => row.who },
  {
    title: "Name or destination",
    name: "what",
    cell: (row) => [h("span", { class: "name" }, row.what), h("span", { class: "muted" }, row.detail)],
  },
  { title: "Why", name: "why", cell: (row) => row.reason },
  { title: "Rule", name: "rule", cell: (row) => row.rule },
  { title: "Answer", name: "answer", cell: (row) => row.answer },
];

export function logView() {
  const view = new Log();
  return {
    element: view.element,
    show: (parameters) => view.show(parameters),
    hide: () => view.hide(),
    escape: () => view.close(),
  };
}

class Log {
  constructor() {
    this.all = [];
    this.kept = [];
    this.waiting = [];
    this.ticks = [];
    this.paused = false;
    this.wanted = { q: "", verdict: VERDICTS, noise: false };
    this.table = new Table({
      label: "Audit records, newest first",
      columns: COLUMNS,
      opened: (row) => this.open(row),
      rowClass: (row) => `is-${row.verdict || "none"}`,
      empty: "No record yet that matches.",
    });
    this.stream = new Stream("/api/v1/audit?follow=1&limit=200", (state, why = "") => this.state(state, why));
    this.element = this.build();
  }

  build() {
    this.filter = filterBox("Filter the log", "Pod, name, rule, reason", (q) => this.choose({ q }));
    this.toggles = verdictToggles((verdict) => this.choose({ verdict }));
    this.noise = h("input", { type: "checkbox", onchange: () => this.choose({ noise: !this.noise.checked }) });
    this.button = h(
      "button",
      { type: "button", class: "button", "aria-pressed": "false", onclick: () => this.pause(!this.paused) },
      "Pause",
    );
    this.live = h("span", { class: "live", role: "status" });
    this.rate = h("span", { class: "rate" });
    this.detail = h("aside", { class: "detail", "aria-label": "One record", hidden: true });
    const bar = h(
      "div",
      { class: "toolbar" },
      this.filter,
      this.toggles.element,
      h("label", { class: "check" }, this.noise, "hide search noise"),
      h("span", { class: "spring" }),
      this.rate,
      this.live,
      this.button,
    );
    return h("div", { class: "pane" }, bar, h("div", { class: "split" }, this.table.element, this.detail));
  }

  show(parameters) {
    const verdict = parameters.verdict
      ? parameters.verdict.split(",").filter((each) => VERDICTS.includes(each))
      : VERDICTS;
    this.wanted = { q: parameters.q ?? "", verdict, noise: parameters.noise === "1" };
    const box = this.filter.querySelector("input");
    if (box !== document.activeElement) box.value = this.wanted.q;
    this.noise.checked = !this.wanted.noise;
    this.toggles.set(verdict);
    this.again();
    this.stream.start();
    this.timer ??= setInterval(() => requestAnimationFrame(() => this.draw()), DRAW_MS);
  }

  hide() {
    this.stream.stop();
    clearInterval(this.timer);
    this.timer = null;
  }

  choose(change) {
    Object.assign(this.wanted, change);
    const { q, verdict, noise } = this.wanted;
    go(
      "log",
      { q, verdict: verdict.length === VERDICTS.length ? "" : verdict.join(",") || "none", noise: noise ? "1" : "" },
      { instead: true },
    );
    this.again();
  }

  /** What was seen last is filtered anew; what matched before and is too old for that is gone. */
  again() {
    this.kept = this.all.filter((row) => this.takes(row));
    this.table.show(this.kept);
  }

  takes(row) {
    const { q, verdict, noise } = this.wanted;
    if (row.search && !noise) return false;
    if (row.verdict ? !verdict.includes(row.verdict) : verdict.length < VERDICTS.length) return false;
    return q
      .toLowerCase()
      .split(/\s+/)
      .every((word) => row.text.includes(word));
  }

  draw() {
    this.measure();
    const lines = this.stream.take();
    if (!lines.length) return;
    const rows = lines.map(parse).filter(Boolean).reverse();
    if (this.paused) {
      this.waiting = rows.concat(this.waiting).slice(0, MAX_ROWS);
      this.button.textContent = `Go on (${this.waiting.length >= MAX_ROWS ? `${count(MAX_ROWS)}+` : this.waiting.length} new)`;
    } else this.add(rows);
  }

  add(rows) {
    this.all = rows.concat(this.all).slice(0, MAX_ROWS);
    const fresh = rows.filter((row) => this.takes(row));
    if (!fresh.length) return;
    this.kept = fresh.concat(this.kept).slice(0, MAX_ROWS);
    this.table.show(this.kept, Math.min(fresh.length, MAX_ROWS));
  }

  pause(paused) {
    this.paused = paused;
    this.button.setAttribute("aria-pressed", paused);
    this.button.textContent = paused ? "Go on" : "Pause";
    this.element.toggleAttribute("data-paused", paused);
    if (!paused) {
      this.add(this.waiting);
      this.waiting = [];
    }
  }

  measure() {
    const now = performance.now();
    this.ticks.push([now, this.stream.came]);
    while (now - this.ticks[0][0] > RATE_OVER_S * 1000) this.ticks.shift();
    const [then, before] = this.ticks[0];
    const rate = now > then ? ((this.stream.came - before) * 1000) / (now - then) : 0;
    const lost = this.stream.lost ? `, ${count(this.stream.lost)} not shown` : "";
    const text = `${rate < 10 ? rate.toFixed(1) : count(Math.round(rate))} records/s${lost}`;
    if (this.rate.textContent !== text) this.rate.textContent = text;
    this.rate.title = `at most ${count(MAX_ROWS)} rows are kept, and ${count(MAX_PENDING)} records looked at between two drawings`;
  }

  state(state, why) {
    this.live.className = `live is-${state}`;
    this.live.replaceChildren(h("span", { class: "dot", "aria-hidden": "true" }), STATES[state]);
    this.live.title = why;
  }

  open(row) {
    const asked = explainable(row);
    const rows = fields(row.raw).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
    this.detail.replaceChildren(
      h(
        "div",
        { class: "detail-head" },
        h("h2", {}, row.what),
        h(
          "button",
          { type: "button", class: "icon-button", "aria-label": "Close", onclick: () => this.close() },
          icon("close"),
        ),
      ),
      h("p", { class: "detail-sub" }, row.verdict ? badge(row.verdict) : "", " ", REASONS[row.reason] ?? ""),
      asked ? h("a", { class: "button", href: link("explain", asked) }, "Explain") : "",
      h("dl", { class: "facts" }, rows),
    );
    this.detail.hidden = false;
  }

  close() {
    this.detail.hidden = true;
  }
}
