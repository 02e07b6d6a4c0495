"""Answers of a node's API as unit tests make them up: a sound node, a proposed change, a decision, each with its own fields."""

from __future__ import annotations

from typing import Any

from protocols.api_models import ChangeView, DecisionView, NodeView

SOUND_UNTIL_MS = 4_000_000_000_000


def node_view(**fields: Any) -> NodeView:
    """A node that nothing is wrong with, but for what is given."""
    sound = {
        "node": "12D3KooWxxxxxxxxxxxa", "name": "oslo", "version": "1", "mesh": "ab" * 32, "mesh_name": "home",
        "standing": "member", "voter": True, "speaking": True, "stalled": "", "slot": 7, "peers": (), "mesh_addresses": (),
        "api": "", "api_pin": "", "ingress": (), "workers": 2, "records": 1, "wall_ms": 0, "expires_ms": SOUND_UNTIL_MS,
        "quarantined": "", "refused_by": {}, "doubles": (), "running": (), "disk_free_bytes": 1 << 40,
        "wasmtime": "50.0.1", "warnings": (),
    }  # fmt: skip
    return NodeView(**{**sound, **fields})


def change_view(**fields: Any) -> ChangeView:
    """A change that was proposed and not started, but for what is given."""
    proposed = {
        "id": "ab" * 32, "project": "site", "environment": "production", "request": "greet", "release": "cd" * 32,
        "configuration": "ef" * 32, "base": "", "author": "aa" * 32, "created_ms": 0, "approvals": 0, "prepared": (),
        "failure": "", "state": "proposed", "start": None,
    }  # fmt: skip
    return ChangeView(**{**proposed, **fields})


def decision_view(action: str, at_ms: int, subject: str = "", **fields: Any) -> DecisionView:
    """A decision on a lane, certified by nobody in particular."""
    table = {
        "slot": 7, "project": "shop", "environment": "eu", "signers": (), "voters": (), "reason": "", "numbers": (),
    }  # fmt: skip
    return DecisionView(**{**table, "action": action, "at_ms": at_ms, "subject": subject, **fields})
