/* Two columns of rows and the lines between them. Rows have one height, so every line's ends are known without measuring. */

import { VERDICTS, count, plural } from "./format.js";
import { h, icon, svg } from "./dom.js";
import { ADDRESSES } from "./graph.js";
import { isDense, paths, strongest } from "./edges.js";

const ROW = 30;
const ANCHOR = 6;

export class MapCanvas {
  /** `chosen(row)` for a click or Enter on a row; `more(side)` to see more rows of "left" or "right". */
  constructor(chosen, more) {
    Object.assign(this, { chosen, more, graph: null, shown: "", focused: {}, hot: "" });
    this.sides = {
      left: h("div", { class: "map-left", role: "list", "aria-label": "Workloads" }),
      right: h("div", { class: "map-right", role: "list", "aria-label": "Names" }),
    };
    this.base = svg("g", { class: "base" });
    this.over = svg("g", { class: "over" });
    this.lines = svg("svg", { class: "map-lines", "aria-hidden": "true" }, this.base, this.over);
    this.inner = h("div", { class: "map-inner" }, this.lines, this.sides.left, this.sides.right);
    this.element = h("div", { class: "map-scroll" }, this.inner);
    this.rows = new Map();
    this.inner.addEventListener("pointerover", (event) =>
      this.heat(event.target.closest("[data-key]")?.dataset.key ?? ""),
    );
    this.inner.addEventListener("pointerleave", () => this.heat(""));
    this.inner.addEventListener("focusin", (event) => this.heat(event.target.closest("[data-key]")?.dataset.key ?? ""));
    this.inner.addEventListener("focusout", () => this.heat(""));
    this.inner.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.strokes()).observe(this.inner);
  }

  draw(graph, focus) {
    const state = JSON.stringify([graph.left, graph.right, graph.hidden, graph.links, focus], (_, value) =>
      value instanceof Set ? value.size + [...value].slice(0, 4).join() : value,
    );
    this.graph = graph;
    if (state === this.shown) return;
    this.shown = state;
    const held = document.activeElement?.closest?.(".map-inner") ? document.activeElement.dataset.key : null;
    const at = this.element.scrollTop;
    this.rows.clear();
    this.strong = strongest(graph.links);
    this.left = graph.links.length - this.strong.length;
    this.dense = isDense(this.strong, Math.min(graph.left.length, graph.right.length));
    this.inner.classList.toggle("dense", this.dense);
    this.inner.style.setProperty(
      "--signs",
      Math.max(1, ...[...graph.left, ...graph.right].map((row) => row.verdicts.size)),
    );
    this.fill("left", graph.left, focus);
    this.fill("right", graph.right, focus);
    this.element.scrollTop = at;
    this.strokes();
    if (held && this.rows.has(held)) this.rows.get(held).element.focus({ preventScroll: true });
  }

  /** The rows of one side, with a heading for each namespace on the left, and what is not shown at the end. */
  fill(side, rows, focus) {
    const children = [
      h("div", { role: "listitem", class: "map-title" }, plural(this.graph.total[side], side === "left" ? "workload" : "name")),
    ];
    let namespace = null;
    for (const row of rows) {
      if (side === "left" && row.namespace !== namespace) {
        namespace = row.namespace;
        children.push(h("div", { role: "listitem", class: "map-heading" }, namespace || "no namespace"));
      }
      const element = side === "left" ? workload(row, focus) : name(row, focus);
      element.addEventListener("click", () => this.chosen(row));
      element.tabIndex = this.rows.size === 0 || (side === "right" && row === rows[0]) ? 0 : -1;
      this.rows.set(row.key, { row, side, element, y: children.length * ROW + ROW / 2 });
      children.push(h("div", { role: "listitem", class: "map-item" }, element));
    }
    const hidden = this.graph.hidden[side];
    if (hidden > 0) {
      const what = side === "left" ? plural(hidden, "more workload") : plural(hidden, "more name");
      const button = h(
        "button",
        { type: "button", class: "map-more", onclick: () => this.more(side) },
        `… and ${what}`,
        h("span", { class: "muted" }, "filter to see them, or show more"),
      );
      children.push(h("div", { role: "listitem" }, button));
    }
    this.sides[side].replaceChildren(...children);
  }

  places() {
    const box = this.inner.getBoundingClientRect();
    const x1 = this.sides.left.getBoundingClientRect().right - box.left + ANCHOR;
    const x2 = this.sides.right.getBoundingClientRect().left - box.left - ANCHOR;
    const [from, to] = [new Map(), new Map()];
    for (const [key, { side, y }] of this.rows) (side === "left" ? from : to).set(key, y);
    return { from, to, x1, x2, dense: this.dense };
  }

  strokes() {
    if (!this.graph) return;
    this.base.replaceChildren(...paths(this.strong, this.places()));
    this.heat(this.hot, true);
  }

  /** The lines of the row under the pointer or the keyboard's focus stand out, and so do the rows at their ends. */
  heat(key, anew = false) {
    if (key === this.hot && !anew) return;
    this.hot = key;
    const links =
      key && this.rows.has(key) ? this.graph.links.filter((link) => link.from === key || link.to === key) : [];
    this.over.replaceChildren(...(links.length ? paths(links, this.places()) : []));
    this.inner.classList.toggle("hot", links.length > 0);
    const near = new Set(links.flatMap((link) => [link.from, link.to]));
    for (const [each, { element }] of this.rows) element.classList.toggle("near", near.has(each));
  }

  key(event) {
    const here = this.rows.get(event.target.dataset?.key);
    if (!here) return;
    const column = [...this.rows.values()].filter((each) => each.side === here.side);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    let next = null;
    if (event.key in steps)
      next = column[Math.min(column.length - 1, Math.max(0, column.indexOf(here) + steps[event.key]))];
    else if (
      (event.key === "ArrowRight" && here.side === "left") ||
      (event.key === "ArrowLeft" && here.side === "right")
    )
      next = this.across(here);
    if (!next) return;
    event.preventDefault();
    next.element.focus();
    for (const each of column) each.element.tabIndex = -1;
    next.element.tabIndex = 0;
  }

  /** The row on the other side that most traffic leads to. */
  across({ row, side }) {
    const [mine, other] = side === "left" ? ["from", "to"] : ["to", "from"];
    const links = this.graph.links.filter((link) => link[mine] === row.key).sort((one, two) => two.volume - one.volume);
    return links.length ? this.rows.get(links[0][other]) : null;
  }
}

// ---------------------------------------------------------------------------------------------------- the rows

/** The signs of a row; where there is room for one only, it is the worst. */
const WORST = ["denied", "would-deny", "would-allow", "allowed"];
function signs(row) {
  const worst = WORST.find((each) => row.verdicts.has(each));
  const found = VERDICTS.filter((each) => row.verdicts.has(each)).map((each) => icon(each));
  for (const sign of found) sign.classList.toggle("worst", sign.classList.contains(`v-${worst}`));
  return h("span", { class: "signs" }, found);
}

const told = (row) =>
  `${plural(row.volume, "query or connection", "queries and connections")}: ${VERDICTS.filter((each) => row.verdicts.has(each)).join(", ")}`;

function workload(row, focus) {
  const [kind, ...rest] = row.workload.split("/");
  const short = rest.join("/") || kind;
  return h(
    "button",
    {
      type: "button",
      class: "map-row",
      "data-key": row.key,
      "aria-pressed": String(focus.workload === row.key),
      title: `${row.namespace}/${row.workload}`,
      "aria-label": `${short}, ${kind} in ${row.namespace}, ${told(row)}`,
    },
    h("span", { class: "map-name" }, short),
    rest.length ? h("span", { class: "map-kind" }, kind) : "",
    h("span", { class: "map-count" }, count(row.volume)),
    signs(row),
  );
}

function name(row, focus) {
  const title = row.group ? (row.group === ADDRESSES ? "addresses without a name" : row.group) : row.name;
  const many = row.group
    ? plural(
        row.members.size,
        row.group === ADDRESSES ? "address" : "name",
        row.group === ADDRESSES ? "addresses" : "names",
      )
    : "";
  return h(
    "button",
    {
      type: "button",
      class: `map-row${row.group ? " is-group" : ""}`,
      "data-key": row.key,
      "aria-pressed": String(!row.group && focus.name === row.name),
      title,
      "aria-label": `${title}, ${many ? `${many}, ` : ""}${told(row)}`,
    },
    signs(row),
    h("span", { class: "map-name" }, title),
    many ? h("span", { class: "map-kind" }, many) : "",
    h("span", { class: "map-count" }, count(row.volume)),
  );
}
