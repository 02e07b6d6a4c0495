"""Threads done in place, tried in this Python, in a process of its own: what the sandbox's Python is given instead of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.project.python_build import GUEST

SETUP = "import threading, freehold_threads; freehold_threads.install(); from concurrent.futures import *\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("seen = []\nt = threading.Thread(target=seen.append, args=(1,))\nt.start(); t.join(2); print(seen, t.is_alive())",
         "[1] False"),
        ("t = threading.Thread(target=lambda: print(threading.current_thread().name, t.is_alive()), name='x')\nt.start()",
         "x True"),
        ("threading.Thread(target=print).start()\nprint(threading.current_thread() is threading.main_thread())", "True"),
        ("with ThreadPoolExecutor(3) as pool:\n    print(list(pool.map(lambda n: n * n, range(4))))", "[0, 1, 4, 9]"),
        ("p = ThreadPoolExecutor()\nf = p.submit(int, 'x')\nprint(type(f.exception()).__name__, f in as_completed([f]))",
         "ValueError True"),
        ("p = ThreadPoolExecutor(initializer=print, initargs=('a',))\np.submit(print, 1)\np.submit(print, 2)", "a\n1\n2"),
        ("p = ThreadPoolExecutor()\np.shutdown()\ntry:\n    p.submit(print)\nexcept RuntimeError as e:\n    print(e)",
         "cannot schedule new futures after shutdown"),
    ],
    ids=["thread", "who am I", "who is the caller", "pool", "failure", "initializer", "shut down"],
)  # fmt: skip
def test_work_is_done_in_place(code: str, said: str) -> None:
    assert run(code) == said


@pytest.mark.parametrize("made", ["threading.Thread(target=print, daemon=True)", "threading.Timer(9, print)"])
def test_what_would_never_come_back_is_refused(made: str) -> None:
    assert "the sandbox has no threads" in run(f"try:\n    {made}.start()\nexcept RuntimeError as e:\n    print(e)")


def test_a_failing_thread_is_told_of_and_does_not_end_its_caller() -> None:
    assert run("t = threading.Thread(target=lambda: 1 / 0)\nt.start()\nprint('on')") == "on"


def test_imports_of_what_the_sandbox_is_built_without_succeed_and_use_says_why(tmp_path: Path) -> None:
    """networkx imports bz2, and hypercorn, which Quart imports, multiprocessing.synchronize."""
    code = (
        "import bz2, multiprocessing.synchronize, io, tarfile\n"
        "for use in (lambda: bz2.compress(b'a'), lambda: bz2.decompress(b'BZh9'), lambda: multiprocessing.Lock()):\n"
        "    try:\n        use()\n    except OSError as e:\n        print(e)\n"
        "held = io.BytesIO()\ntarfile.open(fileobj=held, mode='w:gz').close()\nheld.seek(0)\n"
        "print(tarfile.open(fileobj=held, mode='r:*').getnames())"
    )
    for name in ("_bz2", "_multiprocessing"):
        (tmp_path / f"{name}.py").write_bytes((GUEST / f"{name}.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1])\n" + code, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert ["without bz2" in line for line in lines] == [True, True, False, False], done
    assert "no processes" in lines[2]
    assert lines[3] == "[]"


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code],
        env={"PYTHONPATH": str(GUEST)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout.strip() or done.stderr
