"""Decisions as a node's operators see them: history, outcomes, waiting starts. Not: how they are reached."""
