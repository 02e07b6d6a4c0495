"""The mesh's certificates and open challenges as this node serves them: from records to the files that workers read.

Of several certificates for one name the newest that opens here is written, into the volatile folder: a key lies in clear
nowhere but there, mode 0600, and never in a backup. What a node says is taken for a name alone that the chain gave to a
route, and from a node that may run what the name leads to. Not here: getting certificates (certifier.py).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from node.acme.authorities import is_believed, system_roots
from node.acme.jose import key_pem
from node.mesh.presence import status_of
from protocols.chain.messages import EntryStored, EraChanged
from protocols.changes.secrets import SealError
from protocols.core import NodeCore
from protocols.envelope import DecodeError
from protocols.keys import public_key_of
from protocols.machine import PeerId
from protocols.records.gossip import RecordsForgotten, RecordsMerged, RecordsVoided
from protocols.records.record import Entry
from protocols.records.sites import (
    ChallengeAnswer,
    SiteCertificate,
    open_site,
    read_challenge,
    read_site,
    valid_site_name,
)
from protocols.state.placement import eligible
from runtime.ingress.proofs import FrontFolder

CHALLENGES_MAX: Final = 256
PROOF_DAYS: Final = 2
_PROOF: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_log = logging.getLogger("freehold.acme")


@dataclass(frozen=True, slots=True)
class HeldSite:
    """A certificate that some node got: what its record says, read; `author` ordered it.

    `believed` says that an authority which this machine believes signed it.
    """

    author: PeerId
    site: SiteCertificate
    leaf: x509.Certificate
    believed: bool = False

    @property
    def begins_ms(self) -> int:
        """From when it holds (wall)."""
        return int(self.leaf.not_valid_before_utc.timestamp() * 1000)

    @property
    def ends_ms(self) -> int:
        """Until when it holds (wall)."""
        return int(self.leaf.not_valid_after_utc.timestamp() * 1000)

    @property
    def nodes(self) -> frozenset[PeerId]:
        """Whom its key is sealed to."""
        return frozenset(box.node for box in self.site.sealed.boxes)


class SharedSites:
    """This node's view of them. `hear` takes the core's notices; `reconcile` makes the files say what is held."""

    def __init__(
        self,
        core: NodeCore,
        key: X25519PrivateKey,
        front: FrontFolder,
        wildcards: Sequence[str] = (),
        roots: Sequence[x509.Certificate] | None = None,
    ) -> None:
        """Take the node's key, the workers' folder, and the authorities that are believed: by default this machine's."""
        self._core = core
        self._key = key
        self._front = front
        self._wildcards = tuple(wildcards)
        self._roots = system_roots() if roots is None else tuple(roots)
        self._sites: dict[str, HeldSite] = {}
        self._challenges: dict[str, tuple[PeerId, ChallengeAnswer]] = {}
        self._written: dict[Path, bytes] = {}
        self._proofs: dict[str, bytes] = {}
        """What shows each open challenge, by token; a certificate is made for each once."""
        self._shown: dict[Path, str] = {}
        """Which token a file answers for: of two open challenges for a name over TLS the newer one's."""
        front.make()
        for folder in (front.http, front.alpn, front.certificates):
            for path in folder.iterdir():
                path.unlink()
        self._take(core.records.store.entries.values())
        self.reconcile()

    def hear(self, event: Any) -> None:
        """Take one of the core's notices; those about other things are left alone."""
        match event:
            case RecordsMerged(entries):
                changed = self._take(entries)
            case RecordsVoided(entries) | RecordsForgotten(entries):
                changed = self._forget(entries)
            case EntryStored() | EraChanged():
                changed = bool(self._sites or self._challenges)  # who may serve what may be another now
            case _:
                return
        if changed:
            self.reconcile()

    # --- names --------------------------------------------------------------------------------------------------------

    def names(self) -> dict[str, tuple[PeerId, ...]]:
        """What certificates are for, each with the nodes that serve it, ascending.

        Names that the chain gave to routes and that no node excepts; a wildcard of this node stands for what it covers.
        """
        core = self._core
        said = {node.node: status_of(core.records, node.node) for node in core.state.nodes}
        excepted = {name for node_status in said.values() for name in node_status.acme_except}
        table: dict[str, set[PeerId]] = {}
        for claim in core.state.routes:
            host = claim.route.host
            if not valid_site_name(host) or host.startswith("*") or not excepted.isdisjoint((host, covering(host))):
                continue
            wildcard = covering(host)
            name = wildcard if wildcard in self._wildcards else host
            serving = {node for node in eligible(core.state, claim.environment) if said[node].acme}
            table.setdefault(name, set()).update(serving)
        return {name: tuple(sorted(nodes)) for name, nodes in sorted(table.items())}

    def may_serve(self, node: PeerId, name: str) -> bool:
        """Whether a node may run what a name leads to, so that its word about the name's certificate is taken."""
        state = self._core.state
        if self._core.trust.key_revoked(public_key_of(node)):
            return False
        claims = (route for route in state.routes if name in {route.route.host, covering(route.route.host)})
        return any(node in eligible(state, claim.environment) for claim in claims)

    def best(self, name: str, *, opens_here: bool = False) -> HeldSite | None:
        """The certificate of a name that counts: of a node that may serve it, by an authority if any is, valid the longest.

        `opens_here` leaves out what is sealed to other nodes alone.
        """
        held = (
            site
            for site in self._sites.values()
            if site.site.name == name
            and self.may_serve(site.author, name)
            and (not opens_here or self._core.node in site.nodes)
        )
        return max(held, key=lambda one: (one.believed, one.ends_ms, one.author), default=None)

    def all(self) -> list[HeldSite]:
        """Every certificate that a record holds, by name and who ordered it."""
        return sorted(self._sites.values(), key=lambda one: (one.site.name, one.author))

    def proves(self, token: str) -> bool:
        """Whether this node's workers answer an authority for a token."""
        return token in self._shown.values()

    def key_of(self, site: SiteCertificate) -> bytes:
        """Return the key of a certificate (PEM). Raises SealError."""
        return open_site(self._core.trust.mesh, site, self._core.node, self._key)

    # --- files --------------------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Make the workers' files say what is held now; cheap where nothing changed."""
        wanted: dict[Path, bytes] = {}
        shown: dict[Path, str] = {}
        self._proofs = {token: proof for token, proof in self._proofs.items() if token in self._challenges}
        for author, answer in self._challenges.values():
            if self.may_serve(author, answer.name):
                path = self._proof_path(answer)
                shown[path] = answer.token
                wanted[path] = self._proofs[answer.token] = self._proofs.get(answer.token) or _proof_of(answer)
        for name in {site.site.name for site in self._sites.values()}:
            best = self.best(name, opens_here=True)
            path = self._front.certificates / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.pem"
            if best is not None:
                try:
                    wanted[path] = best.site.chain.rstrip() + b"\n" + self.key_of(best.site)
                except SealError as error:
                    _log.warning("not served: %s", error, extra={"event": "site.sealed-away"})
        for path in self._written.keys() - wanted.keys():
            path.unlink(missing_ok=True)
        for path, data in wanted.items():
            if self._written.get(path) != data:
                _write(path, data)
        self._written, self._shown = wanted, shown

    def _proof_path(self, answer: ChallengeAnswer) -> Path:
        return self._front.http / answer.token if answer.kind == "http-01" else self._front.alpn / f"{answer.name}.pem"

    # --- records ------------------------------------------------------------------------------------------------------

    def _take(self, entries: Iterable[Entry]) -> bool:
        changed = False
        for entry in entries:
            prefix = entry.parsed.rule.prefix
            if prefix not in {"site", "challenge"}:
                continue
            changed = True
            try:
                if entry.record.tombstone:
                    self._sites.pop(entry.record.key, None)
                elif prefix == "site":
                    self._take_site(entry)
                elif len(self._challenges) < CHALLENGES_MAX:
                    answer = read_challenge(entry.record.body)
                    self._challenges.pop(answer.token, None)
                    self._challenges[answer.token] = (entry.author, answer)  # the newest last
            except (DecodeError, ValueError) as error:
                _log.warning("not taken: %s", error, extra={"event": "site.malformed", "peer": entry.author})
        return changed

    def _take_site(self, entry: Entry) -> None:
        site = read_site(entry.record.body)
        chain = x509.load_pem_x509_certificates(site.chain)
        leaf = chain[0]
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
        if site.name not in names.get_values_for_type(x509.DNSName):
            raise DecodeError(f"the certificate is none of {site.name}")
        self._check_key(site, leaf)
        believed = is_believed(chain, site.name, self._roots)
        self._sites[entry.record.key] = HeldSite(entry.author, site, leaf, believed)

    def _check_key(self, site: SiteCertificate, leaf: x509.Certificate) -> None:
        """Refuse a certificate that anybody may copy, beside another key than its own: no node could serve it."""
        if all(box.node != self._core.node for box in site.sealed.boxes):
            return
        try:
            key = serialization.load_pem_private_key(self.key_of(site), None)
        except (SealError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise DecodeError(f"the key of {site.name} cannot be read: {error}") from None
        if key.public_key() != leaf.public_key():
            raise DecodeError(f"the key beside the certificate of {site.name} is another's")

    def _forget(self, entries: Iterable[Entry]) -> bool:
        changed = False
        for entry in entries:
            prefix = entry.parsed.rule.prefix
            if prefix == "site" and self._core.records.store.entries.get(entry.record.key) is None:
                changed = self._sites.pop(entry.record.key, None) is not None or changed
            elif prefix == "challenge":
                changed = self._challenges.pop(entry.parsed.parts[1], None) is not None or changed
        return changed


def covering(host: str) -> str:
    """The wildcard that covers a host."""
    return "*." + host.partition(".")[2]


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    temporary.replace(path)


def _proof_of(answer: ChallengeAnswer) -> bytes:
    """What shows an open challenge: its text, or a certificate of the name that holds its digest (RFC 8737, 3)."""
    if answer.kind == "http-01":
        return answer.authorization.encode("ascii")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "acme-tls/1")])
    now = datetime.now(UTC)
    shown = b"\x04\x20" + hashlib.sha256(answer.authorization.encode("ascii")).digest()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=PROOF_DAYS))
        .not_valid_after(now + timedelta(days=PROOF_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(answer.name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_PROOF, shown), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key_pem(key)
