"""One module per command; `cli.main` names them. Not here: what they share (`cli.frame`, `cli.output`)."""
