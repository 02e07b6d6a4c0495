"""What the API shows: views, event streams and metrics."""
