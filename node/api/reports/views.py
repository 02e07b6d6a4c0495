"""Views: the core's state as the API's models. Pure reading; nothing here changes anything or decides what may be seen."""

from __future__ import annotations

import shutil
import ssl
from importlib.metadata import version

from msgspec.structs import astuple, replace

from node.api.callers.authority import is_of_node
from node.api.callers.scope import EVERYTHING, Scope
from node.control import Control
from node.decisions.outcomes import Fate
from node.decisions.start_queue import Waiting
from node.mesh.presence import status_of, undrains_of
from protocols.api_models import (
    AppAnswersView,
    AppEngineView,
    AuthorityView,
    ChangeView,
    DeployedView,
    EnvironmentView,
    JobRunView,
    JobView,
    LaneJobsView,
    LaneView,
    MemberView,
    MeshView,
    NodeView,
    RolloutView,
    StartView,
    VerdictView,
    VoterView,
)
from protocols.changes.change import Route
from protocols.changes.effective import EffectiveApp
from protocols.core import NodeCore
from protocols.envelope import Signed, decode, encode
from protocols.keys import peer_id, public_key_of
from protocols.machine import Digest, Now, PeerId
from protocols.rollout.dossiers import Proposed
from protocols.state.analysis import assess
from protocols.state.commands import admin_keys, recovery_keys
from protocols.state.model import Deployed, Environment, Lane, MeshState, Rollout
from protocols.state.placement import eligible

DESCRIBED_APPS_MAX = 128
DESCRIBED_JOBS_MAX = 128
DESCRIBED_RUNS = 3
"""Of what a node's description of itself tells."""


def node_view(control: Control, build: str, scope: Scope = EVERYTHING) -> NodeView:
    """This node, as far as a caller sees it."""
    core, now = control.core, control.clock()
    certificate = core.trust.certificate(core.node)
    return NodeView(
        node=core.node,
        name=control.config.name,
        version=build,
        mesh=core.trust.mesh.hex(),
        mesh_name=core.state.name,
        standing=core.trust.standing(core.node, now.wall_ms).value,
        voter=any(voter.node == core.node for voter in core.state.voters),
        speaking=core.chain.speaking,
        stalled=core.chain.stalled,
        slot=core.chain.position.slot,
        peers=core.hello.admitted(),
        mesh_addresses=tuple(str(address) for address in control.mesh.transport.listening),
        api=control.api,
        api_pin=control.api_pin,
        ingress=tuple(address for address in control.ingress if not address.startswith("unix:")),
        workers=control.config.workers,
        records=len(core.records.store.entries),
        wall_ms=now.wall_ms,
        expires_ms=certificate.expires_ms if certificate is not None else 0,
        quarantined=control.concerns.quarantined,
        doubles=tuple(control.concerns.doubles()),
        refused_by={str(peer): why for peer, why in sorted(control.concerns.refused_by.items())},
        running=tuple(
            f"{project}/{environment}"
            for project, environment in sorted(control.workloads.running)
            if scope.sees(project, environment)
        ),
        disk_free_bytes=shutil.disk_usage(control.folder).free,
        wasmtime=version("wasmtime"),
        warnings=tuple(control.concerns.warnings(scope.sees)),
        muted=core.chain.muted,
        rebuilt=control.concerns.rebuilt,
        alone=control.alone,
        boot_answers_needed=core.chain.boot_answers_needed,
        concerns=tuple(control.concerns.own(scope.sees)),
        jobs=_all_jobs(control, scope),
        apps=_answers(control, scope),
        engine=control.app_counts.engine,
        engine_reason=control.app_counts.engine_reason,
        left_to_python=_left_to_python(control, scope),
    )


def peers_view(view: NodeView, scope: Scope) -> NodeView:
    """Another node's words about itself, as far as a caller sees them: which project a warning names cannot be told."""
    if scope.whole:
        return view
    running = tuple(text for text in view.running if scope.sees(*text.partition("/")[::2]))
    jobs = tuple(job for job in view.jobs if scope.sees(job.project, job.environment))
    apps = tuple(app for app in view.apps if scope.sees(app.project, app.environment))
    left = tuple(app for app in view.left_to_python if scope.sees(app.project, app.environment))
    return replace(view, running=running, warnings=(), concerns=(), jobs=jobs, apps=apps, left_to_python=left)


def voter_views(core: NodeCore) -> tuple[VoterView, ...]:
    """The stores that vote now, and those whose nodes said that they could."""
    ready = {(said.node, said.store_id): encode(signed) for said, signed in core.chain.ready_stores()}
    views = [
        VoterView(voter.node, voter.store_id.hex(), True, ready.pop((voter.node, voter.store_id), b""))
        for voter in core.state.voters
    ]
    able = {node.node for node in core.state.nodes if "voter" in node.roles and not node.draining}
    for (node, store), signed in sorted(ready.items()):
        if node in able and not core.trust.key_revoked(public_key_of(node)):
            views.append(VoterView(node, store.hex(), False, signed))
    return tuple(views)


def mesh_view(state: MeshState, core: NodeCore) -> MeshView:
    """A decided state, or what a caller sees of it, summed up."""
    return MeshView(
        mesh=core.trust.mesh.hex(),
        name=state.name,
        slot=core.chain.position.slot,
        head=core.chain.position.digest.hex(),
        sequence=state.sequence,
        unsafe_resets=state.resets,
        admins=tuple(key.hex() for key in admin_keys(state.admins)),
        recovery=tuple(key.hex() for key in recovery_keys(state.admins)),
        voters=tuple(voter.node for voter in state.voters),
        projects=tuple(project.name for project in state.projects),
        environments=tuple(_environment(state, environment) for environment in state.environments),
    )


def _environment(state: MeshState, one: Environment) -> EnvironmentView:
    policy = one.policy or state.policy
    return EnvironmentView(
        one.name, dict(one.selector), one.protected, tuple(eligible(state, one.name)), policy.demands.approvals
    )


def member_views(core: NodeCore, addresses: dict[PeerId, tuple[str, ...]], now: Now) -> tuple[MemberView, ...]:
    """Every node that this one knows of, in ascending order."""
    confirmed = {node.node: node for node in core.state.nodes}
    voters = {voter.node for voter in core.state.voters}
    connected = {*core.hello.admitted(), core.node}
    until_ms = undrains_of(core.records, confirmed)
    views = []
    for node in sorted({*core.trust.nodes(), *confirmed}):
        certificate = core.trust.certificate(node)
        belief = core.liveness.belief(node)
        confirmed_node = confirmed.get(node)
        said = status_of(core.records, node)
        views.append(
            MemberView(
                node=node,
                name=said.name,
                version=said.version,
                standing=core.trust.standing(node, now.wall_ms).value,
                belief="self" if node == core.node else belief.value if belief is not None else "unknown",
                connected=node in connected,
                confirmed=confirmed_node is not None,
                voter=node in voters,
                draining=confirmed_node is not None and confirmed_node.draining,
                roles=certificate.roles if certificate is not None else (),
                labels=dict(
                    confirmed_node.labels
                    if confirmed_node is not None
                    else certificate.labels
                    if certificate is not None
                    else ()
                ),
                addresses=addresses.get(node, ()),
                api=said.api,
                api_pin=said.api_pin,
                rtt_ms=core.liveness.rtt_ms(node),
                expires_ms=certificate.expires_ms if certificate is not None else 0,
                last_seq=core.records.store.last_seq(node),
                last_serial=core.trust.next_serial(public_key_of(node)) - 1,
                since_ms=core.liveness.believed_since_ms(node),
                left=core.liveness.said_goodbye(node),
                drained_until_ms=until_ms.get(node, 0) if confirmed_node is not None and confirmed_node.draining else 0,
            )
        )
    return tuple(views)


def authority_views(control: Control) -> tuple[AuthorityView, ...]:
    """The authorities of certified members that serve the API, each proven to be its node's."""
    core, now = control.core, control.clock()
    authorities = []
    for node in sorted(core.trust.nodes()):
        said = status_of(core.records, node)
        good = core.trust.standing(node, now.wall_ms).value == "member" and said.api
        if good and is_of_node(core.trust.verifier, node, core.trust.mesh, said.api_ca):
            pem = ssl.DER_cert_to_PEM_cert(said.api_ca)
            authorities.append(AuthorityView(node, said.name, said.api, said.api_pin, pem))
    return tuple(authorities)


def lane_view(control: Control, lane: Lane, last_abort: str) -> LaneView:
    """One project in one environment."""
    core, now = control.core, control.clock()
    running = core.agent.running(lane.project, lane.environment)
    mine = [
        route.route
        for route in core.state.routes
        if (route.project, route.environment) == (lane.project, lane.environment)
    ]
    return LaneView(
        project=lane.project,
        environment=lane.environment,
        sequence=lane.sequence,
        frozen=lane.frozen,
        base=_deployed(lane.base) if lane.base is not None else None,
        rollout=_rollout(core, lane.rollout, now) if lane.rollout is not None else None,
        retained=tuple(_deployed(deployed) for deployed in lane.retained),
        data_node=lane.data_node,
        schedule_node=lane.schedule_node,
        routes=tuple(_route(route) for route in mine),
        here=running[1] if running is not None else "",
        last_abort=last_abort,
        jobs=_jobs(control, (lane.project, lane.environment)),
    )


def _jobs(control: Control, lane: tuple[str, str]) -> tuple[JobView, ...]:
    """The scheduled apps that this node runs for a lane."""
    running = control.workloads.running.get(lane)
    if running is None or not running.schedules:
        return ()
    return tuple(_job(control, lane, app) for app in running.jobs)


def _job(control: Control, lane: tuple[str, str], app: EffectiveApp) -> JobView:
    view = JobView(app.name, app.schedule, control.schedules.next_ms(app))
    record = control.schedules.history.records.get((*lane, app.name))
    if record is None:
        return view
    view = replace(
        view,
        runs=tuple(JobRunView(*astuple(run)) for run in reversed(record.runs)),
        counts=dict(record.counts),
        failing=record.failing,
        missed=record.missed,
        missed_last_ms=record.missed_last_ms,
    )
    if not view.runs:
        return view
    last = view.runs[0]
    return replace(
        view,
        last_ms=last.due_ms,
        last_outcome=last.outcome,
        last_detail=last.detail,
        last_duration_ms=last.duration_ms,
    )


def _left_to_python(control: Control, scope: Scope) -> tuple[AppEngineView, ...]:
    """The apps that this node's native engine does not serve, and why."""
    items = {
        (name.project, name.environment, name.app): total.engine_reason
        for name, total in control.app_counts.totals.items()
        if total.engine_reason and scope.sees(name.project, name.environment)
    }
    return tuple(AppEngineView(*name, reason) for name, reason in sorted(items.items())[:DESCRIBED_APPS_MAX])


def _answers(control: Control, scope: Scope) -> tuple[AppAnswersView, ...]:
    """What this node's apps answered in the last minutes; those that failed most come first, if there are many."""
    totals = control.app_counts.totals
    entries = [
        AppAnswersView(
            name.project, name.environment, name.app, recent.requests, recent.failed, recent.ends, totals[name].engine
        )
        for name, recent in control.recent_answers.recent().items()
        if recent.requests and scope.sees(name.project, name.environment)
    ]
    entries.sort(key=lambda one: (-one.failed, one.project, one.environment, one.app))
    return tuple(entries[:DESCRIBED_APPS_MAX])


def _all_jobs(control: Control, scope: Scope) -> tuple[LaneJobsView, ...]:
    """The scheduled apps that this node runs, each with the newest of its runs: a description fits one block."""
    lanes = [lane for lane in sorted(control.workloads.running) if scope.sees(*lane)]
    chosen = [LaneJobsView(*lane, _jobs(control, lane)) for lane in lanes]
    entries, room = [], DESCRIBED_JOBS_MAX
    for lane_jobs in chosen:
        jobs = tuple(replace(job, runs=job.runs[:DESCRIBED_RUNS]) for job in lane_jobs.jobs[:room])
        room -= len(jobs)
        if jobs:
            entries.append(replace(lane_jobs, jobs=jobs))
    return tuple(entries)


def _route(route: Route) -> str:
    return f"{route.host}{route.path}" if route.path != "/" or not route.host else route.host


def _deployed(one: Deployed) -> DeployedView:
    return DeployedView(
        change=one.change.hex(),
        release=one.release.hex(),
        configuration=one.configuration.hex(),
        author=one.author.hex(),
        approvers=tuple(key.hex() for key in one.approvers),
        break_glass=one.break_glass,
        applied=one.applied,
    )


def _rollout(core: NodeCore, rollout: Rollout, now: Now) -> RolloutView:
    verdicts = core.agent.conductor.verdicts(rollout.id, rollout.opened)
    assessed = assess(rollout, verdicts, now.wall_ms, rules=core.state.rules_version)
    return RolloutView(
        id=rollout.id.hex(),
        change=rollout.candidate.change.hex(),
        release=rollout.candidate.release.hex(),
        stage=rollout.stage,
        stages=tuple(stage.size for stage in rollout.stages),
        cohort=rollout.cohort,
        paused=rollout.paused,
        assessment=assessed.outcome.value,
        reason=assessed.reason,
        verdicts=tuple(
            VerdictView(
                node,
                said.verdict,
                said.healthy_ms,
                said.candidate.requests,
                said.candidate.errors,
                said.reason,
                said.candidate.engine,
            )
            for node, said in sorted(verdicts.items())
        ),
    )


def start_view(change: Digest, waiting: Waiting) -> StartView:
    """A start handed to this node."""
    refusal = waiting.refusal
    done = waiting.outcome == "started"
    return StartView(
        change.hex(), waiting.outcome, waiting.slot, "" if done else refusal.rule, "" if done else refusal.detail
    )


def change_view(
    core: NodeCore, proposed: Proposed, waiting: Waiting | None, failure: str, *, tries_again: bool, fate: Fate | None
) -> ChangeView:
    """A proposed change and its papers."""
    change = proposed.change
    state = _state_of(proposed.id, core.state.lane(change.project, change.environment))
    ended = fate if not state else None
    return ChangeView(
        id=proposed.id.hex(),
        project=change.project,
        environment=change.environment,
        request=change.request,
        release=change.release.hex(),
        configuration=change.configuration.hex(),
        base=change.base.hex(),
        author=change.author.hex(),
        created_ms=change.created_ms,
        approvals=len(core.dossiers.approvals(proposed.id)),
        prepared=_prepared_on(core, proposed.id),
        failure=failure,
        state=state or (ended.ending if ended is not None else "proposed"),
        start=start_view(proposed.id, waiting) if waiting is not None else None,
        tries_again=tries_again,
        ended=ended.why if ended is not None else "",
        ended_ms=ended.at_ms if ended is not None else 0,
    )


def _state_of(change: Digest, lane: Lane | None) -> str:
    """What a change is to its lane; empty for nothing."""
    if lane is None:
        return ""
    if lane.base is not None and lane.base.change == change:
        return "base"
    if lane.rollout is not None and lane.rollout.candidate.change == change:
        return "candidate"
    return "retained" if any(deployed.change == change for deployed in lane.retained) else ""


def _prepared_on(core: NodeCore, change: Digest) -> tuple[str, ...]:
    signed: list[Signed] = [decode(data, Signed) for data in core.agent.conductor.prepared(change)]
    return tuple(sorted(peer_id(entry.key) for entry in signed))
