"""Commands on a mesh: found it, its nodes, environments and data, and its health."""
