"""A node opens a version of a secret only for the place that the author named, and no bad box hides a good one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from node.keys import SystemEntropy
from node.serving import secrets
from node.serving.secrets import SealedAwayError, SecretError, Secrets
from protocols.changes.change import SecretVersion
from protocols.changes.effective import Effective, EffectiveApp
from protocols.changes.secrets import Box, Resealed, SealedSecret, node_secret_key, reseal, seal, secret_id, sign_paper
from protocols.envelope import digest, encode
from protocols.keys import Ed25519Signer, Ed25519Verifier, peer_id
from protocols.liveness import Belief
from protocols.machine import Now, PeerId
from protocols.records.gossip import Publish, RecordsForgotten, RecordsMerged
from protocols.records.key_table import make_key
from protocols.records.record import Entry, Record, read_record, sign_record
from protocols.state.model import ConfirmedNode, Environment

MESH = b"m" * 32
SEEDS = {name: bytes([number]) * 32 for number, name in enumerate(("me", "two", "new", "liar"), 1)}
SIGNERS = {name: Ed25519Signer(seed) for name, seed in SEEDS.items()}
NODES = {name: peer_id(signer.public_key) for name, signer in SIGNERS.items()}
AUTHOR = Ed25519Signer(b"a" * 32)
BLANK = SealedSecret("shop", "prod", "TOKEN", 1, 1_000, b"", ())
APP = EffectiveApp("web", b"c" * 32, "http", 1_000, 1 << 20, "fresh", secrets=("TOKEN",))
EFFECTIVE = Effective("shop", "prod", (APP,))


class World:
    def __init__(self, name: str = "me") -> None:
        self.published: list[Publish] = []
        nodes = tuple(ConfirmedNode(node, (), ("worker",), 1) for node in NODES.values())
        core = SimpleNamespace(
            node=NODES[name],
            trust=SimpleNamespace(mesh=MESH, verifier=Ed25519Verifier(), key_revoked=lambda _key: False),
            records=SimpleNamespace(store=SimpleNamespace(entries={})),
            liveness=SimpleNamespace(belief=lambda _node: Belief.ALIVE),
            state=SimpleNamespace(lanes=(), nodes=nodes, environments=(Environment("prod", (), None, False),)),
            dossiers=SimpleNamespace(),
        )  # fmt: skip
        self.secrets = Secrets(
            cast(Any, core), node_secret_key(SEEDS[name]), SystemEntropy(), self._post, lambda: Now(20_000, 20_000)
        )
        self.secrets.problem = lambda _held: ""  # type: ignore[method-assign]

    def _post(self, event: Any) -> bool:
        self.published.append(event)
        return True

    def hold(self, secret: SealedSecret) -> bytes:
        signed = sign_paper(AUTHOR, MESH, secret)
        body = encode(signed)
        key = make_key("secret", secret.project, secret.environment, secret.name, digest(body).hex())
        self.secrets.hear(RecordsMerged((entry(key, body, "me"),)))
        assert secret_id(signed) == digest(body)
        return bytes(digest(body))

    def box(self, held: bytes, box: Box, by: str) -> None:
        body = encode(Resealed(held, box))
        key = make_key("resealed", held.hex(), box.node, digest(body).hex())
        self.secrets.hear(RecordsMerged((entry(key, body, by),)))


def entry(key: str, body: bytes, by: str, *, tombstone: bool = False) -> Entry:
    read = read_record(sign_record(SIGNERS[by], MESH, Record(key, "immutable", 1, 1, body=body, tombstone=tombstone)))
    assert isinstance(read, Entry)
    return read


def sealed(value: bytes = b"hunter2", nodes: tuple[str, ...] = ("me", "two"), **place: Any) -> SealedSecret:
    return seal(MESH, replace(BLANK, **place), value, [NODES[name] for name in nodes], SystemEntropy())


async def test_a_version_of_this_very_place_opens() -> None:
    world = World()
    version = SecretVersion("TOKEN", 1, world.hold(sealed()))
    assert await world.secrets.values(EFFECTIVE, APP, (version,)) == {"TOKEN": "hunter2"}


@pytest.mark.parametrize("place", [{"environment": "staging"}, {"project": "blog"}, {"name": "OTHER"}])
async def test_a_change_that_names_a_version_of_a_neighbouring_place_gets_nothing(place: dict[str, str]) -> None:
    world = World()
    version = SecretVersion("TOKEN", 1, world.hold(sealed(**place)))
    with pytest.raises(SecretError, match="belongs elsewhere"):
        await world.secrets.values(EFFECTIVE, APP, (version,))


async def test_a_secret_that_the_change_does_not_name_is_not_looked_for() -> None:
    world = World()
    version = SecretVersion("OTHER", 1, world.hold(sealed()))
    with pytest.raises(SecretError, match="names no version of secret TOKEN"):
        await world.secrets.values(EFFECTIVE, APP, (version,))


def junk(node: PeerId) -> Box:
    return Box(node, b"e" * 32, b"w" * 48)


@pytest.mark.parametrize("order", [("liar", "two"), ("two", "liar")])
async def test_a_box_that_opens_nothing_hides_no_good_one(
    order: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "WAIT_S", 0.0)
    world, secret = World("new"), sealed()
    held = world.hold(secret)
    theirs = next(box for box in secret.boxes if box.node == NODES["two"])
    good = reseal(MESH, secret, theirs, node_secret_key(SEEDS["two"]), NODES["new"], SystemEntropy())
    version = SecretVersion("TOKEN", 1, held)
    with pytest.raises(SealedAwayError):
        await world.secrets.values(EFFECTIVE, APP, (version,))
    for by in order:
        world.box(held, good if by == "two" else junk(NODES["new"]), by)
    assert await world.secrets.values(EFFECTIVE, APP, (version,)) == {"TOKEN": "hunter2"}


async def test_a_box_for_a_node_that_the_author_sealed_to_hides_nothing_either() -> None:
    world = World()
    held = world.hold(sealed())
    world.box(held, junk(NODES["me"]), "liar")
    version = SecretVersion("TOKEN", 1, held)
    assert await world.secrets.values(EFFECTIVE, APP, (version,)) == {"TOKEN": "hunter2"}


def test_a_newcomer_that_a_liar_sealed_junk_to_is_sealed_to_all_the_same() -> None:
    world = World()
    held = world.hold(sealed())
    for name in ("new", "liar"):
        world.box(held, junk(NODES[name]), "liar")
    noted: list[Any] = []
    world.secrets._serve_newcomers(noted.append)
    sealed_to = {entry.key.split("/")[3] for entry in world.published}
    assert sealed_to == {NODES["new"], NODES["liar"]}, "the author's own choice seals, whatever anybody claims"
    for publish in world.published:
        world.secrets.hear(RecordsMerged((entry(publish.key, publish.body, "me"),)))
    world.published.clear()
    world.secrets._serve_newcomers(noted.append)
    assert world.published == [], "once is enough"


def test_whoever_cannot_open_a_version_seals_it_to_nobody() -> None:
    world = World("new")
    held = world.hold(sealed())
    world.box(held, junk(NODES["new"]), "liar")
    world.secrets._serve_newcomers(lambda _paper: None)
    assert world.published == []


def test_a_version_that_is_gone_from_the_records_is_held_no_more() -> None:
    world, secret = World(), sealed()
    held = world.hold(secret)
    body = encode(sign_paper(AUTHOR, MESH, secret))
    key = make_key("secret", "shop", "prod", "TOKEN", held.hex())
    assert [version.id for version in world.secrets.versions()] == [held]
    world.secrets.hear(RecordsForgotten((entry(key, body, "me"),)))
    assert world.secrets.versions() == []
