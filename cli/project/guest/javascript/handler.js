// The component's entry for an app with routes: hands each request to the app's fetch handler.
import { listening } from "./listen.js";
import * as app from "freehold:app";

const target = app.default;
const fetchHandler = typeof target === "function" ? target : target?.fetch?.bind(target);

if (fetchHandler) {
  addEventListener("fetch", (event) => event.respondWith(answer(event)));
} else if (!listening()) {
  throw new Error("the app has no default export with a fetch(request) method and listens to no fetch event");
}

async function answer(event) {
  try {
    return await fetchHandler(event.request, {}, event);
  } catch (error) {
    console.error(error?.stack ? `${error}\n${error.stack}` : String(error));
    return new Response("Internal Server Error\n", { status: 500 });
  }
}
