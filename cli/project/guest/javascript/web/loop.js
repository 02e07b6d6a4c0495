// The event loop of the sandbox: timers, immediates, and waits for the host's pollables, one `poll` for all of them.
// The engine's own loop only gives it turns. Not here: what is waited for (fetch.js, serve.js).
import { clock, poll } from "freehold:bindings";
import { isBuilding } from "./snapshot.js";

const turnLater = globalThis.setTimeout;
const DELAY_MAX_MS = 2 ** 31 - 1;

const timers = []; // sorted by when they are due; equal ones in the order they were set
const immediates = [];
const waits = new Set();
const active = new Map();
let nextId = 1;
let turning = false;

const nowMs = () => Number(clock.now()) / 1e6;

class Timer {
  constructor(id, dueMs, everyMs, call) {
    Object.assign(this, { id, dueMs, everyMs, call, cancelled: false });
  }
  ref() {
    return this;
  }
  unref() {
    return this;
  }
  hasRef() {
    return true;
  }
  refresh() {
    return this;
  }
  close() {
    clear(this);
  }
  [Symbol.toPrimitive]() {
    return this.id;
  }
}

function arm() {
  if (turning || isBuilding() || !(immediates.length || timers.length || waits.size)) return;
  turning = true;
  turnLater(turn, 0);
}

// The engine calls this when nothing else can run, so it may block until the first thing happens.
function turn() {
  turning = false;
  try {
    if (immediates.length) immediates.shift().call();
    else wait();
  } catch (error) {
    report(error);
  } finally {
    arm();
  }
}

function wait() {
  while (timers[0]?.cancelled) timers.shift();
  const entries = [...waits];
  const pollables = entries.map((entry) => entry.pollable);
  const leftMs = timers.length ? timers[0].dueMs - nowMs() : Infinity;
  if (leftMs > 0) {
    const alarm = leftMs === Infinity ? null : clock.subscribeDuration(BigInt(Math.ceil(leftMs * 1e6)));
    if (alarm) pollables.push(alarm);
    if (!pollables.length) return;
    const ready = poll(pollables);
    alarm?.[Symbol.dispose]();
    for (const index of ready) entries[index]?.finish();
  } else {
    for (const entry of entries) if (entry.pollable.ready()) entry.finish();
  }
  if (timers.length && timers[0].dueMs <= nowMs()) fire(timers.shift());
}

function fire(timer) {
  if (timer.cancelled) return;
  if (timer.everyMs === null) active.delete(timer.id);
  else {
    timer.dueMs = nowMs() + Math.max(timer.everyMs, 1);
    insert(timer);
  }
  timer.call();
}

function insert(timer) {
  let low = 0;
  let high = timers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (timers[middle].dueMs <= timer.dueMs) low = middle + 1;
    else high = middle;
  }
  timers.splice(low, 0, timer);
}

function start(what, delay, repeats, given) {
  if (typeof what !== "function") throw new TypeError("the callback of a timer must be a function");
  const delayMs = Math.min(Math.max(Math.trunc(Number(delay)) || 0, 0), DELAY_MAX_MS);
  const timer = new Timer(nextId++, 0, repeats ? delayMs : null, () => what(...given));
  timer.dueMs = (isBuilding() ? 0 : nowMs()) + delayMs;
  active.set(timer.id, timer);
  insert(timer);
  arm();
  return timer;
}

function clear(given) {
  const timer = given instanceof Timer ? given : active.get(Number(given));
  if (!timer) return;
  timer.cancelled = true;
  active.delete(timer.id);
  const at = timers.indexOf(timer);
  if (at >= 0) timers.splice(at, 1);
}

export const setTimeout = (what, delay, ...given) => start(what, delay, false, given);
export const setInterval = (what, delay, ...given) => start(what, delay, true, given);
export const clearTimeout = clear;
export const clearInterval = clear;

export function setImmediate(what, ...given) {
  const immediate = { call: () => what(...given), ref: () => immediate, unref: () => immediate, hasRef: () => true };
  immediates.push(immediate);
  arm();
  return immediate;
}
export function clearImmediate(immediate) {
  const at = immediates.indexOf(immediate);
  if (at >= 0) immediates.splice(at, 1);
}

// Waits until `source`, anything with subscribe(), is ready. Rejects with the signal's reason if that comes first.
export function ready(source, signal) {
  if (signal?.aborted) return Promise.reject(signal.reason);
  const pollable = source.subscribe();
  if (pollable.ready()) {
    pollable[Symbol.dispose]();
    return Promise.resolve();
  }
  return new Promise((resolve, reject) => {
    const end = (settle, value) => {
      waits.delete(entry);
      signal?.removeEventListener("abort", abort);
      pollable[Symbol.dispose]();
      settle(value);
    };
    const abort = () => end(reject, signal.reason);
    const entry = { pollable, finish: () => end(resolve) };
    signal?.addEventListener("abort", abort);
    waits.add(entry);
    arm();
  });
}

// Runs what the app's top level left to be done soon, so that a snapshot holds an app that has finished starting.
export async function settle() {
  for (let rounds = 0; rounds < 200; rounds++) {
    for (let turns = 0; turns < 20; turns++) await null;
    if (immediates.length) immediates.shift().call();
    else if (timers.length && timers[0].everyMs === null && timers[0].dueMs <= 0) fire(timers.shift());
    else if (rounds > 3) return;
  }
}

// Called once, when the first request or run begins: what waits since the build becomes due from now on.
export function begin() {
  const startMs = nowMs();
  for (const timer of timers) timer.dueMs += startMs;
  arm();
}

export function report(error) {
  console.error(described(error));
}

export function described(error) {
  if (typeof error?.stack !== "string") return String(error);
  const cause = error.cause === undefined ? "" : `\ncaused by ${described(error.cause)}`;
  return `${error}\n${error.stack.trimEnd()}${cause}`;
}
