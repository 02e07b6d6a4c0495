// Bundles one JavaScript or TypeScript app and turns it into a component. Reads a request as JSON on standard input:
//   { source, entry, guest, modules, wit, world, kind, fetches, work, output }
// and writes the component to `output`. `kind` is "http", "command", "dev" (the engine that runs an app from source) or
// "bundle" (the source for that engine; no component). Errors go to standard error as one JSON object { message }.
import childProcess from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { SourceMap, syncBuiltinESMExports } from "node:module";
import { join, relative } from "node:path";
import { bundled } from "./bundle.mjs";

const request = JSON.parse(readFileSync(0, "utf8"));

function fail(message) {
  process.stderr.write(JSON.stringify({ message }) + "\n");
  process.exit(1);
}

let script;
try {
  script = await bundled(request);
} catch (error) {
  const lines = (error.errors ?? []).map(({ text, location }) =>
    location ? `${location.file}:${location.line}:${location.column + 1}: ${text}` : text,
  );
  fail(lines.join("\n") || String(error));
}
if (request.kind === "bundle") {
  writeFileSync(request.output, script.code);
  process.exit(0);
}

// Says where a place in the bundle stands in the app.
function placed(text) {
  const map = new SourceMap(JSON.parse(script.map));
  return text.replace(/bundle\.js:(\d+):(\d+)/g, (whole, line, column) => {
    const found = map.findEntry(Number(line) - 1, Number(column) - 1);
    if (!found.originalSource) return whole;
    const path = relative(request.source, join(request.work, found.originalSource));
    return `${path}:${found.originalLine + 1}:${found.originalColumn + 1}`;
  });
}

// The lines that are about the app: what it threw, and its own frames.
function reason(text) {
  const lines = placed(text).split("\n").map((line) => line.trimEnd());
  const kept = lines.filter((line) => line && !/^(Failed to initialize|Error: the `componentize|Caused by|\s*\d+: |Exception while|Stack:$|Internal error|Warning: )/.test(line.trim()) && !line.includes("../guest/"));
  return (kept.length ? kept : lines).slice(0, 40).join("\n");
}

// The engine remembers the command line that it was initialized with: the folders of this machine are mounted under names
// that every machine has.
const { spawnSync } = childProcess;
childProcess.spawnSync = (command, given, options) => {
  const sources = given.find((one) => one.startsWith("--dir="))?.slice("--dir=".length);
  if (sources === undefined) return spawnSync(command, given, options);
  const mounted = given.map((one) => (one === `--dir=${sources}` ? `--mapdir=/sources::${sources}` : one));
  const input = options.input.replaceAll(sources, "/sources").replace(/--strip-path-prefix \S+/, "--strip-path-prefix /");
  return spawnSync(command, mounted, { ...options, input });
};
syncBuiltinESMExports();

const bundle = join(request.work, "bundle.js");
writeFileSync(bundle, script.code);
try {
  const { splicer } = await import("./node_modules/@bytecodealliance/componentize-js/lib/spidermonkey-embedding-splicer.js");
  const stub = splicer.stubWasi;
  // The guest's own handler uses wasi:http/types, which the tool takes away together with the right to call out.
  splicer.stubWasi = (binary, features, ...rest) =>
    stub(binary, request.fetches ? features : [...features.filter((one) => one !== "http"), "fetch-event"], ...rest);
  const { componentize } = await import("@bytecodealliance/componentize-js");
  const { component } = await componentize({
    sourcePath: bundle,
    witPath: request.wit,
    worldName: request.world,
    disableFeatures: ["fetch-event"],
  });
  writeFileSync(request.output, component);
} catch (error) {
  fail(reason(String(error?.message ?? error)));
}
