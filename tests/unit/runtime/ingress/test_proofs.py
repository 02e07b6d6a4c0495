"""Answers to certificate authorities: from files that a daemon keeps, for those that ask for an open challenge alone."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from runtime.ingress.certificates import CertificateError, Certificates
from runtime.ingress.proofs import ALPN, FrontFolder, offers_proof
from tests.support.runtime.pem import write

TOKEN = "t" * 43


@pytest.fixture
def front(tmp_path: Path) -> FrontFolder:
    front_folder = FrontFolder(tmp_path)
    front_folder.make()
    (front_folder.http / TOKEN).write_bytes(b"the answer")
    return front_folder


def test_a_token_is_answered_from_its_file(front: FrontFolder) -> None:
    assert front.answer(f"/.well-known/acme-challenge/{TOKEN}") == b"the answer"


@pytest.mark.parametrize(
    "path",
    [f"/{TOKEN}", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/" + "u" * 43,
     "/.well-known/acme-challenge/../http-01/" + TOKEN, f"/.well-known/acme-challenge/{TOKEN}/",
     f"/.well-known/acme-challenge/{TOKEN}x",
     "/.well-known/acme-challenge/..%2f..%2fcertificates%2fa.pem", f"/.well-known/acme-challenge//{TOKEN}"],
    ids=["elsewhere", "empty", "unknown", "up", "slash", "longer", "escaped", "double"],
)  # fmt: skip
def test_all_else_is_a_visitors_request(front: FrontFolder, path: str) -> None:
    assert front.answer(path) is None


def test_the_folders_are_this_users_alone(front: FrontFolder) -> None:
    assert {path.stat().st_mode & 0o777 for path in (front.http, front.alpn, front.certificates)} == {0o700}


async def hello_of(context: ssl.SSLContext, *, pieces: int = 1) -> bool:
    """Whether a listener sees the offer in what a client with this context begins with, sent in pieces."""
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)

        async def send() -> None:
            for index in range(pieces):
                far.send(hello[index * len(hello) // pieces : (index + 1) * len(hello) // pieces])
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            offered = await offers_proof(near)
        assert near.recv(1 << 16) == hello  # nothing was taken from the socket
        return offered


@pytest.mark.parametrize("pieces", [1, 3])
async def test_an_authority_is_known_by_what_it_offers(pieces: int) -> None:
    context = ssl.create_default_context()
    context.set_alpn_protocols([ALPN])
    assert await hello_of(context, pieces=pieces)
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    assert not await hello_of(context, pieces=pieces)
    assert not await hello_of(ssl.create_default_context(), pieces=pieces)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n acme-tls/1", b"\x17\x03\x01\x00\x0b\x0aacme-tls/1", b""])
async def test_what_is_no_handshake_offers_nothing(said: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.send(said)
        far.shutdown(socket.SHUT_WR)
        assert not await offers_proof(near)


def test_an_authority_gets_the_certificate_of_the_name_it_asks_for_and_no_other(front: FrontFolder) -> None:
    assert not front.proof_open()
    assert front.proof_context() is None
    write(front.alpn / "a.test.pem", "a.test")
    write(front.alpn / "b.test.pem", "b.test")
    assert front.proof_open()
    context = front.proof_context()
    assert context is not None
    assert _handshake(context, "b.test", ALPN)[1] == ALPN
    with pytest.raises(ssl.SSLError):
        _handshake(context, "c.test", ALPN)


def _handshake(server_context: ssl.SSLContext, name: str, alpn: str) -> tuple[bytes, str | None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(down, up, server_hostname=name)
    server = server_context.wrap_bio(up, down, server_side=True)
    sides = [client, server]
    while sides:
        for side in tuple(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert(binary_form=True) or b"", client.selected_alpn_protocol()


def test_certificates_of_the_mesh_come_and_go_while_the_node_runs(tmp_path: Path, front: FrontFolder) -> None:
    own = tmp_path / "own"  # which need not be there
    held = Certificates(own, front.certificates)
    with pytest.raises(ssl.SSLError):
        _handshake(held.front, "a.test", "http/1.1")
    write(front.certificates / "a.pem", "a.test")
    assert held.refresh()
    first = _handshake(held.front, "a.test", "http/1.1")[0]
    write(front.certificates / "a.pem", "a.test", ends=20)
    assert held.refresh()
    assert _handshake(held.front, "a.test", "http/1.1")[0] != first
    (front.certificates / "a.pem").unlink()
    assert held.refresh()
    with pytest.raises(ssl.SSLError):
        _handshake(held.front, "a.test", "http/1.1")


def test_a_damaged_file_of_ones_own_changes_nothing_and_one_of_the_mesh_is_left_out(
    tmp_path: Path, front: FrontFolder
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    write(own / "own.pem", "own.test")
    write(front.certificates / "a.pem", "a.test")
    held = Certificates(own, front.certificates)
    (front.certificates / "b.pem").write_bytes(b"of a release to come")
    assert held.refresh()
    assert set(held._by_name) == {"own.test", "a.test"}
    (own / "own.pem").write_bytes(b"half")
    with pytest.raises(CertificateError, match=r"own\.pem"):
        held.refresh()
    assert set(held._by_name) == {"own.test", "a.test"}
