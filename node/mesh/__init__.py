"""A node among its peers: the pump, questions, fetches, relayed requests. Not: bytes on the wire."""
