"""Options that commands of several rooms share, each stated once. Not here: what help makes of them (frame.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from cli.access import contexts
from cli.frame import Option

Decorated = TypeVar("Decorated", bound=Callable[..., object])


def environment_option(help_text: str) -> Callable[[Decorated], Decorated]:
    """`--env`, by default where commands act unless they are told; `help_text` says what the environment is for here."""
    return click.option(
        "--env",
        "environment",
        default=contexts.default_environment,
        show_default=contexts.ENVIRONMENT_DEFAULT,
        cls=Option,
        help=help_text,
    )
