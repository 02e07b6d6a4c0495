"""Looks at the workers for metrics: two at once count each answer once, whichever hears from the workers first."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from node.api.reports.app_metrics import look
from node.control import Control
from node.serving.app_counts import AppCounts
from runtime.messages import AppStatus, Status


class Workers:
    """Answers the first look last, with what it saw then."""

    def __init__(self) -> None:
        self.count = 0
        self.asked = 0

    async def status(self) -> tuple[Status, ...]:
        self.asked += 1
        self.count += 1
        seen = self.count
        await asyncio.sleep(0.05 if self.asked == 1 else 0)
        app = AppStatus("k", "web", seen, 0, 0, {"completed": seen}, {"2xx": seen}, (seen,), seen, 0)
        return (Status(1, 7, 0, 0, 0, 0, 0, 0, {}, (app,)),)


async def test_looks_that_overlap_count_nothing_twice() -> None:
    workers, counts = Workers(), AppCounts()
    running: dict[tuple[str, str], Any] = {("site", "production"): SimpleNamespace(key="k", release=b"r" * 32)}
    control = cast(
        Control, SimpleNamespace(app_counts=counts, pool=workers, workloads=SimpleNamespace(running=running))
    )
    await asyncio.gather(look(control), look(control))
    await look(control)
    (total,) = counts.totals.values()
    assert (total.statuses, total.buckets) == ({"2xx": workers.count}, [workers.count])
