"""A daemon to kill: runs a pool with one stub release, prints its address, and goes on until it is stopped.

Run as `python daemon.py FOLDER STUB_COMMAND...`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from runtime.messages import AppLoad, ReleaseLoad, WorkerRoute
from runtime.spec import AppSpec
from runtime.workers.pool import WorkerPool
from runtime.workers.pool_settings import PoolSettings


async def main(folder: Path, command: tuple[str, ...]) -> None:
    settings = PoolSettings(
        ("127.0.0.1:0",), folder / "run", folder / "data", "test", workers=2, orphan_limit_s=20, command=command
    )
    pool = WorkerPool(settings, on_logs=lambda batch: None)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.run())
        await pool.started()
        spec = AppSpec("project", "hello", "r1", Path("/none"), "0", config={"do": "hello"})
        await pool.load(ReleaseLoad("r1", "r1", "project", (AppLoad(spec),)))
        await pool.activate([WorkerRoute(None, "/", "r1", "hello")])
        print(pool.addresses[0], flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), tuple(sys.argv[2:])))
