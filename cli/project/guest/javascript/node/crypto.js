// node:crypto by the noble libraries and Web Cryptography: hashes, HMAC, key derivation, AES, randomness. Keys of public
// algorithms are not here; crypto.subtle has what there is of them.
import { cbc, ctr, gcm } from "@noble/ciphers/aes.js";
import { hkdf as deriveHkdf } from "@noble/hashes/hkdf.js";
import { hmac } from "@noble/hashes/hmac.js";
import { md5, ripemd160, sha1 } from "@noble/hashes/legacy.js";
import { pbkdf2 as derivePbkdf2 } from "@noble/hashes/pbkdf2.js";
import { scrypt as deriveScrypt } from "@noble/hashes/scrypt.js";
import { sha224, sha256, sha384, sha512, sha512_256 } from "@noble/hashes/sha2.js";
import { sha3_256, sha3_512 } from "@noble/hashes/sha3.js";
import { Buffer } from "node:buffer";
import { Transform } from "node:stream";

const HASHES = { md5, sha1, sha224, sha256, sha384, sha512, "sha512-256": sha512_256, "sha3-256": sha3_256, "sha3-512": sha3_512, ripemd160, rmd160: ripemd160 };
function hashOf(name) {
  const found = HASHES[String(name).toLowerCase().replace(/^rsa-/, "").replace(/^sha-/, "sha")];
  if (!found) throw Object.assign(new Error(`Digest method not supported: ${name}`), { code: "ERR_CRYPTO_INVALID_DIGEST" });
  return found;
}
function bytes(data, encoding) {
  if (typeof data === "string") return Buffer.from(data, encoding ?? "utf8");
  if (data instanceof KeyObject) return data.export();
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  if (Object.prototype.toString.call(data) === "[object ArrayBuffer]") return new Uint8Array(data);
  throw Object.assign(new TypeError('The "data" argument must be of type string or an instance of Buffer, TypedArray, or DataView.'), { code: "ERR_INVALID_ARG_TYPE" });
}
const encoded = (made, encoding) => (encoding && encoding !== "buffer" ? Buffer.from(made).toString(encoding) : Buffer.from(made));

export class Hash extends Transform {
  #state;
  #over = false;
  constructor(state) {
    super();
    this.#state = state;
  }
  update(data, encoding) {
    if (this.#over) throw Object.assign(new Error("Digest already called"), { code: "ERR_CRYPTO_HASH_FINALIZED" });
    this.#state.update(bytes(data, encoding));
    return this;
  }
  digest(encoding) {
    if (this.#over) throw Object.assign(new Error("Digest already called"), { code: "ERR_CRYPTO_HASH_FINALIZED" });
    this.#over = true;
    return encoded(this.#state.digest(), encoding);
  }
  copy() {
    return new this.constructor(this.#state.clone());
  }
  _transform(piece, encoding, done) {
    this.update(piece, encoding);
    done();
  }
  _flush(done) {
    this.push(this.digest());
    done();
  }
}
export class Hmac extends Hash {}
export const createHash = (name) => new Hash(hashOf(name).create());
export const createHmac = (name, key) => new Hmac(hmac.create(hashOf(name), bytes(key)));
export const hash = (name, data, encoding = "hex") => encoded(hashOf(name)(bytes(data)), encoding);
export const getHashes = () => Object.keys(HASHES);

export class KeyObject {
  #secret;
  constructor(type, secret) {
    this.type = type;
    this.#secret = Buffer.from(secret);
  }
  get symmetricKeySize() {
    return this.#secret.length;
  }
  export() {
    return Buffer.from(this.#secret);
  }
  equals(other) {
    return this.#secret.equals(other.export());
  }
}
export const createSecretKey = (key, encoding) => new KeyObject("secret", bytes(key, encoding));

const refuse = (name) => () => {
  throw Object.assign(new Error(`node:crypto's ${name}() is not available in the sandbox; crypto.subtle verifies RSA and ECDSA signatures`), { code: "ERR_FEATURE_UNAVAILABLE_ON_PLATFORM" });
};
export const createPublicKey = refuse("createPublicKey");
export const createPrivateKey = refuse("createPrivateKey");
export const createSign = refuse("createSign");
export const createVerify = refuse("createVerify");
export const sign = refuse("sign");
export const verify = refuse("verify");
export const generateKeyPair = refuse("generateKeyPair");
export const generateKeyPairSync = refuse("generateKeyPairSync");
export const createDiffieHellman = refuse("createDiffieHellman");
export const createECDH = refuse("createECDH");
export const publicEncrypt = refuse("publicEncrypt");
export const privateDecrypt = refuse("privateDecrypt");

function later(make, done) {
  let made;
  try {
    made = make();
  } catch (error) {
    return void queueMicrotask(() => done(error));
  }
  return void queueMicrotask(() => done(null, made));
}
export function randomFillSync(target, offset = 0, size) {
  const whole = bytes(target);
  const view = whole.subarray(offset, size === undefined ? undefined : offset + size);
  for (let at = 0; at < view.length; at += 65536) crypto.getRandomValues(view.subarray(at, at + 65536));
  return target;
}
export const randomBytes = (size, done) => (done ? later(() => randomFillSync(Buffer.alloc(size)), done) : randomFillSync(Buffer.alloc(size)));
export const pseudoRandomBytes = randomBytes;
export const randomFill = (target, ...rest) => later(() => randomFillSync(target, ...rest.slice(0, -1)), rest.at(-1));
export const randomUUID = () => crypto.randomUUID();
export const getRandomValues = (array) => crypto.getRandomValues(array);
export function randomInt(low, high, done) {
  if (high === undefined || typeof high === "function") [low, high, done] = [0, low, high];
  const range = high - low;
  if (!(range > 0 && range <= 2 ** 48 - 1)) throw new RangeError('The value of "max" is out of range.');
  const limit = 2 ** 48 - (2 ** 48 % range);
  let drawn;
  do drawn = randomBytes(6).readUIntBE(0, 6);
  while (drawn >= limit);
  return done ? later(() => low + (drawn % range), done) : low + (drawn % range);
}
export function timingSafeEqual(left, right) {
  const [a, b] = [bytes(left), bytes(right)];
  if (a.length !== b.length) throw Object.assign(new RangeError("Input buffers must have the same byte length"), { code: "ERR_CRYPTO_TIMING_SAFE_EQUAL_LENGTH" });
  let differs = 0;
  for (let at = 0; at < a.length; at++) differs |= a[at] ^ b[at];
  return differs === 0;
}

export const pbkdf2Sync = (password, salt, iterations, size, name) => Buffer.from(derivePbkdf2(hashOf(name), bytes(password), bytes(salt), { c: iterations, dkLen: size }));
export const pbkdf2 = (...given) => later(() => pbkdf2Sync(...given.slice(0, -1)), given.at(-1));
export const scryptSync = (password, salt, size, options = {}) => {
  const { N = options.cost ?? 16384, r = options.blockSize ?? 8, p = options.parallelization ?? 1, maxmem = 32 * 1024 * 1024 } = options;
  return Buffer.from(deriveScrypt(bytes(password), bytes(salt), { N, r, p, dkLen: size, maxmem: maxmem + 1024 }));
};
export const scrypt = (password, salt, size, options, done) => later(() => scryptSync(password, salt, size, done ? options : {}), done ?? options);
export const hkdfSync = (name, key, salt, info, size) => deriveHkdf(hashOf(name), bytes(key), bytes(salt), bytes(info), size).slice().buffer;
export const hkdf = (...given) => later(() => hkdfSync(...given.slice(0, -1)), given.at(-1));

const CIPHERS = { cbc, ctr, gcm };
class Cipher extends Transform {
  #make;
  #parts = [];
  #encrypts;
  #tag = null;
  #mode;
  constructor(name, key, iv, encrypts) {
    super();
    const match = /^aes-(128|192|256)-(cbc|ctr|gcm)$/i.exec(name);
    if (!match) throw Object.assign(new Error(`Unknown cipher: ${name} (the sandbox has aes-128/192/256 with cbc, ctr and gcm)`), { code: "ERR_CRYPTO_UNKNOWN_CIPHER" });
    const secret = bytes(key);
    if (secret.length * 8 !== Number(match[1])) throw Object.assign(new RangeError("Invalid key length"), { code: "ERR_CRYPTO_INVALID_KEYLEN" });
    this.#mode = match[2].toLowerCase();
    this.#encrypts = encrypts;
    this.aad = undefined;
    this.#make = () => (this.#mode === "gcm" ? gcm(secret, bytes(iv), this.aad) : CIPHERS[this.#mode](secret, bytes(iv)));
  }
  update(data, encoding, output) {
    this.#parts.push(Buffer.from(bytes(data, encoding)));
    return output ? "" : Buffer.alloc(0);
  }
  final(output) {
    const data = Buffer.concat(this.#parts);
    const isGcm = this.#mode === "gcm";
    if (this.#encrypts) {
      const made = this.#make().encrypt(data);
      if (!isGcm) return encoded(made, output);
      this.#tag = Buffer.from(made.subarray(-16));
      return encoded(made.subarray(0, -16), output);
    }
    try {
      return encoded(this.#make().decrypt(isGcm ? Buffer.concat([data, this.#tag ?? Buffer.alloc(0)]) : data), output);
    } catch {
      throw new Error("Unsupported state or unable to authenticate data");
    }
  }
  setAAD(data) {
    this.aad = bytes(data);
    return this;
  }
  getAuthTag() {
    return this.#tag;
  }
  setAuthTag(tag) {
    this.#tag = Buffer.from(tag);
    return this;
  }
  setAutoPadding() {
    return this;
  }
  _transform(piece, encoding, done) {
    this.update(piece, encoding);
    done();
  }
  _flush(done) {
    try {
      this.push(this.final());
      done();
    } catch (error) {
      done(error);
    }
  }
}
export const createCipheriv = (name, key, iv) => new Cipher(name, key, iv, true);
export const createDecipheriv = (name, key, iv) => new Cipher(name, key, iv, false);
export const getCiphers = () => ["128", "192", "256"].flatMap((bits) => Object.keys(CIPHERS).map((mode) => `aes-${bits}-${mode}`));
export const getCurves = () => [];
export const constants = {};
export const webcrypto = globalThis.crypto;
export const subtle = globalThis.crypto.subtle;

export default {
  Hash, Hmac, KeyObject, createHash, createHmac, hash, getHashes, createSecretKey, createPublicKey, createPrivateKey, createSign, createVerify, sign, verify,
  generateKeyPair, generateKeyPairSync, createDiffieHellman, createECDH, publicEncrypt, privateDecrypt, randomFillSync, randomFill, randomBytes,
  pseudoRandomBytes, randomUUID, randomInt, getRandomValues, timingSafeEqual, pbkdf2Sync, pbkdf2, scryptSync, scrypt, hkdfSync, hkdf, createCipheriv,
  createDecipheriv, getCiphers, getCurves, constants, webcrypto, subtle,
};
