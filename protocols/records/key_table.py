"""The key table: which records exist, who may write them, and how two versions of one are reconciled.

The table below is the whole rule book; records.py only applies it. A key is `/kind/scope/.../id`. Not here: what a body
must contain (the owner of the kind passes a check to records.py), and who a principal is: what a principal says is
signed by the principal inside the body.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal

from protocols.keys import public_key_of
from protocols.machine import PeerId
from protocols.refusal import Refusal

DAY_MS = 86_400_000
KEY_CHARACTERS_MAX = 256
BODY_MAX_BYTES = 16 * 1024
"""Larger content is an artifact, and the record holds its digest."""

TOMBSTONE_MAX_BYTES = BODY_MAX_BYTES + 4 * 1024
"""The body of a tombstone holds the paper that it ends and the author's statement."""

PAPER_MS = 90 * DAY_MS
"""How long a paper that nothing pins is kept: as long as the longest approval holds."""

RecordKind = Literal["immutable", "owned", "ephemeral"]
"""`immutable`: the key ends in the content's digest. `owned`: one writer, the highest sequence wins. `ephemeral`: as
owned, ordered by clock, with a lifetime, neither stored nor synced."""

Ends = Literal["never", "author", "owner"]
"""Who may take a record away before its life is over. `never`: nobody. `author`: whoever signed the paper inside the body,
by a signed statement inside the tombstone (papers.py); the node that carries it has no say. `owner`: the node named in
the key, which wrote it."""

Pin = Literal["", "change", "configuration", "version"]
"""By what a decision that counts names a paper: its change, the configuration it speaks of, its own digest."""

Writer = Literal["joined", "member", "owner"]
"""`joined`: any node with an unrevoked certificate. `member`: confirmed by the chain as well. `owner`: the node named
in the key, once joined."""


@dataclass(frozen=True, slots=True)
class KeyRule:
    """One row: `parts` names what follows the prefix; `node` is the owner, `digest` is 64 hex digits.

    `ttl_max_ms` 0 means that the record itself sets no end. `ends` says who may take it away. `pinned_by` names what
    keeps a paper while the base, a rollout or a retained release names it; otherwise a paper lives for `life_ms` (0:
    for ever) from the moment its author signed, and no longer than its author's rights are unrevoked. `urgent` records
    are taken however fast their author writes, and are merged even when the store is full. Lower `rank` is merged
    first, because the rest depends on it. `timeless` records are merged however far ahead their date is: what they say
    holds from when it is heard, and a wrong clock on the node that passed it on must not delay it.
    """

    prefix: str
    kind: RecordKind
    parts: tuple[str, ...]
    writer: Writer
    ttl_max_ms: int = 0
    ends: Ends = "never"
    pinned_by: Pin = ""
    life_ms: int = 0
    urgent: bool = False
    rank: int = 2
    timeless: bool = False


KEY_TABLE: tuple[KeyRule, ...] = (
    # Trust: each is signed by its issuer in the body, so any node may pass it on.
    KeyRule("certificate", "immutable", ("node", "digest"), "joined", urgent=True, rank=0),
    KeyRule("admission", "immutable", ("invite", "digest"), "joined", urgent=True, rank=0),
    KeyRule("revocation", "immutable", ("subject", "digest"), "joined", urgent=True, rank=1, timeless=True),
    KeyRule("grant", "immutable", ("key", "digest"), "joined", urgent=True, rank=1),
    # The change path: each is signed by a principal (evidence also by a node), who alone may end it.
    KeyRule("release", "immutable", ("project", "digest"), "member"),
    KeyRule("change", "immutable", ("project", "digest"), "member", ends="author", pinned_by="change", life_ms=PAPER_MS),
    KeyRule(
        "evidence", "immutable", ("subject", "digest"), "member", ends="author", pinned_by="configuration",
        life_ms=PAPER_MS,
    ),
    # An approval ends by a withdrawal, which the chain decides, or when it expires.
    KeyRule("approval", "immutable", ("change", "digest"), "member", pinned_by="change", life_ms=PAPER_MS),
    KeyRule(
        "secret", "immutable", ("project", "environment", "name", "digest"), "member", ends="author",
        pinned_by="version",
    ),
    KeyRule("resealed", "immutable", ("secret", "node", "digest"), "member"),
    KeyRule("decision", "immutable", ("era", "slot", "digest"), "member"),
    # What a node says about itself and its part of a rollout.
    KeyRule("status", "owned", ("node",), "owner", ends="owner"),
    KeyRule("address", "owned", ("node",), "owner", ends="owner"),
    KeyRule("floor", "owned", ("node",), "owner"),
    KeyRule("prepared", "owned", ("node", "change"), "owner", ttl_max_ms=30 * DAY_MS, ends="owner"),
    KeyRule("verdict", "owned", ("node", "rollout", "stage"), "owner", ttl_max_ms=30 * DAY_MS, ends="owner"),
    KeyRule("timeout", "owned", ("node", "rollout", "stage"), "owner", ttl_max_ms=30 * DAY_MS, ends="owner"),
    KeyRule("audit", "owned", ("node", "number"), "owner", ttl_max_ms=400 * DAY_MS),
    KeyRule("equivocation", "immutable", ("node", "digest"), "member"),
    # Certificates of names, each by the node that ordered it (sites.py); published under rules 4 and later.
    KeyRule("site", "owned", ("node", "certificate"), "owner", ends="owner"),
    # Of the moment.
    KeyRule("health", "ephemeral", ("node", "app"), "owner", ttl_max_ms=300_000),
    KeyRule("load", "ephemeral", ("node",), "owner", ttl_max_ms=300_000),
    KeyRule("challenge", "ephemeral", ("node", "token"), "owner", ttl_max_ms=3_600_000, urgent=True),
)  # fmt: skip

RULE_OF_PREFIX = {rule.prefix: rule for rule in KEY_TABLE}
_LETTERS = frozenset(string.ascii_letters + string.digits + "._~-*@:")
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A key that the table allows; `owner` is the node named in it, if its rule names one as owner."""

    rule: KeyRule
    parts: tuple[str, ...]
    owner: PeerId | None


def make_key(prefix: str, *parts: str) -> str:
    """Return the key of a row. Raises ValueError if the table has no such row or the parts do not fit."""
    key = "/".join(("", prefix, *parts))
    parsed = parse_key(key)
    if isinstance(parsed, Refusal):
        raise ValueError(parsed.detail)
    return key


def parse_key(key: str) -> ParsedKey | Refusal:
    """Return the rule and parts of a key, or why the table does not allow it."""
    if len(key) > KEY_CHARACTERS_MAX or not key.startswith("/"):
        return Refusal("records.key", f"a key starts with / and has at most {KEY_CHARACTERS_MAX} characters")
    prefix, *parts = key[1:].split("/")
    rule = RULE_OF_PREFIX.get(prefix)
    if rule is None:
        return Refusal("records.unknown-prefix", "the key table has no such prefix")
    if len(parts) != len(rule.parts) or not all(part and _LETTERS.issuperset(part) for part in parts):
        return Refusal("records.key", f"a {prefix} key has the parts /{'/'.join(rule.parts)}")
    owner: PeerId | None = None
    for name, part in zip(rule.parts, parts, strict=True):
        if name == "digest" and not (len(part) == 64 and _HEX.issuperset(part)):
            return Refusal("records.key", "a digest is 64 lower-case hex digits")
        if name == "node":
            owner = PeerId(part)
            try:
                public_key_of(owner)
            except ValueError as error:
                return Refusal("records.key", str(error))
    return ParsedKey(rule, tuple(parts), owner)
