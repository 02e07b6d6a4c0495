"""Scheduled apps are built as WASI commands and run to their end in the sandbox."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.outcome import Exited, Outcome
from runtime.sandbox.compile_cache import CompileCache
from runtime.sandbox.sandbox import Sandbox
from runtime.spec import AppSpec
from tests.support.mesh.dev_process import ROOT, run_freehold

PROJECT = """\
[project]
name = "jobs"
[app.sweep]
language = "{language}"
source = "sweep"
schedule = "0 3 * * 1"
config = {{ DUST = "some" }}
"""


class Lines:
    """A log sink that remembers."""

    def __init__(self) -> None:
        self.text = ""

    def emit(self, level: str, context: str, message: str) -> bool:
        self.text += message + "\n"
        return True

    def keep(self, entries: Sequence[tuple[str, str, str]]) -> None:
        self.text += "".join(f"{message}\n" for _, _, message in entries)


def run_job(component: Path, digest: str, dust: str) -> tuple[Outcome, str]:
    cache = CompileCache(ROOT / ".cache" / "xdg" / "freehold" / "compiled")
    artifact = asyncio.run(cache.ensure(component, digest))
    sink = Lines()
    spec = AppSpec("jobs", "sweep", "r", artifact, digest, kind="command", config={"DUST": dust})
    app = Sandbox().load(spec, sink)
    try:
        result = app.run()
    finally:
        app.close()
    return result.outcome, (result.stdout + result.stderr).decode() + sink.text


PYTHON = """
import os
import sys
import freehold
def main():
    print("swept")
    dust = freehold.config["DUST"]
    if dust == "too much":
        raise RuntimeError("choked")
    if dust.isdigit():
        sys.exit(int(dust))
    if dust == "text":
        sys.exit("good bye")
    if dust == "at once":
        os._exit(5)
    if dust == "nothing":
        sys.exit()
"""
EXITS = {"3": 3, "0": 0, "259": 3, "text": 1, "at once": 5, "nothing": 0}
JAVASCRIPT = """
import { config } from "freehold";
export async function main() {
  console.log("swept");
  const dust = config.get("DUST");
  if (dust === "too much") throw new Error("choked");
  if (/^\\d+$/.test(dust)) process.exit(Number(dust));
  if (dust === "text") console.error("good bye"), process.exit(1);
  if (dust === "at once") return 5;
  if (dust === "nothing") process.exitCode = 0;
}
"""


@pytest.mark.parametrize(
    ("language", "name", "text"),
    [
        ("python", "app.py", PYTHON),
        pytest.param("javascript", "app.js", JAVASCRIPT,
                     marks=pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")),
    ],
)  # fmt: skip
def test_a_job_runs_to_its_end_and_a_failing_one_says_so(language: str, name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "freehold.toml").write_text(PROJECT.format(language=language))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / name).write_text(text)
    code, answer, _ = run_freehold("build", "--folder", str(tmp_path))
    assert code == 0, answer
    facts = answer["apps"]["sweep"]
    assert facts["kind"] == "command"
    component = Path(answer["folder"]) / "artifacts" / facts["component"]

    outcome, said = run_job(component, facts["component"], "some")
    assert isinstance(outcome, Exited)
    assert outcome.code == 0
    assert "swept" in said

    outcome, said = run_job(component, facts["component"], "too much")
    assert outcome == Exited(1)
    assert "choked" in said
    for dust, code in EXITS.items():
        outcome, said = run_job(component, facts["component"], dust)
        assert outcome == Exited(code), (dust, said)
        assert "swept" in said
        assert ("good bye" in said) == (dust == "text")
