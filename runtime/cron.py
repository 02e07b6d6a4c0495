"""When a schedule is due: five cron fields in UTC, read as Debian's cron reads them (crontab(5), through cronsim).

Moments are whole minutes of the Unix clock. Not here: who runs what is due.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError


def schedule_problem(schedule: str) -> str:
    """Return why a schedule can never be run, "" if it can."""
    try:
        answer = next_due(schedule, 0)
    except CronSimError as error:
        return str(error)
    return "" if answer is not None else "such a moment never comes"


def comes_due(schedule: str, seen: int, now: int) -> bool:
    """Whether a schedule is due in the minutes after `seen` up to `now` (both minutes of the Unix clock)."""
    answer = next_due(schedule, seen)
    return answer is not None and answer <= moment(now)


def due_minutes(schedule: str, after: int, upto: int, limit: int) -> list[int]:
    """Return the minutes behind `after` up to `upto` in which a schedule is due, of more than `limit` the first."""
    numbers: list[int] = []
    if after < upto:
        for entry in CronSim(schedule, moment(after)):
            minute = int(entry.timestamp()) // 60
            if minute > upto or len(numbers) == limit:
                break
            numbers.append(minute)
    return numbers


def next_due(schedule: str, after: int) -> datetime | None:
    """Return the first moment after a minute at which a schedule is due, or None if there is none in fifty years."""
    return next(CronSim(schedule, moment(after)), None)


def moment(minute: int) -> datetime:
    """Return a minute of the Unix clock as a time in UTC."""
    return datetime.fromtimestamp(minute * 60, UTC)
