/* Where we are, in the part of the address after #: `map?namespace=shop&since=7d`. So that a link shows what is seen. */

/** View and parameters of the address. */
export function here() {
  const [view, query = ""] = location.hash.slice(1).split("?", 2);
  return { view: view.replace(/^\//, ""), parameters: Object.fromEntries(new URLSearchParams(query)) };
}

export function link(view, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given).toString();
  return `#${view}${query ? `?${query}` : ""}`;
}

/** Go there; as a step that the browser's Back undoes, or in place of the present one (typing into a filter). */
export function go(view, parameters, { instead = false } = {}) {
  const address = link(view, parameters);
  if (address === location.hash) return;
  if (instead) return history.replaceState(null, "", address);
  history.pushState(null, "", address);
  window.dispatchEvent(new Event("hashchange")); // at once: what is typed next belongs to where we are then
}
