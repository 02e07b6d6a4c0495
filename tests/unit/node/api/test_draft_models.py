"""What a drafted change can say, beside what a change says."""

from __future__ import annotations

from node.api.papers.draft_models import DraftApp
from protocols.changes.effective import EffectiveApp


def test_a_draft_says_of_an_app_all_that_a_change_does() -> None:
    # The toolchain is the release's, whose components say it.
    assert set(DraftApp.__struct_fields__) - {"toolchain"} == set(EffectiveApp.__struct_fields__)
