"""Checks an exported folder of evidence with nothing of Freehold: only `cryptography` and the standard library.

    python check_export.py FOLDER CHANGE      CHANGE: the change's id, as you were told it

DSSE v1.0.2, in-toto Statement v1, Web Authentication 7.2. Exits 1 and names the first thing that is wrong.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

APPROVAL = "urn:freehold:predicate:approval:v1"


def raw(text: str) -> bytes:
    assert base64.b64encode(base64.b64decode(text)).decode() == text, "not in base64's one spelling"
    return base64.b64decode(text)


def touched(one: dict, payload: bytes) -> None:
    """A person approved the payload with a passkey, on one of its own pages."""
    description, auth, client = (
        raw(one["passkey"][part]) for part in ("passkey", "authenticatorData", "clientDataJSON")
    )
    assert hashlib.sha256(description).hexdigest() == one["keyid"], "another passkey"
    known, said, asked = json.loads(description), json.loads(client), hashlib.sha256(payload).digest()
    assert (said["type"], said["challenge"] + "=") == ("webauthn.get", base64.urlsafe_b64encode(asked).decode())
    assert said["origin"] in known["origins"], "another page"
    assert (said.get("crossOrigin", False), "topOrigin" in said) == (False, False), "framed"
    assert auth[:32] == hashlib.sha256(known["rp_id"].encode()).digest(), "another relying party"
    assert auth[32] & 5 == 5, "nobody was verified"
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw(known["point"]))
    key.verify(raw(one["sig"]), auth + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))


def check(folder: Path, change: str) -> int:
    files = {name: (folder / f"{name}.msgpack").read_bytes() for name in ("change", "release", "configuration")}
    digests = {name: hashlib.sha256(data).digest() for name, data in files.items()}
    assert digests["change"].hex() == change, "the change's bytes are not those of its id"
    assert all(digests[name] in files["change"] for name in ("release", "configuration")), "the change names others"
    papers = sorted((folder / "papers").glob("*.dsse.json"))
    for path in papers:
        envelope = json.loads(path.read_bytes())
        assert json.dumps(envelope, separators=(",", ":")).encode() == path.read_bytes(), "not in its one encoding"
        (one,) = envelope["signatures"]
        payload, kind = raw(envelope["payload"]), b"application/vnd.in-toto+json"
        assert envelope["payloadType"] == kind.decode(), f"{path.name}: another type"
        if "passkey" in one:
            touched(one, payload)
        else:
            key = load_pem_public_key((folder / "keys" / f"{one['keyid']}.pem").read_bytes())
            assert key.public_bytes_raw().hex() == one["keyid"], f"{path.name}: another key"
            key.verify(raw(one["sig"]), b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
            bundle = json.loads(path.with_name(path.name.replace("dsse", "sigstore")).read_bytes())
            assert bundle["dsseEnvelope"] == envelope, f"{path.name}: the bundle holds something else"
        statement = json.loads(payload)
        named = [bytes.fromhex(item["digest"]["sha256"]) for item in statement["subject"]]
        if statement["predicateType"] == APPROVAL:
            assert named == [digests["change"]], f"{path.name}: an approval of another change"
        else:
            assert "passkey" not in one, "a passkey signs approvals"
            (configured,) = statement["predicate"]["configuration"]
            assert bytes.fromhex(configured["digest"]["sha256"]) == digests["configuration"], "another configuration"
            assert any(digest in files["release"] for digest in named), f"{path.name}: other components"
    return len(papers)


if __name__ == "__main__":
    try:
        count = check(Path(sys.argv[1]), sys.argv[2])
    except (AssertionError, InvalidSignature, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        sys.exit(f"refused: {type(error).__name__} {error}")
    print(f"{count} papers verified")
