// What a JavaScript app may ask of the node it runs on. This file is the one outside the sandbox, for the app's tests:
// stores are in memory, configuration comes from config.values or the environment. A build puts the sandbox's twin in
// its place; both export the same names.
export class FreeholdError extends Error {}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const stores = new Map();

class Store {
  #values = new Map();
  get(key) {
    return this.#values.get(key) ?? null;
  }
  getText(key) {
    const value = this.get(key);
    return value === null ? null : decoder.decode(value);
  }
  getJson(key, fallback = null) {
    const text = this.getText(key);
    return text === null ? fallback : JSON.parse(text);
  }
  set(key, value) {
    this.#values.set(key, typeof value === "string" ? encoder.encode(value) : value);
  }
  setJson(key, value) {
    this.set(key, JSON.stringify(value));
  }
  delete(key) {
    this.#values.delete(key);
  }
  exists(key) {
    return this.#values.has(key);
  }
  keys() {
    return [...this.#values.keys()].sort();
  }
  increment(key, delta = 1) {
    const value = Number(this.getText(key) ?? 0) + delta;
    this.set(key, String(value));
    return value;
  }
}

export function store(name) {
  if (!stores.has(name)) stores.set(name, new Store());
  return stores.get(name);
}

/** Forget every in-memory store (tests). */
export function reset() {
  stores.clear();
}

export const config = {
  values: {},
  get(key, fallback = null) {
    return this.values[key] ?? globalThis.process?.env[key] ?? fallback;
  },
};

const entry = (level) => (message, context = "") => console.error(`${level}: ${context ? `${context}: ` : ""}${message}`);
export const log = { debug: entry("debug"), info: entry("info"), warn: entry("warn"), error: entry("error") };

export function fetch(...request) {
  return globalThis.fetch(...request);
}
