"""Evidence on the client: statements about a run, kept with the project, published with a proposal, exported.

    .freehold/evidence/BUILD/KIND-ENVIRONMENT.json      one DSSE envelope each, signed by the everyday key
    .freehold/evidence/BUILD/build.json                 where the build came from

What is signed here is self-attested: it says that the author's machine ran something. A policy may ask a node to run it
again. Not here: running anything (cli/dev/trial.py), and what a policy demands (protocols/state/policy.py).
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from cli.access.client import NodeClient
from cli.errors import CommandError
from cli.project.bundle import BuildBundle
from protocols.changes.change import Release
from protocols.changes.evidence import (
    ENVELOPE_MAX_BYTES,
    Attested,
    DsseSignature,
    Envelope,
    EvidenceRun,
    attest,
    attest_build,
    open_envelope,
    parse_json,
    read_evidence,
)
from protocols.changes.passkeys import Assertion, read_passkey
from protocols.keys import Ed25519Signer, Ed25519Verifier
from protocols.records.key_table import BODY_MAX_BYTES
from protocols.refusal import Refusal

FOLDER = "evidence"
LOG_MAX_CHARACTERS = 5_000
"""A log's end; with base64 and the rest it fits a record's body (key_table.BODY_MAX_BYTES)."""

BUILD_TYPE = "urn:freehold:build:1"
"""Of a provenance: `freehold build` of a project folder, whose file is a parameter and whose sources are dependencies."""

SPKI_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
"""How the DER of a P-256 public key begins (RFC 5480); its point follows."""

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@dataclass(frozen=True, slots=True)
class Ran:
    """One run: what it covered, whether it passed, the names of what passed and failed, its log's end."""

    kind: Literal["test", "smoke"]
    covers: Literal["host", "sandbox"]
    passed: bool
    names: tuple[tuple[str, ...], tuple[str, ...]]
    log: str
    tools: Mapping[str, str]


def evidence_folder(root: Path, build: str) -> Path:
    """Where the evidence of a build is kept, by its id."""
    return root / ".freehold" / FOLDER / build


def sign_run(
    signer: Ed25519Signer, mesh: bytes, ran: Ran, *, subjects: tuple[tuple[str, bytes], ...], configuration: bytes
) -> bytes:
    """Return the signed envelope of a run over (name, digest) subjects; the log is cut until a record can hold it."""
    tools = {"freehold": version("freehold"), "wasmtime": version("wasmtime"), **ran.tools}
    finished_ms = time.time_ns() // 1_000_000
    log = printable(ran.log)[-LOG_MAX_CHARACTERS:]
    while True:
        run = EvidenceRun(mesh.hex(), ran.kind, ran.covers, finished_ms, tools, log)
        envelope = attest(
            signer, run, passed=ran.passed, components=subjects, configuration=configuration, tests=ran.names
        )
        if len(envelope) <= BODY_MAX_BYTES or not log:
            return envelope
        log = log[len(log) // 4 + 1 :]


def printable(text: str) -> str:
    """Text without control characters but newlines and tabs: a log is shown on terminals."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() else "?" for letter in text)


def sign_build(signer: Ed25519Signer, mesh: bytes, bundle: BuildBundle) -> bytes:
    """Return the signed provenance of a build: from which sources, by which tools, into which components (SLSA v1)."""
    apps, source = bundle.manifest["apps"], bundle.manifest["source"]
    finished = datetime.now(UTC)
    sources = [{"name": f"{name} source", "digest": {"sha256": app["source_digest"]}} for name, app in apps.items()]
    if source["commit"]:
        sources.append({"name": "repository", "digest": {"gitCommit": source["commit"]}})
    provenance = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "project": bundle.manifest["project"]["name"],
                "project_file": {"sha256": hashlib.sha256(bundle.manifest["project_file"].encode()).hexdigest()},
                "uncommitted_changes": source["dirty"],
            },
            "resolvedDependencies": sources,
        },
        "runDetails": {
            "builder": {"id": f"urn:freehold:key:{signer.public_key.hex()}"},
            "metadata": {"invocationId": bundle.id, "finishedOn": finished.isoformat(timespec="seconds")},
        },
    }
    tools = {tool: str(number) for app in apps.values() for tool, number in app["toolchain"].items()}
    run = EvidenceRun(
        mesh.hex(), "build", "host", int(finished.timestamp() * 1000), {"freehold": version("freehold"), **tools}
    )
    subjects = tuple((name, bytes.fromhex(app["component"])) for name, app in apps.items())
    return attest_build(signer, run, components=subjects, provenance=provenance)


def keep_evidence(root: Path, build: str, name: str, envelope: bytes) -> Path:
    """Store an envelope; the last one of a name, such as a kind and an environment, replaces the one before."""
    folder = evidence_folder(root, build)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(".new")
    temporary.write_bytes(envelope)
    temporary.replace(path)
    return path


def held_evidence(root: Path, build: str, release: Release, configuration: bytes) -> tuple[bytes, ...]:
    """Return the kept envelopes about a release with a configuration, by file name: of a build, or of any if it is "".

    A configuration names the components, so a run that names it is about them; a build's provenance names them itself.
    """
    components, envelopes = {component.digest for component in release.components}, []
    for path in sorted(evidence_folder(root, "").glob(f"{build or '*'}/*.json")):
        data = path.read_bytes()
        read = read_evidence(Ed25519Verifier(), mesh_of(data), data) if len(data) <= BODY_MAX_BYTES else None
        if not isinstance(read, Attested):
            continue
        if configuration in read.configurations or (read.kind == "build" and components <= set(read.components)):
            envelopes.append(data)
    return tuple(envelopes)


async def publish_evidence(client: NodeClient, release: Release, envelope: bytes) -> None:
    """File an envelope under every component of the release that it names."""
    opened = open_envelope(Ed25519Verifier(), envelope)
    if isinstance(opened, Refusal):
        raise CommandError(f"{opened.rule}: {opened.detail}", next_step="freehold test", kind=opened.rule)
    named = opened.statement.sha256s()
    for component in dict.fromkeys(component.digest for component in release.components):
        if component in named:
            await client.publish("evidence", component.hex(), envelope)


def mesh_of(data: bytes) -> bytes:
    """Return the mesh an envelope says it is for, to read it in its own terms; empty if it is no evidence."""
    opened = open_envelope(Ed25519Verifier(), data)
    if isinstance(opened, Refusal):
        return b""
    try:
        said = parse_json(bytes(opened.statement.predicate), dict[str, msgspec.Raw])
        run = parse_json(bytes(said["freehold_run"]), EvidenceRun)
        return bytes.fromhex(run.mesh)
    except (ValueError, KeyError):
        return b""


# --- for strangers ----------------------------------------------------------------------------------------------------


def sigstore_bundle(envelope: bytes) -> bytes:
    """Return a Sigstore bundle v0.3 around an envelope: one signature, the public key by hint, no log entries."""
    dsse = parse_json(envelope, Envelope)
    key = dsse.signatures[0].keyid
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "mediaType": BUNDLE_TYPE,
                "verificationMaterial": {"publicKey": {"hint": key}, "tlogEntries": []},
                "dsseEnvelope": {
                    "payload": dsse.payload,
                    "payloadType": dsse.payloadType,
                    "signatures": [{"sig": signature.sig, "keyid": signature.keyid} for signature in dsse.signatures],
                },
            }
        )
    )


def one_spelling(envelope: bytes) -> bytes:
    """Return an envelope in the JSON and base64 that we write: blanks, spare bits and unknown fields leave a signature good,
    and whoever made it may have written it otherwise."""
    dsse = parse_json(envelope, Envelope)
    dsse_signature = dsse.signatures[0]
    said = dsse_signature.passkey
    if said is not None:
        said = Assertion(_plain(said.passkey), _plain(said.authenticatorData), _plain(said.clientDataJSON))
    signature = DsseSignature(_plain(dsse_signature.sig), bytes.fromhex(dsse_signature.keyid).hex(), said)
    return msgspec.json.encode(Envelope(_plain(dsse.payload), dsse.payloadType, (signature,)))


def _plain(text: str) -> str:
    return base64.b64encode(base64.b64decode(text)).decode()


def signer_pem(envelope: bytes, key: bytes) -> bytes:
    """Return the public key that verifies an envelope's signature as PEM; of a passkey its P-256 key (RFC 5480)."""
    said = parse_json(envelope, Envelope).signatures[0].passkey
    if said is None:
        return public_key_pem(key)
    read = read_passkey(base64.b64decode(said.passkey))
    if isinstance(read, Refusal):
        raise CommandError(f"{read.rule}: {read.detail}", next_step="freehold doctor", kind=read.rule)
    return _pem(SPKI_PREFIX + read[1])


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = b"\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return b"-----BEGIN PUBLIC KEY-----\n" + lines + b"\n-----END PUBLIC KEY-----\n"


def public_key_pem(key: bytes) -> bytes:
    """Return an Ed25519 public key as PEM (RFC 8410)."""
    return _pem(bytes.fromhex("302a300506032b6570032100") + key)


def payload_of(envelope: bytes) -> bytes:
    """Return an envelope's statement, as JSON; unverified."""
    if len(envelope) > ENVELOPE_MAX_BYTES:
        raise ValueError("the envelope is too large")
    return base64.b64decode(parse_json(envelope, Envelope).payload, validate=True)
