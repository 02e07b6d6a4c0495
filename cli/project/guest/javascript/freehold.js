// What a JavaScript app may ask of the node it runs on, inside the sandbox. Its twin outside is templates' freehold.js.
import { atomics, blobstore, blobValues, configuration, consumer, databases, keyvalue, logging } from "freehold:bindings";

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

/** A statement or a database was refused; `code` is SQLite's own name, such as SQLITE_CONSTRAINT_UNIQUE. */
export class SqlError extends FreeholdError {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const INTEGER_MAX = BigInt(Number.MAX_SAFE_INTEGER);

function lowered(value) {
  if (value === null || value === undefined) return { tag: "null" };
  if (typeof value === "bigint") return { tag: "integer", val: value };
  if (typeof value === "boolean") return { tag: "integer", val: value ? 1n : 0n };
  if (typeof value === "number")
    return Number.isSafeInteger(value) ? { tag: "integer", val: BigInt(value) } : { tag: "real", val: value };
  if (typeof value === "string") return { tag: "text", val: value };
  if (ArrayBuffer.isView(value)) return { tag: "blob", val: new Uint8Array(value.buffer, value.byteOffset, value.byteLength) };
  if (value instanceof ArrayBuffer) return { tag: "blob", val: new Uint8Array(value) };
  throw new TypeError(`a parameter is a number, bigint, string, boolean, null or bytes, not ${Object.prototype.toString.call(value)}`);
}

function lifted(value) {
  switch (value.tag) {
    case "null":
      return null;
    case "integer":
      return value.val > INTEGER_MAX || value.val < -INTEGER_MAX ? value.val : Number(value.val);
    case "blob":
      return new Uint8Array(value.val); // one of the app's own realm
    default:
      return value.val;
  }
}

function parametersOf(given) {
  const [first] = given;
  if (given.length === 1 && Array.isArray(first)) return { tag: "positional", val: first.map(lowered) };
  const isNamed = given.length === 1 && first !== null && typeof first === "object" && !ArrayBuffer.isView(first) && !(first instanceof ArrayBuffer);
  if (isNamed) return { tag: "named", val: Object.entries(first).map(([name, value]) => [name, lowered(value)]) };
  return { tag: "positional", val: given.map(lowered) };
}

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
  #connection;
  inTransaction = false;
  constructor(connection) {
    this.#connection = connection;
  }
  #asked(call) {
    try {
      const found = call();
      this.inTransaction = found.inTransaction;
      return found;
    } catch (error) {
      const { code, message } = error?.payload ?? {};
      if (code === undefined) throw error;
      if (this.inTransaction && code !== "SQLITE_ERROR") this.#look();
      throw new SqlError(code, message);
    }
  }
  #look() {
    try {
      this.inTransaction = this.#connection.execute("SELECT 1", { tag: "positional", val: [] }).inTransaction;
    } catch {
      this.inTransaction = false;
    }
  }
  asked(sql, given) {
    const found = this.#asked(() => this.#connection.execute(sql, parametersOf(given)));
    const names = found.columns.map((column) => column.name);
    const rows = found.rows.map((row) => Object.fromEntries(row.map((value, at) => [names[at], lifted(value)])));
    return { rows, changes: Number(found.changes), lastInsertRowid: lifted({ tag: "integer", val: found.lastInsertRowid }) };
  }
  exec(sql) {
    this.#asked(() => this.#connection.script(sql));
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

/** Open a database that freehold.toml names in `sql`. */
export function sql(name) {
  if (!databases) throw new FreeholdError(`this app may open no database; add sql = ["${name}"] to freehold.toml`);
  try {
    return new Database(databases.Database.open(name));
  } catch (error) {
    if (error?.payload?.code === undefined) throw error;
    throw new SqlError(error.payload.code, error.payload.message);
  }
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

const PIECE_BYTES = 256 * 1024;
const END = 2n ** 64n - 1n;
const blobAsked = (call) => asked("blob", call);
const release = (resource) => resource[Symbol.dispose]();

class Container {
  #container;
  constructor(container) {
    this.#container = container;
  }
  /** Write an object: whole, or not at all. */
  async put(name, value) {
    const outgoing = blobValues.OutgoingValue.newOutgoingValue();
    let stream;
    try {
      blobAsked(() => this.#container.writeData(name, outgoing));
      stream = blobAsked(() => outgoing.outgoingValueWriteBody());
      for await (const piece of piecesOf(value)) {
        for (let at = 0; at < piece.byteLength; ) {
          const room = Number(streamAsked(() => stream.checkWrite()));
          streamAsked(() => stream.write(piece.subarray(at, at + room)));
          at += room;
        }
      }
    } catch (error) {
      if (stream) release(stream);
      release(outgoing);
      throw error;
    }
    release(stream);
    blobAsked(() => blobValues.OutgoingValue.finish(outgoing));
  }
  /** Read an object, or, by `range: { offset, length }`, a part of it; null if there is none. */
  async get(name, { range } = {}) {
    if (!blobAsked(() => this.#container.hasObject(name))) return null;
    if (range?.length === 0) return new BlobBody(0, new Blob([]).stream());
    const start = BigInt(range?.offset ?? 0);
    const end = range?.length === undefined ? END : start + BigInt(range.length) - 1n;
    const incoming = blobAsked(() => this.#container.getData(name, start, end));
    const size = Number(incoming.size());
    const source = blobAsked(() => blobValues.IncomingValue.incomingValueConsumeAsync(incoming));
    const stream = new ReadableStream({
      pull(controller) {
        try {
          controller.enqueue(new Uint8Array(source.blockingRead(BigInt(PIECE_BYTES))));
        } catch (error) {
          if ((error?.payload ?? error)?.tag !== "closed") throw new FreeholdError(`blob: ${name} cannot be read`);
          release(source);
          controller.close();
        }
      },
      cancel: () => release(source),
    });
    return new BlobBody(size, stream);
  }
  async head(name) {
    if (!blobAsked(() => this.#container.hasObject(name))) return null;
    const found = blobAsked(() => this.#container.objectInfo(name));
    return { name, size: Number(found.size), uploaded: new Date(Number(found.createdAt) * 1000) };
  }
  async delete(names) {
    blobAsked(() => this.#container.deleteObjects([names].flat()));
  }
  /** Every name, in the order of its bytes. */
  async list() {
    const walk = blobAsked(() => this.#container.listObjects());
    const found = [];
    for (let ended = false; !ended; ) {
      const [page, last] = blobAsked(() => walk.readStreamObjectNames(500n));
      found.push(...page);
      ended = last;
    }
    release(walk);
    return found;
  }
}

function streamAsked(call) {
  try {
    return call();
  } catch (error) {
    const reason = error?.payload ?? error;
    throw new FreeholdError(`blob: ${reason?.val?.toDebugString?.() ?? reason?.tag ?? reason}`);
  }
}

/** Open a container that freehold.toml names in `blobs`. */
export function blobs(name) {
  if (!blobstore) throw new FreeholdError(`this app may open no container; add blobs = ["${name}"] to freehold.toml`);
  return new Container(asked(`container "${name}"`, () => blobstore.getContainer(name)));
}

export const config = {
  get(key, fallback = null) {
    return configuration ? (asked(`configuration ${key}`, () => configuration.get(key)) ?? fallback) : fallback;
  },
};

/** A message of a queue, as an app's `message(message)` gets it; `attempt` counts from 1, `id` is the same each time. */
export class Message {
  constructor(subject, data, id = "", attempt = 1, published = new Date(0)) {
    Object.assign(this, { subject, data, id, attempt, published });
  }
  text() {
    return decoder.decode(this.data);
  }
  json() {
    return JSON.parse(this.text());
  }
}

const isBytes = (data) => ArrayBuffer.isView(data) || data instanceof ArrayBuffer;
const octets = (data) =>
  data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** Puts bytes or text into a queue, or anything else as JSON; it is kept, durably, before the call returns. */
export const messaging = {
  publish(subject, data) {
    if (!consumer) throw new FreeholdError(`this app may publish nowhere; add publish = ["${subject}"] to freehold.toml`);
    const body = isBytes(data) ? octets(data) : encoder.encode(typeof data === "string" ? data : JSON.stringify(data));
    asked(`queue ${subject}`, () => consumer.publish({ subject, body, replyTo: undefined }));
  },
};

const entry = (level) => (message, context = "") => logging.log(level, context, String(message));
export const log = { debug: entry("debug"), info: entry("info"), warn: entry("warn"), error: entry("error") };

export { fetch } from "./web/fetch.js";

let saying = null; // what the event that is handled now has said, in the order in which it said it

function event(name, data) {
  const head = encoder.encode(data.length ? `${name} ${data.length.toString(16)}\r\n` : `${name}\r\n`);
  const whole = new Uint8Array(head.length + (data.length ? data.length + 2 : 0));
  whole.set(head);
  if (data.length) {
    whole.set(data, head.length);
    whole.set([13, 10], head.length + data.length);
  }
  return whole;
}

function say(name, data) {
  if (!saying) throw new FreeholdError("a WebSocket is told something from websocket(socket, event) alone");
  saying.push(event(name, data));
}

const kindOf = (data) => (typeof data === "string" ? "TEXT" : "BINARY");

/** One WebSocket, for as long as one event is handled. `id` names it to other events; nobody can guess it. */
export class Socket {
  constructor(id, path, query, headers) {
    Object.assign(this, { id, path, query, headers, protocol: "" });
  }
  send(data) {
    say(kindOf(data), bytes(data));
  }
  close(code = 1000, reason = "") {
    say("CLOSE", new Uint8Array([code >> 8, code & 255, ...encoder.encode(reason)]));
  }
  subscribe(topic) {
    say("SUBSCRIBE", encoder.encode(topic));
  }
  unsubscribe(topic) {
    say("UNSUBSCRIBE", encoder.encode(topic));
  }
}

/** To all who subscribed to a topic, on every node, or to one socket by its id; at most once. */
export const sockets = {
  broadcast(topic, data) {
    const head = encoder.encode(`${topic}\0${typeof data === "string" ? "t" : "b"}`);
    const content = bytes(data);
    const whole = new Uint8Array(head.length + content.length);
    whole.set(head);
    whole.set(content, head.length);
    say("PUBLISH", whole);
  },
  send(id, data) {
    this.broadcast(`socket:${id}`, data);
  },
};

/** Has `call` speak for a socket into `said`; an event's own answers go nowhere else, whatever else runs meanwhile. */
export async function telling(socket, said, call) {
  saying = said;
  try {
    return await call();
  } finally {
    saying = null;
  }
}
