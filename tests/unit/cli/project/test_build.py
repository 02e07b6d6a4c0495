"""How a project becomes a bundle, without running a toolchain: recipes, worlds, manifests, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import wasmtime

from cli import cache
from cli.errors import BuildError
from cli.project import bundle, javascript_build, node, python_build, python_packages
from cli.project.build import build_app, build_project, recipe_of
from cli.project.bundle import BundleError
from cli.project.find import Found, open_project
from cli.project.model import App
from cli.project.source import read_tree
from cli.project.world import world_of

PREVIEW1_COMMAND = bytes.fromhex(
    "0061736d01000000 0104 01 60 00 00 0302 01 00 070a 01 06 5f7374617274 00 00 0a04 01 02 00 0b"
)
"""A core module with an empty `_start`: the smallest job there is."""


class Quiet:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, app: str, text: str) -> None:
        self.steps.append(f"{app}: {text}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def project(folder: Path, app: str, files: dict[str, bytes], extra: str = "") -> Found:
    root = folder / "project"
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "freehold.toml").write_text(f'[project]\nname = "p"\n[app.web]\n{app}\n{extra}')
    return open_project(root)


def app_of(found: Found) -> App:
    return found.project.base.apps["web"]


JOB = 'language = "component"\nsource = "job.wasm"\nschedule = "* * * * *"'
WSGI = 'language = "wsgi"\nsource = "web"\nroutes = ["/", "a.example/shop/", "/shop/new"]\n'


def test_a_prebuilt_module_becomes_a_build_named_by_its_manifest(tmp_path: Path) -> None:
    answer = project(tmp_path, JOB, {"job.wasm": PREVIEW1_COMMAND})
    build_bundle = build_project(answer.project, answer.text, answer.root, Quiet())
    assert build_bundle.folder.name == build_bundle.id
    assert sorted(path.name for path in build_bundle.folder.iterdir()) == ["artifacts", "manifest"]
    manifest = json.loads((build_bundle.folder / "manifest").read_bytes())
    assert manifest["project_file"] == answer.text
    assert manifest["apps"]["web"]["kind"] == "module"
    assert (build_bundle.folder / "artifacts" / manifest["apps"]["web"]["component"]).read_bytes() == PREVIEW1_COMMAND
    assert bundle.read(build_bundle.folder).id == build_bundle.id
    assert build_project(answer.project, answer.text, answer.root, Quiet()).id == build_bundle.id


def test_a_changed_file_makes_another_build(tmp_path: Path) -> None:
    answer = project(tmp_path, JOB, {"job.wasm": PREVIEW1_COMMAND})
    before = build_project(answer.project, answer.text, answer.root, Quiet()).id
    changed = project(tmp_path, JOB + '\ntimeout = "11s"', {"job.wasm": PREVIEW1_COMMAND})
    assert build_project(changed.project, changed.text, changed.root, Quiet()).id != before


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    answer = project(tmp_path, JOB, {"job.wasm": PREVIEW1_COMMAND})
    build_bundle = build_project(answer.project, answer.text, answer.root, Quiet())
    artifact = next((build_bundle.folder / "artifacts").iterdir())
    artifact.unlink()
    artifact.write_bytes(b"other")
    with pytest.raises(BundleError, match="damaged"):
        bundle.read(build_bundle.folder)
    (build_bundle.folder / "manifest").write_bytes(b"{}")
    with pytest.raises(BundleError, match="not that of build"):
        bundle.read(build_bundle.folder)


def test_a_manifest_has_one_encoding() -> None:
    assert bundle.canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "The file is empty."),
        (b"not wasm", "This is not WebAssembly"),
        (PREVIEW1_COMMAND[:20], "truncated or corrupt"),
    ],
)
def test_a_file_that_is_no_component_is_refused_in_a_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    web = 'language = "component"\nsource = "app.wasm"\nroutes = ["/"]'
    answer = project(tmp_path, web, {"app.wasm": content})
    with pytest.raises(BuildError, match=said) as caught:
        build_app(answer.project, app_of(answer), answer.root, Quiet())
    assert caught.value.kind == "component-refused"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wasi:messaging/producer@0.2.0-draft", "wasi:messaging comes in a later step"),
        ("acme:billing/ledger@1.0.0", "which this host does not offer"),
    ],
)
def test_a_component_that_asks_for_what_nobody_serves_is_refused_at_build(name: str, said: str, tmp_path: Path) -> None:
    content = bytes(wasmtime.wat2wasm(f'(component (import "{name}" (instance)))'))
    web = 'language = "component"\nsource = "app.wasm"\nroutes = ["/"]'
    answer = project(tmp_path, web, {"app.wasm": content})
    with pytest.raises(BuildError, match=said) as caught:
        build_app(answer.project, app_of(answer), answer.root, Quiet())
    assert caught.value.next_step.endswith("freehold build --app web")


def test_a_job_where_a_web_app_should_be_is_refused(tmp_path: Path) -> None:
    answer = project(
        tmp_path, 'language = "component"\nsource = "job.wasm"\nroutes = ["/"]', {"job.wasm": PREVIEW1_COMMAND}
    )
    with pytest.raises(BuildError, match="core WebAssembly module, not a component"):
        build_app(answer.project, app_of(answer), answer.root, Quiet())


def test_a_missing_file_and_a_missing_folder_say_what_to_set(tmp_path: Path) -> None:
    answer = project(tmp_path, JOB, {})
    with pytest.raises(BuildError, match=r"there is no file job\.wasm"):
        build_app(answer.project, app_of(answer), answer.root, Quiet())
    answer = project(tmp_path, WSGI.replace('"web"', '"nowhere"'), {})
    with pytest.raises(BuildError, match=r"there is no folder .*nowhere"):
        build_app(answer.project, app_of(answer), answer.root, Quiet())


def test_the_world_holds_what_freehold_toml_grants_and_no_more(tmp_path: Path) -> None:
    bare = app_of(project(tmp_path, WSGI, {}))
    assert "keyvalue" not in world_of(bare)
    assert "outgoing-handler" not in world_of(bare)
    assert "wasi:config" not in world_of(bare)
    granted = dataclasses.replace(bare, keyvalue=("a",), allow_hosts=("x:1",), secrets=("K",))
    for interface in (
        "wasi:keyvalue/store",
        "wasi:keyvalue/atomics",
        "wasi:http/outgoing-handler",
        "wasi:config/store",
    ):
        assert f"import {interface}@" in world_of(granted)
    assert "export wasi:cli/run@" in world_of(dataclasses.replace(bare, schedule="* * * * *"))


def test_javascript_gets_null_for_what_it_was_not_granted(tmp_path: Path) -> None:
    bare = app_of(project(tmp_path, WSGI, {}))
    assert "const keyvalue = null;" in javascript_build.bindings_module(bare, [])
    granted = javascript_build.bindings_module(dataclasses.replace(bare, keyvalue=("a",)), [])
    assert 'import * as keyvalue from "wasi:keyvalue/store@' in granted


def test_mount_points_come_from_the_routes_of_every_environment(tmp_path: Path) -> None:
    answer = project(tmp_path, WSGI, {}, '[env.live]\napp.web.routes = ["shop.example/s"]\n')
    assert python_build.mount_prefixes(answer.project, app_of(answer)) == ("/shop/new", "/shop", "/s")


def test_a_recipe_names_everything_that_decides_the_bytes(tmp_path: Path) -> None:
    files = {"web/app.py": b"x = 1", "web/requirements.txt": b"flask\n"}
    answer = project(tmp_path, WSGI, files)
    before = recipe_of(answer.project, app_of(answer), answer.root, Quiet()).inputs
    for name, content in (("web/app.py", b"x = 2"), ("web/requirements.txt", b"bottle\n"), ("web/new.txt", b"")):
        changed = project(tmp_path / name.replace("/", "-"), WSGI, {**files, name: content})
        assert recipe_of(changed.project, app_of(changed), changed.root, Quiet()).inputs != before
    granted = project(tmp_path / "granted", WSGI + 'keyvalue = ["a"]', files)
    assert recipe_of(granted.project, app_of(granted), granted.root, Quiet()).inputs != before
    same = project(
        tmp_path / "same", WSGI + 'timeout = "3s"', {**files, "web/__pycache__/app.pyc": b"1", "web/.x": b"1"}
    )
    assert recipe_of(same.project, app_of(same), same.root, Quiet()).inputs == before


def test_two_checkouts_of_other_times_write_the_same_files(tmp_path: Path) -> None:
    written = []
    for name, changed_s in (("first", 1_500_000_000), ("second", 1_700_000_000)):
        answer = project(tmp_path / name, WSGI, {"web/app.py": b"x = 1", "web/static/a.css": b"p {}"})
        for path in (tmp_path / name).rglob("*"):
            os.utime(path, (changed_s, changed_s))
        recipe = recipe_of(answer.project, app_of(answer), answer.root, Quiet())
        read_tree("web", answer.root / "web").write(tmp_path / f"{name}-written")
        files = sorted(path for path in (tmp_path / f"{name}-written").rglob("*") if path.is_file())
        written.append((recipe.inputs, [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in files]))
    assert written[0] == written[1]


def test_a_source_folder_of_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.project.source.FILES_MAX", 2)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(BuildError, match="holds more than 2 files"):
        read_tree("web", tmp_path)


@pytest.mark.parametrize(
    ("name", "alternative"),
    [
        ("pycurl", "freehold.fetch"),
        ("psycopg2", "freehold.store"),
        ("numpy", "native code"),
        ("uwsgi", "web server"),
    ],
)
def test_a_package_that_cannot_work_is_refused_with_the_alternative(name: str, alternative: str) -> None:
    chosen = [python_packages.Resolved("flask", "3", "flask-3-py3-none-any.whl"),
              python_packages.Resolved(name, "1", f"{name}-1-py3-none-any.whl")]  # fmt: skip
    with pytest.raises(BuildError, match=f"{name}: .*{alternative}"):
        python_packages._refuse_unusable("web", chosen)


def test_an_index_that_cannot_be_reached_is_not_told_as_a_misspelt_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_NO_INDEX": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match="index cannot be reached") as caught:
        python_packages._fetch("web", b"no-such-package-anywhere==1\n", tmp_path / "packages")
    assert "network" in caught.value.next_step


def test_packages_are_named_by_their_requirements() -> None:
    assert python_packages.packages_digest(b"a") != python_packages.packages_digest(b"b")
    assert python_packages.normal_name("Typing_Extensions") == "typing-extensions"


def test_a_machine_without_node_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"Node\.js and npm are not on this machine") as caught:
        node.find_node("api")
    assert "apt-get install nodejs npm" in caught.value.next_step


def test_a_package_json_without_dependencies_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "app.js").write_text("")
    tree = read_tree("web", tmp_path / "web")
    assert node.declared_packages(tree, tmp_path) is None
    (tmp_path / "package.json").write_text('{"devDependencies": {"tsx": "4"}}')
    assert node.declared_packages(tree, tmp_path) is None
    (tmp_path / "package.json").write_text('{"dependencies": {"hono": "4"}}')
    declared = node.declared_packages(tree, tmp_path)
    assert declared is not None
    assert declared.lock is None


def test_the_tools_failure_becomes_the_apps_own_traceback(tmp_path: Path) -> None:
    app = app_of(project(tmp_path, WSGI, {}))
    said = (
        'Traceback (most recent call last):\n  File "<string>"\nAssertionError: Traceback (most recent call last):\n'
        '  File "/0/freehold_main.py", line 4, in <module>\n    module = importlib.import_module("app")\n'
        '  File "/1/app.py", line 2, in <module>\n    import numpy\n'
        "ModuleNotFoundError: No module named 'numpy'\n\nCaused by:\n    0: wasm trap\n\nStack backtrace:\n   0: x\n"
    )
    error = python_build._failure(app, said)
    assert 'File "web/app.py", line 2' in str(error)
    assert "freehold_main" not in str(error)
    assert "backtrace" not in str(error)
    assert "native code" in error.next_step


def test_a_cache_entry_is_made_once_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    paths = []

    def make(folder: Path) -> None:
        paths.append(folder)
        (folder / "x").write_text("1")

    first = cache.entry("things", "d", make)
    assert cache.entry("things", "d", make) == first
    assert len(paths) == 1
    with pytest.raises(ZeroDivisionError):
        cache.entry("things", "e", lambda folder: print(1 // 0))
    assert sorted(path.name for path in first.parent.iterdir() if path.is_dir()) == ["d"]


def test_a_cache_forgets_its_oldest_entries(tmp_path: Path) -> None:
    for name in "abcd":
        cache.entry("things", name, lambda folder: None, entries_max=2)
    assert len([path for path in (cache.cache_folder() / "things").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(func $start unreachable) (start $start)", "unreachable"),
        ("(memory 8192)", "more than its 256 MiB"),
    ],
)
def test_a_module_of_which_no_instance_can_be_made_is_refused_at_build(text: str, said: str, tmp_path: Path) -> None:
    content = bytes(wasmtime.wat2wasm(f'(module {text} (func (export "_start")))'))
    answer = project(tmp_path, JOB, {"job.wasm": content})
    with pytest.raises(BuildError, match=said) as caught:
        build_app(answer.project, app_of(answer), answer.root, Quiet())
    assert caught.value.kind == "component-refused"


def test_a_module_that_imports_a_function_twice_is_accepted(tmp_path: Path) -> None:
    line = '(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))'
    content = bytes(wasmtime.wat2wasm(f'(module {line} {line} (memory (export "memory") 1) (func (export "_start")))'))
    answer = project(tmp_path, JOB, {"job.wasm": content})
    assert build_app(answer.project, app_of(answer), answer.root, Quiet()).kind == "module"
