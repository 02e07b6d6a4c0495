// Bytes and header fields on the host's streams. Not here: what they mean (fetch.js, serve.js).
import { ready } from "./loop.js";

const READ_BYTES = 65536n;

export const isomorphic = (bytes) => {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return text;
};
export const isomorphicBytes = (text) => {
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
};

// Takes the pairs out of a `fields` resource and lets go of it.
export function pairsOf(fields) {
  const pairs = fields.entries().map(([name, value]) => [name, isomorphic(value)]);
  fields[Symbol.dispose]();
  return pairs;
}

export const errorOf = (error) => error?.payload ?? error;

// Resolves to the next bytes of an input stream, or null at its end. Rejects if the stream breaks off.
export async function readPiece(input, signal) {
  for (;;) {
    let bytes;
    try {
      bytes = input.read(READ_BYTES);
    } catch (error) {
      const reason = errorOf(error);
      if (reason?.tag === "closed") return null;
      reason?.val?.[Symbol.dispose]?.();
      throw new TypeError("the body broke off before its end");
    }
    if (bytes.length) return new Uint8Array(bytes); // the bindings' own arrays are of another realm: no instanceof holds
    await ready(input, signal);
  }
}

// Writes bytes to an output stream as it takes them; resolves to whether somebody still reads it.
export async function writePiece(output, bytes, signal) {
  for (let at = 0; at < bytes.length; ) {
    try {
      const permit = Number(output.checkWrite());
      if (permit) {
        const part = at === 0 && permit >= bytes.length ? bytes : bytes.subarray(at, at + permit);
        output.write(part);
        at += part.length;
        continue;
      }
    } catch (error) {
      errorOf(error)?.val?.[Symbol.dispose]?.();
      return false;
    }
    await ready(output, signal);
  }
  return true;
}
