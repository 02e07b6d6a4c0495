"""TLS at the ingress: real workers, real handshakes, certificates that come and go while it serves."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.ingress.certificates import CertificateError, Certificates, days_left, read
from runtime.ingress.listeners import TLS_PREFIX
from runtime.ingress.settings import IngressSettings
from runtime.messages import WorkerRoute
from runtime.workers.pool import PoolError, WorkerPool
from runtime.workers.pool_settings import PoolSettings
from tests.support.runtime.guests import guest, release
from tests.support.runtime.served import REAL

START_TIMEOUT_S = 60.0


def write(folder: Path, file: str, *names: str, days: int = 90, said: x509.ExtensionType | None = None) -> bytes:
    """Put a self-signed certificate and its key into a folder; return the certificate as PEM.

    `said` stands in for the extension that says the names.
    """
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(title).issuer_name(title).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(said or x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    new = folder / f"{file}.new"
    new.write_bytes(certificate + private)
    new.chmod(0o600)
    new.replace(folder / file)
    return certificate


async def ask(address: str, name: str, trusted: bytes) -> str:
    """GET / over TLS as a client that believes one certificate; return the body. Raises ssl.SSLError."""
    context = ssl.create_default_context(cadata=trusted.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.removeprefix(TLS_PREFIX).rpartition(":")
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
        try:
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.write(f"GET /headers HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer.decode("latin-1")


async def refused(address: str, name: str, trusted: bytes) -> bool:
    try:
        await ask(address, name, trusted)
    except ssl.SSLCertVerificationError:
        return True
    return False


@pytest.mark.timeout(200)
async def test_clients_get_the_certificate_of_the_name_they_ask_for_and_new_ones_without_a_restart(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "certificates"
    content = write(folder, "one.pem", "one.test")
    wild = write(folder, "wild.pem", "*.apps.test")
    load = await guest("hello")
    settings = PoolSettings(
        listen=(f"{TLS_PREFIX}127.0.0.1:0", "127.0.0.1:0"), runtime_folder=tmp_path / "run", data_folder=tmp_path / "data",
        build="test", workers=1, certificates=folder, command=REAL, drain_grace_ms=1_000,
    )  # fmt: skip
    pool = WorkerPool(settings, on_logs=lambda batch: None)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pool.run())
        await asyncio.wait_for(pool.started(), START_TIMEOUT_S)
        secure, plain = pool.addresses
        assert secure.startswith(TLS_PREFIX)
        assert not plain.startswith(TLS_PREFIX)
        await pool.load(release(load))
        await pool.activate([WorkerRoute(None, "/", "r1", "hello")])
        assert "freehold-release: r1" in await ask(secure, "one.test", content)
        await ask(secure, "shop.apps.test", wild)
        assert await refused(secure, "a.b.apps.test", wild), "a wildcard stands for one label"
        assert await refused(secure, "unknown.test", content), (
            "a name nobody has gets the first certificate, which is not its"
        )

        newer = write(folder, "one.pem", "one.test")
        await _until_served(secure, "one.test", newer)
        (folder / "one.pem").write_bytes(b"half a fi")
        added = write(folder, "two.pem", "two.test")
        await asyncio.sleep(3)  # longer than the time between two looks: the broken file must have been seen
        await ask(secure, "one.test", newer)
        assert await refused(secure, "two.test", added), "nothing is taken from a folder that cannot be read whole"
        write(folder, "one.pem", "one.test")
        await _until_served(secure, "two.test", added)

        reader, writer = await asyncio.open_connection(*_end(secure))
        writer.write(b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n")
        assert b"200" not in await asyncio.wait_for(reader.read(), 20), "plain HTTP is not answered on a TLS address"
        writer.close()
        await pool.stop()
        await task


@pytest.mark.timeout(200)
async def test_handshakes_that_fail_while_the_worker_is_full_leave_it_taking_others(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    trusted = write(folder, "one.pem", "one.test")
    load = await guest("hello")
    settings = PoolSettings(
        listen=(f"{TLS_PREFIX}127.0.0.1:0",), runtime_folder=tmp_path / "run", data_folder=tmp_path / "data",
        build="test", workers=1, certificates=folder, command=REAL, drain_grace_ms=1_000,
        ingress=IngressSettings(connections_max=4),
    )  # fmt: skip
    pool = WorkerPool(settings, on_logs=lambda batch: None)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pool.run())
        await asyncio.wait_for(pool.started(), START_TIMEOUT_S)
        await pool.load(release(load))
        await pool.activate([WorkerRoute(None, "/", "r1", "hello")])
        silent = [await asyncio.open_connection(*_end(pool.addresses[0])) for _ in range(4)]
        async with asyncio.timeout(20):
            while (await pool.status())[0].connections < 4:  # noqa: ASYNC110  nobody announces it
                await asyncio.sleep(0.05)
        for _, writer in silent:
            writer.write(b"no TLS at all\r\n\r\n")
            writer.close()
        assert "freehold-release: r1" in await ask(pool.addresses[0], "one.test", trusted)
        await pool.stop()
        await task


async def _until_served(address: str, name: str, certificate: bytes) -> None:
    async with asyncio.timeout(20):
        while await refused(address, name, certificate):  # noqa: ASYNC110  nobody announces it
            await asyncio.sleep(0.2)


def _end(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix(TLS_PREFIX).rpartition(":")
    return host, int(port)


def test_a_folder_that_cannot_be_served_from_says_which_file_and_why(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"holds no NAME\.pem"):
        Certificates(tmp_path)
    write(tmp_path, "good.pem", "good.test", days=9)
    assert [days_left(loaded) for loaded in read(tmp_path)] == [8]
    open_file = tmp_path / "open.pem"
    write(tmp_path, "open.pem", "open.test")
    open_file.chmod(0o644)
    with pytest.raises(CertificateError, match="chmod 600"):
        read(tmp_path)
    for content in (
        b"",
        b"no PEM",
        (tmp_path / "good.pem").read_bytes().split(b"-----BEGIN PRIVATE")[0],
        b"x" * (1 << 19),
    ):
        open_file.write_bytes(content)
        open_file.chmod(0o600)
        with pytest.raises(CertificateError, match=r"open\.pem"):
            read(tmp_path)


async def test_a_pool_without_certificates_does_not_serve_a_tls_address(tmp_path: Path) -> None:
    settings = PoolSettings(
        listen=(f"{TLS_PREFIX}127.0.0.1:0",),
        runtime_folder=tmp_path / "run",
        data_folder=tmp_path / "data",
        build="test",
    )
    with pytest.raises(PoolError, match="certificates"):
        WorkerPool(settings, on_logs=lambda batch: None)


def test_a_certificate_whose_names_cannot_be_read_is_refused_like_any_other_that_is_broken(tmp_path: Path) -> None:
    """OpenSSL serves it, so nothing but the names tells; a worker that stumbled over it would end, and the next one too."""
    write(tmp_path, "good.pem", "good.test")
    held = Certificates(tmp_path)
    garbage = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x03\x82\x01\xe4")
    write(tmp_path, "odd.pem", "odd.test", said=garbage)
    with pytest.raises(CertificateError, match=r"odd\.pem"):
        held.refresh()
    assert not held.refresh(), "it is told once"
