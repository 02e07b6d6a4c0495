"""Commands on a project's folder: make it, serve it, build, test and compare it."""
