"""A change as a reviewer needs it: what it alters, where it would run, what is missing, and the way back.

Everything is computed against one head of the mesh state, whose sequence goes into the command that deploys. Bytes come
from the node by digest and are checked. Not here: the comparison itself (protocols/changes/differences.py), signing, deploying.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cli.access.client import NodeClient
from cli.access.members import Member, members_of
from cli.cache import entry
from cli.change.proposal import ChangeProposal, lane_of, pinned_nodes
from cli.errors import CommandError
from cli.text.foreign import quoted
from cli.text.table import short
from cli.text.units import counted
from protocols.api_models import ChangeView, NodeView
from protocols.changes.change import CHANGE_MAX_BYTES, RELEASE_MAX_BYTES, Change, Release
from protocols.changes.differences import SECTIONS, Difference, Side, differences, size_words, stage_words
from protocols.changes.effective import EFFECTIVE_MAX_BYTES, Effective, decode_effective
from protocols.envelope import Signed, decode, digest
from protocols.machine import PeerId
from protocols.refusal import Refusal
from protocols.state.cohort import plan_cohorts
from protocols.state.gate import gate_of
from protocols.state.model import Deployed, Lane, MeshState
from runtime.engine.interface import split_import
from runtime.sandbox.component import ComponentError, inspect

IMPORTS_KEPT_MAX = 500
PLAIN_SET = frozenset({"wasi:cli", "wasi:clocks", "wasi:filesystem", "wasi:io", "wasi:random", "wasi:sockets"})
"""What the sandbox answers for every component alike: no folder is open to write, and no socket can be made."""
SIGNED_MAX_BYTES = CHANGE_MAX_BYTES + 256


class ComponentRow(msgspec.Struct, frozen=True):
    """One component, whole."""

    app: str
    digest: str
    size_bytes: int
    toolchain: str


class StageRow(msgspec.Struct, frozen=True):
    """One stage over the nodes there are now: how many serve the candidate once it is open."""

    share: str
    nodes: int
    min_healthy_ms: int
    pause_ms: int
    approve: bool


class Return(msgspec.Struct, frozen=True):
    """The way back: the release that runs now, and the nodes that hold its bytes, compiled."""

    change: str
    release: str
    nodes: tuple[str, ...]


class Review(msgspec.Struct, frozen=True):
    """A change against what runs. `expect` is the sequence it was computed at; `change` is empty for what is not proposed.

    `names` are what people call the nodes.
    """

    project: str
    environment: str
    change: str
    request: str
    release: str
    base: str
    expect: int
    first: bool
    components: tuple[ComponentRow, ...]
    differences: tuple[Difference, ...]
    nodes: tuple[str, ...]
    names: dict[str, str]
    stages: tuple[StageRow, ...]
    notes: tuple[str, ...]
    irreversible: tuple[str, ...]
    rollback: Return | None
    approvals: int
    evidence: tuple[str, ...]
    command: str

    @property
    def changes(self) -> bool:
        """Whether anything would be different."""
        return bool(self.differences)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a review is computed against: the state, the lane, what is in it, and who is there."""

    state: MeshState
    lane: Lane
    base: Side | None
    members: tuple[Member, ...]
    holders: tuple[str, ...]


async def ground_of(client: NodeClient, project: str, environment: str) -> Ground:
    """Read what a review is computed against. Raises UsageError if the project or environment is not there."""
    state = await client.state()
    lane = lane_of(state, project, environment)
    base = await side_of(client, lane.base) if lane.base is not None else None
    members = await members_of(client)
    holders = await holders_of(client, members, lane) if lane.base is not None else ()
    return Ground(state, lane, base, members, holders)


async def holders_of(client: NodeClient, members: tuple[Member, ...], lane: Lane) -> tuple[str, ...]:
    """Return the nodes that say they run the lane's base, or that they have prepared it: those hold its bytes."""
    texts: set[str] = set()
    if lane.base is not None:
        try:
            texts |= set((await client.read(ChangeView, f"/v1/changes/{lane.base.change.hex()}")).prepared)
        except CommandError:
            texts = set()  # its record has been collected; the nodes' own words remain
    for member in members:
        if member.node in texts or not (member.connected or member.belief == "self"):
            continue
        try:
            said = await client.read(NodeView, f"/v1/nodes/{member.node}")
        except CommandError:
            continue
        if f"{lane.project}/{lane.environment}" in said.running:
            texts.add(member.node)
    return tuple(sorted(texts))


async def side_of(client: NodeClient, deployed: Deployed) -> Side:
    """Return what a deployed change runs, read from the node by digest."""
    release = await release_at(client, deployed.release)
    effective = await effective_at(client, deployed.configuration)
    plan = None
    try:
        plan = (await change_at(client, deployed.change.hex()))[0].plan
    except CommandError:
        plan = None  # the change's record has been collected; the release stays
    return Side(release, effective, deployed.secrets, deployed.routes, plan, deployed.replicas)


async def change_at(client: NodeClient, named: str) -> tuple[Change, Signed]:
    """Return a change the node holds, as signed. Raises CommandError."""
    signed: Signed = decode(await client.get_bytes(f"/v1/changes/{named}/signed"), Signed, SIGNED_MAX_BYTES)
    if digest(signed.payload).hex() != named:
        raise CommandError("the node handed out another change", next_step="freehold doctor", kind="bad-answer")
    return decode(signed.payload, Change, CHANGE_MAX_BYTES), signed


async def release_at(client: NodeClient, named: bytes) -> Release:
    """Return a manifest by its digest."""
    return decode(await _artifact(client, named), Release, RELEASE_MAX_BYTES)


async def effective_at(client: NodeClient, named: bytes) -> Effective:
    """Return an effective configuration by its digest."""
    return decode_effective((await _artifact(client, named))[:EFFECTIVE_MAX_BYTES])


async def _artifact(client: NodeClient, named: bytes) -> bytes:
    data = await client.get_bytes(f"/v1/artifacts/{named.hex()}")
    if digest(data) != named:
        raise CommandError(
            "an artifact's bytes are not what its name says", next_step="freehold doctor", kind="damaged"
        )
    return data


async def imports_of(
    client: NodeClient, wanted: Iterable[bytes], local: dict[bytes, Path]
) -> dict[bytes, tuple[str, ...]]:
    """Return the interfaces that components import, read from their bytes, here or at the node; kept by digest."""
    table: dict[bytes, tuple[str, ...]] = {}
    for candidate in dict.fromkeys(wanted):
        path = local.get(candidate)
        data = b""
        texts = _kept(candidate)
        if texts is not None:
            table[candidate] = texts
            continue
        if path is None or not path.is_file():
            try:
                data = await _artifact(client, candidate)
            except CommandError:
                continue
        table[candidate] = _keep(candidate, path.read_bytes() if path is not None and path.is_file() else data)
    return table


async def review_proposal(client: NodeClient, proposal: ChangeProposal, *, held: bool = False) -> Review:
    """Review what was just put together here, before anybody has seen it; `held` says that the mesh has its release."""
    change = proposal.change
    ground = await ground_of(client, change.project, change.environment)
    after = Side.of(proposal.release, proposal.effective, change)
    imports = await imports_of(client, _components(ground.base, after), dict(proposal.components))
    what = f"--release {change.release.hex()[:12]} " if held else ""
    found_differences = differences(ground.base, after, imports)
    return _review(ground, change, after, found_differences, "", f"{what}--env {change.environment}")


async def review_change(client: NodeClient, named: str) -> Review:
    """Review a proposed change by its id, from the bytes that its digests name."""
    change, _ = await change_at(client, named)
    ground = await ground_of(client, change.project, change.environment)
    after = Side.of(await release_at(client, change.release), await effective_at(client, change.configuration), change)
    imports = await imports_of(client, _components(ground.base, after), {})
    found_differences = differences(ground.base, after, imports)
    return _review(ground, change, after, found_differences, named, f"--change {named[:12]}")


def _review(
    ground: Ground, change: Change, after: Side, found: tuple[Difference, ...], named: str, what: str
) -> Review:
    state, lane = ground.state, ground.lane
    down = [member.node for member in ground.members if member.belief == "down"]
    nodes = pinned_nodes(state, lane, change, down)
    stages = _stages(state, nodes, change)
    gate = gate_of(state, change.environment, after.release)
    evidence = tuple(
        f"{demand.kind}, at most {demand.max_age_ms / 3_600_000:g} hours old{', run by a node' if demand.by_node else ''}"
        for demands in gate.demands
        for demand in demands.evidence
    )
    base = lane.base
    return Review(
        project=change.project,
        environment=change.environment,
        change=named,
        request=change.request,
        release=change.release.hex(),
        base=base.release.hex() if base is not None else "",
        expect=lane.sequence,
        first=base is None,
        components=tuple(
            ComponentRow(component.app, component.digest.hex(), component.size_bytes, component.toolchain)
            for component in after.release.components
        ),
        differences=found,
        nodes=nodes,
        names={member.node: member.name or short(member.node) for member in ground.members},
        stages=stages,
        notes=_notes(ground, change, after, nodes, stages),
        irreversible=_irreversible(ground, change, after, found),
        rollback=Return(base.change.hex(), base.release.hex(), ground.holders) if base is not None else None,
        approvals=gate.approvals,
        evidence=evidence,
        command=f"freehold deploy {what} --expect {lane.sequence}",
    )


def _stages(state: MeshState, nodes: tuple[PeerId, ...], change: Change) -> tuple[StageRow, ...]:
    labels = {node.node: node.labels for node in state.nodes if node.node in nodes}
    planned = plan_cohorts(b"", labels, change.plan.stages)
    if isinstance(planned, Refusal):
        raise CommandError(
            f"{planned.rule}: {planned.detail}", next_step="correct [rollout] in freehold.toml", kind="plan"
        )
    asked = [stage.nodes for stage in change.plan.stages]
    shares = asked if len(asked) == len(planned[1]) else [""] * len(planned[1])
    return tuple(
        StageRow(share, open_stage.size, open_stage.min_healthy_ms, open_stage.pause_ms, open_stage.approve)
        for share, open_stage in zip(shares, planned[1], strict=True)
    )


def _notes(
    ground: Ground, change: Change, after: Side, nodes: tuple[PeerId, ...], stages: tuple[StageRow, ...]
) -> tuple[str, ...]:
    notes = []
    if len(nodes) == 1:
        notes.append("one node serves this, so there is no first stage: smoke checks stand in for it")
    elif len(stages) == 1:
        notes.append("all nodes change at once: add stages in [rollout] to try it on some nodes first")
    if change.data:
        notes.append("it keeps data, on one node; the data does not move with a release")
    if not after.effective.smoke:
        notes.append("there is no smoke check: a stage without traffic pauses for a person")
    if ground.lane.frozen:
        notes.append(f"{change.environment} is frozen: {ground.lane.frozen}")
    if ground.lane.rollout is not None:
        notes.append("a rollout is under way here; a deploy waits for its end, or supersedes it")
    down = [member for member in ground.members if member.belief == "down"]
    notes += [f"{member.title} is down and is left out" for member in down]
    return tuple(notes)


def migration_words(app: str) -> str:
    """What no rollback of a release that migrates data undoes."""
    return f"app {app} migrates its data before visitors come; a rollback, also one by itself, leaves it migrated"


def _irreversible(ground: Ground, change: Change, after: Side, found: tuple[Difference, ...]) -> tuple[str, ...]:
    said = []
    if change.plan.irreversible:
        said.append("the change says that it cannot be rolled back once it served")
    stores = [
        difference.name.removeprefix("opens store ")
        for difference in found
        if difference.name.startswith("opens store ")
    ]
    said += [f"what it writes into the store {store} stays after a rollback" for store in stores]
    if change.data and not stores:
        said.append("what it writes into its stores stays after a rollback")
    said += [migration_words(app.name) for app in after.effective.apps if app.migrates]
    if any(difference.section == "capabilities" and difference.name.startswith("reaches ") for difference in found):
        said.append("what it sends to other hosts cannot be taken back")
    if ground.base is None:
        said.append("it is the first release here: there is nothing to roll back to")
    return tuple(said)


def _components(before: Side | None, after: Side) -> list[bytes]:
    sides = [side for side in (before, after) if side is not None]
    return [component.digest for side in sides for component in side.release.components]


def _shelf_name(named: bytes) -> str:
    return named.hex()


def _kept(named: bytes) -> tuple[str, ...] | None:
    try:
        folder = entry("imports", _shelf_name(named), _absent, entries_max=IMPORTS_KEPT_MAX)
    except FileNotFoundError:
        return None
    return msgspec.json.decode((folder / "imports").read_bytes(), type=tuple[str, ...])


def _absent(_folder: Path) -> None:
    raise FileNotFoundError


def _keep(named: bytes, data: bytes) -> tuple[str, ...]:
    try:
        imports = tuple(sorted({split_import(name)[0] for name in inspect(data).imports}))
    except ComponentError:
        imports = ()

    def make(folder: Path) -> None:
        (folder / "imports").write_bytes(msgspec.json.encode(imports))

    entry("imports", _shelf_name(named), make, entries_max=IMPORTS_KEPT_MAX)
    return imports


# --- for people -------------------------------------------------------------------------------------------------------


def review_text(review: Review) -> str:
    """Return a review as text; one that a person can read before a signature."""
    lines = [f"{review.project} in {review.environment}: {_title(review)}"]
    if review.request:
        lines.append(f"request   {quoted(review.request)}")
    if not review.differences:
        lines.append("no changes: what runs is what would be deployed")
    for section in SECTIONS:
        rows = [difference for difference in review.differences if difference.section == section]
        if section == "capabilities":
            rows, folded = _without_plain_set(rows)
        else:
            folded = []
        if section == "rollout" and review.first:
            continue  # every value is new; what matters of them stands under placement
        if rows or folded:
            lines += ["", section, *(f"  {_row(row)}" for row in rows), *folded]
    lines += ["", "placement", f"  nodes     {_named(review, review.nodes)}"]
    for number, stage in enumerate(review.stages, 1):
        words = stage_words(stage.share or counted(stage.nodes, "node"), stage.pause_ms, stage.approve)
        share = "" if words in {str(stage.nodes), counted(stage.nodes, "node")} else f" ({words})"
        lines.append(
            f"  stage {number}   {stage.nodes} of {counted(len(review.nodes), 'node')}{share}, up for "
            f"{stage.min_healthy_ms / 1000:g} s"
        )
    lines += [f"  note      {note}" for note in review.notes]
    lines += ["", "gate", f"  approvals {review.approvals or 'none needed'}"]
    lines += [f"  evidence  {text}" for text in review.evidence]
    lines += ["", "way back"]
    if review.rollback is not None:
        holders = _named(review, review.rollback.nodes) or "no node says so"
        lines.append(f"  target    release {review.rollback.release[:12]}, held by {holders}")
    lines += [f"  beware    {text}" for text in review.irreversible]
    return "\n".join(lines)


def _named(review: Review, nodes: Iterable[str]) -> str:
    return ", ".join(review.names.get(node, short(node)) for node in nodes)


def _without_plain_set(rows: list[Difference]) -> tuple[list[Difference], list[str]]:
    """Fold what every component built here imports, and what grants nothing, into one line for each app and sign."""
    plain: dict[tuple[str, str], set[str]] = {}
    kept_differences = []
    for row in rows:
        package, _, _ = row.name.removeprefix("imports ").partition("/")
        if row.name.startswith("imports ") and package in PLAIN_SET:
            plain.setdefault((row.app, row.sign), set()).add(package.removeprefix("wasi:"))
        else:
            kept_differences.append(row)
    folded = [
        f"  {sign} {app}: imports of WASI that grant nothing: {', '.join(sorted(packages))}"
        for (app, sign), packages in plain.items()
    ]
    return kept_differences, folded


def _title(review: Review) -> str:
    size = size_words(sum(component.size_bytes for component in review.components))
    if review.first:
        return f"first release {review.release[:12]} ({size})"
    return f"{review.base[:12]} -> {review.release[:12]} ({size}), at sequence {review.expect}"


def _row(one: Difference) -> str:
    name = f"{one.app}: {one.name}" if one.app else one.name
    plain = one.section in {"capabilities", "routes"}
    values = [value for value in (one.before, one.after) if value is not None and not plain]
    return f"{one.sign} {name}  {' -> '.join(str(value) for value in values)}".rstrip()
