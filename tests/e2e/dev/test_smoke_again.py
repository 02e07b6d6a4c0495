"""`freehold test` asks an app whose instances answer again twice on one instance, and once on a fresh one."""

from __future__ import annotations

from pathlib import Path

from tests.support.mesh.dev_process import run_freehold

PROJECT = """
[project]
name = "again"
[app.web]
language = "python"
source = "web"
routes = ["/"]
instances = "{instances}"
[[test.smoke]]
app = "web"
path = "/"
"""
APP = """
import freehold

ASKED = []


def handle(request):
    ASKED.append(1)
    return freehold.Response("", 200 if len(ASKED) < 2 else 500)
"""


def project(folder: Path, instances: str) -> Path:
    (folder / "web").mkdir(exist_ok=True)
    (folder / "web" / "app.py").write_text(APP)
    (folder / "freehold.toml").write_text(PROJECT.format(instances=instances))
    return folder


def test_an_app_that_answers_an_instance_once_alone_fails_where_instances_answer_again(tmp_path: Path) -> None:
    code, tested, said = run_freehold("test", "--folder", str(project(tmp_path, "reuse")))
    assert code != 0, (tested, said)
    assert "results" in tested, tested
    lines = tested["results"][0]["log"].splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["PASSED", "FAILED", "PASSED"]
    assert "the same instance again" in lines[1]
    assert "a fresh instance" in lines[2]
    assert tested["results"][0]["failed_tests"] == ["web GET / 200"]
    code, tested, said = run_freehold("test", "--folder", str(project(tmp_path, "fresh")))
    assert code == 0, (tested, said)
    assert len(tested["results"][0]["log"].splitlines()) == 1
