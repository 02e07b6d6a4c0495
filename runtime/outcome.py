"""How one run of a guest ended, as a value. Guest failures never cross the sandbox as exceptions.

Not here: the HTTP answer for each (the worker's ingress chooses it) or logging.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completed:
    """The guest answered, whole."""


@dataclass(frozen=True, slots=True)
class Exited:
    """A command ended with this exit code; 0 is success. A handler that calls `exit` ends this way too."""

    code: int


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The guest answered with a `wasi:http` error-code instead of a response."""

    code: str


@dataclass(frozen=True, slots=True)
class BodyAborted:
    """The guest began a response and dropped its body before finishing it."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoResponse:
    """The handler returned and never set a response."""


@dataclass(frozen=True, slots=True)
class Trapped:
    """The guest trapped, or broke a rule of an interface. `backtrace` is the guest's, for the log only."""

    reason: str
    backtrace: str


@dataclass(frozen=True, slots=True)
class DeadlineExceeded:
    """The wall-clock limit of the call passed."""

    timeout_ms: int


@dataclass(frozen=True, slots=True)
class MemoryRefused:
    """The guest failed for want of memory, table space or instances under its caps."""

    memory_max_bytes: int
    reason: str
    backtrace: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client went away or the worker stopped the call."""


@dataclass(frozen=True, slots=True)
class HostFailed:
    """The host itself failed: a defect of ours, never the guest's doing. `traceback` is for the log."""

    reason: str
    traceback: str


Outcome = (
    Completed
    | Exited
    | ErrorResponse
    | BodyAborted
    | NoResponse
    | Trapped
    | DeadlineExceeded
    | MemoryRefused
    | Cancelled
    | HostFailed
)


def instance_survives(outcome: Outcome) -> bool:
    """Whether the instance that produced `outcome` may serve again: only after an orderly return."""
    return isinstance(outcome, Completed | ErrorResponse | BodyAborted | NoResponse)
