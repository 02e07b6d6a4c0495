// The component's entry for an app with routes: hands each request to the app's fetch handler.
import "./web/platform.js";
import { NO_HANDLER, handlerOf, startOnce } from "./app.js";
import { settle } from "./web/loop.js";
import { serve } from "./web/serve.js";
import { withMigration } from "./migrate.js";
import { withMessages } from "./queues.js";
import { withSockets } from "./websocket.js";
import * as app from "freehold:app";

await settle();
const found = withMigration(app, withMessages(app, handlerOf(app)));
if (!found) throw new Error(NO_HANDLER);
const handler = withSockets(app, found);

export const incomingHandler = {
  async handle(incoming, outparam) {
    startOnce();
    await serve(handler, incoming, outparam);
  },
};
