"""What apps answered in the last minutes, judged: an app that fails its visitors is a fault, whatever its node thinks of it.

Pure. Not here: counting (node/serving/recent_answers.py).
"""

from __future__ import annotations

from cli.text.units import counted
from cli.views.finding import Finding
from protocols.api_models import AppAnswersView, NodeView

FAILED_SHARE_FAULT = 0.5
"""Of an app's requests in the last minutes."""


def apps(view: NodeView) -> list[Finding]:
    """Judge what a node says that its apps answered."""
    return [finding for app in view.apps if (finding := _judged(view.name, app)) is not None]


def _judged(node: str, app: AppAnswersView) -> Finding | None:
    requests, failed = app.requests, app.failed
    if not failed:
        return None
    every = failed == requests
    share = f"{'each of' if every else f'{failed} of'} {counted(requests, 'request')}"
    ends = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(app.ends.items()))
    what = f"{app.project}/{app.environment}: app {app.app} failed {share} on {node} in the last minutes"
    logs = f"freehold logs --project {app.project} --app {app.app}"
    back = f"freehold rollback --project {app.project} --env {app.environment} -m REASON"
    advice = f"{logs}; if the release before was better: {back}"
    return Finding(failed >= requests * FAILED_SHARE_FAULT, what + (f" ({ends})" if ends else ""), advice)
