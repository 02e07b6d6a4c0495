// What a JavaScript app may ask of the node it runs on, inside the sandbox. Its twin outside is templates' freehold.js.
import { atomics, configuration, keyvalue, logging } from "freehold:bindings";

export class FreeholdError extends Error {}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const bytes = (value) => (typeof value === "string" ? encoder.encode(value) : value);

function asked(what, call) {
  try {
    return call();
  } catch (error) {
    const reason = error?.payload ?? error;
    throw new FreeholdError(`${what}: ${reason?.val ?? reason?.tag ?? reason}`);
  }
}

class Store {
  constructor(bucket) {
    this.bucket = bucket;
  }
  get(key) {
    const value = asked("key-value store", () => this.bucket.get(key));
    return value ? new Uint8Array(value) : null; // one of the app's own realm
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
    asked("key-value store", () => this.bucket.set(key, bytes(value)));
  }
  setJson(key, value) {
    this.set(key, JSON.stringify(value));
  }
  delete(key) {
    asked("key-value store", () => this.bucket.delete(key));
  }
  exists(key) {
    return asked("key-value store", () => this.bucket.exists(key));
  }
  keys() {
    const found = [];
    let cursor;
    do {
      const page = asked("key-value store", () => this.bucket.listKeys(cursor));
      found.push(...page.keys);
      cursor = page.cursor;
    } while (cursor !== undefined && cursor !== null);
    return found;
  }
  increment(key, delta = 1) {
    return Number(asked("key-value store", () => atomics.increment(this.bucket, key, BigInt(delta))));
  }
}

export function store(name) {
  if (!keyvalue) throw new FreeholdError(`this app may open no store; add keyvalue = ["${name}"] to freehold.toml`);
  return new Store(asked(`store "${name}"`, () => keyvalue.open(name)));
}

export const config = {
  get(key, fallback = null) {
    return configuration ? (asked(`configuration ${key}`, () => configuration.get(key)) ?? fallback) : fallback;
  },
};

const entry = (level) => (message, context = "") => logging.log(level, context, String(message));
export const log = { debug: entry("debug"), info: entry("info"), warn: entry("warn"), error: entry("error") };

export { fetch } from "./web/fetch.js";
