"""The papers of a change as people read them: who wrote, approved and tested it, and what is missing. Not: judging them."""

from __future__ import annotations

from typing import Any

ENVELOPE = "envelope"
BYTES = (ENVELOPE, "signed", "release", "chains")


def without_bytes(papers: dict[str, Any]) -> dict[str, Any]:
    """The papers without their signed bytes; `freehold evidence export` hands those out."""
    kept = {key: value for key, value in papers.items() if key not in BYTES}
    kept["author"] = {key: value for key, value in papers["author"].items() if key not in BYTES}
    for kind in ("approvals", "evidence"):
        kept[kind] = [{key: value for key, value in one.items() if key not in BYTES} for one in papers[kind]]
    return kept


def papers_text(papers: dict[str, Any]) -> list[str]:
    """One line for each paper, and for what is missing."""
    author = papers["author"]
    lines = [f"  author    {author['name'] or author['key'][:12]} ({author['kind'] or author['problem']})"]
    for one in papers["approvals"]:
        verdict = f"does not count: {one['problem']}" if one["problem"] else "counts"
        how = ", by passkey" if one["by_passkey"] else ""
        lines.append(f"  approval  {one['name'] or one['key'][:12]}{how}, {verdict}")
    for one in papers["evidence"]:
        by = "self-attested" if one["self_attested"] else f"by a {one['by']}"
        lines.append(
            f"  evidence  {one['kind']} {'PASSED' if one['passed'] else 'FAILED'}, {by} {one['name']}".rstrip()
        )
    lines += [f"  missing   {one['rule']}: {one['detail']}" for one in papers["missing"]]
    return lines
