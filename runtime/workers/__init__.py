"""Worker processes and the pool that keeps them. Not: what a worker does with a request."""
