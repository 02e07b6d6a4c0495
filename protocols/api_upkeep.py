"""Bodies and views of the API on keeping a mesh: resets, drains, leaving, addresses, upgrades of the daemons.

Not here: what is done with them (node/decisions, node/membership, node/upgrade).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocols.api_models import Blob, Hex64, Int64, Paper, Papers


class ResetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reset that as many admins signed as the mesh asks for (encoded ResetTo)."""

    entry: Blob


DRAIN_MAX_MS = 30 * 86_400_000
"""A longer one is no maintenance: `drain` without an end."""


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A drain of a node and the undrain that ends it at `until_ms` (wall), as an admin signed them (encoded SignedCommand)."""

    drain: Papers
    undrain: Papers
    until_ms: Int64
    material: Annotated[tuple[Papers, ...], msgspec.Meta(max_length=32)] = ()


class AcknowledgementBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An encoded acknowledgements.Acknowledgement as an admin signed it (envelope.Signed)."""

    paper: Paper


class AcknowledgementView(msgspec.Struct, frozen=True):
    """How often the mesh was reset, into which era, and who looked into the newest reset: `by` is a key in hex."""

    resets: int
    era: Hex64
    by: str = ""
    name: str = ""
    at_ms: int = 0
    note: str = ""


class LeaveBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a node leaves, for the record."""

    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""


class AddressesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a member is, "HOST:PORT" each; the asked node dials it there until the member says itself where it is."""

    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=8)]


class UpgradeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An encoded upgrades.UpgradePaper as admins signed it (cosigning.Cosigned; one signature alone is envelope.Signed)."""

    paper: Paper


class UpgradeNodeView(msgspec.Struct, frozen=True):
    """One node in an upgrade. `state`: runs, waits, at work, on trial, done, went back (`why` says why) or unknown."""

    node: str
    name: str
    version: str
    voter: bool
    state: str
    why: str


class UpgradeView(msgspec.Struct, frozen=True):
    """How the newest upgrade goes. `phase`: none, running, paused, failed, aborted or done.

    `order` is the digest of the admin's paper, `conductor` the node that has the others take it up, `why` what ended it, and
    `waits_for` why the next node does not begin yet, where the asked node conducts.
    """

    phase: str
    version: str
    order: str
    conductor: str
    why: str
    waits_for: str
    nodes: tuple[UpgradeNodeView, ...]
