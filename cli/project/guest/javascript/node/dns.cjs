// node:dns: the host resolves names when an app calls out; here every name is this machine, for servers that ask.
const found = { address: "127.0.0.1", family: 4 };
function lookup(_host, options, call) {
  const done = call ?? options;
  const all = typeof options === "object" && options?.all;
  queueMicrotask(() => (all ? done(null, [found]) : done(null, found.address, found.family)));
}
const promises = { lookup: async (_host, options) => (options?.all ? [found] : found) };
module.exports = { lookup, promises, setDefaultResultOrder() {}, getDefaultResultOrder: () => "ipv4first" };
