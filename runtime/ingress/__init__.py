"""Visitors' HTTP: listeners, connections, routing, forwarding, dispatch. Not: the guest's side of a request."""
