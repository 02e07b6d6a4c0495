"""Fleets of chains under faults, their checkers, liars and mutants. Not: whole nodes."""
