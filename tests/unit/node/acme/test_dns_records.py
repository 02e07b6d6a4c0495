"""DNS-01: a hook that is a real command, and a name server that checks what a signed update says (RFC 2136, RFC 8945)."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import dns.message
import dns.rcode
import dns.tsigkeyring
import dns.update
import pytest

from node.acme.client import AcmeError
from node.acme.dns_records import proof_name, proof_text, set_record
from node.config import AcmeSettings

AUTHORIZATION = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA.NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXg="


def test_where_a_record_stands_and_what_it_says() -> None:
    assert proof_name("*.site.test") == proof_name("site.test") == "_acme-challenge.site.test"
    assert len(proof_text(AUTHORIZATION)) == 43
    assert proof_text(AUTHORIZATION) != proof_text(AUTHORIZATION[:-1])


def hook(folder: Path, body: str) -> AcmeSettings:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return AcmeSettings(True, hook=(str(path), "first"), proof="dns-01", propagation_s=0)


async def test_a_hook_gets_act_name_and_text_and_nothing_of_the_daemons_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEHOLD_SECRET", "x")
    settings = hook(tmp_path, f'echo "$@" >> {tmp_path}/said; env >> {tmp_path}/env')
    await set_record(settings, "present", "*.site.test", AUTHORIZATION)
    await set_record(settings, "remove", "*.site.test", AUTHORIZATION)
    text = proof_text(AUTHORIZATION)
    assert (tmp_path / "said").read_text().splitlines() == [
        f"first present _acme-challenge.site.test {text}", f"first remove _acme-challenge.site.test {text}",
    ]  # fmt: skip
    assert "FREEHOLD_SECRET" not in (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    ("body", "why"),
    [("echo no such zone >&2; exit 3", "ended with 3: no such zone"), ("exit 1", "ended with 1: without a word"),
     ("head -c 300000 /dev/zero >&2; exit 1", "ended with 1"), ("kill -9 $$", "ended with -9")],
    ids=["said", "silent", "much", "killed"],
)  # fmt: skip
async def test_a_hook_that_fails_says_why(tmp_path: Path, body: str, why: str) -> None:
    with pytest.raises(AcmeError, match=why):
        await set_record(hook(tmp_path, body), "present", "site.test", AUTHORIZATION)


async def test_a_hook_that_is_not_there(tmp_path: Path) -> None:
    settings = AcmeSettings(True, hook=(str(tmp_path / "none"),), proof="dns-01")
    with pytest.raises(AcmeError, match="No such file"):
        await set_record(settings, "present", "site.test", AUTHORIZATION)


@contextlib.asynccontextmanager
async def name_server(keys: dict[str, str]) -> AsyncIterator[tuple[str, list[str]]]:
    """A name server over TCP that takes updates signed with `keys`; yields its address and what it was told."""
    told: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = struct.unpack("!H", await reader.readexactly(2))[0]
        raw = await reader.readexactly(size)
        try:
            query = dns.message.from_wire(raw, keyring=dns.tsigkeyring.from_text(keys))
            assert isinstance(query, dns.update.UpdateMessage)
            told.extend(f"{query.zone[0].name} {rrset.to_text()}" for rrset in query.update)
            answer = dns.message.make_response(query)
        except dns.message.UnknownTSIGKey:
            answer = dns.message.Message(id=struct.unpack("!H", raw[:2])[0])
            answer.flags = 0xA800
            answer.set_rcode(dns.rcode.NOTAUTH)
        wire = answer.to_wire()
        writer.write(struct.pack("!H", len(wire)) + wire)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", told


def signed_by(folder: Path, server: str, key: str = f"acme. hmac-sha256 {SECRET}", mode: int = 0o600) -> AcmeSettings:
    path = folder / "tsig"
    path.write_text(key + "\n")
    path.chmod(mode)
    return AcmeSettings(True, nameserver=server, zone="site.test", tsig=str(path), proof="dns-01", propagation_s=0)


async def test_a_name_server_is_told_by_a_signed_update(tmp_path: Path) -> None:
    async with name_server({"acme.": SECRET}) as (server, told):
        settings = signed_by(tmp_path, server)
        await set_record(settings, "present", "*.site.test", AUTHORIZATION)
        await set_record(settings, "remove", "*.site.test", AUTHORIZATION)
    text = proof_text(AUTHORIZATION)
    assert told[0].endswith(f'60 IN TXT "{text}"')
    assert told[0].startswith("site.test. _acme-challenge")
    assert f'NONE TXT "{text}"' in told[1]


@pytest.mark.parametrize(
    ("key", "mode", "why"),
    [(f"other. hmac-sha256 {SECRET}", 0o600, "refuses the update|nameserver"),
     (f"acme. hmac-sha256 {SECRET}", 0o640, "chmod 600"), ("acme.", 0o600, "NAME ALGORITHM SECRET"),
     ("acme. hmac-sha256 !!!", 0o600, "nameserver"),
     (f"acme. hmac-md5 {SECRET}", 0o600, "NAME ALGORITHM SECRET")],
    ids=["unknown-key", "readable", "parts", "no-base64", "algorithm"],
)  # fmt: skip
async def test_a_key_that_is_none(tmp_path: Path, key: str, mode: int, why: str) -> None:
    async with name_server({"acme.": SECRET}) as (server, told):
        with pytest.raises(AcmeError, match=why) as refused:
            await set_record(signed_by(tmp_path, server, key, mode), "present", "site.test", AUTHORIZATION)
    assert refused.value.rule == "nameserver"
    assert SECRET not in str(refused.value)
    assert not told


async def test_a_name_server_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(AcmeError, match="nameserver"):
        await set_record(signed_by(tmp_path, "127.0.0.1:1"), "present", "site.test", AUTHORIZATION)
