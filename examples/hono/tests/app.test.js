// Runs on this machine without the sandbox: freehold.js keeps stores in memory here.
import assert from "node:assert/strict";
import { test } from "node:test";
import app from "../web/app.js";

test("a note is kept", async () => {
  const made = await app.request("/notes", { method: "POST", body: JSON.stringify({ text: "milk" }) });
  assert.equal(made.status, 201);
  assert.deepEqual(await (await app.request("/notes")).json(), [{ id: 1, text: "milk" }]);
});
