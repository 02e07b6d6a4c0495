"""Commands on what happened: why, by whom, in which decision."""
