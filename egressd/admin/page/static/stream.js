/* Lines of the audit endpoint as they come: followed for ever, taken up again after a silence, bounded in memory. */

import { Problem, onContact, reach } from "./client.js";

const FIRST_MS = 500;
const LAST_MS = 15000;
const REMEMBERED = 600;
export const MAX_PENDING = 4000;

/** `taken` is called by whoever draws: the lines since the last time. `state(text)` says how the stream fares. */
export class Stream {
  #controller = null;
  #known = [];
  #pending = [];
  #pause = FIRST_MS;
  lost = 0;
  came = 0;

  constructor(url, state) {
    Object.assign(this, { url, state, again: () => {} });
    onContact((reached, before) => reached && !before && this.again());
  }

  get running() {
    return this.#controller !== null;
  }

  start() {
    if (this.#controller) return;
    this.#controller = new AbortController();
    this.#run(this.#controller.signal);
  }

  stop() {
    this.#controller?.abort();
    this.#controller = null;
  }

  /** The lines that came, oldest first, at most `MAX_PENDING`; `lost` counts those that nobody could look at. */
  take() {
    const lines = this.#pending;
    this.#pending = [];
    return lines;
  }

  async #run(signal) {
    while (!signal.aborted) {
      this.state("connecting");
      try {
        await this.#read(signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Problem && error.status) this.state("problem", error.message);
        else this.state("away");
      }
      await new Promise((resolve) => {
        this.again = resolve; // somebody else met the daemon: no need to wait any longer
        setTimeout(resolve, this.#pause * (0.75 + Math.random() / 2));
      });
      this.#pause = Math.min(LAST_MS, this.#pause * 2);
    }
  }

  async #read(signal) {
    const response = await reach(this.url, signal);
    if (!response.ok) {
      const body = await response.json().catch(() => null);
      throw new Problem(response.status, body?.detail ?? `HTTP ${response.status}`);
    }
    this.state("live");
    const before = new Set(this.#known); // what was read before the connection broke comes once more
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.#pause = FIRST_MS;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      this.#put(before.size ? lines.filter((line) => !before.has(line)) : lines);
      if (before.size && this.#known.length >= REMEMBERED && !before.has(this.#known[0])) before.clear();
    }
  }

  #put(lines) {
    this.came += lines.length;
    this.#known = this.#known.concat(lines).slice(-REMEMBERED);
    this.#pending = this.#pending.concat(lines);
    const over = this.#pending.length - MAX_PENDING;
    if (over > 0) {
      this.lost += over;
      this.#pending.splice(0, over);
    }
  }
}
