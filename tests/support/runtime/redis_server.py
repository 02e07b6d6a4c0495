"""A Redis server of the test's own, from the system's package: started, stopped, put back, with a password if asked for."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from runtime.services.declared_providers import DeclaredProvider

BINARY = shutil.which("valkey-server") or shutil.which("redis-server")
needs_redis = pytest.mark.skipif(BINARY is None, reason="neither valkey-server nor redis-server is on this machine")


class RedisServer:
    """One server in `folder`; its port stays the same over restarts."""

    def __init__(self, folder: Path, *, password: str = "", fsync: str = "always") -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.password = password
        self.fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start it and wait until it answers."""
        assert BINARY is not None
        options = {
            "port": self.port, "bind": "127.0.0.1", "dir": self.folder, "appendonly": "yes", "appendfsync": self.fsync,
            "save": "", "daemonize": "no",
        }  # fmt: skip
        command = [BINARY, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        if self.password:
            command += ["--requirepass", self.password]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                    link.sendall(b"AUTH %b\r\nPING\r\nQUIT\r\n" % (self.password or "none").encode())
                    said = b""
                    while piece := link.recv(4096):
                        said += piece
                    if b"+PONG" in said:  # not while it loads what it kept
                        return self
            except OSError:
                pass
            assert time.monotonic() < end_s, "the server did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it with kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def say(self, *words: str) -> str:
        """Have the server's own client say something."""
        assert BINARY is not None
        client = BINARY.replace("-server", "-cli")
        command = [client, "-p", str(self.port), *(("-a", self.password) if self.password else ()), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def declared(self, password_file: Path | None = None, *, may_lose: bool = False) -> DeclaredProvider:
        """How a node's operator would declare it."""
        text = str(password_file) if password_file is not None else ""
        return DeclaredProvider("main", "redis", f"redis://127.0.0.1:{self.port}", text, may_lose=may_lose)
