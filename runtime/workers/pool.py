"""The daemon's pool of worker processes: binds the sockets, starts workers, keeps them alive, tells them what to run.

One listening socket per address is made here and inherited by every worker, so connections wait in one queue of the
kernel's and none is lost when a worker ends. Workers outlive this process: a new pool finds their control sockets in
the runtime folder, takes the listening sockets back from them, and goes on. Not here: what ought to run, or why.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from runtime.ingress.listeners import TLS_PREFIX, address_of, bind, forget
from runtime.ingress.load_table import CLOSED, SLOTS_MAX, LoadTable
from runtime.messages import (
    LISTENERS_MAX,
    PROTOCOL_VERSION,
    Activate,
    Answer,
    AskStatus,
    AwaitDaemon,
    ControlError,
    Deliver,
    Delivered,
    DeliveryFate,
    JobDone,
    Load,
    LogBatch,
    Migrate,
    Migrated,
    ReleaseLoad,
    Request,
    RunJob,
    Status,
    Unload,
    WorkerRoute,
)
from runtime.services.sqlite_queue import QueuedMessage
from runtime.workers.link import WorkerLink, WorkerRefusedError, greeted
from runtime.workers.pool_settings import PoolSettings
from runtime.workers.settings import LOAD_TABLE, control_path

PING_EVERY_S: Final = 2.0
PING_TIMEOUT_S: Final = 15.0
"""A worker's loop answers in a millisecond; one silent for this long is hung, and is killed."""

BACKOFF_BASE_S: Final = 0.1
BACKOFF_MAX_S: Final = 30.0
"""Cap of the pause between restarts: a worker that dies at once costs a start every half minute, not a core."""

STEADY_AFTER_S: Final = 30.0
"""A worker that lived this long starts the back-off from the beginning."""

HOPELESS_AFTER: Final = 4
"""Failed starts in a row, before the first success, after which `started` gives up; the pool itself goes on trying."""

STOP_MARGIN_S: Final = 5.0
"""A draining worker gets this much beyond its grace before it is killed."""

JOB_MARGIN_S: Final = 10.0

WORKERS_MAX: Final = SLOTS_MAX

PID_MAX: Final = 4_194_304
SOCKET_PATH_MAX_BYTES: Final = 103
"""The shortest limit among our systems (macOS; Linux has 107), less the closing zero byte."""


class PoolError(Exception):
    """The pool cannot do what was asked; the text says what to change."""


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """One slot of the pool: the worker in it, if any, and how often it was started."""

    slot: int
    pid: int | None
    starts: int
    last_end: str


class Slot:
    """One place for a worker."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.link: WorkerLink | None = None
        self.starts = 0
        self.failures = 0
        self.reason = ""
        self.last_end = ""

    @property
    def pid(self) -> int | None:
        """The process id of a live worker."""
        return self.link.greeting.pid if self.link is not None and self.link.alive else None


class WorkerPool:
    """See the module. `run` is its life; everything else may be called while it runs."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        on_logs: Callable[[LogBatch], None],
        jitter: Callable[[], float] | None = None,
        restore: Callable[[ReleaseLoad], Awaitable[None]] | None = None,
    ) -> None:
        """Take settings, where log lines go, and a source of floats in [0, 1) for the back-off.

        `restore` brings back the files that a release is loaded from, when a worker refuses it; it must not raise.
        """
        if not 1 <= settings.workers <= WORKERS_MAX or not 1 <= len(settings.listen) <= LISTENERS_MAX:
            raise PoolError(f"1 to {WORKERS_MAX} workers and 1 to {LISTENERS_MAX} addresses")
        if settings.certificates is None and any(address.startswith(TLS_PREFIX) for address in settings.listen):
            raise PoolError("an address with TLS needs the folder of its certificates")
        self._settings = settings
        self._on_logs = on_logs
        self._jitter = jitter or random.SystemRandom().random
        self._slots = [Slot(number) for number in range(settings.workers)]
        self._releases: dict[str, ReleaseLoad] = {}
        self._routes: tuple[WorkerRoute, ...] | None = None
        self._listeners: list[socket.socket] = []
        self._changes = asyncio.Lock()
        self._ready = asyncio.Event()
        self._hopeless = ""
        self._stopping = asyncio.Event()
        self._leave_workers = False
        self._next_job_slot = 0
        self.addresses: tuple[str, ...] = ()
        self._restore = restore or _restore_nothing

    async def run(self) -> None:
        """Keep the workers alive until `stop` or `detach`. Raises `PoolError` if the pool cannot start."""
        folder = self._settings.runtime_folder
        with _locked(folder):
            self._load_table = LoadTable(folder / LOAD_TABLE)
            try:
                adopted = await self._adopt(folder)
                for number in range(SLOTS_MAX):
                    if number not in adopted:
                        self._load_table.set(number, CLOSED)  # whoever was there has ended
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    for slot in self._slots:
                        tasks.create_task(self._keep(slot, adopted.pop(slot.number, None)))
                    for link in adopted.values():  # more workers than slots now
                        tasks.create_task(self._retire(link))
            finally:
                self._load_table.close()
                for listener in self._listeners:
                    listener.close()
                if not self._leave_workers:
                    forget(self.addresses)

    async def started(self) -> None:
        """Wait until every slot has a worker and `addresses` is set; raises `PoolError` if they will not start."""
        await self._ready.wait()
        if self._hopeless:
            raise PoolError(f"workers do not start: {self._hopeless}")

    # --- what runs ----------------------------------------------------------------------------------------------------

    async def load(self, release: ReleaseLoad) -> None:
        """Make a release ready in every worker, now and after restarts; `PoolError` means it is in none."""
        async with self._changes:
            if not any(slot.pid for slot in self._slots):
                raise PoolError("no worker is running that could say whether the release loads")
            try:
                try:
                    await self._tell(lambda link: Load(link.next_number(), release))
                except WorkerRefusedError:
                    await self._restore(release)
                    await self._tell(lambda link: Load(link.next_number(), release))
            except (WorkerRefusedError, ControlError, TimeoutError) as error:
                with contextlib.suppress(WorkerRefusedError, ControlError, TimeoutError):
                    await self._tell(lambda link: Unload(link.next_number(), release.key))
                raise PoolError(f"release {release.digest} cannot be loaded: {error}") from error
            self._releases[release.key] = release

    async def activate(self, routes: Sequence[WorkerRoute]) -> None:
        """Swap the whole routing table in every worker; requests under way finish where they began."""
        async with self._changes:
            table = tuple(routes)
            try:
                await self._tell(lambda link: Activate(link.next_number(), table))
            except WorkerRefusedError as error:
                raise PoolError(f"the routes were refused: {error}") from error
            except (ControlError, TimeoutError):
                self._routes = table  # a worker that ended takes them when it is back
                return
            self._routes = table

    async def unload(self, key: str) -> None:
        """Let a release go once its last request has ended. Raises `PoolError` while a route names it.

        Other changes go on meanwhile, for a request may take long; only the same key must not be loaded before this is
        done.
        """
        async with self._changes:
            if any(route.key == key for route in self._routes or ()):
                raise PoolError(f"routes still name {key}")
            self._releases.pop(key, None)
        try:
            await self._tell(lambda link: Unload(link.next_number(), key))
        except WorkerRefusedError as error:
            raise PoolError(str(error)) from error
        except (ControlError, TimeoutError):
            pass  # the worker ended, and comes back without it

    async def run_job(
        self, key: str, app: str, arguments: Sequence[str] = (), *, timeout_ms: int, request_id: str = ""
    ) -> JobDone:
        """Run a command of a loaded release in one worker; `timeout_ms` bounds the wait, its own limit the run."""
        answer = await self._ask_one(
            lambda number: RunJob(number, key, app, tuple(arguments), request_id), timeout_ms, "the job"
        )
        assert isinstance(answer, JobDone)
        return answer

    async def migrate(self, key: str, app: str, *, timeout_ms: int) -> Migrated:
        """Have an app of a loaded release migrate its data, in one worker. Raises `PoolError` if no answer came."""
        answer = await self._ask_one(lambda number: Migrate(number, key, app), timeout_ms, "the migration")
        assert isinstance(answer, Migrated)
        return answer

    async def _ask_one(self, make: Callable[[int], Request], timeout_ms: int, what: str) -> Answer:
        link = self._one_link()
        if link is None:
            raise PoolError("no worker is running")
        try:
            return await link.ask(make(link.next_number()), timeout_ms / 1000 + JOB_MARGIN_S)
        except (WorkerRefusedError, ControlError, TimeoutError) as error:
            raise PoolError(f"{what} did not end: {error or 'no answer in time'}") from error

    async def deliver(self, key: str, app: str, message: QueuedMessage, *, timeout_ms: int) -> DeliveryFate:
        """Have an app of a loaded release handle a message, in one worker. Raises `PoolError` if no answer came."""
        link = self._one_link()
        if link is None:  # nobody began with it: a worker that ended is not back yet
            return "refused"
        asked = (message.subject, message.id, message.attempt, message.published_ms, message.body)
        try:
            answer = await link.ask(Deliver(link.next_number(), key, app, *asked), timeout_ms / 1000 + JOB_MARGIN_S)
        except WorkerRefusedError:  # it does not have the release yet, or not any more
            return "refused"
        except (ControlError, TimeoutError) as error:
            raise PoolError(f"the message was not handled: {error or 'no answer in time'}") from error
        assert isinstance(answer, Delivered)
        return answer.fate

    def _one_link(self) -> WorkerLink | None:
        """The next of the workers in turn, None while there is none."""
        links = [slot.link for slot in self._slots if slot.link is not None and slot.link.alive]
        self._next_job_slot += 1
        return links[self._next_job_slot % len(links)] if links else None

    async def status(self) -> tuple[Status, ...]:
        """Return the counters of every worker that answers now."""
        statuses = []
        for slot in self._slots:
            if slot.link is not None and slot.link.alive:
                with contextlib.suppress(ControlError, TimeoutError):
                    answer = await slot.link.ask(AskStatus(slot.link.next_number()), PING_TIMEOUT_S)
                    if isinstance(answer, Status):
                        statuses.append(answer)
        return tuple(statuses)

    def slots(self) -> tuple[SlotStatus, ...]:
        """Return who sits in each slot now."""
        return tuple(SlotStatus(slot.number, slot.pid, slot.starts, slot.last_end) for slot in self._slots)

    async def stop(self) -> None:
        """Drain every worker and end `run`."""
        self._stopping.set()

    async def detach(self) -> None:
        """End `run` and leave the workers serving, for another pool to adopt."""
        self._leave_workers = True
        self._stopping.set()

    async def hand_over(self, limit_s: float, grace_s: float) -> None:
        """End `run` and leave the workers to the next pool; without one they drain after `limit_s`, for `grace_s`."""
        limit_ms, grace_ms = int(limit_s * 1000), int(grace_s * 1000)
        with contextlib.suppress(WorkerRefusedError, ControlError, TimeoutError):
            await self._tell(lambda link: AwaitDaemon(link.next_number(), limit_ms, grace_ms))
        await self.detach()

    async def _tell(self, make: Callable[[WorkerLink], Request]) -> None:
        """Send to all live workers at once; raises the first failure after all have answered."""
        links = [slot.link for slot in self._slots if slot.link is not None and slot.link.alive]
        results = await asyncio.gather(*(link.command(make(link)) for link in links), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        failures.sort(key=lambda failure: not isinstance(failure, WorkerRefusedError))
        if failures:
            raise failures[0]

    # --- one slot -----------------------------------------------------------------------------------------------------

    async def _keep(self, slot: Slot, link: WorkerLink | None) -> None:
        """Keep one slot filled until the pool stops."""
        while not self._stopping.is_set():
            began_s = time.monotonic()
            await self._live(slot, link)
            link = None
            if self._stopping.is_set():
                return
            if slot.failures + 1 >= HOPELESS_AFTER and not self._ready.is_set():
                self._hopeless = slot.last_end
                self._ready.set()
            slot.failures = 0 if time.monotonic() - began_s > STEADY_AFTER_S else slot.failures + 1
            pause_s = min(BACKOFF_BASE_S * 2 ** (slot.failures - 1 if slot.failures else 0), BACKOFF_MAX_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * (0.5 + self._jitter() / 2)):
                    await self._stopping.wait()

    async def _live(self, slot: Slot, link: WorkerLink | None) -> None:
        """One worker's life in `slot`, from its start, or its adoption, to its end."""
        process: subprocess.Popen[bytes] | None = None
        slot.reason = ""
        try:
            if link is None:
                link, process = await self._start(slot)
            await self._watch(slot, link)
        except (ControlError, TimeoutError, OSError) as error:
            slot.reason = f"failed to start: {error or 'no greeting in time'}"
        except asyncio.CancelledError:  # this daemon is failing; its workers serve on for the next one
            _disown(process)
            raise
        slot.link = None
        if self._leave_workers:
            return _disown(process)
        self._load_table.set(slot.number, CLOSED)
        if link is not None:
            _forget_control(self._settings.runtime_folder, slot.number, link.greeting.pid)
        status = "ended" if process is None else f"exit status {await asyncio.to_thread(_reap, process)}"
        slot.last_end = f"{status}: {slot.reason}" if slot.reason else status
        return None

    async def _start(self, slot: Slot) -> tuple[WorkerLink, subprocess.Popen[bytes]]:
        """Start a process in `slot` and wait for its greeting; raises `ControlError` or `TimeoutError`."""
        slot.starts += 1
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), *(listener.fileno() for listener in self._listeners))
        settings = self._settings.of_worker(slot.number, self.addresses, fds)
        command = [*self._settings.command, msgspec.json.encode(settings).decode()]
        with theirs:
            # Not asyncio's subprocess: its transport kills the child when it is collected, and workers outlive us.
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - starting takes 2 ms; the command is ours
                command, stdin=subprocess.DEVNULL, pass_fds=fds, start_new_session=True
            )
        ours.setblocking(False)
        try:
            greeting, listeners = await greeted(ours)
        except BaseException as error:
            ours.close()
            process.kill()
            status = await asyncio.to_thread(process.wait)
            if isinstance(error, ControlError):
                raise ControlError(f"exit status {status} before it greeted") from error
            raise
        for listener in listeners:
            listener.close()
        return WorkerLink(ours, greeting, self._on_logs), process

    async def _watch(self, slot: Slot, link: WorkerLink) -> None:
        """Bring one worker to what ought to run, then ping it until it ends or the pool stops."""
        async with asyncio.TaskGroup() as tasks:
            await link.open()
            reading = tasks.create_task(link.run())
            try:
                await self._bring_up(slot, link)
                while link.alive and not self._stopping.is_set():
                    if stuck := await self._check(link):
                        slot.reason = f"{stuck} guests held their threads past their deadline"
                        await self._end(link)
            except (WorkerRefusedError, ControlError, TimeoutError) as error:
                slot.reason = str(error) or "no answer in time"
                link.kill()
            if self._stopping.is_set() and link.alive:
                if self._leave_workers:
                    link.close()
                else:
                    await self._end(link)
            await link.ended(STOP_MARGIN_S)
            reading.cancel()

    async def _bring_up(self, slot: Slot, link: WorkerLink) -> None:
        async with self._changes:
            for key, release in self._releases.items():
                if key not in link.keys:
                    try:
                        await link.command(Load(link.next_number(), release))
                    except WorkerRefusedError:
                        await self._restore(release)
                        await link.command(Load(link.next_number(), release))
            if self._routes is not None:
                await link.command(Activate(link.next_number(), self._routes))
            slot.link = link
            if all(other.link is not None for other in self._slots):
                self._ready.set()

    async def _check(self, link: WorkerLink) -> int:
        """Ping, then pause; return how many guests are stuck. Raises if there is no answer."""
        pong = await link.ping(PING_TIMEOUT_S)
        if pong.stuck:
            return pong.stuck
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PING_EVERY_S):
                await self._stopping.wait()
        return 0

    async def _end(self, link: WorkerLink) -> None:
        """Drain one worker, and kill it if it does not end."""
        grace_ms = self._settings.drain_grace_ms
        with contextlib.suppress(ControlError, TimeoutError, WorkerRefusedError):
            await link.drain(grace_ms)
        if not await link.ended(grace_ms / 1000 + STOP_MARGIN_S):
            link.kill()

    # --- adoption -----------------------------------------------------------------------------------------------------

    async def _adopt(self, folder: Path) -> dict[int, WorkerLink]:
        """Find workers of an earlier pool; keep those that match, drain the others; then make the missing sockets."""
        pairs: list[tuple[WorkerLink, list[socket.socket]]] = []
        for path in _control_sockets(folder):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                connection.connect(str(path))
                greeting, listeners = await greeted(connection)
            except (BlockingIOError, TimeoutError):  # it listens, takes nobody, and keeps the addresses for itself
                connection.close()
                await _kill_hung(path)
                path.unlink(missing_ok=True)
                continue
            except (OSError, ControlError):
                connection.close()
                path.unlink(missing_ok=True)  # its worker has ended
                continue
            pairs.append((WorkerLink(connection, greeting, self._on_logs), listeners))
        self._open_listeners([listener for _, listeners in pairs for listener in listeners])
        adopted: dict[int, WorkerLink] = {}
        for link, listeners in pairs:
            for listener in listeners:
                if listener not in self._listeners:
                    listener.close()
            greeting = link.greeting
            matches = (greeting.version, greeting.build) == (PROTOCOL_VERSION, self._settings.build)
            if matches and greeting.listeners == self.addresses and not greeting.draining:
                slot = greeting.slot if greeting.slot not in adopted else WORKERS_MAX + len(adopted)
            else:
                slot = WORKERS_MAX + len(adopted)  # no such slot: it is drained
            adopted[slot] = link
        return adopted

    def _open_listeners(self, inherited: list[socket.socket]) -> None:
        """Take each configured address from an adopted worker if one has it, else bind it. Raises `PoolError`."""
        have = {address_of(listener): listener for listener in inherited}
        try:
            for address in self._settings.listen:
                plain = address.removeprefix(TLS_PREFIX)
                listener = have.get(plain) or bind(plain)
                self._listeners.append(listener)
        except OSError as error:
            raise PoolError(
                f"cannot listen on {address}: {error.strerror}; stop its owner or choose another"
            ) from error
        self.addresses = tuple(
            (TLS_PREFIX if asked.startswith(TLS_PREFIX) else "") + address_of(listener)
            for asked, listener in zip(self._settings.listen, self._listeners, strict=True)
        )

    async def _retire(self, link: WorkerLink) -> None:
        """Drain a worker of an earlier pool that does not fit this one."""
        async with asyncio.TaskGroup() as tasks:
            await link.open()
            reading = tasks.create_task(link.run())
            await self._end(link)
            reading.cancel()


async def _restore_nothing(release: ReleaseLoad) -> None:
    """Nobody keeps the files."""


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the runtime folder, for this user only, and keep any other daemon out of it. Raises `PoolError`."""
    longest = control_path(folder.resolve(), WORKERS_MAX, PID_MAX)
    if len(str(longest).encode()) > SOCKET_PATH_MAX_BYTES:
        raise PoolError(f"the path {folder} is too long for control sockets; choose a shorter one")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with (folder / "pool.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PoolError(f"another daemon uses {folder}; stop it first") from error
        yield


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process whose connection has ended; kill it if it goes on all the same. Blocking."""
    try:
        return process.wait(STOP_MARGIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _disown(process: subprocess.Popen[bytes] | None) -> None:
    """Let a worker go on without us; it is nobody's child to wait for any more."""
    if process is not None:
        process.returncode = 0


async def _kill_hung(path: Path) -> None:
    """End a worker of an earlier pool that answers nothing; while it listens, the process in its socket's name exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(path.stem.rpartition("-")[2]), signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_MARGIN_S):
            while _listens(path):  # noqa: ASYNC110  it is nobody's child any more, to be waited for
                await asyncio.sleep(0.02)


def _listens(path: Path) -> bool:
    """Whether somebody listens on a Unix socket, even if nobody can connect for now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _forget_control(folder: Path, slot: int, pid: int) -> None:
    control_path(folder, slot, pid).unlink(missing_ok=True)


def _control_sockets(folder: Path) -> list[Path]:
    return sorted(folder.glob("worker-*.sock"))
