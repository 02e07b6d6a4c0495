// A small JSON API: an ordinary Hono app that keeps notes in a key-value store.
import { Hono } from "hono";
import { log, store } from "./freehold.js";

const app = new Hono();

app.get("/notes", (c) => {
  const notes = store("notes");
  return c.json(notes.keys().filter((key) => key.startsWith("note-")).map((key) => notes.getJson(key)));
});

app.post("/notes", async (c) => {
  const { text } = await c.req.json();
  if (!text) return c.json({ error: "a note needs text" }, 400);
  const notes = store("notes");
  const id = notes.increment("count");
  const note = { id, text };
  notes.setJson(`note-${String(id).padStart(8, "0")}`, note);
  log.info(`note ${id}`, "notes");
  return c.json(note, 201);
});

app.notFound((c) => c.json({ error: "not found" }, 404));

export default app;
