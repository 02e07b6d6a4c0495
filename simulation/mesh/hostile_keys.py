"""What the hostile member tries with keys: one kept for recovery, and as many as a principal likes to make.

Cells like those of hostile_cells.py. Not here: what a recovery key may do (governance.py), and who pays (quotas.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocols.changes.demands import SOLO
from protocols.envelope import Signed, decode, digest, sign
from protocols.records import quotas
from protocols.records.credentials import grant_record, revocation_record
from protocols.records.quotas import Payer, RecordLimits
from protocols.records.store import OfferOutcome, RecordStore
from protocols.refusal import Refusal
from protocols.state.apply import MeshMachine, apply, genesis_state
from protocols.state.commands import (
    RECOVERY,
    Action,
    Command,
    ConfirmNode,
    CreateEnvironment,
    CreateProject,
    DrainNode,
    Freeze,
    RemoveNode,
    SetAdmins,
    SetPolicy,
    SetRules,
    sign_command,
)
from protocols.state.exhibits import Rules
from protocols.state.governance import RECOVERY_RULES
from protocols.state.model import MeshState
from protocols.trust import grants
from protocols.trust.certificates import Certificate, issue
from protocols.trust.genesis import Genesis
from protocols.trust.grants import GRANT_DOMAIN, Grant, Rights
from protocols.trust.revocations import Revocation, sign_revocation
from protocols.trust.store import TrustStore

DAY_MS = 86_400_000
LIAR = "liar"
RULES_BEFORE = 3
"""The feature level of the release before recovery keys."""


class Council:
    """A mesh of its own that decides what somebody signs, and says how; two admins and a recovery key, or as told."""

    def __init__(self, w: Any, own: tuple[str, ...] = ("admin", "admin2"), threshold: int = 1) -> None:
        self.w = w
        self.rules = Rules(w.keys, w.mesh)
        self.genesis: Genesis = decode(w.genesis, Genesis)
        self.state = genesis_state(self.genesis, w.mesh)
        self.number = 0
        self.must(SetRules(RULES_BEFORE), "admin")
        self.must(CreateProject("shop"), "admin")
        self.must(CreateEnvironment("prod"), "admin")
        self.must(ConfirmNode(w.node("n2"), (), ("worker",)), "admin")
        self.early = self.refused(self.named(own, threshold, ("paper",)), "admin")
        self.must(SetRules(RECOVERY_RULES), "admin")
        self.must(self.named(own, threshold, ("paper",)), "admin")

    def named(self, own: tuple[str, ...], threshold: int, kept: tuple[str, ...] = ()) -> SetAdmins:
        """A set of admins and of recovery keys, by name."""
        keys = [self.key(name) for name in own] + [RECOVERY + self.key(name) for name in kept]
        return SetAdmins(tuple(sorted(keys)), threshold)

    def key(self, name: str) -> bytes:
        """The public key of that name."""
        return self.w.signer(name).public_key  # type: ignore[no-any-return]

    def decide(self, action: Action, *by: str) -> MeshState | Refusal:
        """What every voter makes of a command; the state stays as it was."""
        self.number += 1
        lane = isinstance(action, Freeze)
        place = ("shop", "prod") if lane else ("", "")
        command = Command(self.number.to_bytes(16, "big"), action, *place, 0 if lane else self.state.sequence)
        signed = sign_command([self.w.signer(name) for name in by], self.w.mesh, command)
        return apply(self.state, signed, {}, self.w.wall_ms, self.rules)

    def refused(self, action: Action, *by: str) -> bool:
        """Whether a command is refused."""
        return isinstance(self.decide(action, *by), Refusal)

    def must(self, action: Action, *by: str) -> None:
        """Decide a command that is allowed."""
        after = self.decide(action, *by)
        self.w.must("honest-decision", isinstance(after, MeshState), f"{type(action).__name__} by {by}: {after}")
        assert isinstance(after, MeshState)
        self.state = after

    def resets(self) -> tuple[bytes, ...]:
        """The keys that may reset the chain as it stands, and as the last set of admins said it."""
        machine: Any = MeshMachine(self.genesis, self.rules, None)  # type: ignore[arg-type]
        return tuple(machine.admins(self.state).keys)

    def trust(self) -> TrustStore:
        """A node's trust store that has heard of the decision."""
        trust_store = TrustStore(self.w.keys, self.w.genesis)
        trust_store.chain_decided(self.state.admins, self.state.threshold, [self.w.node("n1"), self.w.node("n2")])
        return trust_store


def _recovery_decides(w: Any, cell: str) -> None:
    """A recovery key, alone or as the signature that an admin's lacks, signs another command than a set of admins."""
    council = Council(w, threshold=w.source.choice((1, 2)))
    every: tuple[Action, ...] = (
        SetPolicy(SOLO), CreateProject("more"), CreateEnvironment("more"), DrainNode(w.node("n2")),
        RemoveNode(w.node("n2")), ConfirmNode(w.node("n3"), (), ("worker",)), Freeze("x"),
    )  # fmt: skip
    for action in every:
        w.must(cell, council.refused(action, "paper"), f"a recovery key decided {type(action).__name__}")
        w.must(cell, not council.refused(action, *sorted_by_key(w, "admin", "admin2")), "admins cannot decide")
    if council.state.threshold > 1:
        helped = council.refused(SetPolicy(SOLO), *sorted_by_key(w, "admin", "paper"))
        w.must(cell, helped, "a recovery key was the second of two signatures")


def sorted_by_key(w: Any, *names: str) -> tuple[str, ...]:
    """Names in the order in which their signatures stand."""
    return tuple(sorted(names, key=lambda name: w.signer(name).public_key))


def _recovery_vouches(w: Any, cell: str) -> None:
    """A recovery key gives grants, certifies, revokes, and resets the chain, as an admin's key does."""
    council = Council(w)
    trust, paper = council.trust(), w.signer("paper")
    grant = Grant(council.key("new"), "person", "new", ("deployer",), ("*",), ("*",), w.wall_ms + DAY_MS, b"n" * 16)
    for by, good in (("paper", False), ("admin", True)):
        chain = (sign(w.signer(by), GRANT_DOMAIN, w.mesh, grant),)
        rights = grants.rights_of(w.keys, w.mesh, council.state.admins, grant.key, chain=chain, at_ms=w.wall_ms)
        w.must(cell, isinstance(rights, Rights) is good, f"a grant by {by}: {rights}")
        held = trust.rights(grant.key, chain, w.wall_ms)
        w.must(cell, isinstance(held, Rights) is good, f"a node believes a grant by {by}: {held}")
    own = grants.rights_of(w.keys, w.mesh, council.state.admins, paper.public_key, chain=(), at_ms=w.wall_ms)
    w.must(cell, isinstance(own, Refusal), "a recovery key has an admin's rights")
    certified = issue(paper, w.mesh, w.node(LIAR), roles=("worker",), labels=(), serial=1, wall_ms=w.wall_ms)
    known = trust.learn_certificate(certified, w.wall_ms)
    w.must(cell, not isinstance(known, Certificate), "a recovery key certified a node")
    said = Revocation("principal", council.key("author"), 0, 0, "", w.wall_ms)
    w.must(
        cell,
        isinstance(trust.learn_revocation(sign_revocation(paper, w.mesh, said)), Refusal),
        "a recovery key revoked",
    )
    w.must(cell, paper.public_key not in council.resets(), "a recovery key resets the chain")


def _recovery_names(w: Any, cell: str) -> None:
    """What a recovery key is for; it goes with the set that names it, and takes as many signatures as any."""
    council = Council(w)
    w.must(cell, council.early, "a recovery key was taken before its rules")
    after = council.named(("new",), 1)
    council.must(after, "paper")
    w.must(cell, council.refused(council.named(("liar",), 1), "paper"), "a recovery key outlived its set")
    w.must(cell, council.refused(council.named(("liar",), 1), "admin"), "an admin outlived its set")
    both = Council(w, threshold=2)
    again = both.named(("new",), 1)
    w.must(cell, both.refused(again, "paper"), "a recovery key alone named the next of two admins")
    w.must(cell, both.refused(again, *sorted_by_key(w, "paper", LIAR)), "a stranger's signature counted")
    w.must(cell, not both.refused(again, *sorted_by_key(w, "paper", "admin2")), "a recovery key does not count")


def _recovery_sets(w: Any, cell: str) -> None:
    """A set in which recovery keys stand for what only admins are: as the threshold, as everybody, as one and the same."""
    council = Council(w)
    paper, admin, admin2 = (council.key(name) for name in ("paper", "admin", "admin2"))
    two = council.named(("admin", "admin2"), 3, ("paper",))
    sets = (
        (two, "a threshold counts recovery keys"), (council.named((), 1, ("paper",)), "nobody administers"),
        (council.named(("admin", "admin2"), 1, ("admin",)), "one key is both"),
        (SetAdmins(tuple(sorted((admin, admin2, b"\x02" + paper))), 1), "a key of another kind"),
        (SetAdmins(tuple(sorted((admin, RECOVERY + paper + b"x"))), 1), "a key too long"),
        (council.named(("admin",), 1, ("paper", "paper")), "one recovery key twice"),
    )  # fmt: skip
    for action, what in sets:
        by = w.source.choice(("admin", "paper"))
        w.must(cell, council.refused(action, by), f"taken: {what}")
    w.must(cell, not council.refused(council.named(("admin", "admin2"), 2, ("paper",)), "admin"), "a good set")


# --- keys that a principal makes --------------------------------------------------------------------------------------


def _below(w: Any, name: str, upper: tuple[Signed, ...], by: str) -> tuple[Signed, ...]:
    """The chain of a key that `by` made for itself."""
    grant = Grant(
        w.signer(name).public_key, "person", name, ("deployer",), ("shop",), ("prod",), w.wall_ms + DAY_MS, b"k" * 16,
        parent=digest(upper[-1].payload),
    )  # fmt: skip
    return (*upper, sign(w.signer(by), GRANT_DOMAIN, w.mesh, grant))


def _desk(w: Any, **limits: int) -> RecordStore:
    """A store of its own, at whose API papers are filed."""
    store: RecordStore = w.store()
    for name, chain in w.chains.items():
        store.offer(w.carry("n1", *grant_record(w.signer(name).public_key, chain)), w.wall_ms)
    store.limits = RecordLimits(**limits)
    return store


def _filed(w: Any, store: RecordStore, key: str, body: bytes) -> bool:
    """Whether the API files a paper: the quota is asked first, then the record is offered."""
    if store.quota_problem(key, body) is not None:
        return False
    return store.offer(w.carry("n1", key, body), w.wall_ms + 60_000).outcome is OfferOutcome.MERGED


def _family(w: Any, cell: str) -> None:
    """A principal files papers by as many keys as it makes, one below the other; another's still find room."""
    store = _desk(w, principal_papers_max=3)
    bot = _below(w, "bot", w.chains["author"], "author")
    deeper = _below(w, "bot2", bot, "bot")
    for name, chain in (("bot", bot), ("bot2", deeper)):
        w.must(cell, _filed(w, store, *grant_record(w.signer(name).public_key, chain)), f"no grant of {name}")
    kinds = [w.source.choice(("change", "evidence", "secret")) for _ in range(6)]
    by = w.source.choice((("author", "bot", "bot2"), ("bot2", "author", "bot"), ("bot", "bot2", "bot2")))
    order = (*by, w.source.choice(by), "author")
    answers = [_filed(w, store, *w.paper(kind, name)) for kind, name in zip(kinds, order, strict=False)]
    w.must(cell, answers == [True] * 3 + [False] * 2, f"three papers for all keys of a principal: {answers}")
    w.must(cell, _filed(w, store, *w.paper("change", "beside")), "another principal is charged")


def _payer(w: Any, cell: str) -> None:
    """What a key costs is counted for who was granted first, however long the chain; an invite's key is nobody."""
    bot = _below(w, "bot", w.chains["author"], "author")
    deeper = _below(w, "bot2", bot, "bot")
    admins = (w.signer("admin").public_key,)
    for name, chain in (("author", w.chains["author"]), ("bot", bot), ("bot2", deeper)):
        rights = grants.rights_of(w.keys, w.mesh, admins, w.signer(name).public_key, chain=chain, at_ms=w.wall_ms)
        w.must(cell, isinstance(rights, Rights), f"{name} has no rights: {rights}")
        assert isinstance(rights, Rights)
        w.must(cell, grants.payer_of(rights) == w.signer("author").public_key, f"{name} pays for itself")


def _delegations(w: Any, cell: str) -> None:
    """A principal makes keys and takes grants back without end, from whichever of its keys; an admin's are not its."""
    store = _desk(w, delegations_max=3)
    first = [_below(w, name, w.chains["author"], "author") for name in ("a", "b")]
    answers = [_filed(w, store, *grant_record(w.signer(n).public_key, c)) for n, c in zip("ab", first, strict=True)]
    deep = _below(w, "c", first[0], "a")
    answers.append(_filed(w, store, *grant_record(w.signer("c").public_key, deep)))
    more = _below(w, "d", *w.source.choice(((first[1], "b"), (deep, "c"), (w.chains["author"], "author"))))
    answers.append(_filed(w, store, *grant_record(w.signer("d").public_key, more)))
    said = Revocation("grant", digest(first[0][-1].payload), 0, 0, "", w.wall_ms)
    mine = revocation_record(said, sign_revocation(w.signer("author"), w.mesh, said, first[0]))
    answers.append(_filed(w, store, *mine))
    w.must(cell, answers == [True] * 3 + [False] * 2, f"three grants for all keys of a principal: {answers}")
    other = _below(w, "e", w.chains["beside"], "beside")
    w.must(cell, _filed(w, store, *grant_record(w.signer("e").public_key, other)), "another principal is charged")
    by_admin = revocation_record(said, sign_revocation(w.signer("admin"), w.mesh, said))
    w.must(cell, _filed(w, store, *by_admin), "an admin finds no room to take away")
    _given_back(w, cell)


def _given_back(w: Any, cell: str) -> None:
    """What a principal's share held is free again when it goes."""
    store = _desk(w, delegations_max=1)
    key, body = grant_record(w.signer("a").public_key, _below(w, "a", w.chains["author"], "author"))
    w.must(cell, _filed(w, store, key, body), "a first grant found no room")
    store.remove(store.entries[key])
    left = store.quotas.held(Payer("delegations", w.signer("author").public_key.hex()))
    w.must(cell, left == (0, 0), f"a grant that is gone is still paid for: {left}")


def _joiners(w: Any, cell: str) -> None:
    """Who joined by an invite pays for its keys; the invite, whose uses an admin chose, pays for nobody."""
    grant = Grant(
        w.signer("invite").public_key, "person", "invite", ("deployer",), ("shop",), ("prod",), w.wall_ms + DAY_MS,
        b"i" * 16, invite_uses=5,
    )  # fmt: skip
    invite = (sign(w.signer("admin"), GRANT_DOMAIN, w.mesh, grant),)
    admins = (w.signer("admin").public_key,)
    for name in ("joiner", "joiner2"):
        own, laptop = w.signer(name).public_key, f"laptop of {name}"
        joined = _below(w, name, invite, "invite")
        chain = _below(w, laptop, joined, name)
        _, body = grant_record(own, joined)
        w.must(
            cell, vars(quotas)["delegator_of"]("grant", body) == b"", f"somebody pays for what {name} was invited to"
        )
        _, body = grant_record(w.signer(laptop).public_key, chain)
        w.must(
            cell, vars(quotas)["delegator_of"]("grant", body) == own, f"{name} does not pay for the laptop of {name}"
        )
        rights = grants.rights_of(w.keys, w.mesh, admins, w.signer(laptop).public_key, chain=chain, at_ms=w.wall_ms)
        pays = isinstance(rights, Rights) and grants.payer_of(rights) == own
        w.must(cell, pays, f"{name} does not pay for what the laptop of {name} costs")


KEY_CELLS: dict[str, Callable[[Any, str], None]] = {
    "recovery-decides": _recovery_decides,
    "recovery-vouches": _recovery_vouches,
    "recovery-names": _recovery_names,
    "recovery-sets": _recovery_sets,
    "family-hoard": _family,
    "payer": _payer,
    "delegations": _delegations,
    "joiners": _joiners,
}
"""By name; a run tries each at least once."""
