/* The lines of the map. Lines of one verdict and width are one path: a redraw makes some twenty elements, not thousands. */

import { svg } from "./dom.js";

const WIDTHS = [1.1, 1.7, 2.5, 3.6, 5, 7];
const SLENDER = [0.7, 0.9, 1.2, 1.6, 2.2, 3];
/** With more lines than this, in all or from one row, they are drawn slender, so that one sees through them. */
const DENSE = 250;
const DENSE_AT_ONE = 20;
/** The most lines that are drawn at once; more would be neither read nor painted in time. */
export const MOST = 400;

export const isDense = (links, rows) => links.length > DENSE || links.length > DENSE_AT_ONE * rows;

/** A width for a number of queries and connections, on a scale of powers of four. */
const widthOf = (volume, widths) => widths[Math.min(widths.length - 1, Math.floor(Math.log2(1 + volume) / 2))];

/** One line from the left to the right, both ends level. */
function curve(x1, y1, x2, y2) {
  const bend = (x2 - x1) * 0.45;
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}

/** The lines to draw of many: those with most traffic, but of each verdict some. */
export function strongest(links) {
  if (links.length <= MOST) return links;
  const rank = (link) => link.volume * (link.verdict === "allowed" ? 1 : 4);
  return [...links].sort((one, other) => rank(other) - rank(one)).slice(0, MOST);
}

/** `places`: {from: Map(key → y), to: Map(key → y), x1, x2, dense}. Returns the paths, faint ones first. */
export function paths(links, { from, to, x1, x2, dense }) {
  const drawn = new Map();
  const widths = dense ? SLENDER : WIDTHS;
  for (const { from: source, to: sink, verdict, volume, used } of links) {
    const look = `edge e-${verdict}${used ? " used" : ""}`;
    const key = `${look}|${widthOf(volume, widths)}`;
    drawn.set(key, `${drawn.get(key) ?? ""}${curve(x1, from.get(source), x2, to.get(sink))}`);
  }
  const order = (key) => (key.includes("e-allowed") ? 0 : 1);
  return [...drawn]
    .sort(([one], [other]) => order(one) - order(other))
    .map(([key, d]) => {
      const [look, width] = key.split("|");
      return svg("path", { class: look, d, "stroke-width": width });
    });
}
