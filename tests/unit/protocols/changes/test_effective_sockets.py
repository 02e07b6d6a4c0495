"""WebSockets in a configuration: shown as a capability, bounded, and without a trace in one that has none."""

from __future__ import annotations

import msgspec
import pytest

from protocols.changes.differences import _app_facts
from protocols.changes.effective import Effective, EffectiveApp, decode_effective
from protocols.envelope import DecodeError, encode

PLAIN = EffectiveApp("web", b"c" * 32, "http", 1000, 1 << 20, "fresh")


def effective(app: EffectiveApp) -> bytes:
    return encode(Effective("site", "production", (app,)))


def test_a_configuration_without_sockets_has_the_bytes_it_had_before_there_were_any() -> None:
    """A mesh of this release and the one before must name it by one digest."""
    assert b"websocket" not in effective(PLAIN)
    assert encode(decode_effective(effective(PLAIN))) == effective(PLAIN)
    assert decode_effective(effective(PLAIN)).apps[0].socket == ("", ())


def test_sockets_and_the_pages_that_may_open_one_are_capabilities() -> None:
    app = msgspec.structs.replace(PLAIN, websocket="/ws", websocket_origins=("https://a.test",))
    assert decode_effective(effective(app)).apps[0].socket == ("/ws", ("https://a.test",))
    shown = {subject for section, _, subject in _app_facts(app, (), {}) if section == "capabilities"}
    assert shown == {"takes WebSockets at /ws", "takes WebSockets from pages of https://a.test"}
    assert not [fact for fact in _app_facts(PLAIN, (), {}) if fact[0] == "capabilities"]


@pytest.mark.parametrize(
    ("path", "origins"),
    [("ws", ()), ("/" + "x" * 200, ()), ("/ws", ("https://a.test",) * 17), (msgspec.UNSET, ("https://a.test",))],
    ids=["relative", "long", "many", "origins-alone"],
)
def test_what_is_malformed_is_refused(path: str, origins: tuple[str, ...]) -> None:
    with pytest.raises(DecodeError, match="WebSocket"):
        decode_effective(effective(msgspec.structs.replace(PLAIN, websocket=path, websocket_origins=origins)))
