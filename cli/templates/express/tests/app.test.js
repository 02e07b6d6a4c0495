// Runs on this machine without the sandbox: freehold.js keeps stores in memory here. First: npm install
import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, beforeEach, test } from "node:test";
import { config, reset } from "../web/freehold.js";

let server;
let address;

before(async () => {
  process.env.PORT = "0";
  ({ server } = await import("../web/app.js"));
  if (!server.listening) await once(server, "listening");
  address = `http://127.0.0.1:${server.address().port}`;
});

after(() => server.close());

beforeEach(() => {
  reset();
  config.values = { GREETING: "good morning" };
});

test("it greets and counts", async () => {
  assert.equal(await (await fetch(`${address}/`)).text(), "good morning from @NAME@, visit 1\n");
  assert.deepEqual(await (await fetch(`${address}/api/visits`)).json(), { visits: 1 });
});

test("it echoes JSON", async () => {
  const sent = { method: "POST", body: '{"a":1}', headers: { "content-type": "application/json" } };
  assert.deepEqual(await (await fetch(`${address}/api/echo`, sent)).json(), { a: 1 });
});

test("anything else is not found", async () => {
  assert.equal((await fetch(`${address}/nothing`)).status, 404);
});
