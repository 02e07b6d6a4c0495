"""Exported evidence against verifiers that know nothing of Freehold: a short script, and sigstore-js."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from cli.change.evidence import Ran, sign_run, signer_pem, sigstore_bundle
from cli.commands.change.evidence import CHANGE_FILE, CONFIGURATION_FILE, RELEASE_FILE, verify_export, write_export
from cli.errors import CommandError
from protocols.changes.approvals import Approval, approval_statement, sign_approval
from protocols.changes.change import Change, Component, Plan, Release, Stage
from protocols.changes.effective import Effective, EffectiveApp
from protocols.changes.evidence import EVIDENCE_KINDS, EvidenceRun, attest, attest_build, seal
from protocols.envelope import digest, encode
from protocols.keys import Ed25519Signer
from protocols.machine import Digest
from simulation.world.authenticator import ORIGIN
from tests.support.protocols.passkeys import authenticator

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "verify"
NOW_MS = 1_800_000_000_000
MESH = hashlib.sha256(b"a mesh").digest()
AUTHOR, APPROVER = Ed25519Signer(bytes(range(32))), Ed25519Signer(bytes(range(1, 33)))
PHONE = authenticator("ann")
COMPONENT = hashlib.sha256(b"a component").digest()


def export(folder: Path) -> str:
    release = Release("hello", (Component("web", COMPONENT, 11),), b"[project]", "", AUTHOR.public_key)
    effective = Effective("hello", "production", (EffectiveApp("web", COMPONENT, "http", 1_000, 1 << 20, "fresh"),))
    files = {RELEASE_FILE: encode(release), CONFIGURATION_FILE: encode(effective)}
    change = Change(
        project="hello", environment="production", request="greet", release=digest(files[RELEASE_FILE]), base=b"",
        configuration=digest(files[CONFIGURATION_FILE]), policy=bytes(32), author=AUTHOR.public_key,
        created_ms=NOW_MS, plan=Plan((Stage("100%"),)),
    )  # fmt: skip
    files[CHANGE_FILE] = encode(change)
    named = digest(files[CHANGE_FILE])
    ran = Ran("smoke", "sandbox", True, (("GET /",), ()), "PASSED GET /", {})
    smoke = sign_run(AUTHOR, MESH, ran, subjects=(("web", COMPONENT),), configuration=change.configuration)
    said = Approval(b"", Digest(named), "hello", "production", NOW_MS, NOW_MS + 1)
    touched = PHONE.touch(approval_statement(MESH, said))
    write_export(folder, named.hex(), files, (sign_approval(APPROVER, MESH, said), smoke, touched))
    return named.hex()


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "export"
    return folder, export(folder)


def script(folder: Path, change: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(HERE / "check_export.py"), str(folder), change]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_short_script_with_cryptography_alone_accepts_an_export(exported: tuple[Path, str]) -> None:
    folder, change = exported
    answer = script(folder, change)
    assert (answer.returncode, answer.stdout) == (0, "3 papers verified\n"), answer.stderr
    lines = (HERE / "check_export.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 60, "a stranger reads it in a minute"


@pytest.mark.parametrize(
    "other",
    [
        {"type": "webauthn.create"}, {"origin": "http://localhost:4189"}, {"crossOrigin": True}, {"topOrigin": ORIGIN},
        {"rp_id": "evil.example"}, {"flags": 1}, {"signature": PHONE.sign(b"other")},
        {"description": authenticator("bob").description},
    ],
    ids=["type", "origin", "crossOrigin", "topOrigin", "rp_id", "flags", "signature", "description"],
)  # fmt: skip
def test_a_touch_that_voters_refuse_is_refused_outside(exported: tuple[Path, str], other: dict[str, Any]) -> None:
    folder, change = exported
    said = Approval(b"", Digest(bytes.fromhex(change)), "hello", "production", NOW_MS, NOW_MS + 1)
    statement = approval_statement(MESH, said)
    path = next((folder / "papers").glob("03-approval.dsse.json"))
    path.write_bytes(PHONE.touch(statement))
    assert script(folder, change).returncode == 0
    path.write_bytes(PHONE.touch(statement, **other))
    assert script(folder, change).returncode == 1
    path.write_bytes(PHONE.touch(statement, asked=statement.replace(b"production", b"staging")))
    assert script(folder, change).returncode == 1


def flipped(data: bytes) -> Iterator[bytes]:
    """The data with one bit changed, at every seventh byte, a different bit each time."""
    for place in range(0, len(data), 7):
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def test_any_flipped_bit_is_refused_by_the_script_and_by_the_command(exported: tuple[Path, str]) -> None:
    folder, change = exported
    sys.path.insert(0, str(HERE))
    from check_export import check

    wrong = (AssertionError, InvalidSignature, ValueError, KeyError, TypeError, AttributeError, OSError)
    assert check(folder, change) == len(verify_export(folder, change)) == 3
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in {".json", ".msgpack"}]
    tried = 0
    for path in paths:
        data = path.read_bytes()
        for altered in flipped(data):
            path.write_bytes(altered)
            if not path.name.endswith("sigstore.json"):  # the script reads of a bundle only what is an envelope
                with pytest.raises(wrong):
                    check(folder, change)
            with pytest.raises((CommandError, *wrong)):
                verify_export(folder, change)
            tried += 1
        path.write_bytes(data)
    assert tried > 500
    assert check(folder, change) == 3


# --- a test for each kind, from the table of kinds --------------------------------------------------------------------


def paper(kind: str, change: str, configuration: bytes, component: bytes = COMPONENT) -> bytes:
    """A paper of a kind about this change, this configuration and this component."""
    said = Approval(b"", Digest(bytes.fromhex(change)), "hello", "production", NOW_MS, NOW_MS + 1)
    if kind == "approval":
        return sign_approval(APPROVER, MESH, said)
    if kind == "passkey":
        return PHONE.touch(approval_statement(MESH, said))
    run = EvidenceRun(MESH.hex(), kind, "sandbox", NOW_MS, {"freehold": "1"}, log=configuration.hex())  # type: ignore[arg-type]
    components = (("web", component), ("other", hashlib.sha256(b"other").digest()))
    if kind == "build":
        return attest_build(AUTHOR, run, components=components, provenance={"buildDefinition": {}, "runDetails": {}})
    return attest(AUTHOR, run, passed=True, components=components, configuration=configuration)


KINDS = ("approval", "passkey", *EVIDENCE_KINDS)


def lay(folder: Path, envelope: bytes, stem: str = "01-paper") -> None:
    """Put a paper into an export as somebody would who wants it to be believed: with its key and its bundle."""
    for old in (*(folder / "papers").iterdir(), *(folder / "keys").iterdir()):
        old.unlink()
    key = bytes.fromhex(json.loads(envelope)["signatures"][0]["keyid"])
    (folder / "papers" / f"{stem}.dsse.json").write_bytes(envelope)
    (folder / "papers" / f"{stem}.sigstore.json").write_bytes(sigstore_bundle(envelope))
    (folder / "keys" / f"{key.hex()}.pem").write_bytes(signer_pem(envelope, key))


def pieces(folder: Path) -> tuple[dict[str, bytes], bytes]:
    files = {path.name: path.read_bytes() for path in folder.glob("*.msgpack")}
    return files, digest(files[CONFIGURATION_FILE])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_exported_is_accepted_by_both_checks(
    kind: str, tmp_path: Path, exported: tuple[Path, str]
) -> None:
    folder, change = exported
    files, configuration = pieces(folder)
    envelope = paper(kind, change, configuration)
    spelled = json.dumps({**json.loads(envelope), "more": 1}, indent=1).encode()  # as another tool may write it
    other = tmp_path / "other"
    assert write_export(other, change, files, (envelope, spelled)) == []
    assert [row["kind"] for row in verify_export(other, change)] == ["approval" if kind == "passkey" else kind] * 2
    answer = script(other, change)
    assert (answer.returncode, answer.stdout) == (0, "2 papers verified\n"), answer.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_paper_of_any_kind_about_something_else_is_neither_exported_nor_accepted(
    kind: str, tmp_path: Path, exported: tuple[Path, str]
) -> None:
    folder, change = exported
    files, configuration = pieces(folder)
    foreign = hashlib.sha256(b"foreign").digest()
    wrong = {
        "approval": [paper(kind, foreign.hex(), configuration)],
        "passkey": [paper(kind, foreign.hex(), configuration)],
        "build": [paper(kind, change, configuration, foreign)],
    }.get(kind, [paper(kind, change, configuration, foreign), paper(kind, change, foreign)])
    for number, envelope in enumerate(wrong):
        other = tmp_path / f"other{number}"
        assert len(write_export(other, change, files, (envelope,))) == 1
        assert verify_export(other, change) == []
        lay(folder, envelope)
        assert script(folder, change).returncode == 1
        with pytest.raises(CommandError, match=r"another (change|configuration)"):
            verify_export(folder, change)


def test_a_test_that_names_no_configuration_or_only_in_its_log_is_about_none(exported: tuple[Path, str]) -> None:
    folder, change = exported
    _, configuration = pieces(folder)
    for kind in ("test", "smoke"):
        told = json.loads(base64.b64decode(json.loads(paper(kind, change, configuration))["payload"]))
        assert configuration.hex() in told["predicate"]["freehold_run"]["log"]
        told["predicate"]["configuration"] = []
        envelope = seal(AUTHOR, json.dumps(told).encode())
        lay(folder, envelope)
        assert script(folder, change).returncode == 1
        with pytest.raises(CommandError, match="another configuration"):
            verify_export(folder, change)


def test_evidence_under_a_passkey_or_with_a_strangers_predicate_is_refused(exported: tuple[Path, str]) -> None:
    folder, change = exported
    _, configuration = pieces(folder)
    for kind in EVIDENCE_KINDS:
        payload = base64.b64decode(json.loads(paper(kind, change, configuration))["payload"])
        touched = PHONE.touch(payload)
        foreign = seal(AUTHOR, payload.replace(b"/v0.1", b"/v9").replace(b"provenance/v1", b"provenance/v9"))
        for envelope in (touched, foreign) if kind == "build" else (touched,):
            lay(folder, envelope)
            assert script(folder, change).returncode == 1, kind
            with pytest.raises(CommandError):
                verify_export(folder, change)


def sigstore() -> Path:
    """Install sigstore-js as its lock file says, once; return the folder with the verifier in it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    files = [HERE / name for name in ("package.json", "package-lock.json", "verify_bundles.mjs")]
    named = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:24]
    folder = CACHE / named
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{named}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "node_modules").is_dir():
            folder.mkdir(exist_ok=True)
            for path in files:
                shutil.copy(path, folder)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=180)
    return folder


def verdicts(keys: Path, paths: list[Path]) -> list[str]:
    command = ["node", "verify_bundles.mjs", str(keys), *map(str, paths)]
    done = subprocess.run(command, cwd=sigstore(), capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_sigstore_js_accepts_the_bundles_and_refuses_every_altered_one(
    exported: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = exported
    bundles = sorted((folder / "papers").glob("*.sigstore.json"))
    assert verdicts(folder / "keys", bundles) == ["ok", "ok"]
    altered = []
    for bundle in bundles:
        whole = json.loads(bundle.read_text())
        envelope = whole["dsseEnvelope"]
        for where in ("payload", "sig"):
            holder = envelope if where == "payload" else envelope["signatures"][0]
            entry = holder[where]
            raw = base64.b64decode(entry)
            for place in range(0, len(raw), 5):
                changed = raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :]
                holder[where] = base64.b64encode(changed).decode()
                path = tmp_path / f"{bundle.stem}-{where}-{place}.json"
                path.write_text(json.dumps(whole))
                altered.append(path)
            holder[where] = entry
        envelope["payloadType"] += "x"
        path = tmp_path / f"{bundle.stem}-type.json"
        path.write_text(json.dumps(whole))
        altered.append(path)
    said = verdicts(folder / "keys", altered)
    assert len(said) == len(altered) > 100
    assert all(text.startswith("refused") for text in said)
