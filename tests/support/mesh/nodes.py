"""Real `freehold` processes on loopback, each person with a home folder and each node with a data folder of its own.

A person types at a pseudo-terminal; a node is a process that is waited for until its API answers and is ended by its
process id. Not here: any test.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.mesh.wires import Wires

PASSPHRASE = "correct horse battery"
COMMAND_TIMEOUT_S = 40.0
READY_TIMEOUT_S = 60.0
PROMPT = re.compile(rb"^(?:A passphrase for|The same again|Passphrase of|Value of)[^\n]*: \Z", re.MULTILINE)
"""A prompt that waits; what else a command says may end in a colon too, where a read happens to cut it."""


@dataclass(frozen=True)
class Answer:
    """What one command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.stdout)
        return document


@dataclass
class Machine:
    """One machine of the test: a home, a data folder, and at most one running daemon.

    `compiled` is a folder of compiled code that it shares with others; without it the node compiles for itself.
    """

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    compiled: Path | None = None
    disk: Path | None = None
    """Where the data folder lies, if not beside the rest: a disk of its own."""
    started: Callable[[Machine], None] = lambda _machine: None
    log: Path = field(init=False)
    runtime: Path = field(init=False)
    """Where its sockets lie: a short path, whatever the test is called, for an address has 103 bytes. In the folder that
    `tests/conftest.py` makes for a run and removes; elsewhere it goes with this machine."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.runtime = Path(tempfile.mkdtemp(prefix="fhr-", dir=os.environ.get("RUNTIME_DIRECTORY")))
        weakref.finalize(self, shutil.rmtree, self.runtime, ignore_errors=True)
        self.log = self.folder / "daemon.log"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def data(self) -> Path:
        return (self.disk or self.folder) / "data"

    @property
    def environment(self) -> dict[str, str]:
        table = {name: os.environ[name] for name in ("PATH", "LANG", "HOME", "XDG_CACHE_HOME") if name in os.environ}
        runtime = str(self.runtime)
        return {**table, "FREEHOLD_HOME": str(self.folder / "home"), "RUNTIME_DIRECTORY": runtime, "NO_COLOR": "1"}

    # --- commands -------------------------------------------------------------------------------------------------

    def run(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, stdin: str = "") -> Answer:
        """Run a command as a script or an agent would: no terminal at all."""
        with (
            tempfile.TemporaryFile("w+") as typed,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            typed.write(stdin)
            typed.seek(0)
            # Files, not pipes: a worker that outlives its daemon would hold a pipe open.
            done = subprocess.run(
                _command(arguments), env=self.environment, stdin=typed, stdout=out, stderr=err,
                timeout=timeout_s, start_new_session=True, check=False,
            )  # fmt: skip
            out.seek(0)
            err.seek(0)
            return Answer(done.returncode, out.read(), err.read())

    def ok(self, *arguments: str) -> dict[str, Any]:
        """Run a command with --json that must succeed; return what it answered."""
        answer = self.run(*arguments, "--json")
        assert answer.code == 0, (arguments, answer)
        return answer.json

    @contextmanager
    def follow(self, *arguments: str) -> Iterator[Path]:
        """Run a command that goes on until it is interrupted; yield the file its answers go to."""
        path = self.folder / f"follow-{len(list(self.folder.glob('follow-*')))}"
        with path.open("wb") as out:
            process = subprocess.Popen(
                _command(arguments), env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield path
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)

    def typed(self, *arguments: str, typing: Sequence[str] = (PASSPHRASE,)) -> Answer:
        """Run a command as a person would: on a terminal, typing a line at each passphrase prompt."""
        master, slave = pty.openpty()
        process = subprocess.Popen(
            _command(arguments, own_terminal=True), env=self.environment, stdin=slave, stdout=subprocess.PIPE, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        assert process.stdout is not None
        try:
            stdout, said = _converse(process, master, list(typing))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
            os.close(master)
        return Answer(process.returncode, stdout, said)

    def typed_ok(self, *arguments: str) -> dict[str, Any]:
        answer = self.typed(*arguments, "--json")
        assert answer.code == 0, (arguments, answer)
        return answer.json

    def take_keys_of(self, other: Machine, context: str = "home") -> None:
        """Have this machine's commands act on its own node with another home's keys, as one person on two machines."""
        shutil.copytree(other.folder / "home" / "keys", self.folder / "home" / "keys", dirs_exist_ok=True)
        theirs = json.loads((other.folder / "home" / "contexts.json").read_text())["contexts"][context]
        path = self.folder / "home" / "contexts.json"
        known = json.loads(path.read_text())
        known["contexts"][known["current"]] |= {"key": theirs["key"], "admin": theirs["admin"]}
        path.write_text(json.dumps(known))

    # --- the daemon -----------------------------------------------------------------------------------------------

    def start(self, *options: str, under: Sequence[str] = ()) -> None:
        """Start the daemon, by the command `under` if there is one, and wait until its API answers."""
        assert self.process is None
        if self.compiled is not None and not (self.data / "compiled").exists():
            self.compiled.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.data / "compiled").symlink_to(self.compiled, target_is_directory=True)
        command = _command(("node", "run", "--data", str(self.data), "--workers", "1", "--voter-after", "2", *options))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*under, *command],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.folder,
            )  # fmt: skip
        until(self._answers, READY_TIMEOUT_S, f"the node of {self.folder.name} to answer")
        self.started(self)

    def kill(self) -> None:
        """End the daemon as a power cut would; its workers are its own affair."""
        self._end(signal.SIGKILL)

    def kill_workers(self) -> None:
        """End the workers that a killed daemon left; their control sockets name their process ids."""
        for path in self.runtime.glob("*/workers/worker-*-*.sock"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.stem.rpartition("-")[2]), signal.SIGKILL)

    def stop(self) -> int:
        """End the daemon as an operator would; return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()[-2000:]}"
        try:
            self.get("/v1/node")
        except (OSError, StopIteration):  # no socket yet, or the one of a daemon that was killed
            return False
        return True

    # --- what it says ---------------------------------------------------------------------------------------------

    def get(self, path: str) -> bytes:
        """Ask the node's API, which must answer 200."""
        answer = self.raw(path)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], answer
        return body

    def raw(self, path: str) -> bytes:
        """Ask the node's API on its socket: what is polled must not cost a process each time."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(COMMAND_TIMEOUT_S)
            connection.connect(str(next(self.runtime.glob("*/api.sock"))))
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: node\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(65536):
                answer += part
        if not answer:
            raise ConnectionResetError("the daemon ended before it answered")
        return answer

    def status(self) -> dict[str, Any]:
        view: dict[str, Any] = json.loads(self.get("/v1/node"))
        return view

    def members(self) -> dict[str, dict[str, Any]]:
        return {load["node"]: load for load in json.loads(self.get("/v1/members"))}

    def connected(self) -> int:
        """How many members it has a connection to, itself among them."""
        return sum(member["connected"] and member["standing"] == "member" for member in self.members().values())

    @property
    def ingress(self) -> str:
        """Where the apps are served, since the last start."""
        return next(entry for entry in self.status()["ingress"] if not entry.startswith("unix:"))


class Fleet:
    """A mesh of real processes; `close` ends every daemon that was started. With `wires` its links can be cut."""

    def __init__(self, folder: Path, compiled: Path | None = None, *, wired: bool = False) -> None:
        self.folder = folder
        self.compiled = compiled
        self.machines: list[Machine] = []
        self._wires = Wires(self._pids) if wired else None

    @property
    def wires(self) -> Wires:
        assert self._wires is not None
        return self._wires

    def machine(self, name: str) -> Machine:
        new_machine = Machine(self.folder / name, compiled=self.compiled)
        if self._wires is not None:
            new_machine.started = self._lead
        self.machines.append(new_machine)
        return new_machine

    def _pids(self) -> dict[str, int]:
        return {machine.name: machine.process.pid for machine in self.machines if machine.process is not None}

    def _lead(self, machine: Machine) -> None:
        for address in machine.status()["mesh_addresses"]:
            self.wires.lead(machine.name, int(address.rpartition("/")[2]))

    def _addresses(self, name: str, options: tuple[str, ...]) -> tuple[str, ...]:
        if "--listen" in options:
            return ()
        return (*LOOPBACK, "--advertise", self._wires.address(name)) if self._wires is not None else LOOPBACK

    def found(self, name: str = "one", *options: str) -> Machine:
        """Found the mesh `home` on a new machine and start its node."""
        first = self.machine(name)
        options = (*self._addresses(name, options), "--node-name", name, *options)
        answer = first.typed(
            "mesh",
            "create",
            "home",
            "--data",
            str(first.data),
            "-y",
            "--json",
            *options,
            typing=(PASSPHRASE, PASSPHRASE),
        )
        assert answer.code == 0, answer
        first.start()
        return first

    def invite(self, admin: Machine, *options: str) -> str:
        line: str = admin.typed_ok("mesh", "invite", *options)["line"]
        return line

    def join(self, line: str, name: str, *options: str, disk: Path | None = None) -> Machine:
        """Join on a new machine with an invite line and start its node."""
        machine = self.machine(name)
        machine.disk = disk
        machine.ok(
            "mesh",
            "join",
            line,
            "--data",
            str(machine.data),
            *self._addresses(name, options),
            "--node-name",
            name,
            "-y",
            *options,
        )
        machine.start()
        return machine

    def grow(self, count: int, *options: str) -> list[Machine]:
        """Have so many machines in all, with one invite; return all once each is confirmed."""
        first = self.machines[0]
        names = ("one", "two", "three", "four", "five", "six")[len(self.machines) : count]
        line = self.invite(first, "--uses", str(len(names)), *options)
        for name in names:
            self.join(line, name)
        until(
            lambda: sum(member["confirmed"] for member in first.members().values()) == count,
            60,
            f"{count} confirmed nodes",
        )
        return self.machines

    def close(self) -> None:
        for machine in self.machines:
            if machine.process is not None and machine.process.poll() is None:
                machine.process.send_signal(signal.SIGINT)  # its workers with it, which a SIGTERM leaves to the next
        for machine in self.machines:
            if machine.process is not None:
                try:
                    machine.process.wait(20)
                except subprocess.TimeoutExpired:
                    machine.process.kill()
                    machine.process.wait()
        if self._wires is not None:
            self._wires.stop()


INGRESS = ("--ingress", "127.0.0.1:0")
LOOPBACK = ("--listen", "127.0.0.1:0", *INGRESS)


def free_port() -> int:
    """A port that nobody has, below those the system hands out: a daemon that is killed must get it again."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def until(condition: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Wait for what other processes bring about."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(every_s)


def _command(arguments: Sequence[str], *, own_terminal: bool = False) -> list[str]:
    take = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); " if own_terminal else ""
    return [sys.executable, "-c", f"{take}from cli.main import main; main()", *arguments]


def _converse(process: subprocess.Popen[bytes], master: int, typing: list[str]) -> tuple[str, str]:
    """Read both outputs to their end, typing the next line whenever a passphrase is asked for."""
    assert process.stdout is not None
    out, said, seen = b"", b"", 0
    open_ends = {process.stdout.fileno(), master}
    deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
    while open_ends:
        assert time.monotonic() < deadline_s, (out, said)
        ready, _, _ = select.select(sorted(open_ends), [], [], 0.5)
        for end in ready:
            try:
                data = os.read(end, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                data = b""
            if not data:
                open_ends.discard(end)
            elif end == master:
                said += data
            else:
                out += data
        if typing and PROMPT.search(said, seen):
            seen = len(said)
            os.write(master, typing.pop(0).encode() + b"\n")
        if process.poll() is not None and not ready:
            break
    return out.decode(), said.decode(errors="replace")
