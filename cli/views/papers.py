"""The papers of a change as people read them: who wrote, approved and tested it, and what is missing. Not: judging them."""

from __future__ import annotations

import msgspec
from msgspec.structs import asdict

from protocols.api_models import PapersView

ENVELOPE = "envelope"
BYTES = (ENVELOPE, "signed", "release", "chains")


def without_bytes(papers: PapersView) -> dict[str, object]:
    """The papers as JSON without their signed bytes; `freehold evidence export` hands those out."""
    table = _kept(papers)
    table["author"] = _kept(papers.author)
    table["approvals"] = [_kept(approval) for approval in papers.approvals]
    table["evidence"] = [_kept(evidence) for evidence in papers.evidence]
    return table


def _kept(one: msgspec.Struct) -> dict[str, object]:
    return {key: value for key, value in asdict(one).items() if key not in BYTES}


def papers_text(papers: PapersView) -> list[str]:
    """One line for each paper, and for what is missing."""
    author = papers.author
    lines = [f"  author    {author.name or author.key[:12]} ({author.kind or author.problem})"]
    for approval in papers.approvals:
        verdict = f"does not count: {approval.problem}" if approval.problem else "counts"
        how = ", by passkey" if approval.by_passkey else ""
        lines.append(f"  approval  {approval.name or approval.key[:12]}{how}, {verdict}")
    for paper in papers.evidence:
        by = "self-attested" if paper.self_attested else f"by a {paper.by}"
        lines.append(f"  evidence  {paper.kind} {'PASSED' if paper.passed else 'FAILED'}, {by} {paper.name}".rstrip())
    lines += [f"  missing   {missing.rule}: {missing.detail}" for missing in papers.missing]
    return lines
