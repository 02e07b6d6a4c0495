"""Packages that are refused, left out or told of by name. Not here: chains through pip's report (test_package_chains.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.errors import BuildError
from cli.project import python_packages
from cli.project.node_packages import refuse_unusable


def test_a_package_that_has_no_wheel_at_all_is_refused_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="uwsgi: the node is the web server"):
        python_packages._fetch("web", b"flask\nuWSGI>=2 # a server\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"gunicorn==23\nflask\n", ["gunicorn"]),
        (b"uvicorn[standard]>=0.3\nHypercorn\n", ["hypercorn", "uvicorn"]),
        (b"# gunicorn\nflask-gunicorn\n", []),
    ],
    ids=["pinned", "extra and case", "comment and a longer name"],
)
def test_servers_are_told_of_as_the_user_wrote_them(text: bytes, named: list[str]) -> None:
    assert python_packages.servers_named(text) == named


@pytest.mark.parametrize(
    ("name", "way"), [("pg", "key-value store"), ("bcrypt", "bcryptjs"), ("ws", "server-sent events")]
)
def test_a_package_of_npm_that_cannot_work_is_refused(name: str, way: str) -> None:
    with pytest.raises(BuildError, match=f"{name}: .*{way}"):
        refuse_unusable("web", json.dumps({"dependencies": {"hono": "4", name: "*"}}).encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"devDependencies": {"ws": "*"}}',
        '{"dependencies": {"bcryptjs": "*", "ws-lite": "*"}}',
        "not json",
        '{"dependencies": 3}',
        "[]",
    ],
    ids=["for development", "longer names", "no JSON", "no table", "a list"],
)
def test_other_packages_of_npm_are_not(text: str) -> None:
    refuse_unusable("web", text.encode())
