// Blob, File and FormData, with multipart bodies read and written byte for byte.
const encoder = new TextEncoder();
const decoder = new TextDecoder();

export function bytesOf(value) {
  if (value instanceof Uint8Array) return value;
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return new Uint8Array(value);
}

export function joined(parts) {
  if (parts.length === 1) return parts[0];
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.byteLength;
  }
  return whole;
}

// By its tag, since a buffer of another realm is no instance of this one's ArrayBuffer.
export const isBinary = (value) => ArrayBuffer.isView(value) || /^\[object (Shared)?ArrayBuffer\]$/.test(Object.prototype.toString.call(value));

export class Blob {
  #bytes;
  #type;
  constructor(parts = [], options = {}) {
    if (parts === null || typeof parts !== "object" || typeof parts[Symbol.iterator] !== "function") {
      throw new TypeError("Blob takes a sequence of parts");
    }
    const copied = [...parts].map((part) =>
      part instanceof Blob ? part.#bytes : isBinary(part) ? bytesOf(part).slice() : encoder.encode(ended(String(part), options)),
    );
    this.#bytes = copied.length ? joined(copied) : new Uint8Array();
    const type = String(options?.type ?? "");
    this.#type = /^[\x20-\x7e]*$/.test(type) ? type.toLowerCase() : "";
  }
  // A blob over bytes that nobody else will change.
  static over(bytes, type = "") {
    const made = new Blob([], { type });
    made.#bytes = bytes;
    return made;
  }
  static bytes(blob) {
    return blob.#bytes;
  }
  static fill(blob, bytes) {
    blob.#bytes = bytes;
    return blob;
  }
  get size() {
    return this.#bytes.byteLength;
  }
  get type() {
    return this.#type;
  }
  slice(start = 0, end = this.size, type = "") {
    const clamp = (at) => (at < 0 ? Math.max(this.size + at, 0) : Math.min(at, this.size));
    const [from, to] = [clamp(start), clamp(end)];
    return Blob.over(this.#bytes.subarray(from, Math.max(from, to)), type);
  }
  async arrayBuffer() {
    return this.#bytes.slice().buffer;
  }
  async bytes() {
    return this.#bytes.slice();
  }
  async text() {
    return decoder.decode(this.#bytes);
  }
  stream() {
    const bytes = this.#bytes;
    let at = 0;
    return new ReadableStream({
      pull(controller) {
        if (at >= bytes.byteLength) return controller.close();
        controller.enqueue(bytes.slice(at, (at += 65536)));
      },
    }, { highWaterMark: 0 });
  }
  get [Symbol.toStringTag]() {
    return "Blob";
  }
}

const ended = (text, options) => (options?.endings === "native" ? text.replace(/\r\n?|\n/g, "\n") : text);

export class File extends Blob {
  #name;
  #lastModified;
  constructor(parts, name, options = {}) {
    if (arguments.length < 2) throw new TypeError("File takes parts and a name");
    super(parts, options);
    this.#name = String(name);
    this.#lastModified = options?.lastModified === undefined ? Date.now() : Number(options.lastModified);
  }
  get name() {
    return this.#name;
  }
  get lastModified() {
    return this.#lastModified;
  }
  get webkitRelativePath() {
    return "";
  }
  get [Symbol.toStringTag]() {
    return "File";
  }
}

function entryOf(value, filename) {
  if (!(value instanceof Blob)) {
    if (filename !== undefined) throw new TypeError("a file name belongs to a Blob");
    return String(value).toWellFormed();
  }
  if (value instanceof File && filename === undefined) return value;
  const file = new File([], filename ?? value.name ?? "blob", { type: value.type, lastModified: value.lastModified });
  return Blob.fill(file, Blob.bytes(value));
}

export class FormData {
  #list = [];
  constructor(form) {
    if (form !== undefined) throw new TypeError("there are no form elements in the sandbox");
  }
  append(name, value, filename) {
    this.#list.push([String(name).toWellFormed(), entryOf(value, filename)]);
  }
  delete(name) {
    this.#list = this.#list.filter((entry) => entry[0] !== String(name));
  }
  get(name) {
    return this.#list.find((entry) => entry[0] === String(name))?.[1] ?? null;
  }
  getAll(name) {
    return this.#list.filter((entry) => entry[0] === String(name)).map((entry) => entry[1]);
  }
  has(name) {
    return this.#list.some((entry) => entry[0] === String(name));
  }
  set(name, value, filename) {
    const wanted = String(name).toWellFormed();
    const entry = [wanted, entryOf(value, filename)];
    const at = this.#list.findIndex((one) => one[0] === wanted);
    if (at < 0) this.#list.push(entry);
    else this.#list = this.#list.flatMap((one, index) => (index === at ? [entry] : one[0] === wanted ? [] : [one]));
  }
  forEach(call, self) {
    for (const [name, value] of this) call.call(self, value, name, this);
  }
  *entries() {
    yield* this.#list.map((entry) => [...entry]);
  }
  *keys() {
    for (const [name] of this.#list) yield name;
  }
  *values() {
    for (const [, value] of this.#list) yield value;
  }
  [Symbol.iterator]() {
    return this.entries();
  }
  get [Symbol.toStringTag]() {
    return "FormData";
  }
}

const quoted = (text) => text.replace(/\r\n?|\n/g, "\r\n").replace(/\r/g, "%0D").replace(/\n/g, "%0A").replace(/"/g, "%22");

// Returns the bytes of a form as multipart/form-data with this boundary.
export function writtenForm(form, boundary) {
  const parts = [];
  for (const [name, value] of form) {
    const head = `--${boundary}\r\nContent-Disposition: form-data; name="${quoted(name)}"`;
    if (typeof value === "string") parts.push(encoder.encode(`${head}\r\n\r\n${value.replace(/\r\n?|\n/g, "\r\n")}\r\n`));
    else {
      parts.push(encoder.encode(`${head}; filename="${quoted(value.name)}"\r\nContent-Type: ${value.type || "application/octet-stream"}\r\n\r\n`));
      parts.push(Blob.bytes(value), encoder.encode("\r\n"));
    }
  }
  parts.push(encoder.encode(`--${boundary}--\r\n`));
  return joined(parts);
}

// The place of `wanted` in `bytes` at or after `from`, or -1.
function find(bytes, wanted, from) {
  for (let at = bytes.indexOf(wanted[0], from); at >= 0; at = bytes.indexOf(wanted[0], at + 1)) {
    let same = 1;
    while (same < wanted.length && bytes[at + same] === wanted[same]) same++;
    if (same === wanted.length) return at;
  }
  return -1;
}

const LINE = encoder.encode("\r\n");
const BLANK = encoder.encode("\r\n\r\n");

function parameters(value) {
  const found = {};
  for (const [, name, quotedText, plain] of value.matchAll(/;\s*([\w*]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))/g)) {
    found[name.toLowerCase()] = quotedText !== undefined ? quotedText.replace(/\\(["\\])/g, "$1").replace(/%22/g, '"').replace(/%0D/gi, "\r").replace(/%0A/gi, "\n") : plain;
  }
  return found;
}

// Reads a body of multipart/form-data; throws TypeError where it is none.
export function readForm(bytes, boundary) {
  const form = new FormData();
  const dashes = encoder.encode(`--${boundary}`);
  const separator = joined([LINE, dashes]);
  const broken = () => new TypeError("the body is no multipart/form-data of its boundary");
  let at = find(bytes, dashes, 0);
  if (at < 0) throw broken();
  at += dashes.length;
  for (;;) {
    if (bytes[at] === 45 && bytes[at + 1] === 45) return form;
    while (bytes[at] === 32 || bytes[at] === 9) at++;
    if (bytes[at] !== 13 || bytes[at + 1] !== 10) throw broken();
    const headEnd = find(bytes, BLANK, at);
    if (headEnd < 0) throw broken();
    const fields = {};
    for (const line of decoder.decode(bytes.subarray(at + 2, headEnd)).split("\r\n")) {
      const colon = line.indexOf(":");
      if (colon > 0) fields[line.slice(0, colon).trim().toLowerCase()] = line.slice(colon + 1).trim();
    }
    const end = find(bytes, separator, headEnd + 2);
    if (end < 0) throw broken();
    const content = bytes.subarray(Math.min(headEnd + 4, end), end);
    const { name, filename } = parameters(fields["content-disposition"] ?? "");
    if (name === undefined) throw broken();
    if (filename === undefined) form.append(name, decoder.decode(content));
    else form.append(name, Blob.fill(new File([], filename, { type: fields["content-type"] ?? "text/plain" }), content.slice()));
    at = end + separator.length;
  }
}
