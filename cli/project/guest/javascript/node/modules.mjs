// Which module stands in for each of Node's own. Read at build (toolchain/bundle.mjs), no part of any component.
export const SHIMS = {
  async_hooks: "async_hooks.js", crypto: "crypto.js", dns: "dns.cjs", "dns/promises": "dns.cjs", events: "events.cjs", http: "http.js", https: "https.js",
  process: "process.js", stream: "stream.cjs", "stream/promises": "stream_promises.cjs", util: "util.js", zlib: "zlib.cjs",
};
export const PACKAGES = { buffer: "buffer/index.js", string_decoder: "string_decoder/lib/string_decoder.js" };
export const UNENV = new Set(["assert", "assert/strict", "console", "constants", "diagnostics_channel", "os", "path", "path/posix", "path/win32", "perf_hooks", "punycode", "querystring", "stream/web", "sys", "timers", "timers/promises", "tty", "url", "util/types"]);
export const ABSENT = new Set(["child_process", "cluster", "dgram", "domain", "fs", "fs/promises", "http2", "inspector", "module", "net", "readline", "readline/promises", "repl", "sqlite", "test", "tls", "trace_events", "v8", "vm", "wasi", "worker_threads"]);
