"""How a node founds, joins, admits, leaves and is restored. Not: the certificates' rules."""
