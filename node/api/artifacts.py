"""Operations on artifacts: bytes under their digest are put, handed out, looked for. Not here: their store (node/store)."""

from __future__ import annotations

from aiohttp import web

from node.api.callers.objects import of_artifact
from node.api.callers.scope import covered
from node.api.operations import Call, Operation, Parameter, Upload
from node.api.problems import ProblemError, not_found
from node.control import Control
from node.store.artifacts import ArtifactError, OtherBytesError
from protocols.api_models import RecordView
from protocols.artifacts import ARTIFACT_MAX_BYTES

_DIGEST = Parameter("digest", {"type": "string", "pattern": "^[0-9a-f]{64}$"}, "the digest", "path")


async def put_artifact(call: Call) -> None:
    """Keep an artifact under its digest."""
    control: Control = call.node
    upload: Upload = call.body
    try:
        await control.artifacts.receive(upload.digest, upload.pieces)
    except OtherBytesError:
        raise ProblemError(
            422,
            "artifact.other-bytes",
            "other bytes",
            "the body's SHA-256 is not the digest in the path",
            "send it again",
        ) from None
    except ArtifactError as error:
        raise ProblemError(507, "artifact.full", "cannot be stored", str(error), "freehold doctor") from None
    control.belongings.uploaded(call.principal, upload.digest)


async def get_artifact(call: Call) -> web.StreamResponse:
    """Hand out an artifact."""
    control: Control = call.node
    named = _artifact(call)
    return web.FileResponse(control.artifacts.path(named))


async def has_artifact(call: Call) -> RecordView:
    """Say whether an artifact is here, without its bytes."""
    return RecordView(_artifact(call).hex())


def _artifact(call: Call) -> bytes:
    """The digest of an artifact that is here and that the caller's grants cover."""
    named = bytes.fromhex(call.path["digest"])
    if not call.node.artifacts.has(named) or not covered(call.scope, of_artifact(call.node, named)):
        raise not_found("artifact", call.path["digest"])
    return named


ARTIFACT_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "put_artifact", "PUT", "/v1/artifacts/{digest}", "Keep an artifact", put_artifact, "write", bytes,
        body_max_bytes=ARTIFACT_MAX_BYTES, status=204, parameters=(_DIGEST,), bearer=True,
    ),
    Operation(
        "get_artifact", "GET", "/v1/artifacts/{digest}", "An artifact's bytes", get_artifact, answer=bytes,
        parameters=(_DIGEST,),
    ),
    Operation(
        "has_artifact", "GET", "/v1/artifacts/{digest}/here", "Is an artifact here?", has_artifact,
        answer=RecordView, parameters=(_DIGEST,),
    ),
)  # fmt: skip
