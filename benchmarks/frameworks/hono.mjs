// Hello in Hono, a process for each core: node hono.mjs PORT PROCESSES
import cluster from "node:cluster";
import { serve } from "@hono/node-server";
import { Hono } from "hono";

const [port, processes] = process.argv.slice(2).map(Number);
if (cluster.isPrimary) {
  for (let count = 0; count < processes; count += 1) cluster.fork();
} else {
  const app = new Hono();
  app.get("/", (context) => context.text("hello world"));
  serve({ fetch: app.fetch, hostname: "127.0.0.1", port });
}
