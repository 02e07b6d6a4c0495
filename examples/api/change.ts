/* A change from its request to production over the HTTP API, with types that openapi-typescript made of its document.

     npx openapi-typescript https://node:4180/v1/openapi.json -o schema.ts --default-non-nullable=false && npx tsc
     export NODE_EXTRA_CA_CERTS=ca.pem FREEHOLD_TOKEN=...    # freehold context ca; freehold token create bot --runner
     node change.js PROJECT ENVIRONMENT web.wasm HOST "greet visitors" -- npm test

   With a bearer token and FREEHOLD_URL it ends where a token ends: at the proposal. */
import { spawnSync } from "node:child_process";
import { createHash, createPrivateKey, createPublicKey, randomBytes, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Draft = components["schemas"]["DraftView"];
type Wanted = paths["/v1/drafts"]["post"]["requestBody"]["content"]["application/json"];

const token = process.env.FREEHOLD_TOKEN ?? "";
const bearer = token.startsWith("fht1.");
const said = bearer ? null : JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
const baseUrl: string = said ? said.url : process.env.FREEHOLD_URL;
const prefix = Buffer.from("302e020100300506032b657004220420", "hex"); // PKCS #8 of an Ed25519 seed, RFC 8410
const key = said && createPrivateKey({
  key: Buffer.concat([prefix, Buffer.from(said.seed, "base64")]), format: "der", type: "pkcs8",
});
const named = key ? createPublicKey(key).export({ format: "der", type: "spki" }).subarray(-32).toString("hex") : "";
const over = (data: Buffer): string => sign(null, data, key).toString("base64");
const sha256 = (data: Uint8Array) => createHash("sha256").update(data).digest();

/** Signs each request (RFC 9421), or shows the token. */
const proving: Middleware = {
  async onRequest({ request }) {
    if (request.method !== "GET") request.headers.set("Idempotency-Key", randomBytes(16).toString("hex"));
    if (bearer) {
      request.headers.set("Authorization", `Bearer ${token}`);
      return request;
    }
    const body = Buffer.from(await request.clone().arrayBuffer());
    const fields: [string, string][] = [["@method", request.method], ["@target-uri", request.url], ["freehold-node", said.pin]];
    request.headers.set("Freehold-Node", said.pin);
    if (body.length) {
      fields.push(["content-digest", `sha-256=:${sha256(body).toString("base64")}:`]);
      request.headers.set("Content-Digest", fields[3]![1]);
    }
    const covered = fields.map(([name]) => `"${name}"`).join(" ");
    const created = Math.floor(Date.now() / 1000);
    const parameters = `(${covered});created=${created};keyid="${named}";alg="ed25519";nonce="${randomBytes(16).toString("hex")}"`;
    const base = [...fields.map(([name, value]) => `"${name}": ${value}`), `"@signature-params": ${parameters}`].join("\n");
    request.headers.set("Signature-Input", `sig=${parameters}`);
    request.headers.set("Signature", `sig=:${over(Buffer.from(base))}:`);
    return request;
  },
};

const api = createClient<paths>({ baseUrl });
api.use(proving);

function fail(text: string): never {
  console.error(text);
  process.exit(1);
}

/** The answer of a call, or the end with the problem that the node named. */
async function got<T>(call: Promise<{ data?: T; error?: { detail: string; next?: string } }>): Promise<T> {
  const { data, error } = await call;
  if (error) fail(`${error.detail}\nnext: ${error.next ?? ""}`);
  return data as T;
}

const draftOf = (body: Wanted): Promise<Draft> => got(api.POST("/v1/drafts", { body }));
const header = { "Idempotency-Key": "set-by-proving" };
const signed = (draft: Draft) => ({ key: named, signature: over(Buffer.from(draft.to_sign, "base64")) });

/** Run the tests here and file what came out, signed, as evidence about the component and its configuration. */
async function attest(mesh: string, draft: Draft, component: string, command: string[]): Promise<void> {
  const passed = spawnSync(command[0]!, command.slice(1), { stdio: "inherit" }).status === 0;
  const payload = Buffer.from(JSON.stringify({
    _type: "https://in-toto.io/Statement/v1",
    subject: [{ name: "web", digest: { sha256: component } }],
    predicateType: "https://in-toto.io/attestation/test-result/v0.1",
    predicate: {
      result: passed ? "PASSED" : "FAILED",
      configuration: [{ name: "configuration", digest: { sha256: draft.configuration } }],
      freehold_run: { mesh, kind: "test", covers: "host", finished_ms: Date.now() },
    },
  }));
  const payloadType = "application/vnd.in-toto+json";
  const sig = over(Buffer.concat([Buffer.from(`DSSEv1 ${payloadType.length} ${payloadType} ${payload.length} `), payload]));
  const envelope = { payload: payload.toString("base64"), payloadType, signatures: [{ keyid: named, sig }] };
  const body = { kind: "evidence" as const, scope: component, body: Buffer.from(JSON.stringify(envelope)).toString("base64") };
  await got(api.POST("/v1/records", { params: { header }, body }));
  if (!passed) fail("the tests failed; nothing was proposed");
}

const dashes = process.argv.indexOf("--");
const [project, environment, path, host, request] = process.argv.slice(2, dashes) as [string, string, string, string, string];
const place = { project, environment };
const data = readFileSync(path);
const component = sha256(data).toString("hex");
await got(api.PUT("/v1/artifacts/{digest}", {
  params: { path: { digest: component }, header }, body: data as unknown as string, bodySerializer: (body) => body as never,
  headers: { "Content-Type": "application/octet-stream" },
}));
const draft = await draftOf({
  kind: "change", ...place, request, apps: [{ name: "web", component, routes: [host] }], smoke: [{ app: "web", path: "/" }],
});
for (const one of draft.differences ?? []) console.log(`${one.section} ${one.name}: ${one.before} -> ${one.after}`);
if (key) await attest((await got(api.GET("/v1/mesh"))).mesh, draft, component, process.argv.slice(dashes + 1));
const filed = await got(api.POST("/v1/changes", { params: { header }, body: { digest: draft.digest, ...(key ? signed(draft) : {}) } }));
console.log(`proposed ${filed.change}; missing: ${filed.missing.map((one) => one.rule).join(", ") || "nothing"}`);
if (!key) {
  console.log(filed.next_step);
  process.exit(0);
}
for (const wanted of [{ kind: "routes", ...place, routes: [host] }, { kind: "start", change: filed.change }] as Wanted[]) {
  const command = await draftOf(wanted);
  await got(api.POST("/v1/drafts/{draft}/signature", { params: { path: { draft: command.digest }, header }, body: signed(command) }));
}
for (let last = ""; ; await new Promise((later) => setTimeout(later, 1000))) {
  const lane = await got(api.GET("/v1/lanes/{project}/{environment}", { params: { path: place } }));
  const { start } = await got(api.GET("/v1/changes/{change}", { params: { path: { change: filed.change } } }));
  if (lane.base?.change === filed.change) {
    console.log(`runs: release ${lane.base.release.slice(0, 12)}`);
    break;
  }
  const now = lane.rollout ? `stage ${lane.rollout.stage + 1} of ${lane.rollout.stages.length}` : `${start?.outcome} ${start?.rule}`;
  if (now !== last) console.log((last = now));
  const ended = start?.outcome === "refused" || (!lane.rollout && start?.outcome === "started" && lane.last_abort);
  if (ended) fail(`it does not run: ${start?.detail || lane.last_abort}`);
}
