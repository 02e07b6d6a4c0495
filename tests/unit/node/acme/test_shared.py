"""What workers' files say of the mesh's certificates: of names that routes have, by nodes that may serve them, the newest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from node.acme.shared import SharedSites
from node.keys import SystemEntropy
from protocols.changes.change import Route
from protocols.changes.secrets import node_secret_key
from protocols.envelope import encode
from protocols.keys import Ed25519Signer, peer_id
from protocols.machine import PeerId
from protocols.records.gossip import RecordsForgotten, RecordsMerged
from protocols.records.record import Entry, Record, read_record, sign_record
from protocols.records.sites import ChallengeAnswer, challenge_key, seal_site, site_key
from protocols.state.model import ConfirmedNode, Environment, RouteClaim
from runtime.ingress.proofs import FrontFolder
from tests.support.runtime import pem
from tests.support.runtime.pem import Authority

MESH, PRINT = b"m" * 32, "p" * 43
SIGNERS = [Ed25519Signer(bytes([number]) * 32) for number in (1, 2, 3)]
ME, OTHER, STAGING = (peer_id(signer.public_key) for signer in SIGNERS)


class Node:
    """One node's files, and the records that come to it; `production` selects all nodes but the last."""

    def __init__(self, folder: Path) -> None:
        nodes = [ConfirmedNode(peer_id, (("for", "production"),), ("worker",), 1) for peer_id in (ME, OTHER)]
        nodes.append(ConfirmedNode(STAGING, (("for", "staging"),), ("worker",), 1))
        state = SimpleNamespace(
            nodes=nodes, environments=[Environment("production", (("for", "production"),), None, False)],
            routes=[RouteClaim(Route("site.test", "/"), "site", "production")],
        )  # fmt: skip
        self.revoked: set[bytes] = set()
        self.entries: dict[str, Entry] = {}
        trust = SimpleNamespace(mesh=MESH, key_revoked=lambda key: key in self.revoked)
        records = SimpleNamespace(store=SimpleNamespace(entries=self.entries))
        core = cast(Any, SimpleNamespace(node=ME, state=state, trust=trust, records=records))
        self.front = FrontFolder(folder)
        self.authority = Authority()
        self.shared = SharedSites(core, node_secret_key(b"\1" * 32), self.front, roots=[self.authority.certificate])
        self.count = 0

    def merge(self, author: int, key: str, body: bytes, kind: Any = "owned") -> Entry:
        self.count += 1
        entry = read_record(
            sign_record(SIGNERS[author], MESH, Record(key, kind, self.count, self.count, ttl_ms=1, body=body))
        )
        assert isinstance(entry, Entry)
        self.shared.hear(RecordsMerged((entry,)))
        return entry

    def challenge(self, author: int, name: str, token: str, kind: Any = "http-01") -> Entry:
        answer = ChallengeAnswer(kind, name, f"{token * 43}.{PRINT}")
        return self.merge(
            author, challenge_key(PeerId(peer_id(SIGNERS[author].public_key)), answer), encode(answer), "ephemeral"
        )

    def site(self, author: int, folder: Path, *, ends: int = 10, to: tuple[PeerId, ...] = (ME, OTHER)) -> bytes:
        whole = pem.write(folder / "made.pem", ends=ends).read_bytes()
        chain = x509.load_pem_x509_certificate(whole).public_bytes(Encoding.PEM)
        private = load_pem_private_key(whole, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        site = seal_site(MESH, "site.test", chain, private, nodes=to, at_ms=1, entropy=SystemEntropy())
        self.merge(author, site_key(peer_id(SIGNERS[author].public_key), site), encode(site))
        return chain

    def signed(self, author: int, *, ends: int, key: bytes | None = None, name: str = "site.test") -> bytes:
        """A certificate by the authority that this node believes; beside it may lie another key than its own."""
        chain, private = self.authority.issue(name, ends)
        site = seal_site(MESH, "site.test", chain, key or private, nodes=(ME, OTHER), at_ms=1, entropy=SystemEntropy())
        self.merge(author, site_key(peer_id(SIGNERS[author].public_key), site), encode(site))
        return chain

    def served(self) -> list[bytes]:
        return [path.read_bytes() for path in self.front.certificates.glob("*.pem")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "run")


def test_a_challenge_is_answered_for_any_node_that_may_serve_the_name(node: Node) -> None:
    entry = node.challenge(1, "site.test", "a")
    assert node.shared.proves("a" * 43)
    assert (node.front.http / ("a" * 43)).read_bytes() == f"{'a' * 43}.{PRINT}".encode()
    node.shared.hear(RecordsForgotten((entry,)))
    assert not node.shared.proves("a" * 43)
    assert not list(node.front.http.iterdir())


def test_nothing_is_answered_for_a_name_that_no_route_has_or_a_node_that_may_not_serve_it(node: Node) -> None:
    node.challenge(1, "other.test", "a")
    node.challenge(2, "site.test", "b")  # of another environment
    assert not list(node.front.http.iterdir())
    node.revoked.add(SIGNERS[1].public_key)
    node.challenge(1, "site.test", "c")
    assert not list(node.front.http.iterdir())


def test_of_two_open_challenges_over_tls_the_newer_one_is_shown(node: Node) -> None:
    node.challenge(1, "site.test", "a", "tls-alpn-01")
    first = (node.front.alpn / "site.test.pem").read_bytes()
    node.shared.reconcile()
    assert (node.front.alpn / "site.test.pem").read_bytes() == first  # made once
    newer = node.challenge(0, "site.test", "b", "tls-alpn-01")
    assert (node.front.alpn / "site.test.pem").read_bytes() != first
    assert (node.shared.proves("a" * 43), node.shared.proves("b" * 43)) == (False, True)
    node.shared.hear(RecordsForgotten((newer,)))
    assert (node.shared.proves("a" * 43), node.shared.proves("b" * 43)) == (True, False)


def test_the_certificate_that_ends_last_is_served_with_its_key_readable_by_the_node_alone(
    node: Node, tmp_path: Path
) -> None:
    later, sooner = node.site(1, tmp_path, ends=20), node.site(0, tmp_path, ends=10)
    [served] = node.served()
    assert served.startswith(later)
    assert sooner not in served
    load_pem_private_key(served, None)
    assert {path.stat().st_mode & 0o777 for path in node.front.certificates.iterdir()} == {0o600}


def test_what_a_node_of_another_environment_says_and_what_is_sealed_to_others_is_not_served(
    node: Node, tmp_path: Path
) -> None:
    node.site(2, tmp_path, ends=50)
    assert not node.served()
    node.site(1, tmp_path, to=(OTHER,), ends=30)
    assert not node.served()
    node.site(1, tmp_path)  # which ends sooner, and opens here
    assert len(node.served()) == 1
    node.revoked.add(SIGNERS[1].public_key)
    node.shared.reconcile()
    assert not node.served()


def test_a_member_that_may_serve_a_name_cannot_have_others_serve_what_no_authority_signed(
    node: Node, tmp_path: Path
) -> None:
    good = node.signed(0, ends=20)
    node.site(1, tmp_path, ends=3_000)
    [served] = node.served()
    assert served.startswith(good)
    assert node.shared.best("site.test").author == ME  # type: ignore[union-attr]
    newer = node.signed(1, ends=30)
    assert node.served()[0].startswith(newer), "of two that an authority signed the later one is served"


def test_a_certificate_that_anybody_may_copy_is_not_taken_without_its_key(node: Node, tmp_path: Path) -> None:
    good = node.signed(0, ends=20)
    _, other = node.authority.issue("site.test", 1)
    node.signed(1, ends=80, key=other)
    node.signed(1, ends=80, key=b"no key at all")
    [served] = node.served()
    assert served.startswith(good)
    assert len(node.shared.all()) == 1


def test_files_of_a_life_before_are_gone_at_a_start(node: Node, tmp_path: Path) -> None:
    node.site(1, tmp_path)
    node.challenge(1, "site.test", "a")
    again = Node(tmp_path / "run")
    assert not again.served()
    assert not list(again.front.http.iterdir())
