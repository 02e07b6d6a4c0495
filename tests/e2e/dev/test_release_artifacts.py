"""Builds that go elsewhere: their bill, as a file, through a registry; with outside tools, and what is almost a build."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from cli.change.proposal import kept_here, release_of
from cli.commands.project.release import release
from cli.errors import UsageError
from cli.project.bundle import BuildBundle, BuiltApp, CodeSource, manifest_of, write
from cli.project.find import Found
from cli.project.parse import parse
from cli.project.sbom import sbom_of
from tests.support.go import built
from tests.support.mesh.registry import PASSWORD, USER, a_registry

ORAS = ("oras.land/oras/cmd/oras", "v1.2.3")
TEXT = """\
[project]
name = "site"
owners = ["me"]
description = "a site"
[app.web]
language = "component"
source = "web.wasm"
routes = ["/"]
[app.api]
language = "component"
source = "api.wasm"
routes = ["/api"]
"""


def a_build(folder: Path, component: Path) -> BuildBundle:
    """A build with packages, as the builders of Python and JavaScript write one."""
    named = hashlib.sha256(component.read_bytes()).hexdigest()
    other = folder / "api.wasm"
    other.write_bytes(
        component.read_bytes() + b"\0\x05\x04note!"
    )  # another custom section: other bytes, the same component
    python = {"componentize-py": "0.25.1"}
    packages = {"flask": "3.1.0", "markupsafe": "3.0.2"}
    apps = {
        "web": BuiltApp("web", component, named, component.stat().st_size, "http", ("wasi:http",), "aa" * 32, python, packages),
        "api": BuiltApp(
            "api", other, hashlib.sha256(other.read_bytes()).hexdigest(), other.stat().st_size, "http", (), "bb" * 32,
            {"componentize-js": "0.19.3"}, {"@scope/pkg": "1.0.0+b", "is-promise": "4.0.0"},
        ),
    }  # fmt: skip
    (folder / "freehold.toml").write_text(TEXT)
    manifest = manifest_of(parse(TEXT), TEXT, apps, CodeSource("c" * 40, False, "ann"))
    return write(folder / ".freehold" / "builds", manifest, apps)


@pytest.fixture
def project(tmp_path: Path, component: Callable[[str], Path]) -> tuple[Path, BuildBundle]:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder, a_build(folder, component("hello"))


def run(*words: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    done = CliRunner().invoke(release, [*words, "--json"], env=env)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(*words: str, env: Mapping[str, str] | None = None) -> str:
    done = CliRunner().invoke(release, [*words, "--json"], env=env)
    assert done.exit_code not in {0, 70}, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return str(json.loads(done.stdout)["error"]["message"])


def test_the_specifications_validator_accepts_the_bill_and_it_names_everything(
    project: tuple[Path, BuildBundle],
) -> None:
    folder, build = project
    bill = run("sbom", "--build", build.id[:12], "--folder", str(folder))["sbom"]
    judge = JsonStrictValidator(SchemaVersion.V1_6)
    assert judge.validate_str(json.dumps(bill)) is None
    assert judge.validate_str(json.dumps(bill | {"components": [{"name": "no type"}]})) is not None
    web = next(entry for entry in bill["components"] if entry["name"] == "web")
    assert [entry["purl"] for entry in web["components"]] == ["pkg:pypi/flask@3.1.0", "pkg:pypi/markupsafe@3.0.2"]
    api = next(entry for entry in bill["components"] if entry["name"] == "api")
    assert [entry["purl"] for entry in api["components"]] == [
        "pkg:npm/%40scope/pkg@1.0.0%2Bb",
        "pkg:npm/is-promise@4.0.0",
    ]
    assert web["hashes"][0]["content"] == build.manifest["apps"]["web"]["component"]
    assert {entry["name"] for entry in bill["metadata"]["tools"]["components"]} == {
        "componentize-py",
        "componentize-js",
    }
    assert sbom_of(build) == bill, "no moment and no chance is in it"


def test_a_build_goes_as_a_file_and_comes_back_byte_for_byte(project: tuple[Path, BuildBundle], tmp_path: Path) -> None:
    folder, build = project
    first, second, there = tmp_path / "a.tar", tmp_path / "b.tar", tmp_path / "there"
    for target in (first, second):
        run("export", str(target), "--build", build.id, "--folder", str(folder))
    assert first.read_bytes() == second.read_bytes()
    assert "is there already" in refused("export", str(first), "--build", build.id, "--folder", str(folder))
    there.mkdir()
    came = run("import", str(first), "--folder", str(there))
    assert came["build"] == build.id
    assert (there / "freehold.toml").read_text() == TEXT
    for path in build.folder.rglob("*"):
        if path.is_file():
            assert (
                there / ".freehold" / "builds" / build.id / path.relative_to(build.folder)
            ).read_bytes() == path.read_bytes()
    assert run("import", str(first), "--folder", str(there))["build"] == build.id, "twice is once"


def altered(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A layout with other members."""
    with tarfile.open(source) as archive:
        held = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}  # type: ignore[union-attr]
    change(held)
    with tarfile.open(target, "w") as archive:
        for name, data in held.items():
            head = tarfile.TarInfo(name)
            head.size = len(data)
            archive.addfile(head, io.BytesIO(data))
    return target


def redo(held: dict[str, bytes], edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and everything that names it, so that all digests are right."""
    index = json.loads(held["index.json"])
    manifest = json.loads(held.pop(f"blobs/sha256/{index['manifests'][0]['digest'][7:]}"))
    edit(manifest)
    data = json.dumps(manifest).encode()
    index["manifests"][0] |= {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
    held[f"blobs/sha256/{index['manifests'][0]['digest'][7:]}"] = data
    held["index.json"] = json.dumps(index).encode()


def wasm(manifest: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = next(entry for entry in manifest["layers"] if entry["mediaType"] == "application/wasm")
    return document


def flip(held: dict[str, bytes]) -> None:
    name = max((text for text in held if text.startswith("blobs/")), key=lambda one: len(held[one]))
    held[name] = held[name][:-1] + bytes([held[name][-1] ^ 1])


NEAR: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "one bit of a component": (flip, "other bytes"),
    "no index": (lambda held: held.pop("index.json"), "no index.json"),
    "index of two": (lambda held: held.update({"index.json": b'{"manifests":[{},{}]}'}), "no single artifact"),
    "deep index": (lambda held: held.update({"index.json": b"[" * 200_000}), "no JSON"),
    "a component missing": (lambda held: redo(held, lambda one: one["layers"].remove(wasm(one))), "lacks a component"),
    "a component more": (
        lambda held: redo(held, lambda one: one["layers"].append({**one["config"], "mediaType": "application/wasm"})),
        "that nothing names",
    ),
    "a wrong size": (lambda held: redo(held, lambda one: wasm(one).update(size=wasm(one)["size"] - 1)), "at most"),
    "a size of half a terabyte": (lambda held: redo(held, lambda one: wasm(one).update(size=1 << 39)), "larger than"),
    "a digest that climbs": (
        lambda held: redo(held, lambda one: wasm(one).update(digest="sha256:../../x")),
        "no SHA-256",
    ),
    "another kind": (lambda held: redo(held, lambda one: one.update(artifactType="application/x")), "another kind"),
    "a picture as configuration": (
        lambda held: redo(held, lambda one: one["config"].update(mediaType="image/png")),
        "manifest",
    ),
}


@pytest.mark.parametrize("what", NEAR)
def test_what_is_almost_a_build_is_refused_and_leaves_nothing(
    what: str, project: tuple[Path, BuildBundle], tmp_path: Path
) -> None:
    folder, build = project
    whole, there = tmp_path / "a.tar", tmp_path / "there"
    run("export", str(whole), "--build", build.id, "--folder", str(folder))
    there.mkdir()
    change, said = NEAR[what]
    assert said in refused("import", str(altered(whole, tmp_path / "b.tar", change)), "--folder", str(there))
    assert [path for path in there.rglob("*") if path.is_file()] == []


async def test_oras_pulls_what_was_pushed_and_it_comes_back(project: tuple[Path, BuildBundle], tmp_path: Path) -> None:
    folder, build = project
    there = tmp_path / "there"
    there.mkdir()
    async with a_registry() as registry:
        where = f"{registry.host}/web/site"
        pushed = await asyncio.to_thread(run, "push", f"{where}:1", "--build", build.id, "--folder", str(folder))
        again = await asyncio.to_thread(run, "push", f"{where}:2", "--build", build.id, "--folder", str(folder))
        assert pushed["artifact"] == again["artifact"]
        pulled = await asyncio.to_thread(run, "pull", pushed["reference"], "--folder", str(there))
        assert pulled["build"] == build.id
        assert "has no" in await asyncio.to_thread(refused, "pull", f"{where}:3", "--folder", str(there))
        big = max(registry.blobs, key=lambda one: len(registry.blobs[one]))
        right = registry.blobs[big]
        for wrong, said in ((right[:-1] + b"?", "other bytes"), (right + b"?", "larger than it says")):
            registry.blobs[big] = wrong
            shutil.rmtree(there / ".freehold")
            assert said in await asyncio.to_thread(refused, "pull", f"{where}:1", "--folder", str(there))
            registry.blobs[big] = right
            (there / ".freehold").mkdir(exist_ok=True)
        oras = built(*ORAS)
        out = tmp_path / "oras"
        command = [str(oras), "pull", "--plain-http", "--output", str(out), f"{where}:1"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        for name in ("web", "api"):
            data = (out / f"{name}.wasm").read_bytes()
            assert hashlib.sha256(data).hexdigest() == build.manifest["apps"][name]["component"]
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((out / "sbom.cdx.json").read_text()) is None


async def test_a_registry_that_asks_for_a_token_gets_one_and_nobody_else(project: tuple[Path, BuildBundle]) -> None:
    folder, build = project
    async with a_registry(closed=True) as registry:
        words = ("push", f"{registry.host}/web/site:1", "--build", build.id, "--folder", str(folder))
        assert "401" in await asyncio.to_thread(refused, *words, env={"REGISTRY_USERNAME": "", "REGISTRY_PASSWORD": ""})
        wrong = {"REGISTRY_USERNAME": USER, "REGISTRY_PASSWORD": "another"}
        assert "401" in await asyncio.to_thread(refused, *words, env=wrong)
        right = {"REGISTRY_USERNAME": USER, "REGISTRY_PASSWORD": PASSWORD}
        assert (await asyncio.to_thread(lambda: run(*words, env=right)))["build"] == build.id


@pytest.mark.parametrize(
    "text", ["", "x", "host/", "HOST/Name:1", "host/name:", "host/../x:1", "host/name@sha256:ab", "a b/c"]
)
def test_what_is_no_address(text: str, project: tuple[Path, BuildBundle]) -> None:
    folder, build = project
    assert "no address" in refused("push", text, "--build", build.id, "--folder", str(folder))


def test_what_was_taken_in_is_offered_with_its_own_project_file(
    project: tuple[Path, BuildBundle], tmp_path: Path
) -> None:
    """A build made elsewhere is a release of whoever proposes it; the file beside it may say otherwise."""
    folder, build = project
    whole, there = tmp_path / "a.tar", tmp_path / "there"
    run("export", str(whole), "--build", build.id, "--folder", str(folder))
    run("import", str(whole), "--folder", str(there))
    author = b"k" * 32
    offered = kept_here(there, build.id[:10], author)
    here = Found(folder, parse(TEXT), TEXT)
    assert offered.release == release_of(here, build, author)
    assert {path.read_bytes() for path in offered.files.values()} == {
        path.read_bytes() for path in (build.folder / "artifacts").iterdir()
    }
    (there / "freehold.toml").write_text(TEXT.replace('"/api"', '"/other"'))
    assert kept_here(there, build.id, author).release == offered.release
    for named in ("0000", "", build.id[:3], build.id + "0"):
        with pytest.raises(UsageError, match="no build here"):
            kept_here(there, named, author)
    next((there / ".freehold" / "builds" / build.id / "artifacts").iterdir()).write_bytes(b"other")
    with pytest.raises(UsageError, match="damaged"):
        kept_here(there, build.id, author)
