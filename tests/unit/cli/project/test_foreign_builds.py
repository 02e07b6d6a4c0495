"""No script of a package runs at a build: what would need one is refused by its line, and pip itself cannot."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from cli.errors import BuildError
from cli.project import node, python_packages
from cli.project.foreign_builds import check_dependencies, check_requirements

TAKEN = [
    "flask",
    "flask==3.0.3",
    "Flask [async] >= 3.0, < 4 ; python_version > '3.10'",
    "a.b_c-d ~= 1.2 # why",
    "x===1!2.0+local",
    "# only a comment",
    "",
    "flask \\\n  ==3.0.3 \\\n  --hash=sha256:" + "0" * 64 + " \\\n  --hash=sha256:" + "1" * 64,
]
REFUSED = [
    "-e .",
    "--editable=.",
    "-r other.txt",
    "--no-binary :all:",
    "--no-binary=flask",
    "--no-bin=flask",
    "--prefer-binary",
    "--index-url https://index.test/simple",
    "-i https://index.test/simple",
    "--find-links ./wheels",
    "flask --global-option=x",
    "flask --config-settings=x=y",
    ".",
    "./flask",
    "../flask",
    "/tmp/flask",
    "flask.tar.gz/..",
    "flask @ https://example.test/flask.tar.gz",
    "flask@file:///tmp/flask.tar.gz",
    "https://example.test/flask.tar.gz",
    "file:flask",
    "git+https://example.test/flask.git",
    "${SOMEWHERE}",
    "flask ; extra == 'x' @ file:///tmp/x",
    "flask \\\n  --no-binary=flask",
]


@pytest.mark.parametrize("line", TAKEN)
def test_names_versions_and_hashes_are_taken(line: str) -> None:
    check_requirements("web", f"bottle\n{line}\n".encode())


@pytest.mark.parametrize("line", REFUSED)
def test_what_may_run_scripts_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(BuildError, match="line 2 of requirements") as refused:
        check_requirements("web", f"bottle\n{line}\n".encode())
    assert refused.value.kind == "foreign-build"
    assert refused.value.next_step


@pytest.mark.parametrize("how", ["a folder", "an archive"])
def test_pip_builds_no_source_whoever_leads_it_there(tmp_path: Path, how: str) -> None:
    source = tmp_path / "evil-1.0"
    source.mkdir()
    (source / "setup.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='evil', version='1.0')\n"
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    wanted = source
    if how == "an archive":
        wanted = tmp_path / "evil-1.0.tar.gz"
        with tarfile.open(wanted, "w:gz") as archive:
            archive.add(source, "evil-1.0")
    done = python_packages._run_pip(
        ["install", "--no-deps", "--no-index", "--target", str(tmp_path / "t"), str(wanted)]
    )
    assert done.returncode != 0
    assert "whose build would run its own scripts here" in done.stderr.decode()
    assert not (tmp_path / "ran").exists()


def test_pip_is_the_installed_one_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pip", "runpy", "json", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert python_packages._run_pip(["--version"]).returncode == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "wanted",
    ["^4.0.0", "4.x", "*", "", "latest", ">=1 <2 || 3", "npm:other@^1.0.0", "npm:@scope/other@1.0.0", "1.0.0-beta.1"],
)
def test_versions_of_the_registry_are_taken(wanted: str) -> None:
    check_dependencies("web", json.dumps({"dependencies": {"hono": wanted}}).encode(), None)


@pytest.mark.parametrize(
    "wanted",
    [
        "git+https://example.test/x.git", "git://example.test/x", "git+ssh://git@example.test/x.git", "github:owner/x",
        "gitlab:owner/x", "owner/x", "owner/x#main", "file:../x", "link:../x", "../x", "./x", "~/x", "/tmp/x",
        "https://example.test/x.tgz", "http://example.test/x.tgz", "workspace:*", 7, None, ["^1"],
    ],
)  # fmt: skip
def test_what_npm_would_take_from_elsewhere_is_refused(wanted: object) -> None:
    for described in (
        {"dependencies": {"x": wanted}}, {"optionalDependencies": {"x": wanted}}, {"devDependencies": {"x": wanted}},
        {"peerDependencies": {"x": wanted}}, {"overrides": {"y": {"x": wanted}}},
    ):  # fmt: skip
        with pytest.raises(BuildError, match=r"package\.json takes x from"):
            check_dependencies("web", json.dumps(described).encode(), None)


def test_a_lock_file_leads_nowhere_else_either() -> None:
    sound = {"packages": {"": {"dependencies": {"x": "^1"}}, "node_modules/x": {"resolved": "https://r.test/x.tgz"}}}
    check_dependencies("web", b"{}", json.dumps(sound).encode())
    for place in (
        {"resolved": "git+ssh://git@example.test/x.git#abc"}, {"resolved": "file:../x"},
        {"dependencies": {"y": "github:owner/y"}},
    ):  # fmt: skip
        lock = {"packages": {**sound["packages"], "node_modules/y": place}}
        with pytest.raises(BuildError, match=r"package-lock\.json takes"):
            check_dependencies("web", b"{}", json.dumps(lock).encode())


def test_npm_is_told_to_run_nothing() -> None:
    assert {"--ignore-scripts", "--allow-git=none", "--git=false"} <= set(node.NPM_FLAGS)
