"""What a key may ask of this node over TCP: its grants, held against the operation.

Reading needs `view`, writing any right beyond it, unless what is brought proves its own author's right; a call that names
a project or an environment needs the right there.
This keeps strangers and viewers out of what they have no business with. What a write brings (commands, papers) is signed
by itself and judged again by those who decide. Not here: who the caller is (callers.py), and which objects of an answer the
caller sees (scope.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.api.callers.scope import Scope
from node.api.operations import Operation
from node.api.problems import NOT_ALLOWED, ProblemError, token_refused
from node.control import Control
from protocols.refusal import Refusal
from protocols.trust.bearer import BEARER_VERBS
from protocols.trust.grants import Rights, covers, payer_of

OF_ONE_PROJECT = frozenset({"logs"})
"""Operations whose answers hold what guests wrote: who sees some projects only must name one of them."""

MORE_RIGHTS = (
    "freehold token list shows what each may; an operator gives more: freehold mesh invite --kind principal --role ROLE"
)


def authorize(
    control: Control, key: str, operation: Operation, named: Mapping[str, Any], bearer: bool = False
) -> Scope:
    """Return how far a key sees. Raises ProblemError 403 unless its grants allow the operation with these parameters.

    A token whose grant holds more than any token may is good for nothing.
    """
    rights = control.core.dossiers.rights(bytes.fromhex(key), control.clock().wall_ms)
    if isinstance(rights, Refusal):
        raise ProblemError(403, rights.rule, "this key may not", rights.detail, "freehold login LINE")
    if bearer and any(not set(entry.verbs) <= set(BEARER_VERBS) for entry in rights.each):
        raise token_refused("its grant holds more than view and propose, so it is good for nothing")
    problems = [_problem(entry, operation, named) for entry in rights.each]
    problem = problems[0]
    if all(problems):
        raise ProblemError(403, NOT_ALLOWED, "this key may not", problem, MORE_RIGHTS)
    return Scope(key, rights.each, payer=payer_of(rights).hex())


def has_grant(control: Control, key: bytes) -> bool:
    """Whether a key may do anything here now."""
    return isinstance(control.core.dossiers.rights(key, control.clock().wall_ms), Rights)


def _problem(rights: Rights, operation: Operation, named: Mapping[str, Any]) -> str:
    if operation.access == "write" and not operation.carried and not any(verb != "view" for verb in rights.verbs):
        return f"the grant of {rights.name} only lets it look"
    if "view" not in rights.verbs:
        return f"the grant of {rights.name} does not let it look"
    project, environment = named.get("project", ""), named.get("environment", "")
    if project and not covers(rights.projects, project):
        return f"the grant of {rights.name} does not cover the project {project}"
    if environment and not covers(rights.environments, environment):
        return f"the grant of {rights.name} does not cover the environment {environment}"
    if not project and operation.name in OF_ONE_PROJECT and not covers(rights.projects, "*"):
        return f"the grant of {rights.name} covers some projects only; name one"
    return ""
