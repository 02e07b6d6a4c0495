"""What of a component's imports goes to Python: by interface, by function, and by whether the app may reach other hosts."""

from __future__ import annotations

import pytest

from runtime.native.lender import is_either, is_lent


@pytest.mark.parametrize(
    ("name", "item", "outward", "lent"),
    [
        ("wasi:keyvalue/store@0.2.0-draft2", "[method]bucket.get", False, True),
        ("wasi:blobstore/container@0.2.0-draft", "[method]container.info", False, True),
        ("wasi:config/store@0.2.0-rc.1", "get", False, False),
        ("wasi:http/outgoing-handler@0.2.0", "handle", True, True),
        ("wasi:http/outgoing-handler@0.2.0", "handle", False, False),
        ("wasi:http/incoming-handler@0.2.0", "handle", True, False),
        ("wasi:http/types@0.2.0", "[method]outgoing-request.body", True, True),
        ("wasi:http/types@0.2.0", "[method]outgoing-response.body", True, False),
    ],
)
def test_python_alone_serves_what_the_engine_lacks(name: str, item: str, outward: bool, lent: bool) -> None:
    assert is_lent(name, item, outward=outward) is lent


@pytest.mark.parametrize(
    ("name", "item", "either"),
    [
        ("wasi:io/streams@0.2.9", "[method]input-stream.read", True),
        ("wasi:io/streams@0.2.9", "[method]output-stream.splice", False),
        ("wasi:http/types@0.2.0", "[static]outgoing-body.finish", True),
        ("wasi:http/types@0.2.0", "[method]fields.get", False),
        ("wasi:io/poll@0.2.0", "poll", False),
    ],
)
def test_some_functions_have_objects_of_both(name: str, item: str, either: bool) -> None:
    assert is_either(name, item) is either
