"""Who has a port: a busy port names its owner. Linux reads /proc, others ask lsof."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def owner_of(port: int) -> str | None:
    """Return "pid 123 (command line)" of the process that listens on a TCP port, if it can be seen."""
    if Path("/proc/net/tcp").exists():
        return _owner_from_proc(port)
    lsof = shutil.which("lsof")
    if lsof is None:
        return None
    done = subprocess.run(  # noqa: S603
        [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"], capture_output=True, text=True, check=False, timeout=10
    )
    fields = {line[0]: line[1:] for line in done.stdout.splitlines() if line}
    return f"pid {fields['p']} ({fields.get('c', '?')})" if "p" in fields else None


def _owner_from_proc(port: int) -> str | None:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                return f"pid {process.name} ({words[:80]})"
        except OSError:
            continue  # it ended, or is another user's
    return None
