"""Checks an exported folder of evidence with nothing of Freehold: only `cryptography` and the standard library.

    python check_export.py FOLDER CHANGE      CHANGE: the change's id, as you were told it

DSSE v1.0.2, in-toto Statement v1. Exits 1 and names the first thing that is wrong.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

APPROVAL = "urn:freehold:predicate:approval:v1"


def check(folder: Path, change: str) -> int:
    files = {name: (folder / f"{name}.msgpack").read_bytes() for name in ("change", "release", "configuration")}
    digests = {name: hashlib.sha256(data).digest() for name, data in files.items()}
    assert digests["change"].hex() == change, "the change's bytes are not those of its id"
    assert digests["release"] in files["change"], "the change names another release"
    assert digests["configuration"] in files["change"], "the change names another configuration"
    papers = sorted((folder / "papers").glob("*.dsse.json"))
    for path in papers:
        raw = path.read_bytes()
        envelope = json.loads(raw)
        assert json.dumps(envelope, separators=(",", ":")).encode() == raw, f"{path.name}: not in its one encoding"
        assert set(envelope) == {"payload", "payloadType", "signatures"}
        assert len(envelope["signatures"]) == 1
        (one,) = envelope["signatures"]
        payload, signature = base64.b64decode(envelope["payload"]), base64.b64decode(one["sig"])
        assert base64.b64encode(payload).decode() == envelope["payload"], f"{path.name}: base64"
        assert base64.b64encode(signature).decode() == one["sig"], f"{path.name}: base64"
        key = load_pem_public_key((folder / "keys" / f"{one['keyid']}.pem").read_bytes())
        assert isinstance(key, Ed25519PublicKey)
        assert key.public_bytes_raw().hex() == one["keyid"], f"{path.name}: another key"
        kind = envelope["payloadType"].encode()
        key.verify(signature, b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
        bundle = json.loads(path.with_name(path.name.replace("dsse", "sigstore")).read_bytes())
        assert bundle["dsseEnvelope"] == envelope, f"{path.name}: the bundle holds something else"
        statement = json.loads(payload)
        named = [bytes.fromhex(item["digest"]["sha256"]) for item in statement["subject"]]
        if statement["predicateType"] == APPROVAL:
            assert named == [digests["change"]], f"{path.name}: an approval of another change"
        else:
            (configured,) = statement["predicate"]["configuration"]
            assert bytes.fromhex(configured["digest"]["sha256"]) == digests["configuration"], (
                f"{path.name}: configuration"
            )
            assert any(digest in files["release"] for digest in named), f"{path.name}: other components"
    return len(papers)


if __name__ == "__main__":
    try:
        count = check(Path(sys.argv[1]), sys.argv[2])
    except (AssertionError, InvalidSignature, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        sys.exit(f"refused: {type(error).__name__} {error}")
    print(f"{count} papers verified")
