"""Stands in for a part of CPython that the sandbox, without processes, is built without: imports succeed, use says why."""

flags: dict[str, int] = {}


class SemLock:
    """What locks between processes are made of."""

    SEM_VALUE_MAX = 1

    def __init__(self, *arguments) -> None:
        raise OSError("the sandbox has no processes, so nothing can be shared between them")


def sem_unlink(name) -> None:
    raise OSError("the sandbox has no processes, so nothing is shared between them")
