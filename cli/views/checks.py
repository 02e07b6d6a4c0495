"""What is wrong, as far as this machine can see, each with what to do: pure judgements on what was found.

Not here: finding it out (cli/commands/mesh/doctor.py), and curing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.access.members import Member
from cli.access.voters import VoterStore
from cli.text.table import short
from cli.text.units import in_words
from cli.views import lane_status
from cli.views.apps import apps
from cli.views.finding import Finding
from cli.views.jobs import jobs
from protocols.api_models import NodeView
from protocols.state.model import MeshState

CLOCK_SKEW_WARN_MS = 5_000
CLOCK_SKEW_FAULT_MS = 60_000
"""Records and decisions from a clock over 120 s ahead are refused; half of that is time to act."""

DISK_FREE_FAULT_BYTES = 256 << 20
DISK_FREE_WARN_BYTES = 1 << 30
WASMTIME_MIN_MAJOR = 50
"""The sandbox this version was built and tested with; older ones lack fixes."""

START_STEP = "start it there: systemctl start freehold, or freehold node run"
LOOK_STEP = (
    "on its machine: freehold doctor; if that machine is lost for good, docs/guides/operations.md says how to go on"
)
"""What cannot be reached may be well: its clock, version, address and the network come before anything that destroys."""

PRIVATE_FILES = ("node.key", "credentials", "fence")


def permissions(folder_mode: int, file_modes: Mapping[str, int]) -> list[Finding]:
    """Judge the modes of a data folder and its private files."""
    findings = []
    if folder_mode & 0o077:
        findings.append(Finding(True, "other users can look into the data folder", "chmod 700 on it"))
    findings += [
        Finding(True, f"{name} can be read by other users (mode {mode & 0o777:04o})", f"chmod 600 {name}")
        for name, mode in sorted(file_modes.items())
        if mode & 0o077
    ]
    return findings


def disk(free_bytes: int, where: str) -> list[Finding]:
    """Judge what is left on the data folder's disk."""
    if free_bytes >= DISK_FREE_WARN_BYTES:
        return []
    return [
        Finding(
            free_bytes < DISK_FREE_FAULT_BYTES,
            f"{free_bytes >> 20} MiB are left on the disk of {where}; a full disk stops voting",
            "free some space; caches may be deleted: DATA/compiled, DATA/throwaway",
        )
    ]


def sandbox(version: str) -> list[Finding]:
    """Judge the version of wasmtime."""
    major = version.partition(".")[0]
    if major.isdigit() and int(major) >= WASMTIME_MIN_MAJOR:
        return []
    return [
        Finding(
            True, f"wasmtime {version} is older than {WASMTIME_MIN_MAJOR}", "install this release of Freehold again"
        )
    ]


FULL_STEP = "free some space there; caches may be deleted: DATA/compiled, DATA/throwaway"


def engine(wanted: str, why_not: str) -> list[Finding]:
    """Judge the engine that a node's settings ask for; `why_not` says why the native one cannot serve here."""
    if wanted != "native" or not why_not:
        return []
    text = f"node.toml asks for the native engine, and Python serves: {why_not}"
    return [Finding(False, text, 'build it with make native, or set engine = "auto" in node.toml')]


def node(view: NodeView, wall_ms: int) -> list[Finding]:
    """Judge what a node says of itself."""
    findings = []
    name = view.name
    if view.standing == "revoked":
        findings.append(Finding(True, f"{name} was revoked", "join again with a new folder: freehold mesh invite"))
    elif view.standing == "limited":
        findings.append(
            Finding(True, f"{name} shares its invite's use with another key", "an admin removes one of the two")
        )
    elif view.standing == "joined":
        findings.append(Finding(False, f"{name} is not confirmed by the chain yet", "is a majority of voters up?"))
    refusals = sorted(set(view.refused_by.values()))
    if any(why.startswith("hello.cloned") for why in refusals):
        findings.append(
            Finding(True, f"another machine uses the key of {name}; its peers turn both away for a while",
                    "stop the copy for good, and never restore a backup beside its original"),
        )  # fmt: skip
    findings += [
        Finding(True, f"two machines use the key of {short(peer)}",
                "stop the copy for good, and never restore a backup beside its original")
        for peer in view.doubles
    ]  # fmt: skip
    findings += [
        Finding(True, f"peers turn {name} away: {why}", "look there: freehold mesh members")
        for why in refusals
        if not why.startswith("hello.cloned")
    ]
    restore = "restore its newest backup into an empty folder: freehold mesh restore FILE"
    if view.quarantined:
        findings.append(
            Finding(
                True,
                f"{name} gave up its vote: {view.quarantined}",
                restore if view.alone else
                "if it runs twice, stop the copy for good; then: freehold mesh voters --replace NODE NODE",
            )
        )  # fmt: skip
    if view.rebuilt:
        lost = "; nobody else holds its records: grants, revocations, papers of changes, secrets and audit are lost"
        findings.append(
            Finding(view.alone, f"{name}: {view.rebuilt}" + (lost if view.alone else ""),
                    restore if view.alone else "its records come back from its peers; check its disk"),
        )  # fmt: skip
    if view.muted:
        step = FULL_STEP if "disk" in view.muted else "freehold mesh upgrade plan"
        findings.append(Finding(True, f"{name} serves and does not vote: {view.muted}", step))
    if view.stalled:
        findings.append(Finding(True, f"{name} cannot follow the chain: {view.stalled}", "update Freehold there"))
    left_ms = view.expires_ms - wall_ms
    if view.expires_ms and left_ms <= 0:
        findings.append(
            Finding(True, f"the certificate of {name} has expired", "let it reach a node with the issuer role")
        )
    if not view.muted:
        findings += disk(view.disk_free_bytes, name)
    for concern in view.concerns:
        what, _, advice = concern.rpartition("; ")
        findings.append(Finding(False, f"{name}: {what}", advice))
    return findings + apps(view) + jobs(view, wall_ms) + sandbox(view.wasmtime)


def boot_read(view: NodeView, everyone: Sequence[Member]) -> list[Finding]:
    """Judge whether a voter that rebooted, and may have forgotten what it said, can hear it from the others."""
    needed = view.boot_answers_needed
    if not needed:
        return []
    others = [member for member in everyone if member.voter and member.node != view.node]
    up = [member for member in others if member.belief == "self" or (member.connected and member.belief != "down")]
    what = f"{view.name} rebooted and does not vote before {needed} other voters have answered"
    if len(up) >= needed:
        return [Finding(False, what, "they are up, so this takes a moment: freehold doctor")]
    lost = ", ".join(member.title for member in others if member not in up)
    return [
        Finding(True, f"{what}; {len(up)} can be reached",
                f"start {lost}, or mend the network to it; {LOOK_STEP}"),
    ]  # fmt: skip


def members(everyone: Sequence[Member], wall_ms: int) -> list[Finding]:
    """Judge certificates, connections and what is believed of the others."""
    findings = []
    for member in everyone:
        left_ms = member.expires_ms - wall_ms
        if member.standing == "expired" or (member.expires_ms and left_ms <= 0):
            findings.append(
                Finding(
                    True, f"the certificate of {member.title} has expired", "start it where an issuer can be reached"
                )
            )
        elif warning := member.expiry(wall_ms):
            findings.append(
                Finding(
                    False, f"the certificate of {member.title} {warning}", "is a node with the issuer role connected?"
                )
            )
        if member.confirmed and member.standing == "revoked":
            findings.append(
                Finding(
                    False, f"{member.title} is revoked and still listed", f"freehold mesh remove {member.node[-8:]}"
                )
            )
        elif member.confirmed and member.left:
            findings.append(Finding(member.voter, f"{member.title} was stopped and said so", START_STEP))
        elif member.confirmed and member.belief == "down":
            findings.append(Finding(True, f"{member.title} is down, or nobody reaches it", LOOK_STEP))
        elif member.confirmed and not member.connected and member.belief != "self":
            findings.append(
                Finding(
                    False, f"{member.title} is not connected to the asked node", "check the network between the two"
                )
            )
        if member.standing == "limited":
            findings.append(
                Finding(
                    True, f"{member.title} shares its invite's use with another key", "an admin removes one of the two"
                )
            )
    return findings


def unserved(state: MeshState, everyone: Sequence[Member]) -> list[Finding]:
    """Judge whether somebody serves what is to run: data is on one node, and goes to no other by itself."""
    names = {member.node: member.title for member in everyone}
    findings = []
    for lane in state.lanes:
        nodes = lane_status.nodes_of(state, lane.project, lane.environment)
        data = lane.base is not None and lane.base.data
        words = lane_status.unserved_words(nodes, lane_status.down_of(nodes, everyone), names, data=data)
        if words:
            findings.append(Finding(True, f"{lane.project}/{lane.environment}: {words}", LOOK_STEP))
    return findings


def unready(state: MeshState, everyone: Sequence[Member], views: Mapping[str, NodeView]) -> list[Finding]:
    """Judge whether what is to run runs, by what each node that could be asked says of itself."""
    names = {member.node: member.title for member in everyone}
    findings = []
    for lane in state.lanes:
        name = f"{lane.project}/{lane.environment}"
        nodes = lane_status.nodes_of(state, lane.project, lane.environment)
        idle = [node for node in nodes if node in views and name not in views[node].running]
        if not idle:
            continue
        who = ", ".join(names.get(node) or short(node) for node in idle)
        gone = lane_status.down_of(nodes, everyone)
        nobody = len(idle) + len([node for node in gone if node not in idle]) >= len(nodes)
        what = (
            f"{name}: no visitor is served: {who} does not run its release yet"
            if nobody
            else f"{name}: {who} does not run its release yet"
        )
        findings.append(
            Finding(nobody, what, f"it fetches, compiles and tries it first: freehold logs --project {lane.project}")
        )
    return findings


def quorum(everyone: Sequence[Member]) -> list[Finding]:
    """Judge how far the mesh is from being unable to decide."""
    voters = [member for member in everyone if member.voter]
    lost = [voter for voter in voters if voter.belief == "down" or (voter.belief != "self" and not voter.connected)]
    majority, up = len(voters) // 2 + 1, len(voters) - len(lost)
    names = ", ".join(member.title for member in lost)
    if up < majority:
        return [
            Finding(True, f"{up} of {len(voters)} voters can be reached, {majority} must be: nothing can be decided",
                    f"start {names}; what runs goes on running meanwhile"),
        ]  # fmt: skip
    if lost and up == majority:
        return [
            Finding(True, f"one more lost voter and nothing can be decided ({names} cannot be reached)",
                    LOOK_STEP),
        ]  # fmt: skip
    confirmed = [member for member in everyone if member.confirmed and member.standing == "member"]
    if len(voters) == 1 and len(confirmed) >= 3:
        return [
            Finding(
                False,
                "one voter decides for the whole mesh",
                "it grows on its own within minutes: freehold mesh voters",
            )
        ]
    if len(voters) == 1 and len(confirmed) == 2:
        return [
            Finding(False, "one voter decides alone; two nodes cannot do better", "add a third: freehold mesh invite")
        ]
    return []


def stores(known: Sequence[VoterStore]) -> list[Finding]:
    """Judge whether a voter still has the store that the chain counts on: a lost disk is a lost vote."""
    voting = {voter_store.voter.node for voter_store in known if voter_store.votes}
    return [
        Finding(True, f"the voter {short(voter_store.voter.node)} has another store than the one that votes: its disk was lost",
                f"freehold mesh voters --replace {short(voter_store.voter.node)} {short(voter_store.voter.node)}")
        for voter_store in known
        if not voter_store.votes and voter_store.voter.node in voting
    ]  # fmt: skip


def clock(name: str, skew_ms: int) -> list[Finding]:
    """Judge how far another node's clock is from the asked node's."""
    if abs(skew_ms) < CLOCK_SKEW_WARN_MS:
        return []
    word = "ahead of" if skew_ms > 0 else "behind"
    return [
        Finding(
            abs(skew_ms) >= CLOCK_SKEW_FAULT_MS,
            f"the clock of {name} is {in_words(abs(skew_ms))} {word} the asked node's",
            "set both by NTP: timedatectl set-ntp true",
        )
    ]
