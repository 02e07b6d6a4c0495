"""Real daemons on small or failing disks, and what their doctor and voters say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.mesh.durable import Site
from tests.support.mesh.nodes import Machine, until

DISK_BYTES = 96 << 20


@dataclass(frozen=True)
class Disk:
    """A folder; `problem` says why it is no file system of its own."""

    folder: Path
    problem: str


def doctor(machine: Machine) -> tuple[int, list[str]]:
    answer = machine.run("doctor", "--data", str(machine.data), "--json")
    return answer.code, [entry["what"] for entry in answer.json["findings"] if entry["fault"]]


def needs(site: Site, voter: Machine, other: Machine, name: str) -> None:
    """Show that a voter's vote counts: with another one gone nothing can be decided without it."""
    other.kill()
    try:
        site.ask(site.machines[0], lambda client: site.write_project(client, name))
    finally:
        other.start()
    until(lambda: site.missing(other) == site.missing(voter) == [], 60, "everybody to have everything")
