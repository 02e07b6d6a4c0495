"""The WebAssembly host: runs components and commands in a sandbox. Knows nothing of peers, meshes or rollouts."""
