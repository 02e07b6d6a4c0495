"""Workers for what runs before visitors come: smoke checks on empty stores that are thrown away, migrations on a copy.

Each run gets a worker of its own.

A node of a developer keeps one such worker started ahead, since every save waits for it. What apps write during a run is
heard only if it fails: it says why, and of a run that passed it would be noise. Not here: which checks are run, and what
they say (releases.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from runtime.messages import LogBatch, ReleaseLoad
from runtime.native.choice import Wanted
from runtime.services.sqlite_sql import STATEMENT_MAX_S
from runtime.workers.pool import PoolError, WorkerPool
from runtime.workers.pool_settings import PoolSettings

START_TIMEOUT_S = 30.0
AHEAD_AFTER_S = 1.0
"""The next worker starts when the rollout that the last one was for has had its turn on the processors."""

ORPHAN_LIMIT_S = 5.0
"""Nobody adopts such a worker: without its daemon it has nothing to do."""

DRAIN_GRACE_MS = 1_000
LINES_MAX = 200
"""Of a run, the newest: a long traceback or two."""

END_TIMEOUT_S = 10.0
"""For a worker to write its last lines and end."""

BUILD = "smoke"
SMOKE_ENGINE: Final[Wanted] = "python"
"""Its ingress is a Unix socket, which the Python engine serves."""


class Bench:
    """One worker, its ingress on a Unix socket, and its stores."""

    def __init__(
        self, tasks: asyncio.TaskGroup, folder: Path, sockets: Path, *, data: Path | None = None,
        providers_file: Path | None = None, statement_max_s: float = STATEMENT_MAX_S,
    ) -> None:  # fmt: skip
        """Start it; `folder` takes the stores and `sockets`, which has a short path, the sockets.

        With `data` the stores are those of that folder and of the providers, which stay.
        """
        self._thrown_away = Path(tempfile.mkdtemp(prefix="smoke-", dir=folder))
        self._sockets = Path(tempfile.mkdtemp(prefix="smoke-", dir=sockets))
        self.ingress = self._sockets / "ingress.sock"
        self.pool = WorkerPool(
            PoolSettings(
                listen=(f"unix:{self.ingress}",),
                runtime_folder=self._sockets / "run",
                data_folder=data or self._thrown_away / "data",
                providers_file=providers_file,
                thrown_away=data is None,
                statement_max_s=statement_max_s,
                build=BUILD,
                workers=1,
                engine=SMOKE_ENGINE,
                drain_grace_ms=DRAIN_GRACE_MS,
                orphan_limit_s=ORPHAN_LIMIT_S,
            ),
            on_logs=self._keep,
        )
        self._said: deque[bytes] = deque(maxlen=LINES_MAX)
        self._problem = "its worker ended"
        self.life = tasks.create_task(self._live())

    async def started(self) -> None:
        """Wait until it takes releases. Raises PoolError, TimeoutError."""
        ready = asyncio.ensure_future(self.pool.started())
        try:
            await asyncio.wait({ready, self.life}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return await ready
            raise PoolError(self._problem) if self.life.done() else TimeoutError
        finally:
            ready.cancel()

    async def said(self) -> list[bytes]:
        """End it, and return the lines that its apps wrote."""
        await self.pool.stop()
        await asyncio.wait({self.life}, timeout=END_TIMEOUT_S)
        return [line for line in self._said if json.loads(line).get("stream") == "guest"]

    def _keep(self, batch: LogBatch) -> None:
        self._said.extend(batch.lines)

    async def _live(self) -> None:
        try:
            await self.pool.run()
        except* (PoolError, OSError) as group:
            self._problem = str(group.exceptions[0])
        finally:
            await asyncio.to_thread(shutil.rmtree, self._thrown_away, True)
            await asyncio.to_thread(shutil.rmtree, self._sockets, True)


class SmokeBenches:
    """Hands out benches; `run` is its life."""

    def __init__(
        self, folder: Path, sockets: Path, on_said: Callable[[bytes], None], *, ahead: bool = False,
        providers_file: Path | None = None,
    ) -> None:  # fmt: skip
        """Take where benches keep what they need, and who hears what apps wrote in a run that failed.

        `ahead` keeps one started. `providers_file` says in which servers databases of a check are made.
        """
        self._folder, self._sockets, self._on_said, self._ahead = folder, sockets, on_said, ahead
        self._providers_file = providers_file
        self._tasks: asyncio.TaskGroup | None = None
        self._next: Bench | None = None
        self._last: ReleaseLoad | None = None
        """What was tested last: the next version runs on the same components, more often than not."""
        self._open: dict[Bench, None] = {}

    async def run(self) -> None:
        """Own the benches until cancelled, then end them."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while True:
                    await asyncio.sleep(AHEAD_AFTER_S)
                    if self._ahead and not self._open:
                        self._next = self._make()
                        if self._last is not None:
                            await self._warm(self._next, self._last)
            finally:
                left = list(self._open)
                for bench in left:
                    await bench.pool.stop()
                await asyncio.gather(*(bench.life for bench in left), return_exceptions=True)

    async def _warm(self, bench: Bench, load: ReleaseLoad) -> None:
        """Have the components of the last version in a bench before the next comes; without them it is slower, no more."""
        with contextlib.suppress(PoolError, TimeoutError):
            await bench.started()
            await bench.pool.load(load)

    @contextlib.asynccontextmanager
    async def expecting(self) -> AsyncIterator[None]:
        """Start a bench beside what must be done before it is taken; without a taker it is ended behind the caller."""
        mine = None
        if self._next is None and self._tasks is not None:
            mine = self._next = self._make()
        try:
            yield
        finally:
            if mine is not None and self._next is mine:
                self._next = None
                await mine.pool.stop()

    @contextlib.asynccontextmanager
    async def take(self, load: ReleaseLoad) -> AsyncIterator[Bench]:
        """Hand out a bench that has loaded a release, and no other has used; it is ended behind the caller.

        Raises PoolError, TimeoutError.
        """
        bench, self._next = self._next or self._make(), None
        async with self._loaded(bench, load):
            self._last = load
            yield bench

    @contextlib.asynccontextmanager
    async def over(
        self, data: Path, load: ReleaseLoad, providers_file: Path, statement_max_s: float
    ) -> AsyncIterator[Bench]:
        """Hand out a bench over stores that stay; behind the caller nobody writes there any more.

        Raises PoolError, TimeoutError.
        """
        bench = self._make(data=data, providers_file=providers_file, statement_max_s=statement_max_s)
        try:
            async with self._loaded(bench, load):
                yield bench
        finally:
            await asyncio.wait({bench.life})

    @contextlib.asynccontextmanager
    async def _loaded(self, bench: Bench, load: ReleaseLoad) -> AsyncIterator[None]:
        try:
            await bench.started()
            await bench.pool.load(load)
            yield
        except Exception:
            for line in await bench.said():
                self._on_said(line)
            raise
        finally:
            if any(app.spec.providers for app in load.apps):  # what it made in a server goes with the release
                with contextlib.suppress(PoolError, TimeoutError):
                    await bench.pool.activate(())
                    await bench.pool.unload(load.key)
            await bench.pool.stop()

    def _make(self, **other: Any) -> Bench:
        assert self._tasks is not None, "a bench before run"
        settings = {"providers_file": self._providers_file, **other}
        bench = Bench(self._tasks, self._folder, self._sockets, **settings)
        self._open[bench] = None
        bench.life.add_done_callback(lambda _: self._open.pop(bench))
        return bench
