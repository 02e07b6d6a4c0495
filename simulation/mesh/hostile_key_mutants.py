"""Named ways to break what a recovery key may do and who pays for keys; the hostile member must notice each.

Not here: the other mutants of trust (hostile_mutants.py), and the cells that notice these (hostile_keys.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from protocols.chain.decision import Admins
from protocols.envelope import DecodeError, Signed, decode
from protocols.records import credentials, quotas
from protocols.records.papers import PaperCourt
from protocols.records.quotas import Quotas
from protocols.refusal import Refusal
from protocols.state import apply, governance
from protocols.state.apply import MeshMachine
from protocols.state.commands import RECOVERY, SetAdmins, admin_keys, recovery_keys
from protocols.state.exhibits import Case
from protocols.trust import grants
from protocols.trust.grants import Grant
from protocols.trust.store import TrustStore
from simulation.chain.mutants import Mutant, Patch


def _sets(owner: Any, name: str, value: Any) -> Callable[[], Sequence[Patch]]:
    return lambda: [(owner, name, value)]


def _all(admins: Sequence[bytes]) -> tuple[bytes, ...]:
    """Admins and recovery keys as if they were the same."""
    return (*admin_keys(admins), *recovery_keys(admins))


def _counts_everywhere() -> Sequence[Patch]:
    """A recovery key's signature counts towards the threshold of every command."""
    threshold = Case.admin_threshold

    def lenient(self: Case, asked: int, keys: Any = None) -> Any:
        return threshold(self, asked, _all(self.admins) if keys is None else keys)

    return [(Case, "admin_threshold", lenient)]


def _signs_alone() -> Sequence[Patch]:
    """A command is opened with the recovery keys among the admins."""
    opened = vars(apply)["open_case"]
    return [(apply, "open_case", lambda *rest: opened(*rest[:-1], (*rest[-1], *recovery_keys(rest[-1]))))]


def _outlives() -> Sequence[Patch]:
    """A new set of admins keeps the recovery keys of the old one."""
    decide = governance._set_admins

    def keeps(state: Any, action: Any) -> Any:
        after = decide(state, action)
        if isinstance(after, Refusal):
            return after
        left = {RECOVERY + key for key in recovery_keys(state.admins)}
        return msgspec.structs.replace(after, admins=tuple(sorted({*after.admins, *left})))

    return [(governance, "_set_admins", keeps)]


def _takes(which: Callable[[SetAdmins], bool]) -> Callable[[], Sequence[Patch]]:
    """Sets of admins of this kind are taken as they are."""

    def patches() -> Sequence[Patch]:
        decide = governance._set_admins

        def lenient(state: Any, action: Any) -> Any:
            answer = decide(state, action)
            if isinstance(answer, Refusal) and answer.rule == "admins.malformed" and which(action):
                return msgspec.structs.replace(state, admins=action.admins, threshold=action.threshold)
            return answer

        return [(governance, "_set_admins", lenient)]

    return patches


def _twice(action: SetAdmins) -> bool:
    return len(set(action.admins)) < len(action.admins)


def _both(action: SetAdmins) -> bool:
    return not set(admin_keys(action.admins)).isdisjoint(recovery_keys(action.admins))


def _odd(action: SetAdmins) -> bool:
    return len(_all(action.admins)) < len(action.admins)


def _above(action: SetAdmins) -> bool:
    return len(admin_keys(action.admins)) < action.threshold <= len(action.admins)


def _one_suffices() -> Sequence[Patch]:
    """One recovery key names the next admins, whatever their threshold."""
    asked = governance._set_admins_refusal

    def lenient(state: Any, case: Any) -> Any:
        recovery = recovery_keys(state.admins)
        return None if any(key in recovery for key in case.signers) else asked(state, case)

    return [(governance, "_set_admins_refusal", lenient)]


def _useless() -> Sequence[Patch]:
    """A recovery key counts for nothing at all."""
    return [(governance, "_set_admins_refusal", lambda state, case: case.admin_threshold(state.threshold))]


def _former_signs() -> Sequence[Patch]:
    """A recovery key that was taken out still names admins: whoever signed is looked for in no set."""
    asked = governance._set_admins_refusal

    def lenient(state: Any, case: Any) -> Any:
        return None if case.signers and not recovery_keys(state.admins) else asked(state, case)

    return [(governance, "_set_admins_refusal", lenient)]


def _gives_grants() -> Sequence[Patch]:
    """A chain of grants may begin with a recovery key."""
    opened = grants._open_link
    return [(grants, "_open_link", lambda v, mesh, admins, *rest: opened(v, mesh, (*admins, *_all(admins)), *rest))]


def _is_admin() -> Sequence[Patch]:
    """Whoever has a recovery key has an admin's rights without a grant."""
    asked = grants.rights_of

    def lenient(v: Any, mesh: bytes, admins: Any, key: bytes, **rest: Any) -> Any:
        return asked(v, mesh, (*admins, *recovery_keys(admins)), key, **rest)

    return [(grants, "rights_of", lenient)]


def _believed_by_nodes() -> Sequence[Patch]:
    """Nodes take recovery keys for admins': for certificates and revocations."""
    decided = TrustStore.chain_decided
    return [
        (TrustStore, "chain_decided", lambda self, admins, *rest: decided(self, _all(admins), *rest)),
    ]


def _resets() -> Sequence[Patch]:
    """Recovery keys may reset the chain."""
    return [(MeshMachine, "admins", lambda self, state: Admins(_all(state.admins), state.threshold))]


def _last_key_pays() -> Sequence[Patch]:
    """Who pays for a grant is the key right above it."""

    def last(prefix: str, body: bytes) -> bytes:
        if not credentials.delegator_of(prefix, body):
            return b""
        if prefix != "grant":
            return credentials.delegator_of(prefix, body)
        links: tuple[Signed, ...] = decode(body, tuple[Signed, ...])
        above: Grant = decode(links[-2].payload, Grant)
        return above.key

    return [(quotas, "delegator_of", last)]


def _first_key_pays() -> Sequence[Patch]:
    """Who pays is the first key of the chain, an invite's too: all who joined by it share."""

    def first(prefix: str, body: bytes) -> bytes:
        try:
            links: tuple[Signed, ...] = decode(body, tuple[Signed, ...])
        except DecodeError:
            return credentials.delegator_of(prefix, body)
        first_of: Grant = decode(links[0].payload, Grant)
        return first_of.key if prefix == "grant" and links[1:] else b""

    return [(quotas, "delegator_of", first)]


def _revoking_is_free() -> Sequence[Patch]:
    def only_grants(prefix: str, body: bytes) -> bytes:
        return credentials.delegator_of(prefix, body) if prefix == "grant" else b""

    return [(quotas, "delegator_of", only_grants)]


def _never_refunded() -> Sequence[Patch]:
    refund = Quotas.refund

    def keeps(self: Quotas, entry: Any, paper: Any) -> None:
        refund(self, entry, paper)
        if by := vars(quotas)["delegator_of"](entry.parsed.rule.prefix, entry.record.body):
            self._count(quotas.Payer("delegations", by.hex()), entry, 1)

    return [(Quotas, "refund", keeps)]


def _admins_pay() -> Sequence[Patch]:
    """What an admin takes away is charged to whom it is taken from."""
    problem = Quotas.delegation_problem

    def charged(self: Quotas, prefix: str, body: bytes) -> Any:
        refusal = problem(self, prefix, body)
        full = [payer for payer in self._accounts if payer.budget == "delegations"]
        return refusal or (self._full(full[0], full, len(body)) if prefix == "revocation" and full else None)

    return [(Quotas, "delegation_problem", charged)]


def _mutant(name: str, says: str, patches: Callable[[], Sequence[Patch]]) -> Mutant:
    return Mutant(name, says, patches, hostile=True)


KEY_MUTANTS = (
    _mutant("recovery-counts", "a recovery key counts for every threshold", _counts_everywhere),
    _mutant("recovery-signs", "a command signed by a recovery key is an admin's", _signs_alone),
    _mutant("recovery-outlives", "recovery keys stay when a new set leaves them out", _outlives),
    _mutant("recovery-former", "one that was taken out still names admins", _former_signs),
    _mutant("recovery-one-suffices", "one names the next admins, whatever the threshold", _one_suffices),
    _mutant("recovery-useless", "it names no admins either", _useless),
    _mutant("recovery-above", "a threshold may count on recovery keys", _takes(_above)),
    _mutant("recovery-only", "a set may have no admin at all", _takes(lambda action: not admin_keys(action.admins))),
    _mutant("recovery-both", "one key is an admin's and for recovery", _takes(_both)),
    _mutant("recovery-twice", "a key stands twice in a set", _takes(_twice)),
    _mutant("recovery-odd", "a key of another kind stands in a set", _takes(_odd)),
    _mutant("recovery-early", "it is taken before its rules", _sets(governance, "RECOVERY_RULES", 1)),
    _mutant("recovery-gives", "a chain of grants may begin with it", _gives_grants),
    _mutant("recovery-admin", "it has an admin's rights without a grant", _is_admin),
    _mutant("recovery-believed", "nodes take it for an admin's", _believed_by_nodes),
    _mutant("recovery-resets", "it may reset the chain", _resets),
    _mutant(
        "each-key-pays", "a principal has a share for each of its keys", _sets(PaperCourt, "family", lambda *r: ())
    ),
    _mutant("payer-is-key", "a key pays for itself alone", _sets(grants, "payer_of", lambda rights: rights.key)),
    _mutant("delegations-free", "grants are nobody's share", _sets(Quotas, "delegation_problem", lambda *rest: None)),
    _mutant("delegations-last-key", "a key pays for the grants below it", _last_key_pays),
    _mutant("delegations-first-key", "all who joined by an invite share", _first_key_pays),
    _mutant("revoking-free", "a principal revokes without end", _revoking_is_free),
    _mutant("delegations-kept", "a grant that is gone is still paid for", _never_refunded),
    _mutant("delegations-admins", "an admin finds no room to take away", _admins_pay),
)
