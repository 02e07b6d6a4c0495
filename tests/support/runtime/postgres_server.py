"""A PostgreSQL server of the test's own, from the system's package: started, stopped, killed, put back, asked as its owner."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.services.declared_providers import DeclaredProvider

_FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
BINARIES = _FOUND[-1].parent if _FOUND else None
needs_postgres = pytest.mark.skipif(BINARIES is None, reason="no package of PostgreSQL is on this machine")
ROLE = "apps"


class PostgresServer:
    """One server in a folder of its own; its port stays the same over restarts. The node's user there is `apps`."""

    def __init__(self, *, password: str = "first", settings: str = "") -> None:
        self._other = _other_user()
        self.folder = Path(tempfile.mkdtemp(prefix="fh-pg-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.password = password
        if self._other:
            shutil.chown(self.folder, self._other, self._other)
        (pass_file := self.folder / "owner").write_text("owner")
        pass_file.chmod(0o644)
        self._run(
            "initdb", "-D", self.data, "-U", "owner", "-A", "scram-sha-256", "--pwfile", pass_file, "-E", "UTF8", "-N"
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nshared_buffers = 16MB\n"
                f"max_connections = 60\nmax_wal_size = 64MB\n{settings}\n"
            )
        self.start()
        self.say(f"CREATE ROLE {ROLE} LOGIN CREATEROLE CREATEDB PASSWORD '{password}'")

    @property
    def data(self) -> Path:
        """Where its data lies."""
        return self.folder / "data"

    def start(self) -> PostgresServer:
        """Start it and wait until it answers."""
        assert BINARIES is not None
        self._process = subprocess.Popen([BINARIES / "postgres", "-D", self.data], **self._as_other())
        end_s = time.monotonic() + 30
        while subprocess.run(self._asking("SELECT 1"), env=self._env(), capture_output=True, check=False).returncode:
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < end_s, "the server did not start"
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        """End it with all its processes at once, as a power cut would, or nearly."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            time.sleep(0.3)  # its children see that it is gone, and end

    def pause(self) -> None:
        """Have it answer nothing, though its connections stand."""
        for pid in self._all():
            os.kill(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on."""
        for pid in self._all():
            os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it in order, and leave its folder."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        """End it and remove what it kept."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self) -> Path:
        """Return a copy of a stopped server's data."""
        copy = self.folder / "copy"
        shutil.copytree(self.data, copy, copy_function=shutil.copy2)
        return copy

    def put_back(self, copy: Path) -> None:
        """Put a copy in the place of its data."""
        shutil.rmtree(self.data)
        copy.rename(self.data)
        if self._other:
            for path in (self.data, *self.data.rglob("*")):
                shutil.chown(path, self._other, self._other)

    def give_certificate(self, cert: Path, key: Path) -> None:
        """Have it speak TLS with these."""
        for file, name in ((cert, "server.crt"), (key, "server.key")):
            path = self.data / name
            shutil.copy(file, path)
            path.chmod(0o600)
            if self._other:
                shutil.chown(path, self._other, self._other)
        self.say("ALTER SYSTEM SET ssl = on")
        self.say("SELECT pg_reload_conf()")

    def say(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the server's owner, who may everything."""
        done = subprocess.run(
            self._asking(statement, database), env=self._env(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def declared(self, password_file: Path, *, may_lose: bool = False) -> DeclaredProvider:
        """How a node's operator would declare it."""
        return DeclaredProvider("main", "postgres", self.url, str(password_file), may_lose=may_lose)

    @property
    def url(self) -> str:
        """Where a node reaches it."""
        return f"postgres://{ROLE}@127.0.0.1:{self.port}"

    def _asking(self, statement: str, database: str = "postgres") -> list[str]:
        assert BINARIES is not None
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "owner", "-d", database]
        return [str(BINARIES / "psql"), *where, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement]

    def _env(self) -> dict[str, str]:
        return {"PGPASSWORD": "owner", "PATH": "/usr/bin:/bin"}

    def _all(self) -> list[int]:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    def _run(self, program: str, *arguments: object) -> None:
        assert BINARIES is not None
        subprocess.run([BINARIES / program, *map(str, arguments)], check=True, **self._as_other())

    def _as_other(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder}
        return settings | ({"user": self._other, "group": self._other, "extra_groups": []} if self._other else {})


def _other_user() -> str:
    """Who runs it: PostgreSQL does not run as root. "" is whoever we are."""
    if os.geteuid() != 0:
        return ""
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server of one's own until the end of the block; where no package of it is, what asks for one is skipped."""
    if BINARIES is None:
        pytest.skip("no package of PostgreSQL is on this machine")
    postgres = PostgresServer()
    try:
        yield postgres
    finally:
        postgres.close()
