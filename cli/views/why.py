"""Why a project runs as it does: the eight answers, each with the signed records it rests on.

Every source names its kind, its digest or slot, and who signed it, so that anybody can fetch and check it. Read from any
one node. Not here: judging anything, and how delivery goes (dora.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cli.access.client import NodeClient
from cli.access.members import Member, members_of
from cli.access.principals import Principal, principals_of
from cli.change.review import change_at, effective_at, holders_of, release_at
from cli.errors import CommandError, UsageError
from cli.text.table import short
from cli.text.times import moment
from cli.text.units import counted, in_words
from protocols.api_models import DecisionView, PapersView
from protocols.changes.change import Change, Release
from protocols.changes.differences import route_words, stage_words
from protocols.changes.effective import Effective
from protocols.state.commands import admin_keys
from protocols.state.gate import gate_of
from protocols.state.model import Deployed, Lane, MeshState
from protocols.state.placement import eligible, placed

DECISIONS_ASKED = 500


class Source(msgspec.Struct, frozen=True):
    """A signed record: `kind` decision, change, release, approval, evidence, grant or policy; `id` its digest or slot."""

    kind: str
    id: str
    signed_by: tuple[str, ...]


class WhyAnswer(msgspec.Struct, frozen=True):
    """One question, its answer in sentences, and what it rests on."""

    question: str
    answer: tuple[str, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class _Facts:
    """All that the answers are made of. `papers` and `change` are None where a node has collected them."""

    state: MeshState
    lane: Lane
    base: Deployed
    release: Release
    effective: Effective
    change: Change | None
    papers: PapersView | None
    principals: tuple[Principal, ...]
    members: tuple[Member, ...]
    decisions: tuple[DecisionView, ...]
    holders: tuple[str, ...]

    def name(self, key: str) -> str:
        """Who a key is."""
        if bytes.fromhex(key) in self.state.admins:
            return "an admin"
        return next(
            (principal.name for principal in self.principals if principal.key == key and principal.name), key[:12]
        )

    def title(self, node: str) -> str:
        """What a node is called."""
        return next((member.title for member in self.members if member.node == node), short(node))

    @property
    def started(self) -> Source | None:
        """The decision that started what runs now."""
        return self.decided("start", self.base.change.hex())

    def decided(self, action: str, subject: str = "") -> Source | None:
        """The newest decision of a kind."""
        for row in self.decisions:
            if row.action == action and (not subject or row.subject == subject):
                return Source("decision", str(row.slot), tuple(short(voter) for voter in row.voters))
        return None


async def explain(client: NodeClient, project: str, environment: str) -> tuple[WhyAnswer, ...]:
    """Return the eight answers about what runs. Raises UsageError where nothing does."""
    facts = await _gather(client, project, environment)
    return (
        _who_approves(facts),
        _what_was_tested(facts),
        _where_configuration_lives(facts),
        _how_secrets_are_referenced(facts),
        _what_if_it_fails(facts),
        _how_it_is_observed(facts),
        _how_rollback_works(facts),
        _what_it_depends_on(facts),
    )


async def _gather(client: NodeClient, project: str, environment: str) -> _Facts:
    state = await client.state()
    lane = state.lane(project, environment)
    if lane is None:
        raise UsageError(f"there is no {project} in {environment}", next_step="freehold status", kind="no-project")
    if lane.base is None:
        raise UsageError(
            f"nothing runs as {project} in {environment} yet", next_step="freehold deploy", kind="no-release"
        )
    base = lane.base
    named = base.change.hex()
    change, papers = None, None
    try:
        change, _ = await change_at(client, named)
        papers = await client.read(PapersView, f"/v1/changes/{named}/papers")
    except CommandError:
        papers = None  # the records have been collected; what was decided stays
    members = await members_of(client)
    return _Facts(
        state=state,
        lane=lane,
        base=base,
        release=await release_at(client, base.release),
        effective=await effective_at(client, base.configuration),
        change=change,
        papers=papers,
        principals=await principals_of(client),
        members=members,
        decisions=await client.read(
            tuple[DecisionView, ...], "/v1/decisions", project=project, environment=environment, limit=DECISIONS_ASKED
        ),
        holders=await holders_of(client, members, lane),
    )


def _sources(*found: Source | None) -> tuple[Source, ...]:
    return tuple(source for source in found if source is not None)


def _change_source(facts: _Facts) -> Source:
    return Source("change", facts.base.change.hex(), (facts.name(facts.base.author.hex()),))


def _release_source(facts: _Facts) -> Source:
    return Source("release", facts.base.release.hex(), (facts.name(facts.release.author.hex()),))


def _who_approves(facts: _Facts) -> WhyAnswer:
    base, environment = facts.base, facts.lane.environment
    gate = gate_of(facts.state, environment, facts.release)
    able = [
        principal.name
        for principal in facts.principals
        if any(
            "approve" in held.verbs
            and ({"*", facts.lane.project} & {*held.projects})
            and ({"*", environment} & {*held.environments})
            for held in principal.each
        )
    ]
    needed = "1 approval by another is" if gate.approvals == 1 else f"{gate.approvals or 'no'} approvals by others are"
    said = [f"{needed} needed in {environment}", _policy_words(facts)]
    said.append(f"those who may: {', '.join([*able, counted(len(admin_keys(facts.state.admins)), 'admin key')])}")
    owners = next((project.owners for project in facts.state.projects if project.name == facts.lane.project), ())
    said.append(f"it belongs to {', '.join(owners) or 'nobody by name'}; {facts.name(base.author.hex())} proposed it")
    if base.break_glass:
        said.append(f"it was started by breaking glass: {base.break_glass}")
    texts = [facts.name(key.hex()) for key in base.approvers]
    if base.withdrawn:
        said.append(f"it started with {base.required} approvals; since then an approver has taken one back")
    elif texts:
        said.append(f"approved by {', '.join(texts)}")
    else:
        said.append("it needed no approval when it started")
    signed = facts.papers.approvals if facts.papers is not None else ()
    approvals = [Source("approval", _digest(approval.envelope), (facts.name(approval.key),)) for approval in signed]
    return WhyAnswer(
        "Who may approve it, and who did?", tuple(said), _sources(facts.started, _change_source(facts), *approvals)
    )


def _policy_words(facts: _Facts) -> str:
    environment = next(
        environment for environment in facts.state.environments if environment.name == facts.lane.environment
    )
    mode = (environment.policy or facts.state.policy).mode
    if facts.state.policy.mode == "dev":
        mode = "solo" if mode == "dev" else mode
        return f"the policy is {mode}, in the mesh of one that freehold dev made (dev): it also runs what was not built"
    return f"the policy is {mode}"


def _what_was_tested(facts: _Facts) -> WhyAnswer:
    if facts.papers is None:
        return WhyAnswer("Which tests ran, on which digests, when?", ("this node no longer holds the papers",), ())
    said, sources = [], []
    for evidence in facts.papers.evidence:
        when = moment(evidence.finished_ms)
        by = "self-attested by the author" if evidence.self_attested else f"by a {evidence.by}"
        digests = ", ".join(digest[:12] for digest in evidence.components[:8])
        said.append(
            f"{evidence.kind} {'PASSED' if evidence.passed else 'FAILED'} at {when} on {digests}, {by} {evidence.name}".rstrip()
        )
        sources.append(Source("evidence", _digest(evidence.envelope), (evidence.name or evidence.key[:12],)))
    if not said:
        said.append("no evidence was filed; each node ran the smoke checks before it said that it was prepared")
        sources += _sources(facts.started)  # The decision holds what the nodes of the first stage signed.
    return WhyAnswer("Which tests ran, on which digests, when?", tuple(said), tuple(sources))


def _where_configuration_lives(facts: _Facts) -> WhyAnswer:
    keys = [f"{app.name}.{key}" for app in facts.effective.apps for key, _ in app.config]
    said = (
        f"in freehold.toml, whole in release {facts.base.release.hex()[:12]}; [env.{facts.lane.environment}] overlays it",
        f"what runs has the digest {facts.base.configuration.hex()[:12]}, and every approval and test names it",
        f"keys: {', '.join(keys) or 'none'}",
        f"source commit: {facts.release.source_commit or 'not from a repository'}",
    )
    return WhyAnswer("Where does its configuration live?", said, (_release_source(facts), _change_source(facts)))


def _how_secrets_are_referenced(facts: _Facts) -> WhyAnswer:
    versions = {secret.name: secret.version for secret in facts.base.secrets}
    said = [
        f"{app.name} reads {name}, version {versions.get(name, 'not set')}"
        for app in facts.effective.apps
        for name in app.secrets
    ]
    said.append("by name and version only; values are sealed to the nodes that may run it, and bound to the change"
                if said else "it uses none")  # fmt: skip
    return WhyAnswer("How are its secrets referenced?", tuple(said), (_change_source(facts),))


def _what_if_it_fails(facts: _Facts) -> WhyAnswer:
    said = []
    plan = facts.change.plan if facts.change is not None else None
    if plan is not None:
        stages = " | ".join(stage_words(stage.nodes, stage.pause_ms, stage.approve) for stage in plan.stages)
        said.append(f"a rollout goes in stages: {stages}")
        limits = plan.analysis
        rate = f"errors over {limits.max_error_ppm / 10_000:g} %" if limits.max_error_ppm else "a failed health check"
        said.append(
            f"{rate} fails a stage; then {'every node goes back by itself' if plan.auto_revert else 'it pauses'}"
        )
    said += [
        f"{app.name}: a request ends after {in_words(app.timeout_ms)} or at {app.memory_max_bytes >> 20} MiB; a trap ends "
        "that instance only"
        for app in facts.effective.apps
    ]
    said.append("a node that is lost is served around by the others" if len(_nodes(facts)) > 1 else
                "one node serves it: if that is lost, so is the service until it returns")  # fmt: skip
    return WhyAnswer(
        "What happens when it fails?", tuple(said), _sources(_change_source(facts), facts.decided("abort"))
    )


def _how_it_is_observed(facts: _Facts) -> WhyAnswer:
    project = facts.lane.project
    checks = [
        f"{smoke_check.app} GET {smoke_check.path} -> {smoke_check.status}" for smoke_check in facts.effective.smoke
    ]
    said = (
        f"logs: freehold logs --project {project}, of any node",
        "metrics: /metrics of every node; health verdicts with their numbers: freehold decisions",
        f"smoke checks: {', '.join(checks) or 'none'}",
        "writes: freehold audit; proof: freehold audit --verify",
    )
    return WhyAnswer("How is it observed?", said, _sources(_release_source(facts), facts.decided("promote")))


def _how_rollback_works(facts: _Facts) -> WhyAnswer:
    retained = [deployed for deployed in facts.lane.retained if not deployed.withdrawn]
    said = ["freehold rollback returns code, configuration and secret versions together, at once, without stages"]
    if retained:
        said.append(f"it goes to release {retained[0].release.hex()[:12]} of change {retained[0].change.hex()[:12]}")
        said.append(f"kept and compiled: {', '.join(deployed.release.hex()[:12] for deployed in retained)}")
    else:
        said.append("there is no earlier release to return to yet")
    held = ", ".join(facts.title(node) for node in facts.holders) or "no node says so"
    said.append(f"what runs now is held by {held}")
    sources = [Source("change", deployed.change.hex(), (facts.name(deployed.author.hex()),)) for deployed in retained]
    return WhyAnswer("How does rollback work, and to what?", tuple(said), _sources(facts.decided("rollback"), *sources))


def _what_it_depends_on(facts: _Facts) -> WhyAnswer:
    apps = facts.effective.apps
    nodes = [facts.title(node) for node in _nodes(facts)]
    voters = [facts.title(voter.node) for voter in facts.state.voters]
    hosts = sorted({host for app in apps for host in app.allow_hosts})
    networks = sorted({network for app in apps for network in app.networks})
    stores = sorted(
        {store for app in apps for store in (*app.keyvalue, *app.sql, *app.blobs, *app.queues[0], *app.queues[1])}
    )
    tools = sorted({component.toolchain for component in facts.release.components if component.toolchain})
    said = [
        f"nodes: {', '.join(nodes) or 'none'}; decisions need {len(voters) // 2 + 1} of the voters {', '.join(voters)}",
        f"routes: {', '.join(route_words(route) for route in facts.base.routes) or 'none'}",
        f"other hosts: {', '.join(hosts) or 'none'}{', inside too: ' + ', '.join(networks) if networks else ''}",
        f"stores: {', '.join(stores) + ' on ' + facts.title(facts.lane.data_node) if stores else 'none'}",
        f"built with: {', '.join(tools) or 'not said'}; runs on wasmtime, nothing else at run time",
    ]
    return WhyAnswer(
        "Which infrastructure does it depend on?", tuple(said), (_release_source(facts), _change_source(facts))
    )


def _nodes(facts: _Facts) -> Sequence[str]:
    return placed(facts.lane, facts.base, eligible(facts.state, facts.lane.environment))


def _digest(envelope: bytes) -> str:
    return hashlib.sha256(envelope).hexdigest()


def explain_text(answers: Sequence[WhyAnswer]) -> str:
    """The answers for people."""
    lines: list[str] = []
    for number, answer in enumerate(answers, 1):
        lines += [f"{number}. {answer.question}", *(f"   {sentence}" for sentence in answer.answer)]
        lines += [
            f"   [{source.kind} {source.id[:12]}, signed by {', '.join(source.signed_by)}]" for source in answer.sources
        ]
        lines.append("")
    return "\n".join(lines).rstrip()
