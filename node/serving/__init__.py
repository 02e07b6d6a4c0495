"""What a node runs for visitors: releases, workloads, schedules, secrets. Not: the sandbox itself."""
