"""What people and nodes sign: changes, evidence, approvals, statements, secrets. Not: who may act on them."""
