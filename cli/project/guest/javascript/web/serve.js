// Answers one request of wasi:http/incoming-handler with the app's fetch handler.
import { http } from "freehold:bindings";
import { Body } from "./body.js";
import { env } from "./environment.js";
import { closeAll } from "./fetch.js";
import { Headers } from "./headers.js";
import { described } from "./loop.js";
import { Request, Response } from "./messages.js";
import { isomorphicBytes, pairsOf, readPiece, writePiece } from "./wire.js";

const NOT_OURS = new Set(["connection", "keep-alive", "transfer-encoding", "upgrade", "host", "proxy-connection", "http2-settings", "proxy-authenticate", "proxy-authorization"]);

function methodOf(method) {
  return method.tag === "other" ? method.val : method.tag.toUpperCase();
}

// The request, and how to let go of it once it is answered.
function received(incoming) {
  const method = methodOf(incoming.method());
  const scheme = incoming.scheme()?.tag === "HTTPS" ? "https" : "http";
  const pairs = pairsOf(incoming.headers());
  const authority = incoming.authority() ?? pairs.find(([name]) => name === "host")?.[1] ?? "localhost";
  if (!pairs.some(([name]) => name === "host")) pairs.push(["host", authority]);
  const path = incoming.pathWithQuery() ?? "/";
  const url = new URL(`${scheme}://${authority}${path.startsWith("/") ? path : "/"}`).href;
  const leaving = new AbortController();
  let body = null;
  let input = null;
  let over = false;
  const pull = async () => {
    if (over) return null;
    body ??= incoming.consume();
    input ??= body.stream();
    const piece = await readPiece(input);
    over = piece === null;
    return piece;
  };
  const close = () => {
    over = true;
    input?.[Symbol.dispose]();
    body?.[Symbol.dispose]();
    incoming[Symbol.dispose]();
  };
  const bodyless = method === "GET" || method === "HEAD";
  return { request: Request.ofWire(method, url, pairs, bodyless ? null : pull, leaving.signal), leaving, close };
}

async function send(outparam, response, isHead) {
  const pairs = Headers.pairs(response.headers).filter(([name]) => !NOT_OURS.has(name));
  const body = isHead ? null : Body.take(response);
  if (body?.bytes && !response.headers.has("content-length")) pairs.push(["content-length", String(body.bytes.length)]);
  const message = new http.OutgoingResponse(http.Fields.fromList(pairs.map(([name, value]) => [name, isomorphicBytes(value)])));
  message.setStatusCode(response.status);
  const target = message.body();
  http.ResponseOutparam.set(outparam, { tag: "ok", val: message });
  if (!body) return http.OutgoingBody.finish(target, undefined);
  const output = target.write();
  let whole = false;
  try {
    if (body.bytes) whole = await writePiece(output, body.bytes);
    else whole = await copy(body, output);
  } finally {
    output[Symbol.dispose]();
    if (whole) http.OutgoingBody.finish(target, undefined);
    else target[Symbol.dispose]();
  }
  return undefined;
}

async function copy(body, output) {
  for (let piece; (piece = await body.pull()) !== null; ) {
    if (!(piece instanceof Uint8Array)) throw new TypeError(`a response's stream may only hold Uint8Array, and this one gave ${typeof piece}`);
    if (!(await writePiece(output, piece))) {
      await body.cancel?.(new DOMException("the client left", "AbortError"));
      return false;
    }
  }
  return true;
}

function checked(answer) {
  if (answer instanceof Response) {
    if (Body.isOne(answer)) return answer;
    return new Response(answer.body, { status: answer.status, headers: answer.headers }); // a library's own kind of Response
  }
  const kind = answer === null ? "null" : answer === undefined ? "nothing" : `a value of type ${answer?.constructor?.name ?? typeof answer}`;
  throw new TypeError(`the handler returned ${kind}; it must return a Response`);
}

const failed = () => new Response("Internal Server Error\n", { status: 500 });

export async function serve(handler, incoming, outparam) {
  const { request, leaving, close } = received(incoming);
  const pending = [];
  const context = { waitUntil: (promise) => void pending.push(promise), passThroughOnException() {}, props: {} };
  try {
    let response;
    try {
      response = checked(await handler(request, env(), context));
      if (response.bodyUsed || response.status === 0) throw new TypeError("the handler returned a Response whose body was read, or Response.error()");
    } catch (error) {
      console.error(described(error));
      response = failed();
    }
    try {
      await send(outparam, response, request.method === "HEAD");
    } catch (error) {
      console.error(described(error));
    }
    for (let done = 0; done < pending.length; ) {
      const results = await Promise.allSettled(pending.slice(done));
      done += results.length;
      for (const result of results) if (result.status === "rejected") console.error(described(result.reason));
    }
  } finally {
    leaving.abort(new DOMException("the request is over", "AbortError"));
    close();
    closeAll();
  }
}
