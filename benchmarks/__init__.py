"""Measurements, beside a peer where there is one: `python -m benchmarks` runs every module here that has a `run`.

A module is one subject: `run()` or `run(quick)` yields `rows.Row`s. Not here: tests; a slow number is a row that misses
its aim, never a failure.
"""
