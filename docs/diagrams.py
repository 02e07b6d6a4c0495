"""Draws the sequence diagrams of the concept pages as SVG: `python docs/diagrams.py` writes them, a test holds them.

Not a library's work: those we found draw in a browser, over the network, or with a toolchain of their own. An actor is a
column, a step an arrow between two columns; light and dark follow the reader's setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "concepts"
COLUMN_PX = 192
ROW_PX = 34
TOP_PX = 58
STYLE = """
text{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#1b1f24}
.file{font-size:11px;fill:#57606a}
line,path{stroke:#57606a;stroke-width:1.2;fill:none}
.life{stroke:#d0d7de}
.head{fill:#f6f8fa;stroke:#d0d7de}
.tip{fill:#57606a}
@media(prefers-color-scheme:dark){text{stroke:#0d1117;fill:#e6edf3}.file{fill:#9198a1}.head{fill:#151b23;stroke:#3d444d}
.life{stroke:#3d444d}line,path{stroke:#9198a1}.tip{fill:#9198a1}}
"""


@dataclass(frozen=True, slots=True)
class Actor:
    """A column: what it is, and the file that holds it."""

    name: str
    file: str


Step = tuple[int, int, str]
"""From this column, to that one (the same: it works by itself), and what happens."""


@dataclass(frozen=True, slots=True)
class Walk:
    """One diagram."""

    title: str
    actors: Sequence[Actor]
    steps: Sequence[Step]


WALKS: Mapping[str, Walk] = {
    "walk-request": Walk(
        "A request to a guest and back",
        (
            Actor("Visitor", ""),
            Actor("Connection", "runtime/ingress/connection.py"),
            Actor("Dispatcher", "runtime/ingress/dispatch.py"),
            Actor("App", "runtime/sandbox/sandbox.py"),
            Actor("Guest", "the component"),
            Actor("Answer", "runtime/ingress/answer.py"),
        ),
        (
            (0, 1, "bytes of HTTP/1.1"),
            (1, 1, "parse, cap, find the route"),
            (1, 2, "submit(ticket)"),
            (2, 3, "handle(exchange), on a guest's thread"),
            (3, 4, "take or make an instance; wasi:http handle"),
            (4, 3, "head and body, through host functions"),
            (3, 5, "exchange wakes the loop"),
            (5, 0, "head, body, access line"),
        ),
    ),
    "walk-deploy": Walk(
        "A deploy",
        (
            Actor("Developer", "cli/change/propose.py"),
            Actor("API", "node/api/server.py"),
            Actor("Start queue", "node/decisions/start_queue.py"),
            Actor("Voters", "protocols/chain/"),
            Actor("Rollout agent", "protocols/rollout/agent.py"),
            Actor("Workloads", "node/serving/workloads.py"),
        ),
        (
            (0, 1, "artifacts, evidence, the signed change"),
            (0, 1, "the signed start"),
            (1, 2, "hold it until approvals are there"),
            (2, 3, "submit start"),
            (3, 3, "judge, promise, vote: decided"),
            (3, 4, "entry stored on each node"),
            (4, 5, "PrepareRelease, then Run"),
            (5, 4, "verdict: healthy, or not"),
            (4, 3, "signed verdicts: promote or abort"),
            (3, 0, "events: live, or gone back and why"),
        ),
    ),
    "walk-decision": Walk(
        "A decision",
        (
            Actor("Client", ""),
            Actor("Proposer", "protocols/chain/proposer.py"),
            Actor("Voter", "protocols/chain/voting.py"),
            Actor("Disk", "vote.db, then the fence"),
            Actor("Followers", "protocols/chain/follower.py"),
        ),
        (
            (0, 1, "signed command"),
            (1, 2, "prepare(ballot); often asked before"),
            (2, 3, "promise is durable"),
            (2, 1, "promise, with what was accepted"),
            (1, 2, "propose(decision, promises)"),
            (2, 2, "judge: signatures, rights, evidence"),
            (2, 3, "vote is durable"),
            (2, 1, "vote"),
            (1, 3, "decision and certificate are durable"),
            (1, 0, "answer"),
            (1, 4, "commit; each verifies and stores it"),
        ),
    ),
    "walk-record": Walk(
        "A received frame to a stored record",
        (
            Actor("Peer", ""),
            Actor("Transport", "node/transport/"),
            Actor("Pump", "node/mesh/pump.py"),
            Actor("NodeCore", "protocols/core.py"),
            Actor("Records", "protocols/records/gossip.py"),
            Actor("Storage", "node/store/storage.py"),
        ),
        (
            (0, 1, "Noise frame: decrypted, capped"),
            (1, 2, "decoded message"),
            (2, 3, "handle(Received, now)"),
            (3, 4, "the sender's standing allows it"),
            (4, 4, "signature, kind, author, size, life"),
            (4, 2, "Persist, then Send to others"),
            (2, 5, "write, one commit for what waits"),
        ),
    ),
    "walk-secret": Walk(
        "A secret to the guest",
        (
            Actor("Person", "cli/access/secrets.py"),
            Actor("API", "node/api/secrets.py"),
            Actor("Records", "protocols/changes/secrets.py"),
            Actor("Node", "node/serving/secrets.py"),
            Actor("Worker", "runtime/workers/worker.py"),
            Actor("Guest", "wasi:config"),
        ),
        (
            (0, 1, "value sealed to each node that may run it"),
            (1, 2, "a version, signed by the person"),
            (2, 3, "the change names the version by digest"),
            (3, 3, "open the box with the node's own key"),
            (3, 4, "value, in memory, on the control socket"),
            (4, 5, "get(NAME)"),
        ),
    ),
}


def draw(walk: Walk) -> str:
    """Return one diagram as an SVG document."""
    width = COLUMN_PX * len(walk.actors)
    height = TOP_PX + ROW_PX * (len(walk.steps) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(walk.title)}">',
        f"<title>{escape(walk.title)}</title><style>{STYLE}</style>",
    ]
    for index, actor in enumerate(walk.actors):
        x = COLUMN_PX * index + COLUMN_PX // 2
        parts.append(f'<line class="life" x1="{x}" y1="{TOP_PX - 10}" x2="{x}" y2="{height - 8}"/>')
        parts.append(f'<rect class="head" x="{x - 92}" y="4" width="184" height="44" rx="5"/>')
        parts.append(f'<text x="{x}" y="24" text-anchor="middle">{escape(actor.name)}</text>')
        parts.append(f'<text class="file" x="{x}" y="40" text-anchor="middle">{escape(actor.file)}</text>')
    for row, step in enumerate(walk.steps):
        parts.extend(_step(step, TOP_PX + ROW_PX * row + 24, width))
    return "\n".join((*parts, "</svg>", ""))


def _step(step: Step, y: int, width: int) -> list[str]:
    start, end, text = step
    here, there = (COLUMN_PX * column + COLUMN_PX // 2 for column in (start, end))
    if start == end:
        mark = f'<path d="M{here},{y - 8} h14 v10 h-8"/>'
        side = "end" if here > width - COLUMN_PX else "start"
        return [
            mark,
            f'<text x="{here + (22 if side == "start" else -8)}" y="{y + 2}" text-anchor="{side}">{escape(text)}</text>',
        ]
    way = 1 if there > here else -1
    return [
        f'<line x1="{here}" y1="{y}" x2="{there - 7 * way}" y2="{y}"/>',
        f'<path class="tip" d="M{there},{y} l{-8 * way},-4 v8 z"/>',
        f'<text x="{(here + there) // 2}" y="{y - 6}" text-anchor="middle">{escape(text)}</text>',
    ]


if __name__ == "__main__":
    for name, walk in WALKS.items():
        (FOLDER / f"{name}.svg").write_text(draw(walk))
