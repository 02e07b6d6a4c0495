"""The native engine, as far as Python has to do with it: whether it can serve, what it is given, what it reports.

The engine itself is the Rust crate beside these files; `make native` builds it. Without it everything is served in Python.
"""
