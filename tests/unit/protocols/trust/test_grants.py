"""Grants: narrowing down a chain, and what can never be granted."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.envelope import Signed, encode, sign
from protocols.refusal import Refusal
from protocols.trust.grants import (
    ALL_ROLES,
    CHAIN_LINKS_MAX,
    GRANT_DOMAIN,
    SCOPES_MAX,
    Rights,
    rights_of,
    rights_of_any,
    verify_grants,
)
from tests.support.protocols.trust_world import DAY_MS, VERIFIER, WALL_MS, World, signer

WORLD = World()


def check(*chain: Signed, at_ms: int = WALL_MS) -> Rights | Refusal:
    return verify_grants(VERIFIER, WORLD.mesh, (WORLD.admin.public_key,), chain, at_ms)


def any_of(name: str, *chains: tuple[Signed, ...]) -> Rights | Refusal:
    key = WORLD.admin.public_key if name == "admin" else signer(name).public_key
    return rights_of_any(VERIFIER, WORLD.mesh, (WORLD.admin.public_key,), key, chains=chains, at_ms=WALL_MS)


def rule(answer: Rights | Refusal) -> str:
    assert isinstance(answer, Refusal)
    assert answer.detail
    return answer.rule


def test_a_grant_by_an_admin_gives_its_verbs_in_its_scope_only() -> None:
    rights = check(WORLD.grant("ann", roles=("deployer",), projects=("shop",), environments=("staging",)))
    assert isinstance(rights, Rights)
    assert rights.allows("start", "shop", "staging")
    assert not rights.allows("start", "shop", "prod")
    assert not rights.allows("start", "blog", "staging")
    assert not rights.allows("approve", "shop", "staging")
    assert not rights.allows("start", "*", "*")
    assert rights.principal == rights.key == signer("ann").public_key


def test_every_grant_of_a_key_counts_and_none_lends_its_scope_to_another() -> None:
    starts = (WORLD.grant("ann", roles=("deployer",), projects=("shop",), environments=("staging",)),)
    approves = (WORLD.grant("ann", roles=("approver",), projects=("blog",), environments=("prod",)),)
    ended = (WORLD.grant("ann", roles=("admin",), expires_ms=WALL_MS),)
    for order in permutations((starts, approves, ended)):
        rights = any_of("ann", *order)
        assert isinstance(rights, Rights)
        assert len(rights.each) == 2, "the ended one gives nothing"
        assert rights.allows("start", "shop", "staging")
        assert rights.allows("approve", "blog", "prod")
        for verb, project, environment in (
            ("start", "blog", "prod"), ("start", "shop", "prod"), ("approve", "shop", "staging"),
            ("approve", "blog", "staging"), ("view", "shop", "prod"), ("admin", "blog", "prod"),
        ):  # fmt: skip
            assert not rights.allows(verb, project, environment)  # type: ignore[arg-type]
        assert [entry.roles for entry in rights.allowing("view", "blog", "prod")] == [("approver",)]
    assert rule(any_of("ann", ended)) == "grant.expired"
    assert rule(any_of("ann")) == "grant.none"


def test_whoever_stands_behind_a_key_by_any_grant_may_be_behind_what_it_does() -> None:
    ann, bob = WORLD.grant("ann", roles=("deployer",)), WORLD.grant("bob", roles=("deployer",))
    shared = [
        (ann, WORLD.grant("key", by="ann", roles=("deployer",), parent=ann)),
        (bob, WORLD.grant("key", by="bob", roles=("deployer",), parent=bob)),
    ]
    rights = any_of("key", *shared)
    assert isinstance(rights, Rights)
    assert set(rights.behind) == {signer(name).public_key for name in ("ann", "bob", "key")}
    assert [len(entry.lineage) for entry in rights.each] == [2, 2]


def test_an_admins_own_key_loses_nothing_by_a_narrow_grant_shown_beside_it() -> None:
    rights = any_of("admin", (WORLD.grant("admin", roles=("viewer",)),))
    assert isinstance(rights, Rights)
    assert rights.allows("admin", "*", "*")


def test_a_sub_key_acts_for_its_principal_with_less() -> None:
    person = WORLD.grant("ann", roles=("deployer", "approver"))
    agent = WORLD.grant("bot", by="ann", kind="agent", roles=("deployer",), verbs=("propose", "view"), parent=person)
    rights = check(person, agent)
    assert isinstance(rights, Rights)
    assert rights.kind == "agent"
    assert rights.verbs == ("view", "propose")
    assert rights.principal == signer("ann").public_key
    assert rights.lineage == (signer("ann").public_key, signer("bot").public_key)
    assert len(rights.grants) == 2


def test_what_an_admin_gives_to_themselves_or_to_an_agent_is_the_admins_own_doing() -> None:
    admin, everyday, bot = WORLD.admin.public_key, signer("me").public_key, signer("bot").public_key
    own = WORLD.grant("me", roles=("deployer",), same_person=True)
    agent = WORLD.grant("bot", by="me", kind="agent", roles=("deployer",), parent=own)
    for chain, lineage in (
        ((own,), (admin, everyday)),
        ((own, agent), (admin, everyday, bot)),
        ((WORLD.grant("bot", kind="agent", roles=("deployer",)),), (admin, bot)),
    ):
        rights = check(*chain)
        assert isinstance(rights, Rights)
        assert (rights.lineage, rights.lineage[0]) == (lineage, admin)
    other = check(WORLD.grant("ann", roles=("deployer",)))
    assert isinstance(other, Rights)
    assert other.lineage == (signer("ann").public_key,)


def test_an_invites_key_which_several_may_use_makes_nobody_the_same_person() -> None:
    invite = WORLD.grant("invite", roles=("deployer",), invite_uses=2)
    entries = []
    for name in ("ann", "bob"):
        rights = check(invite, WORLD.grant(name, by="invite", roles=("deployer",), parent=invite))
        assert isinstance(rights, Rights)
        assert rights.lineage[0] == rights.principal == signer(name).public_key
        entries.append(set(rights.lineage))
    assert not entries[0] & entries[1]
    mine = WORLD.grant("invite", roles=("deployer",), invite_uses=1, same_person=True)
    laptop = check(mine, WORLD.grant("laptop", by="invite", roles=("deployer",), parent=mine))
    assert isinstance(laptop, Rights)
    assert laptop.lineage == (WORLD.admin.public_key, signer("laptop").public_key)
    assert laptop.principal == signer("laptop").public_key


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"roles": ("deployer", "approver")}, "grant.broader-than-parent"),
        ({"projects": ("shop", "blog")}, "grant.broader-than-parent"),
        ({"projects": ("*",)}, "grant.broader-than-parent"),
        ({"environments": ("prod",)}, "grant.broader-than-parent"),
        ({"expires_ms": WALL_MS + DAY_MS + 1}, "grant.broader-than-parent"),
        ({"invite_uses": 1}, "grant.invite-nested"),
        ({"by": "eve"}, "grant.not-by-holder"),
        ({"parent": None}, "grant.parent"),
        ({"kind": "agent", "roles": ("approver",)}, "grant.agent-may-not"),
    ],
)
def test_a_sub_grant_that_is_not_narrower_is_refused(change: dict[str, object], expected: str) -> None:
    parent = WORLD.grant("ann", roles=("deployer",), projects=("shop",), environments=("staging",))
    arguments: dict[str, object] = {
        "by": "ann", "roles": ("deployer",), "projects": ("shop",), "environments": ("staging",), "parent": parent,
    } | change  # fmt: skip
    assert rule(check(parent, WORLD.grant("sub", **arguments))) == expected  # type: ignore[arg-type]


def test_a_sub_grant_may_not_get_back_a_verb_its_parent_gave_up() -> None:
    parent = WORLD.grant("ann", roles=("deployer",), verbs=("view",))
    child = WORLD.grant("sub", by="ann", roles=("deployer",), parent=parent)
    assert rule(check(parent, child)) == "grant.broader-than-parent"


def test_an_agent_never_approves_or_administers_even_by_an_admins_hand() -> None:
    for role in ("approver", "admin"):
        assert rule(check(WORLD.grant("bot", kind="agent", roles=(role,)))) == "grant.agent-may-not"


def test_an_agent_delegates_only_to_agents() -> None:
    agent = WORLD.grant("bot", kind="agent", roles=("proposer",))
    person = WORLD.grant("puppet", by="bot", roles=("proposer",), parent=agent)
    assert rule(check(agent, person)) == "grant.agent-made-person"


def test_a_grant_ends_at_its_expiry() -> None:
    grant = WORLD.grant("ann")
    assert isinstance(check(grant, at_ms=WALL_MS + DAY_MS - 1), Rights)
    assert rule(check(grant, at_ms=WALL_MS + DAY_MS)) == "grant.expired"


def test_a_chain_must_start_with_an_admin_and_stay_short() -> None:
    assert rule(check(WORLD.grant("ann", by="eve"))) == "grant.not-by-admin"
    assert rule(check()) == "grant.chain-length"
    assert rule(check(*[WORLD.grant("ann")] * (CHAIN_LINKS_MAX + 1))) == "grant.chain-length"


def test_a_changed_grant_a_foreign_mesh_and_a_short_key_are_refused() -> None:
    good = WORLD.grant("ann")
    assert rule(check(Signed(good.payload + b"x", good.key, good.signature))) == "grant.signature"
    other = verify_grants(VERIFIER, b"m" * 32, (WORLD.admin.public_key,), (good,), WALL_MS)
    assert rule(other) == "grant.signature"
    assert rule(check(sign(WORLD.admin, GRANT_DOMAIN, WORLD.mesh, ["nonsense"]))) == "grant.malformed"
    wide = WORLD.grant("ann", projects=tuple(f"p{n}" for n in range(SCOPES_MAX + 1)))
    assert rule(check(wide)) == "grant.malformed"


def test_a_key_of_the_wrong_length_is_malformed() -> None:
    import msgspec

    from protocols.envelope import decode
    from protocols.trust.grants import Grant

    grant: Grant = decode(WORLD.grant("ann").payload, Grant)
    short = sign(WORLD.admin, GRANT_DOMAIN, WORLD.mesh, msgspec.structs.replace(grant, key=b"short"))
    assert rule(check(short)) == "grant.malformed"


def test_an_admin_key_needs_no_grant_and_others_do() -> None:
    admins = (WORLD.admin.public_key,)
    rights = rights_of(VERIFIER, WORLD.mesh, admins, WORLD.admin.public_key, chain=(), at_ms=WALL_MS)
    assert isinstance(rights, Rights)
    assert rights.allows("admin", "*", "*")
    assert rights.roles == ALL_ROLES
    eve = signer("eve").public_key
    assert rule(rights_of(VERIFIER, WORLD.mesh, admins, eve, chain=(), at_ms=WALL_MS)) == "grant.none"
    stolen = rights_of(VERIFIER, WORLD.mesh, admins, eve, chain=(WORLD.grant("ann"),), at_ms=WALL_MS)
    assert rule(stolen) == "grant.other-key"


def test_an_invites_grant_gives_nothing_until_it_is_used() -> None:
    assert rule(check(WORLD.grant("invite", invite_uses=1))) == "grant.invite-not-used"


@given(st.binary(max_size=300))
def test_random_bytes_never_become_rights(data: bytes) -> None:
    assert isinstance(check(Signed(data, WORLD.admin.public_key, data[:64].ljust(64, b"\0"))), Refusal)
    assert isinstance(check(Signed(encode(data), data[:32], data)), Refusal)


scopes = st.lists(st.sampled_from(["*", "a", "b"]), max_size=2, unique=True).map(tuple)


@given(
    st.lists(st.sampled_from(ALL_ROLES), unique=True).map(tuple),
    st.lists(st.sampled_from(ALL_ROLES), unique=True).map(tuple),
    scopes,
    scopes,
)
def test_no_accepted_child_may_do_what_its_parent_may_not(parent_roles, child_roles, outer, inner) -> None:  # type: ignore[no-untyped-def]
    parent = WORLD.grant("ann", roles=parent_roles, projects=outer)
    child = WORLD.grant("sub", by="ann", roles=child_roles, projects=inner, parent=parent)
    whole, part = check(parent), check(parent, child)
    assert isinstance(whole, Rights)
    if isinstance(part, Rights):
        for verb in part.verbs:
            for project in ("a", "b", "c", "*"):
                assert whole.allows(verb, project, "e") or not part.allows(verb, project, "e")
