// One app as one script, by esbuild: its packages, the guest's library, and what stands in for Node's own modules.
// Not here: making a component of it (build.mjs).
import { builtinModules } from "node:module";
import { join, relative, sep } from "node:path";
import { pathToFileURL } from "node:url";
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
      plugin.onResolve({ filter: /^freehold:bindings$/ }, () => ({ path: join(request.guest, "bindings.js") }));
      plugin.onResolve({ filter: /^freehold:(crypto|normalize)$/ }, ({ path }) => ({
        path: join(request.guest, "web", chosen.has(path) ? OPTIONAL[path][0] : "nothing.js"),
      }));
    },
  };
}

const TOOLS = join(import.meta.dirname, "node_modules");

// What stands in for Node's own modules. Those the sandbox has nothing for are refused where the app itself asks for
// them; a package may ask, since most never use them, and is told when it does.
async function nodeModules(request) {
  const home = join(request.guest, "node");
  const { ABSENT, PACKAGES, SHIMS, UNENV } = await import(pathToFileURL(join(home, "modules.mjs")));
  const isBuiltin = new Set([...builtinModules, ...Object.keys(SHIMS), ...UNENV, ...ABSENT]);
  const placeOf = (name) => {
    if (SHIMS[name]) return join(home, SHIMS[name]);
    if (PACKAGES[name]) return join(TOOLS, PACKAGES[name]);
    if (UNENV.has(name)) return join(TOOLS, "unenv/dist/runtime/node", `${name}.mjs`);
    return null;
  };
  return {
    name: "node",
    setup(plugin) {
      plugin.onResolve({ filter: /^(node:)?[a-z0-9_]+(\/[a-z0-9_]+)?\/?$/ }, ({ path, importer, kind }) => {
        const name = path.replace(/^node:|\/$/g, "");
        if (!path.startsWith("node:") && !isBuiltin.has(name)) return undefined;
        const place = placeOf(name);
        if (place?.endsWith(".mjs") || place?.endsWith(".js") && SHIMS[name]) {
          return kind === "require-call" ? { path: `${place}.cjs`, namespace: "node-unwrapped" } : { path: place };
        }
        if (place) return { path: place };
        const isApps = importer.startsWith(request.source + sep) && !importer.includes(`${sep}node_modules${sep}`);
        if (isApps || !ABSENT.has(name)) {
          return { errors: [{ text: `${path} is not available in the sandbox, which has no files, sockets, processes or threads` }] };
        }
        return { path: name, namespace: "node-absent" };
      });
      // Callers of require() expect the module itself, not a namespace with a default export.
      plugin.onLoad({ filter: /.*/, namespace: "node-unwrapped" }, ({ path }) => ({
        contents: `const found = require(${JSON.stringify(path.slice(0, -4))}); module.exports = found.default ?? found;`,
        resolveDir: home,
      }));
      plugin.onLoad({ filter: /.*/, namespace: "node-absent" }, ({ path }) => ({
        contents: `module.exports = require(${JSON.stringify(join(home, "absent.cjs"))})(${JSON.stringify(path)});`,
        resolveDir: home,
      }));
      // depd reads V8's own form of stack traces; its build for browsers does not.
      plugin.onResolve({ filter: /^depd$/ }, async ({ resolveDir, importer, pluginData }) => {
        if (pluginData === "depd") return undefined;
        const found = await plugin.resolve("depd", { kind: "require-call", resolveDir, importer, pluginData: "depd" });
        return found.errors.length ? undefined : { path: found.path.replace(/index\.js$/, join("lib", "browser", "index.js")) };
      });
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
    format: "esm",
    target: "es2022",
    supported: { "top-level-await": true },
    platform: "neutral",
    mainFields: ["module", "main"],
    // Without an explicit "import": require() of a package that has both forms must get the one for require().
    conditions: ["worker", "browser"],
    external: ["wasi:*", "freehold:sql/*", "wasmcloud:*"],
    nodePaths: [...(request.modules ? [request.modules] : []), TOOLS],
    // No plugin's answer: for what a plugin resolves, esbuild does not ask tsconfig.json how JSX is meant.
    alias: { "freehold:app": `./${request.entry}` },
    absWorkingDir: request.source,
    legalComments: "none",
    logLevel: "silent",
    loader: LOADERS,
    sourcemap: forDev ? false : "external",
    define: { "process.env.NODE_ENV": '"production"', global: "globalThis" },
    inject: [join(request.guest, "node", "inject.js")],
    plugins: [guestModules(request, chosen), await nodeModules(request)],
  });
  const text = (suffix) => made.outputFiles.find((file) => file.path.endsWith(suffix))?.text;
  return { code: await withoutProperties(withoutPlaces(request, text(".js"))), map: text(".js.map") };
}

// The bundle names its modules by their places: packages lie in the builder's home, which no release should tell of.
function withoutPlaces(request, code) {
  const packages = [TOOLS, request.modules].filter(Boolean).flatMap((place) => [relative(request.source, place), place]);
  // What a plugin answers for (node-unwrapped:...) is named by its whole place.
  return packages.reduce((text, place) => text.replaceAll(place, "node_modules"), code).replaceAll(request.guest, "guest");
}

// Returns { code, map }. Raises esbuild's BuildFailure.
export async function bundled(request) {
  if (request.kind === "bundle") {
    const { code } = await once(request, new Set());
    return { code: asFunction(code) };
  }
  if (request.kind === "dev") return once(request, new Set(Object.keys(OPTIONAL)));
  const plain = await once(request, new Set());
  const named = Object.entries(OPTIONAL).filter(([, [, pattern]]) => pattern.test(appPart(plain.code)));
  return named.length ? once(request, new Set(named.map(([name]) => name))) : plain;
}

// The module as the body of an async function that returns what it exports.
function asFunction(code) {
  return code.replace(/^export \{([^}]*)\};\s*$/m, (_, names) => {
    const members = names.split(",").map((one) => one.trim()).filter(Boolean).map((one) => {
      const [own, outer = own] = one.split(" as ");
      return `${JSON.stringify(outer)}: ${own}`;
    });
    return `return { ${members.join(", ")} };`;
  });
}

// The bundle without the guest's own modules, which esbuild marks with comments of their paths.
function appPart(code) {
  return code.split(/^(?=\/\/ )/m).filter((part) => !/^\/\/ \S*\bguest\/web\//.test(part)).join("");
}
