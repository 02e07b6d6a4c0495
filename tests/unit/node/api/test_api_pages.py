"""Lists page by page while they grow: what was there at the start is shown once, whatever is added meanwhile."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from node.api.operations import CURSOR_MAX_CHARS, page
from node.api.secrets import listed_at
from node.serving.secrets import HeldSecret
from protocols.changes.secrets import NAME_MAX, SealedSecret
from protocols.envelope import Signed, digest


def held(project: str, environment: str, name: str, version: int) -> HeldSecret:
    secret = SealedSecret(project, environment, name, version, 0, b"", ())
    return HeldSecret(digest(f"{project} {environment} {name} {version}".encode()), "", Signed(b"", b"", b""), secret)


def in_order(found: set[HeldSecret]) -> list[HeldSecret]:
    """As the node lists them: by place and name, newest first."""
    return sorted(
        found, key=lambda one: (one.secret.project, one.secret.environment, one.secret.name, -one.secret.version)
    )


NAMES = st.sampled_from(["A", "A_B", "A0", "KEY_10", "KEY_9", "KEY_99", "Z" * NAME_MAX])
PLACES = st.sampled_from(["a", "a-b", "a0", "site"])
SECRETS = st.builds(held, PLACES, PLACES, NAMES, st.integers(1, 300))


@given(st.sets(SECRETS, min_size=1), st.lists(SECRETS), st.integers(1, 4), st.randoms(use_true_random=False))
def test_secrets_that_are_set_between_two_pages_hide_none_that_was_there(
    before: set[HeldSecret], more: list[HeldSecret], limit: int, dice: random.Random
) -> None:
    there, seen, query = set(before), [], {"limit": limit}
    while True:
        cut = page(in_order(there), listed_at, query, ascending=True)
        seen += cut.items
        if not cut.cursor:
            break
        assert len(cut.cursor) <= CURSOR_MAX_CHARS
        query["cursor"] = cut.cursor
        there |= {more.pop() for _ in range(dice.randint(0, len(more)))}
    assert before <= set(seen)
    assert len(seen) == len(set(seen))
    assert seen == in_order(set(seen))
