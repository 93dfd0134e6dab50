/* A table of any length that keeps only the rows in the document that are seen. All rows have one height. */

import { h } from "./dom.js";

const OVERSCAN = 6;
const narrow = window.matchMedia("(max-width: 760px)");
let tables = 0;

export class Table {
  /**
   * `columns`: [{title, name, cell(row) → node or text}], `name` being also the CSS class. `opened(row)` is called for
   * a click and for Enter. Rows are told apart by identity; `rowClass(row)` is optional.
   */
  constructor({ label, columns, opened = () => {}, rowClass = () => "", empty = "nothing" }) {
    Object.assign(this, { columns, opened, rowClass });
    this.rows = [];
    this.active = null;
    this.elements = new Map();
    this.id = `table-${++tables}`;
    this.body = h("div", { class: "t-body", role: "rowgroup" });
    this.head = h(
      "div",
      { class: "t-row t-head", role: "row" },
      columns.map((each) => h("span", { class: `c-${each.name}`, role: "columnheader" }, each.title)),
    );
    this.nothing = h("p", { class: "empty" }, empty);
    this.element = h(
      "div",
      {
        class: "table",
        role: "grid",
        tabIndex: 0,
        "aria-label": label,
        onscroll: () => this.#draw(),
        onkeydown: (event) => this.#key(event),
      },
      h("div", { role: "rowgroup", class: "t-top" }, this.head),
      this.body,
      this.nothing,
    );
    this.body.addEventListener("click", (event) => this.#clicked(event));
    new ResizeObserver(() => this.#draw()).observe(this.element);
    narrow.addEventListener("change", () => this.#redraw());
  }

  get rowHeight() {
    return narrow.matches ? 56 : 34;
  }

  /** Show these rows; `above` of them are new at the top, so that what is looked at stays where it is. */
  show(rows, above = 0) {
    this.rows = rows;
    if (this.active && !rows.includes(this.active)) this.active = null;
    this.element.setAttribute("aria-rowcount", rows.length + 1);
    this.body.style.height = `${rows.length * this.rowHeight}px`;
    this.nothing.hidden = rows.length > 0;
    if (above && this.element.scrollTop > 0) this.element.scrollTop += above * this.rowHeight;
    this.#draw();
  }

  /** Call `change(row, element)` for the rows that are in the document. */
  each(change) {
    for (const [row, element] of this.elements) change(row, element);
  }

  top() {
    this.element.scrollTop = 0;
  }

  empty(text) {
    this.nothing.textContent = text;
  }

  #redraw() {
    this.elements.forEach((element) => element.remove());
    this.elements.clear();
    this.show(this.rows);
  }

  #draw() {
    const { rowHeight, rows } = this;
    const seen = this.element.clientHeight - this.head.offsetHeight;
    const first = Math.max(0, Math.floor(this.element.scrollTop / rowHeight) - OVERSCAN);
    const last = Math.min(rows.length, Math.ceil((this.element.scrollTop + Math.max(seen, 0)) / rowHeight) + OVERSCAN);
    const wanted = new Set(rows.slice(first, last));
    for (const [row, element] of this.elements) {
      if (wanted.has(row)) continue;
      element.remove();
      this.elements.delete(row);
    }
    const fresh = [];
    for (let index = first; index < last; index++) this.#place(rows[index], index, fresh);
    this.body.append(...fresh);
    const active = this.active && this.elements.get(this.active);
    if (active) this.element.setAttribute("aria-activedescendant", active.id);
    else this.element.removeAttribute("aria-activedescendant");
  }

  #place(row, index, fresh) {
    let element = this.elements.get(row);
    if (!element) {
      const cells = this.columns.map((each) =>
        h("span", { class: `c-${each.name}`, role: "gridcell" }, each.cell(row)),
      );
      element = h("div", { class: `t-row ${this.rowClass(row)}`, role: "row" }, cells);
      this.elements.set(row, element);
      fresh.push(element);
    }
    element.id = `${this.id}-${index}`;
    element.setAttribute("aria-rowindex", index + 2);
    element.style.transform = `translateY(${index * this.rowHeight}px)`;
    element.classList.toggle("odd", index % 2 === 1);
    element.toggleAttribute("data-active", row === this.active);
    element.setAttribute("aria-selected", row === this.active);
  }

  #clicked(event) {
    if (event.target.closest("a, button")) return;
    const found = event.target.closest(".t-row");
    for (const [row, element] of this.elements) if (element === found) this.#open(row);
  }

  #open(row) {
    this.active = row;
    this.#draw();
    this.opened(row);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && this.active) {
      event.preventDefault();
      this.opened(this.active);
    } else if (event.key in steps && this.rows.length && event.target === this.element) {
      event.preventDefault();
      const at = this.active ? this.rows.indexOf(this.active) : steps[event.key] > 0 ? -1 : 0;
      this.#goTo(Math.min(this.rows.length - 1, Math.max(0, at + steps[event.key])));
    }
  }

  #goTo(index) {
    const { rowHeight, element } = this;
    const seen = element.clientHeight - this.head.offsetHeight;
    this.active = this.rows[index];
    if (index * rowHeight < element.scrollTop) element.scrollTop = index * rowHeight;
    else if ((index + 1) * rowHeight > element.scrollTop + seen) element.scrollTop = (index + 1) * rowHeight - seen;
    this.#draw();
  }
}
