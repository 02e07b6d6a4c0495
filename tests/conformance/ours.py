"""Our own host as a server process, the same way the daemon runs it: a compiled artifact, a `WorkerPool`, real workers.

`serve_ours(component)` starts `python -m tests.conformance.ours` and yields its port and the worker processes' ids; the
benchmarks use it too. Not here: the daemon, the mesh, `freehold.toml`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.messages import AppLimits, AppLoad, LogBatch, ReleaseLoad, WorkerRoute
from runtime.sandbox.compile_cache import CompileCache, file_digest
from runtime.spec import AppSpec
from runtime.workers.pool import WorkerPool
from runtime.workers.pool_settings import PoolSettings
from tests.fixtures.build import CACHE

STOP_TIMEOUT_S: Final = 10.0
ROOT: Final = CACHE.parent


@dataclass(frozen=True, slots=True)
class OurServer:
    """A running pool: where it listens, the process that supervises, the processes that serve, the app's engine."""

    port: int
    pid: int
    workers: tuple[int, ...]
    engine: str


@contextlib.contextmanager
def serve_ours(
    component: Path, *, workers: int = 1, concurrency: int = 8, engine: str = "python", **spec: Any
) -> Iterator[OurServer]:
    """Serve `component` at every path; `spec` are further fields of its `AppSpec`."""
    order = {
        "component": str(component),
        "workers": workers,
        "concurrency": concurrency,
        "engine": engine,
        "spec": spec,
    }
    command = [sys.executable, "-m", "tests.conformance.ours", json.dumps(order)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                raise RuntimeError(f"our host did not start:\n{errors.read()[-4000:]}")
            ready = json.loads(line)
            yield OurServer(ready["port"], process.pid, tuple(ready["workers"]), ready["engine"])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


async def _serve(order: dict[str, Any]) -> None:
    component = Path(order["component"])
    digest = file_digest(component)
    artifact = await CompileCache(CACHE / "compiled").ensure(component, digest)
    with tempfile.TemporaryDirectory() as folder:
        settings = PoolSettings(
            listen=("127.0.0.1:0",),
            runtime_folder=Path(folder) / "run",
            data_folder=Path(folder) / "data",
            build="conformance",
            workers=order["workers"],
            drain_grace_ms=1000,
            orphan_limit_s=5.0,
            engine=order["engine"],
        )
        pool = WorkerPool(settings, on_logs=_forget)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(pool.run())
            await pool.started()
            more: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in order["spec"].items()
            }
            spec = AppSpec("conformance", "app", digest, artifact, digest, **more)
            limits = AppLimits(concurrency=order["concurrency"], queue_max=1024)
            await pool.load(ReleaseLoad("only", digest, "conformance", (AppLoad(spec, limits),)))
            await pool.activate([WorkerRoute(None, "/", "only", "app")])
            ready = {
                "port": int(pool.addresses[0].rpartition(":")[2]),
                "workers": [slot.pid for slot in pool.slots()],
                "engine": (await pool.status())[0].apps[0].engine,
            }
            print(json.dumps(ready), flush=True)
            await stop.wait()
            await pool.stop()
            await running


def _forget(batch: LogBatch) -> None:
    """Logs are the worker tests' matter."""
    if os.environ.get("FREEHOLD_SHOW_LOGS"):
        print(batch, file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
