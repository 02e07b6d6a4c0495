"""Bodies and views of the API on an app's data: moves, copies, imports. Not here: what is done with them (node/serving)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocols.api_models import INT64_MAX, Blob


class MoveBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Leave to move data: two commands of one sequence (encoded SignedCommands), and the material behind their exhibits."""

    switch: Blob
    abort: Blob
    material: Annotated[tuple[Blob, ...], msgspec.Meta(max_length=256)] = ()


class MoveView(msgspec.Struct, frozen=True):
    """How far a move is: `phase` is copying, freezing, comparing, switching, done or failed (then `rule` says why)."""

    phase: str
    done_bytes: int
    total_bytes: int
    rule: str
    detail: str


class StoredFileView(msgspec.Struct, frozen=True):
    """One file of a lane's data."""

    name: str
    size_bytes: int


class StandbyView(msgspec.Struct, frozen=True):
    """Where a lane's data is shipped: `at_ms` is the moment (wall) of the newest whole copy there (0: none)."""

    node: str
    at_ms: int
    problem: str


class DataView(msgspec.Struct, frozen=True):
    """A lane's data as one node holds it. `node` should hold it, as the chain says; `here` is the answering node.

    `kept_ms` are the moments (wall) at which older copies were put aside here, `backup_ms` that of the newest backup (0:
    none), `backup_problem` why the last one failed. `standby` is where the holder ships it; `copy_ms` the moment (the
    holder's clock) of the second copy that the answering node has as a standby (0: none).
    """

    project: str
    environment: str
    node: str
    here: str
    files: tuple[StoredFileView, ...]
    frozen: bool
    kept_ms: tuple[int, ...]
    move: MoveView | None
    backup_ms: int = 0
    backup_problem: str = ""
    standby: StandbyView | None = None
    copy_ms: int = 0


class MandateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What admins signed to have this node do something with a lane's data (encoded DataMandate, in cosigning.Cosigned)."""

    mandate: Blob


class ListedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a lane's data outside its node: its name, size in bytes, SHA-256 in hex."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class DataManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an export is of: `node` held it at `at_ms` (wall); `files` are all that lie beside this file."""

    format: Literal[1]
    project: str
    environment: str
    node: str
    at_ms: int
    files: tuple[ListedFile, ...]


class ExportView(msgspec.Struct, frozen=True):
    """A copy of a lane's data, to be fetched file by file by its number in this list; thrown away when idle for 15 min."""

    export: str
    at_ms: int
    files: tuple[ListedFile, ...]


class ImportBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An admin's mandate to import these files, whose SHA-256 (of the list, encoded) stands in it."""

    mandate: Blob
    files: Annotated[tuple[ListedFile, ...], msgspec.Meta(max_length=100_000)]


class ImportView(msgspec.Struct, frozen=True):
    """An import that waits for its files; thrown away when nothing came for 15 min."""

    name: str
