/* Elements from values. Text is only ever a text node: names are chosen by attackers, and stay text whatever they say. */

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["checked", "disabled", "hidden", "value", "open", "selected", "tabIndex", "readOnly"]);

/** An element; `props` are attributes, a few properties, and `on…` functions; children are nodes or texts. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (PROPERTIES.has(key)) element[key] = value;
    else if (key === "href" && !/^[#/]/.test(value)) throw new Error("links lead nowhere but here");
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** An SVG element; attributes are numbers and words of ours. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** One of the signs in the page's sprite, hidden from readers of the screen: a text is always beside it. */
export function icon(name) {
  return svg("svg", { class: `icon v-${name}`, "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** A box to filter by; `/` finds it, Escape empties it. */
export function filterBox(label, placeholder, changed) {
  const input = h("input", {
    type: "search",
    class: "filter",
    placeholder,
    "aria-label": label,
    "aria-keyshortcuts": "/",
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => changed(input.value),
    onkeydown: (event) => {
      if (event.key !== "Escape" || !input.value) return;
      event.stopPropagation();
      event.preventDefault();
      input.value = "";
      changed("");
    },
  });
  return h("label", { class: "filter-box" }, icon("search"), input, h("kbd", { "aria-hidden": "true" }, "/"));
}

/** A list of choices, the current one kept as long as it is among them. */
export function fillSelect(select, choices, current) {
  const wanted = [...choices];
  if (current && !wanted.some(([value]) => value === current)) wanted.push([current, current]);
  const same =
    wanted.length === select.options.length &&
    wanted.every(([v, t], i) => select.options[i].value === v && select.options[i].text === t);
  if (!same) select.replaceChildren(...wanted.map(([value, text]) => h("option", { value }, text)));
  select.value = current;
}

/** Copies a text; on a page without a secure context, by way of a selection. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "off-screen", readOnly: true }, text);
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
