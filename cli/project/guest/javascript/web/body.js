// The body of a Request or Response: bytes that are there, or a stream that is read once. Source: Fetch standard, 3.
import { Blob, FormData, bytesOf, isBinary, joined, readForm, writtenForm } from "./blob.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const EMPTY = new Uint8Array();

// Returns what an app gave as a body: its bytes or stream, and the content-type that follows from its kind.
export function extract(init) {
  if (init === null || init === undefined) return { bytes: null, stream: null, type: null };
  if (init instanceof ReadableStream) {
    if (init.locked) throw new TypeError("the stream given as a body is locked");
    return { bytes: null, stream: init, type: null };
  }
  if (isBinary(init)) return { bytes: bytesOf(init).slice(), stream: null, type: null };
  if (init instanceof Blob) return { bytes: Blob.bytes(init), stream: null, type: init.type || null };
  if (init instanceof FormData) {
    const boundary = `----freehold${Math.random().toString(36).slice(2).padEnd(12, "0")}`;
    return { bytes: writtenForm(init, boundary), stream: null, type: `multipart/form-data; boundary=${boundary}` };
  }
  if (init instanceof URLSearchParams) {
    return { bytes: encoder.encode(String(init)), stream: null, type: "application/x-www-form-urlencoded;charset=UTF-8" };
  }
  if (typeof init === "object" && typeof init[Symbol.asyncIterator] === "function") {
    return { bytes: null, stream: ReadableStream.from(init), type: null };
  }
  return { bytes: encoder.encode(String(init)), stream: null, type: "text/plain;charset=UTF-8" };
}

// Reads a stream of bytes to its end.
async function drained(stream) {
  const reader = stream.getReader();
  const parts = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return parts.length ? joined(parts) : EMPTY;
    if (!(value instanceof Uint8Array)) {
      const error = new TypeError("a body's stream may only hold Uint8Array");
      reader.cancel(error).catch(() => {});
      throw error;
    }
    parts.push(value);
  }
}

// What Request and Response have in common. `pull`, of a body from the wire, resolves to bytes, or null at its end.
export class Body {
  #bytes = null;
  #stream = null;
  #pull = null;
  #used = false;

  static isOne(message) {
    return #bytes in message;
  }
  static give(message, { bytes = null, stream = null, pull = null }) {
    message.#bytes = bytes;
    message.#stream = stream;
    message.#pull = pull;
  }
  // Hands the body over: its bytes, or a function that pulls the next piece, or null where there is none.
  static take(message) {
    if (message.bodyUsed || message.#stream?.locked) throw new TypeError("the body was read before");
    if (message.#bytes === null && message.#stream === null && message.#pull === null) return null;
    message.#used = true;
    if (message.#stream === null) return message.#bytes !== null ? { bytes: message.#bytes } : { pull: message.#pull };
    const reader = message.#stream.getReader();
    return { pull: async () => ((await reader.read()).value ?? null), cancel: (reason) => reader.cancel(reason).catch(() => {}) };
  }
  // Gives `to` a copy of the body of `from`, which stays readable.
  static share(from, to) {
    if (from.bodyUsed || from.#stream?.locked) throw new TypeError("a body that was read cannot be cloned");
    if (from.#bytes !== null && from.#stream === null) to.#bytes = from.#bytes;
    else if (from.body !== null) [from.#stream, to.#stream] = from.#stream.tee();
  }
  // Moves the body of `from` to `to`, as a Request made of a Request does.
  static move(from, to) {
    if (from.bodyUsed || from.#stream?.locked) throw new TypeError("the body of the given Request was read before");
    [to.#bytes, to.#stream, to.#pull] = [from.#bytes, from.#stream, from.#pull];
    from.#used = to.#bytes !== null || to.#stream !== null || to.#pull !== null;
  }

  get body() {
    if (this.#stream !== null) return this.#stream;
    if (this.#bytes === null && this.#pull === null) return null;
    let rest = this.#bytes;
    const pull = this.#pull ?? (async () => (rest === null || !rest.byteLength ? null : rest.slice()));
    const wasUsed = this.#used;
    this.#stream = new ReadableStream(
      {
        pull: async (controller) => {
          this.#used = true;
          const piece = await pull();
          rest = null;
          if (piece === null) controller.close();
          else controller.enqueue(piece);
        },
        cancel: () => {
          this.#used = true;
        },
      },
      { highWaterMark: 0 },
    );
    if (wasUsed) this.#stream.getReader();
    return this.#stream;
  }
  get bodyUsed() {
    return this.#used;
  }

  async #consumed() {
    if (this.#used || this.#stream?.locked) throw new TypeError("the body was read before");
    if (this.#bytes === null && this.#stream === null && this.#pull === null) return EMPTY;
    this.#used = true;
    if (this.#stream !== null) return drained(this.#stream);
    if (this.#bytes !== null) return this.#bytes;
    const parts = [];
    for (let piece; (piece = await this.#pull()) !== null; ) parts.push(piece);
    return parts.length ? joined(parts) : EMPTY;
  }
  async arrayBuffer() {
    return (await this.#consumed()).slice().buffer;
  }
  async bytes() {
    return (await this.#consumed()).slice();
  }
  async text() {
    return decoder.decode(await this.#consumed());
  }
  async json() {
    return JSON.parse(await this.text());
  }
  async blob() {
    return Blob.over(await this.#consumed(), this.headers.get("content-type") ?? "");
  }
  async formData() {
    const type = this.headers.get("content-type") ?? "";
    const essence = type.split(";")[0].trim().toLowerCase();
    if (essence === "multipart/form-data") {
      const boundary = /;\s*boundary=(?:"([^"]+)"|([^;\s]+))/i.exec(type);
      if (!boundary) throw new TypeError("the content-type of multipart/form-data names no boundary");
      return readForm(await this.#consumed(), boundary[1] ?? boundary[2]);
    }
    if (essence === "application/x-www-form-urlencoded") {
      const form = new FormData();
      for (const [name, value] of new URLSearchParams(await this.text())) form.append(name, value);
      return form;
    }
    throw new TypeError(`a body of type "${essence}" is no form`);
  }
}
