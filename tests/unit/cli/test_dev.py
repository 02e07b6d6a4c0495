"""The parts of freehold dev that need no worker: secrets, ports, log lines, what counts as source."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cli.dev.secrets import read_secrets
from cli.dev.server import _not_prepared
from cli.errors import UsageError
from cli.host.ports import owner_of
from cli.project.find import open_project
from cli.project.scaffold import CHOICES, create
from cli.views.log_lines import described


def test_secrets_are_lines_of_name_and_value(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    assert read_secrets(path) == {}
    path.write_text("# mine\n\nSTRIPE_KEY = sk=1\nOTHER=x\n")
    assert read_secrets(path) == {"STRIPE_KEY": "sk=1", "OTHER": "x"}


def test_a_bad_secrets_line_is_named_without_its_value(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("STRIPE_KEY=sk\nhunter2\n")
    with pytest.raises(UsageError, match="secrets:2") as caught:
        read_secrets(path)
    assert "hunter2" not in str(caught.value) + caught.value.next_step


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_a_busy_port_names_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert str(owner_of(port)).startswith(f"pid {os.getpid()} (")
    assert owner_of(port) is None


def test_a_guests_words_are_marked_and_cannot_move_the_cursor() -> None:
    entry = {"time": "2026-11-23T04:49:34Z", "app": "web", "level": "info", "stream": "guest", "event": "stdout",
             "message": "\x1b[2Jhello\r\n"}  # fmt: skip
    assert described(entry).plain == "04:49:34Z web | <001B>[2Jhello"


def test_a_line_names_its_node_where_several_write_and_a_run_its_release() -> None:
    entry = {"time": "2026-11-23T04:49:34Z", "event": "run", "message": "serving", "release": "ab" * 32, "node": "oslo",
             "role": "candidate"}  # fmt: skip
    assert described(entry).plain == "04:49:34Z · serving abababababab as the candidate"
    assert described(entry, node=True).plain == "04:49:34Z oslo · serving abababababab as the candidate"


def test_the_hosts_words_show_what_happened() -> None:
    entry = {"time": "2026-11-23T04:49:34Z", "app": "web", "stream": "host", "event": "request", "status": 504,
             "outcome": "deadline_exceeded", "request_id": "r-1"}  # fmt: skip
    assert described(entry).plain == "04:49:34Z web · request  status=504 outcome=deadline_exceeded"
    request = {"method": "GET", "path": "/a\x1b", "duration_ms": 1000.4, "client": "127.0.0.1", "bytes_out": 12}
    assert described(entry | request).plain == "04:49:34Z web · GET /a<001B> 504 1000 ms deadline exceeded"


def test_a_failed_import_shows_the_apps_frames_alone_and_what_to_do_about_a_missing_package(tmp_path: Path) -> None:
    apps = open_project(create("hello", CHOICES["python"], tmp_path)[0]).project.base.apps
    why = (
        "app web cannot be imported:\nTraceback (most recent call last):\n"
        '  File "/0/freehold_dev.py", line 59, in _load\n    module = importlib\n'
        "  File \"/1/app.py\", line 3, in <module>\n    import {0}\nModuleNotFoundError: No module named '{0}'\n"
    )
    error = _not_prepared(why.format("jinja"), apps)
    assert str(error) == (
        "this version cannot run: app web cannot be imported:\nTraceback (most recent call last):\n"
        "  File \"web/app.py\", line 3, in <module>\n    import jinja\nModuleNotFoundError: No module named 'jinja'"
    )
    assert error.next_step.startswith("add jinja to web/requirements.txt")
    assert "freehold.fetch" in _not_prepared(why.format("pycurl"), apps).next_step
    assert _not_prepared("smoke check / of web answered 500, not 200", apps).next_step == "correct the app and save"
