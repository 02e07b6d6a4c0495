"""Checks exported evidence with `cryptography` alone: python check_export.py FOLDER CHANGE. Exits 1 and says why."""

# CHANGE is the id, as you were told it. DSSE v1.0.2, in-toto Statement v1, Web Authentication level 2, section 7.2.

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

KIND, BUILT = b"application/vnd.in-toto+json", "https://slsa.dev/provenance/v1"


def raw(text: str) -> bytes:
    assert base64.b64encode(base64.b64decode(text)).decode() == text, "not in base64's one spelling"
    return base64.b64decode(text)


def touched(one: dict, payload: bytes) -> None:
    """A person approved the payload with a passkey, on one of its own pages."""
    about, auth, client = (raw(one["passkey"][part]) for part in ("passkey", "authenticatorData", "clientDataJSON"))
    assert hashlib.sha256(about).hexdigest() == one["keyid"], "another passkey"
    known, said, asked = json.loads(about), json.loads(client), hashlib.sha256(payload).digest()
    told = (said["type"], said["challenge"] + "=", said.get("crossOrigin", False), "topOrigin" in said, auth[32] & 5)
    wanted = ("webauthn.get", base64.urlsafe_b64encode(asked).decode(), False, False, 5)
    assert told == wanted, "another challenge, framed, or nobody was verified"
    assert said["origin"] in known["origins"], "another page"
    assert auth[:32] == hashlib.sha256(known["rp_id"].encode()).digest(), "another relying party"
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw(known["point"]))
    key.verify(raw(one["sig"]), auth + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))


def signed(path: Path, envelope: dict, one: dict, payload: bytes) -> None:
    """A key signed the payload, and the Sigstore bundle beside it holds the same envelope."""
    key = serialization.load_pem_public_key((path.parent.parent / "keys" / f"{one['keyid']}.pem").read_bytes())
    assert key.public_bytes_raw().hex() == one["keyid"], "another key"
    key.verify(raw(one["sig"]), b"DSSEv1 %d %s %d %s" % (len(KIND), KIND, len(payload), payload))
    bundle = path.with_name(path.name.replace("dsse", "sigstore")).read_bytes()
    assert json.loads(bundle)["dsseEnvelope"] == envelope, "the bundle holds something else"


def check(folder: Path, change: str) -> int:
    files = {name: (folder / f"{name}.msgpack").read_bytes() for name in ("change", "release", "configuration")}
    digests = {name: hashlib.sha256(data).digest() for name, data in files.items()}
    assert digests["change"].hex() == change, "the change's bytes are not those of its id"
    assert all(digests[name] in files["change"] for name in ("release", "configuration")), "the change names others"
    papers = sorted((folder / "papers").glob("*.dsse.json"))
    for path in papers:
        envelope = json.loads(path.read_bytes())
        whole = json.dumps({**envelope, "payloadType": KIND.decode()}, separators=(",", ":"))
        assert whole.encode() == path.read_bytes(), "another type, or not in its one encoding"
        (entry,), payload = envelope["signatures"], raw(envelope["payload"])
        touched(entry, payload) if "passkey" in entry else signed(path, envelope, entry, payload)
        statement = json.loads(payload)
        kind, said = statement["predicateType"], statement["predicate"]
        named = [bytes.fromhex(item["digest"]["sha256"]) for item in statement["subject"]]
        if kind == "urn:freehold:predicate:approval:v1":
            assert named == [digests["change"]], "an approval of another change"
        else:
            assert "passkey" not in entry, "a passkey signs approvals"
            ran = [item["digest"]["sha256"] for item in said.get("configuration", ())]
            assert kind == BUILT or digests["configuration"].hex() in ran, "another configuration"
            assert any(digest in files["release"] for digest in named), "other components"
    return len(papers)


if __name__ == "__main__":
    try:
        print(check(Path(sys.argv[1]), sys.argv[2]), "papers verified")
    except Exception as error:
        sys.exit(f"refused: {type(error).__name__} {error}")
