// What the engine's SubtleCrypto lacks: AES, HMAC keys of all origins, PBKDF2 and HKDF, by the noble libraries. Its own
// digests and its RSA and ECDSA verification stay in use. Source: Web Cryptography API.
import { cbc, ctr, gcm } from "@noble/ciphers/aes.js";
import { hkdf } from "@noble/hashes/hkdf.js";
import { hmac } from "@noble/hashes/hmac.js";
import { sha1 } from "@noble/hashes/legacy.js";
import { pbkdf2 } from "@noble/hashes/pbkdf2.js";
import { sha256, sha384, sha512 } from "@noble/hashes/sha2.js";
import { bytesOf, isBinary } from "./blob.js";
import { refuseWhileBuilding } from "./snapshot.js";

const HASHES = { "SHA-1": sha1, "SHA-256": sha256, "SHA-384": sha384, "SHA-512": sha512 };
const AES = new Set(["AES-GCM", "AES-CBC", "AES-CTR"]);
const secrets = new WeakMap();

const failed = (name, message) => new DOMException(message, name);
const nameOf = (algorithm) => String(algorithm?.name ?? algorithm).toUpperCase();
const hashOf = (algorithm) => {
  const name = nameOf(algorithm?.hash ?? algorithm);
  if (!HASHES[name]) throw failed("NotSupportedError", `the hash ${name} is not supported`);
  return [name, HASHES[name]];
};
const bytes = (data) => {
  if (!isBinary(data)) throw new TypeError("the data must be an ArrayBuffer or a view of one");
  return bytesOf(data);
};
const buffer = (made) => made.slice().buffer;

function keyOf(secret, algorithm, extractable, usages) {
  const key = Object.create(CryptoKey.prototype);
  const members = { type: "secret", extractable: Boolean(extractable), algorithm, usages: [...usages] };
  for (const [name, value] of Object.entries(members)) Object.defineProperty(key, name, { value, enumerable: true });
  secrets.set(key, secret);
  return key;
}

function secretOf(key, name, usage) {
  if (key.algorithm.name !== name) throw failed("InvalidAccessError", `the key is one of ${key.algorithm.name}, not of ${name}`);
  if (usage && !key.usages.includes(usage)) throw failed("InvalidAccessError", `the key may not be used to ${usage}`);
  return secrets.get(key);
}

const ownName = (algorithm) => AES.has(nameOf(algorithm)) || ["HMAC", "PBKDF2", "HKDF"].includes(nameOf(algorithm));
const base64url = { encode: (data) => Uint8Array.from(data).toBase64({ alphabet: "base64url", omitPadding: true }), decode: (text) => Uint8Array.fromBase64(text, { alphabet: "base64url" }) };

function describedKey(algorithm, secret) {
  const name = nameOf(algorithm);
  if (AES.has(name)) {
    if (![16, 24, 32].includes(secret.length)) throw failed("DataError", "an AES key has 128, 192 or 256 bits");
    return { name, length: secret.length * 8 };
  }
  if (name === "HMAC") return { name, hash: { name: hashOf(algorithm)[0] }, length: algorithm.length ?? secret.length * 8 };
  return { name };
}

function cipherOf(algorithm, secret) {
  const iv = () => bytes(algorithm.iv);
  switch (nameOf(algorithm)) {
    case "AES-GCM":
      if (algorithm.tagLength !== undefined && algorithm.tagLength !== 128) throw failed("NotSupportedError", "AES-GCM has a tag of 128 bits here");
      return gcm(secret, iv(), algorithm.additionalData === undefined ? undefined : bytes(algorithm.additionalData));
    case "AES-CBC":
      return cbc(secret, iv());
    default:
      return ctr(secret, bytes(algorithm.counter));
  }
}

function derived(algorithm, secret, bits) {
  const [, hash] = hashOf(algorithm);
  if (bits === null || bits % 8) throw failed("OperationError", "the length must be a multiple of 8 bits");
  const salt = bytes(algorithm.salt);
  if (nameOf(algorithm) === "HKDF") return hkdf(hash, secret, salt, bytes(algorithm.info), bits / 8);
  if (!(algorithm.iterations > 0)) throw failed("OperationError", "PBKDF2 needs iterations");
  return pbkdf2(hash, secret, salt, { c: algorithm.iterations, dkLen: bits / 8 });
}

export function extendCrypto(define) {
  const native = Object.getPrototypeOf(crypto.subtle);
  const { importKey, sign, verify } = native;
  const importSecret = (format, data, algorithm, extractable, usages) => {
    if (format !== "raw" && format !== "jwk") throw failed("NotSupportedError", `a secret key is imported as raw or jwk, not ${format}`);
    const secret = format === "jwk" ? base64url.decode(data.k) : bytes(data).slice();
    if (!usages.length) throw new SyntaxError("a secret key needs usages");
    return keyOf(secret, describedKey(algorithm, secret), extractable, usages);
  };
  const lengthOf = (algorithm) => {
    const name = nameOf(algorithm);
    if (name === "HMAC") return algorithm.length ?? { "SHA-1": 512, "SHA-256": 512, "SHA-384": 1024, "SHA-512": 1024 }[hashOf(algorithm)[0]];
    return algorithm.length;
  };
  const members = {
    async importKey(format, data, algorithm, extractable, usages) {
      if (!ownName(algorithm)) return importKey.call(crypto.subtle, format, data, algorithm, extractable, usages);
      return importSecret(format, data, algorithm, extractable, usages);
    },
    async exportKey(format, key) {
      const secret = secrets.get(key);
      if (!secret) throw failed("NotSupportedError", "only secret keys are exported here");
      if (!key.extractable) throw failed("InvalidAccessError", "the key is not extractable");
      if (format === "raw") return buffer(secret);
      if (format !== "jwk") throw failed("NotSupportedError", `a secret key is exported as raw or jwk, not ${format}`);
      const { name, hash, length } = key.algorithm;
      const alg = name === "HMAC" ? `HS${hash.name.replace("SHA-", "")}` : `A${length}${name.slice(4)}`;
      return { kty: "oct", k: base64url.encode(secret), alg, key_ops: key.usages, ext: true };
    },
    async generateKey(algorithm, extractable, usages) {
      refuseWhileBuilding("crypto.subtle.generateKey()");
      const name = nameOf(algorithm);
      if (!AES.has(name) && name !== "HMAC") throw failed("NotSupportedError", `keys of ${name} are not made here: AES-GCM, AES-CBC, AES-CTR and HMAC are`);
      const secret = crypto.getRandomValues(new Uint8Array(lengthOf(algorithm) / 8));
      return keyOf(secret, describedKey(algorithm, secret), extractable, usages);
    },
    async sign(algorithm, key, data) {
      if (!secrets.has(key)) return sign.call(crypto.subtle, algorithm, key, data);
      return buffer(hmac(HASHES[key.algorithm.hash.name], secretOf(key, "HMAC", "sign"), bytes(data)));
    },
    async verify(algorithm, key, signature, data) {
      if (!secrets.has(key)) return verify.call(crypto.subtle, algorithm, key, signature, data);
      const right = hmac(HASHES[key.algorithm.hash.name], secretOf(key, "HMAC", "verify"), bytes(data));
      const given = bytes(signature);
      let differs = right.length ^ given.length;
      for (let at = 0; at < right.length; at++) differs |= right[at] ^ given[at];
      return differs === 0;
    },
    async encrypt(algorithm, key, data) {
      return buffer(cipherOf(algorithm, secretOf(key, nameOf(algorithm), "encrypt")).encrypt(bytes(data)));
    },
    async decrypt(algorithm, key, data) {
      const cipher = cipherOf(algorithm, secretOf(key, nameOf(algorithm), "decrypt"));
      try {
        return buffer(cipher.decrypt(bytes(data)));
      } catch {
        throw failed("OperationError", "The operation failed for an operation-specific reason");
      }
    },
    async deriveBits(algorithm, key, length) {
      return buffer(derived(algorithm, secretOf(key, nameOf(algorithm), "deriveBits"), length));
    },
    async deriveKey(algorithm, key, target, extractable, usages) {
      const secret = derived(algorithm, secretOf(key, nameOf(algorithm), "deriveKey"), lengthOf(target));
      return keyOf(secret, describedKey(target, secret), extractable, usages);
    },
  };
  define(native, members);
}
