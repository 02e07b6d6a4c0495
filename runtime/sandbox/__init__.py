"""A component made ready to run: adapter, compiler, cache, instances with limits. Not: which one runs when."""
