"""Pages that this installation serves to its own browser, on localhost. Not here: what the commands do with the answers."""
