"""Webhooks: this node tells addresses of others what happened, signed, and again until they have it."""
