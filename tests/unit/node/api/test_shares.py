"""Shares of what callers hold at once: one key's slow calls are its own trouble, and the operator's places nobody's."""

from __future__ import annotations

import contextlib

import pytest

from node.api.callers.shares import SHARES, Share, Shares
from node.api.problems import ProblemError

OPERATOR = "socket:0"


def refused(shares: Shares, share: Share, principal: str) -> tuple[int, str]:
    with pytest.raises(ProblemError) as error, shares.hold(share, principal):
        pass
    assert error.value.fields["Retry-After"]
    return error.value.problem.status, error.value.problem.rule


@pytest.mark.parametrize("share", SHARES, ids=lambda one: one.name)
def test_one_caller_uses_up_its_share_and_nobody_elses(share: Share) -> None:
    shares = Shares()
    with contextlib.ExitStack() as held:
        for _ in range(share.principal_max):
            held.enter_context(shares.hold(share, "token"))
        assert refused(shares, share, "token") == (429, f"share.{share.name}")
        with shares.hold(share, "another"), shares.hold(share, OPERATOR):
            pass
    with shares.hold(share, "token"):
        pass


@pytest.mark.parametrize("share", SHARES, ids=lambda one: one.name)
def test_all_of_the_network_together_leave_the_operators_places_alone(share: Share) -> None:
    shares = Shares()
    with contextlib.ExitStack() as held:
        for number in range(share.remote_max):
            held.enter_context(shares.hold(share, f"key {number // share.principal_max}"))
        assert refused(shares, share, "one more") == (503, "request.busy")
        for _ in range(share.local_max):
            held.enter_context(shares.hold(share, OPERATOR))
        assert refused(shares, share, OPERATOR) == (503, "request.busy")


def test_a_place_is_free_again_whatever_ended_the_call() -> None:
    shares, share = Shares(), SHARES[0]
    for _ in range(3 * share.principal_max):
        with contextlib.suppress(RuntimeError), shares.hold(share, "token"):
            raise RuntimeError
    assert not shares._held
    assert not +shares._totals
