"""Which reset of the mesh an admin has looked into, as this node heard it: kept durably, and passed on in its status record.

Not here: the paper (protocols/trust/acknowledgements.py) and the warning that it ends (concerns.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.errors import NotDoneError, NotNowError
from node.keys import write_private
from node.mesh.presence import acknowledgement_of
from protocols.chain.messages import EntryStored, EraChanged
from protocols.core import NodeCore
from protocols.envelope import DecodeError, Signed, decode, encode
from protocols.records.gossip import RecordsMerged
from protocols.refusal import Refusal
from protocols.state.commands import admin_keys
from protocols.trust.acknowledgements import (
    PAPER_MAX_BYTES,
    Acknowledgement,
    acknowledgement_problem,
    read_acknowledgement,
)

FILE_NAME = "acknowledged"
NEXT = "freehold mesh acknowledge"

_log = logging.getLogger("freehold.control")


class Acknowledged:
    """The newest acknowledgement that this node knows."""

    def __init__(self, core: NodeCore, folder: Path, announce: Callable[[], None]) -> None:
        """Take what is read, the data folder, and what tells the others anew what this node says of itself."""
        self._core, self._path, self._announce = core, folder / FILE_NAME, announce
        self.signed = self._read()
        self._said = self._opened(self.signed) if self.signed is not None else None

    @property
    def newest(self) -> tuple[bytes, Acknowledgement] | None:
        """Who acknowledged the newest reset (a key) and in which words; None while nobody did."""
        state, said = self._core.state, self._said
        if self.signed is None or said is None or (said.resets, said.era) != (state.resets, state.era):
            return None
        return self.signed.key, said

    @property
    def open(self) -> bool:
        """Whether a reset waits for somebody to look into it."""
        return bool(self._core.state.resets) and self.newest is None

    def take(self, signed: Signed) -> None:
        """Keep an admin's paper, durably, and pass it on. Raises NotDoneError, or NotNowError if the disk fails."""
        state, said = self._core.state, self._opened(signed)
        problem = Refusal("acknowledgement.signature", "its signature does not verify, or it cannot be read")
        if said is not None:
            admins = admin_keys(state.admins)
            refusal = acknowledgement_problem(said, signed.key, admins=admins, resets=state.resets, era=state.era)
            if refusal is None:
                self._keep(signed, said)
                return
            problem = refusal
        raise NotDoneError(problem, NEXT)

    def hear(self, event: Any) -> None:
        """Take one of the core's notices: another node may have passed one on, or it may count only now."""
        match event:
            case RecordsMerged(entries) if any(entry.parsed.rule.prefix == "status" for entry in entries):
                self._look()
            case EntryStored() | EraChanged():
                self._look()
            case _:
                pass

    def _look(self) -> None:
        """Take over what a member passes on, if a reset is open."""
        if not self.open:
            return
        for node in self._core.state.nodes:
            passed = acknowledgement_of(self._core.records, node.node)
            if passed is None:
                continue
            try:
                self.take(passed)
            except NotDoneError:
                continue  # of an older reset, or no admin's: nobody's word but an admin's counts
            return

    def _keep(self, signed: Signed, said: Acknowledgement) -> None:
        try:
            write_private(self._path, encode(signed))
        except OSError as error:
            refusal = Refusal("node.disk", f"it cannot be kept: {error.strerror}")
            raise NotNowError(refusal, "freehold doctor") from error
        self.signed, self._said = signed, said
        self._announce()

    def _opened(self, signed: Signed) -> Acknowledgement | None:
        trust = self._core.trust
        try:
            return read_acknowledgement(trust.verifier, trust.mesh, signed)
        except DecodeError:
            return None

    def _read(self) -> Signed | None:
        try:
            with self._path.open("rb") as file:
                signed: Signed = decode(file.read(PAPER_MAX_BYTES + 1), Signed, PAPER_MAX_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, DecodeError) as error:  # the warning comes back, and can be acknowledged again
            _log.error("%s: %s", self._path, error, extra={"event": "acknowledged.lost"})
            return None
        return signed
