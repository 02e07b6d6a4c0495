// node:util: unenv's, with what packages ask for beyond it.
import unenv from "unenv/node/util";
const given = unenv;
function inspect(value, ...rest) {
  if (typeof value?.stack === "string") return value.stack.startsWith(String(value)) ? value.stack : `${value}\n${value.stack}`;
  return given.inspect(value, ...rest);
}
inspect.custom = Symbol.for("nodejs.util.inspect.custom");
inspect.defaultOptions = {};
function isDeepStrictEqual(a, b) {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false;
  if (a instanceof Date) return a.getTime() === b.getTime();
  if (a instanceof RegExp) return String(a) === String(b);
  if (a instanceof Map || a instanceof Set) return a.size === b.size && isDeepStrictEqual([...a], [...b]);
  const [ours, theirs] = [Reflect.ownKeys(a), Reflect.ownKeys(b)];
  return ours.length === theirs.length && ours.every((key) => Object.hasOwn(b, key) && isDeepStrictEqual(a[key], b[key]));
}
const members = {
  inspect, isDeepStrictEqual,
  stripVTControlCharacters: (text) => String(text).replace(/\u001b\[[0-9;]*[A-Za-z]/g, ""),
  styleText: (_style, text) => String(text),
  toUSVString: (text) => String(text).toWellFormed(),
  debuglog: () => Object.assign(() => {}, { enabled: false }),
  debug: () => Object.assign(() => {}, { enabled: false }),
  TextEncoder, TextDecoder,
};
const util = { ...given, ...members };
export const { promisify, callbackify, inherits, deprecate, format, formatWithOptions, types, isArray, isString, isFunction, isObject, isRegExp, isDate, isError, isBuffer } = util;
const { stripVTControlCharacters, styleText, toUSVString, debuglog, debug } = members;
const { TextEncoder: Encoder, TextDecoder: Decoder } = members;
export { inspect, isDeepStrictEqual, stripVTControlCharacters, styleText, toUSVString, debuglog, debug, Encoder as TextEncoder, Decoder as TextDecoder };
export default util;
