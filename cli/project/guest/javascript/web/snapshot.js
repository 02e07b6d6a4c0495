// What an app's top level may not do, because it runs once, when the release is built, and its result is in every
// instance. Math.random() gives fixed numbers there and performance.now() zero; secrets of the machine are refused.
import { clock } from "freehold:bindings";

let building = true;
let originNs = 0n;
let timeOrigin = 0;
const starters = [];

export const isBuilding = () => building;

// Has `call` run when the first request or run begins.
export function onStart(call) {
  starters.push(call);
}

export function start() {
  if (!building) return;
  building = false;
  originNs = clock.now();
  timeOrigin = Date.now();
  for (const call of starters) call();
}

export function refuseWhileBuilding(what, instead = "call it while answering a request") {
  if (building) {
    throw new Error(`${what} at the top level of the app: that runs once, when the release is built, and every instance would share the result; ${instead}`);
  }
}

let seed = 0x9e3779b9; // mulberry32, the same numbers in each build
const fixedRandom = () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
};
const engineRandom = Math.random;
Math.random = function random() {
  return building ? fixedRandom() : engineRandom();
};

function measured(start, end) {
  return { entryType: "measure", startTime: start, duration: end - start };
}
const marks = new Map();
const methods = {
  now: () => (building ? 0 : Number(clock.now() - originNs) / 1e6),
  mark(name) {
    const mark = { entryType: "mark", name: String(name), startTime: performance.now(), duration: 0 };
    marks.set(mark.name, mark);
    return mark;
  },
  measure(name, from, to) {
    const at = (mark, other) => (typeof mark === "string" ? (marks.get(mark)?.startTime ?? other) : other);
    return { name, ...measured(at(from, 0), at(to, performance.now())) };
  },
  clearMarks: (name) => (name === undefined ? marks.clear() : void marks.delete(name)),
  clearMeasures() {},
  getEntries: () => [...marks.values()],
  getEntriesByName: (name) => [...marks.values()].filter((mark) => mark.name === name),
  getEntriesByType: (type) => (type === "mark" ? [...marks.values()] : []),
  toJSON: () => ({ timeOrigin }),
};
for (const [name, value] of Object.entries(methods)) {
  Object.defineProperty(globalThis.performance, name, { value, writable: true, configurable: true });
}
Object.defineProperty(globalThis.performance, "timeOrigin", { get: () => timeOrigin, configurable: true });
