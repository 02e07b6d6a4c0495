// node:zlib by fflate: gzip, deflate and raw deflate, whole buffers at the end of a stream. There is no Brotli.
const fflate = require("fflate");
const { Buffer } = require("node:buffer");
const { Transform } = require("node:stream");

const bytes = (data) => (typeof data === "string" ? Buffer.from(data) : new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength));
const levels = (options) => ({ level: options?.level >= 0 ? options.level : 6 });
const coders = {
  gzip: (data, options) => fflate.gzipSync(data, { ...levels(options), mtime: 0 }),
  gunzip: (data) => fflate.gunzipSync(data),
  deflate: (data, options) => fflate.zlibSync(data, levels(options)),
  inflate: (data) => fflate.unzlibSync(data),
  deflateRaw: (data, options) => fflate.deflateSync(data, levels(options)),
  inflateRaw: (data) => fflate.inflateSync(data),
  unzip: (data) => fflate.decompressSync(data),
};
function run(name, data, options) {
  try {
    return Buffer.from(coders[name](bytes(data), options));
  } catch (error) {
    throw Object.assign(new Error(error.message), { code: "Z_DATA_ERROR", errno: -3 });
  }
}
const exported = {};
for (const name of Object.keys(coders)) {
  const Name = name[0].toUpperCase() + name.slice(1);
  exported[`${name}Sync`] = (data, options) => run(name, data, options);
  exported[name] = (data, options, call) => {
    const done = call ?? options;
    queueMicrotask(() => {
      let made;
      try {
        made = run(name, data, options);
      } catch (error) {
        return done(error);
      }
      return done(null, made);
    });
  };
  exported[Name] = class extends Transform {
    constructor(options) {
      super();
      this.options = options;
      this.parts = [];
    }
    _transform(piece, _encoding, done) {
      this.parts.push(piece);
      done();
    }
    _flush(done) {
      try {
        this.push(run(name, Buffer.concat(this.parts), this.options));
        done();
      } catch (error) {
        done(error);
      }
    }
    flush(kind, done) {
      (typeof kind === "function" ? kind : done)?.();
    }
    close() {}
    params(_level, _strategy, done) {
      done?.();
    }
  };
  exported[`create${Name}`] = (options) => new exported[Name](options);
}
const constants = { Z_NO_FLUSH: 0, Z_PARTIAL_FLUSH: 1, Z_SYNC_FLUSH: 2, Z_FULL_FLUSH: 3, Z_FINISH: 4, Z_BEST_SPEED: 1, Z_BEST_COMPRESSION: 9, Z_DEFAULT_COMPRESSION: -1, Z_DEFAULT_STRATEGY: 0, BROTLI_OPERATION_PROCESS: 0, BROTLI_OPERATION_FLUSH: 1, BROTLI_OPERATION_FINISH: 2, BROTLI_PARAM_QUALITY: 1, BROTLI_PARAM_SIZE_HINT: 5, BROTLI_DEFAULT_QUALITY: 11 };
module.exports = Object.assign(exported, constants, { constants, codes: {} });
