"""Scheduled apps are built as WASI commands and run to their end in the sandbox."""

from __future__ import annotations

import asyncio
import shutil
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

    def emit(self, level: str, context: str, message: str) -> None:
        self.text += message + "\n"


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
import freehold
def main():
    print("swept")
    if freehold.config["DUST"] == "too much":
        raise RuntimeError("choked")
"""
JAVASCRIPT = """
import { config } from "freehold";
export async function main() {
  console.log("swept");
  if (config.get("DUST") === "too much") throw new Error("choked");
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
    assert not (isinstance(outcome, Exited) and outcome.code == 0)
    assert "choked" in said
