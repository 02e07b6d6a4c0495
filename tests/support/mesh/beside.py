"""Two networks of a test's own: nodes run in one, a server of the office answers in the other. Linux, as root. Not a test.

    nodes 10.0.5.1 ── a pair of virtual cables ── 10.0.5.7, 10.0.6.7 and 169.254.169.254, each with an HTTP server

Names lead to these addresses by a hosts file that only the nodes see. Nothing of the machine's own networks is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.mesh.nodes import until

PORT = 9000
HOSTS = {
    "db.office": "10.0.5.7",
    "next.office": "10.0.6.7",
    "cloud.office": "169.254.169.254",
    "own.office": "10.0.5.1",
}
SERVER = """
import http.server, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "6")
        self.end_headers()
        self.wfile.write(b"inside")
    def log_message(self, *_):
        pass
servers = [http.server.ThreadingHTTPServer((address, PORT), Answer) for address in ADDRESSES]
for one in servers[1:]:
    threading.Thread(target=one.serve_forever, daemon=True).start()
servers[0].serve_forever()
"""
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def problem() -> str:
    """Why no networks can be made here, or ""."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "networks of its own need root on Linux"
    missing = [name for name in ("unshare", "nsenter", "ip", "mount") if shutil.which(name) is None]
    if missing:
        return f"not installed here: {', '.join(missing)}"
    tried = ("unshare", "--net", "--mount", "ip", "link", "add", "c0", "type", "veth", "peer", "name", "c1")
    return "no networks may be made here" if subprocess.run(tried, capture_output=True, check=False).returncode else ""


@dataclass(frozen=True)
class Networks:
    """The networks; a command that begins with `under` runs where the nodes do."""

    under: tuple[str, ...]

    def fetch(self, name: str) -> str:
        """What a program beside the nodes is answered: shows that an address could be reached."""
        command = (*self.under, sys.executable, "-c", FETCH, f"http://{name}:{PORT}/")
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


@contextmanager
def networks(folder: Path) -> Iterator[Networks]:
    """Make both, and have the servers answer until the end of the block."""
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items()))
    inside = [address for name, address in HOSTS.items() if name != "own.office"]
    holders = [_holder("--net", "--mount"), _holder("--net")]
    try:
        nodes, office = holders
        for holder in holders:
            _within(holder, "ip", "link", "set", "lo", "up")
        _within(nodes, "mount", "--bind", str(hosts), "/etc/hosts", also=("-m",))
        _within(nodes, "ip", "link", "add", "c0", "type", "veth", "peer", "name", "c1", "netns", str(office.pid))
        _within(nodes, "ip", "address", "add", "10.0.5.1/16", "dev", "c0")
        _within(nodes, "ip", "link", "set", "c0", "up")
        for address in inside:
            _within(office, "ip", "address", "add", f"{address}/16", "dev", "c1")
        _within(office, "ip", "link", "set", "c1", "up")
        _within(nodes, "ip", "route", "add", "169.254.169.254/32", "dev", "c0")
        code = f"PORT, ADDRESSES = {PORT}, {[*inside]!r}{SERVER}"
        server = subprocess.Popen(("nsenter", "-t", str(office.pid), "-n", sys.executable, "-c", code))
        holders.append(server)
        here = os.fspath(Path.cwd())
        new_networks = Networks(("nsenter", "-t", str(nodes.pid), "-n", "-m", f"--wd={here}"))
        for name in HOSTS.keys() - {"own.office"}:
            until(lambda name=name: _answers(new_networks, name), 20, f"{name} to answer")  # type: ignore[misc]
        yield new_networks
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def _holder(*namespaces: str) -> subprocess.Popen[bytes]:
    """A process that keeps namespaces of its own alive."""
    held = subprocess.Popen(("unshare", *namespaces, "sleep", "infinity"))
    kinds = [namespace.lstrip("-").replace("mount", "mnt") for namespace in namespaces]
    until(lambda: all(_namespace(held.pid, kind) != _namespace(os.getpid(), kind) for kind in kinds), 10, "namespaces")
    return held


def _namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def _within(holder: subprocess.Popen[bytes], *command: str, also: tuple[str, ...] = ()) -> None:
    subprocess.run(("nsenter", "-t", str(holder.pid), "-n", *also, *command), check=True)


def _answers(made: Networks, name: str) -> bool:
    try:
        return made.fetch(name) == "inside"
    except subprocess.CalledProcessError:
        return False
