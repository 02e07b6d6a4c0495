"""The API's certificate as ordinary clients see it: plain curl with a CA file, a pin, and each near miss refused."""

from __future__ import annotations

import base64
import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from node.api.callers.authority import BOUND, BOUND_BEFORE, Key, Names, is_of_node, make_authority, make_leaf
from node.api.tls import AUTHORITY_NAME, EARLIER_NAME, SERVED_NAME, ApiCertificate, _load, _write
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from tests.support.mesh.nodes import Fleet

NOW = datetime.datetime.now(datetime.UTC)
NODE_KEY, OTHER_KEY = Ed25519Signer(b"n" * 32), Ed25519Signer(b"o" * 32)
MESH = b"m" * 32
NAMES = Names.of(("node-1", "10.0.0.1", "0.0.0.0", "[::1]", "bad name"))


def made(folder: Path, names: Names = NAMES, signer: Ed25519Signer = NODE_KEY) -> ApiCertificate:
    folder.mkdir(exist_ok=True)
    api_certificate = ApiCertificate(folder, peer_id(signer.public_key), MESH, signer)
    api_certificate.refresh(names, NOW)
    return api_certificate


def test_names_are_sorted_into_what_they_are() -> None:
    assert Names(("node-1",), ("10.0.0.1", "::1")) == NAMES


def test_the_pin_outlives_names_and_certificates_and_authorities_are_their_nodes_own(tmp_path: Path) -> None:
    api_certificate = made(tmp_path / "a")
    first = api_certificate.refresh(NAMES, NOW)
    assert api_certificate.refresh(NAMES, NOW).authority == first.authority, "made anew without need"
    wider = api_certificate.refresh(Names.of(("node-1", "10.0.0.1", "10.0.0.2")), NOW)
    aged = api_certificate.refresh(NAMES, NOW + datetime.timedelta(days=70))
    assert first.pin == wider.pin == aged.pin
    assert wider.authority != first.authority, "an authority that covers fewer names would not verify"
    verifier, node = Ed25519Verifier(), peer_id(NODE_KEY.public_key)
    assert is_of_node(verifier, node, MESH, first.authority)
    assert not is_of_node(verifier, peer_id(OTHER_KEY.public_key), MESH, first.authority)
    assert not is_of_node(verifier, node, b"x" * 32, first.authority)
    held = _load(tmp_path / "a" / SERVED_NAME)
    assert held is not None
    assert not is_of_node(verifier, node, MESH, held[1].public_bytes(serialization.Encoding.DER))
    for junk in (b"", b"x" * 100, first.authority[:-1], bytes(5_000)):
        assert not is_of_node(verifier, node, MESH, junk)


def test_an_authority_certifies_no_other_nodes_names(tmp_path: Path) -> None:
    made(tmp_path / "a")
    held = _load(tmp_path / "a" / AUTHORITY_NAME)
    assert held is not None
    key, authority = held
    (tmp_path / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    for names, good in (
        (NAMES, True), (Names.of(("node-1",)), True), (Names.of(("node-2",)), False), (Names.of(("10.0.0.2",)), False),
        (Names.of(("example.com",)), False), (Names.of(("10.0.0.1", "10.0.0.2")), False),
    ):  # fmt: skip
        leaf = make_leaf(authority, key, key, names, now=NOW, lifetime=datetime.timedelta(days=1))
        _write(tmp_path / "leaf.pem", key, leaf)
        done = subprocess.run(
            ["openssl", "verify", "-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")], capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) == good, (names, done.stderr)


def as_before(authority: x509.Certificate, key: Key) -> x509.Certificate:
    """The same authority as an earlier release made it: its binding in an extension of a long number."""
    names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (said,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    builder = (
        x509.CertificateBuilder().subject_name(authority.subject).issuer_name(authority.issuer)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(authority.not_valid_before_utc).not_valid_after(authority.not_valid_after_utc)
    )  # fmt: skip
    for extension in authority.extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(extension.value, extension.critical)
    bound = x509.UnrecognizedExtension(BOUND_BEFORE, bytes.fromhex(said.removeprefix(BOUND)))
    return builder.add_extension(bound, critical=False).sign(key, hashes.SHA256())


def test_an_authority_of_an_earlier_release_is_made_anew_so_that_clients_in_go_can_read_it(tmp_path: Path) -> None:
    first = made(tmp_path / "a").refresh(NAMES, NOW)
    path, served = tmp_path / "a" / AUTHORITY_NAME, tmp_path / "a" / SERVED_NAME
    held, leaf = _load(path), _load(served)
    assert held is not None
    assert leaf is not None
    before = as_before(held[1], held[0])
    assert is_of_node(
        Ed25519Verifier(), peer_id(NODE_KEY.public_key), MESH, before.public_bytes(serialization.Encoding.DER)
    )
    _write(path, held[0], before)
    _write(served, leaf[0], leaf[1], before)
    second = made(tmp_path / "a").refresh(NAMES, NOW)
    assert second.pin == first.pin
    sent = x509.load_pem_x509_certificates(served.read_bytes())
    assert sent[1].public_bytes(serialization.Encoding.DER) == second.authority
    assert sent[1].public_key() == before.public_key()
    for certificate in sent:
        arcs = [int(arc) for extension in certificate.extensions for arc in extension.oid.dotted_string.split(".")]
        assert max(arcs) < 1 << 31, "what Go's parser takes of a number"


def test_a_broad_authority_of_a_node_is_not_handed_on() -> None:
    held = make_authority(
        _key(), Names.of(("node-1",)), node=peer_id(NODE_KEY.public_key), mesh=MESH, signer=NODE_KEY, now=NOW
    )
    der = held.public_bytes(serialization.Encoding.DER)
    assert is_of_node(Ed25519Verifier(), peer_id(NODE_KEY.public_key), MESH, der)
    bound = held.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    builder = x509.CertificateBuilder().subject_name(held.subject).issuer_name(held.subject)
    key = _key()
    broad = (
        builder.public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(bound.value, critical=False)
        .sign(key, held.signature_hash_algorithm)  # type: ignore[arg-type]
    )
    assert not is_of_node(
        Ed25519Verifier(), peer_id(NODE_KEY.public_key), MESH, broad.public_bytes(serialization.Encoding.DER)
    )


def _key() -> object:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def test_an_earlier_certificate_is_served_as_logins_have_pinned_it(tmp_path: Path) -> None:
    made(tmp_path / "a")
    (tmp_path / "a" / SERVED_NAME).rename(tmp_path / "a" / EARLIER_NAME)
    served = ApiCertificate(tmp_path / "a", peer_id(NODE_KEY.public_key), MESH, NODE_KEY).refresh(NAMES, NOW)
    held = _load(tmp_path / "a" / EARLIER_NAME)
    assert held is not None
    assert served.pin == held[1].fingerprint(held[1].signature_hash_algorithm).hex()  # type: ignore[arg-type]
    assert served.authority == b""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    new_fleet = Fleet(tmp_path_factory.mktemp("api"))
    try:
        yield new_fleet
    finally:
        new_fleet.close()


def curl(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(["curl", "-sS", "--max-time", "10", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_plain_curl_reads_with_a_ca_file_and_one_header(fleet: Fleet, tmp_path: Path) -> None:
    machine = fleet.found("one", "--api", "127.0.0.1:0")
    ca = machine.run("context", "ca")
    assert ca.code == 0, ca.stderr
    file = tmp_path / "ca.pem"
    file.write_text(ca.stdout)
    (authority,) = machine.ok("context", "ca")["authorities"]
    url = f"https://{authority['api']}"
    token = machine.ok("token", "create", "reader", "--bearer", "--role", "viewer")["token"]
    header = f"Authorization: Bearer {token}"
    code, said = curl("--cacert", str(file), "-H", header, f"{url}/v1/mesh")
    assert (code, '"mesh":' in said) == (0, True), said
    assert curl("--cacert", str(file), f"{url.replace('127.0.0.1', 'localhost')}/healthz")[0] == 0
    assert curl("--cacert", str(file), "--pinnedpubkey", authority["pinnedpubkey"], f"{url}/healthz")[0] == 0
    other = f"sha256//{base64.b64encode(bytes(32)).decode()}"
    assert curl("--cacert", str(file), "--pinnedpubkey", other, f"{url}/healthz")[0] == 90
    assert curl(f"{url}/healthz")[0] == 60, "the certificate was believed without its authority"
    assert machine.run("token", "revoke", "reader").code == 0
    code, said = curl("--cacert", str(file), "-H", header, f"{url}/v1/mesh")
    assert "grant.revoked" in said
