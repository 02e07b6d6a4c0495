"""What the chain decides: the state, the commands and the rules that apply them. Not: how a decision comes about."""
