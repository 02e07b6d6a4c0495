// The @NAME@ app: a web-standard fetch handler.
import { config, store } from "./freehold.js";

export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    const visits = store("visits");
    if (request.method === "GET" && pathname === "/") {
      return new Response(`${config.get("GREETING", "hello")} from @NAME@, visit ${visits.increment("count")}\n`);
    }
    if (request.method === "GET" && pathname === "/api/visits") {
      return Response.json({ visits: Number(visits.getText("count") ?? 0) });
    }
    if (request.method === "POST" && pathname === "/api/echo") {
      return Response.json(await request.json());
    }
    return new Response("not found\n", { status: 404 });
  },
};
