"""What one MCP server acts as: a context, the agent's own key, its grant, and the project it may touch.

It may be that none of this can be had now, because the node is down or the project file is broken: a server starts all the
same, tells each call why, and looks again at the next one.

The project is fixed when the server starts, by the grant, the folder or `--project`; no tool takes one as an argument,
so text that an agent reads cannot lead it to another. Every call to the node is signed with the agent's key, on the
Unix socket too, so the node judges the agent's grant and not the user who started it. Not here: the tools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cli.access.client import NodeClient
from cli.access.contexts import Context
from cli.access.principals import Principal, everyday_key, principal_of
from cli.errors import UsageError
from cli.project.find import Found, open_project
from protocols.keys import Ed25519Signer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AgentSession:
    """One agent in one project. `found` is None where no project's folder was named."""

    context: Context
    signer: Ed25519Signer
    principal: Principal
    project: str
    found: Found | None

    async def talk(self, conversation: Callable[[NodeClient], Awaitable[T]]) -> T:
        """Hold one conversation with the node as the agent."""
        async with NodeClient(self.context, self.signer) as client:
            return await conversation(client)

    def folder(self) -> Found:
        """The project's folder, read anew. Raises UsageError where there is none, or it is another project's."""
        if self.found is None:
            raise UsageError(
                "this server was not started in a project's folder",
                next_step="a person starts it there: freehold mcp --folder PATH",
                kind="no-project",
            )
        project = open_project(self.found.root)
        if project.project.name != self.project:
            raise UsageError(
                f"the folder holds {project.project.name} now, and this server is for {self.project}",
                next_step="set project.name back, or ask a person to start another server",
                kind="other-project",
            )
        return project

    def may(self, verb: str) -> bool:
        """Whether some grant holds a verb somewhere."""
        return verb in self.principal.every_verb


class Opening:
    """A session that is opened when it is first needed, and tried again until it could be."""

    def __init__(self, open_it: Callable[[], Awaitable[AgentSession]]) -> None:
        """Take what opens the session. It may raise CommandError."""
        self._open_it = open_it
        self._opened: AgentSession | None = None
        self._lock = asyncio.Lock()

    async def session(self) -> AgentSession:
        """Return the session. Raises CommandError with why there is none yet."""
        async with self._lock:
            if self._opened is None:
                self._opened = await self._open_it()
            return self._opened


async def open_session(context: Context, project: str, found: Found | None) -> AgentSession:
    """Find out what the context's key may do and fix the project. Raises CommandError, RefusedError or UsageError."""
    signer = everyday_key(context)
    async with NodeClient(context) as client:
        principal = await principal_of(client, signer.public_key)
    if principal.problem:
        rule, _, detail = principal.problem.partition(": ")
        raise UsageError(
            f"this key may do nothing here: {detail}",
            next_step="a person gives it rights: freehold token create",
            kind=rule,
        )
    named = project or (found.project.name if found is not None else "")
    if not named and len(principal.projects) == 1 and principal.projects[0] != "*":
        named = principal.projects[0]
    if not named:
        raise UsageError(
            "which project?", next_step="start it in the project's folder, or with --project NAME", kind="usage"
        )
    if "*" not in principal.projects and named not in principal.projects:
        raise UsageError(
            f"the grant of {principal.name} does not cover {named}",
            next_step=f"a person gives it rights: freehold token create --project {named}",
            kind="grant.scope",
        )
    inside = found if found is not None and found.project.name == named else None
    return AgentSession(context, signer, principal, named, inside)
