"""Calls in an app's own source that no sandbox has anything for: which are refused, and which are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import BuildError
from cli.project.python_source import impossible, refuse_impossible
from cli.project.source import read_tree


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("import subprocess\nsubprocess.run(['ls'])", "subprocess.run"),
        ("from subprocess import check_output as out\ndef f():\n    return out('ls')", "subprocess.check_output"),
        ("import os as o\ndef f():\n    o.system('ls')", "os.system"),
        ("import threading\nthreading.Timer(1, print).start()", "threading.Timer"),
        ("import uvicorn\nuvicorn.run('app:app')", "uvicorn.run"),
        ("import multiprocessing as m\nwith m.Pool(2) as p:\n    pass", "multiprocessing.Pool"),
        ("import wsgiref.simple_server\nwsgiref.simple_server.make_server('', 1, f)", "wsgiref.simple_server.make_server"),
        ("import subprocess\ntry:\n    subprocess.run('ls')\nexcept KeyError:\n    pass", "subprocess.run"),
        ("def f():\n    import ctypes.util", "ctypes"),
        ("def f():\n    from lzma import open", "lzma"),
    ],
    ids=["plain", "as another name", "module as another", "timer", "server", "pool", "deep", "try for another error",
         "late import", "late import from"],
)  # fmt: skip
def test_a_call_of_what_the_sandbox_has_not_is_found(source: str, call: str) -> None:
    assert [name for _, name in impossible(source.encode())] == [call]


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nif __name__ == '__main__':\n    subprocess.run('ls')",
        "import subprocess\ntry:\n    subprocess.run('ls')\nexcept (OSError, ValueError):\n    pass",
        "class subprocess:\n    run = print\nsubprocess.run('ls')",
        "import mine as subprocess\nsubprocess.run('ls')",
        "import os\nos.path.join('a', 'b')\nos.getenv('X')",
        "import subprocess\nprint(subprocess.PIPE)",
        "from threading import Thread, Lock\nThread(target=print).start()",
        "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None",
        "from . import lzma\nfrom .lzma import x\nimport lzmaffi",
        "this is no python",
    ],
    ids=[
        "main",
        "caught",
        "own class",
        "own module",
        "same module",
        "a name only",
        "thread",
        "guarded import",
        "own modules",
        "syntax",
    ],
)
def test_what_may_work_is_left_alone(source: str) -> None:
    assert impossible(source.encode()) == []


def test_the_refusal_names_file_line_and_way_out(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("import subprocess\nsubprocess.run('ls')\n")
    refuse_impossible("web", "web/", read_tree("web", tmp_path))
    (tmp_path / "pwd.py").write_text("")
    (tmp_path / "own.py").write_text("import pwd\n")
    refuse_impossible("web", "web/", read_tree("web", tmp_path))
    (tmp_path / "jobs.py").write_text("import subprocess\n\n\ndef f():\n    subprocess.run('ls')\n")
    with pytest.raises(BuildError, match=r"web/jobs\.py:5: subprocess\.run: the sandbox has no processes; .*HTTP"):
        refuse_impossible("web", "web/", read_tree("web", tmp_path))
