// Runs on this machine without the sandbox: freehold.js keeps stores in memory here.
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import app from "../web/app.js";
import { config, reset } from "../web/freehold.js";

const call = (path, options) => app.fetch(new Request(`http://localhost${path}`, options));

beforeEach(() => {
  reset();
  config.values = { GREETING: "good morning" };
});

test("it greets and counts", async () => {
  assert.equal(await (await call("/")).text(), "good morning from @NAME@, visit 1\n");
  assert.deepEqual(await (await call("/api/visits")).json(), { visits: 1 });
});

test("it echoes JSON", async () => {
  const answer = await call("/api/echo", { method: "POST", body: '{"a":1}' });
  assert.deepEqual(await answer.json(), { a: 1 });
});

test("anything else is not found", async () => {
  assert.equal((await call("/nothing")).status, 404);
});
