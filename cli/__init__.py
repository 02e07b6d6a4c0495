"""The freehold command: a client of the node's HTTP API."""
