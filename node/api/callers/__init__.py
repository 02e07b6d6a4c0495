"""Who calls the API, how it is known, and what it may touch."""
