"""Cohorts: which of the pinned nodes serve the candidate in which stage.

Nodes are ordered once, by H(seed || node), and every stage is a prefix of that order, so cohorts nest and canaries
rotate from rollout to rollout. Shares are a count ("1"), a percentage ("25%", rounded up) or a label ("zone=a"). A
mesh of one node has one stage and no canary. Not here: which nodes are eligible (placement.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols.changes.change import Stage
from protocols.envelope import digest
from protocols.machine import PeerId
from protocols.refusal import Refusal
from protocols.state.model import OpenStage

Labels = tuple[tuple[str, str], ...]


def scored(seed: bytes, nodes: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """Return the nodes by ascending SHA-256(seed || node), each once."""
    return tuple(sorted(set(nodes), key=lambda node: (digest(seed + node.encode("ascii")), node)))


def plan_cohorts(
    seed: bytes, labels: Mapping[PeerId, Labels], stages: Sequence[Stage]
) -> tuple[tuple[PeerId, ...], tuple[OpenStage, ...]] | Refusal:
    """Return the order of the nodes in `labels` and the stages over it, or the rule the plan breaks.

    Stages that add no node are merged into the one before, which keeps the stricter gate of both. The last stage must
    hold every node.
    """
    waiting = list(scored(seed, tuple(labels)))
    total = len(waiting)
    if not total:
        return Refusal("placement.no-nodes", "no node is eligible; label one, or change the environment's selector")
    order: list[PeerId] = []
    opened: list[OpenStage] = []
    for stage in stages:
        taken = _taken(stage.nodes, waiting, len(order), total, labels)
        if taken is None:
            return Refusal("plan.stage", f"{stage.nodes[:40]!r} is not a count, a percentage or a label=value")
        order += taken
        chosen = set(taken)
        waiting = [node for node in waiting if node not in chosen]
        if not order:
            return Refusal("plan.stage", f"the first stage {stage.nodes[:40]!r} holds no node")
        step = OpenStage(len(order), stage.min_healthy_ms, stage.pause_ms, stage.approve)
        if opened and opened[-1].size == step.size:
            opened[-1] = _stricter(opened[-1], step)
        else:
            opened.append(step)
    if waiting or not opened:
        return Refusal("plan.incomplete", 'the last stage must hold every node; end with "100%"')
    return tuple(order), tuple(opened)


def _taken(
    share: str, waiting: Sequence[PeerId], placed: int, total: int, labels: Mapping[PeerId, Labels]
) -> list[PeerId] | None:
    key, equals, value = share.partition("=")
    if equals and key and value:
        return [node for node in waiting if (key, value) in labels[node]]
    number = share.removesuffix("%")
    if not (number.isascii() and number.isdigit() and 0 < len(number) <= 4) or int(number) == 0:
        return None
    if share.endswith("%"):
        if int(number) > 100:
            return None
        wanted = -(-total * int(number) // 100)
    else:
        wanted = min(int(number), total)
    return list(waiting[: max(0, wanted - placed)])


def _stricter(first: OpenStage, second: OpenStage) -> OpenStage:
    return OpenStage(
        first.size,
        max(first.min_healthy_ms, second.min_healthy_ms),
        max(first.pause_ms, second.pause_ms),
        first.approve or second.approve,
    )
