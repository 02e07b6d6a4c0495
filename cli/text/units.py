"""Durations, labels and addresses as they are typed on the command line: "24h", "zone=eu", "0.0.0.0:4100"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from cli.errors import UsageError
from cli.project.kinds import MILLISECONDS
from protocols.trust.certificates import Labels, valid_labels

NOWHERE = "none"
"""What is said instead of an address for a node that nobody can dial."""

_UNITS_MS = {unit: size_ms for unit, size_ms in MILLISECONDS.items() if unit != "ms"}


def duration_ms(text: str) -> int:
    """Return "90s", "15m", "24h" or "7d" in milliseconds. Raises UsageError."""
    answer = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if answer is None or not int(answer[1]):
        raise UsageError(f"{text!r} is no duration", next_step="write for example 90s, 15m, 24h or 7d", kind="usage")
    return int(answer[1]) * _UNITS_MS[answer[2]]


def in_words(span_ms: int, *, at_least: bool = False) -> str:
    """Return a span to the nearest of its two largest units, for people: 7 days less a moment are "7d".

    With `at_least` it is never told longer than it is, for a limit that somebody is to stay under.
    """
    left_ms = max(0, span_ms)
    sizes = sorted(_UNITS_MS.values())
    step_ms = max((below for below, size in pairwise(sizes) if left_ms >= size), default=sizes[0])
    left_ms = (left_ms + (0 if at_least else step_ms // 2)) // step_ms * step_ms
    words: list[str] = []
    for unit, size_ms in reversed(_UNITS_MS.items()):
        if left_ms >= size_ms:
            words.append(f"{left_ms // size_ms}{unit}")
            left_ms %= size_ms
    return " ".join(words) or "0s"


def size(count_bytes: int) -> str:
    """Return a number of bytes in words, such as "12.0 MiB"."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    scaled = count_bytes / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if scaled < 1024:
            return f"{scaled:.1f} {unit}"
        scaled /= 1024
    return f"{scaled:.1f} TiB"


def counted(number: int, noun: str) -> str:
    """Return "1 request", "2 requests", for people."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def labels_of(texts: Sequence[str]) -> Labels:
    """Return "key=value" texts as labels, in order. Raises UsageError."""
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"{text!r} is no label", next_step="write it as key=value, as in zone=eu", kind="usage")
        pairs.append((key, value))
    labels = tuple(sorted(pairs))
    if not valid_labels(labels):
        raise UsageError(
            "labels are too many, too long or repeated",
            next_step="name each key once, at most 63 letters",
            kind="usage",
        )
    return labels


def checked_addresses(texts: Sequence[str]) -> tuple[str, ...]:
    """Return "host:port" texts as they are. Raises UsageError for anything else."""
    for text in texts:
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65_535:
            raise UsageError(
                f"{text!r} is no address", next_step="write it as host:port, as in 0.0.0.0:4100", kind="usage"
            )
    return tuple(texts)


def checked_listen(texts: Sequence[str]) -> tuple[str, ...] | None:
    """Return "host:port" texts, nothing for the word none, None if nothing was said. Raises UsageError."""
    if tuple(texts) == (NOWHERE,):
        return ()
    return checked_addresses(texts) or None


def listen_words(listen: tuple[str, ...] | None, default: str) -> str:
    """Say where others reach a node, for people."""
    if listen == ():
        return "nowhere: it dials the others"
    return ", ".join(listen or (default,))


def checked_api(text: str | None) -> str | None:
    """Return the API's "host:port" as it is, None if nothing was said. Raises UsageError for anything else."""
    return checked_addresses((text,))[0] if text is not None else None


def checked_loopback(text: str | None) -> str | None:
    """Return "host:port" of this machine alone as it is, None if nothing was said. Raises UsageError for anything else."""
    if text is None:
        return None
    host = checked_addresses((text,))[0].rpartition(":")[0]
    if host not in {"127.0.0.1", "localhost", "[::1]"}:
        raise UsageError(
            f"{host} is not this machine: metrics go there without a credential",
            next_step="127.0.0.1:4190; from elsewhere scrape the API: freehold token create scraper --bearer --role viewer",
            kind="usage",
        )
    return text
