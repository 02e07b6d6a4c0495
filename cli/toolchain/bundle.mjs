// One app as one script, by esbuild: its packages, the guest's library, and what stands in for Node's own modules.
// Not here: making a component of it (build.mjs).
import { join } from "node:path";
import { build } from "esbuild";
import { withoutProperties } from "./regexps.mjs";

const ENTRIES = { http: "handler.js", command: "command.js", dev: "dev.js" };
const LOADERS = { ".html": "text", ".css": "text", ".svg": "text", ".txt": "text", ".md": "text", ".sql": "text", ".png": "binary", ".jpg": "binary", ".gif": "binary", ".ico": "binary", ".woff2": "binary", ".bin": "binary" };

// The parts of the guest's library that are large and seldom needed: left out of a bundle that never names them.
const OPTIONAL = { "freehold:crypto": ["crypto.js", /\bsubtle\b/], "freehold:normalize": ["normalize.js", /\bnormalize\s*\(/] };

// The app's own copy of freehold.js is for tests outside the sandbox; the bundle gets the sandbox's, which the
// development engine holds already.
function guestModules(request, chosen) {
  const forDev = request.kind === "bundle";
  return {
    name: "freehold",
    setup(plugin) {
      plugin.onResolve({ filter: /^(freehold|(\.{1,2}\/)+freehold(\.js)?)$/ }, () =>
        forDev ? { path: "freehold", namespace: "engine" } : { path: join(request.guest, "freehold.js") },
      );
      plugin.onLoad({ filter: /.*/, namespace: "engine" }, () => ({ contents: "module.exports = globalThis.freeholdModule;" }));
      plugin.onResolve({ filter: /^freehold:app$/ }, () => ({ path: join(request.source, request.entry) }));
      plugin.onResolve({ filter: /^freehold:bindings$/ }, () => ({ path: join(request.guest, "bindings.js") }));
      plugin.onResolve({ filter: /^freehold:(crypto|normalize)$/ }, ({ path }) => ({
        path: join(request.guest, "web", chosen.has(path) ? OPTIONAL[path][0] : "nothing.js"),
      }));
    },
  };
}

async function once(request, chosen) {
  const forDev = request.kind === "bundle";
  const made = await build({
    entryPoints: [forDev ? join(request.source, request.entry) : join(request.guest, ENTRIES[request.kind])],
    outfile: join(request.work ?? request.source, "bundle.js"),
    write: false,
    bundle: true,
    format: forDev ? "iife" : "esm",
    globalName: forDev ? "app" : undefined,
    target: "es2022",
    supported: { "top-level-await": true },
    platform: "neutral",
    mainFields: ["module", "main"],
    // Without an explicit "import": require() of a package that has both forms must get the one for require().
    conditions: ["worker", "browser"],
    external: ["wasi:*"],
    nodePaths: [...(request.modules ? [request.modules] : []), join(import.meta.dirname ?? ".", "node_modules")],
    absWorkingDir: request.source,
    legalComments: "none",
    logLevel: "silent",
    loader: LOADERS,
    sourcemap: forDev ? false : "external",
    define: { "process.env.NODE_ENV": '"production"' },
    plugins: [guestModules(request, chosen)],
  });
  const text = (suffix) => made.outputFiles.find((file) => file.path.endsWith(suffix))?.text;
  return { code: await withoutProperties(text(".js")), map: text(".js.map") };
}

// Returns { code, map }. Raises esbuild's BuildFailure.
export async function bundled(request) {
  if (request.kind === "bundle") return once(request, new Set());
  if (request.kind === "dev") return once(request, new Set(Object.keys(OPTIONAL)));
  const plain = await once(request, new Set());
  const named = Object.entries(OPTIONAL).filter(([, [, pattern]]) => pattern.test(appPart(plain.code)));
  return named.length ? once(request, new Set(named.map(([name]) => name))) : plain;
}

// The bundle without the guest's own modules, which esbuild marks with comments of their paths.
function appPart(code) {
  return code.split(/^(?=\/\/ )/m).filter((part) => !/^\/\/ \S*\bguest\/(web|node)\//.test(part)).join("");
}
