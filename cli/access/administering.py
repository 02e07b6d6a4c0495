"""Acting as an admin of a mesh: the sealed key of a context, opened at the terminal for one named purpose.

Not here: what the key signs, and everyday work, which needs no admin.
"""

from __future__ import annotations

from cli.access import contexts as home
from cli.access.contexts import Context
from cli.access.prompts import NeedsPersonError, unlock
from protocols.keys import Ed25519Signer


def require_admin(context: Context, purpose: str) -> None:
    """Find the admin key of a context, before anybody is asked anything. Raises NeedsPersonError where there is none."""
    if not context.admin:
        raise NeedsPersonError(
            f"there is no admin key of this mesh here, to {purpose}",
            next_step="run the same command where the mesh was created",
            kind="no-admin-key",
        )
    home.public_key(context.admin)  # raises UsageError if its file is gone


def unlock_admin(context: Context, purpose: str) -> Ed25519Signer:
    """Open the admin key of a context at the terminal. Raises NeedsPersonError where there is none."""
    require_admin(context, purpose)
    return unlock(context.admin, purpose)
