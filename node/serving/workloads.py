"""What this node runs: obeys the rollout agent's orders with the worker pool, and reports what it sees.

Orders come from the core's notices, in order; preparing goes on beside them, running and stopping one after the
other. Every second, when something began to run and when the agent asks, each lane that runs here is looked at and
its counters are handed to the agent. Not here: what should run, which is decided (protocols/rollout/agent.py), and how a
release is made ready (releases.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.mesh.request_relay import routes_away
from node.serving.meter import Meter, since
from node.serving.migrations import Migrations, UnwantedError
from node.serving.releases import (
    LaterError,
    PreparationError,
    PreparedRelease,
    Releases,
    run_smoke,
    smoke_routes,
    with_networks,
)
from protocols.chain.messages import EntryStored
from protocols.changes.change import SecretVersion
from protocols.changes.effective import EffectiveApp
from protocols.changes.statements import Counts
from protocols.core import NodeCore
from protocols.envelope import digest, encode
from protocols.machine import Digest
from protocols.records.gossip import RecordsMerged
from protocols.rollout.orders import (
    Observe,
    PreparationDone,
    PrepareRelease,
    ReplaySmoke,
    Retain,
    Run,
    SmokeReplayed,
    Stop,
    WorkObserved,
)
from protocols.state.model import Deployed
from protocols.state.placement import private_networks
from runtime.messages import WorkerRoute
from runtime.workers.pool import PoolError, WorkerPool

COLLECT_EVERY_S = 600.0
LOOK_EVERY_S = 1.0
SETTLE_S = 0.25
"""Between saying that a lane is gone and its routes going: a request that another node just sent still finds its app."""

PREPARE_AGAIN_S = 5.0
PREPARE_AGAIN_MAX_S = 60.0
"""What a change needs and is not to be had (bytes, room, a worker) is asked for again, each time after twice as long.

A candidate that can be prepared again has then most of its five minutes left.
"""

PREPARE_WAITING_MAX = 64
"""Changes that wait to be prepared again: as many as the agent remembers. Those that may not start now go first."""

AGAIN = "; this node tries again"

START_AGAIN_S = 5.0
"""After a start that failed: what was decided stays ordered, and bytes or a worker that were away come back."""

PREPARED_KEPT_MAX = 128
FAILURES_MAX = 256
ORDERS_MAX = 1_024
CHECKED_AGAIN_AFTER_S = 30.0
"""Between two runs of a waiting change's smoke checks: each leaves a record, and demands may be shorter than this."""

Lane = tuple[str, str]
_log = logging.getLogger("freehold.workloads")


@dataclass(slots=True)
class Running:
    """What one lane runs here. `opened` is the stage at whose opening `counted` was taken."""

    deployed: Deployed
    role: str
    prepared: PreparedRelease
    schedules: bool
    ready: bool = False
    opened: int = -1
    counted: Counts = field(default_factory=Counts)

    @property
    def key(self) -> str:
        """What the workers know the release by."""
        return self.prepared.key

    @property
    def release(self) -> bytes:
        """The release's digest."""
        return self.prepared.release

    @property
    def jobs(self) -> tuple[EffectiveApp, ...]:
        """The apps with a schedule."""
        return tuple(app for app in self.prepared.effective.apps if app.schedule)

    @property
    def handlers(self) -> tuple[EffectiveApp, ...]:
        """The apps that handle messages."""
        return tuple(app for app in self.prepared.effective.apps if app.queues[1])


class Workloads:
    """The node's apps."""

    def __init__(
        self,
        core: NodeCore,
        releases: Releases,
        pool: WorkerPool,
        ingress: Path,
        post: Callable[[Any], bool],
        smoked: Callable[[Digest, PreparedRelease], None] = lambda _change, _prepared: None,
        migrations: Migrations | None = None,
    ) -> None:
        """Take the core to read, what prepares, the pool with its Unix ingress, and where observations go.

        Without `migrations` no release migrates data. `smoked` hears that a change's smoke checks passed here.
        """
        self._core = core
        self._releases = releases
        self._pool = pool
        self._ingress = ingress
        self._post = post
        self._orders: asyncio.Queue[Run | Stop | None] = asyncio.Queue(ORDERS_MAX)
        self._switch_due = False
        """Whether a look at the routes is among the orders: one is enough, however much is decided meanwhile."""
        self._ordered: dict[Lane, Run] = {}
        """The last order to run, by lane: the agent gives one once, whatever becomes of it."""
        self._tasks: asyncio.TaskGroup | None = None
        self._prepared: dict[Digest, PreparedRelease] = {}
        self._retained: tuple[Digest, ...] = ()
        self._loaded: dict[str, PreparedRelease] = {}
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._routes: list[WorkerRoute] | None = None
        self._serving: dict[Lane, str] = {}
        self._starts: int | None = None
        self._meter = Meter()
        self._looking = asyncio.Lock()
        self.running: dict[Lane, Running] = {}
        self._smoked = smoked
        self._migrations = migrations
        self._migrating: set[Lane] = set()
        self._checking: set[Digest] = set()
        self._unready: set[Digest] = set()
        """Changes that wait to be prepared again."""
        self.failures: dict[Digest, str] = {}
        """Why a change could not be prepared or started here, for `status`."""

    def order(self, event: Any) -> None:
        """Take one of the core's notices; those that are no orders are left alone."""
        assert self._tasks is not None, "orders before run"
        match event:
            case Run(project, environment):
                self._ordered[project, environment] = event
                self._orders.put_nowait(event)
            case Stop(project, environment):
                self._ordered.pop((project, environment), None)
                self._orders.put_nowait(event)
            case EntryStored():
                self._switch_soon()
            case RecordsMerged() if self._routes is None and self._orders.empty():
                # The first thing a node does is to announce itself: orders for what it ran before came ahead of that.
                self._switch_soon()
            case PrepareRelease(change):
                self._tasks.create_task(self._prepare(change))
            case Observe():
                self._tasks.create_task(self._look_around())
            case ReplaySmoke(project, environment, change):
                self._tasks.create_task(self._replay((project, environment), change))
            case Retain(changes):
                self._retained = changes
            case _:
                pass

    def _switch_soon(self) -> None:
        if not self._switch_due:
            self._switch_due = True
            self._orders.put_nowait(None)

    async def run(self) -> None:
        """Obey and observe until cancelled; the pool must be running."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._obey())
            tasks.create_task(self._observe())
            tasks.create_task(self._collect())

    @property
    def alive(self) -> bool:
        """Whether a worker is up."""
        return any(slot.pid is not None for slot in self._pool.slots())

    def serves(self, lane: Lane, role: str) -> bool:
        """Whether the workers here answer for the lane, in this role or, if it is `any`, in either."""
        return self._serving.get(lane) == role if role != "any" else lane in self._serving

    def kept_artifacts(self) -> set[bytes]:
        """What no collection may take: all that any lane runs or can go back to, and what is prepared here."""
        needed: set[bytes] = set()
        for deployed in self._decided():
            needed |= {deployed.configuration, *self._releases.named_by(deployed.release)}
        for prepared in (*self._prepared.values(), *(running.prepared for running in self.running.values())):
            needed |= {*self._releases.named_by(prepared.release), digest(encode(prepared.effective))}
        return needed

    # --- preparing ---------------------------------------------------------------------------------------------------

    def tries_again(self, change: Digest) -> bool:
        """Whether a change waits to be prepared again."""
        return change in self._unready

    def check_again(self, change: Digest) -> None:
        """Run the smoke checks of a prepared change again, now, and tell `smoked`; seldom, however often it is asked."""
        if self._tasks is not None and change in self._prepared and change not in self._checking:
            self._checking.add(change)
            self._tasks.create_task(self._check_again(change, self._prepared[change]))

    async def _check_again(self, change: Digest, prepared: PreparedRelease) -> None:
        try:
            if await self._releases.smoke(prepared) and not prepared.from_source:
                self._smoked(change, prepared)
            self.failures.pop(change, None)
        except (PreparationError, OSError) as error:
            _log.warning("not attested again: %s", error, extra={"event": "smoke.failed", "change": change.hex()})
            self._fail(change, str(error))
        await asyncio.sleep(CHECKED_AGAIN_AFTER_S)
        self._checking.discard(change)

    async def _prepare(self, change: Digest) -> None:
        """Prepare a change and tell the agent how that ended."""
        try:
            prepared, smoked = await self._prepare_patiently(change)
        except PreparationError as error:
            self._fail(change, str(error))
            self._post(PreparationDone(change, False, reason=str(error)[:200]))
            return
        finally:
            self._unready.discard(change)
        self.failures.pop(change, None)
        self._keep(change, prepared)
        if smoked and not prepared.from_source:
            self._smoked(change, prepared)
        self._post(PreparationDone(change, True, "passed" if smoked else "absent"))

    async def _prepare_patiently(self, change: Digest) -> tuple[PreparedRelease, bool]:
        """Prepare, as often as it takes while what it takes is away; the agent takes it for being prepared meanwhile.

        So a candidate that waits is judged by its rollout's deadlines. Raises PreparationError for what no other try
        would mend.
        """
        again_s = PREPARE_AGAIN_S
        while True:
            parts = self._parts(change)
            if parts is None:
                raise PreparationError("nobody here knows the change")
            try:
                return await self._prepare_parts(change, *parts)
            except PreparationError as error:
                problem = error
            except OSError as error:  # no room for what it needs, most of all
                problem = LaterError(str(error))
            _log.warning("not prepared: %s", problem, extra={"event": "prepare.failed", "change": change.hex()})
            self._unready.add(change)
            if not isinstance(problem, LaterError) or sum(map(self._may_run, self._unready)) > PREPARE_WAITING_MAX:
                raise problem
            self._fail(change, f"{problem}{AGAIN}")
            await asyncio.sleep(again_s)
            while not self._may_run(change):  # decisions are few, and this is a long wait
                if len(self._unready) > PREPARE_WAITING_MAX:
                    raise problem  # it gives way to one that may run
                await asyncio.sleep(again_s)
            again_s = min(again_s * 2, PREPARE_AGAIN_MAX_S)

    async def _prepare_parts(
        self, change: Digest, release: bytes, configuration: bytes, secrets: tuple[SecretVersion, ...], base: bytes
    ) -> tuple[PreparedRelease, bool]:
        """Prepare, and run the smoke checks."""
        if self._was_decided(change):
            # It passed the checks before it started; a node that restarts does not put it to the test again.
            prepared = await self._releases.prepare(release, configuration, secrets, decided=True)
            smoked = False
        else:
            async with self._releases.expecting_smoke():
                prepared = await self._releases.prepare(release, configuration, secrets)
                smoked = await self._releases.smoke(prepared)
        if base:
            # What a node returns to must be here before it leaves it.
            await self._releases.manifest(base)
        return prepared, smoked

    def _parts(self, change: Digest) -> tuple[bytes, bytes, tuple[SecretVersion, ...], bytes] | None:
        """Release, configuration, secret versions and base of a change, from its dossier or from what was decided."""
        proposed = self._core.dossiers.changes.get(change)
        if proposed is not None:
            named = proposed.change
            return named.release, named.configuration, named.secrets, named.base
        for deployed in self._decided():
            if deployed.change == change:
                return deployed.release, deployed.configuration, deployed.secrets, b""
        return None

    def _decided(self) -> Iterator[Deployed]:
        """What the chain names: every lane's base, candidate and releases kept for rollback."""
        for lane in self._core.state.lanes:
            candidate = (lane.rollout.candidate,) if lane.rollout is not None else ()
            yield from (entry for entry in (lane.base, *candidate, *lane.retained) if entry is not None)

    def _may_run(self, change: Digest) -> bool:
        """Whether the chain names a change, or it was computed against what runs and so may still start.

        True also of one that is known no more: the next try says so.
        """
        proposed = self._core.dossiers.changes.get(change)
        if proposed is None or any(deployed.change == change for deployed in self._decided()):
            return True
        lane = self._core.state.lane(proposed.change.project, proposed.change.environment)
        running = lane.base.release if lane is not None and lane.base is not None else b""
        return proposed.change.base == running

    def _fail(self, change: Digest, why: str) -> None:
        self.failures[change] = why
        if len(self.failures) > FAILURES_MAX:
            del self.failures[next(iter(self.failures))]

    def _was_decided(self, change: Digest) -> bool:
        """Whether a lane's base or a release kept for rollback is this change."""
        bases = [
            deployed
            for lane in self._core.state.lanes
            for deployed in (lane.base, *lane.retained)
            if deployed is not None
        ]
        return any(base.change == change for base in bases)

    def _keep(self, change: Digest, prepared: PreparedRelease) -> None:
        self._prepared[change] = prepared
        for other in list(self._prepared):
            if len(self._prepared) <= PREPARED_KEPT_MAX:
                break
            if other not in self._retained and other != change:
                del self._prepared[other]

    async def _replay(self, lane: Lane, change: Digest) -> None:
        running = self.running.get(lane)
        result = "absent"
        if running is not None and running.deployed.change == change and running.prepared.effective.smoke:
            try:
                await run_smoke(self._ingress, running.prepared)
                result = "passed"
            except PreparationError as error:
                _log.warning("smoke failed: %s", error, extra=_about(lane, "smoke.failed"))
                result = "failed"
        self._post(SmokeReplayed(*lane, change, result))  # type: ignore[arg-type]

    # --- running -----------------------------------------------------------------------------------------------------

    async def _obey(self) -> None:
        while True:
            match await self._orders.get():
                case Stop(project, environment):
                    if self.running.pop((project, environment), None) is not None:
                        self._serving.pop((project, environment), None)
                        await asyncio.sleep(SETTLE_S)
                    await self._switch()
                case Run(project, environment) as order:
                    if self._ordered.get((project, environment)) is order:  # else another one is behind it
                        await self._start((project, environment), order)
                case None:
                    self._switch_due = False
                    await self._switch()
                    await self._follow_networks()

    async def _start(self, lane: Lane, order: Run) -> None:
        deployed = order.deployed
        prepared = self._prepared.get(deployed.change)
        try:
            if prepared is None:
                prepared = await self._releases.prepare(
                    deployed.release, deployed.configuration, deployed.secrets, decided=True
                )
                self._keep(deployed.change, prepared)
            prepared = with_networks(prepared, self._networks(lane[1]))
            if self._migrations is not None and self._migrations.is_due(lane, prepared):
                assert self._tasks is not None
                self._tasks.create_task(self._migrate(lane, order, self._migrations, prepared))
                return
            running = Running(deployed, order.role, prepared, order.schedules)
            if prepared.key in self._unloading:
                await self._unloading[prepared.key]
            if prepared.key not in self._loaded:
                await self._pool.load(prepared.load)
                self._loaded[prepared.key] = prepared
            running.ready = True
        except (PoolError, PreparationError, OSError) as error:
            _log.error("not started: %s", error, extra=_about(lane, "run.failed"))
            self._post(WorkObserved(*lane, deployed.change, ready=False, crashes=1))
            await self._switch()
            self._try_again(lane, order, error)
            return
        self.failures.pop(deployed.change, None)
        self.running[lane] = running
        await self._switch()
        self._look(lane, running, self._alive(), 0)  # at once: what is ready need not wait to be found so
        _log.info("serving", extra={**_about(lane, "run"), "release": deployed.release.hex(), "role": order.role})

    def _try_again(self, lane: Lane, order: Run, problem: Exception) -> None:
        self._fail(order.deployed.change, f"{problem}{AGAIN}")
        assert self._tasks is not None
        self._tasks.create_task(self._start_again(lane, order))

    async def _migrate(self, lane: Lane, order: Run, migrations: Migrations, prepared: PreparedRelease) -> None:
        """Have a release migrate its data beside all else, then start it. What ran before serves meanwhile.

        A candidate that cannot is reported like one that cannot be prepared.
        """
        if lane in self._migrating:  # an earlier order's, which ends as it is wanted no more
            return self._try_again(lane, order, LaterError("an earlier migration has to end"))
        self._migrating.add(lane)
        try:
            await migrations.run(lane, prepared, lambda: self._ordered.get(lane) is order)
        except UnwantedError:
            wanted = self._ordered.get(lane) is order
            return self._try_again(lane, order, LaterError("the data went elsewhere")) if wanted else None
        except PreparationError as error:
            _log.error("not migrated: %s", error, extra=_about(lane, "migrate.failed"))
            if order.role != "candidate" or isinstance(error, LaterError):
                return self._try_again(lane, order, error)
            self._fail(order.deployed.change, str(error))
            self._post(PreparationDone(order.deployed.change, False, reason=str(error)[:200]))
            return None
        finally:
            self._migrating.discard(lane)
        if self._ordered.get(lane) is order:
            self._orders.put_nowait(order)
        return None

    async def _start_again(self, lane: Lane, order: Run) -> None:
        await asyncio.sleep(START_AGAIN_S)
        if self._ordered.get(lane) is order:
            self._orders.put_nowait(order)

    def _networks(self, environment: str) -> tuple[str, ...]:
        """The private networks that the mesh lets apps reach from an environment now."""
        return private_networks(self._core.state, environment)

    async def _follow_networks(self) -> None:
        """Run again, with what is allowed now, whatever asks for private networks of which others are."""
        for lane, running in list(self.running.items()):
            prepared, order = self._prepared.get(running.deployed.change), self._ordered.get(lane)
            asks = any(app.networks for app in running.prepared.effective.apps)
            if not asks or order is None or order.deployed != running.deployed:
                continue
            if prepared is None or with_networks(prepared, self._networks(lane[1])).key != running.key:
                await self._start(lane, order)

    def _adopted(self) -> bool:
        """Whether workers serve here that another daemon started."""
        return any(slot.pid is not None and slot.starts == 0 for slot in self._pool.slots())

    async def _switch(self) -> None:
        """Make the routing table say what runs here and elsewhere now, then let go of what nothing names any more."""
        if self._routes is None and not self._orders.empty() and self._adopted():
            return  # they serve by the table of the daemon before, which must not be cut down to what is loaded so far
        routes: list[WorkerRoute] = []
        here: dict[Lane, list[tuple[str, str]]] = {}
        for lane, running in self.running.items():
            routes += smoke_routes(running.prepared)
            here[lane] = [(route.host, route.path) for route in running.prepared.effective.routes]
            for app in running.prepared.effective.apps:
                routes += [
                    WorkerRoute(route.host or None, route.path, running.prepared.key, app.name) for route in app.routes
                ]
        routes += routes_away(self._core.state, here)
        if routes != self._routes:
            try:
                await self._pool.activate(routes)
            except PoolError as error:
                _log.error("routes refused: %s", error, extra={"event": "routes.refused"})
                return
            self._routes = routes
        self._serving = {lane: running.role for lane, running in self.running.items()}
        used = {running.prepared.key for running in self.running.values()}
        for key in [key for key in self._loaded if key not in used]:
            del self._loaded[key]
            assert self._tasks is not None
            self._unloading[key] = self._tasks.create_task(self._unload(key))

    async def _unload(self, key: str) -> None:
        """Let a release go once its last request has ended, which may be long after the routes changed."""
        try:
            await self._pool.unload(key)
        except PoolError as error:
            _log.error("not unloaded: %s", error, extra={"event": "unload.refused"})
        finally:
            async with self._looking:  # its last requests are counted until it is gone, also by a look under way
                self._meter.forget(key)
            del self._unloading[key]

    async def _collect(self) -> None:
        """Keep the artifacts within their cap; what any lane runs or can go back to is never taken."""
        while True:
            await asyncio.sleep(COLLECT_EVERY_S)
            removed = await asyncio.to_thread(self._releases.collect, self.kept_artifacts())
            if removed:
                extra = {"event": "artifact.collected", "count": len(removed)}
                _log.info("removed artifacts that nothing needs", extra=extra)

    # --- observing ---------------------------------------------------------------------------------------------------

    async def _observe(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look_around()

    async def _look_around(self) -> None:
        """Hand the agent what every lane does now."""
        async with self._looking:  # an older look must not be counted behind a newer one
            self._meter.add(await self._pool.status())
        alive = self._alive()
        starts = sum(slot.starts for slot in self._pool.slots())
        crashes = max(0, starts - self._starts) if self._starts is not None else 0
        self._starts = starts
        for lane, running in list(self.running.items()):
            self._look(lane, running, alive, crashes)

    def _alive(self) -> bool:
        return any(slot.pid is not None for slot in self._pool.slots())

    def _look(self, lane: Lane, running: Running, alive: bool, crashes: int) -> None:
        decided = self._core.state.lane(*lane)
        rollout = decided.rollout if decided is not None else None
        total = self._meter.tally(running.prepared.key).counts()
        if rollout is not None and running.opened != rollout.opened:
            running.opened, running.counted = rollout.opened, total
        counts = since(total, running.counted) if rollout is not None else Counts()
        candidate, base = (counts, Counts()) if running.role == "candidate" else (Counts(), counts)
        self._post(
            WorkObserved(
                *lane,
                running.deployed.change,
                ready=running.ready and alive,
                crashes=crashes,
                candidate=candidate,
                base=base,
            )
        )


def _about(lane: tuple[str, str], event: str) -> dict[str, str]:
    """The fields of a log line about a project in an environment."""
    return {"event": event, "project": lane[0], "environment": lane[1]}
