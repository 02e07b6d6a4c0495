"""The change path for coding agents, as a Model Context Protocol server on standard input and output."""
