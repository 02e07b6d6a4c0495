"""Writes the golden transcripts: what `wasmtime serve` and `wasmtime run` answer, for machines without one.

python -m tests.conformance.record        rewrites golden/*.json; review the diff like any other
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.conformance import peer
from tests.conformance.cases import BY_FIXTURE, COMMANDS
from tests.conformance.compare import ask, differences
from tests.conformance.upstream import upstream
from tests.conformance.wire import Answer
from tests.fixtures.build import component

GOLDEN: Final = Path(__file__).resolve().parent / "golden"
CHECKOUT: Final = f"{Path(__file__).resolve().parents[2]}/"
COMMAND_TIMEOUT_S: Final = 60
CUT_ASKS: Final = 10
"""How often a case is asked whose recorded answer is cut off. How much of it the peer had sent by then is chance: of 200
answers to "declared length, body short" 189 had two bytes of the body, ten had three and one not even a head."""


def peer_answers(binary: Path, fixture: str, recorded: Mapping[str, Any] | None = None) -> dict[str, Answer]:
    """Ask `wasmtime serve` every case of `fixture`; one that it cuts off until it says what is `recorded`, within bounds."""
    with upstream() as authority, peer.wasmtime_serve(binary, component(fixture)) as server:
        said = {}
        for case in BY_FIXTURE[fixture]:
            before = Answer.from_json(recorded[case.name]) if recorded is not None else None
            for _ in range(CUT_ASKS if before is not None and before.ending == "cut" else 1):
                said[case.name] = ask(server.port, case, authority)
                if before is None or not differences(said[case.name], before, replace(case, ours=None)):
                    break
        return said


def peer_command(binary: Path, fixture: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Run a command with `wasmtime run`: exit code, stdout, stderr; that without the folder of this checkout."""
    done = subprocess.run(
        [binary, "run", "--env", "GREETING=hello", component(fixture), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    return {"exit_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr.replace(CHECKOUT, "")}


def golden(name: str) -> dict[str, Any]:
    """Read one transcript: {"peer": version, "answers": {case: answer}}."""
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return loaded


def main() -> None:
    """Ask the peer everything and write what it says."""
    binary = peer.wasmtime()
    if binary is None:
        raise SystemExit(peer.NOTHING_TO_ASK)
    version = peer.wasmtime_version(binary)
    said: dict[str, dict[str, Any]] = {
        fixture: {name: answer.as_json() for name, answer in peer_answers(binary, fixture).items()}
        for fixture in BY_FIXTURE
    }
    said["commands"] = {case.name: peer_command(binary, case.fixture, case.arguments) for case in COMMANDS}
    for name, answers in said.items():
        text = json.dumps({"peer": version, "answers": answers}, indent=1, ensure_ascii=True)
        (GOLDEN / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {len(answers)} answers of {version}")


if __name__ == "__main__":
    main()
