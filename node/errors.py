"""The daemon's errors, and the exit code each one ends the process with.

    NodeError                       something the operator must know; `advice` is the next command or step
      ├── ConfigError        exit 64   the configuration cannot be used; nothing was started
      ├── StorageError       exit 74   a durable write or an fsync failed; nothing after it happened, nothing is retried
      │     └── DiskFullError          there was no room for it: it may be tried again once there is
      ├── CorruptStoreError  exit 65   a database is damaged; it was set aside or must be
      └── BusyError          exit 75   an address or a data folder is in use by another process
    NotDoneError                    what a caller asked of the running node is not done, by a rule that it names
      └── NotNowError                   by nobody's rule: the same may be done a moment later

Not here: a peer's misbehaviour (`Reject` effects) and a guest's failure (`runtime.outcome`), which are values.
"""

from __future__ import annotations

from protocols.refusal import Refusal


class NodeError(Exception):
    """An error with advice. Raised before anything changed unless the class says otherwise."""

    exit_code = 70

    def __init__(self, message: str, advice: str = "") -> None:
        """Take what is wrong, and what to do next."""
        super().__init__(message)
        self.advice = advice


class ConfigError(NodeError):
    """The configuration cannot be used."""

    exit_code = 64


class CorruptStoreError(NodeError):
    """A database fails its integrity check or has a schema from the future."""

    exit_code = 65


class StorageError(NodeError):
    """A durable write failed: what it carried is not acknowledged to anybody, and the process must end."""

    exit_code = 74


class DiskFullError(StorageError):
    """There was no room for a write, and none of it was done."""


class BusyError(NodeError):
    """Somebody else holds what the daemon needs."""

    exit_code = 75


class NotDoneError(Exception):
    """What a caller asked of the running node is not done; the refusal names the rule, `advice` is the next step."""

    def __init__(self, refusal: Refusal, advice: str = "") -> None:
        """Take the rule and its sentence, and what to do next."""
        super().__init__(refusal.detail)
        self.refusal = refusal
        self.advice = advice


class NotNowError(NotDoneError):
    """The node is too busy, or what must end first goes on."""
