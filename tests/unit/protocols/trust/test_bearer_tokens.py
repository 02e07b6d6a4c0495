"""The form of a bearer's token. Not here: what one may do (tests/e2e/api/test_bearer.py)."""

from __future__ import annotations

import string

import pytest

from protocols.trust.bearer import SECRET_BYTES, make_token, signer_of

MESH = b"m" * 32
CHARS = string.ascii_letters + string.digits + "-_"


@pytest.mark.parametrize("last", range(0, 256, 4))
def test_a_token_has_one_spelling(last: int) -> None:
    secret = b"s" * (SECRET_BYTES - 1) + bytes([last])
    token = make_token(MESH, secret)
    assert signer_of(token, MESH) is not None
    good = [char for char in CHARS if signer_of(token[:-1] + char, MESH) is not None]
    assert len(good) == 16, "two bits of the last character mean nothing: each other spelling is of another secret"
    keys = {key.public_key for char in good if (key := signer_of(token[:-1] + char, MESH)) is not None}
    assert len(keys) == 16


@pytest.mark.parametrize("prefix", ["", "fht2.", "FHT1.", "fht1.0", " fht1."])
def test_what_has_another_form_is_no_token(prefix: str) -> None:
    token = make_token(MESH, b"s" * SECRET_BYTES)
    assert signer_of(prefix + token.removeprefix("fht1."), MESH) is None
    assert signer_of(token, b"n" * 32) is None
    assert signer_of(token + "A", MESH) is None
