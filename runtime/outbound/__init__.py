"""HTTP that guests send: destinations, the client, the reader of responses. Not: what a project was granted."""
