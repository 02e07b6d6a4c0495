"""`freehold evidence show|export|verify`: the signed papers of a change, for people, for strangers, and checked offline.

An export is a folder that needs nothing of Freehold to be checked: DSSE envelopes, the same as Sigstore bundles, public
keys, and the bytes whose digests they name. Not here: making evidence (`freehold test`), judging it (the voters).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from cli.access import contexts
from cli.access.client import NodeClient, talk
from cli.change.evidence import mesh_of, one_spelling, payload_of, signer_pem, sigstore_bundle
from cli.change.propose import resolve_change
from cli.change.review import change_at
from cli.errors import CommandError, UsageError
from cli.frame import Group, command
from cli.text.foreign import foreign
from cli.text.output import Output
from cli.views.papers import papers_text, without_bytes
from protocols.api_models import ChangeView, PapersView
from protocols.changes.approvals import APPROVAL, Approval, ApprovalPredicate, read_approval
from protocols.changes.change import CHANGE_MAX_BYTES, RELEASE_MAX_BYTES, Change, Release
from protocols.changes.evidence import ENVELOPE_MAX_BYTES, Attested, open_envelope, parse_json, read_evidence
from protocols.envelope import DecodeError, decode, digest, encode
from protocols.keys import Ed25519Verifier
from protocols.refusal import Refusal
from runtime.durable import made_whole

Signable = TypeVar("Signable", Change, Release)
CHANGE_FILE, RELEASE_FILE, CONFIGURATION_FILE = "change.msgpack", "release.msgpack", "configuration.msgpack"
PAPERS_MAX = 256
README = """\
The papers of change {change}.

  {change_file}         the change; its SHA-256 is the change's id
  {release_file}        the release's manifest; its SHA-256 stands in the change
  {configuration_file}  the effective configuration; its SHA-256 stands in the change
  papers/*.dsse.json     in-toto statements in DSSE envelopes, each with one Ed25519 signature or a passkey's assertion
  papers/*.sigstore.json the same as Sigstore bundles, but for those of passkeys
  keys/*.pem             the public keys, named by their bytes in hex; a passkey's by the digest of its description

Whose keys these are is for you to know: compare them with those you were told. Check with
  freehold evidence verify FOLDER --change {change}
or with any verifier of DSSE, such as @sigstore/verify.
"""
_CONTEXT = click.option("--context", "context_name", help="The mesh, if not the current context.")


@command("show", examples=("freehold evidence show 3f9a12", "freehold evidence show 3f9a12 --json"))
@click.argument("change")
@_CONTEXT
def show(output: Output, change: str, context_name: str | None) -> None:
    """Show who attests what about a change, and what is still missing."""
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[ChangeView, PapersView]:
        view = await resolve_change(client, change)
        return view, await client.read(PapersView, f"/v1/changes/{view.id}/papers")

    view, papers = talk(context, conversation)
    envelopes = [evidence.envelope for evidence in papers.evidence]
    statements = [foreign(msgspec.json.decode(payload_of(data))) for data in envelopes]
    lines = [f"change {view.id[:12]} of {view.project} for {view.environment}", *papers_text(papers)]
    for statement in statements:
        predicate = statement["predicate"]
        run = predicate["freehold_run"]
        lines += ["", f"{run['kind']}, covers {run['covers']}, {predicate.get('result') or 'no result'}"]
        lines += [f"  + {name}" for name in predicate.get("passedTests", ())]
        lines += [f"  - {name}" for name in predicate.get("failedTests", ())]
        lines += [f"  {key} {value}" for key, value in sorted(run["tools"].items())]
        lines += [f"  | {line}" for line in run["log"].splitlines()[-20:]]
    output.result({"change": view.id, **without_bytes(papers), "statements": statements}, "\n".join(lines))


@command("export", examples=("freehold evidence export 3f9a12", "freehold evidence export 3f9a12 --to for-audit"))
@click.argument("change")
@click.option("--to", "target", type=click.Path(file_okay=False, path_type=Path), help="A new folder.")
@_CONTEXT
def export(output: Output, change: str, target: Path | None, context_name: str | None) -> None:
    """Write a change's papers into a folder that a stranger can check offline."""
    _, context = contexts.current_context(context_name)

    async def conversation(client: NodeClient) -> tuple[str, dict[str, bytes], tuple[bytes, ...]]:
        view = await resolve_change(client, change)
        wanted, signed = await change_at(client, view.id)
        papers = await client.read(PapersView, f"/v1/changes/{view.id}/papers")
        files = {
            CHANGE_FILE: signed.payload,
            RELEASE_FILE: await client.get_bytes(f"/v1/artifacts/{wanted.release.hex()}"),
            CONFIGURATION_FILE: await client.get_bytes(f"/v1/artifacts/{wanted.configuration.hex()}"),
        }
        envelopes = [
            *(approval.envelope for approval in papers.approvals),
            *(evidence.envelope for evidence in papers.evidence),
        ]
        return view.id, files, tuple(envelopes)

    named, files, envelopes = talk(context, conversation)
    folder = target or Path(f"evidence-{named[:12]}")
    if folder.exists():
        raise UsageError(f"{folder} exists", next_step="name a new folder with --to", kind="exists")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with made_whole(folder) as partial:
        left_out = write_export(partial, named, files, envelopes)
    count = len(envelopes) - len(left_out)
    for text in left_out:
        output.warn(f"left out, as it is about something else: {text}")
    answer = {"change": named, "folder": str(folder), "papers": count, "left_out": left_out}
    output.result(answer, f"{count} papers are in {folder}")
    output.hint(f"freehold evidence verify {folder} --change {named}")


def write_export(folder: Path, change: str, files: dict[str, bytes], envelopes: tuple[bytes, ...]) -> list[str]:
    """Write an export; every envelope gets its bundle and its signer's key beside it. Return why others were left out."""
    wanted: Change = decode(files[CHANGE_FILE], Change, CHANGE_MAX_BYTES)
    release: Release = decode(files[RELEASE_FILE], Release, RELEASE_MAX_BYTES)
    components, left_out = {bytes(component.digest) for component in release.components}, []
    (folder / "papers").mkdir(parents=True)
    (folder / "keys").mkdir()
    names = {"change_file": CHANGE_FILE, "release_file": RELEASE_FILE, "configuration_file": CONFIGURATION_FILE}
    (folder / "README.txt").write_text(README.format(change=change, **names))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for number, filed in enumerate(envelopes, 1):
        read = _read(filed)
        if isinstance(read, Refusal):
            raise CommandError(f"{read.rule}: {read.detail}", next_step="freehold doctor", kind=read.rule)
        if problem := _elsewhere(read, wanted, components):
            left_out.append(f"{_kind(read)} by {read.key.hex()[:16]}: {problem}")
            continue
        envelope, stem = one_spelling(filed), f"{number:02}-{_kind(read)}"
        (folder / "papers" / f"{stem}.dsse.json").write_bytes(envelope)
        if not _by_passkey(read):
            (folder / "papers" / f"{stem}.sigstore.json").write_bytes(sigstore_bundle(envelope))
        (folder / "keys" / f"{read.key.hex()}.pem").write_bytes(signer_pem(envelope, read.key))
    return left_out


def _read(envelope: bytes) -> Approval | Attested | Refusal:
    """Verify an envelope as what voters take, in the mesh that it names."""
    opened = open_envelope(Ed25519Verifier(), envelope)
    if isinstance(opened, Refusal):
        return opened
    if opened.statement.predicate_type != APPROVAL:
        return read_evidence(Ed25519Verifier(), mesh_of(envelope), envelope)
    try:
        said = parse_json(bytes(opened.statement.predicate), ApprovalPredicate)
        return read_approval(Ed25519Verifier(), bytes.fromhex(said.mesh), envelope)
    except ValueError as error:
        return Refusal("approval.malformed", str(error)[:200])


def _kind(read: Approval | Attested) -> str:
    return "approval" if isinstance(read, Approval) else read.kind


def _by_passkey(read: Approval | Attested) -> bool:
    return isinstance(read, Approval) and read.by_passkey


@command("verify", examples=("freehold evidence verify evidence-3f9a12 --change 3f9a12…",))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--change", default="", help="The change's whole id, as you were told it.")
def verify(output: Output, folder: Path, change: str) -> None:
    """Check an exported folder: every digest, every signature, and that all are about one change. Needs no mesh."""
    checked = verify_export(folder, change)
    lines = [f"{row['file']}  {row['kind']}, signed by {row['key'][:16]}" for row in checked]
    named = hashlib.sha256((folder / CHANGE_FILE).read_bytes()).hexdigest()
    output.result({"change": named, "papers": checked}, "\n".join([*lines, f"{len(checked)} papers of change {named}"]))
    if not change:
        output.warn("no --change was given: this says only that the folder agrees with itself")


def verify_export(folder: Path, change: str) -> list[dict[str, str]]:
    """Return what was verified. Raises CommandError naming the first file that is not as it should be."""
    if not (folder / CHANGE_FILE).is_file():
        raise UsageError(
            f"{folder} is not what freehold evidence export wrote: it has no {CHANGE_FILE}",
            next_step="freehold evidence export CHANGE, or name the folder that it made",
            kind="no-export",
        )
    named = hashlib.sha256((folder / CHANGE_FILE).read_bytes()).hexdigest()
    if change and change != named:
        raise _damaged(CHANGE_FILE, "it is another change than the one named")
    wanted: Change = _decoded(folder, CHANGE_FILE, Change, CHANGE_MAX_BYTES)
    release: Release = _decoded(folder, RELEASE_FILE, Release, RELEASE_MAX_BYTES)
    if encode(wanted) != (folder / CHANGE_FILE).read_bytes():
        raise _damaged(CHANGE_FILE, "it is not in its one encoding")
    for name, its in ((RELEASE_FILE, wanted.release), (CONFIGURATION_FILE, wanted.configuration)):
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).digest() != its:
            raise _damaged(name, "it is missing, or its digest is not the change's")
    components = {bytes(component.digest) for component in release.components}
    paths = sorted((folder / "papers").glob("*.dsse.json"))[:PAPERS_MAX]
    return [_verify_paper(folder, path, wanted, components) for path in paths]


def _decoded(folder: Path, name: str, kind: type[Signable], max_bytes: int) -> Signable:
    try:
        return decode((folder / name).read_bytes(), kind, max_bytes)
    except (DecodeError, OSError) as error:
        raise _damaged(name, str(error)) from None


def _verify_paper(folder: Path, path: Path, wanted: Change, components: set[bytes]) -> dict[str, str]:
    if path.stat().st_size > ENVELOPE_MAX_BYTES:
        raise _damaged(path.name, "it is larger than an envelope may be")
    data = path.read_bytes()
    read = _read(data)
    if isinstance(read, Refusal):
        raise _damaged(path.name, read.detail)
    pem = folder / "keys" / f"{read.key.hex()}.pem"
    if not pem.is_file() or pem.read_bytes() != signer_pem(data, read.key):
        raise _damaged(pem.name, "the signer's key is missing or another")
    bundle = path.with_name(path.name.replace(".dsse.json", ".sigstore.json"))
    if not _by_passkey(read) and (not bundle.is_file() or bundle.read_bytes() != sigstore_bundle(data)):
        raise _damaged(bundle.name, "the bundle is not that of the envelope")
    if one_spelling(data) != data:
        raise _damaged(path.name, "it is not in its one encoding")
    if problem := _elsewhere(read, wanted, components):
        raise _damaged(path.name, problem)
    return {"file": path.name, "kind": _kind(read), "key": read.key.hex()}


def _elsewhere(read: Approval | Attested, wanted: Change, components: set[bytes]) -> str:
    """Return why a paper is not about a change, empty if it is."""
    if isinstance(read, Approval):
        said = (read.change, read.project, read.environment)
        mine = said == (digest(encode(wanted)), wanted.project, wanted.environment)
        return "" if mine else "the approval is for another change"
    mine = bool(components.intersection(read.components)) and read.about(wanted.configuration)
    return "" if mine else "the evidence names other components or another configuration"


def _damaged(name: str, why: str) -> CommandError:
    return CommandError(f"{name}: {why}", next_step="freehold evidence export, again", kind="evidence.damaged")


@click.group("evidence", cls=Group)
def evidence() -> None:
    """Show, export and check the signed papers of a change."""


for _one in (show, export, verify):
    evidence.add_command(_one)
