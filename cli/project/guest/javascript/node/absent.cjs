// A module of Node's that the sandbox has nothing for. A package may import it; using it throws and says so.
module.exports = function absent(name) {
  const refuse = (what) => {
    const error = new Error(`${what} is not available in the sandbox, which has no files, sockets, processes or threads`);
    return Object.assign(error, { code: "ERR_FEATURE_UNAVAILABLE_ON_PLATFORM" });
  };
  const member = (path) =>
    new Proxy(function absentMember() {}, {
      get: (target, key) => (key === "prototype" ? target.prototype : typeof key === "symbol" || key === "then" ? undefined : member(`${path}.${key}`)),
      apply: () => {
        throw refuse(`${path}()`);
      },
      construct: () => {
        throw refuse(`new ${path}()`);
      },
    });
  const constants = new Proxy({}, { get: (_, key) => (typeof key === "string" ? 0 : undefined) });
  const handlers = {
    get: (_, key) => {
      if (typeof key === "symbol" || key === "then" || key === "__esModule") return undefined;
      if (key === "constants") return constants;
      if (key === "existsSync") return () => false;
      return member(`node:${name}.${key}`);
    },
    has: () => true,
  };
  // A named import reads from an object that the bundler makes with this module's prototype and its own names, of which
  // there are none: so the prototype knows every name too, and `x instanceof Http2ServerRequest` is false, not an error.
  const named = new Proxy({}, handlers);
  return new Proxy({}, { ...handlers, getPrototypeOf: () => named });
};
