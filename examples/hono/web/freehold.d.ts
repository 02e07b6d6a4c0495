// The types of freehold.js.
export class FreeholdError extends Error {}

export interface Store {
  get(key: string): Uint8Array | null;
  getText(key: string): string | null;
  getJson<T = unknown>(key: string, fallback?: T | null): T | null;
  set(key: string, value: string | Uint8Array): void;
  setJson(key: string, value: unknown): void;
  delete(key: string): void;
  exists(key: string): boolean;
  keys(): string[];
  /** Add to a counter, atomically, and return its new value; absent counts as 0. */
  increment(key: string, delta?: number): number;
}

/** Open a key-value store that freehold.toml names in `keyvalue`. */
export function store(name: string): Store;
/** Forget every in-memory store (tests). */
export function reset(): void;
export const config: { values: Record<string, string>; get(key: string, fallback?: string | null): string | null };
type Entry = (message: string, context?: string) => void;
export const log: { debug: Entry; info: Entry; warn: Entry; error: Entry };
export const fetch: typeof globalThis.fetch;
