"""The limits of one worker's ingress. Not here: what holds connections to them (front.py, connection.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """Limits of one worker's ingress. Times in seconds, sizes in bytes.

    `local_only` answers browsers of this machine alone: a page of elsewhere that reaches it under a name of its own (DNS
    rebinding), or that sends it requests (Origin), is refused. `traced` is the share of traces beginning here that are
    recorded; one that a client began says itself whether it is.
    """

    connections_max: int = 2048
    head_timeout_s: float = 10.0
    body_idle_timeout_s: float = 20.0
    keep_alive_s: float = 60.0
    write_idle_timeout_s: float = 30.0
    linger_s: float = 2.0
    half_closed_s: float = 10.0
    fields_max: int = 100
    fields_max_bytes: int = 64 * 1024
    target_max_bytes: int = 8 * 1024
    local_only: bool = False
    traced: float = 1.0
