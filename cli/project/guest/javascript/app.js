// Finds the app's handler: a default export with fetch(request), a fetch listener, or a server that listens (node/http).
import { isBuilding, start } from "./web/snapshot.js";
import { begin } from "./web/loop.js";
import { listenedHandler } from "./web/platform.js";

export const SERVERS = Symbol.for("freehold.servers");

export function handlerOf(app) {
  const served = globalThis[SERVERS]?.at(-1);
  if (served) return served;
  const target = app?.default;
  const found = typeof target === "function" ? target : typeof target?.fetch === "function" ? target.fetch.bind(target) : null;
  return found ?? listenedHandler();
}

export const NO_HANDLER = "the app has no default export with a fetch(request) method, listens to no fetch event and starts no server";

// Ends the build's moment: from now on clocks run and the machine's randomness may be read.
export function startOnce() {
  if (!isBuilding()) return;
  start();
  begin();
}
