"""Operations on a lane's data: what this node holds of it, moving it, handing out copies and taking them in, freezing.

Not here: moving (node/serving/data_moves.py), all else that is done (data_custody.py), and the app's reading and writing.
"""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from node.api.operations import Call, Operation, Parameter, Upload
from node.api.problems import ProblemError, not_found, problem_of, refused
from node.control import Control
from node.errors import NotDoneError
from node.serving.data_backups import BackupState
from node.serving.data_moves import MoveError, MoveProgress
from node.store.data_folders import MoveTicket
from node.store.data_staging import SIZE_MAX_BYTES
from protocols.api_data import (
    DataView,
    ExportView,
    ImportBody,
    ImportView,
    MandateBody,
    MoveBody,
    MoveView,
    StandbyView,
    StoredFileView,
)
from protocols.envelope import digest, encode
from protocols.refusal import Refusal
from runtime.services import freeze

FILES_SHOWN_MAX = 1_000
LISTING_MAX_BYTES = 32 << 20
_NAME = {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"}
_RANDOM = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 99_999}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_LANE = (Parameter("project", _NAME, "the project", "path"), Parameter("environment", _NAME, "the environment", "path"))


_EXPORT = Parameter("export", _RANDOM, "the copy", "path")
_IMPORT = Parameter("import", _RANDOM, "the import", "path")


async def show_data(call: Call) -> DataView:
    """Say what this node holds of a lane's data, and how its newest move goes."""
    control: Control = call.node
    lane = call.path["project"], call.path["environment"]
    decided = control.core.state.lane(*lane)
    if decided is None:
        raise not_found("lane", f"{lane[0]} in {lane[1]}")
    stores = control.data.place.stores(lane)
    files = await asyncio.to_thread(_files, stores)
    standby = control.standby.states.get(lane)
    backup = control.backups.states.get(lane, BackupState())
    return DataView(
        project=lane[0],
        environment=lane[1],
        node=decided.data_node,
        here=control.core.node,
        files=files,
        frozen=freeze.note_of(stores) is not None or not freeze.leased(stores),
        kept_ms=control.data.place.kept(lane),
        move=_view(control.data.moves.get(lane)),
        backup_ms=backup.at_ms,
        backup_problem=backup.problem,
        standby=StandbyView(standby.node, standby.at_ms, standby.problem) if standby is not None else None,
        copy_ms=control.standby.copy_ms(lane),
    )


async def move_data(call: Call) -> MoveView:
    """Begin a move; ask for the lane's data to see how it goes."""
    control: Control = call.node
    body: MoveBody = call.body
    ticket = MoveTicket(body.switch, body.abort, body.material)
    try:
        move = control.data.check(ticket)
        if move.lane != (call.path["project"], call.path["environment"]):
            raise MoveError("data.ticket", "the commands are for another project or environment")
        control.data.begin(ticket)
    except MoveError as error:
        raise refused(Refusal(error.rule, error.detail), "freehold data move PROJECT --to NODE") from None
    view = _view(control.data.moves[move.lane])
    assert view is not None
    return view


async def export_data(call: Call) -> ExportView:
    """Make a copy of a lane's data, to be fetched file by file by whoever asked. An admin signs the mandate."""
    control: Control = call.node
    body: MandateBody = call.body
    lane = _lane(call)
    with _failing():
        control.custody.check(body.mandate, "export", lane)
        at_ms = control.clock().wall_ms
        name, export = await control.custody.export(lane, call.principal)
    return ExportView(name, at_ms, export.files)


async def exported_file(call: Call) -> web.StreamResponse:
    """Hand out one file of a copy, by its number in the copy's list."""
    control: Control = call.node
    path = control.custody.exported(_lane(call), call.principal, call.path["export"], int(call.path["number"]))
    if path is None:
        raise not_found("export", call.path["export"], "make it again: freehold data export")
    return web.FileResponse(path)


async def drop_export(call: Call) -> None:
    """Throw a copy away, after it was fetched."""
    control: Control = call.node
    await control.custody.drop_export(_lane(call), call.principal, call.path["export"])


async def begin_import(call: Call) -> ImportView:
    """Begin to take in a lane's data; nothing of what is there is touched before all came."""
    control: Control = call.node
    body: ImportBody = call.body
    with _failing():
        mandate = control.custody.check(body.mandate, "import", _lane(call), bytes(digest(encode(body.files))))
        return ImportView(await control.custody.begin_import(mandate, body.files))


async def put_imported(call: Call) -> None:
    """Take one file of an import, by its digest."""
    control: Control = call.node
    upload: Upload = call.body
    with _failing():
        await control.custody.take(_lane(call), call.path["import"], upload.digest.hex(), upload.pieces)


async def install_import(call: Call) -> None:
    """Put an import into its place, whole or not at all; what was there is put aside, unwritable, for a week."""
    control: Control = call.node
    with _failing():
        await control.custody.install(_lane(call), call.path["import"])


async def freeze_data(call: Call) -> None:
    """Hold a lane's data still: writers wait, and are told to come again, until it is thawed."""
    control: Control = call.node
    body: MandateBody = call.body
    with _failing():
        control.custody.check(body.mandate, "freeze", _lane(call))
        await control.custody.freeze(_lane(call))


async def thaw_data(call: Call) -> None:
    """Let frozen data be written again."""
    control: Control = call.node
    body: MandateBody = call.body
    with _failing():
        control.custody.check(body.mandate, "thaw", _lane(call))
        await control.custody.thaw(_lane(call))


async def set_standby(call: Call) -> None:
    """Ship a lane's data to the node that the mandate names, from now on, or to nobody."""
    control: Control = call.node
    body: MandateBody = call.body
    with _failing():
        mandate = control.custody.check(body.mandate, "standby", _lane(call))
        await control.standby.plan(_lane(call), mandate, body.mandate)


@contextmanager
def _failing() -> Iterator[None]:
    """Turn what went wrong into a problem; nothing of the lane's data was changed then."""
    try:
        yield
    except NotDoneError as error:
        if error.refusal.rule == "data.no-room":
            raise _full(str(error)) from None
        raise problem_of(error) from None
    except (OSError, sqlite3.Error) as error:
        if getattr(error, "errno", 0) in {errno.ENOSPC, errno.EDQUOT} or "disk is full" in str(error):
            raise _full("the node's disk became full; nothing was changed") from error
        why = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"[:200]
        raise ProblemError(503, "data.failed", "the data cannot be read or written", why, "freehold doctor") from error


def _full(detail: str) -> ProblemError:
    return ProblemError(507, "data.no-room", "there is no room", detail, "free some space on the node's disk")


def _lane(call: Call) -> tuple[str, str]:
    return call.path["project"], call.path["environment"]


def _view(progress: MoveProgress | None) -> MoveView | None:
    if progress is None:
        return None
    return MoveView(progress.phase, progress.done_bytes, progress.total_bytes, progress.rule, progress.detail)


def _files(stores: Path) -> tuple[StoredFileView, ...]:
    paths = [path for path in sorted(stores.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return tuple(StoredFileView(str(path.relative_to(stores)), path.stat().st_size) for path in paths[:FILES_SHOWN_MAX])


DATA_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "data", "GET", "/v1/data/{project}/{environment}", "A lane's data on this node", show_data,
        answer=DataView, parameters=_LANE,
    ),
    Operation(
        "move_data", "POST", "/v1/data/{project}/{environment}/move", "Move a lane's data to another node", move_data,
        "write", MoveBody, answer=MoveView, parameters=_LANE,
    ),
    Operation(
        "export_data", "POST", "/v1/data/{project}/{environment}/exports", "Make a copy of a lane's data", export_data,
        "write", MandateBody, answer=ExportView, parameters=_LANE,
    ),
    Operation(
        "exported_file", "GET", "/v1/data/{project}/{environment}/exports/{export}/{number}", "A file of a copy",
        exported_file, answer=bytes, parameters=(*_LANE, _EXPORT, Parameter("number", _NUMBER, "which file", "path")),
    ),
    Operation(
        "drop_export", "DELETE", "/v1/data/{project}/{environment}/exports/{export}", "Throw a copy away", drop_export,
        "write", status=204, parameters=(*_LANE, _EXPORT),
    ),
    Operation(
        "begin_import", "POST", "/v1/data/{project}/{environment}/imports", "Begin to take in a lane's data",
        begin_import, "write", ImportBody, body_max_bytes=LISTING_MAX_BYTES, answer=ImportView, parameters=_LANE,
    ),
    Operation(
        "put_imported", "PUT", "/v1/data/{project}/{environment}/imports/{import}/files/{digest}",
        "Take one file of an import", put_imported, "write", bytes, body_max_bytes=SIZE_MAX_BYTES, status=204,
        parameters=(*_LANE, _IMPORT, Parameter("digest", _DIGEST, "the SHA-256 of its bytes", "path")),
    ),
    Operation(
        "install_import", "POST", "/v1/data/{project}/{environment}/imports/{import}/install",
        "Put an import into its place", install_import, "write", status=204, parameters=(*_LANE, _IMPORT),
    ),
    Operation(
        "freeze_data", "POST", "/v1/data/{project}/{environment}/freeze", "Hold a lane's data still", freeze_data,
        "write", MandateBody, status=204, parameters=_LANE,
    ),
    Operation(
        "set_standby", "POST", "/v1/data/{project}/{environment}/standby", "Ship a lane's data to another node",
        set_standby, "write", MandateBody, status=204, parameters=_LANE,
    ),
    Operation(
        "thaw_data", "POST", "/v1/data/{project}/{environment}/thaw", "Let frozen data be written again", thaw_data,
        "write", MandateBody, status=204, parameters=_LANE,
    ),
)  # fmt: skip
