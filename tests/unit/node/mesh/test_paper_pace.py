"""How fast one principal files papers: so much at once, then at a pace, and another principal not at all in its way."""

from __future__ import annotations

from node.mesh.paper_pace import AT_ONCE_MAX_BYTES, BESIDE_BYTES, BYTES_PER_S, PaperPace

PAPER_BYTES = 12 * 1024
COST_BYTES = PAPER_BYTES + BESIDE_BYTES


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def filed_at_once(pace: PaperPace, payer: str) -> int:
    count = 0
    while pace.take(payer, PAPER_BYTES) is None:
        count += 1
    return count


def test_a_principal_files_so_much_at_once_and_another_as_much() -> None:
    pace = PaperPace(Clock())
    assert filed_at_once(pace, "one") == AT_ONCE_MAX_BYTES // COST_BYTES
    assert filed_at_once(pace, "two") == AT_ONCE_MAX_BYTES // COST_BYTES


def test_papers_of_a_few_bytes_cost_what_they_take_beside() -> None:
    pace = PaperPace(Clock())
    count = 0
    while pace.take("one", 1) is None:
        count += 1
    assert count <= AT_ONCE_MAX_BYTES // BESIDE_BYTES


def test_after_the_time_that_is_told_the_next_one_is_taken_and_not_a_second_before() -> None:
    clock = Clock()
    pace = PaperPace(clock)
    filed_at_once(pace, "one")
    refusal = pace.take("one", PAPER_BYTES)
    assert refusal is not None
    assert refusal.rule == "quota.pace"
    told_s = int(refusal.detail.rpartition(" in ")[2].removesuffix(" s"))
    clock.now_s += told_s - 1
    assert pace.take("one", PAPER_BYTES) is not None
    clock.now_s += 1
    assert pace.take("one", PAPER_BYTES) is None


def test_a_refused_paper_costs_nothing_and_a_minute_at_full_speed_adds_a_mebibyte() -> None:
    clock = Clock()
    pace = PaperPace(clock)
    filed_at_once(pace, "one")
    more = 0
    for _ in range(600):
        clock.now_s += 0.1
        more += pace.take("one", PAPER_BYTES) is None
    assert more * COST_BYTES <= 61 * BYTES_PER_S
    assert more >= 58 * BYTES_PER_S // COST_BYTES
