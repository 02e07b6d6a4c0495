"""What a reviewer signs is what a node cannot make up: bytes by digest, nothing folded away, versions set by right."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from cli.access.secrets import versions_for
from cli.change import review
from cli.change.review import PLAIN_SET, _without_plain_set, change_at, effective_at, imports_of, release_at
from cli.errors import CommandError
from protocols.api_models import SecretView
from protocols.changes.change import CHANGE_DOMAIN, Change, Plan, Stage
from protocols.changes.differences import Difference
from protocols.changes.effective import Effective, EffectiveApp
from protocols.envelope import digest, encode, sign
from protocols.keys import Ed25519Signer

MESH = b"m" * 32
AUTHOR = Ed25519Signer(b"a" * 32)


class LyingNode:
    """Answers every question with the same bytes, or the same rows."""

    def __init__(self, data: bytes = b"", rows: tuple[Any, ...] = ()) -> None:
        self.data, self.rows, self.asked = data, rows, list[str]()

    async def get_bytes(self, path: str, **_query: Any) -> bytes:
        self.asked.append(path)
        return self.data

    async def read_all(self, _kind: Any, _path: str, **_query: Any) -> tuple[Any, ...]:
        return self.rows


def run(call: Any) -> Any:
    return asyncio.run(call)


def client(node: LyingNode) -> Any:
    return cast(Any, node)


def signed_change(request: str) -> Any:
    change = Change(
        project="shop", environment="prod", request=request, release=b"r" * 32, base=b"", configuration=b"c" * 32,
        policy=b"p" * 32, author=AUTHOR.public_key, created_ms=1, plan=Plan((Stage("100%"),)),
    )  # fmt: skip
    return sign(AUTHOR, CHANGE_DOMAIN, MESH, change)


def test_a_change_is_the_one_whose_id_was_asked_for_though_another_is_signed_as_well() -> None:
    asked, other = signed_change("what was asked for"), signed_change("something else")
    named = digest(asked.payload).hex()
    change, signed = run(change_at(client(LyingNode(encode(asked))), named))
    assert (change.request, signed) == ("what was asked for", asked)
    with pytest.raises(CommandError, match="another change") as told:
        run(change_at(client(LyingNode(encode(other))), named))
    assert told.value.kind == "bad-answer"


@pytest.mark.parametrize("read", [release_at, effective_at])
def test_a_manifest_and_a_configuration_are_the_bytes_of_their_digest(read: Any) -> None:
    good, near = b"the bytes", b"the byteS"
    with pytest.raises(CommandError, match="not what its name says"):
        run(read(client(LyingNode(near)), digest(good)))


def test_the_imports_of_a_component_are_read_from_the_bytes_of_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    named = digest(b"a component")
    assert run(imports_of(client(LyingNode(b"another component")), [named], {})) == {}, "unknown, not made up"


def rows_shown(*names: str) -> list[str]:
    rows = [Difference("capabilities", "web", f"imports {name}", None, "yes") for name in names]
    differences, _ = _without_plain_set(rows)
    return [difference.name.removeprefix("imports ") for difference in differences]


GRANTING = (
    "wasi:http/types", "wasi:http/outgoing-handler", "wasi:http/incoming-handler", "wasi:keyvalue/store",
    "wasi:keyvalue/atomics", "wasi:config/store", "wasi:logging/logging", "wasi:blobstore/container",
    "wasi:messaging/producer", "wasi:nn/graph", "freehold:platform/secrets", "evil:cli/run", "wasi:clock/x",
    "wasi:cli2/run",
)  # fmt: skip


def test_only_what_grants_nothing_is_folded_away() -> None:
    assert frozenset(
        {"wasi:cli", "wasi:clocks", "wasi:filesystem", "wasi:io", "wasi:random", "wasi:sockets"}
    ) == PLAIN_SET  # fmt: skip
    assert rows_shown(*GRANTING) == list(GRANTING)
    assert rows_shown("wasi:cli/run", "wasi:io/streams", "wasi:random/random") == []


def test_what_is_reached_and_opened_is_never_folded() -> None:
    rows = [
        Difference("capabilities", "web", name, None, "yes") for name in ("reaches wasi:cli", "opens store wasi:io")
    ]
    assert _without_plain_set(rows) == (rows, [])


def test_folded_imports_are_told_of_by_app_and_sign() -> None:
    rows = [
        Difference("capabilities", "web", "imports wasi:cli/run", None, "yes"),
        Difference("capabilities", "api", "imports wasi:io/poll", "yes", None),
    ]
    _, folded = _without_plain_set(rows)
    assert [line.strip()[:6] for line in folded] == ["+ web:", "- api:"]


def secret_row(version: int, problem: str = "", name: str = "TOKEN") -> SecretView:
    return SecretView(
        id=f"{version:02x}" * 32, project="shop", environment="prod", name=name, version=version, author="k",
        author_name="ann", created_ms=1, sealed_to=(), lacking=(), exposed=(), in_use=False, problem=problem,
    )  # fmt: skip


EFFECTIVE = Effective(
    "shop", "prod", (EffectiveApp("web", b"c" * 32, "http", 1_000, 1 << 20, "fresh", secrets=("TOKEN",)),)
)


def test_a_deploy_takes_the_newest_version_that_was_set_by_right() -> None:
    rows = (secret_row(3, "mallory may not set secrets there"), secret_row(2), secret_row(1))
    (version,) = run(versions_for(client(LyingNode(rows=rows)), EFFECTIVE))
    assert (version.name, version.version, version.digest) == ("TOKEN", 2, b"\x02" * 32)


def test_a_deploy_without_a_version_that_was_set_by_right_is_refused() -> None:
    rows = (secret_row(1, "grant.expired: her grant ended"), secret_row(2, name="OTHER"))
    with pytest.raises(CommandError, match="no value is set in prod for secret TOKEN") as told:
        run(versions_for(client(LyingNode(rows=rows)), EFFECTIVE))
    assert told.value.next_step == "freehold secret set TOKEN --env prod"


def test_the_digest_check_is_the_reviews_own() -> None:
    assert review.digest is digest
