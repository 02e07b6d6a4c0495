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
export type SqlValue = number | bigint | string | Uint8Array | null;
/** A statement or a database was refused; `code` is SQLite's own name, such as SQLITE_CONSTRAINT_UNIQUE. */
export class SqlError extends FreeholdError {
  code: string;
}

export interface Statement {
  all<T = Record<string, SqlValue>>(...parameters: unknown[]): T[];
  get<T = Record<string, SqlValue>>(...parameters: unknown[]): T | undefined;
  iterate<T = Record<string, SqlValue>>(...parameters: unknown[]): IterableIterator<T>;
  run(...parameters: unknown[]): { changes: number; lastInsertRowid: number | bigint };
  /** Rows as arrays. */
  raw(): Statement;
  /** The first column alone. */
  pluck(): Statement;
}

export interface Database {
  readonly inTransaction: boolean;
  prepare(sql: string): Statement;
  exec(sql: string): Database;
  pragma(text: string, options?: { simple?: boolean }): unknown;
  /** A function that runs `work` in a transaction: all of what it writes, or, if it throws, nothing. */
  transaction<A extends unknown[], R>(work: (...values: A) => R): (...values: A) => R;
}

/** Open a database that freehold.toml names in `sql`. */
export function sql(name: string): Database;
export interface BlobBody {
  readonly size: number;
  readonly body: ReadableStream<Uint8Array>;
  arrayBuffer(): Promise<ArrayBuffer>;
  bytes(): Promise<Uint8Array>;
  text(): Promise<string>;
  json<T = unknown>(): Promise<T>;
}

export interface Container {
  /** Write an object: whole, or not at all. */
  put(name: string, value: string | ArrayBuffer | ArrayBufferView | Blob | ReadableStream | Request | Response): Promise<void>;
  get(name: string, options?: { range?: { offset?: number; length?: number } }): Promise<BlobBody | null>;
  head(name: string): Promise<{ name: string; size: number; uploaded: Date } | null>;
  delete(names: string | string[]): Promise<void>;
  list(): Promise<string[]>;
}

/** Open a container that freehold.toml names in `blobs`. */
export function blobs(name: string): Container;
/** Forget every in-memory store, database and container (tests). */
export function reset(): void;
export const config: { values: Record<string, string>; get(key: string, fallback?: string | null): string | null };
type Entry = (message: string, context?: string) => void;
export const log: { debug: Entry; info: Entry; warn: Entry; error: Entry };
export const fetch: typeof globalThis.fetch;
export type SocketEvent =
  | { kind: "open" }
  | { kind: "message"; data: string | Uint8Array }
  | { kind: "close"; code: number };

/** One WebSocket, for as long as one event is handled. */
export class Socket {
  readonly id: string;
  readonly path: string;
  readonly query: string;
  readonly headers: Headers;
  /** One of those that the client offers, to be set when it opens. */
  protocol: string;
  send(data: string | Uint8Array): void;
  close(code?: number, reason?: string): void;
  subscribe(topic: string): void;
  unsubscribe(topic: string): void;
}

/** To all who subscribed to a topic, on every node, or to one socket by its id; at most once. */
export const sockets: { broadcast(topic: string, data: string | Uint8Array): void; send(id: string, data: string | Uint8Array): void };

/** A message of a queue, as an app's `message(message)` gets it; `attempt` counts from 1, `id` is the same each time. */
export class Message {
  constructor(subject: string, data: Uint8Array | string, id?: string, attempt?: number, published?: Date);
  readonly subject: string;
  readonly data: Uint8Array;
  readonly id: string;
  readonly attempt: number;
  readonly published: Date;
  text(): string;
  json(): any;
}

/** Puts bytes or text into a queue that freehold.toml names in `publish`, or anything else as JSON; durable on return. */
export const messaging: { publish(subject: string, data: unknown): void };
