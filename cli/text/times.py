"""Moments as people read them: always UTC and marked so, as in the logs, so that what two machines say can be compared.

JSON has milliseconds instead. Not here: how long something took or is ago (units.py, views/lane_status.py).
"""

from __future__ import annotations

from datetime import UTC, datetime


def moment(wall_ms: float) -> str:
    """Return a moment with its date: "2026-11-28 14:02:09Z"."""
    return _text(datetime.fromtimestamp(wall_ms / 1000, UTC))


def time_of_day(when: float | str) -> str:
    """Return the time alone, of wall milliseconds or of a log line's own ISO 8601 text: "14:02:09Z"; "" for no time."""
    if isinstance(when, str):
        try:
            answer = datetime.fromisoformat(when).astimezone(UTC)
        except ValueError:
            return ""
        return _text(answer)[11:]
    return moment(when)[11:]


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%SZ")
