// Runs an app from its bundled source, for `freehold dev`: a save is served without building a component. The engine's
// component is built once; an instance asks its configuration for the bundle and evaluates it on its first request,
// under the rules that hold at a build's top level.
// Such a component never becomes a release: what runs must be what the digest names.
import "./web/platform.js";
import { configuration } from "freehold:bindings";
import { NO_HANDLER, handlerOf, startOnce } from "./app.js";
import { described, settle } from "./web/loop.js";
import { Response } from "./web/messages.js";
import { serve } from "./web/serve.js";
import * as freehold from "./freehold.js";
import { withMigration } from "./migrate.js";
import { withMessages } from "./queues.js";
import { withSockets } from "./websocket.js";

const SOURCE_KEY = "freehold:dev-source";
const CHECK_HOST = "candidate.freehold.invalid";

let handler = null;
let failure = null;

async function load() {
  globalThis.freeholdModule = freehold;
  const AsyncFunction = (async () => {}).constructor;
  const app = await new AsyncFunction(configuration.get(SOURCE_KEY))(); // the bundle returns what the app exports
  await settle();
  const found = withMigration(app, withMessages(app, handlerOf(app)));
  if (!found) throw new Error(NO_HANDLER);
  handler = withSockets(app, found);
}

async function answer(request, env, context) {
  const isCheck = new URL(request.url).hostname === CHECK_HOST;
  if (isCheck) return new Response(failure ?? "", { status: failure ? 500 : 200 });
  if (failure) throw new Error(failure);
  return handler(request, env, context);
}

export const incomingHandler = {
  async handle(incoming, outparam) {
    if (!handler && !failure) {
      try {
        await load();
      } catch (error) {
        failure = described(error);
      }
      startOnce();
    }
    await serve(answer, incoming, outparam);
  },
};
