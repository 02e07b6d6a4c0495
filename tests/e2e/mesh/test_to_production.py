"""One release from staging to production by its digest: built once, with each environment's own configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mesh.nodes import Fleet
from tests.support.mesh.site import Site, ask

OVERLAYS = """
[env.staging]
app.web.routes = ["staging.test"]
[env.production]
app.web.config = { GREETING = "to everybody" }
"""


def test_what_ran_in_staging_goes_to_production_by_its_digest_and_is_built_by_nobody_again(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    folder = tmp_path_factory.mktemp("go")
    fleet = Fleet(folder)
    try:
        machine = fleet.found("one", "--policy", "solo")
        for environment in ("staging", "production"):
            machine.typed_ok("env", "create", environment, "-y")
        machine.typed_ok("policy", "set", "--env", "production", "--mode", "solo", "--evidence", "build:24h", "-y")
        machine.typed_ok("project", "create", "site")
        site = Site(folder, component("services"))
        site.configure("to testers", overlays=OVERLAYS)
        tried = machine.ok("test", "--env", "production", "--folder", str(site.folder))
        assert tried["release"]
        assert site.deploy(machine, "--env", "staging").code == 0
        (staged,) = machine.ok("status", "--env", "staging")["lanes"]
        release = staged["base"]["release"]
        assert release == tried["release"], "what was tested is what runs"

        named = ("--release", release[:12], "--env", "production")
        difference = machine.ok("diff", *named, "--folder", str(site.folder))["diff"]
        assert (difference["release"], difference["first"]) == (release, True)
        assert difference["command"].startswith(f"freehold deploy --release {release[:12]} --env production --expect ")
        proposed = machine.ok("propose", *named, "-m", "to production", "--folder", str(site.folder))
        assert proposed["evidence"] == len(tried["results"]) + 1, "what was built and tested here goes along"

        shutil.rmtree(site.folder)
        empty = folder / "empty"
        empty.mkdir()
        deployed = machine.ok("deploy", *named, "-m", "to production", "--folder", str(empty))
        assert deployed["outcome"] == "succeeded"
        (live,) = machine.ok("status", "--env", "production")["lanes"]
        assert live["base"]["release"] == release
        assert live["base"]["configuration"] != staged["base"]["configuration"]
        assert ask(machine.ingress, "staging", "/config/get?key=GREETING") == (200, "to testers")
        assert ask(machine.ingress, "site", "/config/get?key=GREETING") == (200, "to everybody")
        assert not machine.ok("diff", *named, "--folder", str(empty))["changes"]

        unknown = machine.run("deploy", "--release", "0000", "--env", "production", "--folder", str(empty), "--json")
        assert unknown.json["error"]["kind"] == "no-such-release"
        assert release[:8] in unknown.json["error"]["message"], "it names those there are"
        both = machine.run("deploy", "--release", release, "--change", deployed["change"], "--json")
        assert both.json["error"]["kind"] == "usage"
    finally:
        fleet.close()
