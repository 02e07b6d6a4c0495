// The app's message(message) behind its fetch handler: what it returns from is done with, what it throws is delivered again.
import { Message } from "./freehold.js";

const PATH = "/.freehold/messages/"; // no visitor's request has such a path

function messageOf(app) {
  return typeof app?.message === "function" ? app.message : app?.default?.message?.bind(app.default);
}

async function answer(onMessage, request, env, context) {
  const field = (name) => request.headers.get(name);
  const message = new Message(
    new URL(request.url).pathname.slice(PATH.length),
    new Uint8Array(await request.arrayBuffer()),
    field("freehold-message") ?? "",
    Number(field("freehold-message-attempt") ?? 1),
    new Date(Number(field("freehold-message-published-ms") ?? 0)),
  );
  await onMessage(message, env, context);
  return new Response(null, { status: 204 });
}

// Returns the handler that gives messages to the app's message function, if it has one, and all else to `handler`, which
// is null for an app that has nothing but messages to handle.
export function withMessages(app, handler) {
  const onMessage = messageOf(app);
  if (typeof onMessage !== "function") return handler;
  const other = handler ?? (() => new Response(null, { status: 404 }));
  return (request, ...rest) =>
    new URL(request.url).pathname.startsWith(PATH) ? answer(onMessage, request, ...rest) : other(request, ...rest);
}
