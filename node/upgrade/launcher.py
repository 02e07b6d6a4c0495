"""Which release runs the node: the installed one starts first, and gives over to the one that was chosen since.

A chosen release takes this process's place. One on trial runs as a child, and this release, which worked, watches it: it
must be found healthy in time, and end no more than STARTS_MAX times before; else the stores go back to the copy from
before their schema changed, and what ran before runs again. Not here: what healthy is (upgrader.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from msgspec.structs import replace

from node.store.schema_copy import put_back_if_newer
from node.upgrade.releases_here import Failed, ReleasesHere, Trial, environment_of

LAUNCHED = "FREEHOLD_LAUNCHED"
"""Set for a release that another one started: how the installed one was started, and the release's name on trial."""

RELAUNCH_EXIT = 76
"""How a release on trial asks the one that watches it to look again at what is to run."""

STARTS_MAX = 3
GIVEN_S = 120.0
"""What a release on trial has beyond its health window: to start, and to find its peers again."""

END_S = 30.0
LOOK_EVERY_S = 0.2
PAUSE_S = 1.0
MAIN = "from cli.main import main; main()"
_PR_SET_PDEATHSIG = 1
_log = logging.getLogger("freehold.launcher")


def lead(folder: Path, installed: str) -> None:
    """Give over to the release that is chosen for the node in `folder`; return if this one, `installed`, is to run it.

    Ends the process with what the child on trial ended with, where that was no reason to go back. Raises OSError.
    """
    if LAUNCHED in os.environ:
        return
    here = ReleasesHere(folder)
    while True:
        chosen = here.settled(installed)
        if chosen.trial is not None:
            code = _try(here, chosen.trial)
            if code is not None:
                raise SystemExit(code)
        elif chosen.name:
            _become(here.path(chosen.name))
        else:
            return


def on_trial() -> str:
    """The name of the release that this process runs on trial; "" if it is none."""
    return str(json.loads(os.environ[LAUNCHED])["trial"]) if LAUNCHED in os.environ else ""


def relaunch() -> None:
    """End this process, and have the installed release start what is to run now. Does not return."""
    sys.stdout.flush()
    if LAUNCHED not in os.environ:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  what this process was started as
    said = json.loads(os.environ[LAUNCHED])
    if said["trial"]:
        raise SystemExit(RELAUNCH_EXIT)
    os.execve(said["argv"][0], said["argv"], said["environment"])  # noqa: S606  what the installed release was started as


def _launched(path: Path, trial: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a release."""
    said = {"argv": [sys.executable, *sys.orig_argv[1:]], "environment": dict(os.environ), "trial": trial}
    environment = environment_of(path, dict(os.environ)) | {LAUNCHED: json.dumps(said)}
    return [sys.executable, "-P", "-c", MAIN, *sys.argv[1:]], environment


def _become(path: Path) -> None:
    command, environment = _launched(path, "")
    os.execve(command[0], command, environment)  # noqa: S606  a release that an admin signed


def _try(here: ReleasesHere, trial: Trial) -> int | None:
    """Run a release on trial once; return the exit code that this process ends with, or None to look again."""
    if trial.bad or trial.starts >= STARTS_MAX:
        _go_back(here, trial, trial.bad or f"it ended {trial.starts} times before it was found healthy")
        return None
    if trial.starts:
        time.sleep(PAUSE_S)
    here.write(replace(here.read(), trial=replace(trial, starts=trial.starts + 1)))
    command, environment = _launched(here.path(trial.name), trial.name)
    with _passing_signals_on() as told:
        child = subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent)  # noqa: PLW1509, S603
        told.child = child
        if told.stopped:  # between the handler's place and the child's
            child.terminate()
        if not _healthy_or_ended(here, child, time.monotonic() + trial.window_s + GIVEN_S):
            _end(child)
            why = f"it was not found healthy within {trial.window_s + GIVEN_S:.0f} s"
            _mark_bad(here, why)
            return None
        code = child.wait()
    still = here.read().trial
    if told.stopped:
        if still is not None:
            here.write(replace(here.read(), trial=replace(still, starts=still.starts - 1)))
        return code if code >= 0 else 128 - code
    if code == RELAUNCH_EXIT or still is not None:
        return None
    return code if code >= 0 else 128 - code


def _healthy_or_ended(here: ReleasesHere, child: subprocess.Popen[bytes], deadline_s: float) -> bool:
    """Wait until the child is no more on trial or has ended; False if neither came in time."""
    while child.poll() is None:
        if here.read().trial is None:
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _mark_bad(here: ReleasesHere, why: str) -> None:
    chosen = here.read()
    if chosen.trial is not None:
        here.write(replace(chosen, trial=replace(chosen.trial, bad=why)))


def _go_back(here: ReleasesHere, trial: Trial, why: str) -> None:
    """Have what ran before run again, on stores that it can read."""
    try:
        restored = put_back_if_newer(here.data)
    except FileNotFoundError as error:
        why, restored = f"{why}; {error}", False
    here.write(replace(here.read(), trial=None, failed=Failed(trial.version, trial.order, why)))
    _log.error(
        "the upgrade to %s went back: %s", trial.version, why,
        extra={"event": "upgrade.back", "detail": "the stores are those of before it" if restored else ""},
    )  # fmt: skip


class _Told:
    """Whether this process was told to stop, and whom it tells."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.stopped = False


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[_Told]:
    told = _Told()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        told.stopped = True
        if told.child is not None and told.child.poll() is None:
            told.child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """In the child: end when who watches it is killed, or a second daemon would find the folder taken."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
