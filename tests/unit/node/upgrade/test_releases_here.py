"""Releases beside the installed one: which wheels make one, which are refused with nothing kept, and which release runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from node.upgrade import releases_here
from node.upgrade.releases_here import Chosen, Failed, ReleaseError, ReleasesHere, Trial

ORDER = "ab" * 32
CODE = {"cli/main.py": "", "node/daemon.py": "", "runtime/workers/worker.py": "", "protocols/core.py": ""}


def wheel(folder: Path, name: str = "freehold-0.2.0-py3-none-any.whl", *, files: dict[str, str] | None = None,
          version: str = "0.2.0", needs: tuple[str, ...] = (), python: str = ">=3.11") -> tuple[str, Path]:  # fmt: skip
    distribution = name.partition("-")[0]
    head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Python: {python}\n"
    inside = CODE if files is None else files
    with zipfile.ZipFile(folder / name, "w") as archive:
        for entry, text in inside.items():
            archive.writestr(entry, text)
        archive.writestr(
            f"{distribution}-{version}.dist-info/METADATA", head + "".join(f"Requires-Dist: {text}\n" for text in needs)
        )
    return name, folder / name


def test_a_release_is_what_its_wheels_hold(tmp_path: Path) -> None:
    here = ReleasesHere(tmp_path)
    extra = wheel(
        tmp_path, "extra-7.0-py3-none-any.whl", version="7.0",
        files={"extra.py": "x = 1", "extra-7.0.data/purelib/pure.py": "", "extra-7.0.data/scripts/run": "no"},
    )  # fmt: skip
    other = wheel(tmp_path, "extra-7.0-cp27-cp27m-win32.whl", version="7.0", files={"windows.py": ""})
    ours = wheel(tmp_path, needs=("extra>=7", "msgspec", "absent; extra == 'dev'", "absent; sys_platform == 'win32'"))
    name = here.prepare("0.2.0", ORDER, [ours, extra, other])
    assert name == f"0.2.0-{ORDER[:12]}"
    held = {path.name for path in here.path(name).iterdir()}
    assert held >= {"cli", "node", "runtime", "extra.py", "pure.py"}
    assert not held & {"windows.py", "run"}
    assert here.prepare("0.2.0", ORDER, []) == name, "it is there already"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"files": {**CODE, "../out.py": ""}}, "holds a file named"),
        ({"files": {**CODE, "/etc/out.py": ""}}, "holds a file named"),
        ({"files": {**CODE, "a/../../out.py": ""}}, "holds a file named"),
        ({"files": {**CODE, "a\\..\\out.py": ""}}, "holds a file named"),
        ({"version": "0.2.1"}, "the order says 0.2.0"),
        ({"name": "freehold-0.2.0-cp27-cp27m-win32.whl"}, "none of the wheels that fit"),
        ({"name": "other-0.2.0-py3-none-any.whl"}, "none of the wheels that fit"),
        ({"needs": ("surely-absent>=1",)}, "this node has none: add its wheel"),
        ({"needs": ("msgspec>=99",)}, "this node has 0"),
        ({"needs": ("msgspec=>99",)}, "says badly"),
        ({"python": ">=4"}, "needs Python >=4"),
        ({"files": {**CODE, "node/daemon.py": "raise RuntimeError('bad')"}}, "does not load: RuntimeError: bad"),
        ({"files": {text: "" for text in CODE if text != "protocols/core.py"}}, "protocols[.a-z]* is in none of the wheels"),
    ],
    ids=["up", "absolute", "through a folder", "backslashes", "another version", "another machine", "another distribution",
         "absent", "too old", "malformed", "another Python", "does not load", "a package missing"],
)  # fmt: skip
def test_what_cannot_run_is_refused_and_nothing_of_it_is_kept(
    tmp_path: Path, change: dict[str, object], word: str
) -> None:
    here = ReleasesHere(tmp_path / "data")
    here.data.mkdir()
    with pytest.raises(ReleaseError, match=word.replace(">", "[>]")):
        here.prepare("0.2.0", ORDER, [wheel(tmp_path, **change)])  # type: ignore[arg-type]
    assert list((here.data / "versions").iterdir()) == []
    assert not (tmp_path / "out.py").exists()


def test_what_is_no_wheel_or_too_large_or_there_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ReleasesHere(tmp_path)
    (tmp_path / "freehold-0.2.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(ReleaseError, match="is no wheel"):
        here.prepare(
            "0.2.0", ORDER, [("freehold-0.2.0-py3-none-any.whl", tmp_path / "freehold-0.2.0-py3-none-any.whl")]
        )
    twice = wheel(tmp_path, "extra-7.0-py3-none-any.whl", version="7.0", files={"cli/main.py": ""})
    with pytest.raises(ReleaseError, match="two wheels hold"):
        here.prepare("0.2.0", ORDER, [wheel(tmp_path), twice])
    monkeypatch.setattr(releases_here, "UNPACKED_MAX_BYTES", 1000)
    large = wheel(tmp_path, files={**CODE, "large.py": "#" * 1001})
    with pytest.raises(ReleaseError, match="the wheels hold over"):
        here.prepare("0.2.0", ORDER, [large])
    monkeypatch.setattr(releases_here, "FILES_MAX", 3)
    with pytest.raises(ReleaseError, match="the wheels hold over"):
        here.prepare("0.2.0", ORDER, [wheel(tmp_path)])


@pytest.mark.parametrize(("installed", "runs"), [("0.1.0", True), ("0.2.0", False), ("0.3.0", False)])
def test_the_installed_release_counts_again_once_it_is_not_older(tmp_path: Path, installed: str, runs: bool) -> None:
    here = ReleasesHere(tmp_path)
    here.path("0.2.0-x").mkdir(parents=True)
    trial = Trial("0.2.0-x", "0.2.0", ORDER, 30)
    here.write(Chosen("0.2.0-x", "0.2.0", trial, Failed("0.1.5", ORDER, "why")))
    chosen = here.settled(installed)
    assert (chosen.name, chosen.trial) == (("0.2.0-x", trial) if runs else ("", None))
    assert chosen.failed is not None, "what failed is remembered"
    assert here.read() == chosen


def test_a_state_that_cannot_be_read_or_leads_nowhere_is_the_installed_release(tmp_path: Path) -> None:
    here = ReleasesHere(tmp_path)
    assert here.read() == Chosen()
    here.write(Chosen("0.2.0-gone", "0.2.0"))
    assert here.settled("0.1.0").name == ""
    (tmp_path / "versions/state").write_bytes(b'{"name": 7}')
    assert here.read() == Chosen()


def test_what_neither_runs_nor_is_on_trial_is_removed(tmp_path: Path) -> None:
    here = ReleasesHere(tmp_path)
    for name in ("runs", "tried", "old", "half.new"):
        here.path(name).mkdir(parents=True)
    here.write(Chosen("runs", "0.2.0", Trial("tried", "0.3.0", ORDER, 30)))
    here.tidy()
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["runs", "state", "tried"]


def test_a_release_comes_before_what_is_installed(tmp_path: Path) -> None:
    base = {"PATH": "/bin", "PYTHONPATH": "/code"}
    environment = releases_here.environment_of(tmp_path, base)
    assert environment == {"PATH": "/bin", "PYTHONPATH": f"{tmp_path}:/code", "PYTHONSAFEPATH": "1"}
