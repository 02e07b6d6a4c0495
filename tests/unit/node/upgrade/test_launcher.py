"""The release that worked watches the one on trial: real processes of a stand-in for the daemon, each with one behaviour."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.store.schema_copy import DATABASES
from node.store.storage import SCHEMA_VERSION
from node.upgrade.launcher import STARTS_MAX
from node.upgrade.releases_here import Chosen, ReleasesHere, Trial

NAME, ORDER = "0.2.0-x", "ab" * 32
INSTALLED = """
import sys, os
sys.path.insert(0, {here!r})
from pathlib import Path
from node.upgrade import launcher
launcher.GIVEN_S, launcher.PAUSE_S, launcher.END_S = {given_s}, 0.01, 1.0
launcher.lead(Path(sys.argv[1]), "0.1.0")
print("installed", flush=True)
"""
SAYS = "import os, sys, time, signal; print('new', os.environ.get('FREEHOLD_LAUNCHED', '') != '', flush=True)\n"
PASSES = """
from pathlib import Path
from msgspec.structs import replace
from node.upgrade.releases_here import ReleasesHere
here = ReleasesHere(Path(sys.argv[1]))
chosen = here.read()
if chosen.trial:
    here.write(replace(chosen, name=chosen.trial.name, version=chosen.trial.version, trial=None))
"""


def prepared(data: Path, does: str, *, trial: bool = True) -> ReleasesHere:
    """A release whose `cli.main` does this instead of running a node; all else is this checkout's."""
    here = ReleasesHere(data)
    package = here.path(NAME) / "cli"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(f"{SAYS}def main():\n    exec({does!r}, globals())\n")
    here.write(Chosen(trial=Trial(NAME, "0.2.0", ORDER, 0)) if trial else Chosen(NAME, "0.2.0"))
    return here


def launched(data: Path, given_s: float = 20.0) -> subprocess.Popen[str]:
    code = INSTALLED.format(here=str(Path(__file__).parents[4]), given_s=given_s)
    return subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.PIPE, text=True)


def test_a_release_that_is_chosen_takes_the_place_of_the_installed_one(tmp_path: Path) -> None:
    prepared(tmp_path, "print(os.getpid(), flush=True)", trial=False)
    process = launched(tmp_path)
    said, _ = process.communicate(timeout=30)
    assert said.split() == ["new", "True", str(process.pid)], "the same process: a service manager goes on watching it"


def test_a_release_that_is_found_healthy_runs_on_and_its_exit_code_is_the_process_s(tmp_path: Path) -> None:
    here = prepared(tmp_path, f"{PASSES}\nsys.exit(7)")
    process = launched(tmp_path)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said.split()) == (7, ["new", "True"])
    assert (here.read().name, here.read().trial) == (NAME, None)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("sys.exit(3)", f"ended {STARTS_MAX} times"), ("os.kill(os.getpid(), 9)", f"ended {STARTS_MAX} times"),
        ("raise RuntimeError", f"ended {STARTS_MAX} times"),
    ],
    ids=["exits", "is killed", "raises"],
)  # fmt: skip
def test_a_release_that_ends_goes_back(tmp_path: Path, does: str, why: str) -> None:
    here = prepared(tmp_path, does)
    process = launched(tmp_path)
    said, _ = process.communicate(timeout=60)
    assert said.split() == ["new", "True"] * STARTS_MAX + ["installed"]
    failed = here.read().failed
    assert here.read().trial is None
    assert failed is not None
    assert why in failed.why


def test_a_release_that_hangs_is_ended_and_goes_back(tmp_path: Path) -> None:
    here = prepared(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)")
    process = launched(tmp_path, given_s=1.0)
    said, _ = process.communicate(timeout=30)
    assert said.split() == ["new", "True", "installed"]
    failed = here.read().failed
    assert failed is not None
    assert "not found healthy within 1 s" in failed.why


def test_what_the_trial_says_of_itself_counts_and_newer_stores_go_back(tmp_path: Path) -> None:
    marks = """
import sqlite3
from pathlib import Path
from msgspec.structs import replace
from node.upgrade.launcher import relaunch
from node.upgrade.releases_here import ReleasesHere
for name in ("vote.db", "state.db"):
    sqlite3.connect(Path(sys.argv[1]) / name).execute("PRAGMA user_version=99")
here = ReleasesHere(Path(sys.argv[1]))
chosen = here.read()
here.write(replace(chosen, trial=replace(chosen.trial, bad="an app answers no more")))
relaunch()
"""
    here = prepared(tmp_path, marks)
    copy = tmp_path / "before-schema-99"
    copy.mkdir()
    for name in DATABASES:
        for folder in (tmp_path, copy):
            sqlite3.connect(folder / name).execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    process = launched(tmp_path)
    said, _ = process.communicate(timeout=30)
    assert said.split() == ["new", "True", "installed"]
    failed = here.read().failed
    assert failed is not None
    assert failed.why == "an app answers no more"
    for name in DATABASES:
        assert sqlite3.connect(tmp_path / name).execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_stop_reaches_the_trial_and_costs_it_no_start(tmp_path: Path) -> None:
    here = prepared(
        tmp_path, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('up', flush=True)\ntime.sleep(100)"
    )
    process = launched(tmp_path)
    assert process.stdout is not None
    assert [process.stdout.readline().split()[0] for _ in range(2)] == ["new", "up"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stdout.close()
    trial = here.read().trial
    assert trial is not None
    assert trial.starts == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told on Linux alone")
def test_the_trial_ends_with_who_watches_it(tmp_path: Path) -> None:
    prepared(tmp_path, "print(os.getpid(), flush=True)\ntime.sleep(100)")
    process = launched(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline_s = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline_s, "a second daemon would find the folder taken"
        time.sleep(0.05)
