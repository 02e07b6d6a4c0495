"""Operations on secrets: file a sealed version, take versions away, list what there is. A value never passes here.

What comes in is sealed and signed on the principal's machine; what goes out are names, versions and who can open them.
Not here: sealing (protocols/changes/secrets.py), and giving values to apps (node/serving/secrets.py).
"""

from __future__ import annotations

from node.api.callers.scope import covered, place_of
from node.api.operations import Call, Operation, Page, Parameter, page
from node.api.problems import ProblemError, refused, unreadable
from node.control import Control
from node.serving.secrets import HeldSecret
from protocols.api_models import SecretBody, SecretView
from protocols.changes.secrets import SealedSecret, SecretPaper, SecretRemoval, open_paper
from protocols.envelope import DecodeError, Signed, decode, digest, encode
from protocols.records.key_table import BODY_MAX_BYTES, make_key
from protocols.records.papers import Ended
from protocols.refusal import Refusal
from protocols.state.placement import eligible
from protocols.trust.grants import Rights

_OPTIONAL_NAME = {"type": "string", "pattern": "^[a-z0-9-]{0,63}$"}


async def list_secrets(call: Call) -> Page:
    """List versions of secrets, newest first within each name."""
    control: Control = call.node
    wanted = call.query.get("project", ""), call.query.get("environment", "")
    used = control.secrets.in_use()
    held_secrets = [
        version
        for version in control.secrets.versions()
        if (not wanted[0] or version.secret.project == wanted[0])
        and (not wanted[1] or version.secret.environment == wanted[1])
        and covered(call.scope, place_of(version.secret))
    ]
    cut = page(held_secrets, listed_at, call.query, ascending=True)
    return Page(tuple(_view(control, item, item.id in used) for item in cut.items), cut.cursor)


def listed_at(held: HeldSecret) -> str:
    """Return a text that sorts as versions are listed; it is hexadecimal, for a name may have what a cursor may not."""
    sealed_secret = held.secret
    return (
        f"{sealed_secret.project}\0{sealed_secret.environment}\0{sealed_secret.name}\0".encode().hex()
        + f"{~sealed_secret.version % 2**64:016x}{held.id.hex()}"
    )


async def file_secret(call: Call) -> None:
    """File a sealed version, or take versions away."""
    control: Control = call.node
    core = control.core
    try:
        signed: Signed = decode(call.body.paper, Signed, BODY_MAX_BYTES)
        paper: SecretPaper = open_paper(core.trust.verifier, core.trust.mesh, signed)
    except DecodeError as error:
        raise unreadable(str(error)) from None
    rights = core.dossiers.rights(signed.key, control.clock().wall_ms)
    if isinstance(rights, Refusal):
        raise refused(rights, "freehold token list")
    if not covered(call.scope, place_of(paper), writing=True) or not rights.allows(
        "secret", paper.project, paper.environment
    ):
        raise ProblemError(
            403, "secret.not-allowed", "this key may not",
            f"{rights.name} may not set secrets of {paper.project} in {paper.environment}", "freehold token list",
        )  # fmt: skip
    if core.state.lane(paper.project, paper.environment) is None:
        raise ProblemError(
            422, "secret.nowhere", "no such place", f"there is no {paper.project} in {paper.environment}",
            "freehold env list",
        )  # fmt: skip
    if isinstance(paper, SecretRemoval):
        await _remove(control, paper, signed)
    else:
        await _add(call, paper, encode(signed))


async def _add(call: Call, paper: SealedSecret, body: bytes) -> None:
    control: Control = call.node
    try:
        key = make_key("secret", paper.project, paper.environment, paper.name, digest(body).hex())
    except ValueError as error:
        raise unreadable(str(error)) from None
    await control.filing.file(key, body, payer=call.scope.payer)


async def _remove(control: Control, paper: SecretRemoval, signed: Signed) -> None:
    used = control.secrets.in_use()
    place = (paper.project, paper.environment, paper.name)
    mine = {
        held.id: held
        for held in control.secrets.versions()
        if (held.secret.project, held.secret.environment, held.secret.name) == place
    }
    if any(version in used for version in paper.versions):
        raise ProblemError(
            409, "secret.in-use", "the version is in use",
            f"a release that runs or is kept for rollback needs {paper.name}; deploy without it first",
            "freehold secret list",
        )  # fmt: skip
    ending = [mine[version] for version in paper.versions if version in mine]
    if any(held.signed.key != signed.key for held in ending):
        raise ProblemError(
            403, "secret.not-author", "somebody else set this version",
            f"only the key that set a version of {paper.name} removes it; a version that nothing uses also ends when its "
            "author's grant is revoked",
            "freehold secret list",
        )  # fmt: skip
    for held in ending:
        await control.filing.file(held.key, encode(Ended(encode(held.signed), signed)), tombstone=True)


def _view(control: Control, held: HeldSecret, in_use: bool) -> SecretView:
    core, secret = control.core, held.secret
    rights = core.dossiers.rights(held.signed.key, secret.created_ms)
    openers, able = control.secrets.openers(held), eligible(core.state, secret.environment)
    return SecretView(
        id=held.id.hex(),
        project=secret.project,
        environment=secret.environment,
        name=secret.name,
        version=secret.version,
        author=held.signed.key.hex(),
        author_name=rights.name if isinstance(rights, Rights) else "",
        created_ms=secret.created_ms,
        sealed_to=openers,
        lacking=tuple(node for node in able if node not in openers),
        exposed=tuple(node for node in openers if node not in able),
        in_use=in_use,
        problem=control.secrets.problem(held),
    )


SECRET_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "secrets", "GET", "/v1/secrets", "Versions of secrets, without their values", list_secrets,
        answer=tuple[SecretView, ...], paged=True,
        parameters=(
            Parameter("project", _OPTIONAL_NAME, "only this project"),
            Parameter("environment", _OPTIONAL_NAME, "only this environment"),
        ),
    ),
    Operation(
        "file_secret", "POST", "/v1/secrets", "File a sealed version, or take versions away", file_secret, "write",
        SecretBody, body_max_bytes=64 * 1024, status=204,
    ),
)  # fmt: skip
