"""Finds the project a command is about: freehold.toml here or in a folder above. Not: reading it (`parse.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cli.errors import UsageError
from cli.project.model import ProjectFile
from cli.project.parse import FILE_NAME, ProjectFileError, load


@dataclass(frozen=True, slots=True)
class Found:
    """A project, the folder it is in and the exact text of its file."""

    root: Path
    project: ProjectFile
    text: str


def find_project(start: Path) -> Found:
    """Return the project at `start` or in the nearest folder above it. Raises `UsageError`."""
    start = start.absolute()
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return open_project(folder)
    raise UsageError(
        f"there is no {FILE_NAME} in {start} or above it",
        next_step="freehold new NAME --template wsgi",
        kind="no-project",
    )


def project_at(start: Path) -> Found | None:
    """Return the project at `start` or above it, for commands that need not have one; None where there is none.

    A project file that cannot be read is none: a release must be put back while somebody edits.
    """
    try:
        return find_project(start)
    except UsageError:
        return None


def project_here() -> str:
    """Return the name of the project of this folder, as `project_at`; empty where there is none."""
    project = project_at(Path())
    return project.project.name if project is not None else ""


def open_project(root: Path) -> Found:
    """Read the project in `root`. Raises `UsageError`."""
    try:
        project, text = load(root / FILE_NAME)
    except ProjectFileError as error:
        step = f"correct {root / FILE_NAME}"
        raise UsageError(f"{FILE_NAME} is not usable:\n{error}", next_step=step, kind="project-file") from None
    except FileNotFoundError:
        step = f"put {FILE_NAME} back"
        raise UsageError(f"{root / FILE_NAME} is gone", next_step=step, kind="project-file") from None
    except OSError as error:
        step = f"make {root / FILE_NAME} readable"
        raise UsageError(f"{FILE_NAME} cannot be read: {error}", next_step=step, kind="project-file") from None
    return Found(root, project, text)
