"""Data as files, by the commands: exported while it is served, imported whole, frozen and thawed; and who may ask for it."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest

from cli.access.client import NodeClient
from cli.errors import CommandError
from protocols.api_data import ImportBody, ListedFile, MandateBody
from protocols.changes.mandates import MANDATE_LIFETIME_MS, Act, DataMandate, sign_mandate
from protocols.envelope import digest, encode
from protocols.keys import Ed25519Signer
from protocols.machine import PeerId
from tests.support.mesh.durable import ENVIRONMENT, Site, call, ports
from tests.support.mesh.nodes import Fleet, Machine, until

HOST = "shop.test"
PATH = "/kv/increment?store=default&key=n"
WHERE = ("shop", "--env", ENVIRONMENT)
BASE = f"/v1/data/shop/{ENVIRONMENT}"


@pytest.fixture(scope="module")
def site(component: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    fleet = Fleet(tmp_path_factory.mktemp("exports"))
    new_site = Site(fleet, component)
    try:
        first = fleet.found("one", "--policy", "solo", *ports())
        new_site.ask(first, lambda client: new_site.write_environment(client, ENVIRONMENT))
        new_site.ask(first, lambda client: new_site.write_project(client, "shop"))
        new_site.deploy(
            first, "shop", "services", "first", more='keyvalue = ["default"]', smoke="/env", stages='["100%"]'
        )
        until(lambda: call(first.ingress, HOST, "/env")[0] == 200, 60, "the app to be served")
        yield new_site
    finally:
        fleet.close()


@pytest.fixture
def node(site: Site) -> Machine:
    return site.fleet.machines[0]


def visit(node: Machine) -> int:
    status, _, body = call(node.ingress, HOST, PATH, 25.0)
    assert status == 200, (status, body)
    return int(body)


@pytest.mark.timeout(240)
def test_data_goes_out_and_comes_back_and_nothing_is_overwritten_unsaid(
    site: Site, node: Machine, tmp_path: Path
) -> None:
    counted = visit(node)
    out = tmp_path / "shop.export"
    done = node.typed_ok("data", "export", *WHERE, "--to", str(out), "-y")
    assert (done["folder"], done["files"]) == (str(out), 1)
    (line,) = [json.loads(line) for line in (out / "keyvalue.ndjson").read_text().splitlines()]
    assert line == {"store": "default", "key": "n", "value": str(counted)}
    assert not list((node.data / "exports").iterdir()), "the node keeps no copy"
    again = node.typed("data", "export", *WHERE, "--to", str(out), "-y", "--json")
    assert json.loads(again.stdout)["error"]["kind"] == "exists"

    later = visit(node)
    assert later == counted + 1
    refused = node.typed("data", "import", *WHERE, str(out), "-y", "--json")
    assert (refused.code, json.loads(refused.stdout)["error"]["kind"]) == (2, "exists"), refused
    assert visit(node) == counted + 2, "a refused import touched the data"
    node.typed_ok("data", "import", *WHERE, str(out), "--replace", "-y")
    assert visit(node) == counted + 1, "the data is what the export holds"
    paths = sorted((node.data / "kept" / "shop" / ENVIRONMENT).iterdir())
    assert [path.name for path in paths[-1].iterdir() if path.suffix == ".db"] == ["keyvalue.db"]
    assert node.ok("data", "list")["data"][0]["kept_ms"], "the old copy is not listed"


@pytest.mark.timeout(240)
def test_frozen_data_is_read_and_not_written_also_after_a_restart(node: Machine, tmp_path: Path) -> None:
    counted = visit(node)
    node.typed_ok("data", "freeze", *WHERE, "-y")
    assert call(node.ingress, HOST, PATH, 25.0)[0] == 503
    assert call(node.ingress, HOST, "/kv/get?store=default&key=n", 25.0)[2] == str(counted)
    assert node.ok("data", "list")["data"][0]["frozen"] is True
    node.kill()
    node.kill_workers()
    node.start()
    until(lambda: call(node.ingress, HOST, "/env")[0] == 200, 60, "the app to be served again")
    assert call(node.ingress, HOST, PATH, 25.0)[0] == 503, "a restart thawed it"
    out = tmp_path / "frozen.export"
    node.typed_ok("data", "export", *WHERE, "--to", str(out), "-y")
    node.typed_ok("data", "import", *WHERE, str(out), "--replace", "-y")
    assert call(node.ingress, HOST, PATH, 25.0)[0] == 503, "an import thawed it"
    node.typed_ok("data", "thaw", *WHERE, "-y")
    assert visit(node) == counted + 1


@pytest.mark.timeout(240)
def test_a_node_backs_up_what_it_holds_and_takes_it_back(node: Machine, tmp_path: Path) -> None:
    counted = visit(node)
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "key.txt").write_text(str(identity))
    (tmp_path / "to").mkdir()
    with (node.data / "node.toml").open("a") as file:
        file.write(f'[backup]\nto = "{tmp_path / "to"}"\nkey = "{identity.to_public()}"\n')
    assert node.stop() == 0
    node.start()
    until(lambda: call(node.ingress, HOST, "/env")[0] == 200, 60, "the app to be served again")
    until(lambda: bool(list((tmp_path / "to").glob("*.age"))), 40, "the backup")
    until(lambda: node.ok("data", "list")["data"][0]["backup_ms"] > 0, 20, "the node to say so")
    (path,) = (tmp_path / "to").iterdir()
    assert visit(node) == counted + 1
    node.typed_ok("data", "import", *WHERE, str(path), "--identity", str(tmp_path / "key.txt"), "--replace", "-y")
    assert visit(node) == counted + 1


def mandate(site: Site, act: Act, listing: bytes = b"", **other: Any) -> DataMandate:
    node = site.fleet.machines[0].status()["node"]
    document = {
        "act": act, "project": "shop", "environment": ENVIRONMENT, "node": PeerId(node),
        "nonce": secrets.token_bytes(16), "at_ms": time.time_ns() // 1_000_000, "listing": listing, "replace": True,
    } | other  # fmt: skip
    return DataMandate(**document)


def refused_with(site: Site, path: str, body: Callable[[bytes], Any]) -> str:
    async def conversation(client: NodeClient) -> str:
        try:
            await client.post_nothing(path, body(await client.mesh()))
        except CommandError as error:
            return error.kind
        return ""

    return site.ask(site.fleet.machines[0], conversation)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("other", "rule"),
    [
        ({"project": "other"}, "data.mandate"),
        ({"environment": "staging"}, "data.mandate"),
        ({"act": "thaw"}, "data.mandate"),
        ({"node": "12D3KooWElsewhere"}, "data.mandate"),
        ({"nonce": b"short"}, "data.malformed"),
        ({"at_ms": 1}, "data.expired"),
        ({"at_ms": time.time_ns() // 1_000_000 + 10 * MANDATE_LIFETIME_MS}, "data.expired"),
        ({}, ""),
    ],
    ids=["project", "environment", "act", "node", "nonce", "old", "of-the-future", "right"],
)
def test_a_mandate_is_for_one_act_on_one_node_now(site: Site, other: dict[str, Any], rule: str) -> None:
    asked = mandate(site, **({"act": "freeze"} | other))
    refused = refused_with(
        site, f"{BASE}/freeze", lambda mesh: MandateBody(encode(sign_mandate(site.admin, mesh, asked)))
    )
    assert refused == rule
    if not rule:
        again = refused_with(
            site, f"{BASE}/freeze", lambda mesh: MandateBody(encode(sign_mandate(site.admin, mesh, asked)))
        )
        assert again == "data.mandate", "a mandate was good twice"
        thaw = mandate(site, "thaw")
        assert (
            refused_with(site, f"{BASE}/thaw", lambda mesh: MandateBody(encode(sign_mandate(site.admin, mesh, thaw))))
            == ""
        )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("act", ["export", "import", "freeze", "thaw"])
def test_only_an_admin_mandates(site: Site, act: Act) -> None:
    stranger = Ed25519Signer(secrets.token_bytes(32))
    files = (ListedFile("keyvalue.db", 1, "b" * 64),)

    def body(mesh: bytes) -> Any:
        asked = mandate(site, act, bytes(digest(encode(files))) if act == "import" else b"")
        signed = encode(sign_mandate(stranger, mesh, asked))  # type: ignore[arg-type]
        return ImportBody(signed, files) if act == "import" else MandateBody(signed)

    path = f"{BASE}/{act}" if act in {"freeze", "thaw"} else f"{BASE}/{act}s"
    assert refused_with(site, path, body) == "command.not-allowed"
    assert call(site.fleet.machines[0].ingress, HOST, PATH, 25.0)[0] == 200


@pytest.mark.timeout(120)
def test_an_import_takes_what_was_listed_and_nothing_else(site: Site, node: Machine) -> None:
    before = visit(node)
    files = (ListedFile("keyvalue.db", 3, digest(b"abc").hex()),)
    other = (ListedFile("keyvalue.db", 3, digest(b"abd").hex()),)

    async def conversation(client: NodeClient) -> list[str]:
        mesh = await client.mesh()

        def body(mandated: tuple[ListedFile, ...], sent: tuple[ListedFile, ...], **more: Any) -> ImportBody:
            asked = mandate(site, "import", bytes(digest(encode(mandated))), **more)
            return ImportBody(encode(sign_mandate(site.admin, mesh, asked)), sent)

        kinds = []

        async def tried(do: Any) -> Any:
            try:
                return await do
            except CommandError as error:
                kinds.append(error.kind)

        await tried(client.post(f"{BASE}/imports", body(files, other)))
        await tried(client.post(f"{BASE}/imports", body(files, files, replace=False)))
        name = (await client.post(f"{BASE}/imports", body(files, files)))["name"]
        await tried(client.post_nothing(f"{BASE}/imports/{name}/install"))
        path = Path(tempfile.mkdtemp()) / "f"
        for sent, said in ((b"abcd", files[0].sha256), (b"ab", files[0].sha256), (b"abd", other[0].sha256)):
            path.write_bytes(sent)
            await tried(client.put_file(f"{BASE}/imports/{name}/files/{said}", path, said))
        path.write_bytes(b"abc")
        await client.put_file(f"{BASE}/imports/{name}/files/{files[0].sha256}", path, files[0].sha256)
        await tried(client.post_nothing(f"{BASE}/imports/{name}/install"))  # these three bytes are no database
        await tried(client.post_nothing(f"{BASE}/imports/{name}/install"))
        shutil.rmtree(path.parent)
        return kinds

    assert site.ask(node, conversation) == [
        "data.mandate", "data.exists", "data.mandate", "data.malformed", "data.malformed", "data.mandate",
        "data.malformed", "data.mandate",
    ]  # fmt: skip
    assert visit(node) == before + 1


@pytest.mark.timeout(120)
def test_a_copy_is_fetched_by_whoever_asked_for_it_alone(site: Site, node: Machine) -> None:
    async def conversation(client: NodeClient) -> None:
        mesh = await client.mesh()
        entry = await client.post(
            f"{BASE}/exports", MandateBody(encode(sign_mandate(site.admin, mesh, mandate(site, "export"))))
        )
        path = f"{BASE}/exports/{entry['export']}"
        assert len(await client.get_bytes(f"{path}/0")) == entry["files"][0]["size_bytes"]
        for wrong in (f"{path}/1", f"{BASE}/exports/{'0' * 32}/0", f"/v1/data/shop/other/exports/{entry['export']}/0"):
            with pytest.raises(CommandError) as refused:
                await client.get_bytes(wrong)
            assert refused.value.kind == "export.unknown"
        await client.delete(path)
        with pytest.raises(CommandError):
            await client.get_bytes(f"{path}/0")

    site.ask(node, conversation)
    assert not list((node.data / "exports").iterdir())
