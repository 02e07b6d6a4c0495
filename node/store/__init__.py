"""What a node keeps on disk: databases, artifacts, room. Not: what it keeps there and why."""
