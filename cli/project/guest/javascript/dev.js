// Runs an app from its bundled source, for `freehold dev`: a save is served without building a component. The engine's
// component is built once; an instance asks its configuration for the bundle and evaluates it on its first request.
// Such a component never becomes a release: what runs must be what the digest names.
import { configuration } from "freehold:bindings";
import * as freehold from "./freehold.js";

const SOURCE_KEY = "freehold:dev-source";
const CHECK_HOST = "candidate.freehold.invalid";

let handler = null;
let failure = null;

addEventListener("fetch", (event) => event.respondWith(answer(event)));

function load() {
  let listener = null;
  globalThis.freeholdModule = freehold;
  globalThis.addEventListener = (kind, given) => {
    if (kind === "fetch") listener = given;
  };
  const source = configuration.get(SOURCE_KEY);
  // The bundle assigns the app's exports, if it has any, to `app`.
  const target = new Function(`${source}\nreturn typeof app === "undefined" ? undefined : app;`)()?.default;
  const found = typeof target === "function" ? target : target?.fetch?.bind(target);
  if (found) return (event) => found(event.request, {}, event);
  if (!listener) throw new Error("the app has no default export with a fetch(request) method and listens to no fetch event");
  return (event) =>
    new Promise((resolve, reject) => {
      listener({ request: event.request, respondWith: (given) => Promise.resolve(given).then(resolve, reject), waitUntil() {} });
    });
}

async function answer(event) {
  if (!handler && !failure) {
    try {
      handler = load();
    } catch (error) {
      failure = described(error);
    }
  }
  const isCheck = new URL(event.request.url).hostname === CHECK_HOST;
  if (isCheck) return new Response(failure ?? "", { status: failure ? 500 : 200 });
  try {
    if (failure) throw new Error(failure);
    return await handler(event);
  } catch (error) {
    console.error(described(error));
    return new Response("Internal Server Error\n", { status: 500 });
  }
}

function described(error) {
  return error?.stack ? `${error}\n${error.stack}` : String(error);
}
