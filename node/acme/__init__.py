"""Certificates for visitors, ordered by one node for all (ACME, RFC 8555). Not: serving them, which workers do."""
