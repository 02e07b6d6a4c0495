"""`freehold secret` as a person or a script uses it, on a real process."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mesh.canary import files_that_tell, tells
from tests.support.mesh.nodes import Answer, Fleet, Machine, until

VALUE = "sk-live-5d41402abc4b2a76"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    fleet = Fleet(tmp_path_factory.mktemp("secret"))
    try:
        machine = fleet.found("one")
        machine.typed_ok("env", "create", "production", "-y")
        machine.typed_ok("project", "create", "shop")
        yield machine
    finally:
        fleet.close()


def test_a_value_comes_from_a_pipe_and_is_never_said_again(node: Machine) -> None:
    empty = node.run("secret", "set", "API_KEY", "--project", "shop")
    assert empty.code == 1, empty
    said = [
        node.run("secret", "set", "API_KEY", "--project", "shop", "--json", stdin=VALUE + "\n"),
        node.run("secret", "set", "API_KEY", "--project", "shop", stdin=VALUE + "2"),
        node.run("secret", "list", "--project", "shop", "--json"),
        node.run("secret", "list", "--project", "shop"),
        node.run("logs", "--json"),
    ]
    assert [answer.code for answer in said] == [0] * len(said), said
    assert said[0].json["version"] == 1
    assert [(row["name"], row["version"]) for row in said[2].json["secrets"]] == [("API_KEY", 2), ("API_KEY", 1)]
    assert not any(VALUE in answer.stdout + answer.stderr for answer in said)
    for path in node.folder.rglob("*"):
        if path.is_file():
            assert VALUE.encode() not in path.read_bytes(), path


def test_a_prompt_does_not_echo(node: Machine) -> None:
    typed = node.typed("secret", "set", "TYPED", "--project", "shop", "--json", typing=(VALUE,))
    assert typed.code == 0, typed
    assert VALUE not in typed.stdout + typed.stderr


def test_what_is_wrong_is_said_without_the_value(node: Machine) -> None:
    for arguments, code in (
        (("set", "lower-case", "--project", "shop"), 2),
        (("set", "API_KEY", "--project", "unknown"), 3),
        (("set", "API_KEY", "--project", "shop", "--env", "nowhere"), 1),
        (("rm", "MISSING", "--project", "shop", "-y"), 2),
    ):
        answer = node.run("secret", *arguments, stdin=VALUE)
        assert answer.code == code, (arguments, answer)
        assert VALUE not in answer.stdout + answer.stderr
    gone = node.ok("secret", "rm", "API_KEY", "--project", "shop", "-y")
    assert gone["removed"] == [2, 1]
    assert [row["name"] for row in node.ok("secret", "list", "--project", "shop")["secrets"]] == ["TYPED"]


PROJECT = """\
[project]
name = "shop"

[app.web]
language = "component"
source = "web.wasm"
routes = ["shop.test"]
secrets = ["API_KEY"]

[test]
command = '{python} show.py'
[[test.smoke]]
app = "web"
path = "{path}"
{contains}

[rollout]
stages = ["100%"]
min_healthy_time = "1s"
"""


def ask(node: Machine, path: str) -> tuple[int, str]:
    address = next(entry for entry in node.status()["ingress"] if not entry.startswith("unix:"))
    try:
        request = urllib.request.Request(f"http://{address}{path}", headers={"Host": "shop.test"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode()


@contextlib.contextmanager
def room_for_core_files() -> Iterator[None]:
    """Let what is started meanwhile leave core files as large as this machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def workers_of(node: Machine) -> list[int]:
    assert node.process is not None
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


CONFIG = "/config?key=API_KEY"


@pytest.mark.timeout(400)
def test_neither_a_crash_nor_an_error_a_test_a_backup_or_a_command_tells_a_value(
    tmp_path_factory: pytest.TempPathFactory, component: Callable[[str], Path]
) -> None:
    value, dev_value = "canary-9b1d77-of-production", "canary-3c55e0-of-a-trial"
    fleet = Fleet(tmp_path_factory.mktemp("canary"))
    try:
        with room_for_core_files():
            node = fleet.found("one")
        node.typed_ok("env", "create", "production", "-y")
        node.typed_ok("project", "create", "shop")
        assert node.run("secret", "set", "API_KEY", "--project", "shop", stdin=value).code == 0
        folder = fleet.folder / "shop"
        (folder / ".freehold").mkdir(parents=True)
        (folder / ".freehold" / "secrets").write_text(f"API_KEY={dev_value}\n")
        shutil.copy(component("services"), folder / "web.wasm")
        (folder / "show.py").write_text(
            "import os, urllib.request as u\n"
            f"print(u.urlopen(os.environ['FREEHOLD_URL'].rstrip('/') + {CONFIG!r}).read())\n"
        )

        def deploy(contains: str = "") -> Answer:
            text = PROJECT.format(python=sys.executable, path=CONFIG, contains=contains)
            (folder / "freehold.toml").write_text(text)
            return node.run("deploy", "--folder", str(folder), "--json", timeout_s=120)

        said = [deploy('contains = "something else"')]
        assert said[0].code != 0, "a smoke check that reads the value and wants another"
        said.append(deploy())
        assert said[1].code == 0, said[1]
        said.append(node.run("test", "--folder", str(folder), timeout_s=120))
        assert said[2].code == 0, said[2]
        assert "[secret API_KEY]" in said[2].stderr, "the test command printed what the app answered"
        assert ask(node, CONFIG) == (200, value)
        assert ask(node, "/crash?key=API_KEY")[0] >= 500
        until(
            lambda: "[secret API_KEY]" in node.run("logs", "--json").stdout, 30, "what the guest logged as it trapped"
        )
        said.append(node.run("propose", "--folder", str(folder), "-m", "again", "--json", timeout_s=120))
        change = said[-1].json["change"]
        said += [
            node.run(*arguments)
            for arguments in (
                ("diff", "--folder", str(folder)), ("changes", change), ("evidence", "show", change),
                ("evidence", "export", change, "--to", str(fleet.folder / "export")),
                ("evidence", "verify", str(fleet.folder / "export"), "--change", change, "--json"),
                ("why", "shop"), ("audit",), ("status",),
                ("logs",), ("logs", "--json"), ("decisions",), ("doctor",), ("secret", "list", "--project", "shop"),
                ("mesh", "backup", str(fleet.folder / "backup.tar.gz"), "--data", str(node.data)),
            )
        ]  # fmt: skip
        verified = next(answer for answer in said if answer.stdout.startswith("{") and "papers" in answer.json)
        kinds = {entry["kind"] for entry in verified.json["papers"]}
        assert {"build", "test"} <= kinds, "what freehold test and freehold build left is verified again"
        after_crashes_the_value_is_in_no_file(node, fleet, folder, value, dev_value, said)
    finally:
        fleet.close()


def after_crashes_the_value_is_in_no_file(
    node: Machine, fleet: Fleet, folder: Path, value: str, dev_value: str, said: list[Answer]
) -> None:
    """Kill worker and daemon with core files allowed; then no answer, file, export or backup tells a value."""
    answers = [node.get(path) for path in ("/metrics", "/v1/node", "/v1/secrets", "/v1/openapi.json")]
    (worker,) = workers_of(node)
    os.kill(worker, signal.SIGABRT)
    until(lambda: workers_of(node) not in ([], [worker]), 30, "another worker")
    until(lambda: ask(node, CONFIG)[1] == value, 30, "the app in it")
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGABRT)
    assert node.process.wait(30) == -signal.SIGABRT
    node.process = None
    told = [answer for answer in said if tells((answer.stdout + answer.stderr).encode(), (value, dev_value))]
    assert told == []
    assert not [data for data in answers if tells(data, (value,))]
    assert [answer for answer in said[3:] if answer.code not in {0, 1}] == []
    assert (fleet.folder / "export" / "papers").is_dir()
    assert files_that_tell([fleet.folder], (value,)) == []
    assert files_that_tell([fleet.folder], (dev_value,)) == [str(folder / ".freehold" / "secrets")]
    with tarfile.open(fleet.folder / "backup.tar.gz") as tar_file:
        assert len(tar_file.getnames()) > 5, "the search looked into it"
