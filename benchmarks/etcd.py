"""A cluster of three etcd processes on loopback, the peer of our decisions; Debian's packages etcd-server and etcd-client.

Written through its HTTP gateway, at its leader, which is its quickest place. Not here: anything measured.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.mesh.nodes import until

NODES: Final = 3
READY_TIMEOUT_S: Final = 30
STOP_TIMEOUT_S: Final = 10
MISSING: Final = "no peer here: apt-get install etcd-server etcd-client"
SYNC_COUNTERS: Final = (
    "etcd_disk_wal_fsync_duration_seconds_count",
    "etcd_disk_backend_commit_duration_seconds_count",
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The client addresses (http://HOST:PORT) of three running members, the leader's first."""

    version: str
    urls: tuple[str, ...]

    def syncs(self) -> int:
        """How many times the three waited for a disk: appends to their logs, and commits of their databases."""
        return sum(_syncs(url) for url in self.urls)


def put_body(key: bytes, value: bytes) -> bytes:
    """The request body of `POST /v3/kv/put`."""
    return json.dumps({"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}).encode()


@contextlib.contextmanager
def running() -> Iterator[Cluster | None]:
    """Run a cluster; None where etcd is not installed."""
    binary = shutil.which("etcd")
    if binary is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="etcd"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        ports = _free_ports(2 * NODES)
        clients = tuple(f"http://127.0.0.1:{port}" for port in ports[:NODES])
        peers = tuple(f"http://127.0.0.1:{port}" for port in ports[NODES:])
        cluster = ",".join(f"e{index}={peer}" for index, peer in enumerate(peers))
        for index in range(NODES):
            with (folder / f"e{index}.log").open("wb") as log:
                processes.append(subprocess.Popen(
                    [
                        binary, "--name", f"e{index}", "--data-dir", str(folder / f"e{index}"),
                        "--listen-client-urls", clients[index], "--advertise-client-urls", clients[index],
                        "--listen-peer-urls", peers[index], "--initial-advertise-peer-urls", peers[index],
                        "--initial-cluster", cluster, "--initial-cluster-state", "new",
                    ],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                ))  # fmt: skip
        until(lambda: all(_leads(url) is not None for url in clients), READY_TIMEOUT_S, "etcd to elect a leader")
        ordered = sorted(clients, key=lambda url: not _leads(url))
        yield Cluster(_version(ordered[0]), tuple(ordered))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [socket.getsockname()[1] for socket in sockets]


def _leads(url: str) -> bool | None:
    """Whether a member leads; None while it knows no leader."""
    try:
        status = _post(url, "/v3/maintenance/status")
    except OSError:
        return None
    leader = status.get("leader")
    return None if leader in {None, "0"} else bool(leader == status["header"]["member_id"])


def _version(url: str) -> str:
    return f"etcd {_post(url, '/v3/maintenance/status')['version']}"


def _post(url: str, path: str) -> dict[str, Any]:
    request = urllib.request.Request(url + path, data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=5) as answer:
        read: dict[str, Any] = json.loads(answer.read())
    return read


def _syncs(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.split()[1])) for line in lines if line.split(" ")[0] in SYNC_COUNTERS)
