/* From the edges that the daemon tells to the rows and lines of the map. Values in, values out: nothing is drawn here. */

/** More distinct names than this are put together by the domain they belong to. */
export const GROUP_OVER = 80;
export const ADDRESSES = "addresses";

const ADDRESS = /^[0-9.]+$|:/;
const SHORT = 3;

/**
 * The domain that a name is put under: its last two labels, or three below a country whose second level is as short
 * as `co.uk`. A likeness of the registrable domain, for sight alone; nothing is decided by it.
 */
export function parentOf(name) {
  if (ADDRESS.test(name)) return ADDRESSES;
  const labels = name.split(".");
  const [second, top] = labels.slice(-2);
  const depth = labels.length > 2 && top.length === 2 && second.length <= SHORT ? 3 : 2;
  return labels.slice(-depth).join(".");
}

export const workloadKey = (edge) => `${edge.namespace}/${edge.workload}`;
export const volume = (edge) => edge.queries + edge.flows;

/** The edges that the reader wants to see. `focus`: {workload, name, group}, each empty for any. */
export function wanted(edges, { q, namespace, verdicts, noise, focus }) {
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  return edges.filter(
    (edge) =>
      (noise || !edge.search) &&
      (!namespace || edge.namespace === namespace) &&
      verdicts.includes(edge.verdict) &&
      (!focus.workload || workloadKey(edge) === focus.workload) &&
      (!focus.name || edge.name === focus.name) &&
      (!focus.group || parentOf(edge.name) === focus.group) &&
      words.every((word) => edge.name.includes(word) || workloadKey(edge).toLowerCase().includes(word)),
  );
}

/**
 * Rows and lines of a map: `{left, right, links, hidden: {left, right}, grouped}`.
 *
 * At most `most.left` workloads and `most.right` names or groups are rows, those with most traffic; `hidden` counts the
 * others. Workloads are in order of namespace, names in that of the workloads they belong to, so that few lines cross.
 */
export function build(edges, most, focus) {
  const names = new Set(edges.map((edge) => edge.name));
  const grouped = names.size > GROUP_OVER && !focus.group && !focus.name;
  const groups = grouped ? groupsOf(names) : new Map();
  const place = (edge) => groups.get(edge.name) ?? `n:${edge.name}`;
  const left = gather(edges, workloadKey, (edge) => ({ namespace: edge.namespace, workload: edge.workload }));
  const right = gather(edges, place, (edge) => ({
    name: edge.name,
    group: groups.has(edge.name) ? groups.get(edge.name).slice(2) : "",
  }));
  const shown = { left: largest(left, most.left), right: largest(right, most.right) };
  const links = linked(edges, place, shown);
  shown.left.sort((one, other) => compare(one.namespace, other.namespace) || other.volume - one.volume);
  settle(shown, links);
  const count = (rows) => rows.reduce((sum, row) => sum + (row.members?.size || 1), 0);
  return {
    ...shown,
    links,
    grouped,
    total: { left: left.size, right: names.size },
    hidden: { left: left.size - shown.left.length, right: names.size - count(shown.right) },
  };
}

/** Of each name that shares its domain with another one: the key of the group. */
function groupsOf(names) {
  const sizes = new Map();
  const parents = new Map();
  for (const name of names) {
    const parent = parentOf(name);
    parents.set(name, parent);
    sizes.set(parent, (sizes.get(parent) ?? 0) + 1);
  }
  return new Map(
    [...parents].filter(([, parent]) => sizes.get(parent) > 1).map(([name, parent]) => [name, `g:${parent}`]),
  );
}

function gather(edges, key, begin) {
  const rows = new Map();
  for (const edge of edges) {
    const at = key(edge);
    let row = rows.get(at);
    if (!row) rows.set(at, (row = { key: at, ...begin(edge), volume: 0, verdicts: new Set(), members: new Set() }));
    row.volume += volume(edge);
    row.verdicts.add(edge.verdict);
    if (row.group) row.members.add(edge.name);
  }
  return rows;
}

function largest(rows, most) {
  const found = [...rows.values()];
  if (found.length <= most) return found;
  return found.sort((one, other) => other.volume - one.volume).slice(0, most);
}

/** One line for each pair of rows and verdict. */
function linked(edges, place, shown) {
  const [left, right] = [shown.left, shown.right].map((rows) => new Set(rows.map((row) => row.key)));
  const links = new Map();
  for (const edge of edges) {
    const [from, to] = [workloadKey(edge), place(edge)];
    if (!left.has(from) || !right.has(to)) continue;
    const key = `${from}\n${to}\n${edge.verdict}`;
    const link = links.get(key);
    if (link) {
      link.volume += volume(edge);
      link.used ||= edge.flows > 0;
    } else links.set(key, { from, to, verdict: edge.verdict, volume: volume(edge), used: edge.flows > 0 });
  }
  return [...links.values()];
}

/** Each name goes where the middle of its workloads is, weighed by traffic. */
function settle(shown, links) {
  const at = new Map(shown.left.map((row, index) => [row.key, index]));
  const sums = new Map();
  for (const { from, to, volume: size } of links) {
    const [sum, weight] = sums.get(to) ?? [0, 0];
    const part = Math.log2(2 + size);
    sums.set(to, [sum + at.get(from) * part, weight + part]);
  }
  const middle = (row) => {
    const [sum, weight] = sums.get(row.key) ?? [shown.left.length, 1];
    return sum / weight;
  };
  shown.right.sort((one, other) => middle(one) - middle(other) || other.volume - one.volume);
}

const { compare } = new Intl.Collator("en", { numeric: true });
