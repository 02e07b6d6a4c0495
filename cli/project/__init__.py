"""A project on a developer's disk: its freehold.toml and how it becomes a release bundle. Not: serving or deploying."""
