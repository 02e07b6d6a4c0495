// fetch() over wasi:http/outgoing-handler, which asks the host; allow_hosts in freehold.toml says where it may go.
import { http, outgoing } from "freehold:bindings";
import { Body } from "./body.js";
import { Headers } from "./headers.js";
import { ready } from "./loop.js";
import { Request, Response } from "./messages.js";
import { refuseWhileBuilding } from "./snapshot.js";
import { errorOf, isomorphicBytes, pairsOf, readPiece, writePiece } from "./wire.js";

const REDIRECTS_MAX = 20;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const CONNECTION = new Set(["host", "connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection", "http2-settings", "content-length", "proxy-authenticate", "proxy-authorization"]);
const METHODS = new Set(["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]);

// What one run or request has open at the host: closed when it ends, in the order the host asks for.
const open = new Set();
export function closeAll() {
  for (const close of open) close();
  open.clear();
}

export async function fetch(input, init) {
  let request = new Request(input, init);
  refuseWhileBuilding("fetch()");
  if (request.url.startsWith("data:")) return ofData(request.url);
  if (request.signal.aborted) throw request.signal.reason;
  let body = Body.take(request);
  let redirected = false;
  for (let hops = 0; ; hops++) {
    const url = new URL(request.url);
    if (url.protocol !== "http:" && url.protocol !== "https:") throw new TypeError(`fetch failed: ${url.protocol} is not supported`);
    const response = await sent(request, url, body, redirected);
    const location = response.headers.get("location");
    if (!REDIRECTS.has(response.status) || location === null || request.redirect === "manual") return response;
    if (request.redirect === "error") throw new TypeError("fetch failed: it was redirected");
    if (hops >= REDIRECTS_MAX) throw new TypeError(`fetch failed: more than ${REDIRECTS_MAX} redirects`);
    await response.arrayBuffer().catch(() => {});
    [request, body] = followed(request, response.status, new URL(location, url), url, body);
    redirected = true;
  }
}

function followed(request, status, target, from, body) {
  const headers = new Headers(request.headers);
  const becomesGet = (status === 303 && !["GET", "HEAD"].includes(request.method)) || (status <= 302 && request.method === "POST");
  if (becomesGet) for (const name of ["content-encoding", "content-language", "content-location", "content-type", "content-length"]) headers.delete(name);
  else if (body && !body.bytes) throw new TypeError("fetch failed: a streamed body cannot be sent again after a redirect");
  if (target.origin !== from.origin) for (const name of ["authorization", "cookie", "proxy-authorization"]) headers.delete(name);
  const method = becomesGet ? "GET" : request.method;
  const next = new Request(target.href, { method, headers, signal: request.signal, redirect: request.redirect });
  return [next, becomesGet ? null : body];
}

function fieldsOf(headers, body) {
  const pairs = Headers.pairs(headers).filter(([name]) => !CONNECTION.has(name));
  const add = (name, value) => headers.has(name) || pairs.push([name, value]);
  add("accept", "*/*");
  add("accept-encoding", "gzip, deflate");
  add("user-agent", "freehold");
  if (body?.bytes) pairs.push(["content-length", String(body.bytes.length)]);
  return http.Fields.fromList(pairs.map(([name, value]) => [name, isomorphicBytes(value)]));
}

async function sent(request, url, body, redirected) {
  if (!outgoing) throw new TypeError(`fetch failed: this app may call no host; add allow_hosts = ["${hostOf(url)}"] to its table in freehold.toml`);
  const signal = request.signal;
  const message = new http.OutgoingRequest(fieldsOf(request.headers, body));
  const method = request.method;
  message.setMethod(METHODS.has(method) ? { tag: method.toLowerCase() } : { tag: "other", val: method });
  message.setScheme({ tag: url.protocol === "https:" ? "HTTPS" : "HTTP" });
  message.setAuthority(url.host);
  message.setPathWithQuery(url.pathname + url.search);
  const target = body ? message.body() : null;
  let future;
  try {
    future = outgoing.handle(message, undefined);
  } catch (error) {
    throw failure(errorOf(error), url);
  }
  const writing = body ? write(target, body, signal) : null;
  writing?.catch(() => {});
  let answer;
  try {
    await ready(future, signal);
    answer = future.get();
  } finally {
    future[Symbol.dispose]();
  }
  const result = answer?.val ?? answer;
  if (result?.tag !== "ok") throw failure(result?.val ?? result, url);
  return received(result.val, request, url, redirected);
}

async function write(target, body, signal) {
  const output = target.write();
  let whole = false;
  try {
    if (body.bytes) whole = await writePiece(output, body.bytes, signal);
    else for (let piece; (whole = (piece = await body.pull()) === null), !whole; ) if (!(await writePiece(output, piece, signal))) break;
  } finally {
    output[Symbol.dispose]();
    if (whole) http.OutgoingBody.finish(target, undefined);
    else target[Symbol.dispose]();
  }
}

function received(incoming, request, url, redirected) {
  const status = incoming.status();
  let pairs = pairsOf(incoming.headers());
  const body = incoming.consume();
  const input = body.stream();
  const close = () => {
    if (!open.delete(close)) return;
    input[Symbol.dispose]();
    body[Symbol.dispose]();
    incoming[Symbol.dispose]();
  };
  open.add(close);
  let pull = async () => {
    if (!open.has(close)) return null;
    try {
      const piece = await readPiece(input, request.signal);
      if (piece === null) close();
      return piece;
    } catch (error) {
      close();
      throw error;
    }
  };
  const coding = pairs.find(([name]) => name === "content-encoding")?.[1].toLowerCase();
  const format = { gzip: "gzip", "x-gzip": "gzip", deflate: "deflate" }[coding];
  if (format && request.method !== "HEAD") pull = decompressed(pull, format);
  return Response.ofWire(status, pairs, request.method === "HEAD" ? async () => (close(), null) : pull, url.href, redirected);
}

function decompressed(pull, format) {
  const source = new ReadableStream({
    async pull(controller) {
      const piece = await pull();
      if (piece === null) controller.close();
      else controller.enqueue(piece);
    },
  });
  const reader = source.pipeThrough(new DecompressionStream(format)).getReader();
  return async () => (await reader.read()).value ?? null;
}

const hostOf = (url) => `${url.hostname}:${url.port || (url.protocol === "https:" ? 443 : 80)}`;

function failure(code, url) {
  const tag = code?.tag ?? String(code);
  const said = tag === "HTTP-request-denied" ? `${hostOf(url)} is not among allow_hosts of this app in freehold.toml` : tag + (typeof code?.val === "string" ? ` (${code.val})` : "");
  const error = new TypeError(`fetch failed: ${said}`);
  error.cause = Object.assign(new Error(said), { code: { "connection-refused": "ECONNREFUSED", "DNS-error": "ENOTFOUND", "connection-timeout": "ETIMEDOUT" }[tag] ?? tag });
  return error;
}

function ofData(url) {
  const match = /^data:([^,]*?)(;base64)?,(.*)$/s.exec(url.replace(/#.*$/s, ""));
  if (!match) throw new TypeError("fetch failed: the data: URL has no comma");
  const text = decodeURIComponent(match[3].replace(/%(?![0-9a-f]{2})/gi, "%25"));
  const body = match[2] ? isomorphicBytes(atob(text)) : text;
  return new Response(body, { headers: { "content-type": match[1] || "text/plain;charset=US-ASCII" } });
}
