"""A project on a developer's disk: its freehold.toml and how it becomes a build. Not: serving or deploying."""
