"""What was signed when the node was founded and is told at its first start: the founder's grant, the node's labels.

Founding happens before anything runs, with the admin's key open on a terminal; the daemon has no such key. So the
signed papers wait in the folder's `pending` file, are published and submitted at the start, and the file goes when
both are durable. Telling twice is harmless: records are named by their content, commands by their id.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from node.errors import ConfigError, NotDoneError, NotNowError
from node.keys import write_private
from node.mesh.core_requests import ChainRequests, Filing
from protocols.envelope import DecodeError, decode, encode
from runtime.durable import sync_folder

PENDING_MAX_BYTES = 256 * 1024

_log = logging.getLogger("freehold.daemon")


class FoundingPaper(msgspec.Struct, frozen=True, array_like=True):
    """One record to publish: its key and body."""

    key: str
    body: bytes


class PendingPapers(msgspec.Struct, frozen=True):
    """Records to publish and encoded SignedCommands to submit, in order."""

    papers: tuple[FoundingPaper, ...] = ()
    commands: tuple[bytes, ...] = ()


def write_pending(folder: Path, pending: PendingPapers) -> None:
    """Leave papers for the first start."""
    write_private(folder / "pending", encode(pending))


def read_pending(folder: Path) -> PendingPapers:
    """Return what waits; nothing if there is no file. Raises ConfigError if it cannot be read."""
    path = folder / "pending"
    try:
        pending: PendingPapers = decode(path.read_bytes(), PendingPapers, PENDING_MAX_BYTES)
    except FileNotFoundError:
        return PendingPapers()
    except DecodeError as error:
        raise ConfigError(f"{path}: {error}", f"restore it from your backup, or remove {path}") from None
    return pending


def forget_pending(folder: Path) -> None:
    """Remove the file once everything in it is durable."""
    (folder / "pending").unlink(missing_ok=True)
    sync_folder(folder)


async def tell_pending(folder: Path, filing: Filing, requests: ChainRequests) -> None:
    """Publish and submit what was signed when this node was founded; what stays undecided is told again next time."""
    pending = read_pending(folder)
    told = True
    for paper in pending.papers:
        try:
            await filing.file(paper.key, paper.body)
        except NotDoneError as error:
            told = told and not isinstance(error, NotNowError)
            _log.warning("not filed: %s", error, extra={"event": "pending.refused", "rule": error.refusal.rule})
    for command in pending.commands:
        outcome = await requests.submit(command, ())
        told = told and outcome.outcome != "unknown"
        if outcome.outcome != "decided":
            detail = outcome.rule or outcome.outcome
            _log.warning("not decided: %s", outcome.detail, extra={"event": "pending.refused", "detail": detail})
    if told and (pending.papers or pending.commands):
        forget_pending(folder)
