"""Evidence: DSSE envelopes over in-toto Statements, so that tools outside Freehold can verify them.

An envelope holds one signature; `keyid` is the signer's Ed25519 public key in hex, a hint that becomes trustworthy only
when the signature verifies under it and the key's rights are shown. Beside a signature by passkey stands its assertion,
and `keyid` is the passkey's id (passkeys.py); only approvals are signed so. Subjects name component digests, `configuration`
the effective configuration's digest. Not here: what a policy demands (policy.py).

Sources: DSSE v1.0.2 (`PAE`), in-toto attestation framework v1 (Statement, predicate test-result v0.1), SLSA provenance
v1. Fields of our own stand under `freehold_run`, as the framework's parsing rules for extensions ask.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import msgspec

from protocols.changes.passkeys import Assertion, open_assertion
from protocols.envelope import DIGEST_BYTES, PUBLIC_KEY_BYTES, SIGNATURE_BYTES
from protocols.machine import Digest, Signer, Verifier
from protocols.refusal import Refusal

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PROVENANCE = "https://slsa.dev/provenance/v1"
ENVELOPE_MAX_BYTES = 64 * 1024
"""A test run's counts and a bounded log fit; whole logs are artifacts, named by digest."""
SUBJECTS_MAX = 64
TOOLS_MAX = 32
LOG_MAX_CHARACTERS = 16_000

EvidenceKind = Literal["test", "smoke", "build"]
"""What evidence may be of. All but a build's say which configuration ran."""

EVIDENCE_KINDS: tuple[EvidenceKind, ...] = get_args(EvidenceKind)

T = TypeVar("T")


class DsseSignature(msgspec.Struct, frozen=True, omit_defaults=True):
    """One signature of an envelope: `keyid` the public key in hex, `sig` in base64; `passkey` if that is what signed."""

    sig: str
    keyid: str = ""
    passkey: Assertion | None = None


class Envelope(msgspec.Struct, frozen=True):
    """A DSSE envelope; `payload` is base64."""

    payload: str
    payloadType: str  # noqa: N815 (the format's own name)
    signatures: tuple[DsseSignature, ...]


class Described(msgspec.Struct, frozen=True):
    """An in-toto resource descriptor, of which we use the name and the SHA-256 in hex."""

    digest: dict[str, str] = {}
    name: str = ""


class Statement(msgspec.Struct, frozen=True):
    """An in-toto Statement v1; the predicate stays undecoded until its type is known."""

    type: str = msgspec.field(name="_type")
    subject: tuple[Described, ...]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: msgspec.Raw = msgspec.Raw(b"{}")

    def sha256s(self) -> tuple[Digest, ...]:
        """Return the subjects' well-formed SHA-256 digests, in order."""
        return _sha256s(self.subject)


class EvidenceRun(msgspec.Struct, frozen=True):
    """What we add to a predicate: which mesh, what kind of run, what it covered, when it ended (wall ms), with what."""

    mesh: str
    kind: EvidenceKind
    covers: Literal["host", "sandbox"]
    finished_ms: int
    tools: dict[str, str] = {}
    log: str = ""


class EvidenceResult(msgspec.Struct, frozen=True):
    """The predicate of a test result (and, with no `result`, what we read of a provenance)."""

    freehold_run: EvidenceRun
    result: Literal["PASSED", "WARNED", "FAILED", ""] = ""
    configuration: tuple[Described, ...] = ()
    passedTests: tuple[str, ...] = ()  # noqa: N815 (the predicate's own names)
    warnedTests: tuple[str, ...] = ()  # noqa: N815
    failedTests: tuple[str, ...] = ()  # noqa: N815


@dataclass(frozen=True, slots=True)
class Opened:
    """A statement whose signature by `key` (32 bytes) verified; of a passkey's, `person` is the key it names."""

    key: bytes
    statement: Statement
    person: bytes = b""


@dataclass(frozen=True, slots=True)
class Attested:
    """Verified evidence by `key`: what ran, on which components and configurations, when, and whether it passed."""

    key: bytes
    kind: EvidenceKind
    passed: bool
    finished_ms: int
    components: tuple[Digest, ...]
    configurations: tuple[Digest, ...]

    def about(self, configuration: bytes) -> bool:
        """Whether it is about a release as this configuration has it run; a build is about its components alone."""
        return self.kind == "build" or configuration in self.configurations


def pae(payload_type: str, body: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: what the signature covers."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def statement_json(subjects: tuple[tuple[str, bytes], ...], predicate_type: str, predicate: Any) -> bytes:
    """Return the JSON bytes of a Statement over (name, SHA-256 digest) subjects."""
    return msgspec.json.encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest.hex()}} for name, digest in subjects],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def seal(signer: Signer, body: bytes) -> bytes:
    """Return the envelope's JSON bytes with one signature over `body`, a Statement's JSON."""
    signature = DsseSignature(_b64(signer.sign(pae(PAYLOAD_TYPE, body))), signer.public_key.hex())
    return msgspec.json.encode(Envelope(_b64(body), PAYLOAD_TYPE, (signature,)))


def seal_by_passkey(body: bytes, passkey: bytes, signature: bytes, assertion: Assertion) -> bytes:
    """Return the envelope of a statement that the passkey with id `passkey` approved."""
    signed = DsseSignature(_b64(signature), passkey.hex(), assertion)
    return msgspec.json.encode(Envelope(_b64(body), PAYLOAD_TYPE, (signed,)))


def attest(
    signer: Signer,
    run: EvidenceRun,
    *,
    passed: bool,
    components: tuple[tuple[str, bytes], ...],
    configuration: bytes,
    tests: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
) -> bytes:
    """Return a signed test result: `components` are (app, digest), `tests` the names that passed and that failed."""
    described = Described({"sha256": configuration.hex()}, "configuration")
    result = EvidenceResult(run, "PASSED" if passed else "FAILED", (described,), tests[0], (), tests[1])
    return seal(signer, statement_json(components, TEST_RESULT, result))


def attest_build(
    signer: Signer, run: EvidenceRun, *, components: tuple[tuple[str, bytes], ...], provenance: Mapping[str, Any]
) -> bytes:
    """Return signed provenance of a build: `components` are (app, digest), `provenance` a predicate of SLSA v1."""
    return seal(signer, statement_json(components, PROVENANCE, {**provenance, "freehold_run": run}))


def open_envelope(verifier: Verifier, data: bytes) -> Opened | Refusal:
    """Verify an envelope with exactly one signature and parse its statement; nothing is believed before that."""
    if len(data) > ENVELOPE_MAX_BYTES:
        return Refusal("evidence.too-large", f"an envelope has at most {ENVELOPE_MAX_BYTES} bytes")
    try:
        envelope = parse_json(data, Envelope)
        if envelope.payloadType != PAYLOAD_TYPE or len(envelope.signatures) != 1:
            return Refusal("evidence.malformed", "expected one signature over an in-toto statement")
        body = _unb64(envelope.payload)
        key = bytes.fromhex(envelope.signatures[0].keyid)
        signature = _unb64(envelope.signatures[0].sig)
    except ValueError as error:
        return Refusal("evidence.malformed", str(error)[:200])
    person = _signed_by(verifier, key, body, signature, envelope.signatures[0].passkey)
    if isinstance(person, Refusal):
        return person
    try:
        statement = parse_json(body, Statement)
    except ValueError as error:
        return Refusal("evidence.malformed", str(error)[:200])
    if statement.type != STATEMENT_TYPE or not 0 < len(statement.subject) <= SUBJECTS_MAX:
        return Refusal("evidence.malformed", f"expected a Statement v1 with 1 to {SUBJECTS_MAX} subjects")
    return Opened(key, statement, person)


def _signed_by(
    verifier: Verifier, key: bytes, body: bytes, signature: bytes, said: Assertion | None
) -> bytes | Refusal:
    """Return whose passkey signed, b"" where `key` itself did."""
    if len(key) != PUBLIC_KEY_BYTES:
        return Refusal("evidence.malformed", "the key has the wrong length")
    if said is not None:
        passkey = open_assertion(verifier, key, body, said, signature)
        return passkey if isinstance(passkey, Refusal) else bytes.fromhex(passkey.person)
    if len(signature) != SIGNATURE_BYTES:
        return Refusal("evidence.malformed", "the signature has the wrong length")
    if not verifier.verify(key, pae(PAYLOAD_TYPE, body), signature):
        return Refusal("evidence.signature", "the signature does not verify")
    return b""


def read_evidence(verifier: Verifier, mesh: bytes, data: bytes) -> Attested | Refusal:
    """Verify an envelope and read it as a test result or provenance of this mesh."""
    opened = open_envelope(verifier, data)
    if isinstance(opened, Refusal):
        return opened
    if opened.person:
        return Refusal("evidence.passkey", "a passkey signs approvals, not evidence")
    statement = opened.statement
    if statement.predicate_type not in (TEST_RESULT, PROVENANCE):
        return Refusal("evidence.predicate", f"{statement.predicate_type[:80]!r} is not evidence")
    try:
        result = parse_json(bytes(statement.predicate), EvidenceResult)
    except ValueError as error:
        return Refusal("evidence.malformed", str(error)[:200])
    run = result.freehold_run
    if run.mesh != mesh.hex():
        return Refusal("evidence.other-mesh", "the evidence was made for another mesh")
    if (run.kind == "build") != (statement.predicate_type == PROVENANCE):
        return Refusal("evidence.predicate", f"{run.kind} evidence has another predicate")
    if len(run.tools) > TOOLS_MAX or len(run.log) > LOG_MAX_CHARACTERS or len(result.configuration) > SUBJECTS_MAX:
        return Refusal("evidence.too-large", "too many tools or configurations, or too long a log")
    passed = result.result == "PASSED" if run.kind != "build" else True
    return Attested(opened.key, run.kind, passed, run.finished_ms, statement.sha256s(), _sha256s(result.configuration))


def parse_json(data: bytes, kind: type[T]) -> T:
    """Decode JSON bytes as `kind`. Raises ValueError (also for nesting too deep); never echoes the data."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _sha256s(described: tuple[Described, ...]) -> tuple[Digest, ...]:
    digests = []
    for item in described:
        text = item.digest.get("sha256", "")
        if len(text) == 2 * DIGEST_BYTES and text.isascii() and text.isalnum():
            try:
                digests.append(Digest(bytes.fromhex(text)))
            except ValueError:
                continue
    return tuple(digests)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
