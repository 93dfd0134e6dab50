/* Asking the daemon: answers or problems, again and again while somebody looks, and never two questions at once. */

const PATIENCE_MS = 10000;
const PROBLEM_MS = 2000;
/** A pause is so many times as long as the answer took, of which at most so much counts. */
const SHARE = 10;
const MOST_MS = 3000;

/** What the daemon answered with a code that is not 200 (RFC 9457), or `status` 0: it did not answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

const listeners = new Set();

/** Calls back after each question: whether there is a daemon, and whether there was one before. */
export const onContact = (listener) => listeners.add(listener);

let contact = true;
function tell(reached) {
  const before = contact;
  contact = reached;
  listeners.forEach((listener) => listener(reached, before));
}

export async function ask(path, parameters = {}, signal = null) {
  const query = new URLSearchParams(
    Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined),
  );
  const patience = AbortSignal.timeout(PATIENCE_MS);
  const response = await reach(
    `/api/v1/${path}${query.size ? `?${query}` : ""}`,
    signal ? AbortSignal.any([signal, patience]) : patience,
    signal,
  );
  const body = await response.json().catch(() => null);
  if (!response.ok || body === null)
    throw new Problem(response.status, body?.detail || body?.title || `HTTP ${response.status}`);
  return body;
}

/** `fetch` that tells whether the daemon is there; raises `Problem`, or AbortError where the caller gave up. */
export async function reach(url, signal, given = signal) {
  try {
    const response = await fetch(url, { signal, cache: "no-store", credentials: "omit" });
    tell(true);
    return response;
  } catch (error) {
    if (given?.aborted) throw error;
    tell(false);
    throw new Problem(0, "the daemon does not answer");
  }
}

/** Asks every `every` ms while it runs and the page is seen; slower where answers take long, sooner after a problem. */
export class Poller {
  #timer = 0;
  #running = false;
  #asking = null;

  constructor(question, every, answered, refused) {
    Object.assign(this, { question, every, answered, refused });
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.again());
    onContact((reached, before) => reached && !before && !this.#asking && this.again());
  }

  start() {
    if (this.#running) return;
    this.#running = true;
    this.again();
  }

  stop() {
    this.#running = false;
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#asking = null;
  }

  /** Ask at once, whatever was asked before. */
  again() {
    if (!this.#running) return;
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#turn();
  }

  async #turn() {
    const asking = (this.#asking = new AbortController());
    const began = performance.now();
    let pause = this.every;
    try {
      const answer = await this.question(asking.signal);
      if (asking.signal.aborted) return;
      this.answered(answer);
    } catch (error) {
      if (asking.signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      this.refused(error);
      pause = PROBLEM_MS;
    } finally {
      if (!asking.signal.aborted) this.#rest(Math.max(pause, SHARE * Math.min(performance.now() - began, MOST_MS)));
    }
  }

  #rest(pause) {
    this.#asking = null;
    this.#timer = setTimeout(() => document.visibilityState === "visible" && this.#turn(), pause);
  }
}
