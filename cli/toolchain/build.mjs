// Bundles one JavaScript or TypeScript app and turns it into a component. Reads a request as JSON on standard input:
//   { source, entry, guest, modules, wit, world, kind, disable, work, output }
// and writes the component to `output`. `kind` is "http", "command", "dev" (the engine that runs an app from source) or
// "bundle" (the source for that engine; no component). Errors go to standard error as one JSON object { message }.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const ENTRIES = { http: "handler.js", command: "command.js", dev: "dev.js" };
const request = JSON.parse(readFileSync(0, "utf8"));
const forDev = request.kind === "bundle";

function fail(message) {
  process.stderr.write(JSON.stringify({ message }) + "\n");
  process.exit(1);
}

// The app's own copy of freehold.js is for tests outside the sandbox; the bundle gets the sandbox's, which the
// development engine holds already.
const guestModules = {
  name: "freehold",
  setup(plugin) {
    plugin.onResolve({ filter: /^(freehold|(\.{1,2}\/)+freehold(\.js)?)$/ }, () =>
      forDev ? { path: "freehold", namespace: "engine" } : { path: join(request.guest, "freehold.js") },
    );
    plugin.onLoad({ filter: /.*/, namespace: "engine" }, () => ({ contents: "module.exports = globalThis.freeholdModule;" }));
    plugin.onResolve({ filter: /^freehold:app$/ }, () => ({ path: join(request.source, request.entry) }));
    plugin.onResolve({ filter: /^freehold:bindings$/ }, () => ({ path: join(request.guest, "bindings.js") }));
    plugin.onResolve({ filter: /^node:/ }, (found) => ({
      errors: [{ text: `${found.path} is Node's own; the sandbox has only web-standard APIs and the freehold module` }],
    }));
  },
};

const bundle = forDev ? request.output : join(request.work, "bundle.js");
try {
  await build({
    entryPoints: [forDev ? join(request.source, request.entry) : join(request.guest, ENTRIES[request.kind])],
    outfile: bundle,
    bundle: true,
    format: forDev ? "iife" : "esm",
    globalName: forDev ? "app" : undefined,
    target: "es2022",
    platform: "neutral",
    mainFields: ["module", "main"],
    conditions: ["worker", "browser", "import"],
    external: ["wasi:*"],
    nodePaths: request.modules ? [request.modules] : [],
    absWorkingDir: request.source,
    legalComments: "none",
    logLevel: "silent",
    plugins: [guestModules],
    tsconfigRaw: "{}",
  });
} catch (error) {
  const lines = (error.errors ?? []).map(({ text, location }) =>
    location ? `${location.file}:${location.line}:${location.column + 1}: ${text}` : text,
  );
  fail(lines.join("\n") || String(error));
}
if (forDev) process.exit(0);

try {
  const { componentize } = await import("@bytecodealliance/componentize-js");
  const { component } = await componentize({
    sourcePath: bundle,
    witPath: request.wit,
    worldName: request.world,
    disableFeatures: request.disable,
  });
  writeFileSync(request.output, component);
} catch (error) {
  fail(String(error?.message ?? error));
}
