"""Consensus: one decision a slot, certified by a quorum. Not: what a decision means."""
