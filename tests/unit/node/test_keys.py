"""What a node writes as a whole file is there whole, or the old one is."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

from node.keys import write_private

SHORT = """
import resource, signal, sys
from pathlib import Path
from node.keys import write_private
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    write_private(Path(sys.argv[1]), b"new" * 10)
except OSError:
    sys.exit(7)
"""


def test_a_disk_that_takes_the_beginning_only_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "addresses"
    write_private(path, b"old" * 10)
    ended = subprocess.run([sys.executable, "-c", SHORT, str(path)], check=False)
    assert path.read_bytes() == b"old" * 10
    assert ended.returncode == 7
    write_private(path, b"new" * 10)
    assert path.read_bytes() == b"new" * 10
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
