// The app's websocket(socket, event) behind its fetch handler: events in a request's body, what the app says in the answer's.
import { Socket, telling } from "./freehold.js";

const MEDIA_TYPE = "application/websocket-events";
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

function* eventsOf(body) {
  let at = 0;
  while (at < body.length) {
    let end = at;
    while (body[end] !== 13 || body[end + 1] !== 10) end++;
    const [name, size] = decoder.decode(body.subarray(at, end)).split(" ");
    at = end + 2;
    const length = size === undefined ? 0 : parseInt(size, 16);
    yield [name, body.slice(at, at + length)];
    if (size !== undefined) at += length + 2;
  }
}

function codeOf(data) {
  return data.length < 2 ? 1005 : data[0] * 256 + data[1];
}

async function answer(onEvent, request) {
  const { pathname, search } = new URL(request.url);
  const socket = new Socket(request.headers.get("connection-id") ?? "", pathname, search, request.headers);
  const said = [];
  let opened = false;
  for (const [name, data] of eventsOf(new Uint8Array(await request.arrayBuffer()))) {
    const event =
      name === "OPEN" ? { kind: "open" }
      : name === "TEXT" ? { kind: "message", data: decoder.decode(data) }
      : name === "BINARY" ? { kind: "message", data }
      : { kind: "close", code: name === "CLOSE" ? codeOf(data) : 1006 };
    const answered = await telling(socket, said, () => onEvent(socket, event));
    if (name === "OPEN" && answered === false) return new Response(null, { status: 403 });
    opened ||= name === "OPEN";
  }
  const headers = { "content-type": MEDIA_TYPE };
  if (socket.protocol) headers["sec-websocket-protocol"] = socket.protocol;
  const parts = opened ? [encoder.encode("OPEN\r\n"), ...said] : said;
  const body = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    body.set(part, at);
    at += part.length;
  }
  return new Response(body, { headers });
}

// Returns the handler that answers events of sockets by the app's websocket function, if it has one, and all else as before.
export function withSockets(app, handler) {
  // A script that calls addEventListener, or a server of Node, has no exports.
  const onEvent = typeof app?.websocket === "function" ? app.websocket : app?.default?.websocket?.bind(app.default);
  if (typeof onEvent !== "function") return handler;
  return (request, ...rest) =>
    request.headers.get("content-type") === MEDIA_TYPE ? answer(onEvent, request) : handler(request, ...rest);
}
