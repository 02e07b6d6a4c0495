// Verifies Sigstore bundles with sigstore-js and plain public keys: no certificate, no log.
//   node verify_bundles.mjs KEYS BUNDLE...     prints "ok" or "refused: why" for each, one a line
import { createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { bundleFromJSON } from "@sigstore/bundle";
import { toSignedEntity, toTrustMaterial, Verifier } from "@sigstore/verify";

const [keys, ...paths] = process.argv.slice(2);
const find = (hint) => ({
  publicKey: createPublicKey(readFileSync(join(keys, `${hint}.pem`))),
  validFor: () => true,
});
const nobody = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const verifier = new Verifier(toTrustMaterial(nobody, find), { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 });
for (const path of paths) {
  try {
    verifier.verify(toSignedEntity(bundleFromJSON(JSON.parse(readFileSync(path, "utf8")))));
    console.log("ok");
  } catch (error) {
    console.log(`refused: ${error.message.split("\n")[0]}`);
  }
}
