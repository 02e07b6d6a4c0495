// Bundles one JavaScript or TypeScript app and turns it into a component. Reads a request as JSON on standard input:
//   { source, entry, guest, modules, wit, world, kind, disable, work, output }
// and writes the component to `output`. Errors go to standard error as one JSON object { where, message }.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { componentize } from "@bytecodealliance/componentize-js";
import { build } from "esbuild";

const request = JSON.parse(readFileSync(0, "utf8"));

function fail(where, message) {
  process.stderr.write(JSON.stringify({ where, message }) + "\n");
  process.exit(1);
}

// The app's own copy of freehold.js is for tests outside the sandbox; the bundle gets the sandbox's.
const guestModule = {
  name: "freehold",
  setup(plugin) {
    plugin.onResolve({ filter: /^(freehold|(\.{1,2}\/)+freehold(\.js)?)$/ }, () => ({
      path: join(request.guest, "freehold.js"),
    }));
    plugin.onResolve({ filter: /^freehold:app$/ }, () => ({ path: join(request.source, request.entry) }));
    plugin.onResolve({ filter: /^freehold:bindings$/ }, () => ({ path: join(request.guest, "bindings.js") }));
    plugin.onResolve({ filter: /^node:/ }, (found) => ({
      errors: [{ text: `${found.path} is Node's own; the sandbox has only web-standard APIs and the freehold module` }],
    }));
  },
};

const bundle = join(request.work, "bundle.js");
try {
  await build({
    entryPoints: [join(request.guest, request.kind === "command" ? "command.js" : "handler.js")],
    outfile: bundle,
    bundle: true,
    format: "esm",
    target: "es2022",
    platform: "neutral",
    mainFields: ["module", "main"],
    conditions: ["worker", "browser", "import"],
    external: ["wasi:*"],
    nodePaths: request.modules ? [request.modules] : [],
    absWorkingDir: request.source,
    legalComments: "none",
    logLevel: "silent",
    plugins: [guestModule],
    tsconfigRaw: "{}",
  });
} catch (error) {
  const lines = (error.errors ?? []).map(({ text, location }) =>
    location ? `${location.file}:${location.line}:${location.column + 1}: ${text}` : text,
  );
  fail("bundle", lines.join("\n") || String(error));
}

try {
  const { component } = await componentize({
    sourcePath: bundle,
    witPath: request.wit,
    worldName: request.world,
    disableFeatures: request.disable,
  });
  writeFileSync(request.output, component);
} catch (error) {
  fail("componentize", String(error?.message ?? error));
}
