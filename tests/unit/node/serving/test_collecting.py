"""Artifacts beyond the cap go, the least recently used first; what a lane runs or can go back to stays."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from node.serving.releases import Releases
from node.serving.workloads import Workloads
from node.store.artifacts import ArtifactStore
from protocols.changes.change import Component, Release
from protocols.envelope import digest, encode
from protocols.state.model import Lane


def put(folder: Path, data: bytes, used_s: int) -> bytes:
    named = hashlib.sha256(data).digest()
    path = folder / named.hex()
    path.write_bytes(data)
    os.utime(path, (used_s, used_s))
    return named


def test_the_least_recently_used_go_first_and_what_is_kept_never_does(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    old, content, new = (put(tmp_path, letter * 100, used_s) for letter, used_s in ((b"a", 1), (b"b", 2), (b"c", 3)))
    assert store.collect({content}, max_bytes=300) == []
    assert store.collect({content}, max_bytes=299) == [old.hex()]
    assert store.collect({content}, max_bytes=0) == [new.hex()]
    assert store.has(content)  # type: ignore[arg-type]


def test_everything_that_a_lane_runs_or_can_go_back_to_is_kept(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    needed: set[bytes] = set()

    def deployed(name: str) -> Any:
        component, configuration = put(tmp_path, f"{name} code".encode(), 1), put(tmp_path, f"{name} text".encode(), 1)
        manifest = encode(Release("shop", (Component("web", component, 1),), b"", "", b"k" * 32))
        release = put(tmp_path, manifest, 1)
        assert release == digest(manifest)
        needed.update((component, configuration, release))
        return SimpleNamespace(release=release, configuration=configuration)

    base, candidate, older = deployed("base"), deployed("candidate"), deployed("older")
    forgotten = put(tmp_path, b"of nobody", 1)
    lane: Any = SimpleNamespace(base=base, rollout=SimpleNamespace(candidate=candidate), retained=(older,))
    empty: Any = Lane("blog", "production")
    core: Any = SimpleNamespace(state=SimpleNamespace(lanes=(lane, empty)))
    releases = Releases(store, None, None, None, None)  # type: ignore[arg-type]
    workloads = Workloads(core, releases, None, tmp_path, lambda event: True)  # type: ignore[arg-type]
    assert workloads.kept_artifacts() == needed
    assert store.collect(workloads.kept_artifacts(), max_bytes=0) == [forgotten.hex()]
