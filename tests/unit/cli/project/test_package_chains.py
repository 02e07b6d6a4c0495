"""A refused package is named as the user can find it, and what only a server needs is left out."""

from __future__ import annotations

from typing import Any

import pytest

from cli.errors import BuildError
from cli.project import python_packages


def item(name: str, *needs: str, requested: bool = False) -> dict[str, Any]:
    """One package as pip's report holds it."""
    return {
        "metadata": {"name": name, "version": "1.0", "requires_dist": list(needs)}, "requested": requested,
        "download_info": {"url": f"https://index.example/{name}-1.0-cp314-cp314-manylinux2014_x86_64.whl"},
    }  # fmt: skip


def test_a_refusal_names_the_way_from_the_requirements() -> None:
    chosen = python_packages.resolved(
        [item("Web_App", "middle>=1; extra == 'x'", requested=True), item("middle", "numpy (>2)"), item("numpy")]
    )
    assert [package.needed_by for package in chosen] == [(), ("web-app",), ("web-app", "middle")]
    with pytest.raises(BuildError, match=r"numpy \(needed by middle, by web-app\): it is native code"):
        python_packages._refuse_unusable("web", chosen)


def test_what_was_asked_for_is_named_alone_and_circles_end() -> None:
    chosen = python_packages.resolved([item("numpy", "a", requested=True), item("a", "numpy"), item("stray")])
    assert [package.needed_by for package in chosen] == [(), ("numpy",), ()]
    with pytest.raises(BuildError, match=r"sandbox: numpy: it is native code"):
        python_packages._refuse_unusable("web", chosen)


def test_native_helpers_of_servers_are_left_out() -> None:
    chosen = python_packages.resolved(
        [item("uvicorn", "uvloop", "httptools; extra == 'standard'", requested=True), item("uvloop"), item("httptools")]
    )
    assert [package.name for package in chosen] == ["uvicorn"]
