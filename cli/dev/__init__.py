"""`freehold dev`: a project served from its folder, reloaded on save. Not: a node of a mesh."""
