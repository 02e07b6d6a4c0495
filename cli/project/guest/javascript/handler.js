// The component's entry for an app with routes: hands each request to the app's fetch handler.
import "./web/platform.js";
import { NO_HANDLER, handlerOf, startOnce } from "./app.js";
import { settle } from "./web/loop.js";
import { serve } from "./web/serve.js";
import * as app from "freehold:app";

await settle();
const handler = handlerOf(app);
if (!handler) throw new Error(NO_HANDLER);

export const incomingHandler = {
  async handle(incoming, outparam) {
    startOnce();
    await serve(handler, incoming, outparam);
  },
};
