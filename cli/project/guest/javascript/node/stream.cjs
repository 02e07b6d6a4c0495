// node:stream: the npm package readable-stream, with the ways to and from the web's streams, which it leaves out.
const stream = require("readable-stream/lib/ours/browser.js");
const { Buffer } = require("node:buffer");

const { Readable, Writable, Duplex, finished } = stream;
const bytes = (piece) => (typeof piece === "string" ? new Uint8Array(Buffer.from(piece)) : ArrayBuffer.isView(piece) ? new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength) : piece);

// A stream of the web that reads from a Readable, no faster than it is read itself.
function readableToWeb(source) {
  source.pause();
  return new ReadableStream(
    {
      start(controller) {
        finished(source, { writable: false }, (error) => {
          if (error) controller.error(error);
          else controller.close();
        });
        source.on("data", (piece) => {
          controller.enqueue(source.readableObjectMode ? piece : bytes(piece));
          if (controller.desiredSize <= 0) source.pause();
        });
      },
      pull: () => void source.resume(),
      cancel: (reason) => void source.destroy(reason),
    },
    { highWaterMark: 0 },
  );
}

function readableFromWeb(web, options) {
  const reader = web.getReader();
  return new Readable({
    ...options,
    read() {
      reader.read().then(({ done, value }) => this.push(done ? null : this.readableObjectMode ? value : Buffer.from(value)), (error) => this.destroy(error));
    },
    destroy(error, done) {
      reader.cancel(error ?? undefined).then(() => done(error), () => done(error));
    },
  });
}

function writableToWeb(target) {
  return new WritableStream({
    start(controller) {
      finished(target, { readable: false }, (error) => error && controller.error(error));
    },
    write: (piece) => (target.write(piece) ? undefined : new Promise((resolve) => target.once("drain", resolve))),
    close: () => new Promise((resolve) => target.end(resolve)),
    abort: (reason) => void target.destroy(reason),
  });
}

function writableFromWeb(web, options) {
  const writer = web.getWriter();
  return new Writable({
    ...options,
    write(piece, _encoding, done) {
      writer.write(this.writableObjectMode ? piece : bytes(piece)).then(() => done(), done);
    },
    final(done) {
      writer.close().then(() => done(), done);
    },
    destroy(error, done) {
      const ended = error ? writer.abort(error) : Promise.resolve();
      ended.then(() => done(error), () => done(error));
    },
  });
}

Object.assign(Readable, { toWeb: readableToWeb, fromWeb: readableFromWeb });
Object.assign(Writable, { toWeb: writableToWeb, fromWeb: writableFromWeb });
Object.assign(Duplex, {
  toWeb: (duplex) => ({ readable: readableToWeb(duplex), writable: writableToWeb(duplex) }),
  fromWeb: ({ readable, writable }, options) => Duplex.from({ readable: readableFromWeb(readable, options), writable: writableFromWeb(writable, options) }),
});
module.exports = stream;
