"""A key makes other keys as it likes: what has a limit is counted for the principal behind them all."""

from __future__ import annotations

import pytest

from protocols.envelope import Signed, digest
from protocols.records.credentials import delegator_of, grant_record, revocation_record
from protocols.records.papers import PAPERS
from protocols.records.quotas import Payer, RecordLimits
from protocols.records.store import RecordStore
from protocols.refusal import Refusal
from protocols.rollout.dossiers import Dossiers
from protocols.trust.grants import payer_of
from protocols.trust.revocations import Revocation, sign_revocation
from tests.support.protocols.paper_world import MESH, carried, granted, paper, rule, world
from tests.support.protocols.trust_world import VERIFIER, WALL_MS, signer

UPPER = granted("author", "deployer", "shop", "prod")


def below(name: str, chain: tuple[Signed, ...] = (UPPER,), by: str = "author") -> tuple[Signed, ...]:
    """The chain of a key that `by` made for itself."""
    return (*chain, granted(name, "deployer", "shop", "prod", by=by, parent=digest(chain[-1].payload)))


def filed(store: RecordStore, key: str, body: bytes) -> str:
    """How the API files a paper: the quota first, then the record."""
    problem = store.quota_problem(key, body)
    return problem.rule if problem is not None else rule(store.offer(carried("n1", key, body), WALL_MS))


def held(**limits: int) -> RecordStore:
    record_store = world()
    record_store.limits = RecordLimits(**limits)
    return record_store


@pytest.mark.parametrize("kind", [paper for paper in PAPERS if paper != "approval"])
def test_the_papers_of_all_keys_of_a_principal_are_one_share_where_they_are_filed(kind: str) -> None:
    store = held(principal_papers_max=3)
    assert filed(store, *grant_record(signer("bot").public_key, below("bot"))) == "merged"
    deeper = below("bot2", below("bot"), "bot")
    assert filed(store, *grant_record(signer("bot2").public_key, deeper)) == "merged"
    said = [
        filed(store, *paper(kind, signer(by), n)) for n, by in enumerate(("author", "bot", "bot2", "bot", "author"), 1)
    ]
    assert said == ["merged"] * 3 + ["quota.principal"] * 2
    assert filed(store, *paper(kind, signer("beside"), 9)) == "merged", (
        "another principal of the same project is not charged"
    )


def test_the_grants_and_revocations_of_a_principal_have_a_share_that_fills_no_nodes() -> None:
    store = held(delegations_max=3)
    said = [filed(store, *grant_record(signer(name).public_key, below(name))) for name in ("a", "b")]
    deeper = grant_record(signer("c").public_key, below("c", below("a"), "a"))
    assert [*said, filed(store, *deeper)] == ["merged"] * 3
    assert filed(store, *grant_record(signer("d").public_key, below("d", below("b"), "b"))) == "quota.delegations"
    revocation = Revocation("grant", digest(below("a")[-1].payload), 0, 0, "done", WALL_MS)
    mine = revocation_record(revocation, sign_revocation(signer("author"), MESH, revocation, below("a")))
    assert filed(store, *mine) == "quota.delegations"
    by_admin = revocation_record(revocation, sign_revocation(signer("admin"), MESH, revocation))
    assert filed(store, *by_admin) == "merged", "an admin takes away whatever a principal filled its share with"
    assert (
        filed(store, *grant_record(signer("new").public_key, (granted("new", "viewer", "shop", "prod"),))) == "merged"
    )
    key, body = grant_record(signer("other bot").public_key, below_beside())
    assert filed(store, key, body) == "merged", "another principal has its own share"


def below_beside() -> tuple[Signed, ...]:
    upper = granted("beside", "deployer", "shop", "prod")
    return (upper, granted("other bot", "deployer", "shop", "prod", by="beside", parent=digest(upper.payload)))


def test_what_a_principal_filled_is_given_back_when_it_goes() -> None:
    store = held(delegations_max=1)
    key, body = grant_record(signer("a").public_key, below("a"))
    assert filed(store, key, body) == "merged"
    payer = Payer("delegations", signer("author").public_key.hex())
    assert store.quotas.held(payer)[0] == 1
    store.remove(store.entries[key])
    assert store.quotas.held(payer) == (0, 0)


def test_gossip_asks_no_delegators_share_for_a_node_pays_for_what_it_carries() -> None:
    store = held(delegations_max=0)
    assert rule(store.offer(carried("n1", *grant_record(signer("a").public_key, below("a"))), WALL_MS)) == "merged"


def test_who_pays_is_the_first_that_was_granted_and_is_no_invites() -> None:
    invite = granted("invite", "deployer", "shop", "prod", invite_uses=5)
    joiner = granted("joiner", "deployer", "shop", "prod", by="invite", parent=digest(invite.payload))
    laptop = granted("laptop", "deployer", "shop", "prod", by="joiner", parent=digest(joiner.payload))
    for chain, payer in (
        ((UPPER,), b""), (below("a"), signer("author").public_key), ((invite, joiner), b""),
        ((invite, joiner, laptop), signer("joiner").public_key),
    ):  # fmt: skip
        _, body = grant_record(signer("x").public_key, chain)
        assert delegator_of("grant", body) == payer
    assert delegator_of("grant", b"junk") == delegator_of("status", b"junk") == b""


def test_dossiers_name_the_payer_of_a_key_also_after_its_grant_has_ended() -> None:
    store = world()
    dossiers = Dossiers(VERIFIER, MESH, store.trust.rights)
    for name, chain in (("author", (UPPER,)), ("bot", below("bot"))):
        key, body = grant_record(signer(name).public_key, chain)
        store.offer(carried("n1", key, body), WALL_MS)
        dossiers.merged([store.entries[key]])
    assert dossiers.payer(signer("bot").public_key) == signer("author").public_key
    assert dossiers.payer(signer("nobody").public_key) == signer("nobody").public_key
    rights = dossiers.rights(signer("bot").public_key, WALL_MS)
    assert not isinstance(rights, Refusal)
    assert payer_of(rights) == signer("author").public_key
