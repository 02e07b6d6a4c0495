"""Operations on a lane's data: what this node holds of it, and moving it to another node.

Not here: moving (node/serving/data_moves.py), and the app's own reading and writing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from node.api.operations import Call, Operation, Parameter
from node.api.problems import not_found, refused
from node.control import Control
from node.serving.data_moves import MoveError, MoveProgress, MoveTicket
from protocols.api_models import DataView, MoveBody, MoveView, StoredFileView
from protocols.refusal import Refusal
from runtime.services import freeze

FILES_SHOWN_MAX = 1_000
_NAME = {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"}
_LANE = (Parameter("project", _NAME, "the project", "path"), Parameter("environment", _NAME, "the environment", "path"))


async def show_data(call: Call) -> DataView:
    """Say what this node holds of a lane's data, and how its newest move goes."""
    control: Control = call.node
    lane = call.path["project"], call.path["environment"]
    decided = control.core.state.lane(*lane)
    if decided is None:
        raise not_found("lane", f"{lane[0]} in {lane[1]}")
    stores = control.data.place.stores(lane)
    files = await asyncio.to_thread(_files, stores)
    return DataView(
        project=lane[0],
        environment=lane[1],
        node=decided.data_node,
        here=control.core.node,
        files=files,
        frozen=freeze.note_of(stores) is not None,
        kept_ms=control.data.place.kept(lane),
        move=_view(control.data.moves.get(lane)),
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


def _view(progress: MoveProgress | None) -> MoveView | None:
    if progress is None:
        return None
    return MoveView(progress.phase, progress.done_bytes, progress.total_bytes, progress.rule, progress.detail)


def _files(stores: Path) -> tuple[StoredFileView, ...]:
    found = [path for path in sorted(stores.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return tuple(StoredFileView(str(path.relative_to(stores)), path.stat().st_size) for path in found[:FILES_SHOWN_MAX])


DATA_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "data", "GET", "/v1/data/{project}/{environment}", "A lane's data on this node", show_data,
        answer=DataView, parameters=_LANE,
    ),
    Operation(
        "move_data", "POST", "/v1/data/{project}/{environment}/move", "Move a lane's data to another node", move_data,
        "write", MoveBody, answer=MoveView, parameters=_LANE,
    ),
)  # fmt: skip
