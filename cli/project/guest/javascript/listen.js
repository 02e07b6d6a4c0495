// Remembers whether the app registered a fetch listener itself. Imported before the app.
let heard = false;
const original = globalThis.addEventListener;
globalThis.addEventListener = function (kind, listener, ...rest) {
  heard ||= kind === "fetch";
  return original.call(this, kind, listener, ...rest);
};

export function listening() {
  return heard;
}
