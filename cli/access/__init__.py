"""Who calls which node: contexts, keys, prompts, the client, members and principals. Not: changes."""
