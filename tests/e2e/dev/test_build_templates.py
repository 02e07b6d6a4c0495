"""Every template is built as a release, served exactly as built, and passes its own smoke checks and tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.project import bundle
from cli.project.find import open_project
from cli.project.scaffold import CHOICES, create
from cli.project.wheels import found, recipes
from tests.support.mesh.dev_process import run_freehold, serving
from tests.support.runtime.projects import CACHE, own_cache

needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")
TEMPLATES = [
    pytest.param(name, marks=needs_node) if "script" in choice.runs.lower() else name
    for name, choice in CHOICES.items()
]


def has_wheel(name: str) -> bool:
    with own_cache():
        return found(recipes()[name]) is not None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_new_project_builds_serves_and_passes_its_smoke_check(name: str, tmp_path: Path) -> None:
    folder, _ = create("hello", CHOICES[name], tmp_path)
    code, answer, _ = run_freehold("build", "--folder", str(folder))
    if name == "fastapi" and not has_wheel("pydantic-core"):
        assert (code, answer["error"]["kind"], answer["error"]["next_step"]) == (
            1,
            "wheel-missing",
            CHOICES[name].prepare,
        )
        return
    assert code == 0, answer
    assert bundle.read(Path(answer["folder"])).id == answer["build"]
    capabilities = {item.partition("@")[0] for item in answer["apps"]["web"]["capabilities"]}
    assert ("wasi:keyvalue/store" in capabilities) == (name != "static")
    assert "wasi:http/outgoing-handler" not in capabilities
    code, again, _ = run_freehold("build", "--folder", str(folder))
    assert again["build"] == answer["build"]
    component = (Path(answer["folder"]) / bundle.ARTIFACTS / answer["apps"]["web"]["component"]).read_bytes()
    for place in (tmp_path, CACHE):
        assert str(place).encode() not in component, "a release tells nobody where it was built"
    if name == "express":
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, check=True)
    if name != "typescript":  # its tests need npm install first, as `freehold new` says
        code, tested, said = run_freehold("test", "--folder", str(folder))
        assert code == 0, (tested, said)
        assert [(entry["kind"], entry["passed"]) for entry in tested["results"]] == [("test", True), ("smoke", True)]
    with serving(folder, "--exact") as process:
        for smoke in open_project(folder).project.smoke:
            seen = process.call(smoke.path)
            assert seen.status == smoke.status, seen.text
            assert smoke.contains is not None
            assert smoke.contains in seen.text
        if name == "static":
            assert process.call("/nothing").status == 404
            assert "There is no such page" in process.call("/nothing").text
            return
        assert json.loads(process.call("/api/visits").text) == {"visits": 1}
        if name != "wsgi":
            echoed = process.call("/api/echo", "POST", b'{"a": [1, "\xc3\xa9"]}', {"content-type": "application/json"})
            assert json.loads(echoed.text) == {"a": [1, "é"]}
            assert process.call("/nothing").status == 404


def test_a_python_template_passes_its_own_tests_without_the_sandbox(tmp_path: Path) -> None:
    folder, _ = create("hello", CHOICES["python"], tmp_path)
    for runner in (["unittest", "discover", "-s", "tests"], ["pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]):
        done = subprocess.run([sys.executable, "-m", *runner], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout, done.stderr)


@needs_node
def test_a_javascript_template_passes_its_own_tests_without_the_sandbox(tmp_path: Path) -> None:
    folder, _ = create("hello", CHOICES["javascript"], tmp_path)
    done = subprocess.run(["node", "--test"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        ({"app.py": "import nothing_here\n"}, "import-failed", 'File "web/app.py", line 1'),
        ({"app.py": "", "requirements.txt": "numpy==2.3.5\n"}, "package-refused", "numpy"),
        ({"app.py": "", "requirements.txt": "redis\n"}, "package-refused", "freehold.store"),
        (
            {"app.py": "", "requirements.txt": "no-such-package-for-freehold-tests\n"},
            "packages-failed",
            "no-such-package",
        ),
    ],
)
def test_an_app_that_cannot_be_built_says_why(files: dict[str, str], kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    for name, text in files.items():
        (tmp_path / "web" / name).write_text(text)
    (tmp_path / "freehold.toml").write_text(
        '[project]\nname = "bad"\n[app.web]\nlanguage = "python"\nsource = "web"\nroutes = ["/"]\n'
    )
    code, answer, _ = run_freehold("build", "--folder", str(tmp_path))
    assert code == 1
    assert answer["error"]["kind"] == kind, answer
    assert said in answer["error"]["message"], answer
    assert answer["error"]["next_step"]


@needs_node
def test_a_script_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "freehold.toml").write_text(
        '[project]\nname = "bad"\n[app.web]\nlanguage = "typescript"\nsource = "web"\nroutes = ["/"]\n'
    )
    for text, said in (
        ('import fs from "node:fs";\nexport default { fetch() { return fs; } };\n', "node:fs"),
        ("const x: number = ;\n", "app.ts:1:"),
        ('import { x } from "hono-not-installed";\nexport default { fetch: x };\n', "hono-not-installed"),
        ("export const nothing = 1;\n", "no default export"),
    ):
        (tmp_path / "web" / "app.ts").write_text(text)
        code, answer, _ = run_freehold("build", "--folder", str(tmp_path))
        assert code == 1
        assert said in answer["error"]["message"], answer
