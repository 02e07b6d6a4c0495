"""Commands on a change: propose, review, approve it; policy, evidence and secrets."""
