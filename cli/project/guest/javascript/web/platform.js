// Makes the sandbox's globals those of the web platform. Imported before the app; nothing here is the app's to call.
import { Blob, File, FormData } from "./blob.js";
import { extendCrypto } from "freehold:crypto";
import "./environment.js";
import { fetch } from "./fetch.js";
import { Headers } from "./headers.js";
import * as loop from "./loop.js";
import { Request, Response } from "./messages.js";
import { refuseWhileBuilding } from "./snapshot.js";
import { normalized } from "freehold:normalize";

function define(target, members) {
  for (const [name, value] of Object.entries(members)) {
    Object.defineProperty(target, name, { value, writable: true, configurable: true, enumerable: false });
  }
}

const { setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate } = loop;
define(globalThis, {
  Blob, File, FormData, Headers, Request, Response, fetch,
  setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate,
  reportError: loop.report,
});

// Streams: iteration, and streams made of anything that iterates.
async function* pieces(stream, { preventCancel = false } = {}) {
  const reader = stream.getReader();
  let over = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        over = true;
        return;
      }
      yield value;
    }
  } catch (error) {
    over = true;
    throw error;
  } finally {
    if (!over && !preventCancel) await reader.cancel();
    reader.releaseLock();
  }
}
define(ReadableStream.prototype, {
  values(options) {
    return pieces(this, options);
  },
});
Object.defineProperty(ReadableStream.prototype, Symbol.asyncIterator, { value: ReadableStream.prototype.values, writable: true, configurable: true });
define(ReadableStream, {
  from(iterable) {
    const make = iterable?.[Symbol.asyncIterator] ?? iterable?.[Symbol.iterator];
    if (typeof make !== "function") throw new TypeError("ReadableStream.from takes something that iterates");
    const iterator = make.call(iterable);
    return new ReadableStream(
      {
        async pull(controller) {
          const { done, value } = await iterator.next();
          if (done) controller.close();
          else controller.enqueue(await value);
        },
        async cancel(reason) {
          await iterator.return?.(reason);
        },
      },
      { highWaterMark: 0 },
    );
  },
});
for (const [name, coder] of [["TextEncoderStream", TextEncoder], ["TextDecoderStream", TextDecoder]]) {
  define(globalThis, {
    [name]: class {
      constructor(...given) {
        const inner = new coder(...given);
        const isDecoder = coder === TextDecoder;
        const { readable, writable } = new TransformStream({
          transform(piece, controller) {
            const made = isDecoder ? inner.decode(piece, { stream: true }) : inner.encode(String(piece));
            if (made.length) controller.enqueue(made);
          },
          flush(controller) {
            const rest = isDecoder ? inner.decode() : "";
            if (rest.length) controller.enqueue(rest);
          },
        });
        Object.assign(this, { readable, writable, encoding: inner.encoding });
      }
    },
  });
}

// URL and URLSearchParams: what came to the standard after the engine.
const parsed = (url, base) => {
  try {
    return base === undefined ? new URL(url) : new URL(url, base);
  } catch {
    return null;
  }
};
define(URL, { canParse: (url, base) => parsed(url, base) !== null, parse: parsed });
const { has, delete: remove } = URLSearchParams.prototype;
define(URLSearchParams.prototype, {
  has(name, value) {
    return value === undefined ? has.call(this, name) : this.getAll(name).includes(String(value));
  },
  delete(name, value) {
    if (value === undefined) return remove.call(this, name);
    const kept = [...this].filter((one) => one[0] !== String(name) || one[1] !== String(value));
    for (const one of new Set(this.keys())) remove.call(this, one);
    for (const one of kept) this.append(...one);
    return undefined;
  },
});

// Aborting: reasons with the names that the standard gives them, and timeouts on this loop.
const abort = AbortController.prototype.abort;
define(AbortController.prototype, {
  abort(reason) {
    return abort.call(this, reason === undefined ? new DOMException("This operation was aborted", "AbortError") : reason);
  },
});
define(AbortSignal, {
  abort(reason) {
    const controller = new AbortController();
    controller.abort(reason);
    return controller.signal;
  },
  timeout(milliseconds) {
    const controller = new AbortController();
    setTimeout(() => controller.abort(new DOMException("The operation was aborted due to timeout", "TimeoutError")), milliseconds);
    return controller.signal;
  },
  any(signals) {
    const controller = new AbortController();
    for (const signal of signals) {
      if (signal.aborted) controller.abort(signal.reason);
      else signal.addEventListener("abort", () => controller.abort(signal.reason));
    }
    return controller.signal;
  },
});

define(AbortSignal.prototype, {
  throwIfAborted() {
    if (this.aborted) throw this.reason; // the engine's own leaves its exception pending, which ends the instance
  },
});

// Randomness and keys belong to an instance, never to the snapshot.
const { getRandomValues, randomUUID } = crypto;
define(Object.getPrototypeOf(crypto), {
  getRandomValues(array) {
    refuseWhileBuilding("crypto.getRandomValues()");
    if (array?.byteLength > 65536) throw new DOMException("more than 65536 bytes at once", "QuotaExceededError");
    return getRandomValues.call(crypto, array);
  },
  randomUUID() {
    refuseWhileBuilding("crypto.randomUUID()");
    return randomUUID.call(crypto);
  },
});
extendCrypto(define);

if (typeof String.prototype.normalize !== "function") {
  define(String.prototype, {
    normalize(form = "NFC") {
      if (!["NFC", "NFD", "NFKC", "NFKD"].includes(String(form))) throw new RangeError("The normalization form should be one of NFC, NFD, NFKC, NFKD.");
      return normalized(String(this), String(form));
    },
  });
}
if (!globalThis.navigator) define(globalThis, { navigator: { userAgent: "freehold", hardwareConcurrency: 1, language: "en-US" } });

// The console prints an error as people read one, and not as source.
for (const name of ["log", "info", "debug", "warn", "error", "trace"]) {
  const print = console[name];
  define(console, { [name]: (...given) => print.call(console, ...given.map((one) => (typeof one?.stack === "string" ? loop.described(one) : one))) });
}

// A listener of the fetch event, as service workers have it, is a handler too.
let listener = null;
const listen = globalThis.addEventListener;
define(globalThis, {
  addEventListener(kind, call, ...rest) {
    if (kind === "fetch") listener = call;
    else listen.call(globalThis, kind, call, ...rest);
  },
});

export function listenedHandler() {
  if (!listener) return null;
  return (request, _env, context) =>
    new Promise((resolve, reject) => {
      let answered = false;
      const event = {
        type: "fetch", request, waitUntil: context.waitUntil, passThroughOnException() {},
        respondWith(answer) {
          answered = true;
          Promise.resolve(answer).then(resolve, reject);
        },
      };
      (listener.handleEvent ? listener.handleEvent.bind(listener) : listener)(event);
      if (!answered) reject(new TypeError("the fetch listener did not call respondWith()"));
    });
}
