"""Answers composed for a reader: overview, lanes, logs, why, audit, doctor. Not: how they are printed."""
