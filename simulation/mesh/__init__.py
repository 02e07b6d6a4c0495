"""Fleets of whole nodes under faults, their checkers and scenarios. Not: real time or sockets."""
