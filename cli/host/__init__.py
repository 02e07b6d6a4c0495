"""This machine: its node's folder, its service manager, its ports. Not: the daemon."""
