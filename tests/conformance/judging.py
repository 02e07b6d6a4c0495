"""How a capability of a provider is judged: it is there, or, where the page says that it lacks, it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def judge_capability(capability: Callable[[Any], None], make: Any, opened: Sequence[Any], *, lacks: bool) -> None:
    """Hold what `make` makes to a capability, and close whatever it opened."""
    try:
        if lacks:
            with pytest.raises(AssertionError):
                capability(make)
        else:
            capability(make)
    finally:
        for provider in opened:
            provider.close()
