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

export class SqlError extends FreeholdError {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const databases = new Map();

class Statement {
  #database;
  #sql;
  #shape = (row) => row;
  constructor(database, sql) {
    this.#database = database;
    this.#sql = sql;
  }
  /** Rows as arrays. */
  raw() {
    this.#shape = (row) => Object.values(row);
    return this;
  }
  /** The first column alone. */
  pluck() {
    this.#shape = (row) => Object.values(row)[0];
    return this;
  }
  all(...parameters) {
    return this.#database.asked(this.#sql, parameters).rows.map((row) => this.#shape(row));
  }
  get(...parameters) {
    return this.all(...parameters)[0];
  }
  *iterate(...parameters) {
    yield* this.all(...parameters);
  }
  run(...parameters) {
    const { changes, lastInsertRowid } = this.#database.asked(this.#sql, parameters);
    return { changes, lastInsertRowid };
  }
}

class Database {
  #sqlite;
  constructor(sqlite) {
    this.#sqlite = sqlite;
  }
  get inTransaction() {
    return this.#sqlite.isTransaction;
  }
  #asked(call) {
    try {
      return call();
    } catch (error) {
      throw error.code === "ERR_SQLITE_ERROR" ? new SqlError(`SQLITE_${error.errcode}`, error.message) : error;
    }
  }
  asked(sql, parameters) {
    const given = parameters.length === 1 && Array.isArray(parameters[0]) ? parameters[0] : parameters;
    return this.#asked(() => {
      const statement = this.#sqlite.prepare(sql);
      if (statement.columns().length > 0) return { rows: statement.all(...given), changes: 0, lastInsertRowid: 0 };
      return { rows: [], ...statement.run(...given) };
    });
  }
  exec(sql) {
    this.#asked(() => this.#sqlite.exec(sql));
    return this;
  }
  prepare(sql) {
    return new Statement(this, sql);
  }
  pragma(text, { simple = false } = {}) {
    const rows = this.prepare(`PRAGMA ${text}`).all();
    return simple ? Object.values(rows[0] ?? {})[0] : rows;
  }
  /** A function that runs `work` in a transaction: all of what it writes, or, if it throws, nothing. */
  transaction(work) {
    return (...values) => {
      if (this.inTransaction) return work(...values);
      this.exec("BEGIN IMMEDIATE");
      try {
        const found = work(...values);
        this.exec("COMMIT");
        return found;
      } catch (error) {
        if (this.inTransaction) this.exec("ROLLBACK");
        throw error;
      }
    };
  }
}

/** Open a database that freehold.toml names in `sql`; here it is in memory (Node.js 22.13 or later). */
export function sql(name) {
  if (!databases.has(name)) {
    const { DatabaseSync } = process.getBuiltinModule("node:sqlite");
    databases.set(name, new Database(new DatabaseSync(":memory:")));
  }
  return databases.get(name);
}

/** A part of an object's bytes, or all of them: a stream, or whole. */
class BlobBody {
  constructor(size, stream) {
    this.size = size;
    this.body = stream;
  }
  async arrayBuffer() {
    return await new Response(this.body).arrayBuffer();
  }
  async bytes() {
    return new Uint8Array(await this.arrayBuffer());
  }
  async text() {
    return decoder.decode(await this.arrayBuffer());
  }
  async json() {
    return JSON.parse(await this.text());
  }
}

async function* piecesOf(value) {
  if (typeof value === "string") yield encoder.encode(value);
  else if (value instanceof ArrayBuffer) yield new Uint8Array(value);
  else if (ArrayBuffer.isView(value)) yield new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  else if (typeof value?.stream === "function") yield* piecesOf(value.stream());
  else if (value?.body && typeof value.body.getReader === "function") yield* piecesOf(value.body);
  else if (typeof value?.getReader === "function") {
    const reader = value.getReader();
    for (;;) {
      const { done, value: piece } = await reader.read();
      if (done) return;
      yield typeof piece === "string" ? encoder.encode(piece) : piece;
    }
  } else if (value !== null && value !== undefined) throw new TypeError("an object is a string, bytes, a Blob or a stream");
}

class Container {
  #objects = new Map();
  async put(name, value) {
    const pieces = [];
    for await (const piece of piecesOf(value)) pieces.push(piece);
    this.#objects.set(name, { blob: new Blob(pieces), uploaded: new Date() });
  }
  async get(name, { range } = {}) {
    const found = this.#objects.get(name);
    if (!found) return null;
    const start = range?.offset ?? 0;
    const part = found.blob.slice(start, range?.length === undefined ? undefined : start + range.length);
    return new BlobBody(part.size, part.stream());
  }
  async head(name) {
    const found = this.#objects.get(name);
    return found ? { name, size: found.blob.size, uploaded: found.uploaded } : null;
  }
  async delete(names) {
    for (const name of [names].flat()) this.#objects.delete(name);
  }
  async list() {
    return [...this.#objects.keys()].sort();
  }
}

const containers = new Map();

/** Open a container that freehold.toml names in `blobs`; here it is in memory. */
export function blobs(name) {
  if (!containers.has(name)) containers.set(name, new Container());
  return containers.get(name);
}

/** Forget every in-memory store, database and container (tests). */
export function reset() {
  containers.clear();
  stores.clear();
  databases.clear();
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

/** One WebSocket, for as long as one event is handled; here a test makes its own and looks at what was said. */
export class Socket {
  constructor(id = "test", path = "/", query = "", headers = new Headers()) {
    Object.assign(this, { id, path, query, headers, protocol: "", said: [] });
  }
  send(data) {
    this.said.push(["send", data]);
  }
  close(code = 1000, reason = "") {
    this.said.push(["close", code, reason]);
  }
  subscribe(topic) {
    this.said.push(["subscribe", topic]);
  }
  unsubscribe(topic) {
    this.said.push(["unsubscribe", topic]);
  }
}

/** To all who subscribed to a topic; here it is kept in `said`, for a test to look at. */
export const sockets = {
  said: [],
  broadcast(topic, data) {
    this.said.push([topic, data]);
  },
  send(id, data) {
    this.broadcast(`socket:${id}`, data);
  },
};

/** A message of a queue, as an app's `message(message)` gets it; a test makes its own. */
export class Message {
  constructor(subject, data, id = "", attempt = 1, published = new Date(0)) {
    Object.assign(this, { subject, data: typeof data === "string" ? new TextEncoder().encode(data) : data, id, attempt, published });
  }
  text() {
    return new TextDecoder().decode(this.data);
  }
  json() {
    return JSON.parse(this.text());
  }
}

/** Puts a message into a queue; here it is kept in `published`, for a test to look at. */
export const messaging = {
  published: [],
  publish(subject, data) {
    const isBytes = ArrayBuffer.isView(data) || data instanceof ArrayBuffer;
    const body = isBytes ? new Uint8Array(data) : typeof data === "string" ? data : JSON.stringify(data);
    this.published.push(new Message(subject, body, String(this.published.length + 1)));
  },
};
