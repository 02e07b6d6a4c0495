"""A node's sockets lie where no other user can put others in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from node import config
from node.config import (
    AcmeSettings,
    BackupConfig,
    NodeConfig,
    TelemetrySettings,
    api_socket,
    read_config,
    runtime_folder,
    telemetry_fields,
    write_config,
)
from node.errors import ConfigError


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that all users share, on a machine that gives this user no folder of its own."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o777)
    for name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config, "SHARED_FOLDER", folder)
    monkeypatch.setattr(config.os, "access", lambda *_: False)
    return folder


def test_every_folder_on_the_way_to_the_sockets_is_the_users_alone(shared: Path, tmp_path: Path) -> None:
    waiting = shared / f"freehold-{os.getuid()}"
    waiting.mkdir()
    waiting.chmod(0o777)
    folder = runtime_folder(tmp_path / "data")
    assert folder.is_relative_to(waiting)
    assert stat.S_IMODE(waiting.stat().st_mode) == 0o700
    assert api_socket(tmp_path / "data") == folder / "api.sock"


def test_a_way_that_another_user_laid_is_not_taken(shared: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (shared / f"freehold-{os.getuid()}").symlink_to(elsewhere)
    for look in (runtime_folder, api_socket):
        with pytest.raises(ConfigError, match="another user"):
            look(tmp_path / "data")
    assert list(elsewhere.iterdir()) == []


ACME = "\n[acme]\nterms_agreed = true\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [('\n[acme]\n', "terms_agreed"), (f'{ACME}directory = "http://ca.test"\n', "https"),
     (f'{ACME}wildcards = ["*.a.test"]\n', "DNS alone"), (f'{ACME}except = ["Bad name"]\n', "DNS names"),
     (f'{ACME}proof = "dns-01"\n', "a hook or a nameserver"), (f'{ACME}proof = "dns-02"\n', "dns-02"),
     (f'{ACME}proof = "dns-01"\nhook = ["h"]\nnameserver = "ns:53"\n', "a hook or a nameserver"),
     (f'{ACME}proof = "dns-01"\nnameserver = "ns:53"\n', "a zone and a file"),
     (f'{ACME}proof = "dns-01"\nhook = ["h"]\nwildcards = ["a.test"]\n', "names like"), (f"{ACME}extra = 1\n", "extra"),
     (f'{ACME}proof = "dns-01"\nhook = ["h"]\npropagation_s = -1\n', "propagation_s")],
    ids=["terms", "http", "wildcard", "name", "no-means", "proof", "both", "no-zone", "no-wildcard", "unknown", "negative"],
)  # fmt: skip
def test_a_table_acme_that_cannot_be_used_says_why(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "node.toml").write_text(f'name = "one"\n{text}')
    with pytest.raises(ConfigError, match=why):
        read_config(tmp_path)


def test_a_table_acme_that_can(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(f'name = "one"\n{ACME}except = ["intern.test"]\nproof = "tls-alpn-01"\n')
    acme = read_config(tmp_path).acme
    assert acme is not None
    assert (acme.exceptions, acme.proof, acme.directory[:8]) == (("intern.test",), "tls-alpn-01", "https://")


@pytest.mark.parametrize(
    ("text", "why"),
    [("\n[telemetry]\n", "otlp"), ('\n[telemetry]\notlp = "collector:4318"\n', "address of a collector"),
     ('\n[telemetry]\notlp = "http://me:secret@c:4318"\n', "no user or password"),
     ('\n[telemetry]\notlp = "http://c:4318"\ntraces = 1.5\n', "a share"),
     ('\n[telemetry]\notlp = "http://c:4318"\nextra = 1\n', "extra"), ("log_days = -1\n", "log_days")],
    ids=["none", "no-scheme", "password", "share", "unknown", "days"],
)  # fmt: skip
def test_what_is_wrong_with_telemetry_is_said(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "node.toml").write_text('name = "n"\n' + text)
    with pytest.raises(ConfigError, match=why):
        read_config(tmp_path)


def test_the_fields_for_a_collector_lie_in_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "fields"
    path.write_text("Authorization: Bearer a:b\n\nx-scope: 1\n")
    (tmp_path / "node.toml").write_text(f'name = "n"\n[telemetry]\notlp = "http://c:4318/x"\nfields = "{path}"\n')
    settings = read_config(tmp_path).telemetry
    assert settings is not None
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        telemetry_fields(settings)
    path.chmod(0o600)
    assert telemetry_fields(settings) == {"Authorization": "Bearer a:b", "x-scope": "1"}
    for wrong in ("no field", "Host: elsewhere", "a: b\x00", "a: \u00e9", ": x"):
        path.write_text(wrong)
        with pytest.raises(ConfigError):
            telemetry_fields(settings)


def test_settings_with_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = NodeConfig(
        "n", backup=BackupConfig("/to", "age1"), acme=AcmeSettings(terms_agreed=True, exceptions=("a.test",)),
        telemetry=TelemetrySettings("http://c:4318", traces=0.5, fields='/a "b"'), log_days=3,
    )  # fmt: skip
    write_config(tmp_path, settings)
    assert read_config(tmp_path) == settings
    (tmp_path / "plain").mkdir()
    write_config(tmp_path / "plain", NodeConfig("n"))
    text = (tmp_path / "plain" / "node.toml").read_text()
    assert "telemetry" not in text, "a release before it does not know the word"
    assert "log_days" not in text
