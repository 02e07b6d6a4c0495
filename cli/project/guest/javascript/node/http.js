// node:http over fetch. A server that listens becomes the app's handler, whatever its port; each request becomes an
// IncomingMessage and a ServerResponse. A client's request is a fetch. There are no sockets underneath.
import { Buffer } from "node:buffer";
import { EventEmitter } from "node:events";
import { Readable, Writable } from "node:stream";

export const STATUS_CODES = { 100: "Continue", 101: "Switching Protocols", 200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content", 205: "Reset Content", 206: "Partial Content", 300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout", 409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed", 413: "Payload Too Large", 414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed", 418: "I'm a Teapot", 421: "Misdirected Request", 422: "Unprocessable Entity", 423: "Locked", 424: "Failed Dependency", 425: "Too Early", 426: "Upgrade Required", 428: "Precondition Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large", 451: "Unavailable For Legal Reasons", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported", 507: "Insufficient Storage", 511: "Network Authentication Required" };
export const METHODS = ["ACL", "BIND", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LINK", "LOCK", "M-SEARCH", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "NOTIFY", "OPTIONS", "PATCH", "POST", "PROPFIND", "PROPPATCH", "PURGE", "PUT", "QUERY", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "TRACE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE"];
const OF_CONNECTION = new Set(["connection", "transfer-encoding", "keep-alive", "upgrade", "proxy-connection"]);
const BODYLESS = new Set([204, 304]);

const platform = () => globalThis[Symbol.for("freehold.platform")];
const failure = (code, message, Kind = Error) => Object.assign(new Kind(message), { code });

class Socket extends EventEmitter {
  constructor(encrypted, remoteAddress) {
    super();
    Object.assign(this, { encrypted, remoteAddress, remotePort: 0, remoteFamily: "IPv4", localAddress: "127.0.0.1", localPort: 0, readable: true, writable: true, destroyed: false, bytesRead: 0, bytesWritten: 0 });
  }
  address() {
    return { address: this.localAddress, family: "IPv4", port: this.localPort };
  }
  destroy() {
    this.destroyed = true;
    return this;
  }
  end() {
    return this;
  }
  write() {
    return true;
  }
}
for (const name of ["setTimeout", "setKeepAlive", "setNoDelay", "ref", "unref", "cork", "uncork", "pause", "resume"]) {
  Socket.prototype[name] = function unchanged() {
    return this;
  };
}

export class IncomingMessage extends Readable {
  #reader = null;
  constructor(socket) {
    super();
    this.socket = this.connection = socket ?? new Socket(false, "127.0.0.1");
    Object.assign(this, { httpVersion: "1.1", httpVersionMajor: 1, httpVersionMinor: 1, headers: {}, headersDistinct: {}, rawHeaders: [], trailers: {}, rawTrailers: [], url: "", method: null, statusCode: null, statusMessage: null, complete: false, aborted: false });
  }
  static ofRequest(request) {
    const url = new URL(request.url);
    const forwarded = request.headers.get("x-forwarded-for")?.split(",").at(-1).trim();
    const message = new IncomingMessage(new Socket(url.protocol === "https:", forwarded ?? "127.0.0.1"));
    message.method = request.method;
    message.url = url.pathname + url.search;
    message.take(request.headers, request.body);
    message.headers.host ??= url.host;
    const hasLength = message.headers["content-length"] !== undefined || message.headers["transfer-encoding"] !== undefined;
    if (request.body !== null && !hasLength) message.headers["transfer-encoding"] = "chunked";
    return message;
  }
  take(headers, body) {
    for (const [name, value] of headers) {
      this.rawHeaders.push(name, value);
      if (name === "set-cookie") (this.headers[name] ??= []).push(value);
      else this.headers[name] = value;
      (this.headersDistinct[name] ??= []).push(value);
    }
    this.#reader = body?.getReader() ?? null;
  }
  _read() {
    const end = () => {
      this.complete = true;
      this.push(null);
    };
    if (!this.#reader) return end();
    this.#reader.read().then(({ done, value }) => (done ? end() : this.push(Buffer.from(value))), (error) => this.destroy(error));
  }
  setTimeout() {
    return this;
  }
}

function checkedHeader(name, value) {
  if (typeof name !== "string" || !/^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(name)) throw failure("ERR_INVALID_HTTP_TOKEN", `Header name must be a valid HTTP token ["${name}"]`, TypeError);
  if (value === undefined) throw failure("ERR_HTTP_INVALID_HEADER_VALUE", `Invalid value "undefined" for header "${name}"`, TypeError);
  for (const one of [].concat(value)) if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(String(one))) throw failure("ERR_INVALID_CHAR", `Invalid character in header content ["${name}"]`, TypeError);
}

export class OutgoingMessage extends Writable {
  #fields = new Map();
  constructor() {
    super({ decodeStrings: true });
    Object.assign(this, { headersSent: false, sendDate: true, shouldKeepAlive: true, chunkedEncoding: false, useChunkedEncodingByDefault: true, finished: false });
  }
  setHeader(name, value) {
    if (this.headersSent) throw failure("ERR_HTTP_HEADERS_SENT", "Cannot set headers after they are sent to the client");
    checkedHeader(name, value);
    this.#fields.set(name.toLowerCase(), [name, value]);
    return this;
  }
  setHeaders(headers) {
    for (const [name, value] of headers) this.setHeader(name, value);
    return this;
  }
  appendHeader(name, value) {
    const before = this.getHeader(name);
    return this.setHeader(name, before === undefined ? value : [].concat(before, value));
  }
  getHeader(name) {
    return this.#fields.get(String(name).toLowerCase())?.[1];
  }
  getHeaders() {
    return Object.assign(Object.create(null), Object.fromEntries([...this.#fields].map(([name, field]) => [name, field[1]])));
  }
  getHeaderNames() {
    return [...this.#fields.keys()];
  }
  getRawHeaderNames() {
    return [...this.#fields.values()].map((field) => field[0]);
  }
  hasHeader(name) {
    return this.#fields.has(String(name).toLowerCase());
  }
  removeHeader(name) {
    if (this.headersSent) throw failure("ERR_HTTP_HEADERS_SENT", "Cannot remove headers after they are sent to the client");
    this.#fields.delete(String(name).toLowerCase());
  }
  get _header() {
    return this.headersSent ? "sent" : null;
  }
  addTrailers() {}
  setTimeout() {
    return this;
  }
  static fields(message) {
    const headers = new Headers();
    for (const [name, value] of message.#fields.values()) {
      if (!OF_CONNECTION.has(name.toLowerCase())) for (const one of [].concat(value)) headers.append(name, String(one));
    }
    return headers;
  }
}

export class ServerResponse extends OutgoingMessage {
  #answer;
  #controller = null;
  #room = null;
  constructor(request) {
    super();
    this.req = request;
    this.socket = this.connection = request?.socket ?? null;
    this.statusCode = 200;
    this.statusMessage = undefined;
    this.answered = new Promise((resolve) => {
      this.#answer = resolve;
    });
    this.on("finish", () => queueMicrotask(() => this.emit("close")));
  }
  writeHead(status, reason, fields) {
    if (this.headersSent) throw failure("ERR_HTTP_HEADERS_SENT", "Cannot write headers after they are sent to the client");
    if (typeof reason === "string") this.statusMessage = reason;
    else fields = reason;
    if (!(status >= 100 && status <= 999)) throw failure("ERR_HTTP_INVALID_STATUS_CODE", `Invalid status code: ${status}`, RangeError);
    this.statusCode = status;
    if (Array.isArray(fields)) {
      const pairs = Array.isArray(fields[0]) ? fields : fields.flatMap((_, at) => (at % 2 ? [] : [[fields[at], fields[at + 1]]]));
      for (const [name] of pairs) this.removeHeader(name);
      for (const [name, value] of pairs) this.appendHeader(name, value);
    } else for (const name of Object.keys(fields ?? {})) if (fields[name] !== undefined) this.setHeader(name, fields[name]);
    return this;
  }
  flushHeaders() {
    this.#start(undefined);
  }
  get #bodyless() {
    return this.req?.method === "HEAD" || BODYLESS.has(this.statusCode);
  }
  // `whole` is the body where it is known from the start; otherwise what is written goes out as it comes.
  #start(whole) {
    if (this.headersSent) return;
    this.headersSent = true;
    const headers = OutgoingMessage.fields(this);
    let body = this.#bodyless ? null : whole;
    if (body === undefined) {
      body = new ReadableStream({
        start: (controller) => {
          this.#controller = controller;
        },
        pull: () => {
          const room = this.#room;
          this.#room = null;
          room?.();
        },
        cancel: () => {
          this.#controller = null;
          this.#room?.();
          this.emit("close");
        },
      });
    }
    this.#answer(new (platform().Response)(body, { status: this.statusCode, headers }));
  }
  _write(piece, _encoding, done) {
    this.#start(undefined);
    if (!this.#controller) return done();
    this.#controller.enqueue(new Uint8Array(piece));
    if (this.#controller.desiredSize > 0) done();
    else this.#room = done;
    return undefined;
  }
  _final(done) {
    this.#start(null);
    this.finished = true;
    this.#controller?.close();
    done();
  }
  _destroy(error, done) {
    if (!this.writableFinished) {
      if (!this.headersSent) this.#answer(platform().Response.error());
      else this.#controller?.error(error ?? new Error("the response was destroyed"));
    }
    done(error);
  }
  end(piece, encoding, done) {
    if (typeof piece === "function") [piece, done] = [undefined, piece];
    else if (typeof encoding === "function") [encoding, done] = [undefined, encoding];
    if (!this.headersSent && !this.writableEnded && this.writableLength === 0 && piece !== undefined && piece !== null) {
      const whole = typeof piece === "string" ? Buffer.from(piece, encoding) : piece;
      this.#start(new Uint8Array(whole));
      return super.end(done);
    }
    if (piece !== undefined && piece !== null) this.write(piece, encoding);
    return super.end(done);
  }
  assignSocket() {}
  detachSocket() {}
  writeContinue() {}
  writeProcessing() {}
  writeEarlyHints(_hints, done) {
    done?.();
  }
}

const SERVERS = Symbol.for("freehold.servers");

export class Server extends EventEmitter {
  #handler;
  #port = 0;
  constructor(options, handler) {
    super();
    const given = typeof options === "function" ? options : handler;
    if (given) this.on("request", given);
    Object.assign(this, { listening: false, timeout: 0, keepAliveTimeout: 5000, requestTimeout: 300000, headersTimeout: 60000, maxHeadersCount: null, maxRequestsPerSocket: 0 });
    this.#handler = (request, _env, context) => this.#answer(request, context);
  }
  listen(...given) {
    if (this.listening) throw failure("ERR_SERVER_ALREADY_LISTEN", "Listen method has been called more than once without closing.");
    const options = typeof given[0] === "object" && given[0] !== null ? given[0] : { port: given[0] };
    this.#port = Number(options.port) || 80;
    this.listening = true;
    (globalThis[SERVERS] ??= []).push(this.#handler);
    const done = given.find((one) => typeof one === "function");
    if (done) this.once("listening", done);
    queueMicrotask(() => this.emit("listening"));
    return this;
  }
  address() {
    return this.listening ? { address: "127.0.0.1", family: "IPv4", port: this.#port } : null;
  }
  close(done) {
    this.listening = false;
    const servers = globalThis[SERVERS] ?? [];
    servers.splice(servers.indexOf(this.#handler), 1);
    queueMicrotask(() => {
      this.emit("close");
      done?.();
    });
    return this;
  }
  async #answer(request, context) {
    const message = IncomingMessage.ofRequest(request);
    const response = new ServerResponse(message);
    const over = new Promise((resolve) => response.once("close", resolve));
    this.emit("request", message, response);
    const answer = await response.answered;
    context.waitUntil(Promise.race([over, new Promise((resolve) => response.once("finish", resolve))]));
    return answer;
  }
  setTimeout() {
    return this;
  }
  closeAllConnections() {}
  closeIdleConnections() {}
  getConnections(done) {
    done(null, 0);
  }
  ref() {
    return this;
  }
  unref() {
    return this;
  }
  async [Symbol.asyncDispose]() {
    this.close();
  }
}
export const createServer = (options, handler) => new Server(options, handler);

export class ClientRequest extends OutgoingMessage {
  #url;
  #parts = [];
  #aborting = new AbortController();
  constructor(url, options, done) {
    super();
    this.#url = url;
    this.method = (options.method ?? "GET").toUpperCase();
    this.host = url.hostname;
    this.path = url.pathname + url.search;
    this.protocol = url.protocol;
    const { headers } = options;
    const pairs = Array.isArray(headers) ? headers : Object.entries(headers ?? {});
    for (const [name, value] of pairs) if (value !== undefined) this.setHeader(name, value);
    if (options.auth) this.setHeader("authorization", `Basic ${Buffer.from(options.auth).toString("base64")}`);
    if (done) this.once("response", done);
    options.signal?.addEventListener("abort", () => this.destroy(options.signal.reason));
    if (options.timeout) this.setTimeout(options.timeout);
    queueMicrotask(() => this.emit("socket", new Socket(url.protocol === "https:", url.hostname)));
  }
  _write(piece, _encoding, done) {
    this.#parts.push(piece);
    done();
  }
  _final(done) {
    const headers = OutgoingMessage.fields(this);
    for (const name of ["host", "content-length"]) headers.delete(name);
    this.headersSent = true;
    const body = this.#parts.length && !["GET", "HEAD"].includes(this.method) ? Buffer.concat(this.#parts) : undefined;
    fetch(this.#url, { method: this.method, headers, body, redirect: "manual", signal: this.#aborting.signal }).then(
      (response) => {
        const message = new IncomingMessage();
        message.statusCode = response.status;
        message.statusMessage = STATUS_CODES[response.status] ?? "";
        const kept = new Headers(response.headers);
        if (/^(x-)?gzip$|^deflate$/.test(kept.get("content-encoding") ?? "")) for (const name of ["content-encoding", "content-length"]) kept.delete(name);
        message.take(kept, response.body);
        message.req = this;
        this.res = message;
        if (!this.emit("response", message)) message.resume();
        message.once("end", () => this.emit("close"));
      },
      (error) => this.destroyed || this.destroy(error.cause ? Object.assign(new Error(error.message), { code: error.cause.code }) : error),
    );
    done();
  }
  _destroy(error, done) {
    this.#aborting.abort();
    done(error);
  }
  abort() {
    this.destroy();
  }
  setTimeout(milliseconds, done) {
    if (done) this.once("timeout", done);
    const timer = setTimeout(() => this.emit("timeout"), milliseconds);
    this.once("response", () => clearTimeout(timer));
    this.once("close", () => clearTimeout(timer));
    return this;
  }
  setNoDelay() {}
  setSocketKeepAlive() {}
  flushHeaders() {}
}

export function clientOf(scheme) {
  const request = (target, ...rest) => {
    const given = typeof target === "string" || target instanceof URL ? new URL(target) : null;
    const options = { ...(given ? {} : target), ...(typeof rest[0] === "object" ? rest[0] : {}) };
    const host = options.hostname ?? options.host?.replace(/:\d+$/, "") ?? given?.hostname ?? "localhost";
    const port = options.port ?? given?.port ?? "";
    const url = new URL(`${options.protocol ?? given?.protocol ?? scheme}//${host}${port ? `:${port}` : ""}${options.path ?? (given ? given.pathname + given.search : "/")}`);
    return new ClientRequest(url, options, rest.find((one) => typeof one === "function"));
  };
  const get = (...given) => {
    const made = request(...given);
    made.end();
    return made;
  };
  return { request, get };
}
export const { request, get } = clientOf("http:");

export class Agent extends EventEmitter {
  constructor(options = {}) {
    super();
    Object.assign(this, { options, requests: {}, sockets: {}, freeSockets: {}, maxSockets: Infinity });
  }
  destroy() {}
}
export const globalAgent = new Agent();
export const maxHeaderSize = 16384;
export const validateHeaderName = (name) => checkedHeader(name, "");
export const validateHeaderValue = (name, value) => checkedHeader(name, value);
export default { STATUS_CODES, METHODS, IncomingMessage, OutgoingMessage, ServerResponse, Server, createServer, ClientRequest, request, get, Agent, globalAgent, maxHeaderSize, validateHeaderName, validateHeaderValue };
